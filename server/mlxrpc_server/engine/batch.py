"""The rows that are being generated, and the step that takes all of them one token further.

Rows join and leave between steps: a waiting row is prefilled in chunks beside the ones that decode, joins them
behind its last prompt token, and leaves at a stop token, at its limit, or when cancelled. All of them run in their
order of arrival; where memory grows short, the youngest goes back to the queue. Knows token ids and what the model,
the KV and the sampler do with them; no text, no sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import mlx.core as mx

from mlxrpc_server.engine.kv import KV
from mlxrpc_server.engine.sampling import Draws
from mlxrpc_server.engine.wire import Left
from mlxrpc_server.types import RowId, Sampling

Clock = Callable[[], float]


@dataclass(slots=True, eq=False)
class Row:
    """One request in the engine."""

    id: RowId
    prompt: Sequence[int]
    produced: list[int]
    sampling: Sampling
    max_tokens: int
    stop_ids: frozenset[int]
    cache: list[Any] = field(default_factory=list)
    """Its own during prefill; then the KV has it."""
    cached: int = 0
    """Tokens of the context that the cache holds during prefill."""
    arrival: int = 0
    """Its place among all rows that were submitted, for good."""

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.produced)

    @property
    def last_token(self) -> int:
        return self.produced[-1] if self.produced else self.prompt[-1]

    @property
    def to_prefill(self) -> int:
        """All but the last token, which the first decoding step feeds."""
        return self.length - 1 - self.cached

    def context(self, start: int, end: int) -> list[int]:
        """The tokens from `start` to `end` of prompt and produced together."""
        behind = len(self.prompt)
        produced = self.produced[max(0, start - behind) : max(0, end - behind)]
        return [*self.prompt[start:end], *produced]

    def ended(self) -> Left | None:
        if self.produced and self.produced[-1] in self.stop_ids:
            return Left.STOP_TOKEN
        if len(self.produced) >= self.max_tokens:
            return Left.LENGTH
        return None


@dataclass(slots=True)
class Outcome:
    """What one step did, for whoever tells the rows' owners."""

    step: int
    tokens: list[tuple[RowId, int]] = field(default_factory=list)
    left: list[tuple[RowId, Left]] = field(default_factory=list)
    prefilled: list[tuple[RowId, int]] = field(default_factory=list)
    preempted: list[RowId] = field(default_factory=list)
    """Rows that went back to the queue, for want of memory."""
    prefill_seconds: float = 0.0
    seconds: float = 0.0


class Pace:
    """How many prompt tokens a step may prefill, so that it takes about as long as it should by measure.

    Short while rows decode beside it, since they wait; longer while none does, but never so long that a cancel
    waits for seconds.
    """

    SECONDS_BESIDE_ROWS = 0.1
    SECONDS_ALONE = 0.5
    FEWEST = 16
    UNMEASURED = 64

    def __init__(self, most: int) -> None:
        self._most = most
        self._tokens_per_second: float | None = None

    def budget(self, *, beside_rows: bool) -> int:
        if self._tokens_per_second is None:
            return min(self.UNMEASURED, self._most)
        seconds = self.SECONDS_BESIDE_ROWS if beside_rows else self.SECONDS_ALONE
        return max(self.FEWEST, min(self._most, int(self._tokens_per_second * seconds)))

    def measured(self, tokens: int, seconds: float) -> None:
        if tokens < self.FEWEST or seconds <= 0:
            return
        rate = tokens / seconds
        known = self._tokens_per_second
        self._tokens_per_second = rate if known is None else 0.7 * known + 0.3 * rate


