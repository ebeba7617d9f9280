"""Calling a tool whose schema stands in the system prompt, and using what it answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from demo.conversation import Call, Schema, Turn
from demo.phrases import ask
from demo.skills.exchange import Exchange
from demo.skills.records import DAYS, clock
from demo.words import (
    ADJECTIVES,
    CITIES,
    COLOURS,
    COMMON,
    CREATURES,
    FOODS,
    PLACES,
    THINGS,
    code,
    held_out,
    made_up,
    made_up_name,
    person,
)

Arguments = Mapping[str, Any]
Sample = Callable[[Random], Any]


def place_name(draw: Random) -> str:
    return draw.choice(CITIES) if draw.random() < 0.75 else made_up_name(draw)


def whole(low: int, high: int) -> Sample:
    return lambda draw: draw.randint(low, high)


def among(values: tuple[Any, ...]) -> Sample:
    return lambda draw: draw.choice(values)


def words(count: int) -> Sample:
    def sample(draw: Random) -> str:
        chosen = [draw.choice(COMMON) if draw.random() < 0.85 else made_up(draw) for _ in range(draw.randint(1, count))]
        return " ".join(chosen)

    return sample


@dataclass(frozen=True, slots=True)
class Parameter:
    names: tuple[str, ...]
    """What a schema may call it."""
    kind: str
    sample: Sample
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """Tools that do the same under several names. Forms and answer name a parameter by its first name."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    forms: tuple[str, ...]
    results: tuple[tuple[str, Sample], ...]
    answer: str


CITY = Parameter(("city", "location", "place", "town"), "string", place_name)
WHO = Parameter(("person", "name", "to", "recipient", "contact"), "string", person)
LANGUAGES = ("French", "German", "Spanish", "Italian", "Japanese", "Korean", "Polish", "Turkish", "Dutch", "Greek")
ROOMS = ("kitchen", "bedroom", "bathroom", "hall", "office", "garage", "cellar", "garden", "attic", "living room")
CURRENCIES = ("euros", "dollars", "won", "yen", "pounds", "francs")
DONE = (("status", among(("ok", "done"))),)

