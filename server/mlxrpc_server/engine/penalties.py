"""What changes the logits before a draw: biases, and penalties on tokens that a row already has.

The tokens looked at live on the device, so that a row's next draw may be built before its last one was read. Only
rows that ask for something cost anything. Knows token ids; neither the filters nor the noise behind it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

import mlx.core as mx

from mlxrpc_server.engine.some import column
from mlxrpc_server.types import Sampling

ENDLESS = 2**31 - 1
"""A window as long as any row."""

_LEAST_PENALTY = 1e-30
"""Dividing by less would leave float32's range."""


class History:
    """A row's tokens so far. `produced` may grow from outside; what is new is counted when somebody asks.

    Kept in arrays, which a batch stacks without looking at each token again.
    """

    def __init__(self, prompt: Sequence[int], produced: Sequence[int] = ()) -> None:
        self.prompt = prompt
        self.produced = produced
        self._seen = 0
        self._places: dict[int, int] = {}
        self._ids, self._numbers = array("i"), array("i")

    def counts(self) -> tuple[array[int], array[int]]:
        """The completion's different tokens, and how often it has each."""
        for token in islice(self.produced, self._seen, None):
            place = self._places.setdefault(token, len(self._ids))
            if place == len(self._ids):
                self._ids.append(token)
                self._numbers.append(0)
            self._numbers[place] += 1
        self._seen = len(self.produced)
        return self._ids, self._numbers

    def last(self, size: int) -> array[int]:
        """The last tokens of prompt and completion; where the size is endless, each of all of them, in no order."""
        if size == ENDLESS:
            return self._prompt_ids + self.counts()[0]
        produced = self.produced[-size:]
        missing = size - len(produced)
        return array("i", [*self.prompt[-missing:], *produced] if missing else produced)

    @cached_property
    def _prompt_ids(self) -> array[int]:
        return array("i", set(self.prompt))


@dataclass(frozen=True, slots=True)
class Place:
    """A row that asks for something: its place among all rows, what it asks for, and its tokens."""

    row: int
    sampling: Sampling
    history: History


class Change(Protocol):
    """One thing that some rows ask for."""

    def apply(self, logits: mx.array) -> mx.array: ...

    def push(self, tokens: mx.array) -> None:
        """One more token for each row of the batch, in no history yet; -1 for none."""


class Penalties:
    """The rows' changes, in the order that the contract gives."""

    def __init__(self, rows: Sequence[Sampling], histories: Sequence[History], unread: mx.array | None) -> None:
        known = histories or [History(())] * len(rows)
        pairs = enumerate(zip(rows, known, strict=True))
        places = [Place(row, sampling, history) for row, (sampling, history) in pairs if _asks(sampling)]
        repeated = [place for place in places if place.sampling.repetition_penalty != 1]
        counted = [place for place in places if _counts(place.sampling)]
        biased = [place for place in places if place.sampling.logit_bias]
        self._changes: list[Change] = []
        if biased:
            self._changes.append(_Bias(biased))
        if repeated:
            self._changes.append(_Repetition(repeated))
        if counted:
            self._changes.append(_Counts(counted))
        if unread is not None:
            self.push(unread)

    def __bool__(self) -> bool:
        return bool(self._changes)

    def apply(self, logits: mx.array) -> mx.array:
        for change in self._changes:
            logits = change.apply(logits)
        return logits

    def push(self, tokens: mx.array) -> None:
        for change in self._changes:
            change.push(tokens)


def _asks(sampling: Sampling) -> bool:
    return sampling.repetition_penalty != 1 or _counts(sampling) or bool(sampling.logit_bias)


def _counts(sampling: Sampling) -> bool:
    return sampling.presence_penalty != 0 or sampling.frequency_penalty != 0


class _Bias:
    def __init__(self, places: Sequence[Place]) -> None:
        self._rows = _rows(places)
        self._ids = _matrix([array("i", [token for token, _ in place.sampling.logit_bias]) for place in places])
        self._values = _matrix([array("f", [bias for _, bias in place.sampling.logit_bias]) for place in places])

    def apply(self, logits: mx.array) -> mx.array:
        return _subtracted(logits, self._rows, self._ids, -self._values)

    def push(self, tokens: mx.array) -> None:
        """What a row has produced does not matter here."""


