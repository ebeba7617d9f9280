"""Five models, four places: who comes in, who gives way, and who may not."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.rpc.error_details_pb2 import PreconditionFailure
from grpc_health.v1 import health_pb2

from mlxrpc.v1 import admin_pb2, model_pb2
from mlxrpc.v1 import inference_pb2 as pb
from tests import noise_model
from tests.end_to_end.asking import FOREVER, ask, check_retry, detail, reason
from tests.end_to_end.running import READINESS, RunningServer, running_server, until
from tests.end_to_end.streams import TIMEOUT, Received, generate, stream, streams, unary

pytestmark = pytest.mark.xdist_group("lru")

NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Five sound models and a broken one, none loaded yet, and at most four at a time."""
    folder = tmp_path_factory.mktemp("crowded")
    config = folder / "mlxrpc.toml"
    tables = [f'[[models]]\nname = "{name}"\nsource = "{noise_model.folder()}"\n' for name in NAMES]
    tables.append(f'[[models]]\nname = "broken"\nsource = "{broken_model(folder / "broken")}"\n')
    config.write_text("preload = []\nmax_loaded_models = 4\n\n" + "\n".join(tables), encoding="utf-8")
    with running_server("--config", str(config)) as server:
        yield server


def broken_model(folder: Path) -> Path:
    """The noise model with a weights file that is cut off inside its header."""
    folder.mkdir()
    for file in noise_model.folder().iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).symlink_to(file)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 10_000) + b"{")
    return folder


def pids(server: RunningServer) -> dict[str, int]:
    return {model.name: model.pid for model in server.info().models}


def unload(server: RunningServer, *names: str) -> None:
    for name in names:
        server.admin.UnloadModel(admin_pb2.UnloadModelRequest(model=name), timeout=TIMEOUT)


def only(server: RunningServer, *names: str) -> dict[str, int]:
    """Loads these, all at once, and no others; last used in the order given."""
    unload(server, *(pids(server).keys() - set(names)))
    list(streams(server, [ask(max_tokens=1, model=name) for name in names]))
    for name in names:
        stream(server, ask(max_tokens=1, model=name))
    return pids(server)


def hold(server: RunningServer, name: str) -> Any:
    """A stream that runs until it is cancelled."""
    call = server.inference.StreamGenerate(ask(max_tokens=FOREVER, model=name), timeout=TIMEOUT)
    next(call)
    return call


def release(server: RunningServer, *calls: Any) -> None:
    for call in calls:
        call.cancel()
    until(lambda: not any(model.leases for model in server.info().models), "nobody holds a model")


def listed(server: RunningServer, name: str) -> model_pb2.Model:
    models = server.inference.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT).models
    return next(model for model in models if model.name == name)


def messages(server: RunningServer, text: str) -> list[str]:
    return [line["model"] for line in server.log_lines() if line["message"] == text]


def test_ten_first_requests_at_once_cause_one_load(crowded: RunningServer) -> None:
    only(crowded)
    loads = messages(crowded, "model loaded")
    received = list(streams(crowded, [ask(model="a") for _ in range(10)]))
    assert len({tuple(each.token_ids) for each in received}) == 1
    assert messages(crowded, "model loaded") == [*loads, "a"]
    assert [child.pid for child in psutil.Process(crowded.process.pid).children()] == [pids(crowded)["a"]]


def test_the_least_recently_used_gives_way_and_is_gone_before_the_newcomer_comes(crowded: RunningServer) -> None:
    before = only(crowded, "b", "c", "d", "a")
    assert sorted(before) == ["a", "b", "c", "d"]
    evictions = messages(crowded, "evicting")
    # Held still, it takes its time to end: long enough to see whether anybody comes before it is gone.
    victim = psutil.Process(before["b"])
    victim.suspend()
    newcomer = crowded.inference.Generate.future(unary(ask(model="e")), timeout=TIMEOUT)
    seen: set[int] = set()
    while victim.is_running():
        children = {child.pid for child in psutil.Process(crowded.process.pid).children()}
        if victim.is_running():
            seen |= children
    assert seen == set(before.values())
    assert newcomer.result().model == "e"
    after = pids(crowded)
    assert sorted(after) == ["a", "c", "d", "e"]
    assert {name: after[name] for name in "acd"} == {name: before[name] for name in "acd"}
    assert messages(crowded, "evicting") == [*evictions, "b"]
    assert listed(crowded, "b").state == model_pb2.MODEL_STATE_AVAILABLE
    assert crowded.check_health(f"{READINESS}/b") == health_pb2.HealthCheckResponse.SERVING


def test_a_model_in_use_never_gives_way(crowded: RunningServer) -> None:
    before = only(crowded, "a", "c", "d", "e")
    held = hold(crowded, "a")
    stream(crowded, ask(max_tokens=1, model="b"))
    assert sorted(pids(crowded)) == ["a", "b", "d", "e"], "c was the least recently used that nobody held"
    assert pids(crowded)["a"] == before["a"]
    assert next(held).WhichOneof("event") == "delta"
    release(crowded, held)


def test_who_finds_all_in_use_waits_until_one_is_free(crowded: RunningServer) -> None:
    before = only(crowded, "a", "b", "d", "e")
    held = {name: hold(crowded, name) for name in before}
    waiting = crowded.inference.Generate.future(unary(ask(model="c")), timeout=TIMEOUT)
    until(lambda: listed(crowded, "c").queued == 1, "it waits")
    assert listed(crowded, "c").state == model_pb2.MODEL_STATE_AVAILABLE
    assert pids(crowded) == before
    held["d"].cancel()
    assert waiting.result().model == "c"
    assert sorted(pids(crowded)) == ["a", "b", "c", "e"]
    release(crowded, *held.values())