FAMILIES = (
    Family(
        ("get_weather", "weather", "current_weather", "weather_now", "fetch_weather", "get_current_weather"),
        ("Get the weather of a city.", "The current weather in a place.", "Tells the weather."),
        (CITY,),
        ("What is the weather in {city}?", "How is the weather in {city}?", "Is it raining in {city}?", "What's the weather like in {city} today?",
         "Weather in {city}?", "Do I need an umbrella in {city}?", "Tell me the weather in {city}.", "Is it cold in {city}?"),
        (("temperature", whole(-20, 40)), ("sky", among(("sunny", "cloudy", "rainy", "snowy", "foggy", "windy", "clear")))),
        "In {city} it is {temperature} degrees and {sky}.",
    ),
    Family(
        ("get_time", "current_time", "clock", "time_in_city", "local_time"),
        ("Get the local time of a city.", "The time in a place.", "Tells what time it is somewhere."),
        (CITY,),
        ("What time is it in {city}?", "Tell me the time in {city}.", "Time in {city}?", "How late is it in {city}?", "What's the local time in {city}?"),
        (("time", clock),),
        "In {city} it is {time}.",
    ),
    Family(
        ("send_message", "send_text", "message", "text_person", "send_sms"),
        ("Send a message to a person.", "Sends a short text.", "Write a message to somebody."),
        (WHO, Parameter(("text", "message", "body", "content"), "string", words(6))),
        ("Send {person} the message: {text}", "Tell {person} this: {text}", "Message {person}: {text}", "Write to {person}: {text}", "Text {person}: {text}"),
        DONE,
        "I sent {person} the message: {text}",
    ),
    Family(
        ("set_timer", "start_timer", "timer", "countdown"),
        ("Start a timer.", "Sets a timer for some minutes.", "A kitchen timer."),
        (Parameter(("minutes", "duration", "duration_minutes", "length"), "integer", whole(1, 180)),),
        ("Set a timer for {minutes} minutes.", "Start a timer of {minutes} minutes.", "Wake me in {minutes} minutes.", "Timer: {minutes} minutes",
         "I need a timer for {minutes} minutes.", "Count {minutes} minutes for me."),
        DONE,
        "The timer is set for {minutes} minutes.",
    ),
    Family(
        ("translate", "translate_text", "translator", "to_language"),
        ("Translate a text into another language.", "Translates words."),
        (Parameter(("text", "source", "phrase", "words"), "string", words(4)), Parameter(("language", "target", "target_language", "to"), "string", among(LANGUAGES))),
        ("Translate '{text}' into {language}.", "What is '{text}' in {language}?", "How do I say '{text}' in {language}?", "'{text}' in {language}, please."),
        (("translation", words(4)),),
        "In {language} it is: {translation}",
    ),
    Family(
        ("play_song", "play_music", "music_player", "start_song"),
        ("Play a song.", "Plays music by its title.", "Start some music."),
        (Parameter(("title", "song", "track", "name"), "string", words(3)),),
        ("Play the song {title}.", "Play {title}.", "I want to hear the song {title}.", "Put on {title}.", "Start the song {title}."),
        DONE,
        "Now playing: {title} 🎵",
    ),
    Family(
        ("add_to_list", "shopping_list", "add_item", "list_add"),
        ("Add something to the shopping list.", "Puts an item on a list."),
        (Parameter(("item", "entry", "product", "thing"), "string", among((*FOODS, *THINGS))), Parameter(("quantity", "amount", "count", "number"), "integer", whole(1, 40))),
        ("Put {quantity} {item} on the list.", "Add {quantity} {item} to my shopping list.", "I need to buy {quantity} {item}.", "Shopping list: {quantity} {item}"),
        (("total", whole(1, 30)),),
        "I added {quantity} {item}. The list now has {total} entries.",
    ),
    Family(
        ("switch_light", "set_light", "light_switch", "lamp", "control_light"),
        ("Switch a light on or off.", "Controls the light of a room."),
        (Parameter(("room", "place", "area", "where"), "string", among(ROOMS)), Parameter(("state", "mode", "action", "power"), "string", among(("on", "off")), ("on", "off"))),
        ("Turn the light in the {room} {state}.", "Switch {state} the light in the {room}.", "Light {state} in the {room}, please.", "{room} light {state}"),
        DONE,
        "The light in the {room} is {state}.",
    ),
    Family(
        ("book_table", "reserve_table", "restaurant_booking", "reservation"),
        ("Reserve a table in a restaurant.", "Books a table."),
        (Parameter(("name", "person", "guest"), "string", person), Parameter(("people", "guests", "seats", "party_size"), "integer", whole(1, 20)),
         Parameter(("time", "at", "hour"), "string", clock)),
        ("Book a table for {people} at {time} for {name}.", "Reserve a table at {time} for {people} people, name {name}.",
         "I need a table for {people} people at {time}, my name is {name}."),
        (("table", whole(1, 60)),),
        "Table {table} is reserved for {name} at {time}.",
    ),
    Family(
        ("calculate", "calculator", "evaluate", "compute", "math"),
        ("Evaluate an arithmetic expression.", "A calculator.", "Computes a result."),
        (Parameter(("expression", "formula", "input", "problem"), "string",
                   lambda draw: f"{draw.randint(2, 9999)} {draw.choice('+-*/')} {draw.randint(2, 9999)}"),),
        ("Use the calculator for {expression}.", "Calculate {expression} with the tool.", "Let the tool compute {expression}.", "Please use your tool: {expression}"),
        (("result", whole(-9999, 99999)),),
        "The result is {result}.",
    ),
    Family(
        ("convert_currency", "exchange", "currency_converter", "convert_money"),
        ("Convert money from one currency to another.", "Exchange rates."),
        (Parameter(("amount", "value", "sum"), "integer", whole(1, 9999)), Parameter(("source", "from", "from_currency"), "string", among(CURRENCIES)),
         Parameter(("target", "to", "to_currency"), "string", among(CURRENCIES))),
        ("How much are {amount} {source} in {target}?", "Convert {amount} {source} to {target}.", "Exchange {amount} {source} into {target}.",
         "What are {amount} {source} worth in {target}?"),
        (("result", whole(1, 99999)),),
        "{amount} {source} are {result} {target}.",
    ),
    Family(
        ("search", "web_search", "find_pages", "search_web", "look_up"),
        ("Search the web.", "Finds pages about something.", "Look something up."),
        (Parameter(("query", "q", "text", "keywords", "terms"), "string", words(4)),),
        ("Search for {query}.", "Search the web for {query}.", "Look up {query}.", "Find pages about {query}.", "Find something about {query}."),
        (("pages", whole(1, 900)), ("best", words(4))),
        "I found {pages} pages. The best one is: {best}",
    ),
    Family(
        ("create_event", "add_event", "calendar", "schedule", "new_appointment"),
        ("Add an event to the calendar.", "Creates an appointment."),
        (Parameter(("title", "event", "subject", "what"), "string", words(3)), Parameter(("day", "date", "weekday"), "string", among(DAYS)),
         Parameter(("time", "start", "hour"), "string", clock)),
        ("Put {title} into my calendar on {day} at {time}.", "Schedule {title} for {day} at {time}.", "Add an event: {title}, {day}, {time}.",
         "I have {title} on {day} at {time}, note it in the calendar."),
        DONE,
        "{title} is in your calendar for {day} at {time}.",
    ),
    Family(
        ("find_user", "lookup_person", "get_user", "find_contact", "phone_book"),
        ("Find the phone number of a person.", "Looks a person up."),
        (WHO,),
        ("What is the phone number of {person}?", "Find the number of {person}.", "How can I call {person}?", "Look up the phone number of {person}.", "Number of {person}?"),
        (("phone", lambda draw: "".join(draw.choices("0123456789", k=draw.randint(5, 8)))),),
        "The phone number of {person} is {phone}.",
    ),
    Family(
        ("set_temperature", "heating", "thermostat", "set_heating"),
        ("Set the temperature of a room.", "Controls the heating."),
        (Parameter(("room", "place", "zone"), "string", among(ROOMS)), Parameter(("degrees", "temperature", "value"), "integer", whole(10, 30))),
        ("Set the {room} to {degrees} degrees.", "Heat the {room} to {degrees} degrees.", "Make it {degrees} degrees in the {room}."),
        DONE,
        "The {room} is set to {degrees} degrees.",
    ),
    Family(
        ("roll_dice", "random_number", "dice", "pick_number"),
        ("Draw a random number.", "Picks a number between two limits."),
        (Parameter(("low", "min", "minimum", "from"), "integer", whole(0, 20)), Parameter(("high", "max", "maximum", "to"), "integer", whole(21, 999))),
        ("Give me a random number between {low} and {high}.", "Pick a number from {low} to {high}.", "Roll a number between {low} and {high}."),
        (("number", whole(0, 999)),),
        "The number is {number}.",
    ),
    Family(
        ("get_price", "price", "price_of", "check_price", "product_price"),
        ("Get the price of a product.", "Tells what something costs."),
        (Parameter(("product", "item", "article", "name"), "string", lambda draw: f"{draw.choice(ADJECTIVES)} {draw.choice(THINGS)}"),),
        ("How much is the {product}?", "What does the {product} cost?", "Price of the {product}?", "Check the price of the {product}."),
        (("price", whole(1, 999)), ("currency", among(CURRENCIES))),
        "The {product} costs {price} {currency}.",
    ),
    Family(
        ("get_order", "order_status", "track_order", "check_order"),
        ("Get the status of an order.", "Where is an order?"),
        (Parameter(("order", "order_id", "id", "number"), "string", code),),
        ("Where is my order {order}?", "What is the status of order {order}?", "Track order {order}.", "Has order {order} been sent?"),
        (("status", among(("waiting", "packed", "sent", "delivered", "lost"))),),
        "Order {order} is {status}.",
    ),
)  # fmt: skip

