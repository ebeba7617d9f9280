"""Rows in pages that a kernel of our own reads and writes in place: no mask, no scatter, no copies at joins and leaves.

For models whose layers keep plain keys and values. `Paged` knows which row is where and what a step needs; how pages are
stored, written and attended to is a `Store`'s affair: a GPU's kernels, or plain operations that say what those must give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import mlx.core as mx
from mlx_lm.models.cache import KVCache, make_prompt_cache

from mlxrpc_server.engine import attention
from mlxrpc_server.engine.attention import Window, stand_in
from mlxrpc_server.engine.given import given
from mlxrpc_server.engine.kernels.turn import Token, Turn
from mlxrpc_server.engine.kv import Beginnings
from mlxrpc_server.engine.often import Often
from mlxrpc_server.engine.pages import SIZE, Pages, fit, needed, part_tokens, parts_of, slabs
from mlxrpc_server.engine.prefix import Kept
from mlxrpc_server.engine.room import UNBOUNDED, Room
from mlxrpc_server.engine.sizes import Sizes
from mlxrpc_server.types import RowId

HEAD_SIZES = frozenset({64, 80, 96, 128, 256})
MOST_QUERIES = 32
"""That share one head of keys."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a layer's keys and values look like. All layers are alike."""

    layers: int
    kv_heads: int
    head_size: int
    queries: int
    """To one head of keys."""
    dtype: mx.Dtype

    @property
    def page_bytes(self) -> int:
        """Of one page, keys and values of all layers."""
        return 2 * self.layers * self.kv_heads * SIZE * self.head_size * self.dtype.size


@dataclass(slots=True)
class Plan:
    """Where a set of rows lies and how their attention is cut into parts. Good for some steps."""

    table: Any
    """The rows' pages, as the store reads them."""
    lengths: mx.array
    """Tokens that each row holds now: a step on the device moves it on, not the host."""
    begun: list[int]
    """What the rows held when the plan was made; behind them may be some that are none, and have no pages."""
    work: mx.array
    """Tokens of a part; then row and part, for each part that may come to be."""
    width: int
    """Of the table, in pages."""
    parts: int
    split: bool
    """Whether any row has more than one."""
    steps: int
    """How many the rows have room for."""
    age: int = 0

    @property
    def held(self) -> list[int]:
        return [length + self.age for length in self.begun]


@dataclass(slots=True)
class Goal:
    """Where prefilled rows of these lengths are to be written."""

    table: Any
    lengths: Sequence[int]
    counted: mx.array = field(init=False)
    """The lengths, for a device."""

    def __post_init__(self) -> None:
        self.counted = given(self.lengths, mx.int32)


class Store(Protocol):
    """Numbered pages of all layers."""

    slab: int
    """Memory is taken in slabs of so many pages."""

    compiles: bool
    """Whether a step may be compiled: all that changes from step to step is in arrays then, and in the tickets."""

    sizes: Sizes
    """In which what it is made for runs best."""

    tickets: list[mx.array]
    """What the next step of each layer has to wait for."""

    def hold(self, slabs: int) -> None:
        """From now on there are so many slabs of pages; pages in those that stay keep what they hold."""

    def table(self, rows: Sequence[Sequence[int]], width: int) -> Any:
        """The rows' pages as the two below want them, with room for so many a row."""

    def write(self, layer: int, keys: mx.array, values: mx.array, goal: Goal) -> None:
        """The first tokens of each row of [rows, heads, columns, size], as many as it has."""

    def attend(
        self, layer: int, token: Token, plan: Plan, scale: float, window: int, turn: Turn | None = None
    ) -> mx.array:
        """Of each row's new query over what the row holds and its new key and value, which are written besides.

        With a turn, query and key come as they are before it.
        """

    def read(self, layer: int, rows: Sequence[Sequence[int]]) -> tuple[mx.array, mx.array]:
        """Keys and values of rows of as many whole pages each, as they are behind all that was begun until now."""

    def forget(self) -> None:
        """What was begun and may never come to its end."""


