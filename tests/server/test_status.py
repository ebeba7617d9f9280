"""Errors in gRPC's terms: codes, details, and their limits."""

from __future__ import annotations

import inspect
from typing import TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, PreconditionFailure, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from mlxrpc_server import errors
from mlxrpc_server.errors import (
    DeadlineTooShort,
    FingerprintMismatch,
    InvalidRequest,
    ModelNotFound,
    ModelUnusable,
    PromptTooLong,
    ServerError,
    Unavailable,
    Violation,
    not_supported,
)
from mlxrpc_server.status import MAX_BAD_REQUEST, MAX_VIOLATIONS, TABLE, code_of, cut, status_of, trailers_of

D = TypeVar("D", bound=Message)

LONG = "안녕 " * 2000
"""Takes three bytes a character, and nine in a header."""

EXAMPLES: list[ServerError] = [
    InvalidRequest([Violation("sampling.top_p", "2 is too much")]),
    PromptTooLong("input", "too long", 9212, 8192),
    ModelNotFound("qwen", ["qwen3"]),
    ModelUnusable("qwen3", "its weights are broken"),
    FingerprintMismatch("theirs", "ours"),
    Unavailable("QUEUE_FULL", "too many requests", 1.25),
    DeadlineTooShort(3.0, 1.0),
]

ENORMOUS: list[ServerError] = [
    InvalidRequest([Violation(LONG, LONG)] * 100),
    PromptTooLong("input", LONG, 9212, 8192),
    ModelNotFound(LONG, ["qwen3"] * 3),
    ModelUnusable("qwen3", LONG),
    FingerprintMismatch(LONG, "ours"),
    Unavailable("QUEUE_FULL", LONG, 1.25),
]


def detail(status: Status, kind: type[D]) -> D:
    """The one detail of that type."""
    (packed,) = [packed for packed in status.details if packed.Is(kind.DESCRIPTOR)]
    message = kind()
    packed.Unpack(message)
    return message


def kinds(status: Status) -> list[str]:
    return [packed.TypeName().rpartition(".")[2] for packed in status.details]


