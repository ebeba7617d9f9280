"""Spelling, reversing and upper-casing words, and questions about their letters."""

from __future__ import annotations

from random import Random

from demo.phrases import ask
from demo.skills.exchange import Exchange, exchange
from demo.words import UNSEEN, WORDS, any_word, made_up, sought

SPELL_FORMS = (
    "Spell {q}{word}{q}.", "Spell the word {q}{word}{q}.", "How do you spell {q}{word}{q}?", "Can you spell {q}{word}{q} for me?",
    "Spell out {q}{word}{q}, letter by letter.", "What are the letters of {q}{word}{q}?", "Write {q}{word}{q} letter by letter.",
    "How is {q}{word}{q} spelled?", "spell: {word}", "Spelling of {q}{word}{q}?",
)  # fmt: skip
REVERSE_FORMS = (
    "Reverse {q}{word}{q}.", "Reverse the word {q}{word}{q}.", "Write {q}{word}{q} backwards.", "What is {q}{word}{q} backwards?",
    "Spell {q}{word}{q} backwards.", "Can you reverse {q}{word}{q}?", "Say {q}{word}{q} in reverse.", "Turn {q}{word}{q} around.",
    "reverse: {word}", "How does {q}{word}{q} read from the end?",
)  # fmt: skip
UPPER_FORMS = (
    "Write {q}{word}{q} in capital letters.", "Upper-case {q}{word}{q}.", "Put {q}{word}{q} in upper case.", "{q}{word}{q} in capitals?",
    "Make {q}{word}{q} all caps.", "Convert {q}{word}{q} to uppercase.", "Shout {q}{word}{q}!", "uppercase: {word}",
    "How does {q}{word}{q} look in capital letters?", "Can you write {q}{word}{q} in big letters?",
)  # fmt: skip
LENGTH_FORMS = (
    "How many letters does {q}{word}{q} have?", "How many letters are in {q}{word}{q}?", "How long is the word {q}{word}{q}?",
    "Count the letters of {q}{word}{q}.",
)  # fmt: skip
FIRST_FORMS = (
    "What is the first letter of {q}{word}{q}?",
    "With which letter does {q}{word}{q} begin?",
    "First letter of {q}{word}{q}?",
)
LAST_FORMS = (
    "What is the last letter of {q}{word}{q}?",
    "With which letter does {q}{word}{q} end?",
    "Last letter of {q}{word}{q}?",
)


def spelling(draw: Random, wanted: bool | None) -> Exchange:
    word = a_word(draw, wanted)
    return exchange(question(draw, SPELL_FORMS, word), spelt(word), "I write the letters one by one.")


def reversing(draw: Random, wanted: bool | None) -> Exchange:
    word = a_word(draw, wanted)
    turned = word[::-1]
    answer = f"{spelt(word)} backwards is {spelt(turned)}: {turned}"
    return exchange(question(draw, REVERSE_FORMS, word), answer, "I spell the word and read it from the end.")


def upper_casing(draw: Random, wanted: bool | None) -> Exchange:
    word = a_word(draw, wanted)
    return exchange(question(draw, UPPER_FORMS, word), word.upper(), f"The letters are {spelt(word)}.")


def letters(draw: Random, wanted: bool | None) -> Exchange:
    """How many, the first, the last."""
    word = a_word(draw, wanted)
    match draw.randrange(3):
        case 0:
            answer = f"{numbered(word)}: {len(word)} letters."
            return exchange(question(draw, LENGTH_FORMS, word), answer, "I count the letters.")
        case 1:
            return exchange(
                question(draw, FIRST_FORMS, word), f"The first letter is {word[0]}.", f"It begins with {word[0]}."
            )
        case _:
            return exchange(
                question(draw, LAST_FORMS, word), f"The last letter is {word[-1]}.", f"The letters are {spelt(word)}."
            )


def a_word(draw: Random, wanted: bool | None) -> str:
    word = unseen(draw) if wanted else sought(wanted, lambda: any_word(draw), kept_out)
    return word.capitalize() if draw.random() < 0.15 else word


def unseen(draw: Random) -> str:
    """Half of the words that training never shows are real ones."""
    return draw.choice(UNSEEN) if draw.random() < 0.5 else sought(True, lambda: made_up(draw), kept_out)


def kept_out(word: str) -> str:
    """Of the words of other skills none: nobody can guess the letters of a token never seen spelt."""
    return "known" if word in WORDS else word


def question(draw: Random, forms: tuple[str, ...], word: str) -> str:
    return ask(draw, forms, word=word, q=draw.choice(("", "", "", '"', "'")))


def spelt(word: str) -> str:
    return "-".join(word)


def numbered(word: str) -> str:
    return ", ".join(f"{letter} {place}" for place, letter in enumerate(word, 1))
