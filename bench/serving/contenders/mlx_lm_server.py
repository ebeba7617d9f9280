"""mlx_lm.server: completions over HTTP as server-sent events, text in, text out.

It ends every answer by closing the connection (HTTP/1.0), so an answer is read line by line to its end, with no
HTTP library in between that could cost it time.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from serving.exchange import Answer, Ask


@dataclass(frozen=True, slots=True)
class MlxLmServer:
    name: str = "mlx_lm.server"
    seeds: bool = False
    """A request with a seed waits for the running batch, and then runs alone."""

    def command(self, model: Path, port: int, rows: int) -> list[str]:
        command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--port", str(port)]
        return [*command, "--decode-concurrency", str(rows), "--log-level", "WARNING"]

    def environment(self) -> dict[str, str]:
        return {}

    def client(self, address: str) -> HttpClient:
        return HttpClient(address)


class HttpClient:
    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Every request has a connection of its own."""

    async def ask(self, answer: Answer) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(request(answer.asked))
            await read_head(reader)
            async for line in reader:
                if line.startswith(b"data: {"):
                    take(answer, json.loads(line[6:]))
        finally:
            writer.close()
        if answer.completion_tokens is None:
            raise ConnectionError("the answer ended before its usage")


def request(ask: Ask) -> bytes:
    body = {
        "prompt": ask.text,
        "max_tokens": ask.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": ask.sampling.temperature,
        "top_p": ask.sampling.top_p,
    }
    if ask.sampling.seed is not None:
        body["seed"] = ask.sampling.seed
    if ask.sampling.repetition_penalty is not None:
        body["repetition_penalty"] = ask.sampling.repetition_penalty
    encoded = json.dumps(body).encode()
    return b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(encoded), encoded)


async def read_head(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0].decode()
    if " 200 " not in status:
        raise ConnectionError(status)


def take(answer: Answer, event: dict[str, Any]) -> None:
    if usage := event.get("usage"):
        answer.prompt_tokens, answer.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    elif any(choice.get("text") for choice in event["choices"]):
        answer.heard(1)
