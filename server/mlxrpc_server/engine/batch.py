"""The rows that are being generated, and the step that takes all of them one token further.

Rows join and leave between steps: a waiting row is admitted, its prompt is fed beside the rows that decode, it joins them
behind its last prompt token, and leaves at a stop token, at its limit, or when cancelled.

Where the KV allows it, the device is one step ahead: a step is dispatched before the tokens of the one before it are
read, so a row that meets a stop token has ridden in one step too many by then, and nobody hears of it. What a row with
a constraint may say follows from its last token, and so it is while one's budget of reasoning may be spent: beside one,
the logits are dispatched, then the step before is read and the masks are made, and then the draw follows.

Knows token ids and what the KV and the sampler do with them; not who may run, nor how prompts are fed; no text, no sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx

from mlxrpc_server.engine.admission import Admission
from mlxrpc_server.engine.given import given
from mlxrpc_server.engine.kv import KV
from mlxrpc_server.engine.logprobs import Asked, Unread
from mlxrpc_server.engine.masks import Masks, Reader
from mlxrpc_server.engine.minimum import Minimum
from mlxrpc_server.engine.outcome import Outcome
from mlxrpc_server.engine.pace import Pace
from mlxrpc_server.engine.prefill import Prefill
from mlxrpc_server.engine.reuse import Reuse
from mlxrpc_server.engine.row import Row
from mlxrpc_server.engine.sampling import Draws
from mlxrpc_server.engine.thinking import closed
from mlxrpc_server.engine.wire import Left
from mlxrpc_server.types import LogProbs, RowId

Clock = Callable[[], float]


@dataclass(slots=True)
class Drawn:
    """A step that was dispatched: its tokens will be there when they are read."""

    rows: list[Row | None]
    """None in the place of a row that has gone since."""
    tokens: mx.array
    logprobs: Unread | None
    prefilled: int | None
    """Prompt tokens that are through with it; None where nothing was fed beside it."""
    at: float
    """When it was dispatched."""


class Batch:
    def __init__(
        self, model: Any, kv: KV, *, max_rows: int, prefill_tokens: int, clock: Clock, prefix_bytes: int = 0
    ) -> None:
        """`prefix_bytes`: the most that is kept of rows' beginnings, in the room that rows leave."""
        self._kv = kv
        self._clock = clock
        self._pace = Pace(prefill_tokens)
        self._reuse = Reuse(kv, prefix_bytes)
        self._rows = Admission(self._reuse.fits, max_rows)
        self._prefill = Prefill(model, kv, self._rows, self._reuse, self._pace, clock)
        self._unread: deque[Drawn] = deque()
        self._draws: Draws | None = None
        self._drawing: list[Row] = []
        self._minimum = Minimum([])
        self._asked = Asked([])
        self._cancelled: list[Row] = []
        self._read_at = 0.0
        self._outcome = Outcome(0)
        self.steps = 0

    @property
    def idle(self) -> bool:
        return not (self._rows.waiting or self._rows.running or self._unread or self._cancelled or self._outcome.left)

    @property
    def rows(self) -> int:
        """Those that run: in prefill, or decoding."""
        return len(self._rows.running)

    @property
    def waiting(self) -> int:
        """Rows that have not begun, or have to begin again."""
        return len(self._rows.waiting)

    @property
    def nbytes(self) -> int:
        """What the decoding rows' keys and values take."""
        return self._kv.nbytes

    @property
    def prefix_bytes(self) -> int:
        """What is kept of rows' beginnings."""
        return self._reuse.nbytes

    def held(self, tenant: str, tokens: Sequence[int]) -> int:
        """How many of the first of these need not be computed for a row that begins now."""
        return self._reuse.held(tenant, tokens)

    def submit(self, row: Row) -> None:
        self._rows.arrive(row)
        if (ended := row.ended()) is not None:
            self._tell_end(row, ended)
        else:
            self._rows.waiting.append(row)

    def refuse(self, row: RowId, reason: Left = Left.REFUSED, cause: str = "") -> None:
        self._outcome.left.append((row, reason))
        if cause:
            self._outcome.causes.append((row, cause))

    def cancel(self, row: RowId) -> None:
        """Takes the row out at the next step, wherever it is; one that has left already is nobody's concern."""
        self._cancelled += [one for one in self._rows.everyone if one.id == row]

    def step(self) -> Outcome:
        """Where this raises, `rebuild` gives what it had done, and everything goes on from the tokens read."""
        begun = self._clock()
        self.steps += 1
        self._outcome.step = self.steps
        self._let_go()
        self._make_room()
        self._rows.admit()
        fed = self._prefill.feed(self._outcome)
        self._decode(fed)
        self._read(ahead=1 if self._kv.ahead and self._rows.decoding else 0)
        self._outcome.seconds = self._clock() - begun
        return self._told()

    def rebuild(self) -> Outcome:
        """After a step that raised, for want of memory perhaps: all rows begin again behind the tokens that were read.

        Nothing is kept, and nothing half-advanced is used again. A row that is alone in this for the second time is at fault.
        """
        told = {row for row, _ in self._outcome.left}
        ran = {row.id: row for row in (*self._rows.running, *self._riding) if row.id not in told}.values()
        self._rows.forget(told)
        self._prefill.clear()
        self._reuse.clear()
        self._kv.clear()
        self._unread.clear()
        self._draws = None
        for row in sorted(ran, key=lambda row: row.arrival, reverse=True):
            row.setbacks += 1
            self._rows.send_back(row)
            if len(ran) == 1 and row.suspected:
                self._rows.remove(row)
                self._outcome.left.append((row.id, Left.FAILED))
        mx.clear_cache()
        return self._told()

    def _told(self) -> Outcome:
        outcome, self._outcome = self._outcome, Outcome(self.steps)
        return outcome

    @property
    def _riding(self) -> list[Row]:
        """Whose tokens are still to be read."""
        return [row for drawn in self._unread for row in drawn.rows if row is not None]

    def _let_go(self) -> None:
        """Not when they are cancelled: what is kept of them takes memory, and that may raise."""
        while self._cancelled:
            row = self._cancelled.pop()
            if row in self._rows.everyone:
                self._outcome.left.append((row.id, Left.CANCELLED))
                self._take_out(row)

    def _make_room(self) -> None:
        for row in self._rows.unsuspected:
            self._send_back(row)
        while (youngest := self._rows.one_too_many()) is not None:
            self._send_back(youngest)
            self._outcome.preempted.append(youngest.id)

    def _send_back(self, row: Row) -> None:
        self._take_out(row)
        self._rows.send_back(row)

    def _take_out(self, row: Row) -> None:
        if row.id in self._rows.decoding:
            self._stop_decoding(row)
        self._rows.remove(row)
        for drawn in self._unread:
            drawn.rows = [None if one is row else one for one in drawn.rows]

    def _stop_decoding(self, row: Row) -> None:
        self._reuse.keep(row)
        self._kv.leave(row.id)
        self._rows.remove(row)
        self._draws = None

    def _decode(self, prefilled: int | None) -> None:
        """Dispatches a step over all rows, whose tokens are read later."""
        if not self._rows.decoding:
            return
        rows = [self._rows.decoding[row] for row in self._kv.arrange()]
        fed = self._last_tokens(rows)
        positions = given([row.length for row in rows], mx.uint32)
        draws, logits = self._draws_of(rows, fed), self._kv.decode(fed)
        for row in rows:
            row.cached += 1
        allowed, begun = self._allowed(rows, logits), self._clock()
        tokens = draws.draw(allowed, positions)  # on a CPU it waits for the logits
        logprobs = self._asked.of(logits, tokens)
        mx.async_eval(tokens, *(logprobs.arrays if logprobs else ()))  # type: ignore[no-untyped-call]
        still = [row if row.id in self._rows.decoding else None for row in rows]
        self._unread.append(Drawn(still, tokens, logprobs, prefilled, begun))
        for row in filter(None, still):
            row.unread += 1
            if row.spent:
                self._stop_decoding(row)

    def _allowed(self, rows: Sequence[Row], logits: mx.array) -> mx.array:
        """The logits without what may not come. Rows may leave here, and ride on in this step unheard."""
        if not any(row.heeds for row in rows):
            return self._minimum.apply(logits)
        mx.async_eval(logits)  # type: ignore[no-untyped-call]
        self._read(ahead=0)
        masks = Masks([Reader(row.guide if row.id in self._rows.decoding else None, row.stop_ids) for row in rows])
        for place, reason in masks.ended.items():
            self._end(rows[place], reason)
        return closed(self._minimum.apply(masks.apply(logits)), [row.closing for row in rows])

    def _last_tokens(self, rows: Sequence[Row]) -> mx.array:
        """What each row feeds: what was drawn last, be it read or not."""
        if not self._unread:
            return given([row.last_token for row in rows], mx.uint32)
        drawn = self._unread[-1]
        if rows == drawn.rows:
            return drawn.tokens
        places = {row.id: place for place, row in enumerate(drawn.rows) if row is not None}
        known = [row for row in rows if row.id not in places]
        places |= {row.id: len(drawn.rows) + place for place, row in enumerate(known)}
        tokens = [drawn.tokens, given([row.last_token for row in known], mx.uint32)]
        return mx.concatenate(tokens)[given([places[row.id] for row in rows], mx.int32)]

    def _draws_of(self, rows: list[Row], fed: mx.array) -> Draws:
        """Made anew when rows have joined, left, or changed places."""
        if self._draws is None or self._drawing != rows:
            unread = mx.where(given([row.unread > 0 for row in rows], mx.bool_), fed.astype(mx.int32), -1)
            self._draws = Draws([row.sampling for row in rows], [row.history for row in rows], unread)
            self._minimum = Minimum(rows)
            self._asked = Asked([row.logprobs for row in rows])
            self._drawing = rows
        return self._draws

    def _read(self, ahead: int) -> None:
        """Waits for the tokens of all steps but those that may run ahead."""
        while len(self._unread) > ahead:
            drawn = self._unread[0]
            tokens = cast("list[int]", drawn.tokens.tolist())
            logprobs = drawn.logprobs.read() if drawn.logprobs else {}
            self._measure(drawn)
            for place, (row, token) in enumerate(zip(drawn.rows, tokens, strict=True)):
                if row is not None:
                    drawn.rows[place] = None
                    self._gain(row, token, logprobs.get(place))
            # Not before: where any of this raises, it still holds rows that have nothing more to draw.
            self._unread.popleft()

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
            self._end(row, ended)

    def _end(self, row: Row, reason: Left) -> None:
        """In this order: to take it out may raise."""
        self._tell_end(row, reason)
        self._take_out(row)

    def _tell_end(self, row: Row, reason: Left) -> None:
        self._outcome.left.append((row.id, reason))
        if row.guide is not None and row.guide.fault:
            self._outcome.causes.append((row.id, row.guide.fault))
