"""What the prompt cache saves: `python bench/prefix.py [MODEL] [--tokens N]`, through a server of its own.

First turns of conversations against second ones, which bring the first and its answer again; and a load in which some
tenants' requests share their system prompts, with the cache and past it. All in one run.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import grpc

from mlxrpc.v1 import admin_pb2, admin_pb2_grpc, inference_pb2_grpc
from mlxrpc.v1 import inference_pb2 as pb

ROUNDS = 5
ANSWER, QUESTION = 60, 30
TENANTS, EACH, SYSTEM = 4, 8, 1024
STREAMS = 8
IDS = 256
"""Every vocabulary has these."""


@dataclass(frozen=True, slots=True)
class Server:
    inference: inference_pb2_grpc.InferenceServiceStub
    admin: admin_pb2_grpc.ModelAdminServiceStub


@dataclass(frozen=True, slots=True)
class Turn:
    first_token: float
    """In seconds."""
    cached: int
    token_ids: list[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="", help="a folder; by default the built-in model")
    parser.add_argument("--tokens", type=int, default=3900, help="of a first prompt (default 3900)")
    chosen = parser.parse_args()
    with running(chosen.model) as server:
        ask(server, prompt(chosen.tokens, "warm-up"), ANSWER)
        turns(server, chosen.tokens)
        load(server)
        held(server)


def turns(server: Server, tokens: int) -> None:
    first, second, past = [], [], []
    for number in range(ROUNDS):
        begun = prompt(tokens, f"conversation {number}")
        first.append(ask(server, begun, ANSWER))
        again = [*begun, *first[-1].token_ids, *prompt(QUESTION, f"question {number}")]
        second.append(ask(server, again, 2))
        past.append(ask(server, again, 2, bypass=True))
    before, after, without = (statistics.median(turn.first_token for turn in each) for each in (first, second, past))
    print(f"first turn, {tokens:,} tokens: {1e3 * before:.0f} ms to the first token, median of {ROUNDS}")
    print(f"second turn: {1e3 * after:.0f} ms, {after / before:.3f} of it; cached {second[-1].cached:,}")
    print(f"second turn past the cache: {1e3 * without:.0f} ms")


def load(server: Server) -> None:
    asked = [(f"tenant {number % TENANTS}", number) for number in range(TENANTS * EACH)]
    for bypass in (True, False):
        begun = time.perf_counter()
        with ThreadPoolExecutor(STREAMS) as threads:
            answers = list(threads.map(partial(shared, server, bypass=bypass), *zip(*asked, strict=True)))
        seconds = time.perf_counter() - begun
        cached = sum(turn.cached for turn in answers) / (len(asked) * (SYSTEM + QUESTION))
        median = statistics.median(turn.first_token for turn in answers)
        print(
            f"{len(asked)} requests of {TENANTS} tenants, {STREAMS} at a time, {'past' if bypass else 'with'} the cache:"
            f" {seconds:.1f} s, {1e3 * median:.0f} ms to the first token, {cached:.0%} of the prompts cached"
        )


def shared(server: Server, tenant: str, number: int, *, bypass: bool) -> Turn:
    tokens = [*prompt(SYSTEM, tenant), *prompt(QUESTION, f"{tenant} {number}")]
    return ask(server, tokens, 16, tenant=tenant, bypass=bypass)


def held(server: Server) -> None:
    time.sleep(2)  # the worker's next report
    (model,) = server.admin.GetServerInfo(admin_pb2.GetServerInfoRequest()).models
    print(f"kept: {model.prefix_bytes / 2**20:,.0f} MiB of {model.memory_bytes / 2**20:,.0f} MiB")


def prompt(tokens: int, name: str) -> list[int]:
    return random.Random(name).choices(range(IDS), k=tokens)


def ask(server: Server, tokens: Sequence[int], most: int, *, tenant: str = "", bypass: bool = False) -> Turn:
    request = pb.StreamGenerateRequest(
        input=pb.Input(token_ids=pb.TokenIds(ids=tokens)), cache=pb.Cache(tenant=tenant, bypass=bypass)
    )
    request.stop.max_tokens = most
    request.stop.ignore_eos = True
    begun, first, cached = time.perf_counter(), 0.0, 0
    token_ids: list[int] = []
    for event in server.inference.StreamGenerate(request):
        if event.WhichOneof("event") == "delta":
            first = first or time.perf_counter() - begun
            token_ids += event.delta.token_ids
        cached = event.finished.usage.cached_prompt_tokens
    return Turn(first, cached, token_ids)


@contextlib.contextmanager
def running(model: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "mlxrpc_server", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    command += ["--model", f"bench={model}"] if model else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            lines = iter(process.stdout or ())
            addresses = [next(lines).rpartition(" ")[2].strip() for _ in range(2)]
            inference, admin = (grpc.insecure_channel(address) for address in addresses)
            server = Server(
                inference_pb2_grpc.InferenceServiceStub(inference), admin_pb2_grpc.ModelAdminServiceStub(admin)
            )
            yield server
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