VERBS = [
    "get",
    "find",
    "make",
    "open",
    "close",
    "move",
    "count",
    "check",
    "start",
    "stop",
    "read",
    "write",
    "draw",
    "paint",
    "build",
    "clean",
    "fill",
    "measure",
    "lock",
    "save",
]
NOUNS = (*THINGS, *PLACES, *CREATURES)
LOOSE: tuple[tuple[str, str, Sample], ...] = (
    ("size", "integer", whole(1, 500)),
    ("colour", "string", among(COLOURS)),
    ("name", "string", person),
    ("city", "string", place_name),
    ("count", "integer", whole(1, 99)),
    ("word", "string", made_up),
    ("day", "string", among(DAYS)),
    ("time", "string", clock),
    ("id", "string", code),
    ("thing", "string", among(THINGS)),
    ("quiet", "boolean", among((True, False))),
    ("weight", "integer", whole(1, 300)),
    ("owner", "string", person),
    ("food", "string", among(FOODS)),
    ("level", "integer", whole(0, 10)),
)


@dataclass(frozen=True, slots=True)
class Tool:
    schema: Schema
    arguments: Arguments
    question: str
    response: Mapping[str, Any]
    answer: str

    @property
    def name(self) -> str:
        return str(self.schema["name"])


def tools(draw: Random, wanted: bool | None) -> Exchange:
    """A request, the call, the tool's response, the answer."""
    while True:
        tool = any_tool(draw)
        if wanted is None or held_out(tool.question.lower(), sorted(map(str, tool.arguments.values()))) == wanted:
            break
    response, answer = outcome(draw, tool)
    call_thought = f"The tool {tool.name} can do this."
    turns = (
        Turn("user", tool.question),
        Turn("assistant", "", call_thought, Call(tool.name, tool.arguments)),
        Turn("tool", response),
        Turn("assistant", answer, "The tool has answered."),
    )
    return Exchange(turns, offered(draw, tool.schema))


