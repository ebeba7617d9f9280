"""A run's results as tables, JSON and a picture. Knows how results look, not how they came about."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from serving.cells import Cell, Closed, LongPrompt, Open
from serving.chart import Panel, Points, chart
from serving.figures import Figures, middle
from serving.run import RAW, Record, Results
from serving.table import milliseconds, number, rate, table, times

CLOSED = (
    "streams",
    "contender",
    "tokens/s",
    "of raw",
    "decoding",
    "of raw",
    "TTFT p50 ms",
    "p99",
    "gap p50 ms",
    "p99",
    "tokens/message",
    "as asked",
)
OPEN = (
    "arrivals",
    "contender",
    "tokens/s",
    "TTFT p50 ms",
    "p99",
    "gap p50 ms",
    "p99",
    "tokens/message",
    "as asked",
)
USE = (
    "cell",
    "contender",
    "server CPU µs/token",
    "workers µs/token",
    "busiest client CPU",
    "memory MB",
    "GPU memory MB",
)
LONG = (
    "long prompt",
    "contender",
    "gap before p50 ms",
    "during p99",
    "times before",
    "during worst",
    "its TTFT ms",
    "gaps",
)
MIXED = ("streams", "contender", "uniform tokens/s", "mixed tokens/s", "mixed/uniform", "as asked")
AGAINST = ("cell", "peer", "tokens/s, times its", "decoding, times its", "TTFT p50 of its", "TTFT p99 of its")
JOIN = (
    "rows of tokens",
    "",
    "step p50 ms",
    "worst of 12",
    "worst after a join",
    "added",
    "worst after a leave",
    "added",
)


@dataclass(frozen=True, slots=True)
class Report:
    about: Sequence[str]
    """The machine, the versions, the date: a line each."""
    results: Results

    def text(self) -> str:
        parts = ["\n".join(f"- {line}" for line in self.about)]
        for model in dict.fromkeys(record.model for record in self.results.records):
            parts += Model(model, self.results).sections()
        if self.results.notes:
            parts.append("### What went wrong\n\n" + "\n".join(f"- {_short(note)}" for note in self.results.notes))
        return "\n\n".join(parts) + "\n"

    def as_json(self) -> str:
        records = [
            {
                "model": record.model,
                "contender": record.contender,
                "kind": type(record.cell).__name__,
                "cell": asdict(record.cell),
                "figures": record.figures.as_json(),
                "stall": record.stall and asdict(record.stall),
            }
            for record in self.results.records
        ]
        rest = {"raw": self.results.raw, "joins": self.results.joins, "notes": self.results.notes}
        return json.dumps({"about": list(self.about), "records": records, **rest}, indent=1) + "\n"

    def charts(self) -> Iterator[tuple[str, str]]:
        """A name and a picture for each model."""
        for model in dict.fromkeys(record.model for record in self.results.records):
            if picture := Model(model, self.results).picture():
                yield model, picture


class Model:
    """One model's part of the results, the rounds of each cell brought together."""

    def __init__(self, name: str, results: Results) -> None:
        self._name = name
        records = [record for record in results.records if record.model == name]
        self.contenders = list(dict.fromkeys(record.contender for record in records))
        self.cells: list[Cell] = list(dict.fromkeys(record.cell for record in records))
        self._figures = {
            (cell, contender): middle(
                [one.figures for one in records if (one.cell, one.contender) == (cell, contender)]
            )
            for cell, contender in dict.fromkeys((one.cell, one.contender) for one in records)
        }
        self._stalls = [record for record in records if isinstance(record.cell, LongPrompt)]
        self._raw = _middle_raw([raw for raw in results.raw if raw["model"] == name])
        self._joins = [join for join in results.joins if join["model"] == name]

    def sections(self) -> list[str]:
        parts = [f"## {self._name}"]
        parts += [
            _titled(f"Closed loop, prompts of {prompt} tokens, {tokens} new ones", CLOSED, self._closed(cells))
            for (prompt, tokens), cells in self._tables().items()
        ]
        parts.append(_titled("mlxrpc against its peers", AGAINST, self._against()))
        parts.append(_titled("Open loop: Poisson arrivals", OPEN, self._open()))
        parts.append(_titled("Every stream with its own parameters, a quarter of them greedy", MIXED, self._mixed()))
        parts.append(_titled("A long prompt beside running streams", LONG, map(_long, self._stalls)))
        parts.append(_titled("Joins and leaves, the engine in process", JOIN, map(_join, self._joins)))
        parts.append(_titled("What it took", USE, self._use()))
        return [part for part in parts if part]

    def picture(self) -> str:
        shown = [cells for cells in self._tables().values() if len(cells) > 1]
        if not shown:
            return ""
        cells = max(shown, key=len)
        limit = {cell.streams: self._raw_of(cell)["sampled"] for cell in cells if self._raw_of(cell)}
        panels = [
            Panel("tokens/s", {**self._lines(cells, lambda one: one.rate), RAW: limit}),
            Panel("first token, p99, ms", self._lines(cells, lambda one: 1000 * one.first.p99)),
            Panel("gap between messages, p99, ms", self._lines(cells, lambda one: 1000 * one.gap.p99)),
        ]
        return chart(f"{self._name}: prompts of {cells[0].prompt} tokens, {cells[0].tokens} new ones", panels)

    def _tables(self) -> dict[tuple[int, int], list[Closed]]:
        """The closed cells, by the lengths of prompts and answers."""
        tables: dict[tuple[int, int], list[Closed]] = {}
        for cell in self.cells:
            if isinstance(cell, Closed) and not cell.mixed:
                tables.setdefault((cell.prompt, cell.tokens), []).append(cell)
        return tables

    def _lines(self, cells: Sequence[Closed], value: Callable[[Figures], float]) -> dict[str, Points]:
        """One for each contender, over the number of streams."""
        return {
            contender: {
                cell.streams: value(self._figures[cell, contender])
                for cell in cells
                if (cell, contender) in self._figures
            }
            for contender in self.contenders
        }

    def _raw_of(self, cell: Closed) -> dict[str, float]:
        return self._raw.get((cell.streams, cell.prompt, cell.tokens), {})

    def _closed(self, cells: Sequence[Closed]) -> Iterator[Sequence[str]]:
        for cell in cells:
            raw = self._raw_of(cell)
            limit = raw.get("sampled")
            for contender, one in self._measured(cell):
                rates = (rate(one.rate), times(one.rate, limit), rate(one.decode_rate), times(one.decode_rate, limit))
                yield str(cell.streams), contender, *rates, *_delays(one)
            for kind in ("sampled", "greedy"):
                if raw:
                    yield str(cell.streams), f"{RAW}, {kind}", "", "", rate(raw[kind]), "", *[""] * 6

    def _measured(self, cell: Cell) -> Iterator[tuple[str, Figures]]:
        for contender in self.contenders:
            if one := self._figures.get((cell, contender)):
                yield contender, one

    def _against(self) -> Iterator[Sequence[str]]:
        ours, *peers = self.contenders
        for cell in self.cells:
            if isinstance(cell, LongPrompt) or (cell, ours) not in self._figures:
                continue
            mine = self._figures[cell, ours]
            for peer in peers:
                if its := self._figures.get((cell, peer)):
                    yield (
                        f"{cell.name}, {cell.prompt} + {cell.tokens}",
                        peer,
                        times(mine.rate, its.rate),
                        times(mine.decode_rate, its.decode_rate),
                        times(mine.first.p50, its.first.p50),
                        times(mine.first.p99, its.first.p99),
                    )

    def _open(self) -> Iterator[Sequence[str]]:
        for cell in self.cells:
            if isinstance(cell, Open):
                for contender, one in self._measured(cell):
                    yield f"{cell.name}, {cell.prompt} + {cell.tokens}", contender, rate(one.rate), *_delays(one)

    def _mixed(self) -> Iterator[Sequence[str]]:
        for cell in self.cells:
            if isinstance(cell, Closed) and cell.mixed:
                uniform = next(one for one in self.cells if _same_but_uniform(one, cell))
                for contender, one in self._measured(cell):
                    if base := self._figures.get((uniform, contender)):
                        ratio = times(one.rate, base.rate)
                        yield str(cell.streams), contender, rate(base.rate), rate(one.rate), ratio, _counts(one)

    def _use(self) -> Iterator[Sequence[str]]:
        for cell in self.cells:
            for contender, one in self._measured(cell):
                yield (
                    f"{cell.name}, {cell.prompt} + {cell.tokens}",
                    contender,
                    _micro(one.server_cpu, one.tokens),
                    _micro(one.worker_cpu, one.tokens),
                    f"{100 * one.client_cpu:.0f} %",
                    number(one.memory / 1e6),
                    number(None if one.device_memory is None else one.device_memory / 1e6),
                )


