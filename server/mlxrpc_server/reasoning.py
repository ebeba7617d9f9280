"""How a model marks its reasoning, and whether a prompt has begun it.

It knows what mlx-lm's tokenizer wrapper says of the markers, and token ids; not what is generated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from mlxrpc_server.sections import Markers, Thought
from mlxrpc_server.types import Conversation, Message
from mlxrpc_server.vocabulary import Vocabulary

LONGEST_TAIL = 8192
"""Tokens at a prompt's end in which an opened section is looked for."""


def markers(wrapper: Any) -> Markers | None:
    """Those of the tokenizer that mlx-lm has wrapped."""
    return Markers(wrapper.think_start, wrapper.think_end) if wrapper.has_thinking else None


EXAMPLE = Conversation((Message("user", "Why?"), Message("assistant", "So.", reasoning="Hm.")))
"""Asks a template how it writes a thought and what follows it."""


def breaks(end: str, example: str) -> tuple[str, str]:
    """The line breaks before and behind the closing marker in the example; none where a template leaves thoughts out."""
    found = re.search(rf"(\n*){re.escape(end)}(\n*)So\.", example)
    return (found[1], found[2]) if found and end else ("", "")


def thought_of(prompt: Sequence[int], vocabulary: Vocabulary, marks: Markers, *, continues: bool) -> Thought:
    """Looks at what follows the last message's beginning: a marker that somebody quotes before it counts for nothing."""
    tail = _tail(prompt, vocabulary, marks)
    started, ended = tail.rfind(marks.start), tail.rfind(marks.end)
    if started > ended:
        return Thought.OPEN
    return Thought.OVER if ended >= 0 or continues else Thought.MAY_COME


def marks_in(marks: Markers, vocabulary: Vocabulary) -> dict[int, str]:
    """The special tokens that the markers are written with."""
    return {
        token: mark for token, mark in vocabulary.marks.items() if mark and (mark in marks.start or mark in marks.end)
    }


def _tail(prompt: Sequence[int], vocabulary: Vocabulary, marks: Markers) -> str:
    """The text behind the last special token that is no marker's."""
    own = marks_in(marks, vocabulary)
    last = reversed(prompt[-LONGEST_TAIL:])
    tail = list(takewhile(lambda token: token not in vocabulary.marks or token in own, last))
    spelled = [vocabulary.marks.get(token, "").encode() or vocabulary.piece(token) for token in reversed(tail)]
    return b"".join(spelled).decode(errors="replace")
