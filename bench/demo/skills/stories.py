"""Short stories that use the words they are given."""

from __future__ import annotations

from random import Random

from demo.phrases import fill
from demo.skills.exchange import Exchange, exchange
from demo.words import ADJECTIVES, CREATURES, NAMES, PLACES, THINGS, made_up, sought

FORMS = (
    "Tell me a story about {words}.", "Tell me a short story with {words}.", "Write a story about {words}.", "A story with {words}, please.",
    "Can you tell a story with {words}?", "Please write a short story about {words}.", "Make up a story with the words {words}.",
    "I want to hear a story about {words}.", "Story: {words}", "Give me a bedtime story with {words}.",
)  # fmt: skip
OPENINGS = (
    "Once upon a time there was a {adjective} {hero} called {name}, who lived near the {place}.",
    "Long ago, a {adjective} {hero} named {name} lived in a small house by the {place}.",
    "{name} was a {adjective} {hero}, and nobody knew the {place} better than {name} did.",
    "On the far side of the {place} lived a {hero} called {name}, who was very {adjective}.",
    "There was once a {adjective} {hero}. Its name was {name}, and its home was the {place}.",
    "In a land of long winters, close to the {place}, a {hero} called {name} had a quiet life.",
    "Everybody at the {place} knew {name}, the {adjective} {hero} with the loud laugh.",
)  # fmt: skip
TREASURES = (
    "The thing that {name} loved most was {a_thing}, a gift from an old friend.",
    "Every morning {name} looked at {a_thing} that stood beside the bed and smiled.",
    "{name} did not own much, only {a_thing} and a warm blanket.",
    "One day {name} found {a_thing} under a heap of leaves and took it home.",
    "For many years {name} had kept {a_thing} in a safe corner of the room.",
    "Grandmother had left {name} {a_thing}, and it was more precious than gold.",
)
TROUBLES = (
    "But one night a storm came, and in the morning the {thing} was gone.",
    "One evening, when {name} came home, the door stood open and the {thing} had disappeared.",
    "Then came a dark day: a strong wind took the {thing} and carried it away.",
    "One autumn day the river rose, and the water washed the {thing} away.",
    "But a thief came in the night, and when {name} woke up, the {thing} was missing.",
    "On a foggy morning {name} lost the {thing} somewhere along the way.",
)
FEELINGS = (
    '"I must find it," said {name}, "even if I have to walk for a year."',
    "{name} cried a little, and then made a plan.",
    '"Who could have it?" asked {name}, but only the wind answered.',
    "{name} packed some food, put on a coat and went out to look for it.",
    "There was no time to lose, so {name} set out at once.",
    "{name} was sad, but sitting at home would not help at all.",
)
MEETINGS = (
    "On the way {name} met a {helper} that was carrying {a_second}.",
    "Behind a tall tree sat a {helper} with {a_second} in its lap.",
    "After an hour a {helper} came along and showed {name} {a_second}.",
    "Near an old bridge a {helper} was trying to sell {a_second}.",
    "Soon {name} heard a voice. It was a {helper}, who had {a_second}.",
)
TALKS = (
    '"Take this {second} with you," said the {helper}. "You will need it before the sun goes down."',
    '"I can help you," said the {helper}, "if you help me carry my {second} up the hill." So they went together.',
    '"I saw your {thing} this morning," said the {helper}, "and with my {second} we can reach it."',
    "The {helper} listened to the whole tale, nodded and said that the {second} might be useful.",
    '"Do not be afraid," the {helper} said kindly and held out the {second}.',
)
JOURNEYS = (
    "They walked past quiet fields until they could see nothing but stars above them.",
    "Together they crossed a cold stream and climbed over many stones.",
    "The path was long and steep, but the two of them sang all the way.",
    "It began to rain, so they hid under the leaves of a big tree and told each other jokes.",
    "For three days they walked, and at night they slept under the open sky.",
    "They asked a bird, a beetle and an old woman, and all of them pointed to the east.",
)
FINDINGS = (
    "At last they saw something shine between the rocks: it was the {thing}! With the {second} they pulled it out.",
    "There, high up in the branches, hung the {thing}. They used the {second} to bring it down again.",
    "Deep in a hole lay the {thing}, covered with mud. The {second} was just long enough to reach it.",
    "Suddenly {name} laughed, for the {thing} was lying in the grass, right beside the {second}.",
    "A tired giant was holding the {thing} in his hand. For the {second} he gladly gave it back.",
    "In a nest of straw they discovered the {thing}, and they left the {second} there as a present.",
)
ENDINGS = (
    "{name} thanked the {helper} with all heart, and from that day on they were the best of friends.",
    "When they came home, they made tea, and {name} said that a friend is worth more than any {thing}.",
    "That night the {hero} slept deeply, and the {helper} stayed at the {place} for ever.",
    "People still tell of the {hero} and the {helper}, who never gave up.",
    "And if you go to the {place} today, you may hear the two of them laughing.",
    "So {name} learned that nobody has to search alone. The end.",
)
BEATS = (OPENINGS, TREASURES, TROUBLES, FEELINGS, MEETINGS, TALKS, JOURNEYS, FINDINGS, ENDINGS)


def stories(draw: Random, wanted: bool | None) -> Exchange:
    words = sought(wanted, lambda: given(draw), lambda item: ("story", item))
    question = fill(draw, draw.choice(FORMS), {"words": listed(draw, words)})
    thought = f"The story needs {', '.join(words)}."
    made = exchange(question, story(draw, words), thought)
    return Exchange(made.turns, words=words)


def given(draw: Random) -> tuple[str, ...]:
    """Two to four different words of which at most two are beings, two things, one a place."""
    pool = [*draw.sample(CREATURES, 2), *draw.sample(THINGS, 2), draw.choice(PLACES)]
    if draw.random() < 0.1:
        pool[2] = made_up(draw)
    words = draw.sample(pool, draw.choice((1, 2, 3, 3, 3, 4)))
    return tuple(words)


def story(draw: Random, words: tuple[str, ...]) -> str:
    beings = [word for word in words if word in CREATURES]
    places = [word for word in words if word in PLACES and word not in CREATURES]
    things = [word for word in words if word not in CREATURES and word not in PLACES]
    hero, helper = (*beings, *draw.sample([being for being in CREATURES if being not in beings], 2))[:2]
    thing, second = (*things, *draw.sample([thing for thing in THINGS if thing not in things], 2))[:2]
    slots = {
        "hero": hero,
        "helper": helper,
        "thing": thing,
        "second": second,
        "a_thing": article(draw, thing),
        "a_second": article(draw, second),
        "place": places[0] if places else draw.choice(PLACES),
        "name": draw.choice(NAMES),
        "adjective": draw.choice(ADJECTIVES),
    }
    text = " ".join(draw.choice(beat) for beat in BEATS).format(**slots)
    for vowel in "aeio":
        text = text.replace(f" a {vowel}", f" an {vowel}")
    return text


def article(draw: Random, thing: str) -> str:
    quality = draw.choice(("", "", "little ", "blue ", "red ", "green ", "shiny ", "heavy ", "broken "))
    return f"a {quality}{thing}"


def listed(draw: Random, words: tuple[str, ...]) -> str:
    if draw.random() < 0.3 or len(words) == 1:
        return ", ".join(words)
    marked = [f"a{'n' if word[0] in 'aeio' else ''} {word}" for word in words] if draw.random() < 0.6 else list(words)
    return f"{', '.join(marked[:-1])} and {marked[-1]}"
