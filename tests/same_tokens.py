"""Whether two runs gave the same tokens: equal, or parted by a near-tie that the logits' last bits may decide.

At the first difference the context is fed to the model in one pass, and both candidates must be among those that the
sampler could have taken within the dtype's tolerance. Near-ties are counted and printed: more than a few are no chance.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import load_model

from mlxrpc_server.engine.load import TOLERANCE
from mlxrpc_server.engine.penalties import History
from mlxrpc_server.engine.sampling import Draws
from mlxrpc_server.types import Sampling
from tests import noise_model

EDGE = 1e-4
"""How far a filter's own value is moved to find what stands at its edge."""


@dataclass(frozen=True, slots=True)
class NearTie:
    place: int
    """The first place, counted in tokens produced, at which the two differ."""
    tokens: tuple[int, int]
    shortfalls: tuple[float, float]
    """How far each scored below the best."""


class Judge:
    """Holds the model. One for a test run is enough: `judge()`."""

    def __init__(self, model: Any) -> None:
        self.near_ties: list[NearTie] = []
        self.model = model

    def check(self, prompt: Sequence[int], sampling: Sampling, expected: Sequence[int], actual: Sequence[int]) -> None:
        """Fails unless both are the same tokens; whatever follows a near-tie is free."""
        if list(expected) == list(actual):
            return
        place = _first_difference(expected, actual)
        if place is None:
            raise AssertionError(f"the same tokens, but {len(expected)} of them against {len(actual)}")
        history = History(prompt, expected[:place])
        tie = self._near_tie(history, sampling, place, (expected[place], actual[place]))
        self.near_ties.append(tie)
        print(f"near-tie {len(self.near_ties)}: {tie}")  # noqa: T201

    def _near_tie(self, history: History, sampling: Sampling, place: int, tokens: tuple[int, int]) -> NearTie:
        logits = self.model(mx.array([[*history.prompt, *history.produced]]))[:, -1]
        tolerance = TOLERANCE[logits.dtype] * float(mx.abs(logits).max()) / (sampling.temperature or 1.0)
        shortfalls = tuple(_shortfall(logits, sampling, history, token) for token in tokens)
        if max(shortfalls) > tolerance:
            raise AssertionError(
                f"token {place} is {tokens[1]} instead of {tokens[0]}, and that is no near-tie:"
                f" they score {shortfalls} below the best, {tolerance:.2g} would pass"
            )
        return NearTie(place, tokens, (shortfalls[0], shortfalls[1]))


@functools.cache
def judge(folder: Path | None = None) -> Judge:
    """For the model in the folder; by default the noise model."""
    if mx.default_device() == mx.Device(mx.cpu):
        mx.disable_compile()  # as the worker does there
    model, _config = load_model(folder or noise_model.folder())
    return Judge(model)


def assert_same_tokens(
    prompt: Sequence[int],
    sampling: Sampling,
    expected: Sequence[int],
    actual: Sequence[int],
    folder: Path | None = None,
) -> None:
    judge(folder).check(prompt, sampling, expected, actual)


def _first_difference(expected: Sequence[int], actual: Sequence[int]) -> int | None:
    pairs = enumerate(zip(expected, actual, strict=False))
    return next((place for place, (one, other) in pairs if one != other), None)


def _shortfall(logits: mx.array, sampling: Sampling, history: History, token: int) -> float:
    """How far the token scores below the best, with the filters as they are or moved by an edge, whichever is kindest."""
    return min(_below_best(logits, variant, history, token) for variant in _variants(sampling))


def _below_best(logits: mx.array, sampling: Sampling, history: History, token: int) -> float:
    position = len(history.prompt) + len(history.produced)
    scores = Draws([sampling], [history]).scores(logits, mx.array([position], dtype=mx.uint32))[0]
    return float(scores.max() - scores[token])


def _variants(sampling: Sampling) -> Iterator[Sampling]:
    yield sampling
    if sampling.temperature == 0:
        return
    for move in (-EDGE, EDGE):
        yield replace(
            sampling,
            top_p=min(1.0, sampling.top_p + move) if sampling.top_p < 1 else 1.0,
            min_p=sampling.min_p * (1 - move),
            top_k=max(1, sampling.top_k + (1 if move > 0 else -1)) if sampling.top_k else 0,
        )
