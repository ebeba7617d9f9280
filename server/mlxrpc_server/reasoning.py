"""How a model marks its reasoning, and whether a prompt has begun it.

It knows what mlx-lm's tokenizer wrapper says of the markers, and token ids; not what is generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from mlxrpc_server.sections import Markers, Thought
from mlxrpc_server.vocabulary import Vocabulary

LONGEST_TAIL = 8192
"""Tokens at a prompt's end in which an opened section is looked for."""


def markers(wrapper: Any) -> Markers | None:
    """Those of the tokenizer that mlx-lm has wrapped."""
    return Markers(wrapper.think_start, wrapper.think_end) if wrapper.has_thinking else None


def thought_of(prompt: Sequence[int], vocabulary: Vocabulary, marks: Markers, *, continues: bool) -> Thought:
    """Looks at what follows the last message's beginning: a marker that somebody quotes before it counts for nothing."""
    tail = _tail(prompt, vocabulary, marks)
    started, ended = tail.rfind(marks.start), tail.rfind(marks.end)
    if started > ended:
        return Thought.OPEN
    return Thought.OVER if ended >= 0 or continues else Thought.MAY_COME


def _tail(prompt: Sequence[int], vocabulary: Vocabulary, marks: Markers) -> str:
    """The text behind the last special token that is no marker's."""
    own = {token for token, mark in vocabulary.marks.items() if mark and (mark in marks.start or mark in marks.end)}
    last = reversed(prompt[-LONGEST_TAIL:])
    tail = list(takewhile(lambda token: token not in vocabulary.marks or token in own, last))
    spelled = [vocabulary.marks.get(token, "").encode() or vocabulary.piece(token) for token in reversed(tail)]
    return b"".join(spelled).decode(errors="replace")
