"""`mlxrpc chat` as a person at a terminal and a program at a pipe see it, against a fake server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from mlxrpc.v1 import inference_pb2 as pb
from tests.client.fake_server import WAIT, Failure, FakeInference, FakeServer, usual_events
from tests.terminal import CTRL_C, CTRL_D, Terminal, terminal

ANSWER = "Hello from mlxrpc."
BROKEN = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "the quota is used up")


class Pipe:
    """The command with a question in each line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ask(self, question: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def end(self, *questions: str) -> tuple[str, str, int]:
        out, err = self.process.communicate("".join(f"{question}\n" for question in questions), timeout=2 * WAIT)
        return out, err, self.process.returncode


def piped(server: FakeServer, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mlxrpc", "chat", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "MLXRPC_SERVER": server.target, "PYTHONIOENCODING": "utf-8"},
    )


@pytest.fixture
def pipe(server: FakeServer) -> Iterator[Pipe]:
    with piped(server) as process:
        yield Pipe(process)


@pytest.fixture
def screen(server: FakeServer) -> Iterator[Terminal]:
    with terminal("chat", MLXRPC_SERVER=server.target) as opened:
        opened.until("leaves.\n> ")
        yield opened


def conversation(request: Any) -> list[tuple[str, str]]:
    messages = request.input.conversation.messages
    return [(pb.Role.Name(message.role).removeprefix("ROLE_").lower(), message.parts[0].text) for message in messages]


def streamed(fake: FakeInference) -> list[pb.StreamGenerateRequest]:
    return [request for request in fake.requests if isinstance(request, pb.StreamGenerateRequest)]


def test_each_line_of_a_pipe_is_a_question_and_the_conversation_is_kept(pipe: Pipe, fake: FakeInference) -> None:
    assert pipe.end("Hi", "", "너는?") == (f"{ANSWER}\n{ANSWER}\n", "", 0)
    first, second = streamed(fake)
    assert conversation(first) == [("user", "Hi")]
    assert conversation(second) == [("user", "Hi"), ("assistant", ANSWER), ("user", "너는?")]


def test_instructions_and_settings_go_with_every_question(server: FakeServer, fake: FakeInference) -> None:
    arguments = ("--system", "Be brief.", "-m", "demo", "-t", "0", "-n", "2", "--stop", "a", "--no-thinking")
    with piped(server, *arguments) as process:
        assert Pipe(process).end("Hi", "You?")[2] == 0
    for request in streamed(fake):
        assert conversation(request)[0] == ("system", "Be brief.")
        assert (request.model, request.stop.max_tokens, list(request.stop.sequences)) == ("demo", 2, ["a"])
        assert request.sampling.HasField("temperature")
        assert request.template.enable_thinking is False


def test_a_turn_that_fails_is_one_line_and_no_part_of_the_conversation(pipe: Pipe, fake: FakeInference) -> None:
    assert pipe.ask("Hi") == f"{ANSWER}\n"
    fake.failures = [BROKEN]
    assert pipe.end("Lost", "Again") == (f"{ANSWER}\n", "mlxrpc: the quota is used up\n", 1)
    assert conversation(streamed(fake)[-1]) == [("user", "Hi"), ("assistant", ANSWER), ("user", "Again")]


def test_an_answer_that_breaks_off_is_no_part_of_the_conversation_either(pipe: Pipe, fake: FakeInference) -> None:
    fake.events = list(usual_events(pb.StreamGenerateRequest()))[:3]
    fake.failure_at_the_end = BROKEN
    assert pipe.ask("Hi") == "Hello from\n"
    fake.events, fake.failure_at_the_end = None, None
    assert pipe.end("Again") == (f"{ANSWER}\n", "mlxrpc: the quota is used up\n", 1)
    assert conversation(streamed(fake)[-1]) == [("user", "Again")]


def test_a_conversation_that_outgrows_the_context_forgets_its_oldest_turns(pipe: Pipe, fake: FakeInference) -> None:
    """Of turns with 1,004 tokens, no more than leave half of 4,096 free."""
    for number in range(4):
        pipe.ask(f"{number} " + "word " * 1000)
    out, err, code = pipe.end("4 " + "word " * 1000, "And now?")
    assert (out, code) == (f"{ANSWER}\n" * 2, 0)
    what = "the 3 oldest questions and answers are forgotten"
    assert err == f"(the conversation is longer than the model's context: {what})\n"
    questions = [text.split()[0] for role, text in conversation(streamed(fake)[-1]) if role == "user"]
    assert questions == ["3", "4", "And"]


def test_a_long_question_leaves_no_more_of_the_conversation_than_fits(pipe: Pipe, fake: FakeInference) -> None:
    pipe.ask("word " * 1000)
    out, err, code = pipe.end("word " * 4000, "Again")
    assert (out, code) == (f"{ANSWER}\n" * 2, 0)
    assert err.count("the oldest question and its answer are forgotten)\n") == 1
    assert len(conversation(streamed(fake)[-1])) == 3


def test_a_question_that_is_too_long_alone_fails_and_nothing_is_forgotten(pipe: Pipe, fake: FakeInference) -> None:
    pipe.ask("Hi")
    assert pipe.end("word " * 5000, "Again") == (f"{ANSWER}\n", "mlxrpc: the prompt is too long\n", 1)
    assert [text for _, text in conversation(streamed(fake)[-1])] == ["Hi", ANSWER, "Again"]


def test_an_unknown_model_and_an_absent_server_are_told_before_any_question(server: FakeServer) -> None:
    with piped(server, "-m", "nobody") as process:
        assert Pipe(process).end("Hi") == ("", "mlxrpc: there is no model 'nobody' here; the nearest name is demo\n", 1)
    with piped(server, "-s", "127.0.0.1:1") as process:
        out, err, code = Pipe(process).end("Hi")
    assert err.startswith("mlxrpc: no answer from 127.0.0.1:1: ")
    assert (out, code) == ("", 1)


def test_an_answer_that_was_cut_says_why(server: FakeServer) -> None:
    with piped(server, "-n", "2") as process:
        assert Pipe(process).end("Hi") == (
            "Hello from\n",
            "(the answer was cut: it has as many tokens as it may)\n",
            0,
        )


def test_a_terminal_shows_a_prompt_and_how_to_leave(server: FakeServer) -> None:
    with terminal("chat", MLXRPC_SERVER=server.target) as screen:
        greeting = f"The default model on {server.target}. Ctrl-C stops an answer, Ctrl-D or /exit leaves.\n> "
        assert screen.until("> ") == greeting
        screen.type("Hi\n")
        assert screen.until("> ") == f"Hi\n{ANSWER}\n\n> "
        screen.type("/exit\n")
        assert screen.left() == 0


def test_ctrl_d_leaves(screen: Terminal) -> None:
    screen.type(CTRL_D)
    assert screen.left() == 0


def test_ctrl_c_stops_the_answer_and_not_the_conversation(screen: Terminal, fake: FakeInference) -> None:
    fake.hold = True
    screen.type("Hi\n")
    screen.until("Hello")
    screen.type(CTRL_C)
    assert fake.ended.wait(WAIT)
    screen.until("> ")
    fake.hold = False
    screen.type("Go on\n")
    screen.until(f"{ANSWER}\n\n> ")
    assert conversation(streamed(fake)[-1]) == [("user", "Hi"), ("assistant", "Hello"), ("user", "Go on")]


def test_stopping_answers_again_and_again_leaves_no_lock_behind(screen: Terminal, fake: FakeInference) -> None:
    fake.hold = True
    for _ in range(10):
        screen.type("Hi\n")
        screen.until("Hello")
        screen.type(CTRL_C)
        screen.until("> ")
    assert len(streamed(fake)) == 10


def test_ctrl_c_at_the_prompt_says_how_to_leave(screen: Terminal, fake: FakeInference) -> None:
    screen.type("half a questi")
    screen.until("half a questi")
    # The line break too, since CPython may sleep through a signal between two keys, until the next one.
    screen.type(CTRL_C + "\n")
    screen.until("leaves.)\n> ")
    screen.type("Hi\n")
    screen.until(ANSWER)
    assert [conversation(request) for request in streamed(fake)] == [[("user", "Hi")]]


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_a_conversation_through_a_pipe(pipe: Pipe, fake: FakeInference) -> None:
    fake.hold = True
    assert pipe.process.stdin is not None
    assert pipe.process.stdout is not None
    pipe.process.stdin.write("Hi\nNever asked\n")
    pipe.process.stdin.flush()
    assert pipe.process.stdout.read(5) == "Hello"
    pipe.process.send_signal(signal.SIGINT)
    assert pipe.end() == ("\n", "", 130)
    assert fake.ended.wait(WAIT)
    assert len(streamed(fake)) == 1


def test_thoughts_are_dim_above_the_answer(screen: Terminal, fake: FakeInference) -> None:
    started, *_, finished = usual_events(pb.StreamGenerateRequest())
    deltas = [pb.Delta(reasoning="Well, "), pb.Delta(reasoning="so."), pb.Delta(text=ANSWER)]
    fake.events = [started, *(pb.StreamGenerateResponse(delta=delta) for delta in deltas), finished]
    screen.type("Hi\n")
    shown = screen.until(f"{ANSWER}\n\n> ")
    assert shown.removeprefix("Hi\n") == f"\x1b[2mWell, \x1b[0m\x1b[2mso.\x1b[0m\n\n{ANSWER}\n\n> "


def test_a_turn_that_fails_at_a_terminal_is_one_line(screen: Terminal, fake: FakeInference) -> None:
    fake.failures = [BROKEN]
    screen.type("Hi\n")
    assert screen.until("> ") == "Hi\nmlxrpc: the quota is used up\n> "
    screen.type(CTRL_D)
    assert screen.left() == 0
