"""The README's table of files has all of the server's, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

FOLDERS = ("server/mlxrpc_server/", "server/mlxrpc_server/engine/")


def listed(folder: str) -> set[str]:
    """The names in the rows behind the folder's own, up to the next folder."""
    rows = README.split(f"| **`{folder}`** |", 1)[1].splitlines()[1:]
    names = set()
    for row in rows:
        first = row.split("|")[1]
        if "**" in first or not re.match(r" `[a-z_]+/?`", first):
            break
        names |= set(re.findall(r"`([a-z_]+/?)`", first))
    return names


def existing(folder: str) -> set[str]:
    modules = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}
    return modules | {f"{path.parent.name}/" for path in (ROOT / folder).glob("*/__init__.py")}


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_readme_lists_every_module(folder: str) -> None:
    # These two have rows of their own, with their whole paths.
    assert listed(folder) == existing(folder) - {"engine/", "demo/"}
