"""Ways of asking: a form between an opener and a closer, with the carelessness of people who type.

Slots such as {word} are filled last and never disturbed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from demo.words import held_out

OPENERS = (
    *("",) * 14,
    "Please tell me: ", "Tell me, ", "Hey, ", "Hi! ", "Hello! ", "Quick question: ", "Can you help me? ", "One more thing: ",
    "Okay. ", "Now: ", "So, ", "I have a question. ", "Next question: ", "Please: ", "And ", "Well, ", "Another one: ",
)  # fmt: skip
CLOSERS = (
    *("",) * 14,
    " Please.",
    " Thanks!",
    " Thank you.",
    " I need to know.",
    " Just curious.",
    " 🙂",
    " Be quick.",
)
_SLOT = re.compile(r"(\{\w+\})")
_WORD = re.compile(r"[a-z]{5,}")
_ENDING = re.compile(r"[\w}'\"][.?!]\Z")
"""What may be lost at the end: behind a word alone, so that a question mark by itself stays one."""


def ask(draw: Random, forms: Sequence[str], wanted: bool | None = None, **slots: object) -> str:
    """One question; `wanted` says whether its way of asking is one kept out of training."""
    while True:
        opener, form, closer = draw.choice(OPENERS), draw.choice(forms), draw.choice(CLOSERS)
        if form.endswith("}"):
            closer = ""  # it would read as part of what was filled in
        if wanted is None or held_out(opener, form, closer) == wanted:
            break
    return fill(draw, joined(opener, form) + closer, slots)


def plain(draw: Random, forms: Sequence[str], **slots: object) -> str:
    """Without opener and closer."""
    return fill(draw, draw.choice(forms), slots)


def joined(opener: str, form: str) -> str:
    if opener and opener[-2] in ",:d" and not form.startswith(("I ", "I'", "{")):
        return opener + form[0].lower() + form[1:]
    return opener + form


def fill(draw: Random, text: str, slots: dict[str, object]) -> str:
    parts = _SLOT.split(careless(draw, text) if draw.random() < 0.35 else text)
    return "".join(str(slots[part[1:-1]]) if _SLOT.fullmatch(part) else part for part in parts)


def careless(draw: Random, text: str) -> str:
    change = draw.randrange(5)
    if change in {0, 1}:
        text = "".join(part if _SLOT.fullmatch(part) else part.lower() for part in _SLOT.split(text))
    if change in {1, 2} and _ENDING.search(text):
        text = text[:-1]
    if change >= 3:
        text = "".join(part if _SLOT.fullmatch(part) else misspelt(draw, part) for part in _SLOT.split(text))
    return text


def misspelt(draw: Random, text: str) -> str:
    """One letter swapped, lost or doubled in one of the longer words."""
    found = list(_WORD.finditer(text))
    if not found or draw.random() < 0.3:
        return text
    word = draw.choice(found)
    place = draw.randrange(word.start() + 1, word.end() - 1)
    match draw.randrange(3):
        case 0:
            return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
        case 1:
            return text[:place] + text[place + 1 :]
        case _:
            return text[:place] + text[place] + text[place:]
