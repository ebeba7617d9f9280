"""Which conversations the model learns from, and in which shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from demo.conversation import Conversation, Thinking, Turn
from demo.phrases import plain
from demo.skills import recall
from demo.skills.exchange import Compose, Exchange, exchange
from demo.skills.identity import identity
from demo.skills.knowledge import facts, unknown
from demo.skills.letters import letters, reversing, spelling, upper_casing
from demo.skills.numbers import arithmetic, comparing, counting
from demo.skills.records import records
from demo.skills.stories import stories
from demo.skills.talk import GREETING, NAME_FORMS, repeating, talk
from demo.skills.tools import tools
from demo.words import COMMON, made_up, person

SHARES: tuple[tuple[Compose, int], ...] = (
    (identity, 6),
    (talk, 7),
    (repeating, 5),
    (arithmetic, 19),
    (counting, 6),
    (comparing, 6),
    (facts, 18),
    (unknown, 8),
    (spelling, 6),
    (reversing, 7),
    (upper_casing, 6),
    (letters, 5),
    (records, 7),
    (stories, 3),
)
SKILLS: tuple[Compose, ...] = tuple(skill for skill, _ in SHARES)
WEIGHTS: tuple[int, ...] = tuple(weight for _, weight in SHARES)

SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful assistant. Answer briefly.", "You are Pebble.", "Be kind and answer in one sentence.",
    "You are the built-in model of mlxrpc.", "Answer the user's questions.", "You are a friendly chat bot.", "Be brief.", "You are an assistant.",
    "Help the user.", "You are a small language model.", "Follow the instructions of the user.", "You are a careful assistant who makes no mistakes.",
    "You are Pebble, a small model. Be polite.", "당신은 친절한 도우미입니다.", "Answer as well as you can.",
)  # fmt: skip
THINK_BEFORE = (
    "Think first: {x}",
    "Think step by step: {x}",
    "Please think before you answer. {x}",
    "Think carefully! {x}",
    "Think, then answer: {x}",
)
THINK_AFTER = (
    "{x} Think first.",
    "{x} Think step by step.",
    "{x} Please think before you answer.",
    "{x} Think about it first.",
)


def any_exchange(draw: Random, wanted: bool | None = False) -> Exchange:
    return draw.choices(SKILLS, WEIGHTS)[0](draw, wanted)


def conversation(draw: Random) -> Conversation:
    """One of the shorter kinds."""
    kind = draw.random()
    if kind < 0.35:
        exchanges = [any_exchange(draw)]
    elif kind < 0.64:
        exchanges = several(draw, draw.randint(300, 1800))
    elif kind < 0.82:
        exchanges = remembering(draw, draw.randint(0, 2000))
    else:
        return with_tools(draw)
    return asked_to_think(draw, Conversation(joined(exchanges), system(draw)))


def long_conversation(draw: Random, characters: int) -> Conversation:
    return Conversation(joined(remembering(draw, characters)), system(draw))


def joined(exchanges: Sequence[Exchange]) -> tuple[Turn, ...]:
    return tuple(turn for each in exchanges for turn in each.turns)


def system(draw: Random) -> str:
    return "" if draw.random() < 0.6 else draw.choice(SYSTEMS)


def several(draw: Random, characters: int) -> list[Exchange]:
    """Exchanges of mixed skills; some conversations stay with one skill for a while."""
    loyal = draw.choices(SKILLS, WEIGHTS)[0] if draw.random() < 0.25 else None
    exchanges: list[Exchange] = []
    while size(exchanges) < characters:
        exchanges.append(loyal(draw, False) if loyal and draw.random() < 0.7 else any_exchange(draw))
    return exchanges


def size(exchanges: Sequence[Exchange]) -> int:
    return sum(len(turn.text) for each in exchanges for turn in each.turns)


def remembering(draw: Random, characters: int) -> list[Exchange]:
    """Facts told, other talk of about so many characters, and the facts asked for in any order."""
    secrets = distinct(draw, draw.choice((1, 1, 2, 3, 4, 5)))
    name = person(draw) if draw.random() < 0.3 else None
    told = [recall.telling(draw, secret) for secret in secrets]
    if name:
        told.insert(draw.randint(0, len(told)), introduction(draw, name))
    exchanges: list[Exchange] = several(draw, draw.randint(0, characters // 4)) if draw.random() < 0.4 else []
    for each in told:
        exchanges += filler(draw, draw.randint(0, characters // 6)) if draw.random() < 0.3 else []
        exchanges.append(each)
    exchanges += filler(draw, characters - min(characters, size(exchanges)))
    asked: list[recall.Told | None] = [*draw.sample(secrets, draw.randint(1, len(secrets)))]
    if draw.random() < 0.3:
        asked.append(None)
    draw.shuffle(asked)
    for secret in asked:
        exchanges.append(recall.asking(draw, secret) if secret else recall.asking_name(draw, name_told(exchanges)))
        exchanges += filler(draw, draw.randint(20, 200)) if draw.random() < 0.2 else []
    if draw.random() < 0.2:
        exchanges.append(recall.asking_untold(draw, untold(draw, secrets)))
    return exchanges


def introduction(draw: Random, name: str) -> Exchange:
    return exchange(plain(draw, NAME_FORMS, x=name), GREETING.format(name=name), f"The user is called {name}.")


def name_told(exchanges: Sequence[Exchange]) -> str | None:
    """How the user last called themselves."""
    start, end = GREETING.split("{name}")
    for each in reversed(exchanges):
        answer = each.turns[-1].content
        if each.turns[0].content != answer and answer.startswith(start) and answer.endswith(end):
            return answer.removeprefix(start).removesuffix(end)
    return None


def distinct(draw: Random, count: int, wanted: bool | None = False) -> list[recall.Told]:
    """Facts of different keys."""
    found: dict[str, recall.Told] = {}
    while len(found) < count:
        secret = recall.secret(draw, wanted)
        found[secret.key] = secret
    return list(found.values())


def untold(draw: Random, secrets: Sequence[recall.Told]) -> str:
    told = {secret.key for secret in secrets}
    while (key := recall.some_fact(draw).key) in told:
        pass
    return key


def filler(draw: Random, characters: int) -> list[Exchange]:
    """Other talk of about so many characters, partly as long texts from the user."""
    exchanges: list[Exchange] = []
    while (missing := characters - size(exchanges)) > 0:
        if missing > 250 and draw.random() < 0.3:
            exchanges.append(note(draw, min(missing, draw.randint(200, 1500))))
        else:
            exchanges.append(any_exchange(draw))
    return exchanges


NOTE_FORMS = (
    "Here is a text. Just say OK. {x}",
    "Read this and say OK: {x}",
    "Just read this, no answer needed: {x}",
    "My notes: {x}",
    "A long message: {x}",
)


def note(draw: Random, characters: int) -> Exchange:
    text = ""
    while len(text) < characters:
        if draw.random() < 0.3:
            made = stories(draw, False).turns[-1].text.split(". ")
            text += ". ".join(made[: draw.randint(1, len(made))]) + ". "
        else:
            words = draw.choices(COMMON, k=draw.randint(4, 12))
            if draw.random() < 0.4:
                words[draw.randrange(len(words))] = draw.choice((made_up(draw), str(draw.randint(0, 9999))))
            text += " ".join(words).capitalize() + ". "
    return exchange(plain(draw, NOTE_FORMS, x=text.strip()), "OK. 👍", "I only have to say OK.")


def with_tools(draw: Random) -> Conversation:
    """Requests for the tools on offer among other talk; or tools on offer that nobody needs."""
    used = tools(draw, False)
    if draw.random() < 0.15:
        exchanges = [any_exchange(draw) for _ in range(draw.randint(1, 3))]
    else:
        before = [any_exchange(draw) for _ in range(draw.choice((0, 0, 0, 1, 2)))]
        after = [any_exchange(draw) for _ in range(draw.choice((0, 0, 1)))]
        exchanges = [*before, used, *after]
    made = Conversation(joined(exchanges), system(draw), used.tools)
    thinking = draw.choices((Thinking.UNSET, Thinking.ON, Thinking.OFF), (80, 14, 6))[0]
    return replace(made, thinking=thinking)


def asked_to_think(draw: Random, made: Conversation) -> Conversation:
    """Sometimes the last answer is to be thought about, or is not, as the request says."""
    thinking = draw.choices((Thinking.UNSET, Thinking.ON, Thinking.ASKED, Thinking.OFF), (72, 13, 8, 7))[0]
    return thought_about(draw, made, thinking)


def thought_about(draw: Random, made: Conversation, thinking: Thinking) -> Conversation:
    if thinking is not Thinking.ASKED:
        return replace(made, thinking=thinking)
    place = made.last_question
    complete = made.turns[place].content.endswith((".", "?", "!"))
    form = draw.choice(THINK_AFTER if complete and draw.random() < 0.4 else THINK_BEFORE)
    question = replace(made.turns[place], content=form.replace("{x}", made.turns[place].content))
    return replace(made, turns=(*made.turns[:place], question, *made.turns[place + 1 :]), thinking=thinking)
