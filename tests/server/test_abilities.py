"""What the small files say is what the loaded tokenizer can."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxrpc_server import demo
from mlxrpc_server.abilities import Abilities, abilities_of
from mlxrpc_server.tokenizer import Tokenizer
from tests import noise_model
from tests.server.tokenizers import folder_with

HERMES = "{% for tool in tools %}{{ tool }}{% endfor %}<tool_call>{{ tool_call.name }}"
CASES = [
    (None, [], {}, Abilities()),
    ("{{ messages }}", [], {}, Abilities(chat_template=True)),
    ("", [], {}, Abilities(chat_template=True)),
    (HERMES, [], {}, Abilities(chat_template=True, tools=True)),
    ("{{ tools }}[TOOL_CALLS]", [], {}, Abilities(chat_template=True, tools=True)),
    ("[TOOL_CALLS]", [], {}, Abilities(chat_template=True)),
    ("{{ tools }}", [], {}, Abilities(chat_template=True)),
    ("{{ tools }}", ["<|tool_call_start|>", "<|tool_call_end|>"], {}, Abilities(chat_template=True, tools=True)),
    ("{{ tools }}", [], {"tool_parser_type": "glm47"}, Abilities(chat_template=True, tools=True)),
    ("x", ["<think>", "</think>"], {}, Abilities(chat_template=True, thinking=True)),
    ("x", ["<|channel>", "<channel|>"], {}, Abilities(chat_template=True, thinking=True)),
    ("<think></think>", ["<think>"], {}, Abilities(chat_template=True)),
    (None, [], {"chat_template_type": "deepseek_v32"}, Abilities(chat_template=True)),
]


@pytest.mark.parametrize(("template", "names", "config", "expected"), CASES)
def test_the_small_files_say_what_the_tokenizer_can(
    tmp_path: Path, template: str | None, names: list[str], config: dict[str, str], expected: Abilities
) -> None:
    folder = folder_with(tmp_path, template, names, **config)
    assert abilities_of(folder) == expected
    assert of_loaded(folder) == expected


@pytest.mark.parametrize("folder", [demo.source(), noise_model.folder()], ids=["built-in", "noise"])
def test_the_models_at_hand_can_do_all(folder: Path) -> None:
    assert abilities_of(folder) == of_loaded(folder) == Abilities(chat_template=True, tools=True, thinking=True)


def test_an_empty_folder_can_nothing(tmp_path: Path) -> None:
    assert abilities_of(tmp_path) == Abilities()


@pytest.mark.parametrize("content", ["{", "[]", '"x"', "\xff"])
def test_a_broken_file_says_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content, encoding="latin-1")
    assert abilities_of(tmp_path) == Abilities()


def of_loaded(folder: Path) -> Abilities:
    tokenizer = Tokenizer.load(folder)
    return Abilities(
        tokenizer.has_chat_template, tools=tokenizer.calls is not None, thinking=tokenizer.reasoning is not None
    )
