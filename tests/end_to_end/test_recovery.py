"""A worker dies, and nobody's stream notices more than a pause; a server dies, and takes its workers along."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2

from mlxrpc.v1 import admin_pb2, model_pb2
from mlxrpc.v1 import inference_pb2 as pb
from tests import noise_model
from tests.end_to_end.asking import FOREVER, ask, check_retry, reason
from tests.end_to_end.running import READINESS, RunningServer, running_server, until
from tests.end_to_end.streams import MODEL, TIMEOUT, Received, same_tokens, stream, streaming, streams
from tests.end_to_end.workers import gone, next_worker, suspended, workers

pytestmark = pytest.mark.xdist_group("recovery")

STREAMS = 32
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
WISHES = [
    streaming("안녕하세요 🙂 " * (number % 3) + "hello", seed=number, max_tokens=64 + number % 9)
    if number % 2
    else ask(prompt_tokens=3 + number, max_tokens=64 + number % 9)
    for number in range(STREAMS)
]


@pytest.fixture(scope="module")
def mortal() -> Iterator[RunningServer]:
    """Whose worker the tests may kill: it comes back."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(mortal: RunningServer) -> list[Received]:
    return list(streams(mortal, WISHES))


@pytest.fixture(scope="module")
def narrow() -> Iterator[RunningServer]:
    """One row at a time, and short prefill chunks: long in the queue, and long in prefill."""
    with running_server("--max-rows", "1", "--prefill-tokens", "16") as server:
        yield server


class Watch:
    """Every status that the server tells of one name, as it comes."""

    def __init__(self, server: RunningServer, service: str) -> None:
        self.seen: list[int] = []
        self._news = threading.Condition()
        request = health_pb2.HealthCheckRequest(service=service)
        self._call = server.health.Watch(request, timeout=TIMEOUT)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        self.until(SERVING)

    def until(self, *last: int) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self.seen[-len(last) :] == list(last), TIMEOUT), self.seen

    def end(self) -> list[int]:
        self._call.cancel()
        self._thread.join()
        return self.seen

    def _follow(self) -> None:
        try:
            for response in self._call:
                with self._news:
                    self.seen.append(response.status)
                    self._news.notify_all()
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.CANCELLED  # noqa: PT017


def begun(server: RunningServer, wishes: Sequence[pb.StreamGenerateRequest]) -> list[tuple[Any, Received]]:
    """Streams of which each has said something, and what it was."""
    calls = [(server.inference.StreamGenerate(wish, timeout=TIMEOUT), Received()) for wish in wishes]
    for call, received in calls:
        read_until_delta(call, received)
    return calls


def read_until_delta(call: Any, received: Received) -> None:
    before = len(received.deltas)
    while len(received.deltas) == before:
        received.add(next(call))


def ended(calls: Sequence[tuple[Any, Received]]) -> list[Received]:
    for call, received in calls:
        for event in call:
            received.add(event)
    return [received for _, received in calls]


def check(
    server: RunningServer,
    wishes: Sequence[pb.StreamGenerateRequest],
    expected: Sequence[Received],
    actual: Sequence[Received],
) -> None:
    """Nothing repeated, nothing lost: the same ids, and the same text."""
    for wish, undisturbed, disturbed in zip(wishes, expected, actual, strict=True):
        if same_tokens(server, wish, undisturbed.token_ids, disturbed.token_ids):
            assert disturbed.text == undisturbed.text
            assert disturbed.end.finish_reason == undisturbed.end.finish_reason
            assert uncached(disturbed.end.usage) == uncached(undisturbed.end.usage)


def uncached(usage: pb.Usage) -> tuple[int, int]:
    """Without what earlier requests may have saved it."""
    return usage.prompt_tokens, usage.completion_tokens


