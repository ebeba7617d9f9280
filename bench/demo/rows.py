"""Batches of token rows, composed on demand: batch `number` is the same on every machine.

A row holds whole conversations one after another, END_OF_TEXT between them. The top bit of an entry marks a token
that the model learns to write. Most batches have short rows; some have long ones, for recall.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, groupby
from multiprocessing.pool import Pool
from pathlib import Path
from random import Random
from threading import Event, Semaphore

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from demo.conversation import Conversation, pieces
from demo.mixture import conversation, long_conversation
from demo.tokenizer import END_OF_TEXT_ID

LEARNED_BIT = 0x8000
SHORT, LONG = 1_024, 4_096
LONG_PLACES = frozenset({2, 6, 9})
"""Of ten batches in a row, those with long rows."""
MISSES = 30
Row = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Recipe:
    tokenizer: Path
    seed: int
    tokens: int
    """In one batch."""
    ahead: int = 64
    """Batches composed before they are needed."""


def batch(recipe: Recipe, number: int) -> Row:
    """Rows of one length, each with one token more than the model reads at once."""
    draw = Random(f"{recipe.seed} {number}")
    length = LONG if number % 10 in LONG_PLACES and recipe.tokens >= LONG else SHORT
    rows: list[list[int]] = [[] for _ in range(max(1, recipe.tokens // length))]
    tokenizer, misses, limit = opened(recipe.tokenizer), 0, length + 1
    while misses < MISSES:
        made = encoded(tokenizer, composed(draw, length))
        row = next((row for row in rows if len(row) + len(made) <= limit), None)
        if row is None:
            misses += 1
        else:
            row += made
    return np.array([row + [END_OF_TEXT_ID] * (limit - len(row)) for row in rows], dtype=np.uint16)


def composed(draw: Random, length: int) -> Conversation:
    if length == SHORT or draw.random() < 0.25:
        return conversation(draw)
    return long_conversation(draw, draw.randint(1_500, 10_000))


def encoded(tokenizer: Tokenizer, made: Conversation) -> list[int]:
    runs = [
        (learned, "".join(piece.text for piece in run))
        for learned, run in groupby(pieces(made), lambda piece: piece.learned)
    ]
    encodings = tokenizer.encode_batch_fast([text for _, text in runs], add_special_tokens=False)
    ids: list[int] = []
    for (learned, _), encoding in zip(runs, encodings, strict=True):
        ids += [token | LEARNED_BIT for token in encoding.ids] if learned else encoding.ids
    return [*ids, END_OF_TEXT_ID]


_opened: dict[Path, Tokenizer] = {}


def opened(path: Path) -> Tokenizer:
    if path not in _opened:
        _opened[path] = Tokenizer.from_file(str(path))
    return _opened[path]


def _task(task: tuple[Recipe, int]) -> Row:
    return batch(*task)


@contextmanager
def stream(recipe: Recipe, first: int, processes: int) -> Iterator[Iterator[Row]]:
    """Batches from `first` on, in order, composed by other processes a little ahead of time."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    room, closed = Semaphore(recipe.ahead), Event()

    def tasks() -> Iterator[tuple[Recipe, int]]:
        for number in count(first):
            room.acquire()
            if closed.is_set():
                return
            yield recipe, number

    def batches(pool: Pool) -> Iterator[Row]:
        for rows in pool.imap(_task, tasks()):
            room.release()
            yield rows

    pool = multiprocessing.get_context("spawn").Pool(processes)
    try:
        yield batches(pool)
    finally:
        closed.set()
        room.release()  # the feeder may be waiting for it
        pool.terminate()
        pool.join()
