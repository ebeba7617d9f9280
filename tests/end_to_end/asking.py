"""Requests by their size alone, and what refusals say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from mlxrpc.v1 import inference_pb2 as pb
from tests.end_to_end.streams import streaming

M = TypeVar("M", bound=Message)

FOREVER = 3500
"""Tokens: seconds beyond anything that a test waits for, and within the noise model's context."""


def ids(count: int, variant: int = 0) -> Sequence[int]:
    """So many tokens, none of them special."""
    return [(7 * place + 31 * variant) % 1000 for place in range(count)]


def ask(
    prompt_tokens: int = 5,
    max_tokens: int = 20,
    *,
    variant: int = 0,
    model: str = "",
    seed: int | None = None,
    progress: bool = False,
) -> pb.StreamGenerateRequest:
    """Greedy without a seed; never ended by the model itself."""
    request = streaming(ids(prompt_tokens, variant), seed, max_tokens, model)
    if seed is None:
        request.sampling.temperature = 0.0
    request.stop.ignore_eos = True
    request.stream_options.prefill_progress = progress
    return request


def reason(error: Any) -> str:
    return str(detail(error, error_details_pb2.ErrorInfo).reason)


def detail(error: Any, kind: type[M]) -> M:
    """The one detail of that kind; every error of the server's own has its reason in them."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    (packed,) = [packed for packed in status.details if packed.Is(kind.DESCRIPTOR)]
    found = kind()
    packed.Unpack(found)
    return found


def check_retry(error: Any) -> None:
    """When to try again stands in the detail for programs, and in the trailer for gRPC itself."""
    delay = detail(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds()
    assert delay > 0
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == str(delay)
