"""One loaded model: what it asks of its worker, and that nothing is lost when the worker dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxrpc_server.catalog import Entry, ModelConfig
from mlxrpc_server.engine import wire
from mlxrpc_server.errors import ModelUnusable, Unavailable
from mlxrpc_server.flight import Flight, Orders
from mlxrpc_server.model import Model
from mlxrpc_server.types import Cache, ModelHealth, ModelName, RowId, Sampling
from mlxrpc_server.worker import Worker
from tests import fakes, noise_model
from tests.engine.running import GREEDY, alone, row
from tests.same_tokens import assert_same_tokens, judge
from tests.server import fake_worker

LOAD = wire.Load(name="m", path=str(noise_model.folder()), log_format="text", max_rows=64, prefill_tokens=256)
ENTRY = Entry(ModelConfig(ModelName("m"), noise_model.folder()))
DRAINING = Unavailable("DRAINING", "the server is shutting down", 1.0)


def orders(*prompt: int, max_tokens: int = 5, sampling: Sampling = GREEDY) -> Orders:
    return Orders(prompt=prompt or (1, 2, 3), sampling=sampling, max_tokens=max_tokens, stop_ids=frozenset())


def step(
    *, tokens: Mapping[RowId, int] | None = None, left: Mapping[RowId, wire.Left] | None = None, **facts: Any
) -> wire.Step:
    tokens, left = tokens or {}, left or {}
    usual: dict[str, Any] = {"step": 1, "prefilled": [], "prefill_seconds": 0.0, "seconds": 0.0}
    return wire.Step(
        rows=list(tokens),
        tokens=list(tokens.values()),
        left=list(left),
        reasons=list(left.values()),
        **(usual | facts),
    )


class Workers:
    """Spawns fake workers, which say Ready by themselves unless the test has something else for them to say."""

    def __init__(self, *says: wire.Message | None) -> None:
        self.spawned: list[fakes.FakeWorker] = []
        self._says = list(says)
        self._more = asyncio.Event()

    async def __call__(self) -> Worker:
        worker = fakes.FakeWorker()
        said = self._says.pop(0) if self._says else fakes.ready()
        if said is None:
            worker.die()
        else:
            worker.say(said)
        self.spawned.append(worker)
        self._more.set()
        return worker

    async def number(self, count: int) -> fakes.FakeWorker:
        """The worker of that number, as soon as it is spawned."""
        while len(self.spawned) < count:
            self._more.clear()
            await self._more.wait()
        return self.spawned[count - 1]


class Watched:
    """A started model and everything that it tells the world."""

    def __init__(self, spawn: Callable[[], Awaitable[Worker]], load: wire.Load = LOAD, entry: Entry = ENTRY) -> None:
        self.health: asyncio.Queue[ModelHealth] = asyncio.Queue()
        self.model = Model(entry, load, spawn=spawn, changed=self._changed, retry_seconds=(0.0,))

    def _changed(self) -> None:
        self.health.put_nowait(self.model.health)

    async def replaced(self) -> None:
        assert await self.health.get() is ModelHealth.REPLACING
        assert await self.health.get() is ModelHealth.UP

    async def lost(self) -> None:
        while await self.health.get() is not ModelHealth.FAILED:
            pass


@contextlib.asynccontextmanager
async def running(spawn: Callable[[], Awaitable[Worker]]) -> AsyncIterator[Watched]:
    watched = Watched(spawn)
    await watched.model.start()
    try:
        yield watched
    finally:
        await watched.model.close()


async def all_tokens(flight: Flight) -> list[int]:
    """Until it leaves; what it was resumed with is not among them."""
    tokens: list[int] = []
    while True:
        news = await flight.news()
        tokens += news.tokens
        if news.left is not None:
            return tokens


def submitted(worker: fakes.FakeWorker) -> list[wire.Submit]:
    return [message for message in worker.sent if isinstance(message, wire.Submit)]


def cancelled(worker: fakes.FakeWorker) -> list[int]:
    return [message.row for message in worker.sent if isinstance(message, wire.Cancel)]


async def test_start_loads_reports_and_is_ready() -> None:
    workers, reports = Workers(wire.Progress("weights")), list[str]()
    watched = Watched(workers)
    starting = asyncio.create_task(watched.model.start(reports.append))
    (await workers.number(1)).say(fakes.ready(vocabulary_size=77))
    await starting
    assert reports == ["weights"]
    assert watched.model.ready is not None
    assert watched.model.ready.vocabulary_size == 77
    assert workers.spawned[0].sent == [LOAD]
    await watched.model.close()


async def test_a_flight_gets_its_tokens_and_its_end_and_nobody_elses() -> None:
    workers = Workers()
    async with running(workers) as watched:
        with watched.model.fly(orders()) as one, watched.model.fly(orders()) as other:
            workers.spawned[0].say(step(tokens={one.row: 10, other.row: 20}))
            workers.spawned[0].say(step(tokens={one.row: 11}, left={one.row: wire.Left.LENGTH}))
            assert await all_tokens(one) == [10, 11]
            assert (await other.news()).tokens == [20]


async def test_a_flight_that_is_left_early_is_cancelled_and_one_that_ended_is_not() -> None:
    workers = Workers()
    async with running(workers) as watched:
        with watched.model.fly(orders()) as one:
            pass
        with watched.model.fly(orders()) as other:
            workers.spawned[0].say(step(left={other.row: wire.Left.LENGTH}))
            await all_tokens(other)
        assert cancelled(workers.spawned[0]) == [one.row]
        assert watched.model.in_flight == 0


async def test_rows_are_numbered_apart() -> None:
    async with running(Workers()) as watched:
        rows = set()
        for _ in range(3):
            with watched.model.fly(orders()) as flight:
                rows.add(flight.row)
        assert len(rows) == 3


async def test_news_of_rows_that_have_gone_is_dropped() -> None:
    workers = Workers()
    async with running(workers) as watched:
        with watched.model.fly(orders()) as one:
            pass
        with watched.model.fly(orders()) as other:
            gone = step(tokens={one.row: 9}, left={one.row: wire.Left.CANCELLED}, prefilled=[(one.row, 3)])
            workers.spawned[0].say(gone, step(tokens={other.row: 5}))
            assert (await other.news()).tokens == [5]


async def test_a_dead_worker_is_replaced_and_told_of_every_unfinished_flight() -> None:
    workers = Workers()
    async with running(workers) as watched:
        with watched.model.fly(orders(1, 2)) as one, watched.model.fly(orders(3), [30]) as other:
            workers.spawned[0].say(step(tokens={one.row: 10}))
            await one.news()
            workers.spawned[0].die()
            await watched.replaced()
            again = [(submit.prompt, submit.produced) for submit in submitted(workers.spawned[1])]
            assert again == [([1, 2], [10]), ([3], [30])]
            assert watched.model.restarts == 1
            workers.spawned[1].say(step(tokens={one.row: 11, other.row: 31}))
            assert [(await one.news()).tokens, (await other.news()).tokens] == [[11], [31]]


async def test_flights_that_have_ended_are_not_submitted_again() -> None:
    workers = Workers()
    async with running(workers) as watched:
        with watched.model.fly(orders()) as one, watched.model.fly(orders()) as other:
            workers.spawned[0].say(step(left={one.row: wire.Left.LENGTH}))
            await all_tokens(one)
            workers.spawned[0].die()
            await watched.replaced()
            assert [submit.row for submit in submitted(workers.spawned[1])] == [other.row]


async def test_flights_that_come_and_go_during_a_replacement_are_told_to_the_new_worker_once_or_never() -> None:
    workers = Workers(fakes.ready(), wire.Progress("imports"))
    async with running(workers) as watched:
        workers.spawned[0].die()
        assert await watched.health.get() is ModelHealth.REPLACING
        with watched.model.fly(orders(7)), watched.model.fly(orders(8)) as goes:
            pass
        with watched.model.fly(orders(9)) as stays:
            (await workers.number(2)).say(fakes.ready())
            assert await watched.health.get() is ModelHealth.UP
            assert [submit.row for submit in submitted(workers.spawned[1])] == [stays.row]
            assert goes.row not in cancelled(workers.spawned[1])


async def test_two_deaths_without_a_token_end_a_flight_and_leave_those_that_gained_one() -> None:
    workers = Workers()
    async with running(workers) as watched:
        with watched.model.fly(orders()) as stuck, watched.model.fly(orders()) as lucky:
            for worker in (0, 1):
                workers.spawned[worker].say(step(tokens={lucky.row: 10 + worker}))
                assert (await lucky.news()).tokens == [10 + worker]
                workers.spawned[worker].die()
                await watched.replaced()
            with pytest.raises(Unavailable, match="died 2 times") as caught:
                await stuck.news()
            assert caught.value.reason == "ENGINE_DIED"
            assert [submit.row for submit in submitted(workers.spawned[2])] == [lucky.row]


async def test_a_token_between_two_deaths_wipes_the_first_one_out() -> None:
    workers = Workers()
    async with running(workers) as watched:
        with watched.model.fly(orders()) as flight:
            for token in ({}, {flight.row: 10}, {}, {flight.row: 11}):
                if token:
                    workers.spawned[-1].say(step(tokens=token))
                    await flight.news()
                workers.spawned[-1].die()
                await watched.replaced()
            assert not flight.ended
            assert submitted(workers.spawned[-1])[0].produced == [10, 11]


async def test_a_worker_that_dies_once_while_it_loads_is_tried_again() -> None:
    workers = Workers(None)
    async with running(workers):
        assert len(workers.spawned) == 2


async def test_a_worker_that_dies_twice_while_it_loads_makes_the_model_unusable() -> None:
    workers = Workers(None, None)
    with pytest.raises(ModelUnusable, match="its worker died while loading it"):
        await Watched(workers).model.start()
    assert len(workers.spawned) == 2


async def test_the_cause_that_a_worker_gives_is_not_tried_again() -> None:
    workers = Workers(wire.Failed("the weights are a shopping list"))
    with pytest.raises(ModelUnusable, match="the weights are a shopping list"):
        await Watched(workers).model.start()
    assert [worker.gone for worker in workers.spawned] == [True]


async def test_a_worker_that_steps_before_it_is_ready_is_ended() -> None:
    workers = Workers(step())
    with pytest.raises(ModelUnusable, match="before it was ready"):
        await Watched(workers).model.start()
    assert workers.spawned[0].gone


async def test_no_process_to_be_had_is_unavailable() -> None:
    async def spawn() -> Worker:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with pytest.raises(Unavailable, match="no worker process can be started") as caught:
        await Watched(spawn).model.start()
    assert caught.value.reason == "NO_WORKER"


async def test_a_start_that_is_given_up_ends_its_worker() -> None:
    workers = Workers(wire.Progress("imports"))
    watched = Watched(workers)
    reported = asyncio.Event()
    starting = asyncio.create_task(watched.model.start(lambda _stage: reported.set()))
    await reported.wait()
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert workers.spawned[0].gone


async def test_a_model_that_cannot_be_replaced_ends_its_flights_and_says_so() -> None:
    workers = Workers(fakes.ready(), wire.Failed("the disk is gone"), wire.Progress("imports"))
    async with running(workers) as watched:
        with watched.model.fly(orders()) as flight:
            workers.spawned[0].die()
            await watched.lost()
            with pytest.raises(Unavailable, match="the disk is gone"):
                await flight.news()


async def test_a_flight_that_comes_behind_the_models_end_is_told_at_once() -> None:
    workers = Workers(fakes.ready(), wire.Failed("the disk is gone"), wire.Progress("imports"))
    async with running(workers) as watched:
        workers.spawned[0].die()
        await watched.lost()
        with watched.model.fly(orders()) as flight, pytest.raises(Unavailable, match="the disk is gone"):
            await flight.begun()


async def test_a_lost_model_comes_back_when_a_worker_can_be_had_again() -> None:
    workers = Workers(fakes.ready(), wire.Failed("the disk is full"), wire.Failed("the disk is full"))
    async with running(workers) as watched:
        workers.spawned[0].die()
        await watched.lost()
        while await watched.health.get() is not ModelHealth.UP:
            pass
        with watched.model.fly(orders()) as flight:
            assert submitted(await workers.number(4))[-1].row == flight.row


async def test_requests_wait_while_no_process_can_be_started_for_a_moment() -> None:
    workers, refusals = Workers(), [BlockingIOError(11, "Resource temporarily unavailable")]

    async def spawn() -> Worker:
        if workers.spawned and refusals:
            raise refusals.pop()
        return await workers()

    async with running(spawn) as watched:
        with watched.model.fly(orders()) as flight:
            workers.spawned[0].die()
            await watched.replaced()
            assert submitted(await workers.number(2))[-1].row == flight.row


async def test_a_step_that_makes_no_sense_costs_the_worker_and_no_request() -> None:
    workers = Workers()
    async with running(workers) as watched:
        with watched.model.fly(orders()) as flight:
            workers.spawned[0].say(wire.Step(1, [flight.row], [], [], [], [], 0.0, 0.0))
            await watched.replaced()
            assert workers.spawned[0].gone
            assert submitted(workers.spawned[1])[-1].row == flight.row


async def test_closing_ends_flights_and_the_worker_and_those_who_come_later() -> None:
    workers = Workers()
    async with running(workers) as watched:
        with watched.model.fly(orders()) as flight:
            await watched.model.close()
            with pytest.raises(Unavailable, match="was unloaded"):
                await flight.news()
        with watched.model.fly(orders()) as late, pytest.raises(Unavailable, match="was unloaded"):
            await late.begun()
        assert workers.spawned[0].gone
        assert watched.model.pid is None


async def test_closing_during_a_replacement_ends_both_workers() -> None:
    workers = Workers(fakes.ready(), wire.Progress("imports"))
    async with running(workers) as watched:
        workers.spawned[0].die()
        assert await watched.health.get() is ModelHealth.REPLACING
        await workers.number(2)
    assert [worker.gone for worker in workers.spawned] == [True, True]


async def test_refusing_the_queue_spares_what_the_worker_has_taken_up() -> None:
    workers = Workers()
    async with running(workers) as watched:
        with watched.model.fly(orders()) as begun, watched.model.fly(orders()) as queued:
            workers.spawned[0].say(step(prefilled=[(begun.row, 2)]))
            await begun.begun()
            watched.model.refuse_queued(DRAINING)
            assert (begun.ended, queued.ended) == (False, True)
            assert cancelled(workers.spawned[0]) == [queued.row]
            with pytest.raises(Unavailable, match="shutting down"):
                await queued.begun()


async def test_the_wait_for_a_first_token_is_told_by_the_best_rate_seen() -> None:
    workers = Workers()
    async with running(workers) as watched:
        assert watched.model.seconds_to_first_token(1000) == 0.0
        with watched.model.fly(orders(*range(50))) as flight:
            workers.spawned[0].say(step(prefilled=[(flight.row, 40)], prefill_seconds=0.4))
            await flight.news()
            assert watched.model.seconds_to_first_token(90) == pytest.approx(1.0)


async def test_what_was_not_computed_says_nothing_about_the_rate() -> None:
    workers = Workers()
    async with running(workers) as watched:
        with watched.model.fly(orders(*range(50))) as flight:
            row = flight.row
            workers.spawned[0].say(step(cached=[(row, 30)], prefilled=[(row, 40)], prefill_seconds=0.1))
            await flight.news()
            assert flight.cached == 30
            assert watched.model.seconds_to_first_token(90) == pytest.approx(1.0)


async def test_a_worker_is_asked_what_it_would_not_compute() -> None:
    workers = Workers()
    async with running(workers) as watched:
        asked = [asyncio.create_task(watched.model.held(tenant, [1, 2, 3])) for tenant in ("", "a")]
        await asyncio.sleep(0)
        worker = workers.spawned[0]
        assert worker.sent[1:] == [wire.Ask(1, "", [1, 2, 3]), wire.Ask(2, "a", [1, 2, 3])]
        worker.say(wire.Held(2, 64), wire.Held(1, 128), wire.Held(9, 9))
        assert await asyncio.gather(*asked) == [128, 64]


async def test_a_prompt_that_seems_too_long_is_judged_by_what_is_left_of_it() -> None:
    workers = Workers()
    async with running(workers) as watched:
        worker = workers.spawned[0]
        with watched.model.fly(orders(*range(100))) as flight:
            worker.say(step(prefilled=[(flight.row, 100)], prefill_seconds=1.0))
            await flight.news()
            asked = orders(*range(500))
            assert await watched.model.soonest(asked, 5.5) == pytest.approx(5.0)
            assert await watched.model.soonest(replace(asked, cache=Cache(bypass=True)), 1.0) == pytest.approx(5.0)
            waiting = asyncio.create_task(watched.model.soonest(replace(asked, cache=Cache("a")), 1.0))
            await asyncio.sleep(0)
            assert worker.sent[-1] == wire.Ask(1, "a", list(range(500)))
            worker.say(wire.Held(1, 448))
            assert await waiting == pytest.approx(0.52)


async def test_where_no_worker_serves_nothing_is_held() -> None:
    assert await Watched(Workers()).model.held("", [1, 2, 3]) == 0


async def test_queued_counts_those_without_a_token() -> None:
    workers = Workers()
    async with running(workers) as watched:
        with watched.model.fly(orders()) as one, watched.model.fly(orders()):
            workers.spawned[0].say(step(tokens={one.row: 4}))
            await one.news()
            assert (watched.model.in_flight, watched.model.queued) == (2, 1)


# With real processes


async def test_flights_go_on_with_the_same_tokens_when_the_worker_is_killed() -> None:
    drawn = [Sampling(0.9, 0.95, 0, 0.0, seed) for seed in (1, 2**63)]
    wishes = [
        orders(*range(1 + place, 9 + 3 * place), max_tokens=24, sampling=s) for place, s in enumerate([GREEDY, *drawn])
    ]
    async with running(Worker.spawn) as watched:
        with contextlib.ExitStack() as flights:
            flying = [flights.enter_context(watched.model.fly(wish)) for wish in wishes]
            first = (await flying[-1].news()).tokens or (await flying[-1].news()).tokens
            assert watched.model.pid is not None
            os.kill(watched.model.pid, signal.SIGKILL)
            await watched.replaced()
            got = [await all_tokens(flight) for flight in flying]
        got[-1] = first + got[-1]
        assert watched.model.restarts == 1
    for wish, tokens in zip(wishes, got, strict=True):
        solo = alone(judge().model, row(1, wish.prompt, wish.max_tokens, wish.sampling))
        assert_same_tokens(wish.prompt, wish.sampling, solo, tokens)


def scripted(how: str) -> Callable[[], Awaitable[Worker]]:
    return lambda: Worker.spawn(fake_worker.command(how))


async def test_a_request_with_which_every_worker_dies_is_given_up() -> None:
    async with running(scripted("dies at every request")) as watched:
        with watched.model.fly(orders()) as flight, pytest.raises(Unavailable, match="exit code 9") as caught:
            await flight.news()
        assert caught.value.reason == "ENGINE_DIED"


async def test_a_flight_survives_any_number_of_deaths_while_it_gains_tokens() -> None:
    """The script's tokens are the places at which they stand: none is lost, none comes twice."""
    async with running(scripted("gives one token and dies")) as watched:
        with watched.model.fly(orders(5, 5, 5)) as flight:
            got: list[int] = []
            while len(got) < 5:
                got += (await flight.news()).tokens
        assert got == [3, 4, 5, 6, 7]
        assert watched.model.restarts >= 4


async def test_a_worker_that_talks_nonsense_is_replaced() -> None:
    async with running(scripted("talks nonsense")) as watched:
        with watched.model.fly(orders()) as flight, pytest.raises(Unavailable, match="died 2 times"):
            await flight.news()


async def test_a_folder_that_cannot_be_served_is_unusable_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "perceptron9000"}))
    load = wire.Load(name="m", path=str(tmp_path), log_format="text", max_rows=1, prefill_tokens=16)
    with pytest.raises(ModelUnusable, match="perceptron9000 not supported"):
        await Watched(Worker.spawn, load).model.start()
