"""Protos as nobody would write them: every field may be anything that its type can carry."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

M = TypeVar("M", bound=Message)

_TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.sampled_from(["{}", '{"a": 1}', '{"messages": 0}', "[1]", "NaN", "[" * 5000, "x" * 300, "\x00", "1" * 5000]),
)
_KINDS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=20),
    FieldDescriptor.TYPE_DOUBLE: st.floats() | st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    FieldDescriptor.TYPE_ENUM: st.integers(-1, 9),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 40),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 40),
    FieldDescriptor.TYPE_STRING: _TEXTS,
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1) | st.integers(0, 40),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1) | st.integers(0, 40),
}


@st.composite
def arbitrary(draw: st.DrawFn, kind: type[M]) -> M:
    message = kind()
    _fill(draw, message)
    return message


def _fill(draw: st.DrawFn, message: Any) -> None:
    """Recursion ends by itself: no message of the contract holds itself."""
    descriptor: Descriptor = message.DESCRIPTOR
    for field in descriptor.fields:
        if draw(st.booleans()):
            _set(draw, message, field)


def _set(draw: st.DrawFn, message: Any, field: FieldDescriptor) -> None:
    value = getattr(message, field.name)
    if _is_map(field):
        keys, values = _message_type(field).fields
        value.update(draw(st.dictionaries(_KINDS[keys.type], _KINDS[values.type], max_size=3)))
    elif field.is_repeated and field.message_type:
        for _ in range(draw(st.integers(0, 3))):
            _fill(draw, value.add())
    elif field.is_repeated:
        value.extend(draw(st.lists(_KINDS[field.type], max_size=20)))
    elif field.message_type:
        value.SetInParent()
        _fill(draw, value)
    else:
        setattr(message, field.name, draw(_KINDS[field.type]))


def _is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def _message_type(field: FieldDescriptor) -> Descriptor:
    assert field.message_type is not None
    return field.message_type
