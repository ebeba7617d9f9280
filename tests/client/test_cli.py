"""The commands as a person at a terminal sees them: `python -m mlxrpc` against a fake server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

import mlxrpc
from mlxrpc.cli import models
from tests.client.fake_server import SERVICE, WAIT, Failure, FakeInference, FakeServer, usual_events, violations

WHOLE = "Hello from mlxrpc.\n"


class Mlxrpc:
    """The command, with the environment that names the server."""

    def __init__(self, target: str) -> None:
        self._environment = {**os.environ, "MLXRPC_SERVER": target, "PYTHONIOENCODING": "utf-8"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "mlxrpc", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=self._environment,
        )

    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        with self.start(*arguments) as process:
            out, err = process.communicate(stdin, timeout=2 * WAIT)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.fixture
def command(server: FakeServer) -> Mlxrpc:
    return Mlxrpc(server.target)


def test_generate_prints_the_text_and_nothing_else(command: Mlxrpc, fake: FakeInference) -> None:
    done = command("generate", "Hello", "--system", "Be brief.", "-t", "0", "--seed", "3", "--stop", "a", "--stop", "b")
    assert (done.stdout, done.stderr, done.returncode) == (WHOLE, "", 0)
    sent = fake.requests[0]
    assert [message.parts[0].text for message in sent.input.conversation.messages] == ["Be brief.", "Hello"]
    assert sent.sampling.HasField("temperature")
    assert (sent.sampling.seed, list(sent.stop.sequences)) == (3, ["a", "b"])


def test_generate_sends_penalties_and_biases(command: Mlxrpc, fake: FakeInference) -> None:
    command("generate", "Hi", "--repetition-context-size", "0", "--logit-bias", "5=-100", "--logit-bias", "7=1.5")
    sampling = fake.requests[0].sampling
    assert (sampling.HasField("repetition_context_size"), dict(sampling.logit_bias)) == (True, {5: -100.0, 7: 1.5})
    for given in ("5", "5=", "5=x", "x=5"):
        assert f"'{given}' is not ID=X" in command("generate", "Hi", "--logit-bias", given).stderr


def test_generate_reads_the_prompt_from_a_pipe(command: Mlxrpc, fake: FakeInference) -> None:
    assert command("generate", stdin="안녕\n").stdout == WHOLE
    assert command("generate", "--raw", "-", stdin="Once\n").stdout == WHOLE
    chat, raw = (each.input for each in fake.requests)
    assert chat.conversation.messages[0].parts[0].text == "안녕"
    assert raw.text == "Once\n"


def test_generate_prints_json_for_programs(command: Mlxrpc) -> None:
    done = command("generate", "Hello", "--json", "-n", "2")
    response = json.loads(done.stdout)
    assert (response["text"], response["finish_reason"]) == ("Hello from", "FINISH_REASON_MAX_TOKENS")
    assert (response["usage"]["completion_tokens"], response["reasoning"]) == (2, "")


def test_generate_asks_for_log_probabilities_only_where_it_can_print_them(command: Mlxrpc, fake: FakeInference) -> None:
    assert command("generate", "Hello", "--json", "--logprobs", "0", "--min-tokens", "3").returncode == 0
    request = fake.requests[-1]
    assert request.output.HasField("logprobs")
    assert (request.output.logprobs, request.stop.min_tokens) == (0, 3)
    refused = command("generate", "Hello", "--logprobs", "5")
    assert (refused.returncode, refused.stderr) == (
        2,
        "mlxrpc: --logprobs needs --json: there is no other place for them\n",
    )


def test_generate_bounds_the_reasoning_where_it_is_told_to(command: Mlxrpc, fake: FakeInference) -> None:
    assert command("generate", "Hello", "--max-reasoning-tokens", "0").returncode == 0
    assert command("generate", "Hello").returncode == 0
    bounded, free = (request.stop for request in fake.requests)
    assert (bounded.HasField("max_reasoning_tokens"), free.HasField("max_reasoning_tokens")) == (True, False)


def test_generate_tells_of_its_speed_on_stderr(command: Mlxrpc) -> None:
    done = command("generate", "Hello there", "--stats")
    expected = "demo: 2 + 5 tokens, first after 0.25 s, 80.0 tokens/s, stop_token, seed 7\n"
    assert (done.stdout, done.stderr) == (WHOLE, expected)


def test_models_is_an_aligned_table(command: Mlxrpc) -> None:
    done = command("models")
    assert done.stdout == (
        "NAME    STATE   ARCHITECTURE  CONTEXT     SIZE  ABOUT\n"
        "broken  failed                                  config.json is missing\n"
        "demo    loaded  llama           4,096  12.3 MB  The built-in model\n"
    )
    found = json.loads(command("models", "dem", "--json").stdout)
    assert [(model["name"], model["state"]) for model in found] == [("demo", "MODEL_STATE_LOADED")]


def test_a_reason_of_several_lines_is_one_in_the_table() -> None:
    lines = list(models.table([("NAME", "ABOUT"), ("a", "it broke:\n\n  line 3\r\n\tis not JSON"), ("bc", "fine")]))
    assert lines == ["NAME  ABOUT", "a     it broke: line 3 is not JSON", "bc    fine"]


def test_count_prints_a_number(command: Mlxrpc) -> None:
    assert command("count", "one two three").stdout == "3\n"
    response = json.loads(command("count", "--raw", "--json", stdin="one two").stdout)
    assert (response["token_count"], response["token_ids"], response["prompt"]) == (2, [0, 1], "the prompt")


def test_health_is_an_exit_code(server: FakeServer, command: Mlxrpc) -> None:
    ready, broken, unknown = command("health"), command("health", "broken"), command("health", "nobody")
    assert (ready.stdout, ready.returncode) == ("SERVING\n", 0)
    assert (broken.stdout, broken.returncode) == ("NOT_SERVING\n", 1)
    assert (unknown.stdout, unknown.returncode) == ("SERVICE_UNKNOWN\n", 1)
    server.set_health("", serving=False)
    assert command("health", "--live").returncode == 1


def test_health_of_all_names(server: FakeServer, command: Mlxrpc) -> None:
    done = command("health", "--all")
    assert done.stdout == "server   SERVING\nservice  SERVING\nbroken   NOT_SERVING\ndemo     SERVING\n"
    assert done.returncode == 1
    server.set_health(f"{SERVICE}/broken", serving=True)
    assert command("health", "--all").returncode == 0


def test_health_waits_until_the_service_is_ready(server: FakeServer, command: Mlxrpc) -> None:
    server.set_health(SERVICE, serving=False)
    with command.start("health", "--wait", str(WAIT)) as process:
        server.wait_for_watch()
        server.set_health(SERVICE, serving=True)
        assert process.communicate(timeout=2 * WAIT) == ("SERVING\n", "")
    assert process.returncode == 0


def test_health_waits_no_longer_than_it_was_told() -> None:
    done = Mlxrpc("127.0.0.1:1")("health", "--wait", "0.3")
    assert (done.stdout, done.returncode) == ("UNKNOWN\n", 1)


def test_an_error_is_a_sentence(command: Mlxrpc) -> None:
    done = command("generate", "Hello", "-m", "nobody")
    assert done.stderr == "mlxrpc: there is no model 'nobody' here; the nearest name is demo\n"
    assert (done.stdout, done.returncode) == ("", 1)


def test_every_violation_has_its_line(command: Mlxrpc, fake: FakeInference) -> None:
    bad = violations(("sampling.top_p", "must be at most 1"), ("stop.max_tokens", "must be at least 1"))
    sentence = "sampling.top_p: must be at most 1 (and 1 more)"
    fake.failures = [Failure(grpc.StatusCode.INVALID_ARGUMENT, sentence, details=[bad])]
    done = command("generate", "Hello", "--top-p", "2", "-n", "0")
    assert done.stderr == f"mlxrpc: {sentence}\n  stop.max_tokens: must be at least 1\n"


def test_an_error_says_what_helps(command: Mlxrpc, fake: FakeInference) -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2))
    fake.failures = [
        Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "the quota is used up", details=[retry]),
        Failure(grpc.StatusCode.INTERNAL, "something went wrong"),
    ]
    assert command("count", "Hello").stderr == "mlxrpc: the quota is used up (try again in 2 s)\n"
    assert command("count", "Hello").stderr == "mlxrpc: something went wrong (request id request-1)\n"


def test_no_server_is_said_in_one_line() -> None:
    done = Mlxrpc("127.0.0.1:1")("models")
    assert done.stderr.startswith("mlxrpc: no answer from 127.0.0.1:1: ")
    assert (done.stderr.count("\n"), done.stderr.count("127.0.0.1:1"), done.returncode) == (1, 1, 1)


def test_text_that_was_cut_stays_and_the_error_follows(command: Mlxrpc, fake: FakeInference) -> None:
    fake.events = list(usual_events(mlxrpc.v1.inference_pb2.StreamGenerateRequest()))[:3]
    done = command("generate", "Hello")
    assert (done.stdout, done.returncode) == ("Hello from\n", 1)
    assert done.stderr == "mlxrpc: the stream ended without saying how: its text may be incomplete\n"


def test_a_timeout_is_named(command: Mlxrpc, fake: FakeInference, server: FakeServer) -> None:
    fake.hold = True
    done = command("generate", "Hello", "--timeout", "0.2")
    assert done.stderr == f"mlxrpc: {server.target} did not finish in time (--timeout)\n"


@pytest.mark.usefixtures("interruptible")
def test_interrupting_cancels_the_call(command: Mlxrpc, fake: FakeInference) -> None:
    fake.hold = True
    with command.start("generate", "Hello") as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == "Hello"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=2 * WAIT)
    assert (out, err, process.returncode) == ("\n", "", 130)
    assert fake.ended.wait(WAIT)


def test_a_reader_that_leaves_is_no_error(command: Mlxrpc, fake: FakeInference) -> None:
    fake.hold = True
    with command.start("generate", "Hello") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "Hello", "--top-k", "-1"], "top_k cannot be -1"),
        (["health", "--all", "--wait", "1"], "--wait goes with one name"),
        (["generate", "Hello", "--system", "a", "--raw"], "not allowed with"),
        (["models", "--ca", "/nowhere"], "/nowhere"),
        ([], "COMMAND"),
    ],
)
def test_wrong_usage_exits_with_2(command: Mlxrpc, arguments: list[str], words: str) -> None:
    done = command(*arguments)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2


def test_the_version_is_printed(command: Mlxrpc) -> None:
    assert command("--version").stdout == f"mlxrpc {mlxrpc.__version__}\n"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_serving_without_the_server_names_the_command_that_installs_it() -> None:
    absent = "import sys; sys.modules['mlxrpc_server'] = None; from mlxrpc.cli import main; sys.exit(main(['serve']))"
    done = run_python(absent)
    assert "this installation is the client alone (mlxrpc_server is missing)" in done.stderr
    assert "pip install 'mlxrpc[" in done.stderr
    assert done.returncode == 2


STAND_INS = """
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

for name in ("mlx", "mlx_lm", "mlxrpc_server", "mlxrpc_server.__main__"):
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__spec__ = ModuleSpec(name, None)
sys.modules["mlxrpc_server.__main__"].main = lambda arguments: print(arguments) or 5

from mlxrpc.cli import main
sys.exit(main(["serve", "--listen", "host:1", "--help"]))
"""


def test_serve_hands_its_arguments_to_the_server() -> None:
    done = run_python(STAND_INS)
    assert (done.stdout, done.returncode) == ("['--listen', 'host:1', '--help']\n", 5)


def test_the_client_needs_neither_mlx_nor_the_server() -> None:
    code = "import mlxrpc, mlxrpc.cli, sys; print([name for name in sys.modules if name.split('.')[0] in ABSENT])"
    done = run_python(code.replace("ABSENT", "('mlx', 'mlx_lm', 'mlxrpc_server', 'transformers')"))
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (4_321_000_000, "4.3 GB"), (2e12, "2.0 TB")]
)
def test_sizes_are_for_people(count: float, text: str) -> None:
    assert models.size(count) == text
