"""A model as ListModels and the admin service show it: its small files, its state, and what it can do here."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Iterable
from pathlib import Path

from mlxrpc.v1.model_pb2 import Capabilities
from mlxrpc.v1.model_pb2 import Model as ModelMessage
from mlxrpc_server import protos
from mlxrpc_server.catalog import Entry
from mlxrpc_server.model import Model
from mlxrpc_server.models import Models


async def describe(entries: Iterable[Entry], models: Models) -> list[ModelMessage]:
    """The models as they are now."""
    wanted = list(entries)
    await asyncio.to_thread(_read_files, wanted)
    return [_described(entry, models) for entry in wanted]


def capabilities_of(entry: Entry, loaded: Model | None) -> Capabilities:
    """Tools, thinking, constraints and vision are not offered yet, whatever the model could do."""
    return Capabilities(
        chat_template=brings_chat_template(entry.tokenizer_path),
        batching=_batches(loaded),
    )


@functools.cache
def brings_chat_template(folder: Path) -> bool:
    """Looks where tokenizers keep their templates, once per folder. No tokenizer is loaded for it."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template") or config.get("chat_template_type"))


def _read_files(entries: Iterable[Entry]) -> None:
    """Off the loop: all that an entry and this module read once and keep."""
    for entry in entries:
        _ = entry.facts
        brings_chat_template(entry.tokenizer_path)


def _described(entry: Entry, models: Models) -> ModelMessage:
    status = models.status(entry)
    return protos.model(entry, status, capabilities_of(entry, status.model))


def _batches(loaded: Model | None) -> bool:
    """Measured when a model is loaded; until then it is taken for what nearly all are."""
    return loaded is None or loaded.ready is None or loaded.ready.batched
