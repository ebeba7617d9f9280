"""What a server says about its models, as a view of the contract's Model. Pure: knows no channel."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum

from mlxrpc.v1 import model_pb2

Server = model_pb2.Server


class ModelState(StrEnum):
    """Where a model is in its life; also a plain str: `model.state == "loaded"`."""

    UNSPECIFIED = "unspecified"  # a state that this version of the client does not know
    AVAILABLE = "available"
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"
    FAILED = "failed"


_STATES = {model_pb2.ModelState.Value(f"MODEL_STATE_{each.name}"): each for each in ModelState}


class Model:
    """One model of a server. None stands for what the server does not know. `proto` has every field of the contract."""

    def __init__(self, proto: model_pb2.Model) -> None:
        self.proto = proto

    @property
    def name(self) -> str:
        return self.proto.name

    @property
    def aliases(self) -> tuple[str, ...]:
        return tuple(self.proto.aliases)

    @property
    def display_name(self) -> str:
        """A name for people; the name itself where none was configured."""
        return self.proto.display_name or self.proto.name

    @property
    def description(self) -> str:
        return self.proto.description

    @property
    def state(self) -> ModelState:
        return _STATES.get(self.proto.state, ModelState.UNSPECIFIED)

    @property
    def state_reason(self) -> str:
        """Why, in words: always for a model that failed."""
        return self.proto.state_reason

    @property
    def architecture(self) -> str:
        return self.proto.architecture

    @property
    def context_length(self) -> int | None:
        return self.proto.context_length if self.proto.HasField("context_length") else None

    @property
    def max_output_tokens(self) -> int | None:
        return self.proto.max_output_tokens if self.proto.HasField("max_output_tokens") else None

    @property
    def quantization(self) -> model_pb2.Quantization | None:
        return self.proto.quantization if self.proto.HasField("quantization") else None

    @property
    def parameter_count(self) -> int | None:
        return self.proto.parameter_count if self.proto.HasField("parameter_count") else None

    @property
    def weights_bytes(self) -> int | None:
        return self.proto.weights_bytes if self.proto.HasField("weights_bytes") else None

    @property
    def memory_bytes(self) -> int | None:
        """Measured, while the model is loaded."""
        return self.proto.memory_bytes if self.proto.HasField("memory_bytes") else None

    @property
    def default_sampling(self) -> model_pb2.Sampling:
        return self.proto.default_sampling

    @property
    def default_system_prompt(self) -> str:
        return self.proto.default_system_prompt

    @property
    def capabilities(self) -> frozenset[str]:
        """What the model can do here, such as `chat_template`, `tools` or `thinking`."""
        return frozenset(field.name for field, value in self.proto.capabilities.ListFields() if value)

    @property
    def last_used_time(self) -> datetime | None:
        given = self.proto.HasField("last_used_time")
        return self.proto.last_used_time.ToDatetime(tzinfo=UTC) if given else None

    @property
    def load_time(self) -> datetime | None:
        given = self.proto.HasField("load_time")
        return self.proto.load_time.ToDatetime(tzinfo=UTC) if given else None

    @property
    def load_seconds(self) -> float | None:
        """How long the last load took."""
        given = self.proto.HasField("load_duration")
        return self.proto.load_duration.ToNanoseconds() / 1e9 if given else None

    @property
    def in_flight(self) -> int:
        return self.proto.in_flight

    @property
    def queued(self) -> int:
        return self.proto.queued

    def __repr__(self) -> str:
        return f"Model({self.name!r}, state={self.state.value!r})"


class ModelList(list[Model]):
    """A server's models, by name, and the server that answered."""

    def __init__(self, models: Sequence[Model], server: Server) -> None:
        super().__init__(models)
        self.server = server