def deaths(server: RunningServer) -> list[dict[str, Any]]:
    return [line for line in server.log_lines() if line["message"] == "the worker died; replacing it"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_32_streams_survive_the_death_of_their_worker(
    mortal: RunningServer, undisturbed: list[Received], number: signal.Signals
) -> None:
    model, readiness, liveness = (Watch(mortal, name) for name in (f"{READINESS}/{MODEL}", READINESS, ""))
    calls = begun(mortal, WISHES)
    before = mortal.loaded()
    os.kill(before.pid, number)
    disturbed = ended(calls)
    model.until(SERVING, NOT_SERVING, SERVING)
    assert model.end() == [SERVING, NOT_SERVING, SERVING]
    assert readiness.end() == [SERVING]
    assert liveness.end() == [SERVING]
    check(mortal, WISHES, undisturbed, disturbed)
    death = deaths(mortal)[-1]
    assert (death["pid"], death["how"]) == (before.pid, f"signal {number.name}")
    assert death["in_flight"] == STREAMS
    assert mortal.loaded().restarts == before.restarts + 1
    assert not psutil.pid_exists(before.pid)


def test_a_stream_survives_two_deaths_with_progress_in_between(mortal: RunningServer) -> None:
    wish = ask(max_tokens=250)
    expected = stream(mortal, wish)
    health = Watch(mortal, f"{READINESS}/{MODEL}")
    calls = begun(mortal, [wish])
    before = mortal.loaded()
    os.kill(before.pid, signal.SIGKILL)
    health.until(SERVING, NOT_SERVING, SERVING)
    # Its first step gives the row its next token.
    until(lambda: mortal.loaded().steps > 0, "the replacement has made a step")
    os.kill(mortal.loaded().pid, signal.SIGKILL)
    check(mortal, [wish], [expected], ended(calls))
    assert health.end() == [SERVING, NOT_SERVING, SERVING, NOT_SERVING, SERVING]
    assert mortal.loaded().restarts == before.restarts + 2


def test_a_worker_that_dies_in_prefill_loses_no_request(narrow: RunningServer) -> None:
    wish, pid = ask(3000, progress=True), narrow.loaded().pid
    call, received = narrow.inference.StreamGenerate(wish, timeout=TIMEOUT), Received()
    while not received.progress or received.progress[-1].processed_tokens < 200:
        received.add(next(call))
    os.kill(pid, signal.SIGKILL)
    ended([(call, received)])
    done = [progress.processed_tokens for progress in received.progress]
    assert any(later < earlier for earlier, later in itertools.pairwise(done)), "it began again"
    # Not before: what is kept of a prompt need not be computed again, and a worker with it would not have died in prefill.
    check(narrow, [wish], [stream(narrow, wish)], [received])


def test_a_worker_that_dies_loses_no_queued_request(narrow: RunningServer) -> None:
    wishes = [ask(variant=variant, max_tokens=200 if variant == 0 else 10) for variant in range(4)]
    expected = [stream(narrow, wish) for wish in wishes]
    calls = begun(narrow, wishes[:1])
    calls += [(narrow.inference.StreamGenerate(wish, timeout=TIMEOUT), Received()) for wish in wishes[1:]]
    until(lambda: narrow.loaded().leases == 4, "all are admitted")
    os.kill(narrow.loaded().pid, signal.SIGKILL)
    check(narrow, wishes, expected, ended(calls))


def test_two_deaths_without_a_token_in_between_end_the_request(narrow: RunningServer) -> None:
    health = Watch(narrow, f"{READINESS}/{MODEL}")
    call = narrow.inference.StreamGenerate(ask(FOREVER, progress=True), timeout=TIMEOUT)
    received = Received()
    while not received.progress:
        received.add(next(call))
    os.kill(narrow.loaded().pid, signal.SIGKILL)
    health.until(SERVING, NOT_SERVING, SERVING)
    # Hundreds of chunks stand before its first token: it cannot have one yet.
    os.kill(narrow.loaded().pid, signal.SIGKILL)
    with pytest.raises(grpc.RpcError) as caught:
        ended([(call, received)])
    assert not received.deltas
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason(caught.value) == "ENGINE_DIED"
    check_retry(caught.value)
    health.until(SERVING)
    health.end()
    assert len(stream(narrow, ask()).token_ids) == 20


def test_a_worker_that_cannot_be_replaced_fails_its_model_until_one_can(narrow: RunningServer) -> None:
    liveness, health = Watch(narrow, ""), Watch(narrow, f"{READINESS}/{MODEL}")
    calls = begun(narrow, [ask(max_tokens=FOREVER)])
    pid = narrow.loaded().pid
    os.kill(pid, signal.SIGKILL)
    dead = {pid}
    for _ in range(2):
        replacement = next_worker(narrow, dead)
        replacement.kill()
        dead.add(replacement.pid)
    with pytest.raises(grpc.RpcError) as caught:
        ended(calls)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason(caught.value) == "ENGINE_DIED"
    check_retry(caught.value)
    with suspended(next_worker(narrow, dead)):
        assert narrow.check_health(f"{READINESS}/{MODEL}") == NOT_SERVING
        (model,) = narrow.inference.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT).models
        assert model.state == model_pb2.MODEL_STATE_FAILED
        assert "died while loading" in model.state_reason
        with pytest.raises(grpc.RpcError) as caught:
            stream(narrow, ask())
        assert reason(caught.value) == "ENGINE_DIED"
    health.until(SERVING, NOT_SERVING, SERVING)
    assert len(stream(narrow, ask()).token_ids) == 20
    assert health.end() == [SERVING, NOT_SERVING, SERVING]
    assert liveness.end() == [SERVING]


def test_workers_die_with_a_killed_server(tmp_path: Path) -> None:
    """One while it generates, and one inside native code: it waits for a weights file that never says anything."""
    models = ("--model", f"a={noise_model.folder()}", "--model", f"b={silent_model(tmp_path / 'silent')}")
    with running_server(*models) as server:
        (busy,) = workers(server)
        call = server.inference.StreamGenerate(ask(max_tokens=FOREVER), timeout=TIMEOUT)
        read_until_delta(call, Received())
        loading = server.admin.LoadModel(admin_pb2.LoadModelRequest(model="b"), timeout=TIMEOUT)
        next(event for event in loading if event.progress.phase == admin_pb2.LOAD_PHASE_WEIGHTS)
        hung = next_worker(server, [busy.pid])
        until(lambda: hung.status() == psutil.STATUS_SLEEPING, "it waits for the file")
        server.process.kill()
        server.wait()
        until(lambda: gone(busy) and gone(hung), "both workers are gone")
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def silent_model(folder: Path) -> Path:
    """The noise model with a second weights file, a pipe into which nobody writes."""
    folder.mkdir()
    for file in noise_model.folder().iterdir():
        (folder / file.name).symlink_to(file)
    os.mkfifo(folder / "model-2.safetensors")
    return folder
