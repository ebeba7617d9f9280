"""A run: every contender in its turn, one server up at a time, the same cells for all. Knows no table.

A contender that dies, hangs or resets connections is recorded and started again for what is left; it ends no run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from serving import figures, process
from serving.cells import Abilities, Cell, Closed, LongPrompt, Seeds
from serving.contenders import Contender
from serving.driver import Done, Drivers
from serving.exchange import Answer, Ask, Job, Sampling, Stream
from serving.figures import Figures
from serving.process import Server
from serving.prompts import Prompts

HERE = Path(__file__).parent
RAW = "raw loop"
FIRST_ANSWER = 180.0
"""Seconds that the first one may take: models are loaded and kernels compiled."""
JOINS_WITHIN = 120.0
LOOK = 0.25
"""Seconds between two looks at a server's memory."""


@dataclass(frozen=True, slots=True)
class Plan:
    """For one model."""

    name: str
    model: Path
    cells: tuple[Cell, ...]
    rows: int
    """That every server may decode together."""
    rounds: int = 1
    drivers: int = 1
    raw_seconds: float = 4.0
    """Of each measurement of the raw loop, at most."""
    join: tuple[int, int] | None = None
    """Rows and their tokens, for the cost of a join and a leave."""


@dataclass(frozen=True, slots=True)
class Record:
    model: str
    contender: str
    cell: Cell
    figures: Figures
    stall: Stall | None = None


@dataclass(frozen=True, slots=True)
class Stall:
    """What running streams see of a long prompt beside them. Seconds."""

    before: float
    """The median gap before it came."""
    during: float
    """The 99th percentile of the gaps between its arrival and its first token."""
    worst: float
    first: float
    """Until the long prompt's first token, or until it was cut."""
    gaps: int


@dataclass(slots=True)
class Results:
    records: list[Record]
    raw: list[dict[str, Any]]
    joins: list[dict[str, Any]]
    notes: list[str]
    """What went wrong, and with whom."""


class Run:
    def __init__(
        self, contenders: Sequence[Contender], seconds: float, say: Callable[[str], None], *, raw: bool = True
    ) -> None:
        self._contenders = contenders
        self._raw = raw
        self._end = time.monotonic() + seconds
        self._say = say
        self.results = Results([], [], [], [])

    def measure(self, plan: Plan) -> None:
        prompts = Prompts.of(plan.model)
        for number in range(plan.rounds):
            if self._raw:
                self._measure_raw(plan)
            for contender in self._contenders:
                Turn(self, plan, contender, number, prompts).take()
        if plan.join is not None and not self.late:
            self._measure_joins(plan, *plan.join)

    @property
    def late(self) -> bool:
        return time.monotonic() > self._end

    def note(self, text: str) -> None:
        self._say(f"! {text}")
        self.results.notes.append(text)

    def record(self, record: Record) -> None:
        one = record.figures
        self._say(
            f"{record.model} | {record.contender} | {record.cell.name} | {one.rate:.1f} tokens/s, "
            f"{one.as_asked} of {one.requests} as asked, {one.seconds:.1f} s"
        )
        self.results.records.append(record)

    def _measure_raw(self, plan: Plan) -> None:
        shapes = {
            (cell.streams, cell.prompt, cell.tokens): None
            for cell in plan.cells
            if isinstance(cell, Closed) and not cell.mixed
        }
        command = [sys.executable, str(HERE / "raw_loop.py"), str(plan.model)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as raw:
            assert raw.stdin is not None  # noqa: S101 - the type checker cannot know
            assert raw.stdout is not None  # noqa: S101
            raw.stdout.readline()
            for rows, prompt, tokens in shapes:
                shape = {"rows": rows, "prompt": prompt, "tokens": tokens}
                print(json.dumps({**shape, "most": plan.raw_seconds}), file=raw.stdin, flush=True)
                if not (line := raw.stdout.readline()):
                    self.note(f"{plan.name}: the raw loop ended at {shape}")
                    break
                self.results.raw.append({"model": plan.name, **shape, **json.loads(line)})
                self._say(f"{plan.name} | {RAW} | {rows} rows | {self.results.raw[-1]['sampled']:.1f} tokens/s sampled")
            raw.stdin.close()

    def _measure_joins(self, plan: Plan, rows: int, tokens: int) -> None:
        command = [sys.executable, str(HERE.parent / "join_leave.py"), str(plan.model), str(rows), str(tokens)]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=JOINS_WITHIN)
        except subprocess.SubprocessError as error:
            self.note(f"{plan.name}: joins and leaves could not be measured: {error}")
            return
        self.results.joins.append({"model": plan.name, "rows": rows, "tokens": tokens, **json.loads(done.stdout)})


