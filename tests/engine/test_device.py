"""What a process may keep of memory that it does not use."""

from __future__ import annotations

import mlx.core as mx

from mlxrpc_server.engine import device

MIB = 1 << 20


def cached(arrays: int) -> int:
    """Bytes that MLX keeps of so many arrays of a MiB each, which are gone."""
    mx.clear_cache()
    limit = mx.set_cache_limit(1 << 30)
    mx.eval([mx.zeros((MIB // 4,)) + number for number in range(arrays)])
    mx.set_cache_limit(limit)
    return mx.get_cache_memory()


def test_as_much_is_kept_as_may_be() -> None:
    before = cached(16)
    device.keep_cached(before // 2)
    assert before // 4 <= mx.get_cache_memory() <= before // 2


def test_where_less_is_kept_nothing_goes() -> None:
    before = cached(4)
    device.keep_cached(2 * before)
    assert mx.get_cache_memory() == before


def test_the_limit_stays_what_it_was() -> None:
    before = mx.set_cache_limit(123 * MIB)
    cached(8)
    device.keep_cached(MIB)
    assert mx.set_cache_limit(before) == 123 * MIB
