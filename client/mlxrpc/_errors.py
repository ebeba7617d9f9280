"""What a call can fail with. Knows gRPC's statuses and their details, and no RPC.

    mlxrpc.Error
    ├── InvalidArgument      violations: every field at fault
    ├── NotFound             nearest: the names that come closest
    ├── FailedPrecondition   the model cannot be loaded, or a stream cannot be resumed here
    ├── ResourceExhausted    the caller's quota; retry_after
    ├── Unavailable          not now; retry_after
    ├── DeadlineExceeded
    ├── Unauthenticated      no token, or a wrong one
    ├── PermissionDenied     a good token without the right
    ├── Cancelled
    ├── Unimplemented        the server does not know the RPC
    └── Internal             a bug in the server; request_id finds it in the log
        └── IncompleteStream the stream ended well without saying how

`from_status` is the one place that makes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as AnyMessage
from google.rpc import error_details_pb2, status_pb2

DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"

Detail = TypeVar("Detail", bound=AnyMessage)


@dataclass(frozen=True, slots=True)
class Violation:
    """One field at fault: its path in the request, such as `sampling.top_p`, a sentence, and a word for programs."""

    field: str
    description: str
    reason: str = ""


class Error(Exception):
    """A call that failed. `str()` is one sentence for a person.

    >>> try:
    ...     client.generate("Hello", model="nobody")
    ... except mlxrpc.Error as error:
    ...     print(error.code.name, error.reason)
    NOT_FOUND MODEL_NOT_FOUND
    """

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        status: status_pb2.Status | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message, code, status, request_id)
        self.message = message
        self.code = code
        #: The google.rpc.Status with all details, where the server sent one.
        self.status = status
        #: What the server's log calls this request. Empty: the failure did not come from the service.
        self.request_id = request_id

    def __str__(self) -> str:
        return self.message

    @property
    def reason(self) -> str:
        """A word for programs, such as `PROMPT_TOO_LONG`. Empty: the server gave none."""
        info = self._detail(error_details_pb2.ErrorInfo)
        return info.reason if info else ""

    @property
    def metadata(self) -> dict[str, str]:
        """Facts that go with the reason, such as `prompt_tokens` and `context_length`."""
        info = self._detail(error_details_pb2.ErrorInfo)
        return dict(info.metadata) if info else {}

    @property
    def retry_after(self) -> float | None:
        """The seconds to wait before trying again, where the server said."""
        retry = self._detail(error_details_pb2.RetryInfo)
        return retry.retry_delay.ToNanoseconds() / 1e9 if retry else None

    def _detail(self, kind: type[Detail]) -> Detail | None:
        for packed in self.status.details if self.status else ():
            detail = kind()
            if packed.Unpack(detail):
                return detail
        return None


class InvalidArgument(Error):
    @property
    def violations(self) -> tuple[Violation, ...]:
        """Every field at fault, as far as the server lists them."""
        request = self._detail(error_details_pb2.BadRequest)
        found = request.field_violations if request else ()
        return tuple(Violation(each.field, each.description, each.reason) for each in found)


class NotFound(Error):
    @property
    def nearest(self) -> tuple[str, ...]:
        """The known names that come closest to the one asked for."""
        return tuple(filter(None, self.metadata.get("nearest", "").split(",")))


class FailedPrecondition(Error): ...


class ResourceExhausted(Error): ...


class Unavailable(Error): ...


class DeadlineExceeded(Error): ...


class Unauthenticated(Error): ...


class PermissionDenied(Error): ...


class Cancelled(Error): ...


class Unimplemented(Error): ...


class Internal(Error): ...


class IncompleteStream(Internal): ...


KINDS: dict[grpc.StatusCode, type[Error]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: Internal,
}

Trailers = Iterable[tuple[str, str | bytes]]


class FailedCall(Protocol):
    """What grpc's and grpc.aio's errors have in common."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Iterable[Any] | None: ...


def from_call(call: FailedCall) -> Error:
    return from_status(call.code(), call.details(), call.trailing_metadata())


def from_status(code: grpc.StatusCode, message: str | None, trailers: Trailers | None) -> Error:
    """The exception for a status; its details are optional, since a proxy or gRPC itself sends none."""
    found = dict(trailers or ())
    request_id = found.get(REQUEST_ID_KEY, "")
    return KINDS.get(code, Error)(
        message or f"the call failed with {code.name}",
        code,
        _status(found.get(DETAILS_KEY)),
        request_id if isinstance(request_id, str) else "",
    )


def _status(encoded: str | bytes | None) -> status_pb2.Status | None:
    """The details, unless there are none or a proxy mangled them: the code and the message still stand then."""
    if not isinstance(encoded, bytes):
        return None
    try:
        return status_pb2.Status.FromString(encoded)
    except DecodeError:
        return None
