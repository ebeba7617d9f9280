from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from serving.plans import PLANS

BENCH = Path(__file__).parents[2] / "bench"


def test_the_help_says_what_each_word_measures() -> None:
    told = subprocess.run([sys.executable, BENCH, "--help"], capture_output=True, text=True, check=True).stdout
    for word, plans in PLANS.items():
        assert plans.__doc__
        assert f"  {word:<10}{plans.__doc__}" in told
    assert "  health    How long a health check takes" in told
