"""How long a failed model stays failed."""

from __future__ import annotations

from mlxrpc_server.errors import ModelUnusable
from mlxrpc_server.failures import FIRST_WAIT, LONGEST_WAIT, Failures
from mlxrpc_server.types import ModelName

NAME = ModelName("a")
BROKEN = ModelUnusable("a", "its weights are missing")


def test_a_failure_stands_for_its_wait_and_no_longer() -> None:
    failures = Failures()
    assert failures.note(NAME, BROKEN, now=100.0) == FIRST_WAIT
    assert failures.current(NAME, now=100.0 + FIRST_WAIT - 0.01) is BROKEN
    assert failures.current(NAME, now=100.0 + FIRST_WAIT) is None
    assert failures.current(ModelName("b"), now=100.0) is None


def test_each_failure_in_a_row_doubles_the_wait_up_to_the_longest() -> None:
    failures = Failures()
    waits = [failures.note(NAME, BROKEN, now=0.0) for _ in range(20)]
    assert waits[:3] == [FIRST_WAIT, 2 * FIRST_WAIT, 4 * FIRST_WAIT]
    assert max(waits) == waits[-1] == LONGEST_WAIT


def test_a_success_clears_the_failure_and_its_count() -> None:
    failures = Failures()
    failures.note(NAME, BROKEN, now=0.0)
    failures.clear(NAME)
    assert failures.current(NAME, now=0.0) is None
    assert failures.note(NAME, BROKEN, now=0.0) == FIRST_WAIT
