"""Rows under constraints: what they say is what the grammar allows, whoever runs beside them and whatever happens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrpc_server.constraints import fault, grammar
from mlxrpc_server.engine import constraint, wire
from mlxrpc_server.engine.constraint import Broken, Grammars
from mlxrpc_server.engine.effort import SHARE
from mlxrpc_server.engine.masks import Masks, Reader
from mlxrpc_server.engine.wire import Left
from mlxrpc_server.matchers import TOO_LONG
from mlxrpc_server.types import Constraint, ConstraintKind
from tests.engine.bound import (
    ANSWER,
    END,
    MODEL,
    SPELLING,
    THINK,
    allowed,
    begun,
    bound_row,
    costly,
    ids,
    regex,
    run,
    spelled,
    warm,
)
from tests.engine.running import GREEDY, Run, alone, row


@pytest.mark.parametrize("ahead", [False, True])
def test_a_row_says_what_its_grammar_allows_and_ends_with_it(ahead: bool) -> None:
    seen = run(*[bound_row(number, regex("[a-c]{2}-[0-9]{3}")) for number in range(8)], ahead=ahead)
    texts = [spelled(seen.tokens(number)) for number in range(8)]
    assert all(len(text) == 6 and text[2] == "-" and text[3:].isdigit() for text in texts)
    assert len(set(texts)) > 1
    assert all(seen.left(number) == [Left.CONSTRAINT_COMPLETE] for number in range(8))


def test_being_a_step_ahead_changes_no_token() -> None:
    slow, ahead = (
        run(*[bound_row(number, regex("[a-z]{3,9}[0-9]*x")) for number in range(4)], ahead=ahead)
        for ahead in (False, True)
    )
    for number in range(4):
        assert ahead.tokens(number) == slow.tokens(number)
        assert ahead.left(number) == slow.left(number)


@pytest.mark.parametrize("ahead", [False, True])
def test_rows_beside_are_none_the_wiser(ahead: bool) -> None:
    free = [row(number, [6, number], max_tokens=3 + number, sampling=warm(number)) for number in range(10, 16)]
    bound = [bound_row(number, regex(f"[a-f]{{{number},}}z")) for number in range(1, 7)]
    seen = run(*[one for pair in zip(bound, free, strict=True) for one in pair], ahead=ahead)
    for one in free:
        assert seen.tokens(one.id) == alone(MODEL, row(one.id, one.prompt, one.max_tokens, one.sampling))
    for one in bound:
        again = run(bound_row(one.id, regex(f"[a-f]{{{one.id},}}z")))
        assert seen.tokens(one.id) == again.tokens(one.id)


def test_stop_tokens_come_only_where_the_text_may_end() -> None:
    for seed in range(30):
        seen = run(bound_row(seed, regex("a(bc)*d?"), max_tokens=30))
        tokens = seen.tokens(seed)
        said, stopped = (tokens[:-1], True) if tokens[-1] == END else (tokens, False)
        text = spelled(said).removesuffix("d")
        if seen.left(seed) != [Left.LENGTH]:
            assert text == "a" + "bc" * ((len(text) - 1) // 2)
        assert seen.left(seed)[0] in ([Left.STOP_TOKEN] if stopped else [Left.CONSTRAINT_COMPLETE, Left.LENGTH])


def test_a_stop_token_that_spells_something_waits_for_the_end_of_the_text() -> None:
    seen = run(bound_row(1, regex(r"\{\}a*"), stop_ids=ids("}"), sampling=GREEDY))
    assert seen.left(1) == [Left.CONSTRAINT_BROKEN]
    assert spelled(seen.tokens(1)) == "{"
    assert [cause for outcome in seen.outcomes for cause in outcome.causes] == [
        (1, "no token of the model may stand there")
    ]


def test_an_empty_text_is_complete_without_a_token() -> None:
    seen = run(bound_row(1, regex("")))
    assert (seen.tokens(1), seen.left(1)) == ([], [Left.CONSTRAINT_COMPLETE])


def test_a_grammar_that_the_vocabulary_cannot_say_fails_its_row_alone() -> None:
    other = row(2, [6, 7], max_tokens=5)
    seen = run(bound_row(1, regex("[a-c]é")), other, ahead=True)
    assert seen.left(1) == [Left.CONSTRAINT_BROKEN]
    assert seen.tokens(2) == alone(MODEL, row(2, [6, 7], max_tokens=5))


def test_a_text_that_is_whole_at_its_limit_is_complete() -> None:
    assert run(bound_row(1, regex("[a-z]{4}"), max_tokens=4)).left(1) == [Left.CONSTRAINT_COMPLETE]
    assert run(bound_row(1, regex("[a-z]{5}"), max_tokens=4)).left(1) == [Left.LENGTH]


@pytest.mark.parametrize("ahead", [False, True])
def test_a_row_goes_on_behind_any_of_its_tokens(ahead: bool) -> None:
    bound = regex(r'\{"[a-z]{2,8}": [0-9]{1,4}\}')
    whole = run(bound_row(7, bound, max_tokens=60)).tokens(7)
    for cut in range(len(whole)):
        seen = run(bound_row(7, bound, whole[:cut], max_tokens=60), ahead=ahead)
        assert whole[:cut] + seen.tokens(7) == whole
    seen = run(bound_row(7, bound, whole, max_tokens=60))
    assert (seen.tokens(7), seen.left(7)) == ([], [Left.CONSTRAINT_COMPLETE])


def test_a_grammar_that_llguidance_gives_up_takes_too_long() -> None:
    with pytest.raises(Broken, match=TOO_LONG):
        begun(regex("a?" * 2000), ids("aaaa"), costly(0.0))


def test_a_row_whose_tokens_take_too_long_to_follow_leaves_alone_and_with_the_cause() -> None:
    slow, quick = bound_row(1, regex("[a-z]{9,}"), grammars=costly(0.1)), bound_row(2, regex("[a-z]{9}"))
    seen = run(slow, quick)
    assert seen.left(1) == [Left.CONSTRAINT_BROKEN]
    assert [cause for outcome in seen.outcomes for cause in outcome.causes] == [(1, TOO_LONG)]
    assert seen.left(2) == [Left.CONSTRAINT_COMPLETE]


def test_tokens_have_their_share_and_a_text_that_is_whole_needs_no_more() -> None:
    assert not begun(regex("[a-z]*"), ids("a" * 200), costly(1.5 * SHARE)).fault
    assert begun(regex("[a-z]{4}"), ids("abcd"), costly(0.1)).complete
    with pytest.raises(Broken, match=f"at token 3 of those produced before, {TOO_LONG}"):
        begun(regex("[a-z]*"), ids("abcd"), costly(0.1))


def test_tokens_that_cannot_have_been_are_refused() -> None:
    with pytest.raises(Broken, match="at token 1 of those produced before, the text cannot go on"):
        begun(regex("ab"), ids("aa"))
    with pytest.raises(Broken, match="unknown name"):
        begun(wire.Constraint("start: x"))


def test_a_row_that_begins_again_goes_on_from_what_was_read() -> None:
    bound = regex("[a-m]{3,20}[n-z]{3,20}")
    whole = run(bound_row(5, bound, max_tokens=30))
    seen = Run(MODEL, ahead=True)
    seen.batch.submit(bound_row(5, bound, max_tokens=30))
    for _ in range(4):
        seen.step(2)
        seen.outcomes.append(seen.batch.rebuild())
    assert seen.to_end().tokens(5) == whole.tokens(5)
    assert seen.left(5) == whole.left(5)


def test_thinking_is_free_and_the_answer_is_bound() -> None:
    bound = wire.Constraint(regex("yes|no").grammar, [ANSWER])
    seen = run(bound_row(1, bound, max_tokens=900), max_rows=1)
    tokens = seen.tokens(1)
    place = tokens.index(ANSWER)
    assert END not in tokens
    assert spelled(tokens[place + 1 :]) in {"yes", "no"}
    assert seen.left(1) == [Left.CONSTRAINT_COMPLETE]


def test_a_row_may_think_first_and_not_later() -> None:
    bound = wire.Constraint(regex("[ab]{1,9}").grammar, [ANSWER], THINK)
    thinking = begun(bound, [THINK, *ids("c&"), ANSWER, *ids("ab")])
    assert not thinking.free
    with pytest.raises(Broken, match="token 1"):
        begun(bound, [*ids("a"), THINK])
    opening = Masks([Reader(begun(bound), [END])])
    assert allowed(opening) == {*ids("ab"), THINK}
    assert allowed(Masks([Reader(begun(bound, ids("a")), [END])])) == {*ids("ab"), END}


def test_line_breaks_behind_thinking_belong_to_it() -> None:
    grammars = Grammars([b"a", b"b", b"\n", b"\n\n", b"", b"\nb"])
    bound = wire.Constraint(regex("a+").grammar, [4])

    def may_follow(produced: Sequence[int]) -> set[int]:
        return allowed(Masks([Reader(grammars.begin(bound, produced).result(), [])]), 6)

    assert may_follow([1, 4]) == {0, 2, 3}
    assert may_follow([1, 4, 3]) == {0, 2, 3}
    assert may_follow([1, 4, 3, 2]) == {0}
    assert may_follow([1, 4, 3, 0]) == {0}
    grammars.close()


def test_so_many_grammars_are_kept_and_no_more() -> None:
    grammars = Grammars(SPELLING)
    for number in range(constraint.MOST_COMPILED + 3):
        grammars.begin(regex(f"a{{{number}}}"), []).result()
    assert grammars.compiled == constraint.MOST_COMPILED
    grammars.close()


names = st.text("abcxyz", min_size=1, max_size=3)
scalars = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
        st.integers(-99, 99),
        st.integers(0, 50),
    ),
    st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 5)),
    st.builds(
        lambda values: {"enum": values}, st.lists(names | st.integers(0, 9), min_size=1, max_size=3, unique=True)
    ),
    st.just({"type": "string", "pattern": "^[a-c]{1,3}-[0-9]$"}),
    st.builds(lambda value: {"const": value}, names),
)


def holding(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    properties = st.dictionaries(names, inner, max_size=3)
    return st.one_of(
        st.builds(
            lambda items, least, more: {"type": "array", "items": items, "minItems": least, "maxItems": least + more},
            *(inner, st.integers(0, 2), st.integers(0, 2)),
        ),
        st.builds(
            lambda each, every: {
                "type": "object",
                "properties": each,
                "additionalProperties": False,
                "required": [name for place, name in enumerate(each) if every or place % 2],
            },
            *(properties, st.booleans()),
        ),
        st.builds(lambda choices: {"anyOf": choices}, st.lists(inner, min_size=1, max_size=3)),
    )


schemas = st.recursive(scalars, holding, max_leaves=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(schemas, min_size=1, max_size=4), st.integers(0, 2**32), st.booleans())
def test_what_ends_by_itself_is_valid_under_its_schema(asked: list[Any], seed: int, ahead: bool) -> None:
    """Random weights: a worse model there is none."""
    taken = [one for one in asked if not fault(Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(one)))]
    rules = [grammar(Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(one))) for one in taken]
    rows = [
        bound_row(number, wire.Constraint(rule), max_tokens=200, sampling=warm(seed + number))
        for number, rule in enumerate(rules)
    ]
    seen = run(*rows, ahead=ahead)
    for number, one in enumerate(taken):
        if seen.left(number) != [Left.LENGTH]:
            said = [token for token in seen.tokens(number) if token != END]
            jsonschema.Draft202012Validator(one).validate(json.loads(spelled(said)))
