"""The models that are loaded: who comes in, who gives way, and who waits."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrpc_server.catalog import Catalog, Entry, ModelConfig
from mlxrpc_server.engine import wire
from mlxrpc_server.errors import ModelUnusable, Unavailable
from mlxrpc_server.model import Model
from mlxrpc_server.models import Limits, Models
from mlxrpc_server.types import ModelHealth, ModelName, ModelState
from tests import fakes, noise_model
from tests.server.fake_models import House, Lease, house, no_tasks_left

BYTES = 256
"""The weights of every model here."""


def soon(seconds: float = 0.1) -> float:
    """A deadline that a wait reaches, and nothing else."""
    return time.monotonic() + seconds


async def turn() -> None:
    """Lets everything that can happen now happen: a few turns of the loop, since a wake-up takes one each."""
    for _ in range(10):
        await asyncio.sleep(0)


def unavailable(lease: Lease) -> Unavailable:
    error = lease.task.exception()
    assert isinstance(error, Unavailable)
    return error


# Loading


async def test_the_first_lease_loads_and_later_ones_find_it_loaded(tmp_path: Path) -> None:
    async with house(tmp_path, "a") as one:
        await one.use("a", "a", "a")
        assert one.events == ["load a", "loaded a"]
        assert one.health == [("a", ModelHealth.UP)]


async def test_ten_first_leases_at_once_cause_one_load(tmp_path: Path) -> None:
    async with house(tmp_path, "a") as one:
        one.hold("load a")
        leases = [one.lease("a") for _ in range(10)]
        await one.seen("load a")
        assert all(lease.waits for lease in leases)
        one.let_go("load a")
        models = [await lease.granted() for lease in leases]
        assert len({id(model) for model in models}) == one.count("load a") == 1
        assert one.models.status(one.entry("a")).leases == 10
        for lease in leases:
            await lease.give_back()
        assert one.models.status(one.entry("a")).leases == 0


async def test_everybody_who_waits_for_a_load_hears_of_its_progress(tmp_path: Path) -> None:
    async with house(tmp_path, "a") as one:
        heard: list[str] = []
        leases = [one.lease("a", report=heard.append) for _ in range(2)]
        for lease in leases:
            await lease.granted()
            await lease.give_back()
        assert heard == ["weights", "weights"]


async def test_a_model_is_told_in_its_states(tmp_path: Path) -> None:
    async with house(tmp_path, "a", limits=Limits(max_loaded=1)) as one:
        entry, states = one.entry("a"), []
        states.append(one.models.status(entry).state)
        one.hold("load a")
        lease = one.lease("a")
        await one.seen("load a")
        states.append(one.models.status(entry).state)
        one.let_go("load a")
        model = await lease.granted()
        status = one.models.status(entry)
        assert (status.model, status.leases, status.load_seconds is not None) == (model, 1, True)
        states.append(status.state)
        one.hold("end a")
        unloading = asyncio.create_task(one.models.unload(entry, force=True))
        await one.seen("end a")
        states.append(one.models.status(entry).state)
        one.let_go("end a")
        await unloading
        states.append(one.models.status(entry).state)
        await lease.give_back()
        assert states == [
            ModelState.AVAILABLE,
            ModelState.LOADING,
            ModelState.LOADED,
            ModelState.UNLOADING,
            ModelState.AVAILABLE,
        ]


async def test_a_failed_load_fails_everybody_who_waits_and_whoever_comes_soon(tmp_path: Path) -> None:
    async with house(tmp_path, "a") as one:
        one.errors["a"] = ModelUnusable("a", "its weights are missing")
        for lease in (one.lease("a"), one.lease("a"), one.lease("a")):
            with pytest.raises(ModelUnusable, match="its weights are missing"):
                await lease.granted()
        status = one.models.status(one.entry("a"))
        assert (status.state, "its weights are missing" in status.reason) == (ModelState.FAILED, True)
        assert one.count("load a") == 1


async def test_the_patient_try_a_failed_model_again_and_bring_it_back_for_all(tmp_path: Path) -> None:
    async with house(tmp_path, "a") as one:
        one.errors["a"] = ModelUnusable("a", "its weights are missing")
        with pytest.raises(ModelUnusable):
            await patiently(one, "a")
        del one.errors["a"]
        await patiently(one, "a")
        await one.use("a")
        assert one.models.status(one.entry("a")).state is ModelState.LOADED
        assert [health for _, health in one.health] == [ModelHealth.UP, ModelHealth.FAILED, ModelHealth.UP]
        assert one.count("load a") == 2


async def test_a_deadline_that_comes_while_it_loads_leaves_the_load_to_the_next(tmp_path: Path) -> None:
    async with house(tmp_path, "a") as one:
        one.hold("load a")
        lease = one.lease("a", soon())
        await asyncio.wait([lease.task])
        assert (unavailable(lease).reason, "is still loading" in str(unavailable(lease))) == ("MODEL_BUSY", True)
        one.let_go("load a")
        await one.use("a")
        assert one.count("load a") == 1


async def test_a_caller_who_leaves_does_not_stop_a_load_that_others_wait_for(tmp_path: Path) -> None:
    async with house(tmp_path, "a") as one:
        one.hold("load a")
        leaves, stays = one.lease("a"), one.lease("a")
        await one.seen("load a")
        await leaves.give_up()
        one.let_go("load a")
        await stays.granted()
        await stays.give_back()


# Eviction


async def test_the_least_recently_used_model_gives_way_and_is_gone_before_the_next_loads(tmp_path: Path) -> None:
    async with house(tmp_path, "a", "b", "c", limits=Limits(max_loaded=2)) as one:
        await one.use("a", "b", "a", "c")
        assert one.events[-4:] == ["end b", "ended b", "load c", "loaded c"]
        assert one.loaded() == ["a", "c"]


async def test_four_models_are_kept_by_default(tmp_path: Path) -> None:
    async with house(tmp_path, *"abcde") as one:
        await one.use(*"abcde")
        assert one.loaded() == list("bcde")


@settings(max_examples=40)
@given(uses=st.lists(st.sampled_from("abcdef"), max_size=25), limit=st.integers(1, 4))
def test_it_keeps_what_a_plain_list_of_recent_uses_says(uses: list[str], limit: int) -> None:
    async def check(folder: Path) -> None:
        recent: OrderedDict[str, None] = OrderedDict()
        async with house(folder, *"abcdef", limits=Limits(max_loaded=limit)) as one:
            for name in uses:
                await one.use(name)
                recent[name] = None
                recent.move_to_end(name)
                while len(recent) > limit:
                    recent.popitem(last=False)
                assert one.loaded() == sorted(recent)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(check(Path(folder)))


async def test_a_leased_model_is_never_evicted(tmp_path: Path) -> None:
    async with house(tmp_path, "a", "b", "c", limits=Limits(max_loaded=2)) as one:
        lease = one.lease("a")
        await lease.granted()
        await one.use("b", "c", "b", "c")
        assert one.loaded() == ["a", "c"]
        assert one.count("end a") == 0
        await lease.give_back()


async def test_a_pinned_model_is_never_evicted(tmp_path: Path) -> None:
    async with house(tmp_path, "a", "b", limits=Limits(max_loaded=1), pin=True) as one:
        await one.use("a")
        lease = one.lease("b", soon())
        await asyncio.wait([lease.task])
        assert unavailable(lease).reason == "MODEL_BUSY"
        assert one.loaded() == ["a"]


async def test_two_newcomers_take_the_places_of_two_idle_models_at_once(tmp_path: Path) -> None:
    async with house(tmp_path, *"abcd", limits=Limits(max_loaded=2)) as one:
        await one.use("a", "b")
        one.hold("load c")
        first, second = one.lease("c"), one.lease("d")
        await second.granted()
        assert first.waits
        one.let_go("load c")
        await first.granted()
        assert one.loaded() == ["c", "d"]
        await first.give_back()
        await second.give_back()


async def test_a_lease_of_a_model_on_its_way_out_waits_and_loads_it_anew(tmp_path: Path) -> None:
    async with house(tmp_path, "a", "b", limits=Limits(max_loaded=1)) as one:
        await one.use("a")
        one.hold("end a")
        newcomer = one.lease("b")
        await one.seen("end a")
        again = one.lease("a")
        await turn()
        assert newcomer.waits
        assert again.waits
        one.let_go("end a")
        await newcomer.granted()
        await newcomer.give_back()
        await again.granted()
        assert one.count("load a") == 2
        await again.give_back()


async def test_weights_count_against_the_memory_budget(tmp_path: Path) -> None:
    async with house(tmp_path, "a", "b", "c", limits=Limits(memory_budget=2 * BYTES)) as one:
        await one.use("a", "b", "a", "c")
        assert one.loaded() == ["a", "c"]


async def test_a_large_model_takes_the_places_of_several(tmp_path: Path) -> None:
    large = ModelConfig(ModelName("large"), fakes.model_folder(tmp_path / "large", weights=BYTES * 3 // 4))
    small = [entry.config for entry in fakes.catalog(tmp_path, "a", "b", "c")]
    one = House(Catalog([*small, large]), Limits(memory_budget=4 * BYTES))
    await one.use("a", "b", "c", "large")
    assert one.loaded() == ["c", "large"]
    await one.models.close()


@pytest.mark.parametrize("limits", [Limits(max_loaded=1, memory_budget=BYTES - 1), Limits(max_loaded=1)])
async def test_no_model_is_evicted_for_one_that_cannot_be_loaded(tmp_path: Path, limits: Limits) -> None:
    broken = ModelConfig(ModelName("broken"), tmp_path / "nowhere")
    fits = ModelConfig(ModelName("fits"), fakes.model_folder(tmp_path / "fits", weights=1))
    large = ModelConfig(ModelName("large"), fakes.model_folder(tmp_path / "large"))
    one = House(Catalog([fits, large, broken]), limits)
    await one.use("fits")
    wanted = "large" if limits.memory_budget else "broken"
    with pytest.raises(ModelUnusable, match="memory budget is 255" if limits.memory_budget else "config.json"):
        await one.use(wanted)
    assert one.loaded() == ["fits"]
    assert one.models.status(one.entry(wanted)).state is ModelState.FAILED
    await one.models.close()


# Waiting for room


async def test_where_every_model_is_leased_a_newcomer_waits_for_room(tmp_path: Path) -> None:
    async with house(tmp_path, "a", "b", limits=Limits(max_loaded=1)) as one:
        holds, waits = one.lease("a"), one.lease("b")
        await holds.granted()
        await turn()
        assert waits.waits
        assert one.models.status(one.entry("b")).state is ModelState.AVAILABLE
        await holds.give_back()
        await waits.granted()
        assert one.loaded() == ["b"]
        await waits.give_back()


async def test_whoever_waits_for_room_is_told_before_its_deadline(tmp_path: Path) -> None:
    async with house(tmp_path, "a", "b", limits=Limits(max_loaded=1)) as one:
        holds = one.lease("a")
        await holds.granted()
        deadline = soon(0.2)
        waits = one.lease("b", deadline)
        await asyncio.wait([waits.task])
        assert time.monotonic() < deadline
        assert "every loaded model is in use" in str(unavailable(waits))
        assert unavailable(waits).retry_after > 0
        await holds.give_back()
        assert one.loaded() == ["a"]


async def test_whoever_has_no_deadline_waits_for_the_longest_wait(tmp_path: Path) -> None:
    async with house(tmp_path, "a", "b", limits=Limits(max_loaded=1, longest_wait=0.05)) as one:
        holds = one.lease("a")
        await holds.granted()
        waits = one.lease("b")
        await asyncio.wait([waits.task])
        assert unavailable(waits).reason == "MODEL_BUSY"
        await holds.give_back()


async def test_a_deadline_that_has_passed_is_told_at_once(tmp_path: Path) -> None:
    async with house(tmp_path, "a") as one:
        one.hold("load a")
        lease = one.lease("a", soon(-1.0))
        await asyncio.wait([lease.task])
        assert unavailable(lease).reason == "MODEL_BUSY"


async def test_newcomers_get_room_in_their_order_of_arrival(tmp_path: Path) -> None:
    async with house(tmp_path, *"abcd", limits=Limits(max_loaded=1)) as one:
        holds = one.lease("a")
        await holds.granted()
        waiting = [one.lease(name) for name in "cbd"]
        for lease in waiting:
            await turn()
            await holds.give_back()
            await lease.granted()
            holds = lease
        assert [event for event in one.events if event.startswith("load ")] == ["load a", "load c", "load b", "load d"]
        await holds.give_back()


async def test_a_load_for_which_nobody_waits_any_more_is_dropped(tmp_path: Path) -> None:
    async with house(tmp_path, "a", "b", "c", limits=Limits(max_loaded=1)) as one:
        holds, leaves, stays = one.lease("a"), one.lease("b"), one.lease("c")
        await holds.granted()
        await turn()
        await leaves.give_up()
        await holds.give_back()
        await stays.granted()
        assert one.count("load b") == 0
        await stays.give_back()


async def test_whoever_comes_as_a_load_is_dropped_gets_one_of_its_own(tmp_path: Path) -> None:
    async with house(tmp_path, "a", "b", limits=Limits(max_loaded=1)) as one:
        holds, leaves = one.lease("a"), one.lease("b")
        await holds.granted()
        await turn()
        leaves.task.cancel()
        comes = one.lease("b")  # its first step runs between the cancel and the end of the dropped load
        await turn()
        assert comes.waits
        await holds.give_back()
        await comes.granted()
        await comes.give_back()
        assert leaves.task.cancelled()


async def test_a_model_takes_no_more_requests_than_its_limit(tmp_path: Path) -> None:
    async with house(tmp_path, "a", limits=Limits(max_in_flight=2)) as one:
        leases = [one.lease("a"), one.lease("a")]
        for lease in leases:
            await lease.granted()
        third = one.lease("a")
        await asyncio.wait([third.task])
        assert unavailable(third).reason == "QUEUE_FULL"
        for lease in leases:
            await lease.give_back()
        await one.use("a")


# Unloading


async def test_unloading_what_is_not_loaded_says_so(tmp_path: Path) -> None:
    async with house(tmp_path, "a") as one:
        assert await one.models.unload(one.entry("a"), force=False) == 0


async def test_unloading_waits_for_those_who_use_it(tmp_path: Path) -> None:
    async with house(tmp_path, "a") as one:
        lease = one.lease("a")
        await lease.granted()
        unloading = asyncio.create_task(one.models.unload(one.entry("a"), force=False))
        await turn()
        assert (unloading.done(), one.count("end a")) == (False, 0)
        await lease.give_back()
        assert await unloading == 0
        assert (one.events[-1], one.loaded()) == ("ended a", [])


async def test_newcomers_wait_for_an_unload_and_load_anew(tmp_path: Path) -> None:
    async with house(tmp_path, "a") as one:
        lease = one.lease("a")
        await lease.granted()
        unloading = asyncio.create_task(one.models.unload(one.entry("a"), force=False))
        await turn()
        newcomer = one.lease("a")
        await turn()
        assert newcomer.waits
        await lease.give_back()
        await unloading
        await newcomer.granted()
        assert one.count("load a") == 2
        await newcomer.give_back()


async def test_a_newcomer_that_waits_for_an_unload_is_served_when_the_unload_gives_up(tmp_path: Path) -> None:
    async with house(tmp_path, "a") as one:
        lease = one.lease("a")
        await lease.granted()
        unloading = asyncio.create_task(one.models.unload(one.entry("a"), force=False))
        await turn()
        newcomer = one.lease("a")
        await turn()
        unloading.cancel()
        await newcomer.granted()
        assert one.count("load a") == 1
        await newcomer.give_back()
        await lease.give_back()


async def test_other_models_comings_and_goings_do_not_prolong_a_wait(tmp_path: Path) -> None:
    async with house(tmp_path, "a", "b", limits=Limits(longest_wait=0.1)) as one:
        lease = one.lease("a")
        await lease.granted()
        unloading = asyncio.create_task(one.models.unload(one.entry("a"), force=False))
        await turn()
        newcomer = one.lease("a")
        async with asyncio.timeout(10):
            while newcomer.waits:
                await one.use("b")
                await asyncio.sleep(0)
        assert unavailable(newcomer).reason == "MODEL_BUSY"
        await lease.give_back()
        await unloading


async def test_the_patient_wait_longer_than_requests_do(tmp_path: Path) -> None:
    async with house(tmp_path, "a", "b", limits=Limits(max_loaded=1, longest_wait=0.0)) as one, asyncio.timeout(10):
        async with one.models.lease(one.entry("a"), patient=True):
            waiting = asyncio.create_task(patiently(one, "b"))
            await turn()
            assert not waiting.done()
        await waiting
        assert one.loaded() == ["b"]


async def patiently(one: House, name: str) -> None:
    async with one.models.lease(one.entry(name), patient=True):
        pass


async def test_a_forced_unload_waits_for_nobody(tmp_path: Path) -> None:
    async with house(tmp_path, "a") as one:
        lease = one.lease("a")
        await lease.granted()
        assert await one.models.unload(one.entry("a"), force=True) == 0
        assert one.loaded() == []
        await lease.give_back()
        assert one.models.status(one.entry("a")).state is ModelState.AVAILABLE


async def test_an_unload_that_gives_up_does_not_bring_back_what_another_is_ending(tmp_path: Path) -> None:
    async with house(tmp_path, "a") as one:
        entry, lease = one.entry("a"), one.lease("a")
        await lease.granted()
        patient = asyncio.create_task(one.models.unload(entry, force=False))
        await turn()
        one.hold("end a")
        forced = asyncio.create_task(one.models.unload(entry, force=True))
        await one.seen("end a")
        patient.cancel()
        await asyncio.wait([patient])
        assert one.models.status(entry).state is ModelState.UNLOADING
        one.let_go("end a")
        await forced
        await lease.give_back()


async def test_a_model_that_loads_is_unloaded_behind_its_load(tmp_path: Path) -> None:
    async with house(tmp_path, "a") as one:
        one.hold("load a")
        lease = one.lease("a")
        await one.seen("load a")
        unloading = asyncio.create_task(one.models.unload(one.entry("a"), force=False))
        await turn()
        one.let_go("load a")
        await lease.granted()
        await lease.give_back()
        await unloading
        assert one.events == ["load a", "loaded a", "end a", "ended a"]


# The end


async def test_a_lost_model_has_failed_until_its_worker_is_replaced(tmp_path: Path) -> None:
    async with house(tmp_path, "a") as one:
        lease = one.lease("a")
        model = await lease.granted()
        model.be(serving=False)
        model.be(serving=False, lost=Unavailable("ENGINE_DIED", "the disk is gone", 1.0))
        status = one.models.status(one.entry("a"))
        assert (status.state, "the disk is gone" in status.reason) == (ModelState.FAILED, True)
        model.be(serving=True)
        assert one.models.status(one.entry("a")).state is ModelState.LOADED
        assert [health for _, health in one.health] == [
            ModelHealth.UP,
            ModelHealth.REPLACING,
            ModelHealth.FAILED,
            ModelHealth.UP,
        ]
        await lease.give_back()


async def test_a_model_that_is_evicted_while_its_worker_is_replaced_is_up_again(tmp_path: Path) -> None:
    async with house(tmp_path, "a", "b", limits=Limits(max_loaded=1)) as one:
        lease = one.lease("a")
        model = await lease.granted()
        await lease.give_back()
        model.be(serving=False)
        await one.use("b")
        assert [health for name, health in one.health if name == "a"][-2:] == [ModelHealth.REPLACING, ModelHealth.UP]


async def test_nobody_is_evicted_where_that_would_not_make_room(tmp_path: Path) -> None:
    sizes = {"small": 2, "held": 8, "large": 9}
    configs = [
        ModelConfig(ModelName(name), fakes.model_folder(tmp_path / name, weights=size)) for name, size in sizes.items()
    ]
    bytes_of = {str(config.name): Catalog([config]).find("").facts.weights_bytes for config in configs}
    one = House(Catalog(configs), Limits(memory_budget=bytes_of["small"] + bytes_of["held"], longest_wait=0.05))
    await one.use("small")
    lease = one.lease("held")
    await lease.granted()
    with pytest.raises(Unavailable, match="waits for room"):
        await one.use("large")
    assert one.loaded() == ["held", "small"]
    await lease.give_back()
    await one.models.close()


async def test_a_forced_unload_gives_up_a_load_that_hangs(tmp_path: Path) -> None:
    async with house(tmp_path, "a") as one:
        one.hold("load a")
        lease = one.lease("a")
        await one.seen("load a")
        assert await one.models.unload(one.entry("a"), force=True) == 0
        await asyncio.wait([lease.task])
        assert unavailable(lease).reason == "MODEL_UNLOADED"
        assert one.loaded() == []


async def test_draining_refuses_who_waits_and_spares_who_runs(tmp_path: Path) -> None:
    async with house(tmp_path, "a", "b", "c", limits=Limits(max_loaded=2)) as one:
        one.hold("load b")
        runs, loads, waits = one.lease("a"), one.lease("b"), one.lease("c")
        model = await runs.granted()
        await one.seen("load b")
        await one.models.drain()
        await asyncio.wait([loads.task, waits.task])
        late = one.lease("a")
        await asyncio.wait([late.task])
        assert [unavailable(lease).reason for lease in (loads, waits, late)] == ["DRAINING"] * 3
        assert (one.count("gave up b"), one.count("load c"), len(model.refusals)) == (1, 0, 1)
        assert not runs.task.done()
        await runs.give_back()


async def test_draining_refuses_who_waits_for_an_unload(tmp_path: Path) -> None:
    async with house(tmp_path, "a") as one:
        runs = one.lease("a")
        await runs.granted()
        unloading = asyncio.create_task(one.models.unload(one.entry("a"), force=False))
        await turn()
        waits = one.lease("a")
        await turn()
        await one.models.drain()
        await asyncio.wait([waits.task])
        assert unavailable(waits).reason == "DRAINING"
        await runs.give_back()
        await unloading


async def test_a_drain_before_a_load_has_begun_refuses_who_waits_for_it(tmp_path: Path) -> None:
    async with house(tmp_path, "a") as one:
        lease = one.lease("a")
        await asyncio.sleep(0)  # the lease has asked; the load's task has not run
        await one.models.drain()
        await asyncio.wait([lease.task])
        assert unavailable(lease).reason == "DRAINING"
        assert one.events == []


async def test_closing_ends_every_model_and_gives_up_every_load(tmp_path: Path) -> None:
    async with house(tmp_path, "a", "b") as one:
        await one.use("a")
        one.hold("load b")
        lease = one.lease("b")
        await one.seen("load b")
        await one.models.close()
        await asyncio.wait([lease.task])
        assert unavailable(lease).reason == "DRAINING"
        assert one.events[-3:] == ["gave up b", "end a", "ended a"]


# With real processes


async def test_the_process_of_an_evicted_model_is_gone_before_the_next_one_starts() -> None:
    def make(entry: Entry, _changed: object) -> Model:
        path = str(entry.config.source)
        return Model(entry, wire.Load(name=entry.name, path=path, log_format="text", max_rows=4, prefill_tokens=64))

    catalog = Catalog([ModelConfig(ModelName(name), noise_model.folder()) for name in ("a", "b")])
    models = Models(make, Limits(max_loaded=1))
    async with models.lease(catalog.find("a")) as model:
        evicted = model.pid
    assert evicted is not None

    def gone_when_imports_begin(stage: str) -> None:
        if stage == "imports":
            with pytest.raises(ProcessLookupError):
                os.kill(evicted, 0)

    async with models.lease(catalog.find("b"), report=gone_when_imports_begin) as model:
        assert model.pid not in (None, evicted)
    await models.close()
    await no_tasks_left()
