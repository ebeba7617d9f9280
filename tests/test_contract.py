"""The contract itself: its stubs, its comments, and the rules that every part of it keeps."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message

from mlxrpc.v1 import admin_pb2, inference_pb2, model_pb2

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "proto/mlxrpc/v1").glob("*.proto"))
FILES: list[FileDescriptor] = [admin_pb2.DESCRIPTOR, inference_pb2.DESCRIPTOR, model_pb2.DESCRIPTOR]

DECLARATION = re.compile(r"(message|enum|service|rpc|oneof)\s+(?P<name>\w+)|.*?(?P<member>\w+)\s+=\s+\d+\s*;")


def declarations_without_comment(proto: str) -> Iterator[str]:
    previous = ""
    for line in map(str.strip, proto.splitlines()):
        declared = DECLARATION.match(line)
        if declared and not line.startswith("//") and not previous.startswith("//"):
            yield declared["name"] or declared["member"]
        previous = line


def messages() -> Iterator[Descriptor]:
    for file in FILES:
        for message in file.message_types_by_name.values():
            yield message
            yield from (nested for nested in message.nested_types if not nested.GetOptions().map_entry)


def enums() -> Iterator[EnumDescriptor]:
    for file in FILES:
        yield from file.enum_types_by_name.values()
    for message in messages():
        yield from message.enum_types


def methods() -> Iterator[MethodDescriptor]:
    for file in FILES:
        for service in file.services_by_name.values():
            yield from service.methods


def shape(field: FieldDescriptor) -> tuple[int, int, str | None, bool, bool]:
    type_name = field.message_type.full_name if field.message_type else None
    return field.number, field.type, type_name, field.is_repeated, field.has_presence


def test_the_stubs_are_current(tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    subprocess.run(["make", "--silent", "proto", f"STUBS={tmp_path}"], cwd=ROOT, env=environment, check=True)  # noqa: S607

    def contents(folder: Path) -> dict[str, str]:
        return {path.name: path.read_text() for path in folder.glob("*_pb2*.py*")}

    fresh = contents(tmp_path / "mlxrpc/v1")
    assert fresh
    assert contents(ROOT / "client/mlxrpc/v1") == fresh, "the stubs are stale: run `make proto` and commit them"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_everything_declared_has_a_comment(source: Path) -> None:
    assert list(declarations_without_comment(source.read_text())) == []


def test_a_declaration_without_a_comment_is_found() -> None:
    proto = """
    // Said.
    message Documented {
      // Said.
      string documented = 1;
      optional uint32 bare = 2;
    }
    enum Bare {}
    """
    assert list(declarations_without_comment(proto)) == ["bare", "Bare"]


def test_both_ways_to_generate_take_the_same_fields() -> None:
    unary = {field.name: shape(field) for field in inference_pb2.GenerateRequest.DESCRIPTOR.fields}
    stream = {field.name: shape(field) for field in inference_pb2.StreamGenerateRequest.DESCRIPTOR.fields}
    stream.pop("stream_options")
    assert unary == stream


def test_reading_is_marked_as_free_of_side_effects() -> None:
    reading = {
        method.name
        for method in methods()
        if method.GetOptions().idempotency_level == MethodOptions.IdempotencyLevel.NO_SIDE_EFFECTS
    }
    assert reading == {"CountTokens", "ListModels", "GetServerInfo"}


def test_each_rpc_has_messages_of_its_own_and_only_answers_stream() -> None:
    for method in methods():
        assert (method.input_type.name, method.output_type.name) == (f"{method.name}Request", f"{method.name}Response")
        assert not method.client_streaming
    assert {method.name for method in methods() if method.server_streaming} == {"StreamGenerate", "LoadModel"}


def test_zero_of_every_enum_is_unspecified() -> None:
    for enum in enums():
        prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", enum.name).upper()
        assert enum.values_by_number[0].name == f"{prefix}_UNSPECIFIED"


@pytest.mark.parametrize(
    "message",
    [model_pb2.Sampling.DESCRIPTOR, inference_pb2.Resume.DESCRIPTOR],
    ids=lambda message: message.name,
)
def test_unset_differs_from_zero_where_numbers_are_chosen(message: Descriptor) -> None:
    numbers = [f for f in message.fields if not f.is_repeated and f.cpp_type != FieldDescriptor.CPPTYPE_STRING]
    assert numbers
    assert [field.name for field in numbers if not field.has_presence] == []


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (inference_pb2.Stop, "max_tokens"),
        (inference_pb2.Stop, "max_reasoning_tokens"),
        (inference_pb2.Output, "logprobs"),
        (inference_pb2.Template, "enable_thinking"),
        (inference_pb2.StreamOptions, "min_delta_tokens"),
        (inference_pb2.Token, "logprob"),
        (inference_pb2.ListModelsFilter, "max_size_bytes"),
        (model_pb2.Model, "context_length"),
        (model_pb2.Model, "max_output_tokens"),
        (model_pb2.Model, "parameter_count"),
        (model_pb2.Model, "weights_bytes"),
        (model_pb2.Model, "memory_bytes"),
        (admin_pb2.LoadProgress, "fraction"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.DESCRIPTOR.name,
)
def test_unset_differs_from_zero_here_too(message: type[Message], field: str) -> None:
    assert message.DESCRIPTOR.fields_by_name[field].has_presence
