"""When the requests of an open loop arrive. Pure."""

from __future__ import annotations

import random


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrival times within so many seconds, `rate` a second in the mean; the same for the same seed."""
    draw = random.Random(seed)
    times, now = [], draw.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += draw.expovariate(rate)
    return times
