"""The built-in model: small, complete, and with a tokenizer and a template that say what the server believes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError
from mlx_lm.utils import load_config, load_tokenizer

from mlxrpc_server import demo
from mlxrpc_server.catalog import Quantization, read_facts
from mlxrpc_server.template import jinja

MOST_BYTES = 12_000_000


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(demo.source())  # type: ignore[no-untyped-call]


def render(*messages: dict[str, str], **variables: Any) -> str:
    """As the server does."""
    config = json.loads((demo.source() / "tokenizer_config.json").read_text(encoding="utf-8"))
    variables = {"add_generation_prompt": True, **variables}
    return jinja(config["chat_template"], variables, create_time=0.0, messages=list(messages))


def test_it_is_small_enough_to_travel_with_every_copy() -> None:
    assert sum(path.stat().st_size for path in demo.source().iterdir()) <= MOST_BYTES


def test_its_files_say_what_it_is() -> None:
    facts = read_facts(demo.source())
    assert (facts.architecture, facts.quantization, facts.problem) == ("qwen3", Quantization(8, 64, "affine"), "")
    assert 5_000_000 <= facts.parameter_count <= 12_000_000
    assert facts.context_length >= 4096


def test_its_tokenizer_has_the_tokens_that_its_configuration_names(tokenizer: Any) -> None:
    config = load_config(demo.source())
    assert len(tokenizer) == config["vocab_size"]
    assert "<|im_end|>" in tokenizer.convert_ids_to_tokens(config["eos_token_id"])
    for marker in ("<think>", "</think>", "<tool_call>", "</tool_call>"):
        assert len(tokenizer.encode(marker, add_special_tokens=False)) == 1


@given(text=st.text())
def test_any_text_survives_its_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_its_template_renders_a_conversation() -> None:
    rendered = render(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "누구세요?"},
        {"role": "assistant", "content": "Pebble 🙂"},
        {"role": "user", "content": "And where?"},
    )
    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n누구세요?<|im_end|>\n"
        "<|im_start|>assistant\nPebble 🙂<|im_end|>\n"
        "<|im_start|>user\nAnd where?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_its_template_offers_tools_and_renders_their_calls_and_answers(tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "서울"}}}
    messages = [
        {"role": "user", "content": "비가 와요?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sunny"},
    ]
    rendered = tokenizer.apply_chat_template(messages, tools=[{"name": "weather"}], tokenize=False)
    assert '\n{"name": "weather"}\n' in rendered
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "서울"}}\n</tool_call>' in rendered
    assert "<|im_start|>tool\n<tool_response>\nsunny\n</tool_response><|im_end|>\n" in rendered


def test_its_template_begins_the_thinking_or_closes_it() -> None:
    message = {"role": "user", "content": "Hi"}
    plain = render(message)
    assert plain.endswith("<|im_start|>assistant\n")
    assert render(message, enable_thinking=True) == plain + "<think>\n"
    assert render(message, enable_thinking=False) == plain + "<think>\n\n</think>\n\n"


def test_its_template_refuses_a_system_message_that_is_not_the_first() -> None:
    with pytest.raises(TemplateError, match="system message"):
        render({"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."})
