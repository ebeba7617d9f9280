"""The README's table of sampling fields beside the contract and the server's own constants."""

from __future__ import annotations

import re
from pathlib import Path

from mlxrpc.v1 import model_pb2
from mlxrpc_server.types import SamplingChoice

README = Path(__file__).parents[2] / "README.md"


def table() -> dict[str, str]:
    """By field, what it says of unset."""
    _, _, behind = README.read_text(encoding="utf-8").partition("| field | what it does | unset |\n")
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", behind.partition("\n\n")[0], re.MULTILINE)
    return dict(rows)


def test_it_has_every_field_of_the_contract() -> None:
    assert sorted(table()) == sorted(field.name for field in model_pb2.Sampling.DESCRIPTOR.fields)


def test_what_it_says_of_unset_is_what_the_server_takes() -> None:
    taken = SamplingChoice().resolve(seed=0)
    numbers = {name: float(number[0]) for name, unset in table().items() if (number := re.match(r"[\d.]+", unset))}
    assert numbers == {name: getattr(taken, name) for name in numbers}
    assert set(table()) - set(numbers) == {"logit_bias", "seed"}
