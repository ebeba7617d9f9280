"""The rows that are being generated, and the step that takes all of them one token further.

Rows join and leave between steps: a waiting row is prefilled beside the ones that decode, in chunks or together with
other short ones, joins them behind its last prompt token, and leaves at a stop token, at its limit, or when
cancelled. All of them run in their order of arrival; where memory grows short, the youngest goes back to the queue.

Where the KV allows it, the device is one step ahead: a step is dispatched before the tokens of the one before it are
read, so a row that meets a stop token has ridden in one step too many by then, and nobody hears of it.

Knows token ids and what the model, the KV and the sampler do with them; no text, no sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import mlx.core as mx

from mlxrpc_server.engine.kv import KV
from mlxrpc_server.engine.logprobs import Asked, Unread
from mlxrpc_server.engine.minimum import Minimum
from mlxrpc_server.engine.pace import Pace
from mlxrpc_server.engine.row import Row
from mlxrpc_server.engine.sampling import Draws
from mlxrpc_server.engine.wire import Left
from mlxrpc_server.types import LogProbs, RowId

Clock = Callable[[], float]

PADDING = 1.5
"""Prompts are prefilled together while that feeds at most so many times their tokens."""


@dataclass(slots=True)
class Outcome:
    """What one step did, for whoever tells the rows' owners."""

    step: int
    tokens: list[tuple[RowId, int]] = field(default_factory=list)
    logprobs: list[LogProbs | None] = field(default_factory=list)
    """One for each token, None where its row did not ask."""
    left: list[tuple[RowId, Left]] = field(default_factory=list)
    prefilled: list[tuple[RowId, int]] = field(default_factory=list)
    preempted: list[RowId] = field(default_factory=list)
    """Rows that went back to the queue, for want of memory."""
    prefill_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def news(self) -> bool:
        """Whether there is anything in it for a row's owner."""
        return bool(self.tokens or self.left or self.prefilled)


@dataclass(slots=True)
class Drawn:
    """A step that was dispatched: its tokens will be there when they are read."""

    rows: list[Row | None]
    """None in the place of a row that has gone since."""
    tokens: mx.array
    logprobs: Unread | None
    prefilled: int
    """Prompt tokens that the device has to take before it."""
    at: float
    """When it was dispatched."""


