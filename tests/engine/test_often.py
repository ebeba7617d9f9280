"""What comes often is compiled, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

from mlxrpc_server.engine.often import MOST, OFTEN, Often


class Compiler:
    """Marks what was compiled, and counts."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, function: Callable[[int], int]) -> Callable[[int], int]:
        self.times += 1
        return lambda value: function(value) + 1000


def test_a_key_that_comes_often_is_compiled_once() -> None:
    compiler = Compiler()
    doubled = Often(lambda value: 2 * value, compiler)
    assert [doubled("key", 1) for _ in range(OFTEN)] == [2] * OFTEN
    assert [doubled("key", 1) for _ in range(3)] == [1002] * 3
    assert compiler.times == 1


def test_keys_that_come_now_and_then_are_never_compiled() -> None:
    compiler = Compiler()
    doubled = Often(lambda value: 2 * value, compiler)
    for key in range(40):
        for _ in range(OFTEN):
            doubled(key, 1)
    assert compiler.times == 0


def test_so_many_keys_are_kept_and_no_more() -> None:
    compiler = Compiler()
    doubled = Often(lambda value: 2 * value, compiler)
    for _ in range(OFTEN + 1):
        doubled("first", 1)
    for key in range(MOST - 1):
        doubled(key, 1)
    assert doubled("first", 1) == 1002
    doubled("one more", 1)
    assert doubled("first", 1) == 2
