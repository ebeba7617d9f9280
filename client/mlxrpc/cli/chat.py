"""`mlxrpc chat`: a conversation at the terminal, or through a pipe with a question in each line."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from mlxrpc._errors import Cancelled, Error, InvalidArgument
from mlxrpc._messages import Message, assistant, system, user
from mlxrpc._results import Delta, FinishReason
from mlxrpc._sync import Client, Stream
from mlxrpc.cli import connection, prompt, sampling, terminal

HOW_TO_LEAVE = "Ctrl-C stops an answer, Ctrl-D or /exit leaves."
LEAVE = "/exit"
PROMPT = "> "
DIM, PLAIN = "\x1b[2m", "\x1b[0m"

HALF = 0.5
TOO_LONG = {"PROMPT_TOO_LONG", "MAX_TOKENS_TOO_LARGE"}
CUT = {
    FinishReason.CONTEXT_LENGTH: "(the answer was cut: it filled the model's context)",
    FinishReason.MAX_TOKENS: "(the answer was cut: it has as many tokens as it may)",
}


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "chat", help="talk with a model", description=f"A conversation with a model. {HOW_TO_LEAVE}"
    )
    parser.set_defaults(run=run)
    prompt.add_model(parser)
    prompt.add_system(parser)
    sampling.add(parser)
    connection.add(parser)


def run(arguments: argparse.Namespace) -> int:
    at_a_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    with connection.client(arguments) as client:
        chat = Chat(client, sampling.options(arguments), arguments.system)
        chat.check()
        if at_a_terminal:
            terminal.say(f"{arguments.model or 'The default model'} on {arguments.server}. {HOW_TO_LEAVE}")
            return _converse(chat, _typed(), arguments.server, Screen(dim="NO_COLOR" not in os.environ))
        return _converse(chat, _piped(), arguments.server, Pipe())


def _converse(chat: Chat, questions: Iterator[str], server: str, paper: Pipe) -> int:
    """A turn that fails is told of, and the conversation goes on without it. A pipe learns of it by the exit code."""
    code = terminal.OK
    for question in questions:
        try:
            with paper.stopping(chat.stop):
                chat.answer(question, paper)
        except Error as error:
            for line in terminal.lines(error, server):
                terminal.say(line)
            code = paper.failure
    return code


# What is asked


def _typed() -> Iterator[str]:
    """Lines that a person typed, until they leave."""
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # lets `input` edit lines, and remember them
    while True:
        try:
            line = input(PROMPT)
        except KeyboardInterrupt:
            terminal.say(f"\n({HOW_TO_LEAVE})")
            continue
        except EOFError:
            print()
            return
        if line.strip() == LEAVE:
            return
        if line.strip():
            yield line


def _piped() -> Iterator[str]:
    for line in sys.stdin:
        if line.strip() == LEAVE:
            return
        if line.strip():
            yield line.removesuffix("\n")


# What is answered


class Pipe:
    """The answers and nothing else, a line break after each."""

    failure = terminal.FAILED
    """The exit code where a turn has failed."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, delta: Delta) -> None:
        self._write(delta.text)

    def end(self) -> None:
        if self._last and self._last != "\n":
            self._write("\n")
        self._last = ""

    def stopped(self) -> None:
        """The answer has no end."""

    def stopping(self, stop: Callable[[], None]) -> AbstractContextManager[None]:
        """While an answer is written. Ctrl-C ends the whole command, as it ends every other in a pipe."""
        return contextlib.nullcontext()

    def _write(self, text: str) -> None:
        self._last = text[-1:] or self._last  # first, for Ctrl-C may come in the rest
        sys.stdout.write(text)
        sys.stdout.flush()


