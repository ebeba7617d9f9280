"""What rows leave of themselves for others to begin with, and what they begin with: between the KV, which holds it, and
the prefixes, which know whose it is. Knows nothing of when rows run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlxrpc_server.engine.caches import snapshot
from mlxrpc_server.engine.kv import KV
from mlxrpc_server.engine.prefix import Kept, Prefixes
from mlxrpc_server.engine.row import Row


class Reuse:
    def __init__(self, kv: KV, budget: int) -> None:
        """`budget`: the most bytes that are kept, in the room that rows leave."""
        self._kv = kv
        self._prefixes = Prefixes(budget, whole=kv.whole, drop=kv.drop, step=kv.sizes.beginning)

    @property
    def nbytes(self) -> int:
        return self._prefixes.nbytes

    def held(self, tenant: str, tokens: Sequence[int]) -> int:
        """How many of the first of these need not be computed for a row that begins now."""
        return self._prefixes.find(tenant, tokens[:-1]).length

    def fits(self, lengths: Sequence[int]) -> bool:
        """Where rows find room, it is theirs: what is kept goes as far as it stands in their way."""
        if not self._kv.fits(lengths):
            return False
        while not self._kv.fits(lengths, self._prefixes.nbytes):
            self._prefixes.give_back()
        return True

    def recall(self, row: Row) -> None:
        """A row that has not begun begins behind the longest of its beginnings that is kept."""
        if row.cache or row.bypass:
            return
        prefix = self._prefixes.find(row.tenant, row.context(0, row.length - 1))
        row.kept, row.cached = prefix.kept, prefix.length
        row.halt = prefix.known if self._kv.whole and prefix.known > prefix.length else 0

    def keep(self, row: Row) -> None:
        """Lets others begin where a decoding row has come to, as far as its tokens are known. States cannot be cut back to that."""
        if row.bypass or (self._kv.whole and row.known < row.cached):
            return
        tokens = row.context(0, row.known)
        kept = self._prefixes.keep(row.tenant, tokens, lambda start, end: self._kv.keep(row.id, start, end))
        _evaluate_kept(kept, wait=not self._kv.ahead)

    def keep_halfway(self, row: Row, *, wait: bool) -> None:
        """Where another row parted from it, a third may come by."""
        if row.cached == row.halt:
            state = snapshot(row.cache)
            kept = self._prefixes.keep(row.tenant, row.context(0, row.cached), lambda _start, _end: state)
            _evaluate_kept(kept, wait=wait)

    def clear(self) -> None:
        self._prefixes.clear()


def evaluate(arrays: Any, *, wait: bool) -> None:
    """Without waiting where rows decode ahead: they are not to be kept by the host as well."""
    if wait:
        mx.eval(arrays)
    else:
        mx.async_eval(arrays)  # type: ignore[no-untyped-call]


def _evaluate_kept(kept: Sequence[Kept], *, wait: bool) -> None:
    if lazy := [array for one in kept for array in one.lazy]:
        evaluate(lazy, wait=wait)
