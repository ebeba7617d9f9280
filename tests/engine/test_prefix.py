"""What is found of what was kept, what goes when there is too much, and that tokens come out the same with and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrpc_server.engine.prefix import BLOCK, LARGEST, NODE_BYTES, Kept, Prefix, Prefixes

PIECE = 10_000
"""Bytes of each thing kept."""


@dataclass
class Store:
    """A tree of prefixes, and all that it was given."""

    whole: bool = False
    budget: int = 1 << 40
    given: list[Kept] = field(default_factory=list)
    dropped: list[Kept] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prefixes = Prefixes(self.budget, whole=self.whole, drop=self.dropped.append)

    def keep(self, tokens: Sequence[int], tenant: str = "", nbytes: int = PIECE) -> list[Kept]:
        def take(start: int, end: int) -> Kept:
            self.given.append(Kept((tenant, list(tokens[start:end])), nbytes))
            return self.given[-1]

        return self.prefixes.keep(tenant, tokens, take)

    def find(self, tokens: Sequence[int], tenant: str = "") -> Prefix:
        """Checked: what was found is the tokens' own beginning, and the tenant's."""
        found = self.prefixes.find(tenant, tokens)
        assert [token for kept in found.kept for token in kept.content[1]] == list(tokens[: found.length])
        assert {kept.content[0] for kept in found.kept} <= {tenant}
        return found


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_where_taking_raises_all_that_was_taken_is_given_back(taken: int, whole: bool) -> None:
    store, tokens = Store(whole=whole), talk((1, 4 * BLOCK))

    def take(start: int, end: int) -> Kept:
        if whole or len(store.given) == taken:
            raise RuntimeError("out of memory")
        store.given.append(Kept(("", tokens[start:end]), PIECE))
        return store.given[-1]

    with pytest.raises(RuntimeError):
        store.prefixes.keep("", tokens, take)
    store.prefixes.clear()
    assert len(store.dropped) == len(store.given)
    assert store.prefixes.nbytes == 0
    assert store.find(tokens).length == 0


def talk(*turns: tuple[int, int]) -> list[int]:
    """So many tokens of each kind."""
    return [token for token, count in turns for _ in range(count)]


def test_what_was_kept_is_found_up_to_where_another_row_differs() -> None:
    store = Store()
    store.keep(talk((1, 200), (2, 200)))
    assert store.find(talk((1, 200), (3, 200))).length == 200 // BLOCK * BLOCK
    assert store.find(talk((1, 200), (2, 300))).length == 400 // BLOCK * BLOCK
    assert store.find(talk((4, 300))).length == 0


def test_what_rows_share_is_kept_once() -> None:
    store = Store()
    assert len(store.keep(talk((1, 4 * BLOCK)))) == 4
    assert len(store.keep(talk((1, 3 * BLOCK), (2, 2 * BLOCK)))) == 2
    assert store.keep(talk((1, 4 * BLOCK))) == []


def test_tenants_do_not_find_what_others_keep() -> None:
    store = Store()
    store.keep(talk((1, 200)), tenant="a")
    assert store.find(talk((1, 200)), tenant="b").length == 0
    assert store.find(talk((1, 200))).length == 0
    assert store.find(talk((1, 200)), tenant="a").length == 192


@pytest.mark.parametrize("whole", [False, True], ids=["in blocks", "whole"])
def test_what_is_shorter_than_a_block_is_not_kept(whole: bool) -> None:
    store = Store(whole)
    assert store.keep([1] * (BLOCK - 1)) == []
    assert store.prefixes.nbytes == 0


@pytest.mark.parametrize("whole", [False, True], ids=["in blocks", "whole"])
def test_nothing_is_kept_where_there_is_no_budget(whole: bool) -> None:
    store = Store(whole, budget=0)
    assert (store.keep([1] * 500), store.given) == ([], [])


def test_a_state_is_found_at_its_own_end_only() -> None:
    store = Store(whole=True)
    store.keep([1] * 150)
    assert store.find([1] * 149).length == 0
    assert store.find([1] * 150).length == 150
    assert store.find(talk((1, 151), (2, 500))).length == 150
    assert store.find(talk((1, 149), (2, 500))).length == 0


def test_the_longest_of_many_states_is_found() -> None:
    store = Store(whole=True)
    for length in (100, 128, 130, 135, 300):
        store.keep([1] * length)
    assert [store.find([1] * length).length for length in (127, 129, 131, 290, 1000)] == [100, 128, 130, 135, 300]


def test_a_place_where_rows_part_is_known_before_anything_is_kept_there() -> None:
    store = Store(whole=True)
    store.keep(talk((1, 3 * BLOCK), (2, 100)))
    found = store.find(talk((1, 3 * BLOCK), (3, 100)))
    assert (found.length, found.known) == (0, 3 * BLOCK)


def test_what_was_used_last_stays_longest() -> None:
    store = Store(budget=8 * (PIECE + NODE_BYTES))
    old, new = talk((1, 3 * BLOCK)), talk((2, 3 * BLOCK))
    store.keep(old)
    store.keep(new)
    store.find(old)
    store.keep(talk((3, 3 * BLOCK)))
    assert (store.find(old).length, store.find(new).length) == (3 * BLOCK, 1 * BLOCK)


def test_a_shared_beginning_outlives_the_branches_behind_it() -> None:
    store = Store(budget=8 * (PIECE + NODE_BYTES))
    shared = talk((1, 2 * BLOCK))
    for branch in range(2, 20):
        store.keep([*shared, *talk((branch, 2 * BLOCK))])
        assert store.find([*shared, 0]).length == 2 * BLOCK


def test_of_a_row_above_half_the_budget_the_beginning_is_kept() -> None:
    store = Store(budget=20 * PIECE)
    store.keep([1] * 2 * BLOCK)
    store.keep([2] * 100 * BLOCK)
    assert store.find([2] * 100 * BLOCK).length == LARGEST * 20 * BLOCK
    assert store.find([1] * 2 * BLOCK).length == 2 * BLOCK
    assert len(store.dropped) == 1


def test_a_state_above_half_the_budget_is_not_kept() -> None:
    store = Store(whole=True, budget=100 * PIECE)
    store.keep([1] * 100)
    assert store.keep([2] * 100, nbytes=51 * PIECE) == []
    assert store.find([2] * 100).length == 0
    assert store.find([1] * 100).length == 100
    assert store.dropped == store.given[1:]


def test_rows_of_which_nothing_is_kept_cost_no_memory_in_the_end() -> None:
    store = Store(whole=True, budget=100 * PIECE)
    for number in range(2000):
        store.keep([number] * 100, nbytes=51 * PIECE)
    assert store.prefixes.nbytes <= store.budget


def test_given_back_is_everything_in_the_end() -> None:
    store = Store()
    store.keep(talk((1, 200), (2, 200)), tenant="a")
    store.keep(talk((1, 200), (3, 200)))
    while store.prefixes.give_back():
        pass
    assert store.prefixes.nbytes == 0
    assert len(store.dropped) == len(store.given)
    assert store.find(talk((1, 200))).length == 0


turns = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 150)), min_size=1, max_size=4)
rows = st.tuples(st.sampled_from(["", "a", "b"]), turns)


@settings(deadline=None)
@given(st.lists(rows, max_size=12), rows, st.booleans())
def test_the_longest_beginning_that_any_row_left_is_found(
    kept: list[tuple[str, list[tuple[int, int]]]], sought: tuple[str, list[tuple[int, int]]], whole: bool
) -> None:
    store = Store(whole)
    for tenant, row in kept:
        store.keep(talk(*row), tenant)
    tenant, tokens = sought[0], talk(*sought[1])
    others = [talk(*row) for other, row in kept if other == tenant]
    if whole:
        lengths = [len(other) for other in others if len(other) >= BLOCK and tokens[: len(other)] == other]
        expected = max(lengths, default=0)
        (contents,) = [[kept.content[1] for kept in store.prefixes.find(tenant, tokens).kept]]
        assert contents == ([tokens[:expected]] if expected else [])
    else:
        expected = max((common(other, tokens) // BLOCK * BLOCK for other in others), default=0)
    assert store.find(tokens, tenant).length == expected


def common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


@settings(deadline=None)
@given(st.lists(st.tuples(rows, st.booleans()), max_size=30), st.integers(0, 12), st.booleans())
def test_never_more_is_held_than_the_budget_allows(
    steps: list[tuple[tuple[str, list[tuple[int, int]]], bool]], pieces: int, whole: bool
) -> None:
    store = Store(whole, budget=pieces * (PIECE + NODE_BYTES))
    for (tenant, row), find in steps:
        if find:
            assert not {id(kept) for kept in store.find(talk(*row), tenant).kept} & set(map(id, store.dropped))
        else:
            store.keep(talk(*row), tenant)
        assert store.prefixes.nbytes <= store.budget
        assert (len(store.given) - len(store.dropped)) * PIECE <= store.prefixes.nbytes
    store.prefixes.clear()
    assert store.prefixes.nbytes == 0
    assert sorted(map(id, store.dropped)) == sorted(map(id, store.given))
