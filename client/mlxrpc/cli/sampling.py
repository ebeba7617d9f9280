"""The arguments that say how a model chooses its tokens and when it ends."""

from __future__ import annotations

import argparse
from typing import Any

# What is handed to the client under the same name.
NAMES = (
    "model",
    "enable_thinking",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "repetition_context_size",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "max_tokens",
    "min_tokens",
    "max_reasoning_tokens",
    "stop",
    "ignore_eos",
)


def add(parser: argparse.ArgumentParser) -> None:
    ends = parser.add_argument_group("end")
    ends.add_argument("-n", "--max-tokens", type=int, metavar="N")
    ends.add_argument("--min-tokens", type=int, metavar="N", help="until then, nothing ends it")
    ends.add_argument("--max-reasoning-tokens", type=int, metavar="N", help="then it must answer; 0: at once")
    ends.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be repeated")
    ends.add_argument("--ignore-eos", action="store_true", default=None, help="go on where the model would end")
    sampling = parser.add_argument_group("sampling (default: the model's own)")
    sampling.add_argument("-t", "--temperature", type=float, metavar="X", help="0: always the most probable token")
    sampling.add_argument("--top-p", type=float, metavar="X")
    sampling.add_argument("--top-k", type=int, metavar="N")
    sampling.add_argument("--min-p", type=float, metavar="X")
    sampling.add_argument("--repetition-penalty", type=float, metavar="X")
    sampling.add_argument("--repetition-context-size", type=int, metavar="N", help="0: all of prompt and completion")
    sampling.add_argument("--presence-penalty", type=float, metavar="X")
    sampling.add_argument("--frequency-penalty", type=float, metavar="X")
    sampling.add_argument("--logit-bias", action="append", type=_bias, metavar="ID=X", help="may be repeated")
    sampling.add_argument("--seed", type=int, metavar="N", help="repeat the draws of an earlier call")


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """For the client; the model and the choice to think among them, which `prompt` asks for."""
    biases = arguments.logit_bias
    return {name: getattr(arguments, name) for name in NAMES} | {"logit_bias": dict(biases) if biases else None}


def _bias(given: str) -> tuple[int, float]:
    token, _, bias = given.partition("=")
    try:
        return int(token), float(bias)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{given!r} is not ID=X, such as 42=-100") from error
