"""The engine in this process: a model as a worker loads it, and rows that decode, with no server around them.

Knows nothing of what is measured.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterable
from pathlib import Path

from mlxrpc_server import demo
from mlxrpc_server.engine import device, load
from mlxrpc_server.engine.batch import Batch
from mlxrpc_server.engine.constraint import Guide
from mlxrpc_server.engine.load import Loaded
from mlxrpc_server.engine.room import SHARE, Room
from mlxrpc_server.engine.row import Row
from mlxrpc_server.types import RowId, Sampling

PREFILL_TOKENS = 8192
"""Of one step, at most: the server's default."""

MOST_STEPS = 20_000
"""Within which rows decode that were asked for. More than any model needs."""


def arguments(description: str | None) -> argparse.Namespace:
    """Of which model, and how many rows."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", nargs="?", type=Path, default=demo.source())
    parser.add_argument("--rows", type=int, default=32)
    return parser.parse_args()


def loaded(folder: Path, rows: int) -> Loaded:
    """For so many rows at most."""
    blas = device.prepare()
    room = Room(rows=rows, bytes=int(SHARE * device.memory_bytes()))
    model = load.load(folder, lambda _stage: None, room, blas=blas)
    gc.collect()
    gc.freeze()
    return model


class Decoding:
    """Rows that decode together, some steps at a time."""

    def __init__(self, model: Loaded, rows: int) -> None:
        self.batch = Batch(model.model, model.kv, max_rows=rows, prefill_tokens=PREFILL_TOKENS, clock=time.perf_counter)
        self._rows: list[Row] = []

    @property
    def rows(self) -> int:
        return len(self._rows)

    @property
    def tokens(self) -> int:
        """Whose keys and values are held."""
        return sum(row.cached for row in self._rows)

    def bring(self, rows: Iterable[Row]) -> None:
        """Until each of them has a token."""
        for row in rows:
            self.batch.submit(row)
            self._rows.append(row)
        for _ in range(MOST_STEPS):
            if all(row.produced for row in self._rows):
                return
            self.batch.step()
        raise TimeoutError(f"{len(self._rows)} rows do not all decode after {MOST_STEPS:,} steps")

    def steps(self, count: int) -> list[float]:
        """Seconds of each."""
        return [self._seconds() for _ in range(count)]

    def dismiss(self, count: int | None = None) -> None:
        """The last so many, or all."""
        going = self._rows[-count:] if count else self._rows[:]
        del self._rows[len(self._rows) - len(going) :]
        for row in going:
            self.batch.cancel(row.id)
        self.batch.step()

    def _seconds(self) -> float:
        begun = time.perf_counter()
        self.batch.step()
        return time.perf_counter() - begun


def made_up(number: int, tokens: int, *, logprobs: int = -1, guide: Guide | None = None) -> Row:
    """A row that samples and comes to no end by itself, from ids that every vocabulary has."""
    prompt = [(7919 * number + 31 * place) % 256 for place in range(tokens)]
    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=0, min_p=0.0, seed=number)
    return Row(RowId(number), prompt, [], sampling, 100_000, frozenset(), logprobs=logprobs, guide=guide)
