"""Short stories that use the words they are given.

Plot, opening, name and sentences follow from the words, so that other words give another story, also for a reader
who always takes the likeliest token. In training a part of the choices falls otherwise, so that drawing gives variety.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from demo.phrases import fill
from demo.plots import LOOKS, NATURES, OPENING, PLOTS, Choice
from demo.skills.exchange import Exchange, exchange
from demo.words import CREATURES, NAMES, PLACES, THINGS, made_up, sought

Option = TypeVar("Option")

FORMS = (
    "Tell me a story about {words}.", "Tell me a short story with {words}.", "Write a story about {words}.", "A story with {words}, please.",
    "Can you tell a story with {words}?", "Please write a short story about {words}.", "Make up a story with the words {words}.",
    "I want to hear a story about {words}.", "Story: {words}", "Give me a bedtime story with {words}.",
)  # fmt: skip
UNUSUAL = 0.35
"""How often a choice in training does not follow from its word."""


def stories(draw: Random, wanted: bool | None) -> Exchange:
    """A held-out one is what its words ask for."""
    words = sought(wanted, lambda: given(draw), lambda item: ("story", item))
    question = fill(draw, draw.choice(FORMS), {"words": listed(draw, words)})
    thought = f"The story needs {', '.join(words)}."
    made = exchange(question, Teller(draw, 0 if wanted else UNUSUAL).story(words), thought)
    return Exchange(made.turns, words=words)


def given(draw: Random) -> tuple[str, ...]:
    """One to four different words of which at most two are beings, two things, one a place."""
    pool = [*draw.sample(CREATURES, 2), *draw.sample(THINGS, 2), draw.choice(PLACES)]
    if draw.random() < 0.1:
        pool[2] = made_up(draw)
    return tuple(draw.sample(pool, draw.choice((1, 2, 3, 3, 3, 4))))


@dataclass(frozen=True, slots=True)
class Teller:
    draw: Random
    unusual: float

    def story(self, words: Sequence[str]) -> str:
        slots = self.cast(words)
        slots |= {
            "a_thing": f"a {self.choose('look', slots['thing'], LOOKS)}{slots['thing']}",
            "a_second": f"a {self.choose('look', slots['second'], LOOKS)}{slots['second']}",
            "name": self.choose("name", slots["place"], NAMES),
            "adjective": self.choose("nature", slots["hero"], NATURES),
        }
        plot = self.choose("plot", slots["thing"], range(len(PLOTS)))
        told = [self.sentence(f"{plot} {beat}", choice, slots) for beat, choice in enumerate((OPENING, *PLOTS[plot]))]
        return with_articles(" ".join(told))

    def cast(self, words: Sequence[str]) -> dict[str, str]:
        """Who and what occurs; whoever is not given follows from who is."""
        beings = [word for word in words if word in CREATURES]
        places = [word for word in words if word in PLACES and word not in CREATURES]
        things = [word for word in words if word not in CREATURES and word not in PLACES]
        hero = beings[0] if beings else self.choose("hero", words[0], CREATURES)
        thing = things[0] if things else self.choose("thing", words[0], THINGS)
        others = [being for being in CREATURES if being != hero]
        more = [other for other in THINGS if other != thing]
        return {
            "hero": hero,
            "thing": thing,
            "helper": beings[1] if len(beings) > 1 else self.choose("helper", hero, others),
            "second": things[1] if len(things) > 1 else self.choose("second", thing, more),
            "place": places[0] if places else self.choose("place", thing, PLACES),
        }

    def sentence(self, beat: str, choice: Choice, slots: dict[str, str]) -> str:
        whose, sentences = choice
        return self.choose(beat, slots[whose], sentences).format(**slots)

    def choose(self, matter: str, word: str, options: Sequence[Option]) -> Option:
        if self.draw.random() < self.unusual:
            return self.draw.choice(options)
        return options[zlib.crc32(f"{matter} {known(word)}".encode()) % len(options)]


def known(word: str) -> str:
    """Of a made-up word only the first letter counts: nothing else about it can be learnt."""
    return word if word in CREATURES or word in THINGS or word in PLACES else word[0]


def with_articles(text: str) -> str:
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}")
    return text


def listed(draw: Random, words: tuple[str, ...]) -> str:
    if draw.random() < 0.3 or len(words) == 1:
        return ", ".join(words)
    marked = [f"a{'n' if word[0] in 'aeiou' else ''} {word}" for word in words] if draw.random() < 0.6 else list(words)
    return f"{', '.join(marked[:-1])} and {marked[-1]}"
