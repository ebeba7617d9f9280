"""A model as ListModels and the admin service show it: its small files, its state, and what it can do here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from mlxrpc.v1.model_pb2 import Capabilities
from mlxrpc.v1.model_pb2 import Model as ModelMessage
from mlxrpc_server import protos
from mlxrpc_server.abilities import abilities_of
from mlxrpc_server.catalog import Entry
from mlxrpc_server.model import Model
from mlxrpc_server.models import Models


async def describe(entries: Iterable[Entry], models: Models) -> list[ModelMessage]:
    """The models as they are now."""
    wanted = list(entries)
    await asyncio.to_thread(_read_files, wanted)
    return [_described(entry, models) for entry in wanted]


def capabilities_of(entry: Entry, loaded: Model | None) -> Capabilities:
    """Vision is not offered yet, whatever the model could do."""
    can = abilities_of(entry.tokenizer_path)
    return Capabilities(
        chat_template=can.chat_template,
        tools=can.tools,
        thinking=can.thinking,
        constraints=True,
        batching=_batches(loaded),
    )


def _read_files(entries: Iterable[Entry]) -> None:
    """Off the loop: all that an entry and this module read once and keep."""
    for entry in entries:
        _ = entry.facts
        abilities_of(entry.tokenizer_path)


def _described(entry: Entry, models: Models) -> ModelMessage:
    status = models.status(entry)
    return protos.model(entry, status, capabilities_of(entry, status.model))


def _batches(loaded: Model | None) -> bool:
    """Measured when a model is loaded; until then it is taken for what nearly all are."""
    return loaded is None or loaded.ready is None or loaded.ready.batched
