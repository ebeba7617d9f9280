"""The noise that draws take: a hash of (seed, position, token id), as uniform and as Gumbel's.

What a seed gives is promised to callers, so none of this must ever change. `candidates` and kernels/draw.cu compute the
same in their own ways.
"""

from __future__ import annotations

import mlx.core as mx

FIRST, SECOND = 0x9E3779B9, 0xC2B2AE35
"""Salts of the two halves of a row's key."""

CHANCE = 0x27D4EB2F
"""And of the number that is the row's alone."""

TOKEN = 0x85EBCA6B
"""Spreads token ids over all bits."""

MIXERS = 0x7FEB352D, 0x846CA68B

NOT_ONE = 1.0 - 2.0**-24
"""The largest float32 below 1: keeps the noise finite."""


def gumbel(seed_low: mx.array, seed_high: mx.array, positions: mx.array, width: int) -> mx.array:
    """Standard Gumbel noise, [rows, width], from a hash of (seed, position, token id)."""
    first = _row_key(seed_low, seed_high, positions, FIRST)
    second = _row_key(seed_low, seed_high, positions, SECOND)
    token = mx.arange(width, dtype=mx.uint32) * mx.array(TOKEN, mx.uint32)
    bits = _mixed(_mixed(first[:, None] ^ token[None, :]) + second[:, None])
    # The small end of the uniform decides the large end of the noise, where the winners are: float32 is fine there.
    return -mx.log(-mx.log1p(-_uniform(bits)))


def chance(seed_low: mx.array, seed_high: mx.array, positions: mx.array) -> mx.array:
    """A number between 0 and 1 for each row, from a hash of (seed, position)."""
    return _uniform(_row_key(seed_low, seed_high, positions, CHANCE))


def _uniform(bits: mx.array) -> mx.array:
    return mx.minimum((bits.astype(mx.float32) + 0.5) * 2.0**-32, NOT_ONE)


def _row_key(seed_low: mx.array, seed_high: mx.array, positions: mx.array, salt: int) -> mx.array:
    """Half of a row's 64-bit key: with 32 bits alone, two positions of a long text would share their noise too often."""
    key = _mixed(seed_low ^ mx.array(salt, mx.uint32))
    key = _mixed(key ^ seed_high)
    return _mixed(key ^ positions.astype(mx.uint32))


def _mixed(bits: mx.array) -> mx.array:
    """A 32-bit finaliser: every input bit flips about half of the output bits."""
    bits = (bits ^ (bits >> 16)) * mx.array(MIXERS[0], mx.uint32)
    bits = (bits ^ (bits >> 15)) * mx.array(MIXERS[1], mx.uint32)
    return bits ^ (bits >> 16)