class _Repetition:
    """The last tokens of each row, the newest at the right, in front of them any that are there already."""

    def __init__(self, places: Sequence[Place]) -> None:
        sizes = [_window(place.sampling) for place in places]
        windows = [place.history.last(size) for place, size in zip(places, sizes, strict=True)]
        width = max(map(len, windows))
        self._rows = _rows(places)
        self._ids = _matrix([window[-1:] * (width - len(window)) + window for window in windows])
        self._shortest, self._longest = min(sizes), max(sizes)
        self._sizes = mx.array(sizes, dtype=mx.int32)[:, None]
        self._penalty = column([max(place.sampling.repetition_penalty, _LEAST_PENALTY) for place in places])

    def apply(self, logits: mx.array) -> mx.array:
        flat = logits.reshape(-1)
        places = (self._rows * logits.shape[-1] + self._windows()).reshape(-1)
        given = flat[places].reshape(self._ids.shape)
        changed = mx.where(given < 0, given * self._penalty, given / self._penalty)
        # A token that is in a window twice is written twice, with the same value.
        return mx.put_along_axis(flat, places, changed.reshape(-1), axis=0).reshape(logits.shape)

    def _windows(self) -> mx.array:
        """The ids that each row looks at. What is too old is replaced by its newest, which it looks at anyway."""
        width = self._ids.shape[-1]
        if width <= self._shortest:
            return self._ids
        ages = mx.arange(width - 1, -1, -1, dtype=mx.int32)[None]
        return mx.where(ages < self._sizes, self._ids, self._ids[:, -1:])

    def push(self, tokens: mx.array) -> None:
        """A row without a new token keeps its own in their places, and its oldest twice."""
        new = tokens.astype(mx.int32)[self._rows]
        ids = self._ids
        longer = mx.where(new < 0, mx.concatenate([ids[:, :1], ids], axis=1), mx.concatenate([ids, new], axis=1))
        self._ids = longer[:, -self._longest :]


class _Counts:
    """How often each row's completion has each of its tokens: one entry a token, and entries that count nothing."""

    def __init__(self, places: Sequence[Place]) -> None:
        ids, numbers = zip(*(place.history.counts() for place in places), strict=True)
        self._rows = _rows(places)
        self._ids = _matrix(ids)
        self._numbers = _matrix(numbers).astype(mx.float32)
        self._presence = column([place.sampling.presence_penalty for place in places])
        self._frequency = column([place.sampling.frequency_penalty for place in places])

    def apply(self, logits: mx.array) -> mx.array:
        penalty = self._frequency * self._numbers + self._presence * (self._numbers > 0)
        return _subtracted(logits, self._rows, self._ids, penalty)

    def push(self, tokens: mx.array) -> None:
        new = tokens.astype(mx.int32)[self._rows]
        known = (self._ids == new) & (self._numbers > 0)
        entry = (new >= 0) & ~known.any(axis=1, keepdims=True)
        self._ids = mx.concatenate([self._ids, mx.maximum(new, 0)], axis=1)
        self._numbers = mx.concatenate([self._numbers + known, entry.astype(mx.float32)], axis=1)


def _subtracted(logits: mx.array, rows: mx.array, ids: mx.array, values: mx.array) -> mx.array:
    """Of the entries with one id in a row, at most one has a value: the order of the subtractions does not matter."""
    flat = logits.reshape(-1)
    places = (rows * logits.shape[-1] + ids).reshape(-1)
    return flat.at[places].subtract(values.reshape(-1)).reshape(logits.shape)


def _window(sampling: Sampling) -> int:
    return min(sampling.repetition_context_size or ENDLESS, ENDLESS)


def _rows(places: Sequence[Place]) -> mx.array:
    return mx.array([place.row for place in places], dtype=mx.int32)[:, None]


def _matrix(rows: Sequence[array[Any]]) -> mx.array:
    """Filled up with zeros at their right, all of one type."""
    width = max(map(len, rows))
    zero = array(rows[0].typecode, [0])
    cells: Any = array(zero.typecode, b"".join([(row + zero * (width - len(row))).tobytes() for row in rows]))
    # Without it an array of no integers would be one of floats.
    dtype = mx.float32 if zero.typecode == "f" else mx.int32
    return mx.array(cells, dtype=dtype).reshape(len(rows), width)
