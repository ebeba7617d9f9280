"""What masks let through, and how it is found out whose mask takes long."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlxrpc_server.engine import wire
from mlxrpc_server.engine.masks import LONG, Masks, Reader
from mlxrpc_server.engine.wire import Left
from mlxrpc_server.matchers import TOO_LONG
from tests.engine.bound import ANSWER, END, SPELLING, allowed, begun, costly, ids, regex
from tests.engine.running import HandClock

EXPRESSIONS = ["[a-c]+", "x?", "[0-9]{3}", "(yes|no)+"]


@pytest.mark.parametrize("width", [40, len(SPELLING), 127, 128, 129, 300])
def test_masks_fit_logits_of_any_width(width: int) -> None:
    masks = Masks([Reader(begun(regex("[!-)]|x")), [END])])
    assert allowed(masks, width) == {token for token in ids("!\"#$%&'()x") if token < width}


def test_a_row_that_thinks_may_say_anything_but_its_end() -> None:
    masks = Masks([Reader(begun(wire.Constraint(regex("a").grammar, [ANSWER])), [END])])
    assert allowed(masks) == set(range(len(SPELLING))) - {END}


def test_where_nobody_is_bound_the_logits_stay_as_they_are() -> None:
    logits = mx.zeros((2, 8))
    assert Masks([Reader(None, []), Reader(None, [])]).apply(logits) is logits


def test_where_masks_took_long_each_is_measured_by_itself_next() -> None:
    quick = costly(0.0)
    readers = [Reader(begun(regex(expression), (), quick), [END]) for expression in EXPRESSIONS]
    together = Masks(readers, HandClock(2 * LONG))
    assert all(reader.guide and reader.guide.effort.watched for reader in readers)
    apart = Masks(readers)
    assert not any(reader.guide and reader.guide.effort.watched for reader in readers)
    logits = mx.zeros((len(readers), len(SPELLING)))
    assert mx.array_equal(apart.apply(logits), together.apply(logits))


def test_a_grammar_whose_masks_alone_take_too_long_is_broken() -> None:
    slow, quick = begun(regex("[a-z]*"), (), costly(0.1)), begun(regex("[a-z]*"))
    readers = [Reader(slow, [END]), Reader(quick, [END])]
    for _ in range(3):
        assert not Masks(readers, HandClock(2 * LONG)).ended
        assert not slow.fault
    assert Masks(readers, HandClock(2 * LONG)).ended == {0: Left.CONSTRAINT_BROKEN}
    assert slow.fault == TOO_LONG