class Paged:
    joint = True
    ahead = True
    whole = False

    def __init__(self, model: Any, form: Form, store: Store, room: Room = UNBOUNDED, *, reserve: int = 0) -> None:
        """`reserve`: bytes that are held while there are no rows too, so that the next ones need not wait for memory."""
        attention.route(model)
        self._model = model
        self._form = form
        self._store = store
        self._slab = store.slab
        self._least = reserve // (self._slab * form.page_bytes)
        self.sizes = store.sizes
        self._room = room
        self._pages = Pages()
        self._slabs = 0
        self._lengths: dict[RowId, int] = {}
        """As of the plan; it counts the steps since."""
        self._plan: Plan | None = None
        self._order: list[RowId] = []
        self._layers = [_Layer(self, layer) for layer in range(form.layers)]
        self._often = Often(self._pass)
        self._hold()

    @property
    def nbytes(self) -> int:
        return self._slabs * self._slab * self._form.page_bytes

    @property
    def plan(self) -> Plan:
        if self._plan is None:
            raise RuntimeError("rows have joined or left since they were arranged")
        return self._plan

    @property
    def store(self) -> Store:
        return self._store

    @property
    def form(self) -> Form:
        return self._form

    def fits(self, lengths: Sequence[int], beside: int = 0) -> bool:
        return fit(lengths, self._form.page_bytes, self._slab, self._room, beside)

    def open(self, kept: Beginnings = ()) -> list[Any]:
        caches: list[Any] = make_prompt_cache(self._model)
        if any(kept):
            rows = [[page for one in row for page in one.content] for row in kept]
            for layer, cache in enumerate(caches):
                keys, values = self._store.read(layer, rows)
                cache.state = keys, values, keys.shape[2]
        return caches

    def keep(self, row: RowId, start: int, end: int) -> Kept:
        """No copy: full pages are not written any more, and stay when the row leaves."""
        pages = list(self._pages.of(row)[start // SIZE : end // SIZE])
        self._pages.keep(pages)
        return Kept(pages, len(pages) * self._form.page_bytes)

    def drop(self, kept: Kept) -> None:
        self._pages.drop(kept.content)

    def join(self, rows: Sequence[RowId], cache: list[Any], lengths: Sequence[int]) -> None:
        self._settle()
        for row, length in zip(rows, lengths, strict=True):
            self._pages.give(row, needed(length))
            self._lengths[row] = length
        self._hold()
        if any(lengths):
            pages = [self._pages.of(row) for row in rows]
            goal = Goal(self._store.table(pages, max(map(len, pages))), lengths)
            for layer, prefilled in enumerate(cache):
                self._store.write(layer, prefilled.keys, prefilled.values, goal)

    def leave(self, row: RowId) -> None:
        self._settle()
        self._pages.take_back(row)
        del self._lengths[row]
        if not self._lengths:
            self._hold()

    def arrange(self) -> Sequence[RowId]:
        if self._plan is None or self._plan.age >= self._plan.steps:
            self._settle()
            self._plan = self._planned()
        return self._order

    def decode(self, tokens: mx.array) -> mx.array:
        plan, store, rows = self.plan, self._store, tokens.size
        if nobody := len(plan.begun) - rows:
            tokens = mx.concatenate([tokens, mx.zeros((nobody,), tokens.dtype)])
        arrays = tokens, plan.lengths, plan.table, plan.work, store.tickets
        if store.compiles:
            key = tokens.size, plan.parts, plan.width
            logits, plan.lengths, store.tickets = self._often(key, *arrays)
        else:
            logits, plan.lengths, store.tickets = self._pass(*arrays)
        plan.age += 1
        return cast("mx.array", logits[:rows] if nobody else logits)

    def _pass(self, tokens: mx.array, lengths: mx.array, table: Any, work: mx.array, tickets: list[mx.array]) -> Any:
        """One step in the plan's form, all arrays of which come from outside."""
        self._plan, plan = replace(self.plan, lengths=lengths, table=table, work=work), self._plan
        self._store.tickets = list(tickets)
        logits = self._model(tokens[:, None], cache=self._layers)[:, -1]
        self._plan = plan
        return logits, lengths + 1, self._store.tickets

    def clear(self) -> None:
        self._store.forget()
        self._plan = None
        self._lengths.clear()
        self._pages.clear()
        self._hold()

    def _settle(self) -> None:
        """Ends the plan: the rows have moved on by its steps."""
        if self._plan is not None:
            self._lengths = dict(zip(self._order, self._plan.held, strict=False))
            self._plan = None

    def _planned(self) -> Plan:
        for row, length in self._lengths.items():
            self._pages.give(row, needed(length))
        self._hold()
        self._order = list(self._lengths)
        begun = list(self._lengths.values())
        steps = min((len(self._pages.of(row)) * SIZE - length for row, length in self._lengths.items()), default=0)
        pages = [self._pages.of(row) for row in self._order]
        rows = self.sizes.decoding(len(pages)) if pages else 0
        part = part_tokens([length + steps for length in begun], self._form.kv_heads)
        parts = parts_of(rows, self._form.kv_heads) if self._store.compiles else 0
        return planned(self._store, pages, begun, steps, part, rows=rows, least_parts=parts)

    def _hold(self) -> None:
        """Takes some slabs more than are needed where there is room, and gives back what is far too much."""
        need, most = slabs(self._pages.end, self._slab), self._room.bytes // (self._slab * self._form.page_bytes)
        held = self._slabs
        if need > held:
            held = max(need, min(most, held + held // 4))
        elif not need or held > 2 * need:
            held = need
        held = max(held, self._least)
        if held != self._slabs:
            self._store.hold(held)
            self._slabs = held


NO_PART = 1 << 30
"""Of any row: it has nothing to do."""


def planned(
    store: Store,
    pages: Sequence[Sequence[int]],
    lengths: Sequence[int],
    steps: int,
    part: int,
    *,
    rows: int = 0,
    least_parts: int = 0,
) -> Plan:
    """For rows of these lengths in these pages, cut into parts of so many tokens; made up to so many with rows of nothing,
    and with parts of nothing, so that few forms of a step come to be."""
    nobody = max(0, rows - len(lengths))
    parts = [(row, number) for row, length in enumerate(lengths) for number in range((length + steps) // part + 1)]
    split = len(parts) > len(lengths)
    parts += [(0, NO_PART)] * (least_parts - len(parts))
    width = store.sizes.pages(max(map(len, pages), default=0))
    return Plan(
        table=store.table([*pages, *[[]] * nobody], width),
        lengths=given([*lengths, *[0] * nobody], mx.int32),
        begun=[*lengths, *[0] * nobody],
        work=given([part, *(number for one in parts for number in one)], mx.int32),
        width=width,
        parts=len(parts),
        split=split,
        steps=steps,
    )


def rows_of(pages: mx.array, rows: int) -> mx.array:
    """[rows * pages, heads, SIZE, size], every row with as many: each row's tokens, [rows, heads, tokens, size]."""
    count, heads, _, size = pages.shape
    apart = pages.reshape(rows, count // rows, heads, SIZE, size).transpose(0, 2, 1, 3, 4)
    return apart.reshape(rows, heads, count // rows * SIZE, size)


class _Layer:
    """One layer's share of the pages, in the shape that mlx-lm's models expect of a cache."""

    def __init__(self, kv: Paged, layer: int) -> None:
        self._kv = kv
        self._layer = layer

    @property
    def offset(self) -> mx.array:
        return self._kv.plan.lengths

    def make_mask(self, _tokens: int, return_array: bool = False, window_size: int | None = None) -> Window | None:
        return stand_in(return_array=return_array, window=window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[_New, mx.array]:
        return _New(self, keys, values), values

    def attend_turned(self, token: Token, scale: float, mask: Window | None, turn: Turn | None) -> mx.array:
        window = mask.tokens if mask else 0
        return self._kv.store.attend(self._layer, token, self._kv.plan, scale, window, turn)


@dataclass(frozen=True, slots=True)
class _New:
    """Each row's new key and value, which attention takes from here and puts into the pages."""

    layer: _Layer
    keys: mx.array
    values: mx.array

    def attend(self, queries: mx.array, scale: float, mask: Window | None) -> mx.array:
        return self.layer.attend_turned((queries, self.keys, self.values), scale, mask, None)


def form_of(model: Any, sample: Sequence[Any]) -> Form | None:
    """What the model's pages look like, or None where pages are not for it; `sample` is its caches behind one token."""
    if not all(type(cache) is KVCache and cache.keys is not None for cache in sample):
        return None
    shapes = {(one.shape[1], one.shape[3], one.dtype) for cache in sample for one in (cache.keys, cache.values)}
    if len(shapes) != 1:
        return None
    ((kv_heads, head_size, dtype),) = shapes
    queries = _queries(model, len(sample), head_size) // kv_heads
    suits = head_size in HEAD_SIZES and 1 <= queries <= MOST_QUERIES
    return Form(len(sample), kv_heads, head_size, queries, dtype) if suits else None


def _queries(model: Any, layers: int, head_size: int) -> int:
    """Heads of each layer, or 0 where it does not attend as a kernel of ours can: shown by a step that nobody evaluates."""
    attention.route(model)
    asked = [_Asked(head_size) for _ in range(layers)]
    try:
        model(mx.array([[0]]), cache=asked)
    except (AttributeError, IndexError, NotImplementedError, TypeError, ValueError):
        # What a model's own code raises on a cache that it does not expect.
        return 0
    heads = {layer.heads for layer in asked}
    return heads.pop() if len(heads) == 1 else 0


class _Asked:
    """A layer's cache that holds nothing, and what was asked of it."""

    def __init__(self, head_size: int) -> None:
        self._head_size = head_size
        self.offset = mx.array([0])
        self.heads = 0

    def make_mask(self, _tokens: int, return_array: bool = False, window_size: int | None = None) -> Window | None:
        return stand_in(return_array=return_array, window=window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[_Asked, mx.array]:
        return self, values

    def attend(self, queries: mx.array, _scale: float, _mask: Any) -> mx.array:
        if queries.shape[3] != self._head_size or self.heads:
            raise ValueError("its queries are not for these keys, or it asks twice")
        self.heads = queries.shape[1]
        return queries
