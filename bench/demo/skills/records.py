"""Filling a small JSON record from a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from demo.phrases import plain
from demo.skills.exchange import Exchange, exchange
from demo.words import CITIES, COLOURS, CREATURES, FOODS, HOBBIES, JOBS, THINGS, made_up, made_up_name, person, sought

Value = str | int | bool | None
Record = dict[str, Value]

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PROMPTS = (
    "Fill a JSON record with {fields} from this sentence: {text}", "Extract {fields} as JSON: {text}", "{text} Make a JSON record with {fields}.",
    "Give me JSON with the fields {fields} for: {text}", "Turn this into JSON with {fields}: {text}", "Read this: {text} Now write a JSON object with {fields}.",
    "JSON with {fields}: {text}", "From the sentence below fill in {fields} as JSON.\n{text}", "{text}\nWrite the JSON record: {fields}.",
    "Return a JSON object with the keys {fields}.\nText: {text}",
)  # fmt: skip


def city(draw: Random) -> str:
    return draw.choice(CITIES) if draw.random() < 0.8 else made_up_name(draw)


def item(draw: Random) -> str:
    return draw.choice(THINGS) if draw.random() < 0.8 else made_up(draw)


def clock(draw: Random) -> str:
    return f"{draw.randint(0, 23):02}:{draw.choice((0, 5, 10, 15, 20, 30, 40, 45, 50)):02}"


FIELDS: dict[str, Callable[[Random], Value]] = {
    "name": person,
    "age": lambda draw: draw.randint(1, 99),
    "city": city,
    "job": lambda draw: draw.choice(JOBS),
    "hobby": lambda draw: draw.choice(HOBBIES),
    "item": item,
    "quantity": lambda draw: draw.randint(2, 500),
    "price": lambda draw: draw.randint(1, 999),
    "colour": lambda draw: draw.choice(COLOURS),
    "day": lambda draw: draw.choice(DAYS),
    "time": clock,
    "animal": lambda draw: draw.choice(CREATURES),
    "weight": lambda draw: draw.randint(1, 300),
    "food": lambda draw: draw.choice(FOODS),
    "temperature": lambda draw: draw.randint(-20, 40),
    "guests": lambda draw: draw.randint(2, 60),
    "paid": lambda draw: draw.random() < 0.5,
}

SENTENCES = (
    "{name} is {age} years old and lives in {city}.", "{name}, {age}, works as a {job} in {city}.", "The {job} {name} lives in {city} and is {age}.",
    "{name} from {city} likes {hobby} and is {age} years old.", "In {city} there is a {job} called {name}, who loves {hobby}.",
    "{name} ordered {quantity} {colour} {item}s for {price} euros.", "{name} bought a {colour} {item} in {city} for {price} dollars.",
    "We sold {quantity} {item}s to {name} on {day}.", "{quantity} {item}s at {price} euros each go to {name} in {city}.",
    "{name} meets {guests} guests in {city} on {day} at {time}.", "The party of {name} is on {day} at {time} with {guests} guests.",
    "{name} has a {colour} {animal} that weighs {weight} kilos.", "The {animal} called {name} is {age} years old and {colour}.",
    "On {day} it was {temperature} degrees in {city}.", "At {time} on {day} the temperature in {city} was {temperature}.",
    "{name} eats {food} every {day} at {time}.", "{name} reserved a table for {guests} people on {day} at {time}.",
    "My name is {name}, I am {age} and I work as a {job}.", "Please send {quantity} {item}s to {city} by {day}.",
    "A {colour} {item} costs {price} euros in {city}.",
)  # fmt: skip
PAID_SENTENCES = (
    "{name} ordered {quantity} {item}s and {paid}.",
    "{name} bought a {item} for {price} euros and {paid}.",
)


def records(draw: Random, wanted: bool | None) -> Exchange:
    paid = draw.random() < 0.12
    sentence = draw.choice(PAID_SENTENCES if paid else SENTENCES)
    present = [field for field in FIELDS if "{" + field + "}" in sentence]
    record = sought(
        wanted, lambda: {field: FIELDS[field](draw) for field in present}, lambda made: sorted(map(str, made.values()))
    )
    spoken = {field: say(field, value) for field, value in record.items()}
    fields = draw.sample(present, draw.randint(min(2, len(present)), len(present)))
    if draw.random() < 0.15:
        fields.insert(
            draw.randint(0, len(fields)),
            draw.choice([field for field in FIELDS if field not in present and field != "paid"]),
        )
    answer = json.dumps({field: record.get(field) for field in fields}, ensure_ascii=False)
    question = plain(draw, PROMPTS, fields=listed(draw, fields), text=sentence.format(**spoken))
    return exchange(question, answer, f"The fields are {', '.join(fields)}.")


def say(field: str, value: Value) -> str:
    return ("has paid" if value else "has not paid") if field == "paid" else str(value)


def listed(draw: Random, fields: list[str]) -> str:
    match draw.randrange(4):
        case 0:
            return ", ".join(fields)
        case 1:
            return "{" + ", ".join(f'"{field}": ...' for field in fields) + "}"
        case 2:
            return "[" + ", ".join(f'"{field}"' for field in fields) + "]"
        case _:
            return fields[0] if len(fields) == 1 else f"{', '.join(fields[:-1])} and {fields[-1]}"
