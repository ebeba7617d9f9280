"""The noise model: made the same every time, made once, and loaded by mlx-lm like any other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_config, load_model, load_tokenizer

from tests import noise_model
from tests.noise_model import CONTEXT, EOS_IDS, LEARNED, VOCABULARY

PROMPTS = ("Hello", "안녕하세요 친구가", "😀 🎉", "def count(words):", "SELECT name", "1 2 3 4")

# Waits for a line, so that several of these begin at the same moment.
MAKE = """
import sys
from pathlib import Path
from tests import noise_model
print("waiting", flush=True)
sys.stdin.readline()
noise_model.make_into(Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def folder() -> Path:
    return noise_model.folder()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_model(folder)[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def make_on_command(ready: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAKE, str(ready)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def render(tokenizer: Any, *messages: dict[str, Any], **options: Any) -> str:
    rendered: str = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    return rendered


def next_logits(model: Any, ids: list[int], cache: Any = None) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(model(mx.array([ids]), cache=cache)[0, -1])


def continue_greedily(model: Any, ids: list[int], count: int) -> list[int]:
    cache = make_prompt_cache(model)
    for _ in range(count):
        unread = ids[cache[0].offset :]
        ids = [*ids, int(next_logits(model, unread, cache).argmax())]
    return ids[-count:]


def test_processes_that_make_it_at_once_leave_one_complete_folder_with_the_same_bytes(
    folder: Path, tmp_path: Path
) -> None:
    ready = tmp_path / "folder" / "ready"
    processes = [make_on_command(ready) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
    for process in processes:
        process.communicate("go\n", timeout=60)
        assert process.returncode == 0
    assert [path.name for path in ready.parent.iterdir()] == ["ready"]
    assert contents(ready) == contents(folder)


def test_the_folder_that_is_there_first_stays(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ready.mkdir()
    (ready / "first").touch()
    noise_model.make_into(ready)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["ready", "ready/first"]


@given(text=st.text())
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [("🚀", 1), ("리", 1), ("🦊", 3), ("뷁", 3), ("<|im_end|>", 1), ("<think>", 1), ("</tool_call>", 1)],
)
def test_some_characters_are_one_token_and_others_are_split(tokenizer: Any, text: str, count: int) -> None:
    assert len(tokenizer.encode(text, add_special_tokens=False)) == count


def test_the_configuration_tells_what_the_tokenizer_has(folder: Path, tokenizer: Any, model: Any) -> None:
    assert len(tokenizer) == model.args.vocab_size == VOCABULARY
    assert model.args.max_position_embeddings == tokenizer.model_max_length == CONTEXT
    assert tokenizer.convert_ids_to_tokens(EOS_IDS) == ["<|im_end|>", "<|endoftext|>"]
    assert load_config(folder)["eos_token_id"] == EOS_IDS


def test_the_template_renders_each_role(tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "서울"}}}
    rendered = render(
        tokenizer,
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "비가 와요?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sunny"},
        add_generation_prompt=True,
    )
    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n비가 와요?<|im_end|>\n"
        "<|im_start|>assistant\n"
        '<tool_call>{"name": "weather", "arguments": {"city": "서울"}}</tool_call><|im_end|>\n'
        "<|im_start|>tool\nsunny<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_template_offers_tools_after_the_system_message(tokenizer: Any) -> None:
    messages = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
    rendered = render(tokenizer, *messages, tools=[{"name": "weather"}])
    instructions, question = rendered.split("<|im_end|>\n", 1)
    assert instructions.startswith("<|im_start|>system\nBe brief.\n\nYou can call these functions:\n")
    assert '\n{"name": "weather"}\n' in instructions
    assert question == "<|im_start|>user\nHi<|im_end|>\n"


def test_the_template_closes_the_thinking_that_is_not_wanted(tokenizer: Any) -> None:
    message = {"role": "user", "content": "Hi"}
    rendered = render(tokenizer, message, add_generation_prompt=True, enable_thinking=False)
    assert rendered.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_the_template_refuses_a_system_message_that_is_not_the_first(tokenizer: Any) -> None:
    with pytest.raises(TemplateError, match="system message"):
        render(tokenizer, {"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."})


def test_greedy_text_does_not_fall_into_a_loop(tokenizer: Any, model: Any) -> None:
    texts = [continue_greedily(model, tokenizer.encode(prompt), 30) for prompt in PROMPTS]
    assert min(len(set(text)) for text in texts) >= 15
    assert len({tuple(text[:8]) for text in texts}) == len(PROMPTS)


def test_the_end_is_unlikely_but_possible(tokenizer: Any, model: Any) -> None:
    for prompt in PROMPTS:
        logits = next_logits(model, tokenizer.encode(prompt))
        assert 1e-7 < np.exp(logits[EOS_IDS]).sum() / np.exp(logits).sum() < 1e-3
        assert logits.argmax() < LEARNED


def test_logits_are_spread_and_depend_on_every_token_and_its_place(tokenizer: Any, model: Any) -> None:
    ids = tokenizer.encode("Once upon a time in a village by the river")
    logits = next_logits(model, ids)
    assert 2 < logits.std() < 4
    for other in ([ids[1], *ids[1:]], [ids[1], ids[0], *ids[2:]], ids[1:]):
        assert (next_logits(model, other) - logits).std() > 0.1
