"""Every field of Sampling through the RPC: it changes the draws as the contract says, and an explicit zero is not unset.

What the contract says is written down here once more, in numpy, from the model's own logits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxrpc.v1 import inference_pb2 as pb
from mlxrpc.v1 import model_pb2
from tests import noise_model
from tests.end_to_end.running import RunningServer, running_server
from tests.end_to_end.streams import prompt_ids, same_tokens, stream, streaming
from tests.same_tokens import judge

LENGTH = 32
EDGE = 1e-3
"""How much of a probability or a logit is left to the last bits."""

NEUTRAL: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "min_tokens_to_keep": 1,
    "xtc_probability": 0.0,
    "xtc_threshold": 0.1,
    "repetition_penalty": 1.0,
    "repetition_context_size": 20,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


@dataclass(frozen=True)
class Case:
    """A field with a value that shows, the value of a request that does not want it, and what it needs beside it."""

    name: str
    strong: Any
    off: Any
    beside: dict[str, Any] = field(default_factory=dict)


GREEDY = {"temperature": 0.0}
CASES = [
    Case("temperature", 2.0, 0.0),
    Case("top_p", 0.3, 1.0),
    Case("top_k", 2, 0),
    Case("min_p", 0.5, 0.0),
    Case("min_tokens_to_keep", 40, 1, {"top_p": 1e-6, "temperature": 3.0}),
    Case("xtc_probability", 1.0, 0.0, {"xtc_threshold": 0.02}),
    Case("xtc_threshold", 0.4, 0.0, {"xtc_probability": 1.0}),
    Case("repetition_penalty", 3.0, 1.0, GREEDY),
    Case("repetition_context_size", 1, 0, GREEDY | {"repetition_penalty": 1.8}),
    Case("presence_penalty", 2.0, 0.0, GREEDY | {"logit_bias": {300: 12.0, 301: 11.0}}),
    Case("frequency_penalty", 2.0, 0.0, GREEDY | {"logit_bias": {300: 20.0, 301: 19.0}}),
    Case("logit_bias", {300: 100.0}, {300: 0.0}, GREEDY),
]


@pytest.fixture(scope="module")
def opinionated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The noise model once for each field, with that field's value as its configured default."""
    config = tmp_path_factory.mktemp("fields") / "mlxrpc.toml"
    config.write_text("preload = []\nmax_loaded_models = 2\n" + "".join(map(_model, CASES)), encoding="utf-8")
    with running_server("--config", str(config)) as server:
        yield server


def _model(case: Case) -> str:
    biases = isinstance(case.strong, dict) and ", ".join(f'"{key}" = {value}' for key, value in case.strong.items())
    value = f"{{ {biases} }}" if biases else case.strong
    return (
        f'[[models]]\nname = "{case.name}"\nsource = "{noise_model.folder()}"\ndefaults = {{ {case.name} = {value} }}\n'
    )


def asked(case: Case, value: Any) -> pb.StreamGenerateRequest:
    """Every field is set, but for the one in question where there is no value for it."""
    request = streaming("Hello", seed=11, max_tokens=LENGTH)
    request.stop.ignore_eos = True
    given = NEUTRAL | case.beside | ({} if value is None else {case.name: value})
    for name, each in given.items():
        if name == "logit_bias":
            request.sampling.logit_bias.update(each)
        elif name != case.name or value is not None:
            setattr(request.sampling, name, each)
    return request


each_field = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@each_field
def test_it_changes_the_draw_as_defined(server: RunningServer, case: Case) -> None:
    request, off = asked(case, case.strong), asked(case, case.off)
    prompt = prompt_ids(server, request)
    drawn, undisturbed = stream(server, request).token_ids, stream(server, off).token_ids
    assert misfits(prompt, drawn, request.sampling) == []
    assert misfits(prompt, undisturbed, off.sampling) == []
    told_apart = misfits(prompt, undisturbed, request.sampling) or misfits(prompt, drawn, off.sampling)
    assert told_apart, "nobody could tell whether it was honoured"


