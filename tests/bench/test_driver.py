from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

from serving.contenders.mlx_lm_server import HttpClient
from serving.driver import play
from serving.exchange import CUT, Answer, Ask, Stream

ASK = Ask("abc", (1, 2, 3), max_tokens=2)
HEAD = b"HTTP/1.0 200 OK\r\nContent-type: text/event-stream\r\n\r\n"
TOKEN = b'data: {"choices": [{"text": "x"}]}\n\n'
END = b'data: {"choices": [{"text": ""}]}\n\n'
USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
LAST = b"data: " + json.dumps(USAGE).encode() + b"\n\ndata: [DONE]\n\n"


@contextlib.asynccontextmanager
async def answering(*pieces: bytes, forever: bool = False) -> AsyncIterator[HttpClient]:
    """A client of a server that says the same to everybody, and then closes the connection, or never does."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b"".join(pieces))
        if forever:
            await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield HttpClient(f"127.0.0.1:{port}")


async def answers(client: HttpClient, *streams: Stream, cap: float = 30) -> list[Answer]:
    return await play(client, list(enumerate(streams)), time.monotonic(), cap)


async def test_every_piece_of_text_is_heard_and_the_servers_counts_are_kept() -> None:
    async with answering(HEAD, b": keepalive 1/3\n\n", TOKEN, TOKEN, END, LAST) as client:
        [answer] = await answers(client, Stream((ASK,)))
    assert [tokens for _, tokens in answer.arrivals] == [1, 1]
    assert answer.as_asked


async def test_a_stream_asks_again_when_it_is_answered() -> None:
    async with answering(HEAD, TOKEN, TOKEN, LAST) as client:
        every = await answers(client, Stream((ASK, ASK)), Stream((ASK,)))
    assert sorted(answer.stream for answer in every) == [0, 0, 1]
    first, second = (answer for answer in every if answer.stream == 0)
    assert first.ended <= second.begun


async def test_a_server_that_dies_in_the_middle_is_recorded() -> None:
    async with answering(HEAD, TOKEN) as client:
        [answer] = await answers(client, Stream((ASK,)))
    assert answer.error == "ConnectionError: the answer ended before its usage"
    assert answer.tokens == 1


async def test_a_refusal_is_recorded() -> None:
    async with answering(b"HTTP/1.0 503 Service Unavailable\r\n\r\n") as client:
        [answer] = await answers(client, Stream((ASK,)))
    assert answer.error == "ConnectionError: HTTP/1.0 503 Service Unavailable"


async def test_a_server_that_is_gone_is_recorded() -> None:
    async with answering() as client:
        pass
    [answer] = await answers(client, Stream((ASK,)))
    assert "Error" in answer.error
    assert answer.ended >= answer.begun


async def test_what_has_not_ended_at_the_cap_is_cut_and_keeps_what_came() -> None:
    async with answering(HEAD, TOKEN, forever=True) as client:
        [answer] = await answers(client, Stream((ASK, ASK)), cap=2)
    assert answer.error == CUT
    assert answer.tokens == 1
