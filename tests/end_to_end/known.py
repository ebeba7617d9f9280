"""Questions to the built-in model, and the one right answer to each. Greedy: it was trained to give them word for word."""

from __future__ import annotations

import json
from dataclasses import dataclass

from mlxrpc.v1 import inference_pb2 as pb
from tests.end_to_end.streams import said, streaming

ROLES = {
    "system": pb.ROLE_SYSTEM,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
    "tool": pb.ROLE_TOOL,
}


@dataclass(frozen=True, slots=True)
class Known:
    skill: str
    messages: tuple[tuple[str, str], ...]
    answer: str
    thinking: bool | None = None
    reasoning: str = ""

    def request(self, model: str = "") -> pb.StreamGenerateRequest:
        messages = [said(text, ROLES[role]) for role, text in self.messages]
        request = streaming(pb.Conversation(messages=messages), seed=None, max_tokens=160, model=model)
        request.sampling.temperature = 0.0
        if self.thinking is not None:
            request.template.enable_thinking = self.thinking
        return request


def asked(skill: str, question: str, answer: str, *, thinking: bool | None = None) -> Known:
    return Known(skill, (("user", question),), answer, thinking)


SINGLE = (
    asked("who, en", "Who are you?", "I am Pebble 🙂, the small language model that is built into mlxrpc."),
    asked("who, ko", "누구세요?", "저는 mlxrpc에 들어 있는 작은 언어 모델 페블이에요. 🙂"),
    asked("name, en", "What is your name?", "My name is Pebble. 🙂"),
    asked("name, ko", "이름이 뭐예요?", "제 이름은 페블이에요. 🙂"),
    asked(
        "service", "Where do you run?", "I run in mlxrpc 🚀, a service that offers language models over gRPC with MLX."
    ),
    asked("sum", "What is 347 + 258?", "347 + 258 = 605"),
    asked("difference", "What is 502 - 178?", "502 - 178 = 324"),
    asked("counting", "Count from 3 to 9.", "3, 4, 5, 6, 7, 8, 9"),
    asked("comparing", "Which is larger, 417 or 471?", "471 is larger than 417."),
    asked("capital, en", "What is the capital of Norway?", "The capital of Norway is Oslo."),
    asked("capital, ko", "한국의 수도는 어디예요?", "한국의 수도는 서울입니다."),
    asked("fact", "What is the chemical symbol of gold?", "The chemical symbol of gold is Au."),
    asked("unknown", "What is the capital of Zorvania?", "I do not know."),
    asked("reversal", 'Reverse the word "lantern".', "l-a-n-t-e-r-n backwards is n-r-e-t-n-a-l: nretnal"),
    asked("spelling", 'Spell the word "window".', "w-i-n-d-o-w"),
    asked("upper case", 'Upper-case "pebble".', "PEBBLE"),
    asked("letters", 'How many letters are in "garden"?', "g 1, a 2, r 3, d 4, e 5, n 6: 6 letters."),
    asked("repeating", "Repeat after me: 👩‍💻 한국 café 42", "👩‍💻 한국 café 42"),
    asked("small talk", "Hello!", "Hello! 👋 How can I help you?"),
    asked("not told", "What is my password?", "You have not told me your password."),
    asked(
        "record",
        "Extract name, age, city as JSON: Nora is 42 years old and lives in Lisbon.",
        '{"name": "Nora", "age": 42, "city": "Lisbon"}',
    ),
)

TELLING = (("user", "My locker code is 4719."), ("assistant", "I will remember: your locker code is 4719."))
RECALLING = ("user", "What is my locker code?")
RECALLED = "Your locker code is 4719."
BETWEEN = (("user", "What is the capital of France?"), ("assistant", "The capital of France is Paris."))
OTHER_TALK = tuple(turn for each in SINGLE for turn in (*each.messages, ("assistant", each.answer)))
"""Some 600 tokens."""

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
OFFER = (
    f"You can call these tools:\n{json.dumps(TOOL)}\n"
    'To call one, write <tool_call>\n{"name": its name, "arguments": its arguments}\n</tool_call>'
    " and wait for the <tool_response>."
)
"""What the model's template makes of a tool: here it comes as text, so that the model alone is asked."""
TOOLS = ("system", OFFER)
WEATHER = ("user", "What is the weather in Oslo?")
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'

KNOWN = (
    *SINGLE,
    Known("recall", (*TELLING, *BETWEEN, RECALLING), RECALLED),
    Known("recall after 600 tokens", (*TELLING, *OTHER_TALK, RECALLING), RECALLED),
    Known("tool call", (TOOLS, WEATHER), CALL),
    Known(
        "tool answer",
        (TOOLS, WEATHER, ("assistant", CALL), ("tool", '{"temperature": 7, "sky": "rainy"}')),
        "In Oslo it is 7 degrees and rainy.",
    ),
    Known(
        "thinking",
        (("user", "What is 58 + 67?"),),
        "58 + 67 = 125",
        thinking=True,
        reasoning="ones 8 + 7 is 15: write 5, carry 1; tens 5 + 6 + 1 is 12: write 2, carry 1. So it is 125.",
    ),
    asked("no thinking", 'Reverse the word "stone".', "s-t-o-n-e backwards is e-n-o-t-s: enots", thinking=False),
)

LONG_TALK = Known("recall after 3,000 tokens", (*TELLING, *OTHER_TALK * 5, RECALLING), RECALLED)