class Screen(Pipe):
    """With the model's thoughts above its answer, in a dim colour, and an empty line below."""

    failure = terminal.OK

    def __init__(self, *, dim: bool) -> None:
        super().__init__()
        self._dim, self._plain = (DIM, PLAIN) if dim else ("", "")
        self._thinks = False

    def show(self, delta: Delta) -> None:
        if delta.reasoning:
            self._thinks = True
            self._write(self._dim + delta.reasoning + self._plain)
        if delta.text:
            if self._thinks:
                self._write("\n\n")
            self._thinks = False
            self._write(delta.text)

    def end(self) -> None:
        if self._last:
            super().end()
            self._write("\n")
        self._last = ""
        self._thinks = False

    def stopped(self) -> None:
        self._write("\n")  # behind the ^C that the terminal itself has shown

    @contextlib.contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """Ctrl-C ends the answer, and the conversation goes on.

        It raises nothing here, and it acts from a thread: in the midst of gRPC's code an exception can leave a lock
        held for ever (seen with 1.85), and the next answer then never comes.
        """
        before = signal.signal(signal.SIGINT, lambda *_: threading.Thread(target=stop, daemon=True).start())
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


# The conversation


@dataclass(frozen=True, slots=True)
class Turn:
    question: Message
    answer: Message


class Chat:
    """What has been said, and the model that goes on with it."""

    def __init__(self, client: Client, options: dict[str, Any], instructions: str | None) -> None:
        self._client = client
        self._options = options
        self._opening = [system(instructions)] if instructions else []
        self._turns: list[Turn] = []
        self._stream: Stream | None = None
        self._stopped = False

    def check(self) -> None:
        """Fails before anybody has typed anything, where server, model or instructions are wrong."""
        self._count(user("Hello"), [])

    def answer(self, question: str, paper: Pipe) -> None:
        """Shows an answer and keeps the turn, also where it was stopped halfway."""
        asked = user(question)
        turns = self._turns
        self._stopped = False
        try:
            answer = self._streamed(asked, turns, paper)
        except InvalidArgument as error:
            if error.reason not in TOO_LONG or not turns:
                raise
            turns = self._shortened(asked)
            if not self._fits(asked, turns, 1):
                raise
            terminal.say(_forgotten(len(self._turns) - len(turns)))
            answer = self._streamed(asked, turns, paper)
        if answer is not None:
            self._turns = [*turns, Turn(asked, answer)]

    def stop(self) -> None:
        """Ends the answer that is being given; from any thread."""
        self._stopped = True
        if self._stream is not None:
            self._stream.cancel()

    def _streamed(self, question: Message, turns: Sequence[Turn], paper: Pipe) -> Message | None:
        """None: it was stopped before it had begun."""
        with self._client.stream(self._messages(question, turns), **self._options) as self._stream:
            if self._stopped:  # a moment ago, when there was no stream yet
                self._stream.cancel()
            try:
                for delta in self._stream:
                    paper.show(delta)
            except Cancelled:
                if not self._stopped:
                    raise
                paper.stopped()
                return assistant(self._stream.text) if self._stream.text else None
            finally:
                paper.end()
            completion = self._stream.result()
        if completion.finish_reason in CUT:
            terminal.say(CUT[completion.finish_reason])
        return assistant(completion.text, reasoning=completion.reasoning)

    def _shortened(self, question: Message) -> list[Turn]:
        """Without the oldest turns: as few of them as leave half of the context free, for an answer and what follows."""
        counts = range(1, len(self._turns) + 1)
        fewest = bisect_left(counts, True, key=lambda count: self._fits(question, self._turns[count:], HALF))
        return self._turns[fewest + 1 :]

    def _fits(self, question: Message, turns: Sequence[Turn], share: float) -> bool:
        taken, context = self._count(question, turns)
        return taken <= min(share * context, context - (self._options["max_tokens"] or 0))

    def _count(self, question: Message, turns: Sequence[Turn]) -> tuple[int, int]:
        """The tokens that it takes, of how many."""
        counted = self._client.count_tokens(
            self._messages(question, turns),
            model=self._options["model"],
            enable_thinking=self._options["enable_thinking"],
        )
        return counted.token_count, counted.context_length

    def _messages(self, question: Message, turns: Sequence[Turn]) -> list[Message]:
        said = [message for turn in turns for message in (turn.question, turn.answer)]
        return [*self._opening, *said, question]


def _forgotten(count: int) -> str:
    turns = "the oldest question and its answer are" if count == 1 else f"the {count} oldest questions and answers are"
    return f"(the conversation is longer than the model's context: {turns} forgotten)"
