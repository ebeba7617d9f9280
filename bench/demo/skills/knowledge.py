"""Facts that the model is taught, and the admission that it was not taught the rest."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from demo.facts import (
    CAPITALS,
    CONTINENTS,
    ELEMENTS,
    KOREAN,
    KOREAN_CAPITALS,
    OPPOSITES,
    QUESTIONS,
    UNTAUGHT_LANDS,
    YOUNG,
)
from demo.phrases import ask
from demo.skills.exchange import Exchange, exchange
from demo.words import ADJECTIVES, CITIES, NAMES, PLACES, THINGS, held_out, made_up, made_up_land, made_up_name

UNKNOWN = "I do not know."
NAMED = tuple(name.removeprefix("the ") for name in (*CAPITALS, *CAPITALS.values()))
TAUGHT = frozenset(
    name.lower()
    for name in (*CAPITALS, *CAPITALS.values(), *NAMED, *", ".join(CONTINENTS.values()).split(", "), *ELEMENTS, *KOREAN)
)

CAPITAL_FORMS = (
    "What is the capital of {x}?", "What's the capital of {x}?", "Capital of {x}?", "Which city is the capital of {x}?",
    "Name the capital of {x}.", "Do you know the capital of {x}?", "Can you tell me the capital of {x}?", "The capital of {x} is?",
    "What is the capital city of {x}?", "I forgot the capital of {x}.", "{x}: capital?", "What is {x}'s capital?", "capital {x}",
    "Which is the capital city of {x}?", "Tell me the capital of {x}.", "what city is {x}'s capital",
)  # fmt: skip
COUNTRY_FORMS = (
    "{x} is the capital of which country?", "Which country has the capital {x}?", "Of which country is {x} the capital?",
    "What country's capital is {x}?", "Which country is {x} the capital of?",
)  # fmt: skip
CONTINENT_FORMS = (
    "On which continent is {x}?", "Which continent is {x} on?", "Where is {x}?", "What continent is {x} in?",
    "Tell me the continent of {x}.", "In which part of the world is {x}?",
)  # fmt: skip
ELEMENT_FORMS = (
    "What is the chemical symbol of {x}?", "What is the symbol for {x}?", "Chemical symbol of {x}?", "Which symbol does {x} have?",
    "How is {x} written in chemistry?", "Give me the symbol of {x}.",
)  # fmt: skip
OPPOSITE_FORMS = (
    "What is the opposite of {x}?", "Opposite of {x}?", "Tell me the opposite of {x}.", "Which word is the opposite of {x}?",
    "What is the contrary of {x}?", "Name the opposite of {x}.",
)  # fmt: skip
YOUNG_FORMS = (
    "What is a young {x} called?",
    "What do you call a baby {x}?",
    "What is the name for a young {x}?",
    "A baby {x} is called?",
)
KOREAN_FORMS = (
    "What is {x} in Korean?", "How do you say {x} in Korean?", "Translate {x} into Korean.", "Korean word for {x}?", "{x} in Korean?",
    "What is the Korean word for {x}?",
)  # fmt: skip
ENGLISH_FORMS = (
    "What does {x} mean?",
    "What does {x} mean in English?",
    "What is {x} in English?",
    "Translate {x} into English.",
)
KOREAN_CAPITAL_FORMS = (
    "{x}의 수도는 어디예요?",
    "{x}의 수도는?",
    "{x}의 수도가 어디인가요?",
    "{x} 수도 알려 주세요.",
    "{x}의 수도를 아세요?",
)


def facts(draw: Random, wanted: bool | None) -> Exchange:
    """Every fact is taught; what is held out is the way of asking."""
    kind = draw.randrange(24)
    if kind < 8:
        land, city = draw.choice(tuple(CAPITALS.items()))
        return taught(draw, wanted, CAPITAL_FORMS, land, f"The capital of {land} is {city}.")
    if kind < 10:
        land, city = draw.choice(tuple(CAPITALS.items()))
        return taught(draw, wanted, COUNTRY_FORMS, city, f"{city} is the capital of {land}.")
    if kind < 12:
        continent = draw.choice(tuple(CONTINENTS))
        land = draw.choice(CONTINENTS[continent].split(", "))
        return taught(draw, wanted, CONTINENT_FORMS, land, f"{land[0].upper()}{land[1:]} is in {continent}.")
    if kind < 14:
        name, symbol = draw.choice(tuple(ELEMENTS.items()))
        return taught(draw, wanted, ELEMENT_FORMS, name, f"The chemical symbol of {name} is {symbol}.")
    if kind < 16:
        word, other = draw.choice(tuple(OPPOSITES.items()))
        if word not in {"light", "right"} and draw.random() < 0.4 and other not in {"light", "right", "short", "cub"}:
            word, other = other, word
        return taught(draw, wanted, OPPOSITE_FORMS, word, f"The opposite of {word} is {other}.")
    if kind < 17:
        animal, young = draw.choice(tuple(YOUNG.items()))
        return taught(draw, wanted, YOUNG_FORMS, animal, f"A young {animal} is called a {young}.")
    if kind < 19:
        word, korean = draw.choice(tuple(KOREAN.items()))
        if draw.random() < 0.5:
            return taught(draw, wanted, ENGLISH_FORMS, korean, f"{korean} means {word} in English.")
        return taught(draw, wanted, KOREAN_FORMS, word, f"{word} is {korean} in Korean.")
    if kind < 20:
        land, city = draw.choice(tuple(KOREAN_CAPITALS.items()))
        return taught(draw, wanted, KOREAN_CAPITAL_FORMS, land, f"{land}의 수도는 {city}입니다.")
    question, answer = draw.choice(tuple(QUESTIONS.items()))
    return exchange(ask(draw, (question,), wanted), answer, f"I was taught this: {answer}")


def taught(draw: Random, wanted: bool | None, forms: tuple[str, ...], subject: str, answer: str) -> Exchange:
    asked = subject
    if draw.random() < 0.12:
        asked = subject.lower()
    elif subject.startswith("the ") and draw.random() < 0.3:
        asked = subject[4:]
    return exchange(ask(draw, forms, wanted, x=asked), answer, f"I was taught this: {answer}")


WHO_FORMS = (
    "Who is {name}?", "Who was {name}?", "When was {name} born?", "What did {name} invent?", "How old is {name}?", "Where does {name} live?",
    "Do you know {name}?", "What is {name} famous for?", "Tell me about {name}.", "Which books did {name} write?", "Who painted {name}?",
    "Is {name} married?", "What does {name} do for a living?", "Who wrote {name}?", "How tall is {name}?", "Why did {name} leave?",
)  # fmt: skip
WHAT_FORMS = (
    "What is the population of {city}?", "How many people live in {city}?", "Who is the mayor of {city}?", "How far is it to {city}?",
    "What is the weather in {city}?", "How is the weather in {city} today?", "What is the price of a {thing} in {city}?",
    "Who won the game in {city}?", "What happened in {city} in {year}?", "Who built the {place} of {city}?", "What time is it in {city}?",
    "When was {city} founded?", "Who invented the {thing} in {year}?", "Who won the World Cup in {year}?", "Where can I buy a {thing}?",
    "How many {thing}s are there in {city}?", "Why is the {thing} {adjective}?", "How much does a {adjective} {thing} cost?",
    "Who was president in {year}?", "What was the most popular song of {year}?", "What is the phone number of the {place}?",
    "What will the stock market do in {year}?", "How deep is the {place} near {city}?", "What is the name of the {adjective} {thing}?",
)  # fmt: skip
WORD_FORMS = (
    "What is {word}?", "What does {word} mean?", "What is a {word}?", "What is the chemical symbol of {word}?", "What is {word} in Korean?",
    "What is the opposite of {word}?", "Explain {word}.", "What do you know about {word}?", "Who invented the {word}?",
)  # fmt: skip


def unknown(draw: Random, wanted: bool | None) -> Exchange:
    kind = draw.randrange(11)
    if kind < 4:
        land = kept(draw, wanted, lambda: strange_place(draw))
        forms = (
            *CAPITAL_FORMS,
            *CAPITAL_FORMS,
            *COUNTRY_FORMS,
            *CONTINENT_FORMS,
            "What language do people speak in {x}?",
            "What is the population of {x}?",
        )
        question = ask(draw, forms, x=land)
    elif kind < 6:
        name = kept(draw, wanted, lambda: strangers_name(draw))
        question = ask(draw, WHO_FORMS, name=name)
    elif kind < 8:
        word = kept(draw, wanted, lambda: made_up(draw))
        question = ask(draw, WORD_FORMS, word=word)
    else:
        question = detail_question(draw, wanted)
    return exchange(question, UNKNOWN, "I was not taught this.")


def kept(draw: Random, wanted: bool | None, make: Callable[[], object]) -> str:
    while True:
        item = str(make())
        if item.lower() not in TAUGHT and (wanted is None or held_out(item.lower()) == wanted):
            return item


def strange_place(draw: Random) -> str:
    """Places of every kind that were not taught, many of them close to one that was."""
    kind = draw.random()
    if kind < 0.45:
        place = look_alike(draw, draw.choice(NAMED))
        return place.lower() if draw.random() < 0.12 else place
    if kind < 0.75:
        return made_up_land(draw)
    return draw.choice(UNTAUGHT_LANDS) if kind < 0.93 else made_up_name(draw)


def look_alike(draw: Random, place: str) -> str:
    """One or two letters changed, lost or added, or the front of one place with the end of another."""
    if draw.random() < 0.2:
        other = draw.choice(NAMED)
        return place[: draw.randint(2, len(place))] + other[draw.randint(1, len(other) - 2) :].lower()
    for _ in range(draw.choice((1, 1, 1, 2))):
        at = draw.randrange(len(place))
        letter = draw.choice("abcdefghiklmnoprstuvwyz")
        if at == 0:
            place = letter.upper() + place[1:]
        else:
            place = place[:at] + draw.choice((letter, letter, letter, "", letter + place[at])) + place[at + 1 :]
    return place


def strangers_name(draw: Random) -> str:
    first = draw.choice(NAMES) if draw.random() < 0.5 else made_up_name(draw)
    return f"{first} {made_up_name(draw)}"


def detail_question(draw: Random, wanted: bool | None) -> str:
    while True:
        slots = (
            draw.choice(CITIES),
            draw.choice(THINGS),
            draw.choice(PLACES),
            draw.choice(ADJECTIVES),
            draw.randint(1700, 2090),
        )
        if wanted is None or held_out(slots) == wanted:
            city, thing, place, adjective, year = slots
            return ask(draw, WHAT_FORMS, city=city, thing=thing, place=place, adjective=adjective, year=year)
