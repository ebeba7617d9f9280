"""How a channel is set up, and that gRPC does what the settings ask for."""

from __future__ import annotations

import json

import grpc
import pytest

import mlxrpc
from mlxrpc import _channel
from mlxrpc.v1 import inference_pb2 as pb
from tests.client.fake_server import SERVICE, Failure, FakeInference, FakeServer, usual_events

BUSY = Failure(grpc.StatusCode.UNAVAILABLE, "the queue is full", "QUEUE_FULL")


@pytest.mark.parametrize(
    ("target", "balanced"),
    [
        ("127.0.0.1:50051", False),
        ("models.internal:50051", False),
        ("unix:/run/mlxrpc.sock", False),
        ("dns:///models.internal:50051", True),
        ("ipv4:10.0.0.1:50051,10.0.0.2:50051", True),
    ],
)
def test_a_target_of_several_addresses_is_balanced_by_health(target: str, balanced: bool) -> None:
    config = json.loads(str(dict(_channel.channel_options(target))["grpc.service_config"]))
    assert (config.get("healthCheckConfig") == {"serviceName": SERVICE}) is balanced
    assert ("loadBalancingConfig" in config) is balanced


def test_the_callers_options_replace_ours() -> None:
    options = _channel.channel_options("host:1", [("grpc.max_send_message_length", 1), ("grpc.other", 2)])
    assert options.count(("grpc.max_send_message_length", 1)) == 1
    assert len(options) == len(dict(options))
    assert dict(options)["grpc.other"] == 2


def test_the_token_and_all_metadata_are_sent(server: FakeServer, fake: FakeInference) -> None:
    with mlxrpc.Client(server.target, token="secret", metadata={"X-Team": "red"}) as client:
        client.generate("Hello", metadata=[("x-request-id", "mine")])
    sent = fake.metadata[0]
    assert (sent["authorization"], sent["x-team"], sent["x-request-id"]) == ("Bearer secret", "red", "mine")
    assert str(sent["user-agent"]).startswith("mlxrpc-python/")


def test_a_call_that_was_not_begun_is_tried_again(client: mlxrpc.Client, fake: FakeInference) -> None:
    fake.failures = [BUSY, BUSY]
    assert client.generate("Hello").text == "Hello from mlxrpc."
    assert len(fake.requests) == 3


def test_no_other_failure_is_tried_again(client: mlxrpc.Client, fake: FakeInference) -> None:
    fake.failures = [Failure(grpc.StatusCode.INTERNAL, "a bug")]
    with pytest.raises(mlxrpc.Internal):
        client.generate("Hello")
    assert len(fake.requests) == 1


def test_a_stream_that_has_begun_is_not_tried_again(client: mlxrpc.Client, fake: FakeInference) -> None:
    fake.events = list(usual_events(pb.StreamGenerateRequest()))[:2]
    fake.failure_at_the_end = BUSY
    with client.stream("Hello") as stream, pytest.raises(mlxrpc.Unavailable) as caught:
        stream.result()
    assert (stream.text, caught.value.reason, len(fake.requests)) == ("Hello", "QUEUE_FULL", 1)


def test_messages_above_four_megabytes_pass(client: mlxrpc.Client) -> None:
    word = "x" * 5_000_000
    assert client.count_tokens(mlxrpc.Text(f"{word} {word}")).token_count == 2


def test_several_servers_share_the_calls_and_an_unready_one_gets_none() -> None:
    with FakeServer().running() as one, FakeServer().running() as two, FakeServer().running() as unready:
        unready.set_health(SERVICE, serving=False)
        target = "ipv4:" + ",".join(each.target for each in (one, two, unready))
        with mlxrpc.Client(target) as client:
            # Until both connections stand, one server gets all the calls.
            for _ in range(1000):
                client.generate("Hello", timeout=10)
                if one.inference.requests and two.inference.requests:
                    break
        assert one.inference.requests
        assert two.inference.requests
        assert unready.inference.requests == []
