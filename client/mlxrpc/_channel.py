"""How a channel to a server is opened: limits, keepalive, retries, balancing. Knows no message and no RPC of the contract."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from mlxrpc._version import __version__

DEFAULT_TARGET = "127.0.0.1:50051"
SERVICE = "mlxrpc.v1.InferenceService"

Option = tuple[str, str | int]
Pairs = tuple[tuple[str, str | bytes], ...]
Metadata = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]

# gRPC refuses messages above 4 MB unless told otherwise, which a long prompt given as token ids or an image reaches.
MESSAGE_LIMIT = 64 * 1024 * 1024

# Servers close connections that ping more often than every five minutes (the default of all gRPC implementations).
KEEPALIVE_SECONDS = 330

# UNAVAILABLE alone says that the request was not begun. A stream is retried only before its first message; a server that
# wants to be left alone for a while says so in grpc-retry-pushback-ms, which gRPC honours by itself.
RETRIES = {
    "name": [{"service": SERVICE}],
    "retryPolicy": {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    },
}

BALANCING = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": SERVICE},
}


def channel_options(target: str, more: Iterable[Option] = ()) -> list[Option]:
    """The options for a channel to `target`; those in `more` replace ours."""
    options: dict[str, str | int] = {
        "grpc.primary_user_agent": f"mlxrpc-python/{__version__}",
        "grpc.max_send_message_length": MESSAGE_LIMIT,
        "grpc.max_receive_message_length": MESSAGE_LIMIT,
        "grpc.keepalive_time_ms": KEEPALIVE_SECONDS * 1000,
        "grpc.keepalive_timeout_ms": 20_000,
        "grpc.service_config": json.dumps(service_config(target)),
    }
    return list((options | dict(more)).items())


def service_config(target: str) -> dict[str, object]:
    config: dict[str, object] = {"methodConfig": [RETRIES]}
    return config | BALANCING if names_several(target) else config


def names_several(target: str) -> bool:
    """Whether the target asks for all its addresses: `dns:///name:port`, or a list such as `ipv4:10.0.0.1:50051,10.0.0.2:50051`.

    A plain `host:port` gets one connection: behind it there may be a proxy, whose health is not that of one server.
    """
    return target.startswith("dns:") or "," in target


def call_metadata(token: str | None, *sources: Metadata | None) -> Pairs:
    """What is sent beside a request: the caller's metadata, with the token in front."""
    pairs: list[tuple[str, str | bytes]] = [("authorization", f"Bearer {token}")] if token else []
    for source in sources:
        entries = source.items() if isinstance(source, Mapping) else source or ()
        pairs.extend((key.lower(), value) for key, value in entries)
    return tuple(pairs)
