"""Facts about the user, told early in a conversation and asked for later."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from demo.phrases import ask, plain
from demo.skills.exchange import Exchange, exchange
from demo.words import ADJECTIVES, CITIES, COLOURS, FOODS, HOBBIES, JOBS, THINGS, code, held_out, made_up, person

TELL_FORMS = (
    "Remember this: my {key} is {value}.", "My {key} is {value}.", "Please remember that my {key} is {value}.", "Note: my {key} is {value}.",
    "Keep in mind that my {key} is {value}.", "For later: my {key} is {value}.", "By the way, my {key} is {value}.",
    "Do not forget: my {key} is {value}.", "You should know that my {key} is {value}.", "I want you to know my {key}: it is {value}.",
)  # fmt: skip
ASK_FORMS = (
    "What is my {key}?", "Do you remember my {key}?", "What was my {key}?", "Can you tell me my {key}?", "What did I say my {key} is?",
    "Tell me my {key}.", "I forgot my {key}. What is it?", "My {key}?", "What's my {key} again?", "Which {key} did I tell you?",
    "Earlier I told you my {key}. What is it?",
)  # fmt: skip
UNTOLD = "You have not told me your {key}."


@dataclass(frozen=True, slots=True)
class Told:
    key: str
    value: str


def secret(draw: Random, wanted: bool | None) -> Told:
    while True:
        told = some_fact(draw)
        if wanted is None or held_out(told.key, told.value) == wanted:
            return told


def some_fact(draw: Random) -> Told:
    match draw.randrange(12):
        case 0 | 1 | 2:
            lock = draw.choice(
                (
                    "locker",
                    "door",
                    "bike",
                    "safe",
                    "garage",
                    "suitcase",
                    "room",
                    "gate",
                    "office",
                    "alarm",
                    "secret",
                    "phone",
                )
            )
            return Told(f"{lock} {draw.choice(('code', 'code', 'number', 'key'))}", code(draw))
        case 3 | 4:
            return Told(
                f"{draw.choice(ADJECTIVES)} {draw.choice(THINGS)} {draw.choice(('number', 'code', 'word'))}",
                draw.choice((code(draw), made_up(draw))),
            )
        case 5 | 6:
            kin = (
                "sister",
                "brother",
                "cat",
                "dog",
                "neighbour",
                "teacher",
                "boss",
                "doctor",
                "friend",
                "mother",
                "father",
                "daughter",
                "son",
                "horse",
                "aunt",
            )
            return Told(f"{draw.choice(kin)}'s name", person(draw))
        case 7:
            return Told(
                f"favourite {draw.choice(('colour', 'colour', 'ribbon colour', 'paint'))}", draw.choice(COLOURS)
            )
        case 8:
            return Told(f"favourite {draw.choice(('food', 'dish', 'meal', 'snack'))}", draw.choice(FOODS))
        case 9:
            return Told(
                draw.choice(("home town", "favourite city", "birthplace", "next destination")), draw.choice(CITIES)
            )
        case 10:
            if draw.random() < 0.3:
                return Told("hobby", draw.choice(HOBBIES))
            return Told(draw.choice(("job", "profession", "dream job")), draw.choice(JOBS))
        case _:
            return Told(
                draw.choice(("password", "magic word", "code word", "user name", "secret word", "nickname")),
                made_up(draw),
            )


def telling(draw: Random, told: Told) -> Exchange:
    answer = f"I will remember: your {told.key} is {told.value}."
    return exchange(ask(draw, TELL_FORMS, key=told.key, value=told.value), answer, "I have to remember this.")


def asking(draw: Random, told: Told) -> Exchange:
    answer = f"Your {told.key} is {told.value}."
    return exchange(ask(draw, ASK_FORMS, key=told.key), answer, f"The user told me: {told.value}.")


def asking_untold(draw: Random, key: str) -> Exchange:
    return exchange(ask(draw, ASK_FORMS, key=key), UNTOLD.format(key=key), "The user has not told me this.")


def asking_name(draw: Random, name: str | None) -> Exchange:
    question = plain(
        draw, ("What is my name?", "Do you know my name?", "Who am I?", "What's my name?", "Do you remember my name?")
    )
    if name is None:
        return exchange(question, UNTOLD.format(key="name"), "The user has not told me a name.")
    return exchange(question, f"Your name is {name}.", f"The user told me: {name}.")
