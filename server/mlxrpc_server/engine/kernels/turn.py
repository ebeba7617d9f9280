"""What a model does with its queries and keys before it attends: a norm of each head, and a turn by the token's position.

As a value, for kernels that do it themselves, and in plain operations, which say what those must give.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """Of one layer. Two are the same only where they are one."""

    frequencies: mx.array
    """float32 [dims / 2]: the angle of pair i at position p is p / frequencies[i]."""
    dims: int
    """Numbers of a head that turn, from the first; the others stay."""
    traditional: bool
    """Pairs stand side by side; else they are halves apart."""
    query_norm: mx.array | None = None
    key_norm: mx.array | None = None
    """Weights of an RMS norm over each head, before it turns."""
    eps: float = 0.0

    @property
    def kind(self) -> tuple[int, bool, bool, bool]:
        """What a kernel is compiled for."""
        return self.dims, self.traditional, self.query_norm is not None, self.key_norm is not None

    def suits(self, head_size: int) -> bool:
        """Whether it is one of heads of this size."""
        whole = self.dims % 2 == 0 and 0 < self.dims <= head_size and self.frequencies.shape == (self.dims // 2,)
        norms = [norm for norm in (self.query_norm, self.key_norm) if norm is not None]
        return whole and all(norm.shape == (head_size,) for norm in norms)


def frequencies(dims: int, base: float) -> mx.array:
    """As a model has them that says nothing else."""
    powers: mx.array = base ** (mx.arange(0, dims, 2, dtype=mx.float32) / dims)
    return powers


Token = tuple[mx.array, mx.array, mx.array]
"""Each row's new query, key and value, [rows, heads, 1, size]."""


def turned(token: Token, lengths: mx.array, turn: Turn | None) -> Token:
    """What is attended with, where the rows hold so many tokens already."""
    if turn is None:
        return token
    queries, keys, values = token
    return _turned(queries, turn.query_norm, lengths, turn), _turned(keys, turn.key_norm, lengths, turn), values


def _turned(heads: mx.array, norm: mx.array | None, lengths: mx.array, turn: Turn) -> mx.array:
    normed = heads if norm is None else mx.fast.rms_norm(heads, norm, turn.eps)
    return mx.fast.rope(
        normed,
        turn.dims,
        traditional=turn.traditional,
        base=None,
        scale=1.0,
        offset=lengths,
        freqs=turn.frequencies,
    )
