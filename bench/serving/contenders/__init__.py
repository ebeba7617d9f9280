"""The servers that are measured: how each is started, and a client of its front door in its own file."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from serving.exchange import Answer


class Client(Protocol):
    """One connection, or one source of connections, for all streams of a driver. Used within its context."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def ask(self, answer: Answer) -> None:
        """Makes the request that is to be answered, and fills in what comes. Raises what its transport raises."""


class Contender(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def seeds(self) -> bool:
        """Whether requests with seeds of their own run together."""

    def command(self, model: Path, port: int, rows: int) -> list[str]: ...

    def environment(self) -> dict[str, str]:
        """What it needs beside this process's own."""

    def client(self, address: str) -> Client: ...
