"""Tokenizers for tests, with the template and the names that a test asks for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests import noise_model


def folder_with(parent: Path, template: str | None, names: Iterable[str] = (), **config: Any) -> Path:
    """A folder of the noise model's tokenizer, with these tokens in addition and its own markers taken out of the names."""
    folder = parent / "tokenizer"
    folder.mkdir()
    tokenizer = json.loads((noise_model.folder() / "tokenizer.json").read_text(encoding="utf-8"))
    kept = [entry for entry in tokenizer["added_tokens"] if entry["content"].startswith("<|")]
    last = 1275
    for number, name in enumerate(names, 1):
        kept.append({**kept[0], "content": name, "id": last + number})
    tokenizer["added_tokens"] = kept
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", **config}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
