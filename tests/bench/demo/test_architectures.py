from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from demo import variants
from demo.architectures import ARCHITECTURES, QUIET_FROM, WINDOW
from mlxrpc_server.engine.load import load
from tests.engine.running import GREEDY, Run, alone, row
from tests.same_tokens import Judge


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = variants.make(request.param, tmp_path_factory.mktemp("models"))
    return load(folder, lambda _stage: None).model


def varied(length: int) -> list[int]:
    """No two rows of different lengths begin alike."""
    return [(37 * place + 11 * length) % QUIET_FROM for place in range(length)]


def last_logits(model: Any, tokens: Sequence[int]) -> mx.array:
    logits: mx.array = model(mx.array([list(tokens)]))[0, -1]
    return logits


def test_a_batch_gives_solo_tokens_past_the_window(model: Any) -> None:
    rows = [row(number, varied(length), WINDOW + 8) for number, length in enumerate((1, WINDOW - 3, 2 * WINDOW, 9))]
    run = Run(model)
    for one in rows:
        run.batch.submit(one)
        run.step()
    run.to_end()
    for one in rows:
        Judge(model).check(one.prompt, GREEDY, alone(model, row(one.id, one.prompt, WINDOW + 8)), run.tokens(one.id))


def test_greedy_text_is_varied_and_never_ends(model: Any) -> None:
    text = alone(model, row(1, varied(5), 60))
    assert max(text) < QUIET_FROM
    assert len(set(text)) > 30


def test_the_far_past_matters(model: Any) -> None:
    context = varied(2 * WINDOW)
    changed = [context[0] + 1, *context[1:]]
    difference = mx.abs(last_logits(model, context) - last_logits(model, changed)).max()
    assert float(difference) > 0.1


def test_every_making_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = (
        (variants.make("hybrid", tmp_path / number) / "model.safetensors").read_bytes() for number in ("1", "2")
    )
    assert one == other
