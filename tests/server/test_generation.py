"""What reaches a caller who reads slowly: the RPC, the model and the text are real, the worker and the line are not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc_server.calls import Calls, Context
from mlxrpc_server.catalog import Catalog, ModelConfig
from mlxrpc_server.engine import wire
from mlxrpc_server.generation import Service
from mlxrpc_server.model import Model
from mlxrpc_server.models import Limits, Models
from mlxrpc_server.servicer import InferenceService
from mlxrpc_server.text import TextStream
from mlxrpc_server.tokenizer import Tokenizer, Tokenizers
from mlxrpc_server.types import ModelName
from mlxrpc_server.vocabulary import Vocabulary
from tests import noise_model
from tests.fakes import FakeWorker, ready, until

CONFIG = ModelConfig(name=ModelName("m"), source=noise_model.folder())
LOAD = wire.Load(name="m", path="", log_format="text", max_rows=8, prefill_tokens=64)
TOKENS = st.lists(st.integers(0, 1270), min_size=1, max_size=24)


class Line:
    """A call's other end, which takes a message only when it is told to."""

    def __init__(self) -> None:
        self.taken: list[pb.StreamGenerateResponse] = []
        self._pending: asyncio.Future[None] | None = None

    @property
    def pending(self) -> bool:
        return self._pending is not None

    @property
    def deltas(self) -> list[pb.Delta]:
        return [event.delta for event in self.taken if event.HasField("delta")]

    @property
    def ended(self) -> bool:
        return bool(self.taken) and self.taken[-1].HasField("finished")

    def take(self) -> None:
        """What is being written, where something is."""
        if self._pending is not None:
            self._pending.set_result(None)
            self._pending = None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def time_remaining(self) -> float | None:
        return None

    def set_trailing_metadata(self, _metadata: object) -> None:
        pass

    async def send_initial_metadata(self, _metadata: object) -> None:
        pass

    async def write(self, message: Message) -> None:
        self.taken.append(pb.StreamGenerateResponse.FromString(message.SerializeToString()))
        self._pending = asyncio.get_running_loop().create_future()
        await self._pending


class Engine:
    """One stream's worker and line, both moved by the test."""

    def __init__(self, service: InferenceService, worker: FakeWorker) -> None:
        self.line = Line()
        self._service = service
        self._worker = worker

    @property
    def row(self) -> Any:
        return next(message.row for message in self._worker.sent if isinstance(message, wire.Submit))

    @contextlib.asynccontextmanager
    async def streaming(self, request: pb.StreamGenerateRequest) -> AsyncIterator[None]:
        """Until the stream's end; it has begun, and its first event is not taken yet."""
        stream = asyncio.create_task(self._service.StreamGenerate(request, cast("Context", self.line)))
        await until(lambda: any(isinstance(message, wire.Submit) for message in self._worker.sent))
        self.say(prefilled=[(self.row, 1)])
        await until(lambda: self.line.pending)
        yield
        while not self.line.ended:
            self.line.take()
            await asyncio.sleep(0)
        self.line.take()
        await stream

    def say(self, *tokens: int, **facts: Any) -> None:
        """A step for each token, and at least one."""
        usual: dict[str, Any] = {"left": [], "reasons": [], "prefilled": [], "prefill_seconds": 0.0, "seconds": 0.0}
        for token in tokens:
            self._worker.say(wire.Step(step=1, rows=[self.row], tokens=[token], **usual))
        if facts:
            self._worker.say(wire.Step(step=1, rows=[], tokens=[], **(usual | facts)))

    def finish(self) -> None:
        self.say(left=[self.row], reasons=[wire.Left.LENGTH])

    async def turn(self) -> None:
        """The loop, so often that whatever can go on has gone on."""
        for _ in range(12):
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def engine() -> AsyncIterator[Engine]:
    worker = FakeWorker()
    worker.say(ready(vocabulary_size=1280))

    async def spawn() -> FakeWorker:
        return worker

    catalog, tokenizers = Catalog([CONFIG]), Tokenizers()
    catalog.read_facts()
    models = Models(lambda entry, changed: Model(entry, LOAD, spawn=spawn, changed=changed), Limits())
    try:
        yield Engine(InferenceService(Service(catalog, tokenizers, models), Calls()), worker)
    finally:
        await models.close()
        await tokenizers.close()


def asking(tokens: int, *stops: str) -> pb.StreamGenerateRequest:
    return pb.StreamGenerateRequest(
        input=pb.Input(token_ids=pb.TokenIds(ids=[1, 2])),
        stop=pb.Stop(max_tokens=tokens, ignore_eos=True, sequences=stops),
    )


async def test_a_token_goes_out_at_once_and_alone() -> None:
    async with engine() as one, one.streaming(asking(3)):
        one.line.take()
        for count, token in enumerate((300, 301, 302), 1):
            one.say(token)
            await until(lambda count=count: len(one.line.deltas) == count)  # type: ignore[misc]
            one.line.take()
        one.finish()
    assert [list(delta.token_ids) for delta in one.line.deltas] == [[300], [301], [302]]


async def test_tokens_that_come_while_a_write_is_pending_ride_on_the_next_delta() -> None:
    async with engine() as one, one.streaming(asking(9)):
        one.line.take()
        one.say(300)
        await until(lambda: len(one.line.deltas) == 1)
        one.say(301, 302, 303, 304)
        await one.turn()
        assert len(one.line.deltas) == 1
        one.line.take()
        await until(lambda: len(one.line.deltas) == 2)
        one.say(305)
        one.finish()
    assert [list(delta.token_ids) for delta in one.line.deltas] == [[300], [301, 302, 303, 304], [305]]


async def test_what_came_before_the_stream_was_told_to_have_started_is_one_delta() -> None:
    async with engine() as one, one.streaming(asking(3)):
        one.say(300, 301, 302)
        one.finish()
        await one.turn()
    assert [list(delta.token_ids) for delta in one.line.deltas] == [[300, 301, 302]]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Tokenizer.load(noise_model.folder()).vocabulary


@settings(max_examples=25)
@given(TOKENS, st.lists(st.booleans(), max_size=60), st.lists(st.sampled_from(["e", " t", "the", "\n\n"]), max_size=2))
def test_however_slowly_it_is_read_a_stream_says_the_same(
    vocabulary: Vocabulary, tokens: list[int], takes: list[bool], stops: list[str]
) -> None:
    whole = TextStream(vocabulary, stops)
    expected = whole.push(tokens).joined(whole.finish())
    assert asyncio.run(said(tokens, takes, stops)) == (expected.text, list(expected.token_ids), whole.matched or "")


async def said(tokens: Sequence[int], takes: Sequence[bool], stops: Sequence[str]) -> tuple[str, list[int], str]:
    """Whether a message is taken or a step comes next is the test's to say; the rest comes at the end."""
    left = list(tokens)
    async with engine() as one, one.streaming(asking(len(tokens), *stops)):
        for take in takes:
            if take:
                one.line.take()
            elif left:
                one.say(left.pop(0))
            await one.turn()
        one.say(*left)
        one.finish()
    deltas, end = one.line.deltas, one.line.taken[-1].finished
    ids = [token for delta in deltas for token in delta.token_ids]
    return "".join(delta.text for delta in deltas), ids, end.matched_stop.sequence