def test_a_broken_model_is_refused_and_nobody_gives_way_for_it(crowded: RunningServer) -> None:
    before = only(crowded, *list(dict.fromkeys([*pids(crowded), *NAMES]))[:4])
    with pytest.raises(grpc.RpcError) as caught:
        generate(crowded, ask(model="broken"))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert reason(caught.value) == "MODEL_UNUSABLE"
    (violation,) = detail(caught.value, PreconditionFailure).violations
    assert violation.subject == "broken"
    assert "model.safetensors is not a safetensors file" in violation.description
    crowded.wait_health(f"{READINESS}/broken", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert crowded.check_health(READINESS) == health_pb2.HealthCheckResponse.SERVING
    model = listed(crowded, "broken")
    assert model.state == model_pb2.MODEL_STATE_FAILED
    assert "not a safetensors file" in model.state_reason
    assert pids(crowded) == before


def test_loading_tells_how_far_it_is_and_joins_a_load_under_way(crowded: RunningServer) -> None:
    unload(crowded, "d")
    loads = messages(crowded, "model loaded").count("d")
    calls = [crowded.admin.LoadModel(admin_pb2.LoadModelRequest(model="d"), timeout=TIMEOUT) for _ in range(2)]
    for events in map(list, calls):
        phases = [event.progress.phase for event in events[:-1]]
        assert phases == sorted(phases)
        assert {admin_pb2.LOAD_PHASE_WEIGHTS, admin_pb2.LOAD_PHASE_WARM_UP} <= set(phases)
        assert events[-1].model.name == "d"
        assert events[-1].model.state == model_pb2.MODEL_STATE_LOADED
    (again,) = crowded.admin.LoadModel(admin_pb2.LoadModelRequest(model="d"), timeout=TIMEOUT)
    assert again.model.state == model_pb2.MODEL_STATE_LOADED
    assert messages(crowded, "model loaded").count("d") == loads + 1
    with pytest.raises(grpc.RpcError) as caught:
        list(crowded.admin.LoadModel(admin_pb2.LoadModelRequest(model="broken"), timeout=TIMEOUT))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_unloading_waits_for_the_requests_in_flight(crowded: RunningServer) -> None:
    stream(crowded, ask(max_tokens=1, model="a"))
    pid = pids(crowded)["a"]
    call, received = crowded.inference.StreamGenerate(ask(max_tokens=300, model="a"), timeout=TIMEOUT), Received()
    received.add(next(call))
    ended = crowded.admin.UnloadModel.future(admin_pb2.UnloadModelRequest(model="a"), timeout=TIMEOUT)
    until(lambda: listed(crowded, "a").state == model_pb2.MODEL_STATE_UNLOADING, "it waits")
    assert not ended.done()
    for event in call:
        received.add(event)
    assert len(received.token_ids) == 300
    response = ended.result()
    assert response.model.state == model_pb2.MODEL_STATE_AVAILABLE
    assert not response.ended_requests
    assert not psutil.pid_exists(pid)
    assert "a" not in pids(crowded)


def test_unloading_by_force_ends_the_requests_in_flight(crowded: RunningServer) -> None:
    held = hold(crowded, "a")
    pid = pids(crowded)["a"]
    response = crowded.admin.UnloadModel(admin_pb2.UnloadModelRequest(model="a", force=True), timeout=TIMEOUT)
    assert response.ended_requests == 1
    assert not psutil.pid_exists(pid)
    with pytest.raises(grpc.RpcError) as caught:
        list(held)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason(caught.value) == "MODEL_UNLOADED"
    check_retry(caught.value)
    again = crowded.admin.UnloadModel(admin_pb2.UnloadModelRequest(model="a"), timeout=TIMEOUT)
    assert again.model.state == model_pb2.MODEL_STATE_AVAILABLE, "a model that is not loaded is no error"


def test_an_unload_that_comes_to_its_deadline_leaves_the_model_as_it_was(crowded: RunningServer) -> None:
    held = hold(crowded, "a")
    pid = pids(crowded)["a"]
    with pytest.raises(grpc.RpcError) as caught:
        crowded.admin.UnloadModel(admin_pb2.UnloadModelRequest(model="a"), timeout=0.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: listed(crowded, "a").state == model_pb2.MODEL_STATE_LOADED, "it is loaded as before")
    assert pids(crowded)["a"] == pid
    assert next(held).WhichOneof("event") == "delta"
    release(crowded, held)


def test_the_longest_wait_for_room_ends_in_a_refusal_that_says_when_to_try_again() -> None:
    models = [argument for name in "ab" for argument in ("--model", f"{name}={noise_model.folder()}")]
    with running_server(*models, "--max-loaded-models", "1", "--longest-wait", "1") as server:
        held = hold(server, "a")
        before = pids(server)
        with pytest.raises(grpc.RpcError) as caught:
            generate(server, ask(model="b"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert reason(caught.value) == "MODEL_BUSY"
        check_retry(caught.value)
        with pytest.raises(grpc.RpcError) as caught:
            server.inference.Generate(unary(ask(model="b")), timeout=0.5)
        # The refusal leaves shortly before the deadline, and on a busy machine it may come too late.
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert pids(server) == before
        assert next(held).WhichOneof("event") == "delta"
        assert server.check_health(f"{READINESS}/b") == health_pb2.HealthCheckResponse.SERVING
