"""From the first second to the last: when the server is ready, what it logs, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from mlxrpc.v1 import admin_pb2
from mlxrpc.v1 import inference_pb2 as pb
from tests.end_to_end.asking import FOREVER, ask, check_retry, reason
from tests.end_to_end.running import READINESS, START_SECONDS, RunningServer, running_server, until
from tests.end_to_end.streams import MODEL, TIMEOUT, Received, generate, prompt, said, streaming
from tests.end_to_end.workers import gone, next_worker, suspended, workers

pytestmark = pytest.mark.xdist_group("lifecycle")

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
NAMES = ("", READINESS, f"{READINESS}/{MODEL}")


@pytest.fixture(scope="module")
def watched() -> Iterator[RunningServer]:
    """A server that was looked at while it came up."""
    with running_server(ready=False) as server:
        with suspended(next_worker(server)):
            check_not_ready(server)
        server.wait_ready()
        yield server


def check_not_ready(server: RunningServer) -> None:
    assert server.check_health("") == SERVING
    assert server.check_health(READINESS) == NOT_SERVING
    assert server.check_health(f"{READINESS}/{MODEL}") == SERVING
    with pytest.raises(grpc.RpcError) as caught:
        server.check_health("mlxrpc.v1.InferenceService/nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_the_server_is_alive_at_once_and_ready_when_its_preloaded_models_are_warm(watched: RunningServer) -> None:
    # The fixture has seen the first half.
    assert [watched.check_health(name) for name in NAMES] == [SERVING] * 3
    assert watched.loaded().state


def test_the_log_is_json_with_request_ids_and_no_word_of_a_prompt(watched: RunningServer) -> None:
    secret = "Zanzibar"
    conversation = pb.Conversation(messages=[said(secret)])
    answers = []
    for number, request in enumerate((streaming(secret, max_tokens=8), streaming(conversation, max_tokens=8))):
        call = watched.inference.StreamGenerate(
            request, metadata=(("x-request-id", f"mine-{number}"),), timeout=TIMEOUT
        )
        received = Received()
        for event in call:
            received.add(event)
        answers.append(received.text)
    count = pb.CountTokensRequest(input=prompt(secret))
    watched.inference.CountTokens(count, metadata=(("x-request-id", "mine-2"),), timeout=TIMEOUT)
    with pytest.raises(grpc.RpcError):
        generate(watched, streaming(secret, model=secret))
    until(lambda: "mine-2" in watched.log(), "the calls are in the log")
    log = watched.log()
    lines = [json.loads(line) for line in log.splitlines()]
    ended = {line["request_id"]: line for line in lines if line["message"] == "call ended"}
    assert {f"mine-{number}" for number in range(3)} <= ended.keys()
    assert (ended["mine-0"]["code"], ended["mine-0"]["model"], ended["mine-0"]["completion_tokens"]) == ("OK", MODEL, 8)
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert not any(text in log for text in (secret, *answers))


@pytest.mark.parametrize("flag", ["--listen", "--admin"])
def test_a_taken_port_is_a_sentence_and_exit_code_2(watched: RunningServer, flag: str) -> None:
    command = [sys.executable, "-m", "mlxrpc_server", "--listen", "127.0.0.1:0", flag, watched.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, check=False)
    assert done.returncode == 2
    assert f"cannot listen on {watched.address}: is the address in use?" in done.stderr
    assert "Traceback" not in done.stderr


def refused(call: Any) -> str:
    """The reason of a refusal that tells when to come back."""
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    check_retry(caught.value)
    return reason(caught.value)


def test_sigterm_lets_running_streams_end_and_sends_everybody_else_away() -> None:
    with running_server("--max-rows", "1", "--lame-duck", "1", "--drain-timeout", "600") as server:
        (worker,) = workers(server)
        # Balancers watch until the end; it must not wait for them.
        watch = server.health.Watch(health_pb2.HealthCheckRequest(service=""))
        assert next(watch).status == SERVING
        running, received = server.inference.StreamGenerate(ask(max_tokens=40), timeout=TIMEOUT), Received()
        received.add(next(running))
        # Held still, the worker keeps the running stream from ending before all else has been seen.
        with suspended(worker):
            queued = server.inference.StreamGenerate(ask(), timeout=TIMEOUT)
            until(lambda: server.loaded().leases == 2, "the second request waits")
            server.terminate()
            assert next(watch).status == NOT_SERVING
            for name in NAMES:
                server.wait_health(name, NOT_SERVING)
            # The lame duck still serves.
            count = pb.CountTokensRequest(input=prompt("hello"))
            assert server.inference.CountTokens(count, timeout=TIMEOUT).token_count
            assert refused(queued) == "DRAINING"
            for new in (
                server.inference.StreamGenerate(ask(), timeout=TIMEOUT),
                server.admin.LoadModel(admin_pb2.LoadModelRequest(), timeout=TIMEOUT),
            ):
                assert refused(new) == "DRAINING"
            assert [server.check_health(name) for name in NAMES] == [NOT_SERVING] * 3
            assert server.loaded().leases == 1
        for event in running:
            received.add(event)
        assert len(received.token_ids) == 40
        assert received.finished is not None
        assert server.wait() == 0
        assert gone(worker)
        ended = [line for line in server.log_lines() if line["message"] == "drained"]
        assert [line["open_calls"] for line in ended] == [0]


def test_what_has_not_ended_in_time_is_told_to_go_on_elsewhere() -> None:
    with running_server("--drain-timeout", "0") as server:
        (worker,) = workers(server)
        running = server.inference.StreamGenerate(ask(max_tokens=FOREVER), timeout=TIMEOUT)
        next(running)
        server.terminate()
        assert refused(running) == "DRAINING"
        assert server.wait() == 0
        assert gone(worker)


def test_who_waits_for_a_load_is_sent_away_at_the_end() -> None:
    with running_server(ready=False) as server:
        worker = next_worker(server)
        waiting = server.inference.StreamGenerate(ask(), timeout=TIMEOUT)
        with suspended(worker):
            until(lambda: server.loaded().leases == 2, "the request waits beside the preload")
            server.terminate()
            assert refused(waiting) == "DRAINING"
            assert server.wait() == 0
        assert gone(worker)


def test_a_second_signal_ends_at_once() -> None:
    with running_server("--lame-duck", "3600", "--drain-timeout", "3600") as server:
        (worker,) = workers(server)
        running = server.inference.StreamGenerate(ask(max_tokens=FOREVER), timeout=TIMEOUT)
        next(running)
        server.terminate()
        server.wait_health("", NOT_SERVING)
        assert server.process.poll() is None
        server.terminate()
        assert server.wait() == 0
        assert gone(worker)
        check_cut(running)


def test_a_stream_that_outlasts_the_drain_is_cut_so_that_it_can_go_on_elsewhere() -> None:
    with running_server("--drain-timeout", "0.1") as server:
        (worker,) = workers(server)
        running = server.inference.StreamGenerate(ask(max_tokens=FOREVER), timeout=TIMEOUT)
        next(running)
        with suspended(worker):
            server.terminate()
            assert server.wait() == 0
        assert gone(worker)
        check_cut(running)


def check_cut(call: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
