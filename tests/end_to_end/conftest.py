"""Servers for all tests that leave them as they found them; a test that breaks something starts its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import noise_model
from tests.end_to_end.running import RunningServer, running_server

MODELS = """
preload = []

[[models]]
name = "noise"
source = "{noise}"

[[models]]
name = "small"
source = "{noise}"
aliases = ["tiny"]
context_length = 48
max_output_tokens = 8
system_prompt = "Be brief."
defaults = {{ temperature = 0.0 }}

[[models]]
name = "dated"
source = "{dated}"
"""

DATE = "{{- strftime_now('%Y-%m-%d %H:%M:%S') }}\n"


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """The noise model, loaded."""
    with running_server() as running:
        yield running


@pytest.fixture(scope="session")
def pebble() -> Iterator[RunningServer]:
    """The built-in model, loaded."""
    with running_server(built_in=True) as running:
        yield running


@pytest.fixture(scope="session")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The noise model again, and as it might be configured; none is loaded before it is asked for."""
    folder = tmp_path_factory.mktemp("configured")
    dated = _dated(folder / "dated")
    config = folder / "mlxrpc.toml"
    config.write_text(MODELS.format(noise=noise_model.folder(), dated=dated), encoding="utf-8")
    with running_server("--config", str(config)) as running:
        yield running


def _dated(folder: Path) -> Path:
    """The noise model with a template that prints the time."""
    folder.mkdir()
    for file in noise_model.folder().iterdir():
        (folder / file.name).symlink_to(file)
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8"))
    content["chat_template"] = DATE + content["chat_template"]
    settings.unlink()
    settings.write_text(json.dumps(content), encoding="utf-8")
    return folder
