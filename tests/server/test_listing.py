"""Which models a page has, in which order, and which tokens lead to the next one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxrpc.v1.model_pb2 import MODEL_STATE_AVAILABLE, MODEL_STATE_LOADED, Capabilities, Model
from mlxrpc_server.listing import Filter, Page, capability_names, read_token, write_token

QWEN = Model(
    name="qwen3-4b",
    aliases=["small"],
    display_name="Qwen 3",
    description="Writes well.",
    architecture="qwen3",
    state=MODEL_STATE_LOADED,
    weights_bytes=2000,
    capabilities=Capabilities(chat_template=True, batching=True),
)
UNREAD = Model(name="broken", state=MODEL_STATE_AVAILABLE)

FILTERS = st.builds(
    Filter,
    states=st.frozensets(st.integers(1, 5)),
    words=st.frozensets(st.text(max_size=5)),
    max_size_bytes=st.none() | st.integers(0, 2**64 - 1),
    capabilities=st.frozensets(st.sampled_from(["tools", "vision"])),
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


def names(page: Page, models: list[Model]) -> tuple[list[str], str]:
    found, token = page.of(models)
    return [model.name for model in found], token


def all_pages(models: list[Model], size: int, wanted: Filter) -> list[str]:
    found, token = names(Page(size, "", wanted), models)
    while token:
        after = read_token(token, wanted)
        assert after is not None
        page, token = names(Page(size, after, wanted), models)
        found += page
    return found


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(),
        Filter(states=frozenset({MODEL_STATE_LOADED, MODEL_STATE_AVAILABLE})),
        Filter(words=frozenset({"qwen", "4b"})),
        Filter(words=frozenset({"small"})),
        Filter(words=frozenset({"writes"})),
        Filter(max_size_bytes=2000),
        Filter(capabilities=frozenset({"batching", "chat_template"})),
    ],
)
def test_a_filter_takes_what_fulfils_it(wanted: Filter) -> None:
    assert wanted.takes(QWEN)


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(states=frozenset({MODEL_STATE_AVAILABLE})),
        Filter(words=frozenset({"qwen", "8b"})),
        Filter(max_size_bytes=1999),
        Filter(capabilities=frozenset({"batching", "tools"})),
    ],
)
def test_a_filter_leaves_what_does_not(wanted: Filter) -> None:
    assert not wanted.takes(QWEN)


def test_a_model_of_unknown_size_is_not_small() -> None:
    assert not Filter(max_size_bytes=2**63).takes(UNREAD)


@given(st.sets(NAMES, max_size=12), st.integers(1, 5))
def test_pages_together_are_all_models_in_the_order_of_their_names(given_names: set[str], size: int) -> None:
    models = [Model(name=name) for name in given_names]
    assert all_pages(models, size, Filter()) == sorted(given_names)


def test_models_that_come_and_go_between_pages_hide_no_other() -> None:
    models = [Model(name=name) for name in "bdf"]
    _, token = names(Page(2, "", Filter()), models)
    after = read_token(token, Filter())
    assert after == "d"
    changed = [Model(name=name) for name in "abef"]
    assert names(Page(2, after, Filter()), changed) == (["e", "f"], "")


def test_the_last_page_has_no_token_even_when_it_is_full() -> None:
    assert names(Page(2, "", Filter()), [Model(name="a"), Model(name="b")]) == (["a", "b"], "")


@given(NAMES, FILTERS)
def test_a_token_is_read_back_under_the_same_filter(name: str, wanted: Filter) -> None:
    assert read_token(write_token(name, wanted), wanted) == name


@given(NAMES, FILTERS, FILTERS)
def test_a_token_is_refused_under_another_filter(name: str, wanted: Filter, other: Filter) -> None:
    assert (read_token(write_token(name, wanted), other) == name) == (wanted == other)


@given(NAMES, FILTERS, st.data())
def test_a_token_with_one_other_character_is_refused(name: str, wanted: Filter, data: st.DataObject) -> None:
    token = write_token(name, wanted)
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda character: character != token[place]))
    assert read_token(token[:place] + other + token[place + 1 :], wanted) is None


@given(st.text(min_size=1))
def test_any_other_string_is_refused(token: str) -> None:
    assert read_token(token, Filter()) is None


def test_capabilities_are_told_by_their_names() -> None:
    assert capability_names(Capabilities(tools=True, vision=False)) == {"tools"}
