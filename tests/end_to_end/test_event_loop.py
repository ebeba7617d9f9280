"""Whatever the server is busy with, it answers meanwhile: shown by what comes before what, not by clocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from mlxrpc.v1 import admin_pb2, model_pb2
from mlxrpc.v1 import inference_pb2 as pb
from tests import noise_model
from tests.end_to_end.asking import FOREVER, ask
from tests.end_to_end.running import READINESS, RunningServer, running_server
from tests.end_to_end.streams import TIMEOUT, prompt, stream
from tests.end_to_end.workers import next_worker, suspended, workers

pytestmark = pytest.mark.xdist_group("event loop")

SERVING = health_pb2.HealthCheckResponse.SERVING
STREAMS = 32


@pytest.fixture(scope="module")
def twofold() -> Iterator[RunningServer]:
    """One model loaded, and one that is not."""
    models = [argument for name in "ab" for argument in ("--model", f"{name}={noise_model.folder()}")]
    with running_server(*models) as server:
        yield server


def check_answers(server: RunningServer) -> None:
    """Everything that needs no model answers."""
    assert server.check_health() == SERVING
    assert server.check_health(READINESS) == SERVING
    assert server.info().open_rpcs > 1
    assert len(server.inference.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT).models) == 2
    assert server.inference.CountTokens(pb.CountTokensRequest(input=prompt("hello")), timeout=TIMEOUT).token_count


def test_the_server_answers_while_a_load_is_pending(twofold: RunningServer) -> None:
    known = [worker.pid for worker in workers(twofold)]
    loading: Any = twofold.admin.LoadModel(admin_pb2.LoadModelRequest(model="b"), timeout=TIMEOUT)
    waiting: Any = twofold.inference.StreamGenerate(ask(model="b"), timeout=TIMEOUT)
    with suspended(next_worker(twofold, known)):
        check_answers(twofold)
        twofold.wait_ready(f"{READINESS}/b")
        models = twofold.inference.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT).models
        states = [model.state for model in models]
        assert states == [model_pb2.MODEL_STATE_LOADED, model_pb2.MODEL_STATE_LOADING]
        # The other model generates as ever.
        assert len(stream(twofold, ask(model="a")).token_ids) == 20
        assert not loading.done()
        assert not waiting.done()
    assert list(loading)[-1].model.state == model_pb2.MODEL_STATE_LOADED
    assert list(waiting)[-1].WhichOneof("event") == "finished"


def test_health_is_answered_again_and_again_while_a_long_prompt_is_tokenized(twofold: RunningServer) -> None:
    long = ("안녕 hello 🙂 " * 10_000)[:100_000]
    counting = twofold.inference.CountTokens.future(pb.CountTokensRequest(input=prompt(long)), timeout=TIMEOUT)
    meanwhile = 0
    while not counting.done():
        assert twofold.check_health() == SERVING
        meanwhile += not counting.done()
    assert counting.result().token_count > 10_000
    # The first may overtake the long message on the wire; those behind it may not.
    assert meanwhile > 3


def test_the_server_answers_while_32_streams_run(twofold: RunningServer) -> None:
    request = ask(model="a", max_tokens=FOREVER)
    calls: list[Any] = [twofold.inference.StreamGenerate(request, timeout=TIMEOUT) for _ in range(STREAMS)]
    for call in calls:
        next(call)
    check_answers(twofold)
    assert twofold.loaded("a").leases == STREAMS
    assert not any(call.done() for call in calls)
    for call in calls:
        assert next(call).WhichOneof("event") == "delta"
        call.cancel()