def _same_but_uniform(cell: Cell, mixed: Closed) -> bool:
    if not isinstance(cell, Closed) or cell.mixed:
        return False
    return (cell.streams, cell.prompt, cell.tokens) == (mixed.streams, mixed.prompt, mixed.tokens)


def _titled(title: str, header: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """Nothing where there is no row."""
    lines = list(rows)
    return f"### {title}\n\n{table(header, lines)}" if lines else ""


def _delays(one: Figures) -> Sequence[str]:
    first = milliseconds(one.first.p50), milliseconds(one.first.p99)
    gap = milliseconds(one.gap.p50), milliseconds(one.gap.p99)
    return (*first, *gap, number(one.tokens / max(1, one.messages), 2), _counts(one))


def _counts(one: Figures) -> str:
    """How many requests got exactly what they asked for, and what became of the others."""
    others = {"cut": one.cut, "failed": one.failed, "other counts": one.requests - one.as_asked - one.cut - one.failed}
    told = "".join(f", {count} {name}" for name, count in others.items() if count)
    return f"{one.as_asked}/{one.requests}{told}"


def _long(record: Record) -> Sequence[str]:
    stall = record.stall
    if stall is None:
        return (record.cell.name, record.contender, *["-"] * 6)
    return (
        record.cell.name,
        record.contender,
        milliseconds(stall.before),
        milliseconds(stall.during),
        times(stall.during, stall.before),
        milliseconds(stall.worst),
        milliseconds(stall.first),
        str(stall.gaps),
    )


def _join(join: Mapping[str, Any]) -> Sequence[str]:
    worst = join["alone"]
    joined, left = ((join[kind], max(0.0, join[kind] - worst)) for kind in ("join", "leave"))
    rows = f"{join['rows']} of {join['tokens']}"
    return (rows, "mlxrpc", *map(milliseconds, (join["step"], worst, *joined, *left)))


def _middle_raw(raws: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int, int], dict[str, float]]:
    shapes: dict[tuple[int, int, int], list[Mapping[str, Any]]] = {}
    for raw in raws:
        shapes.setdefault((raw["rows"], raw["prompt"], raw["tokens"]), []).append(raw)
    return {
        shape: {kind: statistics.median(one[kind] for one in rounds) for kind in ("greedy", "sampled", "prefill")}
        for shape, rounds in shapes.items()
    }


def _micro(seconds: float, tokens: int) -> str:
    return number(1e6 * seconds / tokens) if tokens else "-"


def _short(note: str, most: int = 300) -> str:
    line = " ".join(note.split())
    return line if len(line) <= most else f"{line[:80]} … {line[-most + 80 :]}"
