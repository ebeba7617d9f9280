"""What is measured: each cell of a table as the streams that make it. Pure, but for the tokenizer that prompts take.

All contenders get the same prompts, arrivals and parameters: they follow from the cell and the round.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from serving.arrivals import poisson
from serving.exchange import Ask, Job, Sampling, Stream
from serving.prompts import Prompts

WARM_UP = 500
"""Added to a cell's number for the seeds of its warm-up."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a server honours of the mixed parameters."""

    seeds: bool
    penalties: bool


@dataclass(frozen=True, slots=True)
class Seeds:
    """One for every request of a run: a server must never see a prompt twice."""

    round: int
    cell: int

    def of(self, stream: int, request: int = 0) -> int:
        return ((self.round * 1_000 + self.cell) * 1_000 + stream) * 100 + request


@dataclass(frozen=True, slots=True)
class Closed:
    """So many streams, each of which asks again as soon as it is answered."""

    streams: int
    requests: int
    """Of each stream."""
    prompt: int
    tokens: int
    cap: float
    mixed: bool = False
    warm: float = 0.0
    """Seconds that a warm-up of one request a stream may take; 0 for none."""

    @property
    def section(self) -> str:
        return "mixed" if self.mixed else f"closed-{self.prompt}-{self.tokens}"

    @property
    def name(self) -> str:
        streams = "1 stream" if self.streams == 1 else f"{self.streams} streams"
        return f"{streams}, mixed" if self.mixed else streams

    def job(self, prompts: Prompts, seeds: Seeds, abilities: Abilities) -> Job:
        def ask(stream: int, request: int) -> Ask:
            sampling = mixture(stream, abilities) if self.mixed else Sampling()
            return prompts.ask(self.prompt, self.tokens, seeds.of(stream, request), sampling)

        streams = (Stream(tuple(ask(stream, n) for n in range(self.requests))) for stream in range(self.streams))
        return Job(tuple(streams), self.cap)

    def warm_up(self, prompts: Prompts, seeds: Seeds, abilities: Abilities) -> Job | None:
        if not self.warm:
            return None
        once = Closed(self.streams, 1, self.prompt, self.tokens, self.warm, self.mixed)
        return once.job(prompts, Seeds(seeds.round, seeds.cell + WARM_UP), abilities)


@dataclass(frozen=True, slots=True)
class Open:
    """Requests that arrive when they arrive, whether the earlier ones are answered or not."""

    rate: float
    seconds: float
    prompt: int
    tokens: int
    cap: float

    @property
    def section(self) -> str:
        return "open"

    @property
    def name(self) -> str:
        return f"{self.rate:g} requests/s"

    def job(self, prompts: Prompts, seeds: Seeds, abilities: Abilities) -> Job:
        times = poisson(self.rate, self.seconds, seeds.of(999))
        asks = (prompts.ask(self.prompt, self.tokens, seeds.of(n), Sampling()) for n in range(len(times)))
        return Job(tuple(Stream((ask,), after) for after, ask in zip(times, asks, strict=True)), self.cap)

    def warm_up(self, prompts: Prompts, seeds: Seeds, abilities: Abilities) -> Job | None:
        return None


@dataclass(frozen=True, slots=True)
class LongPrompt:
    """Streams that run, and in their midst one long prompt that is admitted."""

    streams: int
    prompt: int
    tokens: int
    long_prompt: int
    after: float
    cap: float

    @property
    def section(self) -> str:
        return "long-prompt"

    @property
    def name(self) -> str:
        return f"{self.long_prompt} tokens beside {self.streams} streams"

    def job(self, prompts: Prompts, seeds: Seeds, abilities: Abilities) -> Job:
        running = (
            Stream((prompts.ask(self.prompt, self.tokens, seeds.of(stream), Sampling()),))
            for stream in range(self.streams)
        )
        long = prompts.ask(self.long_prompt, 4, seeds.of(self.streams), Sampling())
        return Job((*running, Stream((long,), self.after)), self.cap)

    def warm_up(self, prompts: Prompts, seeds: Seeds, abilities: Abilities) -> Job | None:
        """A long prompt alone, so that its kernels are compiled."""
        seeds = Seeds(seeds.round, seeds.cell + WARM_UP)
        long = prompts.ask(self.long_prompt, 4, seeds.of(self.streams), Sampling())
        return Job((Stream((long,)),), self.cap)


Cell = Closed | Open | LongPrompt


def mixture(stream: int, abilities: Abilities) -> Sampling:
    """A stream's own parameters. A quarter of the streams is greedy."""
    draw = random.Random(stream)
    penalty = round(draw.uniform(1.05, 1.3), 2) if abilities.penalties else None
    temperature, top_p = round(draw.uniform(0.3, 1.2), 2), round(draw.uniform(0.8, 0.95), 2)
    seed = 1_000 + stream if abilities.seeds else None
    return Sampling(0.0 if stream % 4 == 0 else temperature, top_p, seed, penalty)
