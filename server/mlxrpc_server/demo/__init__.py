"""The built-in model: where its folder is. Knows neither what is in it nor who serves it."""

from __future__ import annotations

from pathlib import Path


def source() -> Path:
    """Trained by bench/demo, and shipped with this package."""
    return Path(__file__).with_name("pebble")
