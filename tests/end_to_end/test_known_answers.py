"""The built-in model, with nothing configured, says what it was trained to say: alone, in a crowd, and after the worst."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1.inference_pb2_grpc import InferenceServiceStub
from mlxrpc_server import demo
from mlxrpc_server.config import BUILT_IN
from tests import noise_model
from tests.end_to_end.asking import ask
from tests.end_to_end.crowd import Crowd
from tests.end_to_end.known import KNOWN, LONG_TALK, TOOL, TOOLS, WEATHER, Known
from tests.end_to_end.running import RunningServer, running_server
from tests.end_to_end.streams import TIMEOUT, Received, prompt_ids, stream
from tests.end_to_end.workers import workers

pytestmark = pytest.mark.xdist_group("known answers")

SLOWEST = max(KNOWN, key=lambda known: len(known.answer))


@pytest.fixture(scope="module")
def built_in() -> Iterator[RunningServer]:
    with running_server(built_in=True) as server:
        yield server


def check(known: Known, received: Received) -> None:
    assert (received.text, received.reasoning) == (known.answer, known.reasoning)
    assert received.end.finish_reason == pb.FINISH_REASON_STOP_TOKEN


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.skill)
def test_the_answer_is_right(built_in: RunningServer, known: Known) -> None:
    check(known, stream(built_in, known.request()))


def test_a_fact_is_recalled_from_3_000_tokens_back(built_in: RunningServer) -> None:
    assert 3000 <= len(prompt_ids(built_in, LONG_TALK.request())) < 4096
    check(LONG_TALK, stream(built_in, LONG_TALK.request()))


def test_the_answers_are_those_of_a_model_that_was_not_named(built_in: RunningServer) -> None:
    known = KNOWN[0]
    received = stream(built_in, known.request(BUILT_IN))
    assert received.started.model == BUILT_IN == "mlxrpc/demo"
    check(known, received)
    (listed,) = built_in.inference.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT).models
    assert (listed.name, listed.quantization.bits) == (BUILT_IN, 8)


def test_the_tools_stand_in_the_prompt_as_the_template_writes_them(built_in: RunningServer) -> None:
    request = Known("", (TOOLS, WEATHER), "").request()
    count = pb.CountTokensRequest(input=request.input, return_prompt=True)
    prompt = built_in.inference.CountTokens(count, timeout=TIMEOUT).prompt
    template = json.loads((demo.source() / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    assert prompt == with_tools(template)


def with_tools(template: str) -> str:
    """As transformers renders it, which hands templates their tools."""
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": WEATHER[0], "content": WEATHER[1]}]
    rendered: Any = render_jinja_template([messages], tools=[TOOL], chat_template=template, add_generation_prompt=True)
    return str(rendered[0][0])


async def test_all_answers_are_right_when_asked_at_once(built_in: RunningServer) -> None:
    async with grpc.aio.insecure_channel(built_in.address) as channel:
        crowd = Crowd(InferenceServiceStub(channel))
        together = await asyncio.gather(*(crowd.stream(known.request()) for known in KNOWN))
    assert crowd.most > len(KNOWN) // 3, "they did not run together"
    for known, received in zip(KNOWN, together, strict=True):
        check(known, received)


def test_all_answers_are_right_after_the_worker_was_killed_in_their_midst(built_in: RunningServer) -> None:
    before = built_in.loaded(BUILT_IN)
    calls = {known: built_in.inference.StreamGenerate(known.request(), timeout=TIMEOUT) for known in KNOWN}
    received = {known: Received() for known in KNOWN}
    read_until_delta(calls[SLOWEST], received[SLOWEST])
    (worker,) = workers(built_in)
    worker.kill()
    assert calls[SLOWEST].is_active()
    for known, call in calls.items():
        for event in call:
            received[known].add(event)
        check(known, received[known])
    after = built_in.loaded(BUILT_IN)
    assert after.pid != before.pid
    assert after.restarts == before.restarts + 1


def read_until_delta(call: Any, received: Received) -> None:
    for event in call:
        received.add(event)
        if received.deltas:
            return


def test_answers_are_right_again_after_eviction_and_reload(tmp_path: Path) -> None:
    config = tmp_path / "mlxrpc.toml"
    tables = [
        f'[[models]]\nname = "{name}"\nsource = "{folder}"\n'
        for name, folder in ((BUILT_IN, demo.source()), (noise_model.NAME, noise_model.folder()))
    ]
    config.write_text("max_loaded_models = 1\n\n" + "\n".join(tables), encoding="utf-8")
    known = KNOWN[0]
    with running_server("--config", str(config)) as server:
        check(known, stream(server, known.request()))
        first = server.loaded(BUILT_IN).pid
        stream(server, ask(model=noise_model.NAME))
        assert [model.name for model in server.info().models] == [noise_model.NAME]
        check(known, stream(server, known.request()))
        assert server.loaded(BUILT_IN).pid != first
