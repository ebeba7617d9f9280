"""The worker's loop over a line that is a list: what it tells, in which order, and when it sleeps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace

import msgspec
import pytest

from mlxrpc_server.constraints import grammar
from mlxrpc_server.engine import wire
from mlxrpc_server.engine.batch import Batch
from mlxrpc_server.engine.constraint import Grammars, Guide
from mlxrpc_server.engine.loop import STATS_EVERY, Loop
from mlxrpc_server.types import Constraint, ConstraintKind, RowId
from tests.engine import tiny
from tests.engine.rows import for_model
from tests.engine.running import GREEDY, HandClock

MODEL = tiny.attention()

Inbox = list[wire.Message]


class Line:
    """Hands out one inbox at each receive, then Shutdown; keeps what it is told."""

    def __init__(self, *inboxes: Inbox) -> None:
        self.waits: list[bool] = []
        self.said: list[wire.Message] = []
        self._inboxes = deque(inboxes)

    def receive(self, *, wait: bool) -> Iterator[wire.Message]:
        self.waits.append(wait)
        yield from self._inboxes.popleft() if self._inboxes else [wire.Shutdown()]

    def send(self, message: wire.Message) -> None:
        self.said.append(message)

    @property
    def steps(self) -> list[wire.Step]:
        return [message for message in self.said if isinstance(message, wire.Step)]

    @property
    def stats(self) -> list[wire.Stats]:
        return [message for message in self.said if isinstance(message, wire.Stats)]


def run(*inboxes: Inbox, clock: Callable[[], float] | None = None) -> Line:
    line = Line(*inboxes)
    batch = Batch(MODEL, for_model(MODEL), max_rows=8, prefill_tokens=64, clock=HandClock())
    Loop(line, batch, tiny.VOCABULARY, clock or HandClock()).run()
    return line


def submit(row: int, prompt: list[int], max_tokens: int = 2, produced: list[int] | None = None) -> wire.Submit:
    return wire.Submit(RowId(row), prompt, produced or [], GREEDY, max_tokens, [])


def test_it_receives_then_steps_then_tells() -> None:
    line = run([submit(1, [3, 4])], [], [])
    assert [step.rows for step in line.steps] == [[1], [1]]
    assert line.steps[0].prefilled == [(1, 1)]
    assert (line.steps[1].left, line.steps[1].reasons) == ([1], [wire.Left.LENGTH])
    assert isinstance(line.said[0], wire.Step)


def test_it_sleeps_only_while_there_is_nothing_to_do() -> None:
    assert run([submit(1, [3, 4])], [], []).waits == [True, False, True, True]


def test_one_frame_tells_of_all_rows_of_a_step() -> None:
    line = run([submit(1, [3, 4]), submit(2, [5]), submit(3, [6, 7])])
    assert (line.steps[0].rows, len(line.steps[0].tokens)) == ([1, 2, 3], 3)


@pytest.mark.parametrize(
    "bad",
    [
        submit(1, [3, tiny.VOCABULARY]),
        submit(1, [-1]),
        submit(1, [3], produced=[tiny.VOCABULARY]),
        submit(1, [3], produced=[-5]),
        submit(1, []),
        submit(1, [], produced=[3]),
        wire.Submit(RowId(1), [3], [], replace(GREEDY, logit_bias=((tiny.VOCABULARY, 1.0),)), 2, []),
    ],
    ids=[
        "above the logits",
        "negative",
        "produced above",
        "produced negative",
        "empty",
        "nothing but produced",
        "bias",
    ],
)
def test_ids_that_the_model_does_not_have_are_refused_and_others_served(bad: wire.Submit) -> None:
    line = run([bad, submit(2, [3])])
    assert (line.steps[0].left, line.steps[0].reasons) == ([1], [wire.Left.REFUSED])
    assert line.steps[0].rows == [2]


def test_the_last_id_of_the_logits_is_served() -> None:
    assert run([submit(1, [tiny.VOCABULARY - 1])]).steps[0].rows == [1]


def test_cancels_of_unknown_rows_are_harmless() -> None:
    line = run([wire.Cancel(RowId(5)), submit(1, [3]), wire.Cancel(RowId(6))], [wire.Cancel(RowId(7))])
    assert [step.rows for step in line.steps] == [[1], [1]]


def test_a_cancel_in_the_inbox_of_its_submit_leaves_without_a_token() -> None:
    line = run([submit(1, [3]), wire.Cancel(RowId(1))])
    assert (line.steps[0].rows, line.steps[0].reasons) == ([], [wire.Left.CANCELLED])


def test_it_tells_its_stats_when_it_falls_idle() -> None:
    line = run([submit(1, [3], max_tokens=3)], [], [])
    last = line.stats[-1]
    assert (last.step, last.rows, last.waiting) == (3, 0, 0)


def test_while_it_is_busy_it_tells_its_stats_about_once_a_second() -> None:
    line = run([submit(1, [3], max_tokens=9)], *([[]] * 8), clock=HandClock(tick=STATS_EVERY / 4))
    busy = [stats.step for stats in line.stats if stats.rows]
    assert busy == [1, 5]


def test_a_message_of_the_other_direction_ends_it() -> None:
    with pytest.raises(ValueError, match="unexpected Failed"):
        run([wire.Failed("?")])


def bound(row: int, expression: str, produced: list[int] | None = None) -> wire.Submit:
    rules = grammar(Constraint(ConstraintKind.REGEX, expression))
    asked = submit(row, [3, 4], max_tokens=9, produced=produced)
    return msgspec.structs.replace(asked, constraint=wire.Constraint(rules))


def run_bound(*inboxes: Inbox, grammars: Grammars | None) -> Line:
    line = Line(*inboxes)
    batch = Batch(MODEL, for_model(MODEL), max_rows=8, prefill_tokens=64, clock=HandClock())
    Loop(line, batch, tiny.VOCABULARY, HandClock(), grammars).run()
    return line


def ends(line: Line) -> list[tuple[int, wire.Left]]:
    return [end for step in line.steps for end in zip(step.left, step.reasons, strict=True)]


LETTERS = [bytes([0x20 + number]) for number in range(tiny.VOCABULARY)]


def test_a_bound_row_joins_when_its_grammar_is_compiled() -> None:
    grammars = Grammars(LETTERS)
    grammars.begin(wire.Constraint(grammar(Constraint(ConstraintKind.REGEX, "ab"))), []).result()
    line = run_bound([bound(1, "ab"), submit(2, [5, 6])], *[[] for _ in range(400)], grammars=grammars)
    assert [token for step in line.steps for row, token in zip(step.rows, step.tokens, strict=True) if row == 1] == [
        LETTERS.index(b"a"),
        LETTERS.index(b"b"),
    ]
    assert sorted(ends(line)) == [(1, wire.Left.CONSTRAINT_COMPLETE), (2, wire.Left.LENGTH)]
    assert not all(line.waits)


def test_a_row_whose_tokens_break_its_grammar_leaves_with_the_cause() -> None:
    line = run_bound([bound(1, "ab", [7])], *[[] for _ in range(400)], grammars=Grammars(LETTERS))
    assert ends(line) == [(1, wire.Left.CONSTRAINT_BROKEN)]
    ((row, cause),) = line.steps[-1].causes
    assert row == 1
    assert cause == "at token 0 of those produced before, the text cannot go on as it does"


def test_a_row_is_cancelled_while_its_grammar_waits() -> None:
    line = run_bound([bound(1, "ab"), wire.Cancel(RowId(1))], [], [], grammars=Grammars(LETTERS))
    assert ends(line) == [(1, wire.Left.CANCELLED)]


class Busy(Grammars):
    """Whose thread never comes to what it is asked for."""

    def __init__(self) -> None:
        super().__init__(LETTERS)
        self.asked: list[Future[Guide]] = []

    def begin(self, constraint: wire.Constraint, produced: Sequence[int]) -> Future[Guide]:
        self.asked.append(Future())
        return self.asked[-1]


def test_nobody_waits_for_the_grammar_of_a_row_that_was_cancelled() -> None:
    grammars = Busy()
    run_bound([bound(1, "ab"), bound(2, "cd"), wire.Cancel(RowId(1))], [], grammars=grammars)
    assert [guide.cancelled() for guide in grammars.asked] == [True, False]


def test_where_tokens_have_no_spelling_bound_rows_are_refused_in_words() -> None:
    line = run_bound([bound(1, "ab")], [], grammars=None)
    assert ends(line) == [(1, wire.Left.CONSTRAINT_BROKEN)]
    assert "spelling" in line.steps[-1].causes[0][1]