def test_every_error_has_its_row() -> None:
    known = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ServerError)}
    assert known == set(TABLE)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_every_status_has_one_error_info_with_reason_and_metadata(error: ServerError) -> None:
    status = status_of(error, "request")
    info = detail(status, ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == (error.reason, "mlxrpc", dict(error.metadata))
    assert status.message == str(error)
    assert status.code == code_of(error).value[0]


@pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (EXAMPLES[0], grpc.StatusCode.INVALID_ARGUMENT, ["ErrorInfo", "BadRequest"]),
        (EXAMPLES[1], grpc.StatusCode.INVALID_ARGUMENT, ["ErrorInfo", "BadRequest"]),
        (EXAMPLES[2], grpc.StatusCode.NOT_FOUND, ["ErrorInfo", "ResourceInfo"]),
        (EXAMPLES[3], grpc.StatusCode.FAILED_PRECONDITION, ["ErrorInfo", "PreconditionFailure"]),
        (EXAMPLES[4], grpc.StatusCode.FAILED_PRECONDITION, ["ErrorInfo", "PreconditionFailure"]),
        (EXAMPLES[5], grpc.StatusCode.UNAVAILABLE, ["ErrorInfo", "RetryInfo"]),
        (EXAMPLES[6], grpc.StatusCode.DEADLINE_EXCEEDED, ["ErrorInfo"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_table_is_the_contracts(error: ServerError, code: grpc.StatusCode, details: list[str]) -> None:
    assert code_of(error) is code
    assert kinds(status_of(error, "request")) == details


def test_a_prompt_that_is_too_long_tells_both_numbers() -> None:
    info = detail(status_of(EXAMPLES[1], "request"), ErrorInfo)
    assert info.reason == "PROMPT_TOO_LONG"
    assert dict(info.metadata) == {"prompt_tokens": "9212", "context_length": "8192"}


def test_each_violation_is_told_with_its_reason() -> None:
    error = InvalidRequest([Violation("stop.max_tokens", "0 is too few"), not_supported("tools")])
    status = status_of(error, "request")
    assert detail(status, ErrorInfo).reason == "INVALID_REQUEST"
    assert [
        (violation.field, violation.description, violation.reason)
        for violation in detail(status, BadRequest).field_violations
    ] == [
        ("stop.max_tokens", "0 is too few", "INVALID_VALUE"),
        ("tools", "this server does not support the field yet", "FIELD_NOT_SUPPORTED"),
    ]


def test_a_field_that_is_not_supported_is_the_reason() -> None:
    status = status_of(InvalidRequest([not_supported("tools")]), "request")
    assert detail(status, ErrorInfo).reason == "FIELD_NOT_SUPPORTED"


@pytest.mark.parametrize(("found", "shown"), [(16, 16), (17, 15), (1000, 15)])
def test_more_violations_than_sixteen_are_counted(found: int, shown: int) -> None:
    error = InvalidRequest([Violation(f"stop.sequences[{place}]", "is empty") for place in range(found)])
    violations = detail(status_of(error, "request"), BadRequest).field_violations
    fields = [violation.field for violation in violations if violation.field]
    assert fields == [f"stop.sequences[{place}]" for place in range(shown)]
    assert [violation.description for violation in violations if not violation.field] == (
        [f"and {found - shown} more"] if found > shown else []
    )


@given(st.lists(st.tuples(st.text(), st.text(max_size=3000)), min_size=1, max_size=40))
def test_a_bad_request_keeps_to_its_size_and_counts_what_it_leaves_out(given: list[tuple[str, str]]) -> None:
    error = InvalidRequest([Violation(f"f{path}", description) for path, description in given])
    details = detail(status_of(error, "request"), BadRequest)
    assert details.ByteSize() <= MAX_BAD_REQUEST
    assert len(details.field_violations) <= MAX_VIOLATIONS
    shown = [violation for violation in details.field_violations if violation.field]
    rest = [violation.description for violation in details.field_violations if not violation.field]
    assert shown
    assert rest == ([f"and {len(given) - len(shown)} more"] if len(given) > len(shown) else [])


@pytest.mark.parametrize("error", ENORMOUS, ids=lambda error: type(error).__name__)
def test_the_largest_error_fits_into_trailers(error: ServerError) -> None:
    """gRPC's default allows 8 KiB softly and 16 KiB hard; base64 and percent-encoding count."""
    status = status_of(error, "x" * 128)
    base64 = len(status.SerializeToString()) * 4 / 3
    percent = len(status.message.encode()) * 3
    assert base64 + percent < 12 * 1024


def test_an_unknown_model_is_a_resource() -> None:
    resource = detail(status_of(EXAMPLES[2], "request"), ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("mlxrpc.v1.Model", "qwen")
    assert "qwen3" in resource.description


def test_a_model_that_cannot_be_loaded_tells_the_cause() -> None:
    (violation,) = detail(status_of(EXAMPLES[3], "request"), PreconditionFailure).violations
    assert (violation.type, violation.subject) == ("MODEL_UNUSABLE", "qwen3")
    assert violation.description == "its weights are broken"


def test_what_is_unavailable_says_when_to_come_back() -> None:
    error = EXAMPLES[5]
    status = status_of(error, "request")
    assert detail(status, RetryInfo).retry_delay.ToMilliseconds() == 1250
    assert dict(trailers_of(error, status))["grpc-retry-pushback-ms"] == "1250"


def test_only_what_is_unavailable_asks_to_be_retried() -> None:
    for error in EXAMPLES:
        keys = [key for key, _ in trailers_of(error, status_of(error, "request"))]
        assert ("grpc-retry-pushback-ms" in keys) == isinstance(error, Unavailable)


@pytest.mark.parametrize("error", [ZeroDivisionError("secret"), ServerError("secret")])
def test_a_bug_shows_the_request_id_and_nothing_else(error: Exception) -> None:
    status = status_of(error, "request-17")
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert "request-17" in status.message
    assert b"secret" not in status.SerializeToString()
    assert dict(detail(status, ErrorInfo).metadata) == {"request_id": "request-17"}


def test_half_a_surrogate_pair_in_a_sentence_is_replaced() -> None:
    status = status_of(InvalidRequest([Violation("input.conversation", "no \ud83d here")]), "request")
    assert status.message == "input.conversation: no ? here"


@given(st.text(), st.integers(3, 40))
def test_a_sentence_is_cut_at_whole_characters(sentence: str, size: int) -> None:
    short = cut(sentence, size)
    assert len(short.encode(errors="replace")) <= size
    assert short == sentence or short.endswith("…")
