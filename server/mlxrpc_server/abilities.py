"""What a model's small files say that it can do: take a chat template, call tools, think.

No tokenizer is loaded for it, and so a list of models costs little; a loaded one comes to the same.
It knows where tokenizers keep their templates and names, and leaves it to mlx-lm which of them mean what.
"""

from __future__ import annotations

import functools
import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxrpc_server.tools import takes_tools


@dataclass(frozen=True, slots=True)
class Abilities:
    chat_template: bool = False
    tools: bool = False
    thinking: bool = False


@functools.cache
def abilities_of(folder: Path) -> Abilities:
    """Reads the folder once."""
    config = _read_json(folder / "tokenizer_config.json")
    files = _Files(_template(folder, config), _read(folder / "tokenizer.json") + json.dumps(config).encode())
    mlx_lm = importlib.import_module("mlx_lm.tokenizer_utils")
    # Private, as is all that mlx-lm knows of markers before it has a tokenizer; the pin holds it still.
    parser = config.get("tool_parser_type") or mlx_lm._infer_tool_parser(files)
    return Abilities(
        chat_template=files.chat_template is not None or bool(config.get("chat_template_type")),
        tools=bool(parser) and takes_tools(files.chat_template),
        thinking=mlx_lm._infer_thinking(files)[0] is not None,
    )


class _Files:
    """As much of a tokenizer as mlx-lm looks at when it infers markers: its template, and which names it has."""

    def __init__(self, chat_template: Any, names: bytes) -> None:
        self.chat_template = chat_template
        self._names = names

    def get_vocab(self) -> _Files:
        return self

    def __contains__(self, name: str) -> bool:
        return json.dumps(name, ensure_ascii=False).encode() in self._names

    def __getitem__(self, name: str) -> int:
        return 0

    def encode(self, _text: str, **_options: Any) -> list[int]:
        return []


def _template(folder: Path, config: dict[str, Any]) -> Any:
    """Text as a rule, or several by name. A chat_template.json is for processors of images; tokenizers do not read it."""
    path = folder / "chat_template.jinja"
    return _read(path).decode(errors="replace") if path.is_file() else config.get("chat_template")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(path) or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