class Turn:
    """One contender's, in one round."""

    def __init__(self, run: Run, plan: Plan, contender: Contender, number: int, prompts: Prompts) -> None:
        self._run, self._plan, self._contender, self._round, self._prompts = run, plan, contender, number, prompts
        self._left = deque(enumerate(plan.cells))

    def take(self) -> None:
        while self._left:
            if self._run.late:
                self._note(f"out of time with {len(self._left)} cells left")
                return
            before = len(self._left)
            try:
                self._serve()
            except process.NotStarted as error:
                self._note(f"did not start: {error}")
                return
            except EOFError:
                self._note("its clients could not go on")
            if len(self._left) == before:
                return

    def _serve(self) -> None:
        """Cells, for as long as the server gives anything."""
        plan = self._plan
        with (
            process.running(self._contender, plan.model, plan.rows) as server,
            Drivers(self._contender, server.address, plan.drivers) as drivers,
        ):
            clients = Watched(drivers, server)
            if not (abilities := self._abilities(clients)):
                return
            while self._left and not self._run.late:
                number, cell = self._left.popleft()
                if not self._cell(clients, cell, Seeds(self._round, number), abilities):
                    self._note(f"stopped after {cell.name}: {server.state}")
                    return

    def _abilities(self, clients: Watched) -> Abilities | None:
        """From two first answers; None where the plain one does not come."""
        if refusal := clients.refusal(self._prompts.ask(8, 2, Seeds(self._round, 900).of(0), Sampling())):
            self._note(f"gave no first answer: {refusal}")
            return None
        penalized = self._prompts.ask(8, 2, Seeds(self._round, 901).of(0), Sampling(repetition_penalty=1.1))
        return Abilities(self._contender.seeds, penalties=not clients.refusal(penalized))

    def _cell(self, clients: Watched, cell: Cell, seeds: Seeds, abilities: Abilities) -> bool:
        """Whether any token came."""
        if warm_up := cell.warm_up(self._prompts, seeds, abilities):
            clients.play(warm_up)
        job = cell.job(self._prompts, seeds, abilities)
        answers, measured = clients.measured(job)
        stall = stalled(answers, cell) if isinstance(cell, LongPrompt) else None
        self._run.record(Record(self._plan.name, self._contender.name, cell, measured, stall))
        return measured.tokens > 0

    def _note(self, text: str) -> None:
        self._run.note(f"{self._plan.name} | {self._contender.name} | {text}")


class Watched:
    """Drivers, and the server whose processor and memory are watched while they play."""

    def __init__(self, drivers: Drivers, server: Server) -> None:
        self._drivers = drivers
        self._server = server

    def play(self, job: Job) -> Done:
        self._drivers.begin(job)
        while not self._drivers.ended(LOOK):
            self._server.look()
        return self._drivers.result()

    def refusal(self, ask: Ask) -> str:
        """What comes instead of an answer; empty where the answer comes."""
        [answer] = self.play(Job((Stream((ask,)),), FIRST_ANSWER)).answers
        return answer.error or ("" if answer.tokens else "no token")

    def measured(self, job: Job) -> tuple[list[Answer], Figures]:
        before, begun = self._server.use(), time.monotonic()
        done = self.play(job)
        seconds, used = time.monotonic() - begun, self._server.use().since(before)
        self._server.look()
        return done.answers, figures.figures(
            done.answers,
            server_cpu=used.server,
            worker_cpu=used.workers,
            client_cpu=done.cpu / seconds,
            memory=self._server.most_bytes,
            device_memory=process.device_bytes(),
        )


def stalled(answers: Sequence[Answer], cell: LongPrompt) -> Stall | None:
    """None where nothing can be said, for the long prompt never came or nothing ran beside it."""
    long = next((answer for answer in answers if answer.stream == cell.streams), None)
    running = [answer for answer in answers if answer.stream < cell.streams]
    if long is None:
        return None
    first = long.arrivals[0][0] if long.arrivals else long.ended
    gaps = [gap for answer in running for gap in pairwise(time for time, _ in answer.arrivals)]
    before = sorted(later - sooner for sooner, later in gaps if later < long.begun)
    # Also those that only began before the first token: a server that stands still says nothing until then.
    during = sorted(later - sooner for sooner, later in gaps if later >= long.begun and sooner <= first)
    if not before or not during:
        return None
    return Stall(
        before=figures.quantile(before, 0.5),
        during=figures.quantile(during, 0.99),
        worst=during[-1],
        first=first - long.begun,
        gaps=len(during),
    )
