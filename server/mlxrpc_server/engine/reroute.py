"""Puts functions of ours in the place of mlx-lm's where a model's modules have them as globals: they offer no other."""

from __future__ import annotations

import sys
from typing import Any


def reroute(model: Any, name: str, theirs: Any, ours: Any) -> None:
    """In the modules that the model's parts come from, from now on. What is not theirs any more is left alone."""
    for module in {type(part).__module__ for part in model.modules()}:
        namespace = sys.modules[module]
        if getattr(namespace, name, None) is theirs:
            setattr(namespace, name, ours)