class Batch:
    def __init__(self, model: Any, kv: KV, *, max_rows: int, prefill_tokens: int, clock: Clock) -> None:
        self._model = model
        self._kv = kv
        self._max_rows = max_rows
        self._pace = Pace(prefill_tokens)
        self._clock = clock
        self._waiting: deque[Row] = deque()
        self._prefilling: list[Row] = []
        self._decoding: dict[RowId, Row] = {}
        self._unread: deque[Drawn] = deque()
        self._draws: Draws | None = None
        self._drawing: list[Row] = []
        self._minimum = Minimum([])
        self._asked = Asked([])
        self._read_at = 0.0
        self._outcome = Outcome(0)
        self._arrivals = 0
        self.steps = 0

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._running or self._unread or self._outcome.left)

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
            self._outcome.left.append((row.id, ended))
        else:
            self._waiting.append(row)

    def refuse(self, row: RowId) -> None:
        self._outcome.left.append((row, Left.REFUSED))

    def cancel(self, row: RowId) -> None:
        """Takes the row out, wherever it is; one that has left already is nobody's concern."""
        for one in (*self._running, *self._waiting):
            if one.id == row:
                self._take_out(one)
                self._outcome.left.append((row, Left.CANCELLED))
                return

    def step(self) -> Outcome:
        """Where this raises, `rebuild` gives what it had done, and everything goes on from the tokens read."""
        begun = self._clock()
        self.steps += 1
        self._outcome.step = self.steps
        self._isolate()
        self._give_way()
        self._admit()
        fed = self._prefill()
        self._decode(fed)
        self._read()
        self._outcome.seconds = self._clock() - begun
        return self._told()

    def rebuild(self) -> Outcome:
        """After a step that raised: all rows begin again behind the tokens that were read.

        Nothing half-advanced is used again. A row that is alone in this for the second time is at fault.
        """
        ran = {row.id: row for row in (*self._running, *self._riding)}.values()
        self._kv.clear()
        self._unread.clear()
        self._draws = None
        self._prefilling.clear()
        self._decoding.clear()
        for row in sorted(ran, key=lambda row: row.arrival, reverse=True):
            row.rewind()
            row.setbacks += 1
            if len(ran) == 1 and row.suspected:
                self._outcome.left.append((row.id, Left.FAILED))
            else:
                self._waiting.appendleft(row)
        mx.clear_cache()
        return self._told()

    def _told(self) -> Outcome:
        outcome, self._outcome = self._outcome, Outcome(self.steps)
        return outcome

    @property
    def _running(self) -> list[Row]:
        return [*self._decoding.values(), *self._prefilling]

    @property
    def _riding(self) -> list[Row]:
        """Whose tokens are still to be read."""
        return [row for drawn in self._unread for row in drawn.rows if row is not None]

    # Who runs

    def _isolate(self) -> None:
        """While rows are suspected, one that is not gives its place to them."""
        if any(row.suspected for row in self._waiting):
            for row in self._running:
                if not row.suspected:
                    self._send_back(row)

    def _give_way(self) -> None:
        """Before the rows outgrow their room, the youngest goes back: all that waits is younger, so it waits in front.

        The oldest never goes back: there is always one that comes to its end.
        """
        while not self._kv.fits([row.length for row in self._running]):
            youngest = max(self._running, key=lambda row: row.arrival)
            self._send_back(youngest)
            self._outcome.preempted.append(youngest.id)

    def _admit(self) -> None:
        """In order, even where a later row would find room: else a long one would wait for ever."""
        while self._waiting and self.rows < self._most_rows and self._fits_beside(self._next):
            row = self._next
            self._waiting.remove(row)
            self._prefilling.append(row)

    @property
    def _next(self) -> Row:
        return next((row for row in self._waiting if row.suspected), self._waiting[0])

    @property
    def _most_rows(self) -> int:
        """A suspect runs alone: where a step raises again, it was the one."""
        return 1 if any(row.suspected for row in (*self._waiting, *self._running)) else self._max_rows

    def _fits_beside(self, row: Row) -> bool:
        """With a token more for each: none is to come in and go at once."""
        return self._kv.fits([one.length + 1 for one in (*self._running, row)])

    def _send_back(self, row: Row) -> None:
        self._take_out(row)
        row.rewind()
        self._waiting.appendleft(row)

    def _take_out(self, row: Row) -> None:
        if row.id in self._decoding:
            self._stop_decoding(row)
        elif row in self._prefilling:
            self._prefilling.remove(row)
        elif row in self._waiting:
            self._waiting.remove(row)
        for drawn in self._unread:
            drawn.rows = [None if one is row else one for one in drawn.rows]

    def _stop_decoding(self, row: Row) -> None:
        del self._decoding[row.id]
        self._kv.leave(row.id)
        self._draws = None

    # Prefill

    def _prefill(self) -> int:
        """Feeds prompts in their order of arrival, as many tokens as the step's budget allows; gives how many."""
        if not self._prefilling:
            return 0
        begun = self._clock()
        beside_rows = bool(self._decoding)
        budget = self._pace.budget(beside_rows=beside_rows)
        fed = 0
        while self._prefilling and fed < budget:
            fed += max(1, self._prefill_group(list(self._group(budget - fed)), budget - fed))
        if beside_rows and self._kv.ahead:
            return fed
        self._outcome.prefill_seconds = self._clock() - begun
        self._pace.prefilled(fed, self._outcome.prefill_seconds)
        return 0

    def _group(self, budget: int) -> Iterator[Row]:
        """The row whose turn it is, and those behind it that can be fed with it."""
        first = self._prefilling[0]
        yield first
        if not self._kv.joint or first.cached or first.to_prefill > budget:
            return
        longest = tokens = first.to_prefill
        for rows, row in enumerate(self._prefilling[1:], start=2):
            longest, tokens = max(longest, row.to_prefill), tokens + row.to_prefill
            if row.cached or rows * longest > min(budget, PADDING * tokens):
                return
            yield row

    def _prefill_group(self, group: Sequence[Row], budget: int) -> int:
        """Gives the number of tokens fed: none for rows of one token, which are decoding's."""
        chunks = [row.context(row.cached, row.cached + min(budget, row.to_prefill)) for row in group]
        cache = group[0].cache or self._kv.open()
        longest = max(map(len, chunks))
        if longest:
            # Nothing that is padded is ever attended to: attention is causal, and the KV takes each row's own tokens.
            padded = [[*chunk, *([0] * (longest - len(chunk)))] for chunk in chunks]
            self._model(mx.array(padded), cache=cache)
            self._evaluate([layer.state for layer in cache])
        for row, chunk in zip(group, chunks, strict=True):
            row.cached += len(chunk)
            self._outcome.prefilled.append((row.id, row.cached))
        if group[0].to_prefill:
            group[0].cache = cache
        else:
            self._join(group, cache)
        return len(group) * longest

    def _evaluate(self, arrays: Any) -> None:
        """Rows that decode are not kept waiting for a prefill by the host as well."""
        if self._decoding and self._kv.ahead:
            mx.async_eval(arrays)  # type: ignore[no-untyped-call]
        else:
            mx.eval(arrays)

    def _join(self, group: Sequence[Row], cache: list[Any]) -> None:
        self._kv.join([row.id for row in group], cache, [row.cached for row in group])
        for row in group:
            row.cache = []
            self._prefilling.remove(row)
            self._decoding[row.id] = row

    # Decoding

    def _decode(self, prefilled: int) -> None:
        """Dispatches a step over all rows, whose tokens are read later."""
        if not self._decoding:
            return
        rows = [self._decoding[row] for row in self._kv.arrange()]
        fed = self._last_tokens(rows)
        positions = mx.array([row.length for row in rows], dtype=mx.uint32)
        draws, logits = self._draws_of(rows, fed), self._kv.decode(fed)
        tokens = draws.draw(self._minimum.apply(logits), positions)
        logprobs = self._asked.of(logits, tokens)
        mx.async_eval(tokens, *(logprobs.arrays if logprobs else ()))  # type: ignore[no-untyped-call]
        self._unread.append(Drawn(list(rows), tokens, logprobs, prefilled, self._clock()))
        for row in rows:
            row.unread += 1
            if row.spent:
                self._stop_decoding(row)

    def _last_tokens(self, rows: Sequence[Row]) -> mx.array:
        """What each row feeds: what was drawn last, be it read or not."""
        if not self._unread:
            return mx.array([row.last_token for row in rows], dtype=mx.uint32)
        drawn = self._unread[-1]
        if rows == drawn.rows:
            return drawn.tokens
        places = {row.id: place for place, row in enumerate(drawn.rows) if row is not None}
        known = [row for row in rows if row.id not in places]
        places |= {row.id: len(drawn.rows) + place for place, row in enumerate(known)}
        tokens = [drawn.tokens, mx.array([row.last_token for row in known], dtype=mx.uint32)]
        return mx.concatenate(tokens)[mx.array([places[row.id] for row in rows])]

    def _draws_of(self, rows: list[Row], fed: mx.array) -> Draws:
        """Made anew when rows have joined, left, or changed places."""
        if self._draws is None or self._drawing != rows:
            unread = mx.where(mx.array([row.unread > 0 for row in rows]), fed.astype(mx.int32), -1)
            self._draws = Draws([row.sampling for row in rows], [row.history for row in rows], unread)
            self._minimum = Minimum(rows)
            self._asked = Asked([row.logprobs for row in rows])
            self._drawing = rows
        return self._draws

    def _read(self) -> None:
        """Waits for the tokens of all steps but the one that may run ahead."""
        ahead = 1 if self._kv.ahead and self._decoding else 0
        while len(self._unread) > ahead:
            drawn = self._unread.popleft()
            tokens = cast("list[int]", drawn.tokens.tolist())
            logprobs = drawn.logprobs.read() if drawn.logprobs else {}
            self._measure(drawn)
            for place, (row, token) in enumerate(zip(drawn.rows, tokens, strict=True)):
                if row is not None:
                    self._gain(row, token, logprobs.get(place))

    def _measure(self, drawn: Drawn) -> None:
        """The device began with it when it was dispatched, or when it had done the one before."""
        now = self._clock()
        self._pace.stepped(drawn.prefilled, now - max(drawn.at, self._read_at))
        self._read_at = now

    def _gain(self, row: Row, token: int, logprobs: LogProbs | None) -> None:
        ended = row.gain(token)
        self._outcome.tokens.append((row.id, token))
        self._outcome.logprobs.append(logprobs)
        if ended is not None:
            self._take_out(row)
            self._outcome.left.append((row.id, ended))
