"""What `python bench` measures for each of its words: models, cells and how long each may take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from mlxrpc_server import demo
from serving import weights
from serving.cells import Cell, Closed, LongPrompt, Open
from serving.run import Plan

Plans = Callable[[Path], list[Plan]]
"""Given a scratch folder for models that are made."""


def short(scratch: Path) -> list[Plan]:
    """Some minutes on a CPU."""
    return [built_in(scratch), small(scratch)]


def built_in(scratch: Path) -> Plan:
    """Short requests: a peer that multiplies by quantized weights on a CPU takes a fifth of a second for a token."""
    cells = tuple(Closed(streams, 1, prompt=8, tokens=12, cap=60) for streams in (1, 8, 16))
    model = weights.endless(demo.source(), scratch / "built-in")
    return Plan(name="built-in", model=model, cells=cells, rows=16, raw_seconds=2)


def small(scratch: Path) -> Plan:
    """42 million parameters in bfloat16, as a CPU meets them."""
    return Plan(
        name="42M bfloat16",
        model=weights.make("42M", scratch / "42M"),
        cells=(
            *(Closed(streams, 1, prompt=16, tokens=20, cap=60) for streams in (1, 16)),
            Closed(1, 1, prompt=256, tokens=2, cap=40),
        ),
        rows=16,
        rounds=2,
        raw_seconds=2,
    )


def more(scratch: Path) -> list[Plan]:
    """The other scenarios on a CPU."""
    plan = Plan(
        name="built-in",
        model=weights.endless(demo.source(), scratch / "built-in"),
        cells=(
            Closed(8, 1, prompt=8, tokens=16, cap=60),
            Closed(8, 1, prompt=8, tokens=16, cap=60, mixed=True, warm=60),
            Open(rate=0.5, seconds=12, prompt=8, tokens=8, cap=30),
            LongPrompt(4, prompt=8, tokens=200, long_prompt=256, after=5, cap=60),
        ),
        rows=16,
        raw_seconds=2,
        join=(7, 512),
    )
    return [plan]


def tiny(scratch: Path) -> list[Plan]:
    """Every kind of cell in a minute, on a model that says nothing about speed: it shows that all parts work."""
    plan = Plan(
        name="tiny",
        model=weights.make("tiny", scratch / "tiny"),
        cells=(
            *(Closed(streams, 2, prompt=24, tokens=16, cap=10, warm=5) for streams in (1, 8, 32)),
            Open(rate=8, seconds=2, prompt=24, tokens=16, cap=10),
            Closed(8, 2, prompt=16, tokens=16, cap=10),
            Closed(8, 2, prompt=16, tokens=16, cap=10, mixed=True, warm=60),
            LongPrompt(4, prompt=16, tokens=400, long_prompt=512, after=0.3, cap=10),
            Closed(4, 1, prompt=256, tokens=32, cap=10, warm=5),
        ),
        rows=32,
        drivers=2,
        raw_seconds=1,
        join=(7, 128),
    )
    return [plan]


LEVELS = (1, 8, 32, 64, 128)


def gpu(scratch: Path) -> list[Plan]:
    """The closed loop on the shape of Qwen3-0.6B."""
    cells: tuple[Cell, ...] = tuple(Closed(streams, 2, prompt=130, tokens=128, cap=18, warm=8) for streams in LEVELS)
    return [qwen(scratch, cells)]


def gpu_more(scratch: Path) -> list[Plan]:
    """The other scenarios on the shape of Qwen3-0.6B."""
    cells: tuple[Cell, ...] = (
        Closed(64, 1, prompt=120, tokens=128, cap=15, warm=25),
        Closed(64, 1, prompt=120, tokens=128, cap=15, warm=15, mixed=True),
        LongPrompt(16, prompt=130, tokens=768, long_prompt=8192, after=1, cap=15),
        *(Closed(streams, 1, prompt=2048, tokens=256, cap=20, warm=15) for streams in (1, 32, 128)),
        *(Open(rate=rate, seconds=5, prompt=130, tokens=128, cap=15) for rate in (8, 32)),
    )
    return [qwen(scratch, cells, join=(31, 4096))]


def qwen(scratch: Path, cells: tuple[Cell, ...], join: tuple[int, int] | None = None) -> Plan:
    model = weights.make("0.6B", scratch / "0.6B")
    return Plan(
        name="Qwen3-0.6B shape, bfloat16", model=model, cells=cells, rows=128, drivers=4, raw_seconds=2, join=join
    )


PLANS: Mapping[str, Plans] = {"short": short, "more": more, "tiny": tiny, "gpu": gpu, "gpu-more": gpu_more}