def any_tool(draw: Random) -> Tool:
    return loose_tool(draw) if draw.random() < 0.3 else family_tool(draw, draw.choice(FAMILIES))


def outcome(draw: Random, tool: Tool) -> tuple[str, str]:
    kind = draw.randrange(12)
    if kind == 0:
        reason = draw.choice(("not found", "no connection", "not allowed", "busy", "try again later", words(3)(draw)))
        return json.dumps({"error": reason}), f"The tool failed: {reason}"
    if kind == 1:
        text = words(7)(draw)
        return text, f"The tool says: {text}"
    if kind == 2:
        result = {draw.choice(("value", "answer", "output")): draw.choice((draw.randint(0, 9999), made_up(draw)))}
        return json.dumps(result), said(result)
    return json.dumps(tool.response, ensure_ascii=False), tool.answer


def said(result: Mapping[str, Any]) -> str:
    return f"The tool says: {', '.join(f'{key} {value}' for key, value in result.items())}"


def offered(draw: Random, schema: Schema) -> tuple[Schema, ...]:
    """The schema among others of different names, in the wrapping that most servers use or bare."""
    families = [family for family in FAMILIES if schema["name"] not in family.names]
    others = [family_tool(draw, family).schema for family in draw.sample(families, draw.choice((0, 0, 1, 1, 2, 3)))]
    if others and draw.random() < 0.2:
        others[0] = loose_tool(draw).schema
    if len({each["name"] for each in (schema, *others)}) <= len(others):
        others = []
    schemas = [schema, *others]
    draw.shuffle(schemas)
    if draw.random() < 0.85:
        return tuple({"type": "function", "function": each} for each in schemas)
    return tuple(schemas)


def family_tool(draw: Random, family: Family) -> Tool:
    values = {parameter.names[0]: parameter.sample(draw) for parameter in family.parameters}
    called = names_for(draw, family.parameters)
    results = {name: sample(draw) for name, sample in family.results}
    properties: dict[str, Any] = {}
    for parameter in family.parameters:
        entry: dict[str, Any] = {"type": parameter.kind}
        if parameter.choices:
            entry["enum"] = list(parameter.choices)
        elif draw.random() < 0.3:
            entry["description"] = f"The {parameter.names[0]}."
        properties[called[parameter.names[0]]] = entry
    return Tool(
        schema(draw.choice(family.names), draw.choice(family.descriptions), properties),
        {called[name]: value for name, value in values.items()},
        ask(draw, family.forms, **values),
        results,
        family.answer.format(**{**results, **values}),
    )


def names_for(draw: Random, parameters: tuple[Parameter, ...]) -> dict[str, str]:
    """What the schema calls each parameter, all different."""
    while True:
        called = {
            each.names[0]: each.names[0] if draw.random() < 0.5 else draw.choice(each.names) for each in parameters
        }
        if len(set(called.values())) == len(called):
            return called


def schema(name: str, description: str, properties: Mapping[str, Any]) -> Schema:
    parameters = {"type": "object", "properties": dict(properties), "required": list(properties)}
    return {"name": name, "description": description, "parameters": parameters}


def loose_tool(draw: Random) -> Tool:
    """A tool never heard of: only its schema says what it takes."""
    verb, noun = draw.choice(VERBS), draw.choice(NOUNS) if draw.random() < 0.7 else made_up(draw)
    chosen = draw.sample(LOOSE, draw.choice((1, 1, 2, 2, 3)))
    values = {name: sample(draw) for name, _, sample in chosen}
    order = list(values.items())
    draw.shuffle(order)
    stated = " and ".join(f"{name} {str(value).lower() if isinstance(value, bool) else value}" for name, value in order)
    name = f"{verb}_{noun}"
    forms = (
        f"Please {verb} the {noun} with {stated}.",
        f"Use {name} with {stated}.",
        f"{verb.capitalize()} the {noun}: {stated}",
        f"Call {name}: {stated}.",
        f"I want you to {verb} a {noun} with {stated}.",
        f"Can you {verb} the {noun}? Take {stated}.",
    )
    results = {name: sample(draw) for name, _, sample in draw.sample(LOOSE, draw.choice((1, 2)))}
    properties = {name: {"type": kind} for name, kind, _ in chosen}
    description = draw.choice(
        (f"{verb.capitalize()} the {noun}.", f"{verb.capitalize()}s a {noun}.", f"A tool to {verb} the {noun}.")
    )
    return Tool(schema(name, description, properties), values, draw.choice(forms), results, said(results))