class Batch:
    def __init__(self, model: Any, kv: KV, *, max_rows: int, prefill_tokens: int, clock: Clock) -> None:
        self._model = model
        self._kv = kv
        self._max_rows = max_rows
        self._pace = Pace(prefill_tokens)
        self._clock = clock
        self._waiting: deque[Row] = deque()
        self._prefilling: list[Row] = []
        self._decoding: list[Row] = []
        self._draws: Draws | None = None
        self._left: list[tuple[RowId, Left]] = []
        self._arrivals = 0
        self.steps = 0

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._prefilling or self._decoding or self._left)

    @property
    def rows(self) -> int:
        """Those that run: in prefill, or decoding."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def waiting(self) -> int:
        """Rows that have not begun, or have to begin again."""
        return len(self._waiting)

    @property
    def nbytes(self) -> int:
        """What the decoding rows' keys and values take."""
        return self._kv.nbytes

    def submit(self, row: Row) -> None:
        row.arrival = self._arrivals = self._arrivals + 1
        if (ended := row.ended()) is not None:
            self._left.append((row.id, ended))
        else:
            self._waiting.append(row)

    def refuse(self, row: RowId) -> None:
        self._left.append((row, Left.REFUSED))

    def cancel(self, row: RowId) -> None:
        """Takes the row out, wherever it is; one that has left already is nobody's concern."""
        if self._forget(row):
            self._left.append((row, Left.CANCELLED))

    def step(self) -> Outcome:
        begun = self._clock()
        self.steps += 1
        outcome = Outcome(self.steps)
        outcome.left, self._left = self._left, []
        self._give_way(outcome)
        self._admit()
        self._prefill(outcome)
        self._decode(outcome)
        outcome.seconds = self._clock() - begun
        return outcome

    def _give_way(self, outcome: Outcome) -> None:
        """Before the rows outgrow their room, the youngest goes back: all that waits is younger, so it waits in front.

        The oldest never goes back: there is always one that comes to its end.
        """
        while not self._kv.fits([row.length for row in self._running]):
            youngest = max(self._running, key=lambda row: row.arrival)
            self._take_out(youngest)
            youngest.cache, youngest.cached = [], 0
            self._waiting.appendleft(youngest)
            outcome.preempted.append(youngest.id)

    def _admit(self) -> None:
        """In order, even where a later row would find room: else a long one would wait for ever."""
        while self._waiting and self.rows < self._max_rows and self._fits_beside(self._waiting[0]):
            row = self._waiting.popleft()
            row.cache = self._kv.open()
            self._prefilling.append(row)

    def _fits_beside(self, row: Row) -> bool:
        """With a token more for each: none is to come in and go at once."""
        return self._kv.fits([one.length + 1 for one in (*self._running, row)])

    @property
    def _running(self) -> list[Row]:
        return self._decoding + self._prefilling

    def _prefill(self, outcome: Outcome) -> None:
        """Feeds prompts in their order of arrival, as many tokens as the step's budget allows."""
        begun = self._clock()
        left = self._pace.budget(beside_rows=bool(self._decoding))
        fed = 0
        while self._prefilling and left > 0:
            row = self._prefilling[0]
            chunk = self._prefill_chunk(row, left)
            fed += chunk
            left -= max(1, chunk)
            outcome.prefilled.append((row.id, row.cached))
            if row.to_prefill == 0:
                self._join(self._prefilling.pop(0))
        if outcome.prefilled:
            outcome.prefill_seconds = self._clock() - begun
            self._pace.measured(fed, outcome.prefill_seconds)

    def _prefill_chunk(self, row: Row, budget: int) -> int:
        """Gives the number of tokens fed: none for a row of one token, which is decoding's."""
        chunk = row.context(row.cached, row.cached + min(budget, row.to_prefill))
        if chunk:
            self._model(mx.array([chunk]), cache=row.cache)
            mx.eval([cache.state for cache in row.cache])
            row.cached += len(chunk)
        return len(chunk)

    def _join(self, row: Row) -> None:
        self._kv.join(row.cache)
        row.cache = []
        self._decoding.append(row)
        self._draws = None

    def _decode(self, outcome: Outcome) -> None:
        if not self._decoding:
            return
        logits = self._kv.decode([row.last_token for row in self._decoding])
        for row, token in zip(list(self._decoding), self._drawn(logits), strict=True):
            row.produced.append(token)
            outcome.tokens.append((row.id, token))
            if (ended := row.ended()) is not None:
                self._leave(row)
                outcome.left.append((row.id, ended))

    def _drawn(self, logits: mx.array) -> list[int]:
        if self._draws is None:
            self._draws = Draws([row.sampling for row in self._decoding])
        positions = mx.array([row.length for row in self._decoding], dtype=mx.uint32)
        return cast("list[int]", self._draws.draw(logits, positions).tolist())

    def _leave(self, row: Row) -> None:
        """The last row takes the gap, here as in the KV."""
        index = self._decoding.index(row)
        self._kv.leave(index)
        self._decoding[index] = self._decoding[-1]
        self._decoding.pop()
        self._draws = None

    def _forget(self, id: RowId) -> bool:
        for row in (*self._running, *self._waiting):
            if row.id == id:
                self._take_out(row)
                return True
        return False

    def _take_out(self, row: Row) -> None:
        if row in self._decoding:
            self._leave(row)
        elif row in self._prefilling:
            self._prefilling.remove(row)
        else:
            self._waiting.remove(row)