@each_field
def test_unset_is_the_models_default_and_zero_is_not(
    server: RunningServer, opinionated: RunningServer, case: Case
) -> None:
    """An explicit value that turns it off does so, whatever the default is."""
    strong, off, unset = (asked(case, value) for value in (case.strong, case.off, None))
    with_value, without = stream(server, strong).token_ids, stream(server, off).token_ids
    assert with_value != without
    off.model = unset.model = case.name
    assert same_tokens(server, strong, with_value, stream(opinionated, unset).token_ids)
    off.ClearField("model")
    turned_off = asked(case, case.off)
    turned_off.model = case.name
    assert same_tokens(server, off, without, stream(opinionated, turned_off).token_ids)


def test_a_seed_of_zero_is_one_like_any_other(server: RunningServer) -> None:
    zero, one = (streaming("Hello", seed=seed, max_tokens=LENGTH) for seed in (0, 1))
    first, again, other = (stream(server, request) for request in (zero, zero, one))
    assert first.started.seed == 0
    assert same_tokens(server, zero, first.token_ids, again.token_ids)
    assert first.token_ids != other.token_ids
    unset = [stream(server, streaming("Hello", seed=None, max_tokens=2)).started.seed for _ in range(2)]
    assert unset[0] != unset[1]


def test_every_field_has_its_case() -> None:
    assert [case.name for case in CASES] + ["seed"] == [each.name for each in model_pb2.Sampling.DESCRIPTOR.fields]


# The contract in numpy


def misfits(prompt: Sequence[int], drawn: Sequence[int], sampling: model_pb2.Sampling) -> list[int]:
    """The places at which a token was drawn that could not have been."""
    context = [*prompt, *drawn]
    logits = judge().model(mx.array([context]))[0, len(prompt) - 1 : -1].astype(mx.float32)
    return [
        place
        for place, row in enumerate(np.array(logits, dtype=np.float64))
        if drawn[place] not in possible(row, prompt, drawn[:place], sampling)
    ]


def possible(logits: np.ndarray, prompt: Sequence[int], had: Sequence[int], sampling: model_pb2.Sampling) -> set[int]:
    logits = penalised(logits, prompt, had, sampling)
    if sampling.temperature == 0:
        return set(np.flatnonzero(logits >= logits.max() - EDGE))
    chances = np.exp(logits - logits.max())
    return filtered(chances / chances.sum(), sampling)


def penalised(
    logits: np.ndarray, prompt: Sequence[int], had: Sequence[int], sampling: model_pb2.Sampling
) -> np.ndarray:
    logits = logits.copy()
    for token, bias in sampling.logit_bias.items():
        logits[token] += bias
    window = [*prompt, *had][-sampling.repetition_context_size :]
    for token in set(window):
        factor = sampling.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    for token, count in Counter(had).items():
        logits[token] -= sampling.presence_penalty + count * sampling.frequency_penalty
    return logits


def filtered(chances: np.ndarray, sampling: model_pb2.Sampling) -> set[int]:
    """A little wider than the contract, where the last bits decide."""
    order = np.argsort(-chances, kind="stable")
    floor = set(order[: sampling.min_tokens_to_keep])
    before = np.cumsum(chances[order]) - chances[order]
    kept = set(order[before < sampling.top_p + EDGE]) | floor
    kept &= set(np.flatnonzero(chances >= sampling.min_p * chances.max() * (1 - EDGE))) | floor
    if sampling.xtc_probability == 1:
        above = [token for token in order if token in kept and chances[token] > sampling.xtc_threshold * (1 + EDGE)]
        removed = {token for token in above if chances[token] > chances[above[-1]] * (1 + EDGE)}
        kept -= removed - set(noise_model.EOS_IDS)
    if 0 < sampling.top_k < len(kept):
        last = sorted(chances[list(kept)])[-sampling.top_k]
        kept = {token for token in kept if chances[token] >= last * (1 - EDGE)}
    return kept
