"""Tokens in detail: the bytes that each stands for, how likely it was, and what else was likely at its place.

Knows a vocabulary and which tokens say nothing in this request; neither models nor protos.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import NamedTuple

from mlxrpc_server.types import LogProbs
from mlxrpc_server.vocabulary import Vocabulary


class Alternative(NamedTuple):
    """A token that could have been drawn."""

    id: int
    logprob: float
    piece: bytes


class Detail(NamedTuple):
    id: int
    piece: bytes
    logprob: float | None = None
    """None where nobody asked."""
    alternatives: tuple[Alternative, ...] = ()


class Details:
    """Of a generation's tokens, in their order. Takes out of `logprobs` what it tells."""

    def __init__(self, vocabulary: Vocabulary, silent: Collection[int], logprobs: deque[LogProbs] | None) -> None:
        self._vocabulary = vocabulary
        self._silent = silent
        self._logprobs = logprobs

    def of(self, token_ids: Sequence[int]) -> tuple[Detail, ...]:
        return tuple([self._detail(token) for token in token_ids])

    def _detail(self, token: int) -> Detail:
        if self._logprobs is None:
            return Detail(token, self._piece(token))
        its = self._logprobs.popleft()
        likely = zip(its.top_ids, its.top, strict=True)
        alternatives = tuple([Alternative(other, logprob, self._piece(other)) for other, logprob in likely])
        return Detail(token, self._piece(token), its.chosen, alternatives)

    def _piece(self, token: int) -> bytes:
        """What ends a generation says nothing, whatever it spells."""
        return b"" if token in self._silent else self._vocabulary.piece(token)
