"""How a status becomes an exception."""

from __future__ import annotations

import pickle

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

import mlxrpc
from mlxrpc._errors import KINDS, from_status
from tests.client.fake_server import UNKNOWN_MODEL, Failure, violations


def error_of(failure: Failure) -> mlxrpc.Error:
    return from_status(failure.code, failure.message, failure.trailers())


@pytest.mark.parametrize("code", KINDS)
def test_each_code_has_its_exception(code: grpc.StatusCode) -> None:
    error = error_of(Failure(code, "no", "BECAUSE", {"a": "1"}))
    assert type(error).__name__.upper() == code.name.replace("_", "")
    assert (str(error), error.code, error.reason, error.metadata) == ("no", code, "BECAUSE", {"a": "1"})
    assert error.request_id == "request-1"


def test_every_violation_is_told() -> None:
    bad = violations(("sampling.top_p", "must be at most 1"), ("stop.sequences[0]", "is empty"))
    error = error_of(Failure(grpc.StatusCode.INVALID_ARGUMENT, "two fields are wrong", details=[bad]))
    assert isinstance(error, mlxrpc.InvalidArgument)
    assert error.violations[0] == mlxrpc.Violation("sampling.top_p", "must be at most 1", "OUT_OF_RANGE")
    assert [each.field for each in error.violations] == ["sampling.top_p", "stop.sequences[0]"]


def test_an_unknown_model_comes_with_the_nearest_names() -> None:
    error = error_of(UNKNOWN_MODEL)
    assert isinstance(error, mlxrpc.NotFound)
    assert error.nearest == ("demo",)


def test_unavailable_says_when_to_try_again() -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000))
    assert error_of(Failure(grpc.StatusCode.UNAVAILABLE, "queue full", details=[retry])).retry_after == 1.5


def test_an_error_of_grpc_itself_has_no_details() -> None:
    error = from_status(grpc.StatusCode.INVALID_ARGUMENT, None, None)
    assert isinstance(error, mlxrpc.InvalidArgument)
    assert (error.reason, error.metadata, error.violations, error.retry_after) == ("", {}, (), None)
    assert (error.request_id, error.status) == ("", None)
    assert str(error) == "the call failed with INVALID_ARGUMENT"


def test_mangled_details_do_not_hide_the_error() -> None:
    error = from_status(grpc.StatusCode.NOT_FOUND, "no", [("grpc-status-details-bin", b"\xff\xff")])
    assert isinstance(error, mlxrpc.NotFound)
    assert (str(error), error.status, error.nearest) == ("no", None, ())


def test_a_code_that_the_service_never_uses_is_a_plain_error() -> None:
    error = from_status(grpc.StatusCode.DATA_LOSS, "lost", None)
    assert type(error) is mlxrpc.Error
    assert error.code is grpc.StatusCode.DATA_LOSS


def test_an_error_survives_pickling() -> None:
    copied = pickle.loads(pickle.dumps(error_of(UNKNOWN_MODEL)))  # noqa: S301 -- our own bytes
    assert isinstance(copied, mlxrpc.NotFound)
    assert (str(copied), copied.nearest, copied.request_id) == (UNKNOWN_MODEL.message, ("demo",), "request-1")
