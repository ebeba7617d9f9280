"""Errors in gRPC's terms: a google.rpc.Status with its details, and the trailers it travels in.

One table from the server's errors to codes. Knows nothing of where an error came from, and never shows a bug's text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, PreconditionFailure, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status

from mlxrpc_server.errors import (
    DOMAIN,
    DeadlineTooShort,
    FingerprintMismatch,
    InvalidRequest,
    MaxTokensTooLarge,
    ModelNotFound,
    ModelUnusable,
    PromptTooLong,
    ServerError,
    Unavailable,
    Violation,
    shortened,
)

Trailers = tuple[tuple[str, str | bytes], ...]

MAX_VIOLATIONS = 16
MAX_BAD_REQUEST = 4096
"""Bytes. Trailers share 8 KiB by gRPC's default, and base64 makes details a third larger."""
MAX_SENTENCE = 1024
"""Bytes of any sentence in a status."""

DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"


def status_of(error: Exception, request_id: str) -> Status:
    """The whole answer to a call that failed with `error`."""
    if not isinstance(error, ServerError) or code_of(error) is grpc.StatusCode.INTERNAL:
        return _internal(request_id)
    _, details = _row(error)
    info = ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    return _status(code_of(error), str(error), [info, *details(error)])


def trailers_of(error: Exception, status: Status) -> Trailers:
    trailers: Trailers = ((DETAILS_KEY, status.SerializeToString()),)
    if isinstance(error, Unavailable):
        trailers += ((PUSHBACK_KEY, str(round(error.retry_after * 1000))),)
    return trailers


def code_of(error: Exception) -> grpc.StatusCode:
    """INTERNAL for whatever is no error of the server's own."""
    return _row(error)[0] if isinstance(error, ServerError) else grpc.StatusCode.INTERNAL


def cut(sentence: str, size: int = MAX_SENTENCE) -> str:
    """At most `size` bytes of it, whole characters, an ellipsis where something is missing.

    Half a surrogate pair, which JSON can smuggle in and no proto takes, becomes a question mark.
    """
    encoded = sentence.encode(errors="replace")
    return encoded.decode() if len(encoded) <= size else encoded[: size - 3].decode(errors="ignore") + "…"


def _internal(request_id: str) -> Status:
    info = ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"request_id": request_id})
    return _status(grpc.StatusCode.INTERNAL, f"internal error; the server's log has it under {request_id}", [info])


def _status(code: grpc.StatusCode, sentence: str, details: Iterable[Message]) -> Status:
    status = Status(code=code.value[0], message=cut(sentence))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _no_details(_error: ServerError) -> list[Message]:
    return []


def _bad_request(error: InvalidRequest) -> list[Message]:
    """As many fields as trailers can carry; the last line counts the others."""
    shown = [_field_violation(violation) for violation in error.violations[:MAX_VIOLATIONS]]
    while True:
        more = _and_more(len(error.violations) - len(shown))
        details = BadRequest(field_violations=[*shown, *more])
        if len(details.field_violations) <= MAX_VIOLATIONS and details.ByteSize() <= MAX_BAD_REQUEST:
            return [details]
        shown.pop()


def _field_violation(violation: Violation) -> BadRequest.FieldViolation:
    return BadRequest.FieldViolation(
        field=cut(violation.path),
        description=cut(violation.description),
        reason=violation.reason,
    )


def _and_more(number: int) -> Sequence[BadRequest.FieldViolation]:
    return [BadRequest.FieldViolation(description=f"and {number} more")] if number else []


def _resource(error: ModelNotFound) -> list[Message]:
    name = shortened(error.name)
    return [ResourceInfo(resource_type="mlxrpc.v1.Model", resource_name=name, description=cut(str(error)))]


def _unusable(error: ModelUnusable) -> list[Message]:
    return [_precondition(error.reason, error.name, error.cause)]


def _mismatch(error: FingerprintMismatch) -> list[Message]:
    return [_precondition(error.reason, "resume.fingerprint", str(error))]


def _precondition(kind: str, subject: str, description: str) -> PreconditionFailure:
    violation = PreconditionFailure.Violation(type=kind, subject=cut(subject), description=cut(description))
    return PreconditionFailure(violations=[violation])


def _retry(error: Unavailable) -> list[Message]:
    delay = Duration()
    delay.FromMilliseconds(round(error.retry_after * 1000))
    return [RetryInfo(retry_delay=delay)]


_Details = Callable[[Any], list[Message]]  # each takes its own row's error

TABLE: dict[type[ServerError], tuple[grpc.StatusCode, _Details]] = {
    ServerError: (grpc.StatusCode.INTERNAL, _no_details),
    InvalidRequest: (grpc.StatusCode.INVALID_ARGUMENT, _bad_request),
    PromptTooLong: (grpc.StatusCode.INVALID_ARGUMENT, _bad_request),
    MaxTokensTooLarge: (grpc.StatusCode.INVALID_ARGUMENT, _bad_request),
    ModelNotFound: (grpc.StatusCode.NOT_FOUND, _resource),
    ModelUnusable: (grpc.StatusCode.FAILED_PRECONDITION, _unusable),
    FingerprintMismatch: (grpc.StatusCode.FAILED_PRECONDITION, _mismatch),
    Unavailable: (grpc.StatusCode.UNAVAILABLE, _retry),
    DeadlineTooShort: (grpc.StatusCode.DEADLINE_EXCEEDED, _no_details),
}


def _row(error: ServerError) -> tuple[grpc.StatusCode, _Details]:
    return next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)
