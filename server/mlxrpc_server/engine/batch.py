"""The rows that are being generated, and the step that takes all of them one token further.

Rows join and leave between steps: a waiting row is prefilled beside the ones that decode, in chunks or together with
other short ones, joins them behind its last prompt token, and leaves at a stop token, at its limit, or when
cancelled. All of them run in their order of arrival; where memory grows short, the youngest goes back to the queue.

Where the KV allows it, the device is one step ahead: a step is dispatched before the tokens of the one before it are
read, so a row that meets a stop token has ridden in one step too many by then, and nobody hears of it. What a row with
a constraint may say follows from its last token, and so it is while one's budget of reasoning may be spent: beside one,
the logits are dispatched, then the step before is read and the masks are made, and then the draw follows.

Knows token ids and what the model, the KV and the sampler do with them; no text, no sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import mlx.core as mx

from mlxrpc_server.engine.caches import snapshot
from mlxrpc_server.engine.constraint import Masks, Reader
from mlxrpc_server.engine.kv import KV
from mlxrpc_server.engine.logprobs import Asked, Unread
from mlxrpc_server.engine.minimum import Minimum
from mlxrpc_server.engine.pace import Pace
from mlxrpc_server.engine.prefix import Kept, Prefixes
from mlxrpc_server.engine.row import Row
from mlxrpc_server.engine.sampling import Draws
from mlxrpc_server.engine.thinking import closed
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
    causes: list[tuple[RowId, str]] = field(default_factory=list)
    """Why, in words, where there is more to say."""
    prefilled: list[tuple[RowId, int]] = field(default_factory=list)
    cached: list[tuple[RowId, int]] = field(default_factory=list)
    """Rows that begin, and how many of their tokens need not be computed."""
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
    def __init__(
        self, model: Any, kv: KV, *, max_rows: int, prefill_tokens: int, clock: Clock, prefix_bytes: int = 0
    ) -> None:
        """`prefix_bytes`: the most that is kept of rows' beginnings, in the room that rows leave."""
        self._model = model
        self._kv = kv
        self._prefixes = Prefixes(prefix_bytes, whole=kv.whole, drop=kv.drop)
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
        self._cancelled: list[Row] = []
        self._read_at = 0.0
        self._outcome = Outcome(0)
        self._arrivals = 0
        self.steps = 0

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._running or self._unread or self._cancelled or self._outcome.left)

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

    @property
    def prefix_bytes(self) -> int:
        """What is kept of rows' beginnings."""
        return self._prefixes.nbytes

    def held(self, tenant: str, tokens: Sequence[int]) -> int:
        """How many of the first of these need not be computed for a row that begins now."""
        return self._prefixes.find(tenant, tokens[:-1]).length

    def submit(self, row: Row) -> None:
        row.arrival = self._arrivals = self._arrivals + 1
        if (ended := row.ended()) is not None:
            self._tell_end(row, ended)
        else:
            self._waiting.append(row)

    def refuse(self, row: RowId, reason: Left = Left.REFUSED, cause: str = "") -> None:
        self._outcome.left.append((row, reason))
        if cause:
            self._outcome.causes.append((row, cause))

    def cancel(self, row: RowId) -> None:
        """Takes the row out at the next step, wherever it is; one that has left already is nobody's concern."""
        self._cancelled += [one for one in (*self._running, *self._waiting) if one.id == row]

    def step(self) -> Outcome:
        """Where this raises, `rebuild` gives what it had done, and everything goes on from the tokens read."""
        begun = self._clock()
        self.steps += 1
        self._outcome.step = self.steps
        self._let_go()
        self._isolate()
        self._give_way()
        self._admit()
        fed = self._prefill()
        self._decode(fed)
        self._read(ahead=1 if self._kv.ahead and self._decoding else 0)
        self._outcome.seconds = self._clock() - begun
        return self._told()

    def rebuild(self) -> Outcome:
        """After a step that raised, for want of memory perhaps: all rows begin again behind the tokens that were read.

        Nothing is kept, and nothing half-advanced is used again. A row that is alone in this for the second time is at fault.
        """
        ran = {row.id: row for row in (*self._running, *self._riding)}.values()
        self._prefixes.clear()
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

    def _let_go(self) -> None:
        """Not when they are cancelled: what is kept of them takes memory, and that may raise."""
        while self._cancelled:
            row = self._cancelled.pop()
            if row in self._waiting or row in self._running:
                self._take_out(row)
                self._outcome.left.append((row.id, Left.CANCELLED))

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
        while not self._fits([row.length for row in self._running]):
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
        return self._fits([one.length + 1 for one in (*self._running, row)])

    def _fits(self, lengths: Sequence[int]) -> bool:
        """Where rows find room, it is theirs: what is kept goes as far as it stands in their way."""
        if not self._kv.fits(lengths):
            return False
        while not self._kv.fits(lengths, self._prefixes.nbytes):
            self._prefixes.give_back()
        return True

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
        self._keep(row)
        del self._decoding[row.id]
        self._kv.leave(row.id)
        self._draws = None

    # Prefill

    def _prefill(self) -> int:
        """Feeds prompts in their order of arrival, as many tokens as the step's budget allows; gives how many."""
        if not self._prefilling:
            return 0
        begun = self._clock()
        decoding = len(self._decoding)
        budget = self._pace.budget(decoding=decoding, joining=len(self._prefilling))
        fed = spent = 0
        while self._prefilling and spent < budget:
            tokens = self._prefill_group(list(self._group(budget - spent)), budget - spent)
            fed += tokens
            spent += max(1, tokens) + self._pace.overhead
        if decoding and self._kv.ahead:
            return fed
        self._outcome.prefill_seconds = self._clock() - begun
        self._pace.prefilled(fed, self._outcome.prefill_seconds)
        return 0

    def _group(self, budget: int) -> Iterator[Row]:
        """The row whose turn it is, and those behind it that can be fed with it."""
        first = self._prefilling[0]
        self._recall(first)
        yield first
        if not self._kv.joint or first.cache or first.to_prefill > budget:
            return
        longest = tokens = first.to_prefill
        for rows, row in enumerate(self._prefilling[1:], start=2):
            self._recall(row)
            longest, tokens = max(longest, row.to_prefill), tokens + row.to_prefill
            if row.cache or row.cached != first.cached or rows * longest > min(budget, PADDING * tokens):
                row.rewind()  # by its own turn, more may be kept, or less
                return
            yield row

    def _recall(self, row: Row) -> None:
        """A row that has not begun begins behind the longest of its beginnings that is kept."""
        if row.cache or row.bypass:
            return
        prefix = self._prefixes.find(row.tenant, row.context(0, row.length - 1))
        row.kept, row.cached = prefix.kept, prefix.length
        row.halt = prefix.known if self._kv.whole and prefix.known > prefix.length else 0

    def _prefill_group(self, group: Sequence[Row], budget: int) -> int:
        """Gives the number of tokens fed: none for rows of one token, which are decoding's."""
        cache = group[0].cache or self._begun(group)
        chunks = [row.context(row.cached, row.cached + min(budget, row.next_halt)) for row in group]
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
            self._keep_halfway(group[0])
        else:
            self._join(group, cache)
        return len(group) * longest

    def _begun(self, group: Sequence[Row]) -> list[Any]:
        cache = self._kv.open([row.kept for row in group])
        if group[0].cached:
            # Before anything that is kept may be dropped.
            self._evaluate([layer.state for layer in cache])
        for row in group:
            self._outcome.cached.append((row.id, row.cached))
            row.kept = ()
        return cache

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
            self._keep(row)

    def _keep(self, row: Row) -> None:
        """Lets others begin where the row has come to, as far as its tokens are known. States cannot be cut back to that."""
        if not row.bypass and not (self._kv.whole and row.known < row.cached):
            self._evaluate_kept(
                self._prefixes.keep(
                    row.tenant, row.context(0, row.known), lambda start, end: self._kv.keep(row.id, start, end)
                )
            )

    def _keep_halfway(self, row: Row) -> None:
        """Where another row parted from it, a third may come by."""
        if row.cached == row.halt:
            state = snapshot(row.cache)
            self._evaluate_kept(self._prefixes.keep(row.tenant, row.context(0, row.cached), lambda _start, _end: state))

    def _evaluate_kept(self, kept: Sequence[Kept]) -> None:
        if lazy := [array for one in kept for array in one.lazy]:
            self._evaluate(lazy)

    # Decoding

    def _decode(self, prefilled: int) -> None:
        """Dispatches a step over all rows, whose tokens are read later."""
        if not self._decoding:
            return
        rows = [self._decoding[row] for row in self._kv.arrange()]
        fed = self._last_tokens(rows)
        positions = mx.array([row.length for row in rows], dtype=mx.uint32)
        draws, logits = self._draws_of(rows, fed), self._kv.decode(fed)
        for row in rows:
            row.cached += 1
        tokens = draws.draw(self._allowed(rows, logits), positions)
        logprobs = self._asked.of(logits, tokens)
        mx.async_eval(tokens, *(logprobs.arrays if logprobs else ()))  # type: ignore[no-untyped-call]
        still = [row if row.id in self._decoding else None for row in rows]
        self._unread.append(Drawn(still, tokens, logprobs, prefilled, self._clock()))
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
        masks = Masks([Reader(row.guide if row.id in self._decoding else None, row.stop_ids) for row in rows])
        for place, reason in masks.ended.items():
            self._end(rows[place], reason)
        return closed(self._minimum.apply(masks.apply(logits)), [row.closing for row in rows])

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

    def _read(self, ahead: int) -> None:
        """Waits for the tokens of all steps but those that may run ahead."""
        while len(self._unread) > ahead:
            drawn = self._unread[0]
            tokens = cast("list[int]", drawn.tokens.tolist())
            logprobs = drawn.logprobs.read() if drawn.logprobs else {}
            # Not before: where waiting raises, it still holds rows that have nothing more to draw.
            self._unread.popleft()
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
            self._end(row, ended)

    def _end(self, row: Row, reason: Left) -> None:
        self._take_out(row)
        self._tell_end(row, reason)

    def _tell_end(self, row: Row, reason: Left) -> None:
        self._outcome.left.append((row.id, reason))
        if row.guide is not None and row.guide.fault:
            self._outcome.causes.append((row.id, row.guide.fault))
