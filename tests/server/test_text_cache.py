from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers

from mlxrpc_server.errors import InvalidRequest
from mlxrpc_server.tokenizer import Tokenizer, TokenizerError, Tokenizers
from mlxrpc_server.types import Conversation, Input, Message, Prompt, TextInput, TokenInput

PATIENCE = 30.0
"""Seconds until a test that waits for what never comes gives up."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every byte is a token."""
    folder = tmp_path_factory.mktemp("bytes")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust = RustTokenizer(models.BPE({character: number for number, character in enumerate(alphabet)}, []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    rust.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


class Loads:
    """Loads that the test lets go, and a list of what was asked for."""

    def __init__(self, tokenizer: Tokenizer, *, held: bool = False) -> None:
        self.paths: list[Path] = []
        self.begun = threading.Event()
        self.gate = threading.Event()
        self.failures: list[TokenizerError] = []
        self._tokenizer = tokenizer
        if not held:
            self.gate.set()

    def __call__(self, path: Path) -> Tokenizer:
        self.paths.append(path)
        self.begun.set()
        assert self.gate.wait(PATIENCE)
        if self.failures:
            raise self.failures.pop()
        return self._tokenizer


class Slow(Tokenizer):
    """A tokenizer whose prompts wait until the test lets them go."""

    def __init__(self, wrapper: Any) -> None:
        super().__init__(wrapper)
        self.begun = threading.Event()
        self.gate = threading.Event()
        self.order: list[str] = []

    def prompt(self, given: Input, create_time: float, context: int | None = None) -> Prompt:
        self.order.append(given.text if isinstance(given, TextInput) else "conversation")
        self.begun.set()
        assert self.gate.wait(PATIENCE)
        return super().prompt(given, create_time, context)


async def came(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, PATIENCE)


async def test_concurrent_first_uses_share_one_load(tokenizer: Tokenizer) -> None:
    loads = Loads(tokenizer, held=True)
    tokenizers = Tokenizers(load=loads)
    users = [asyncio.create_task(tokenizers.get(Path("a"))) for _ in range(10)]
    await came(loads.begun)
    assert not any(user.done() for user in users)
    loads.gate.set()
    assert await asyncio.gather(*users) == [tokenizer] * 10
    assert loads.paths == [Path("a")]


async def test_the_least_recently_used_is_dropped(tokenizer: Tokenizer) -> None:
    loads = Loads(tokenizer)
    tokenizers = Tokenizers(limit=2, load=loads)
    for name in ("a", "b", "a", "c", "a", "b"):
        await tokenizers.get(Path(name))
    assert loads.paths == [Path("a"), Path("b"), Path("c"), Path("b")]


async def test_loads_under_way_at_once_leave_no_more_than_the_limit(tokenizer: Tokenizer) -> None:
    loads = Loads(tokenizer, held=True)
    tokenizers = Tokenizers(limit=2, load=loads)
    users = [asyncio.create_task(tokenizers.get(Path(name))) for name in "abcd"]
    await came(loads.begun)
    loads.gate.set()
    await asyncio.gather(*users)
    loads.paths.clear()
    for name in "dcba":
        await tokenizers.get(Path(name))
    assert loads.paths == [Path("b"), Path("a")]


async def test_a_failed_load_reaches_all_who_wait_and_is_tried_again(tokenizer: Tokenizer) -> None:
    loads = Loads(tokenizer, held=True)
    loads.failures.append(TokenizerError("broken"))
    tokenizers = Tokenizers(load=loads)
    users = [asyncio.create_task(tokenizers.get(Path("a"))) for _ in range(3)]
    await came(loads.begun)
    loads.gate.set()
    results = await asyncio.gather(*users, return_exceptions=True)
    assert [str(result) for result in results] == ["broken"] * 3
    assert await tokenizers.get(Path("a")) is tokenizer


async def test_a_caller_that_gives_up_does_not_end_the_load(tokenizer: Tokenizer) -> None:
    loads = Loads(tokenizer, held=True)
    tokenizers = Tokenizers(load=loads)
    first, second = (asyncio.create_task(tokenizers.get(Path("a"))) for _ in range(2))
    await came(loads.begun)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    loads.gate.set()
    assert await second is tokenizer
    assert loads.paths == [Path("a")]


async def test_close_ends_what_is_under_way(tokenizer: Tokenizer) -> None:
    loads = Loads(tokenizer, held=True)
    tokenizers = Tokenizers(load=loads)
    user = asyncio.create_task(tokenizers.get(Path("a")))
    await came(loads.begun)
    await tokenizers.close()
    loads.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await user


async def test_prompts_are_made_off_the_loop(folder: Path) -> None:
    tokenizers = Tokenizers()
    said = Conversation((Message("user", "안녕"),))
    given: list[Input] = [TextInput("hi"), said, TokenInput((1, 2))]
    prompts = [await tokenizers.prompt(folder, each, 0.0) for each in given]
    tokenizer = await tokenizers.get(folder)
    assert prompts == [tokenizer.prompt(each, 0.0) for each in given]


async def test_the_loop_goes_on_while_a_prompt_is_made(folder: Path) -> None:
    slow = Slow.load(folder)
    found: dict[Path, Tokenizer] = {Path("a"): slow}
    tokenizers = Tokenizers(load=found.__getitem__)
    task = asyncio.create_task(tokenizers.prompt(Path("a"), TextInput("x" * 100_000), 0.0))
    await came(slow.begun)
    assert not task.done()
    slow.gate.set()
    assert len((await task).token_ids) == 100_000


async def test_one_model_at_a_time_and_in_order_but_others_meanwhile(folder: Path, tokenizer: Tokenizer) -> None:
    slow = Slow.load(folder)
    found: dict[Path, Tokenizer] = {Path("slow"): slow, Path("other"): tokenizer}
    tokenizers = Tokenizers(load=found.__getitem__)
    first = asyncio.create_task(tokenizers.prompt(Path("slow"), TextInput("1"), 0.0))
    await came(slow.begun)
    later = [asyncio.create_task(tokenizers.prompt(Path("slow"), TextInput(text), 0.0)) for text in "23"]
    assert len((await tokenizers.prompt(Path("other"), TextInput("abc"), 0.0)).token_ids) == 3
    assert slow.order == ["1"]
    slow.gate.set()
    await asyncio.gather(first, *later)
    assert slow.order == ["1", "2", "3"]


async def test_a_conversation_with_long_tools_lets_short_prompts_by(folder: Path) -> None:
    slow = Slow.load(folder)
    found: dict[Path, Tokenizer] = {Path("slow"): slow}
    tokenizers = Tokenizers(load=found.__getitem__)
    long = Conversation((Message("user", "hi"),), json_length=10**6)
    asked: list[Input] = [TextInput("1"), long, TextInput("2")]
    prompts = [asyncio.create_task(tokenizers.prompt(Path("slow"), given, 0.0)) for given in asked]
    await came(slow.begun)
    slow.gate.set()
    await asyncio.gather(*prompts)
    assert slow.order == ["1", "2", "conversation"]


async def test_callers_that_give_up_park_no_threads(folder: Path, tokenizer: Tokenizer) -> None:
    slow = Slow.load(folder)
    found: dict[Path, Tokenizer] = {Path("slow"): slow, Path("other"): tokenizer}
    tokenizers = Tokenizers(load=found.__getitem__)
    began = threading.active_count()
    for text in "123456789":
        asked = asyncio.create_task(tokenizers.prompt(Path("slow"), TextInput(text), 0.0))
        await came(slow.begun)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    last = asyncio.create_task(tokenizers.prompt(Path("slow"), TextInput("last"), 0.0))
    assert len((await tokenizers.prompt(Path("other"), TextInput("abc"), 0.0)).token_ids) == 3
    assert threading.active_count() - began < 9
    slow.gate.set()
    assert len((await last).token_ids) == 4
    assert slow.order == ["1", "last"]


async def test_a_tokenizer_that_is_dropped_still_serves_those_that_wait_for_it(
    folder: Path, tokenizer: Tokenizer
) -> None:
    slow = Slow.load(folder)
    found: dict[Path, Tokenizer] = {Path("slow"): slow, Path("other"): tokenizer}
    tokenizers = Tokenizers(limit=1, load=found.__getitem__)
    asked = [asyncio.create_task(tokenizers.prompt(Path("slow"), TextInput(text), 0.0)) for text in "12"]
    await came(slow.begun)
    await tokenizers.get(Path("other"))
    assert len(tokenizers) == 1
    slow.gate.set()
    assert [prompt.text for prompt in await asyncio.gather(*asked)] == ["1", "2"]


async def test_close_waits_for_no_thread(folder: Path) -> None:
    slow = Slow.load(folder)
    found: dict[Path, Tokenizer] = {Path("slow"): slow}
    tokenizers = Tokenizers(load=found.__getitem__)
    asked = [asyncio.create_task(tokenizers.prompt(Path("slow"), TextInput(text), 0.0)) for text in "12"]
    await came(slow.begun)
    await tokenizers.close()
    slow.gate.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Prompt, asyncio.CancelledError]
    assert slow.order == ["1"]


async def test_a_refusal_passes_through(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="outside the vocabulary"):
        await Tokenizers().prompt(folder, TokenInput((256,)), 0.0)


def test_a_cache_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Tokenizers(limit=0)
