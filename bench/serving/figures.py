"""From answers to figures. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

from serving.exchange import CUT, Answer


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds. NaN where nothing was measured."""

    p50: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        ordered = sorted(values)
        return cls(quantile(ordered, 0.50), quantile(ordered, 0.99))


@dataclass(frozen=True, slots=True)
class Figures:
    tokens: int
    seconds: float
    """From the first request's begin to the last answer's end."""
    decode_rate: float
    """Tokens a second while every stream was decoding its first answer; NaN where they never all did."""
    first: Spread
    """Until the first token. A request that was cut before it counts with the time it had waited: it is a lower bound."""
    gap: Spread
    """Between two messages of a stream: what its reader waits."""
    messages: int
    requests: int
    as_asked: int
    """Requests answered with exactly the tokens that were asked for, on exactly the prompt that was sent."""
    cut: int
    failed: int
    errors: tuple[str, ...] = ()
    server_cpu: float = 0.0
    """Seconds."""
    worker_cpu: float = 0.0
    client_cpu: float = 0.0
    """The busiest driver's share of a processor."""
    memory: int = 0
    device_memory: int | None = None

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "rate": self.rate}


def figures(answers: Sequence[Answer], **use: Any) -> Figures:
    """`use` is what the machine gave for it: the fields from server_cpu on."""
    failures = Counter(answer.error for answer in answers if answer.error not in ("", CUT))
    begun = min((answer.begun for answer in answers), default=0.0)
    return Figures(
        tokens=sum(answer.tokens for answer in answers),
        seconds=max((answer.ended for answer in answers), default=0.0) - begun,
        decode_rate=decode_rate(answers),
        first=Spread.of(first(answer) for answer in answers if answer.arrivals or answer.error == CUT),
        gap=Spread.of(gap for answer in answers for gap in gaps(answer)),
        messages=sum(len(answer.arrivals) for answer in answers),
        requests=len(answers),
        as_asked=sum(answer.as_asked for answer in answers),
        cut=sum(answer.error == CUT for answer in answers),
        failed=failures.total(),
        errors=tuple(f"{count} times {error}" for error, count in failures.most_common(3)),
        **use,
    )


def quantile(ordered: Sequence[float], part: float) -> float:
    """The smallest value that at least this part of them does not exceed."""
    if not ordered:
        return float("nan")
    return ordered[max(0, min(len(ordered) - 1, -int(-part * len(ordered) // 1) - 1))]


def first(answer: Answer) -> float:
    return (answer.arrivals[0][0] if answer.arrivals else answer.ended) - answer.begun


def gaps(answer: Answer) -> list[float]:
    return [later - sooner for (sooner, _), (later, _) in pairwise(answer.arrivals)]


def decode_rate(answers: Sequence[Answer]) -> float:
    """Over the time in which each stream had its first answer's first token and none had its last."""
    openings: dict[int, Answer] = {}
    for answer in sorted(answers, key=lambda answer: answer.begun):
        openings.setdefault(answer.stream, answer)
    if not openings or not all(answer.arrivals for answer in openings.values()):
        return float("nan")
    begin = max(answer.arrivals[0][0] for answer in openings.values())
    end = min(answer.arrivals[-1][0] for answer in openings.values())
    if end <= begin:
        return float("nan")
    arrivals = (arrival for answer in openings.values() for arrival in answer.arrivals)
    return sum(tokens for time, tokens in arrivals if begin < time <= end) / (end - begin)


def middle(rounds: Sequence[Figures]) -> Figures:
    """Of several rounds: the sums of what is counted, the medians of what is timed."""
    if len(rounds) == 1:
        return rounds[0]
    sums: dict[str, Any] = {
        field.name: sum(getattr(one, field.name) for one in rounds) for field in fields(Figures) if field.name in SUMMED
    }
    return Figures(
        **sums,
        first=_middle_spread([one.first for one in rounds]),
        gap=_middle_spread([one.gap for one in rounds]),
        decode_rate=_median(one.decode_rate for one in rounds),
        errors=tuple(error for one in rounds for error in one.errors),
        client_cpu=max(one.client_cpu for one in rounds),
        memory=max(one.memory for one in rounds),
        device_memory=max((one.device_memory for one in rounds if one.device_memory is not None), default=None),
    )


SUMMED = {"tokens", "seconds", "messages", "requests", "as_asked", "cut", "failed", "server_cpu", "worker_cpu"}


def _middle_spread(spreads: Sequence[Spread]) -> Spread:
    return Spread(_median(one.p50 for one in spreads), _median(one.p99 for one in spreads))


def _median(values: Iterable[float]) -> float:
    known = [value for value in values if value == value]  # noqa: PLR0124 - NaN is not equal to itself
    return statistics.median(known) if known else float("nan")
