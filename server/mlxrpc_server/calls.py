"""The seam around every RPC: its ids, its deadline, its end in gRPC's terms, and one log line.

Knows what is the same for all RPCs, and nothing of what any of them does.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.message import Message

from mlxrpc_server import status
from mlxrpc_server.errors import ServerError, Unavailable
from mlxrpc_server.types import RequestId

log = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"
DRAIN_RETRY = 1.0
"""Seconds after which a refused caller tries again; by then the balancer has moved it to another server."""

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")

Context = grpc.aio.ServicerContext[Any, Any]


class Calls:
    """The RPCs that are open. Once draining it admits none but those that only look on."""

    def __init__(self) -> None:
        self.draining = False
        self.open = 0
        """How many there are, those that are being refused included."""
        self._changed = asyncio.Event()

    def admit(self, context: Context, rpc: str, *, while_draining: bool = False) -> Call:
        """A call, to be entered; entering raises what its caller is told, where it is not admitted."""
        return Call(self, context, rpc, while_draining)

    def drain(self) -> None:
        """From now on new calls are sent elsewhere; those that are open go on."""
        self.draining = True

    async def all_ended(self) -> None:
        while self.open:
            await self._changed.wait()

    def count(self, change: int) -> None:
        self.open += change
        self._changed.set()
        self._changed = asyncio.Event()


class Call:
    """One RPC, as a context: whatever is raised within becomes its status."""

    def __init__(self, calls: Calls, context: Context, rpc: str, while_draining: bool) -> None:
        self.id = RequestId(uuid.uuid4().hex)
        """Ours, and unique; a caller may send the same x-request-id twice."""
        self.request_id = _given_request_id(context) or self.id
        self.arrived = time.monotonic()
        self.deadline = _deadline(context)
        """In time.monotonic's terms; None where the caller set none."""
        self._calls = calls
        self._context = context
        self._while_draining = while_draining
        self._begun = False
        self._facts: dict[str, object] = {"rpc": rpc} | _trace(context)

    @property
    def echo(self) -> status.Trailers:
        return ((REQUEST_ID_KEY, self.request_id),)

    def note(self, **facts: object) -> None:
        """What the log line will tell beside the usual."""
        self._facts |= facts

    async def write(self, message: Message) -> None:
        """One message of a stream. The initial metadata goes with the first: until then the call can be retried."""
        if not self._begun:
            self._begun = True
            await self._context.send_initial_metadata(self.echo)
        await self._context.write(message)

    async def __aenter__(self) -> Self:
        self._context.set_trailing_metadata(self.echo)
        self._calls.count(+1)
        if self._calls.draining and not self._while_draining:
            await self.__aexit__(Unavailable, _draining(), None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._end(error)
        finally:
            self._calls.count(-1)

    async def _end(self, error: BaseException | None) -> None:
        match error:
            case None:
                self._log("OK")
            case asyncio.CancelledError() | grpc.aio.InternalError():
                # InternalError: a write to a caller who is gone, before its cancel reached us. gRPC expects both.
                self._log(self._why_cancelled())
            case Exception():
                await self._abort(error)

    async def _abort(self, error: Exception) -> None:
        """The one place where every error becomes a status, also those that nobody thought of."""
        answer = status.status_of(error, self.request_id)
        code = status.code_of(error)
        if isinstance(error, ServerError):
            self._facts["reason"] = error.reason
        self._log(code.name, bug=error if code is grpc.StatusCode.INTERNAL else None)
        await self._context.abort(code, answer.message, self.echo + status.trailers_of(error, answer))

    def _why_cancelled(self) -> str:
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return "DEADLINE_EXCEEDED" if late else "CANCELLED"

    def _log(self, code: str, bug: Exception | None = None) -> None:
        facts = {
            "code": code,
            "request_id": self.request_id,
            "seconds": round(time.monotonic() - self.arrived, 6),
            **self._facts,
        }
        if bug is None:
            log.info("call ended", extra=facts)
        else:
            log.error("call ended by a bug", extra=facts, exc_info=bug)


def _given_request_id(context: Context) -> RequestId | None:
    given = _given(context, REQUEST_ID_KEY, _REQUEST_ID)
    return RequestId(given[0]) if given else None


def _trace(context: Context) -> dict[str, object]:
    """The trace that the caller's traceparent names, for the log."""
    given = _given(context, "traceparent", _TRACEPARENT)
    return {"trace_id": given[1]} if given else {}


def _given(context: Context, wanted: str, pattern: re.Pattern[str]) -> re.Match[str] | None:
    """The caller's metadata of that key, where it is as it should be."""
    for key, value in context.invocation_metadata() or ():
        if key == wanted and isinstance(value, str) and (match := pattern.fullmatch(value)):
            return match
    return None


def _deadline(context: Context) -> float | None:
    remaining: float | None = context.time_remaining()  # the type stubs leave the None out
    return None if remaining is None else time.monotonic() + remaining


def _draining() -> Unavailable:
    return Unavailable("DRAINING", "the server is shutting down and takes no new calls", DRAIN_RETRY)
