"""An error as its caller gets it. Whatever the server refuses must come so."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.end_to_end.asking import detail

T = TypeVar("T")


@dataclass(frozen=True)
class Refusal:
    """An error of the server's own, as every one of them must be."""

    error: Any
    """A grpc.RpcError; the stubs do not say that it is the call too."""

    def __post_init__(self) -> None:
        status = rpc_status.from_call(self.error)
        assert status is not None, f"an error without details: {self.error}"
        kinds = [packed.type_url for packed in status.details]
        assert len(kinds) == len(set(kinds)), "a detail type comes twice"
        assert self.info.domain == "mlxrpc"
        assert re.fullmatch("[A-Z][A-Z_]+[A-Z]", self.info.reason)
        assert status.message == self.error.details()
        assert len(status.message) <= 1024

    @property
    def code(self) -> grpc.StatusCode:
        code: grpc.StatusCode = self.error.code()
        return code

    @property
    def info(self) -> error_details_pb2.ErrorInfo:
        return detail(self.error, error_details_pb2.ErrorInfo)

    @property
    def violations(self) -> list[error_details_pb2.BadRequest.FieldViolation]:
        return list(detail(self.error, error_details_pb2.BadRequest).field_violations)

    @property
    def fields(self) -> list[str]:
        return sorted(violation.field for violation in self.violations)


def outcome(call: Callable[[], T]) -> T | Refusal:
    try:
        return call()
    except grpc.RpcError as error:
        return Refusal(error)


def refusal(call: Callable[[], object]) -> Refusal:
    answer = outcome(call)
    assert isinstance(answer, Refusal), f"it was served: {answer}"
    return answer
