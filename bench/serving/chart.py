"""A picture of the closed loop, as SVG: panels over the number of streams, a line for each contender. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#1b6ca8", "#c8553d", "#4f8a4b", "#7a5ba6", "#8a8a8a")
WIDTH, HEIGHT = 340, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 34, 40

Points = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Panel:
    """One line for each name; both axes logarithmic."""

    title: str
    lines: Mapping[str, Points]


def chart(title: str, panels: Sequence[Panel]) -> str:
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colours = dict(zip(names, COLOURS, strict=False))
    width, height = WIDTH * len(panels), HEIGHT + 56
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" fill="#333">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        text(12, 20, title, size=14),
        *legend(colours),
    ]
    for place, panel in enumerate(panels):
        parts.append(f'<g transform="translate({WIDTH * place} 48)">{"".join(drawn(panel, colours))}</g>')
    return "\n".join([*parts, "</svg>\n"])


def legend(colours: Mapping[str, str]) -> list[str]:
    parts, x = [], 14
    for name, colour in colours.items():
        parts.append(f'<rect x="{x}" y="33" width="14" height="4" fill="{colour}"/>')
        parts.append(text(x + 18, 39, name))
        x += 34 + 7 * len(name)
    return parts


def drawn(panel: Panel, colours: Mapping[str, str]) -> list[str]:
    points = [point for line in panel.lines.values() for point in line.items() if good(point)]
    if not points:
        return [text(LEFT, TOP - 12, f"{panel.title}: nothing measured")]
    across = Axis.of([x for x, _ in points], LEFT, WIDTH - RIGHT)
    up = Axis.of([y for _, y in points], HEIGHT - BOTTOM, TOP)
    parts = [text(LEFT, TOP - 12, panel.title), *grid(across, up, sorted({x for x, _ in points}))]
    for name, line in panel.lines.items():
        places = [(across.place(x), up.place(y)) for x, y in sorted(line.items()) if good((x, y))]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colours[name]}"/>' for x, y in places]
    return parts


def good(point: tuple[float, float]) -> bool:
    return point[0] > 0 and point[1] > 0 and math.isfinite(point[1])


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to places, logarithmic."""

    low: float
    high: float
    begin: float
    end: float

    @classmethod
    def of(cls, values: Sequence[float], begin: float, end: float) -> Axis:
        low, high = min(values), max(values)
        return cls(low / 1.15, high * 1.15, begin, end)

    def place(self, value: float) -> float:
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return self.begin + part * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times the powers of ten, or only the powers where those would be many."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if len(powers) < 4 else (1,)
        every = [step * 10.0**power for power in powers for step in steps]
        return [tick for tick in every if self.low <= tick <= self.high]


def grid(across: Axis, up: Axis, levels: Sequence[float]) -> list[str]:
    parts = []
    for tick in up.ticks():
        y = up.place(tick)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(text(LEFT - 6, y + 4, f"{tick:g}" if tick < 1 else f"{tick:,.0f}", anchor="end"))
    parts += [text(across.place(level), HEIGHT - BOTTOM + 16, f"{level:g}", anchor="middle") for level in levels]
    return [*parts, text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "streams", anchor="middle")]


def text(x: float, y: float, content: str, *, size: int = 11, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(content)}</text>'
