"""Draws the next token of every row in one vectorised call.

A draw is a pure function of the row's logits, its seed, the absolute position of the token drawn and the token's
id: not of the row's neighbours, nor of its place among them. What a seed gives is promised to callers, so the
noise below must never change.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlxrpc_server.engine.penalties import History, Penalties
from mlxrpc_server.types import Sampling

_NOT_ONE = 1.0 - 2.0**-24
"""The largest float32 below 1: keeps the noise finite."""

_COLDEST = 1e-6
"""Temperatures between 0 and this draw as this: logits over less would leave float32's range."""


class Draws:
    """The rows' sampling as columns. Rebuilt when a row joins or leaves, not at every step.

    Histories matter to rows with penalties alone. `unread` has one token for each row that its history lacks yet,
    or -1; tokens drawn here need no telling.
    """

    def __init__(
        self, rows: Sequence[Sampling], histories: Sequence[History] = (), unread: mx.array | None = None
    ) -> None:
        self._penalties = Penalties(rows, histories, unread)
        self._greedy = all(row.temperature == 0 for row in rows)
        self._mixed = not self._greedy and any(row.temperature == 0 for row in rows)
        sampled = [row for row in rows if row.temperature > 0]
        self._any_top_p = any(row.top_p < 1 for row in sampled)
        self._any_min_p = any(row.min_p > 0 for row in sampled)
        self._any_top_k = any(row.top_k > 0 for row in sampled)
        self._temperature = _column([max(row.temperature, _COLDEST) for row in rows])
        self._is_greedy = mx.array([row.temperature == 0 for row in rows])[:, None]
        self._top_p = _column([row.top_p for row in rows])
        self._min_p = _column([row.min_p for row in rows])
        self._top_k = mx.array([row.top_k for row in rows], dtype=mx.int32)[:, None]
        self._seed_low = mx.array([row.seed & 0xFFFFFFFF for row in rows], dtype=mx.uint32)
        self._seed_high = mx.array([row.seed >> 32 for row in rows], dtype=mx.uint32)

    def draw(self, logits: mx.array, positions: mx.array) -> mx.array:
        """One token for each row of `logits`; `positions` are those of the tokens drawn."""
        tokens = mx.argmax(self.scores(logits, positions), axis=-1)
        self._penalties.push(tokens)
        return tokens

    def scores(self, logits: mx.array, positions: mx.array) -> mx.array:
        """What `draw` takes the largest of. Tests compare these where two candidates nearly tie."""
        if self._penalties:
            logits = self._penalties.apply(logits.astype(mx.float32))
        if self._greedy:
            return logits
        logits = logits.astype(mx.float32)
        kept = self._filtered(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        noise = gumbel(self._seed_low, self._seed_high, positions, logits.shape[-1])
        scores = kept / self._temperature + noise
        return mx.where(self._is_greedy, logits, scores) if self._mixed else scores

    def _filtered(self, logprobs: mx.array) -> mx.array:
        """top_p, min_p, top_k in this order, each on what the one before it left, before temperature."""
        if self._any_top_p:
            logprobs = _keep_top_p(logprobs, self._top_p)
        if self._any_min_p:
            logprobs = _keep_min_p(logprobs, self._min_p)
        if self._any_top_k:
            logprobs = _keep_top_k(logprobs, self._top_k)
        return logprobs


def gumbel(seed_low: mx.array, seed_high: mx.array, positions: mx.array, width: int) -> mx.array:
    """Standard Gumbel noise, [rows, width], from a hash of (seed, position, token id)."""
    first = _row_key(seed_low, seed_high, positions, 0x9E3779B9)
    second = _row_key(seed_low, seed_high, positions, 0xC2B2AE35)
    token = mx.arange(width, dtype=mx.uint32) * mx.array(0x85EBCA6B, mx.uint32)
    bits = _mixed(_mixed(first[:, None] ^ token[None, :]) + second[:, None])
    # The small end of the uniform decides the large end of the noise, where the winners are: float32 is fine there.
    uniform = mx.minimum((bits.astype(mx.float32) + 0.5) * 2.0**-32, _NOT_ONE)
    return -mx.log(-mx.log1p(-uniform))


def _row_key(seed_low: mx.array, seed_high: mx.array, positions: mx.array, salt: int) -> mx.array:
    """Half of a row's 64-bit key: with 32 bits alone, two positions of a long text would share their noise too often."""
    key = _mixed(seed_low ^ mx.array(salt, mx.uint32))
    key = _mixed(key ^ seed_high)
    return _mixed(key ^ positions.astype(mx.uint32))


def _mixed(bits: mx.array) -> mx.array:
    """A 32-bit finaliser: every input bit flips about half of the output bits."""
    bits = (bits ^ (bits >> 16)) * mx.array(0x7FEB352D, mx.uint32)
    bits = (bits ^ (bits >> 15)) * mx.array(0x846CA68B, mx.uint32)
    return bits ^ (bits >> 16)


def _keep_top_p(logprobs: mx.array, top_p: mx.array) -> mx.array:
    """The smallest set of likeliest tokens whose mass reaches top_p; ties with its last member stay."""
    ordered = -mx.sort(-logprobs, axis=-1)
    probabilities = mx.exp(ordered)
    before = mx.cumsum(probabilities, axis=-1) - probabilities
    total = before[:, -1:] + probabilities[:, -1:]
    kept = mx.maximum((before < top_p * total).sum(axis=-1, keepdims=True), 1)
    threshold = mx.take_along_axis(ordered, kept - 1, axis=-1)
    return mx.where((logprobs >= threshold) | (top_p >= 1), logprobs, -mx.inf)


def _keep_min_p(logprobs: mx.array, min_p: mx.array) -> mx.array:
    """Tokens at least min_p times as likely as the likeliest."""
    threshold = mx.max(logprobs, axis=-1, keepdims=True) + mx.log(min_p)
    return mx.where(logprobs >= threshold, logprobs, -mx.inf)


def _keep_top_k(logprobs: mx.array, top_k: mx.array) -> mx.array:
    """The k likeliest tokens; of equals at the edge, those with the lower ids. 0, or the vocabulary and more, is off."""
    width = logprobs.shape[-1]
    order = mx.argsort(-logprobs, axis=-1)
    ranks = mx.put_along_axis(mx.zeros_like(order), order, mx.arange(width, dtype=order.dtype)[None, :], axis=-1)
    off = (top_k <= 0) | (top_k >= width)
    return mx.where((ranks < top_k.astype(ranks.dtype)) | off, logprobs, -mx.inf)


def _column(values: Sequence[float]) -> mx.array:
    return mx.array(list(values), dtype=mx.float32)[:, None]
