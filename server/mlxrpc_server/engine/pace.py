"""How many prompt tokens a step may prefill, so that it takes about as long as it should by measure.

Beside rows that decode, a little longer than they take themselves, since they wait, or longer where more rows wait to
begin; while none decodes, as long as a cancel may wait. Knows seconds and tokens, no rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

MOST_PARTS = 16
"""Steps over which a prefill's layers are dispatched."""


class Pace:
    STEPS_BESIDE_ROWS = 1.25
    """So many decoding steps' time: with its own, and where a chunk takes longer than the last ones did, a step beside a
    prefill then stays under three."""
    WAITING = 2
    """For a row that waits to begin, so many that decode may wait: it has nothing yet."""
    LEAST_SECONDS = 0.002
    MOST_SECONDS = 0.1
    SECONDS_ALONE = 0.5
    FEWEST = 16
    UNMEASURED = 64

    def __init__(self, most: int) -> None:
        self.most = most
        """Tokens of a step, whatever it takes."""
        self._step_seconds: float | None = None
        self._cost = Cost()
        self._carried = 0.0
        """Seconds of a prefill that is not through yet."""

    def budget(self, *, decoding: int, joining: int, parts: int = 1) -> int:
        """For so many rows that decode, and so many that want to; where so many steps share it."""
        seconds = parts * self._seconds(decoding, joining)
        tokens = self._cost.tokens(seconds) if self._cost.largest else self.UNMEASURED
        return max(min(self.FEWEST, self.most), min(self.most, tokens))

    def _seconds(self, decoding: int, joining: int) -> float:
        if not decoding:
            return self.SECONDS_ALONE
        if self._step_seconds is None:
            return self.MOST_SECONDS
        seconds = self.STEPS_BESIDE_ROWS * self._step_seconds * max(1.0, self.WAITING * joining / decoding)
        return min(self.MOST_SECONDS, max(self.LEAST_SECONDS, seconds))

    def parts(self, tokens: int, *, decoding: int, joining: int) -> int:
        """How many steps are to share so many tokens, lest one of them takes too long."""
        return min(MOST_PARTS, math.ceil(self._cost.seconds(tokens) / self._seconds(decoding, joining)) or 1)

    @property
    def overhead(self) -> int:
        """Tokens that could have been fed in the time that another pass takes whatever it feeds."""
        return self._cost.overhead

    def prefilled(self, tokens: int, seconds: float) -> None:
        if tokens >= self.FEWEST and seconds > 0:
            self._cost.measured(tokens, seconds)

    def decoded(self, seconds: float) -> None:
        """A step of nothing but decoding."""
        if seconds > 0:
            self._step_seconds = _smoothed(self._step_seconds, seconds)

    def stepped(self, tokens: int | None, seconds: float) -> None:
        """A step with a part of a prefill beside it, which brought so many tokens to their end; None: with nothing."""
        if tokens is None:
            self._carried = 0.0  # of one that will not end beside a step
            self.decoded(seconds)
            return
        self._carried += seconds - (self._step_seconds or 0.0)
        if tokens:
            self.prefilled(tokens, self._carried)
            self._carried = 0.0


class Cost:
    """What a chunk takes: something for every chunk, however short, which is most of it on a GPU, and something for
    each token, which is most of it on a CPU. Told apart by what short and long ones took."""

    APART = 1.5
    """Times as long as the short ones the long ones are to be, for the difference to tell anything."""

    def __init__(self) -> None:
        self.largest = 0
        """Tokens of the largest chunk measured."""
        self._last = 0
        """And of the one measured last."""
        self._short = self._long = Chunk(0.0, 0.0)

    def measured(self, tokens: int, seconds: float) -> None:
        chunk = Chunk(tokens, seconds)
        if not self.largest:
            self._short = self._long = chunk
        elif tokens < self._long.tokens / 2:
            self._short = self._short.towards(chunk, 0.3)
            self._long = self._long.towards(chunk, 0.1)  # what was measured long ago does not bind for ever
        else:
            self._long = self._long.towards(chunk, 0.3)
        self.largest = max(self.largest, tokens)
        self._last = tokens

    def tokens(self, seconds: float) -> int:
        """So many take that long; never more than twice of what was tried. Of what was tried last, where it is not known
        what a token takes: after many short chunks that is forgotten, and a long one would hold everybody up.

        Where already the shortest chunk takes nearly as long, half as long again: else it would hardly be worth it.
        """
        if not self._per_token:
            return 2 * self._last
        return min(2 * self.largest, int(max(seconds - self._fixed, self._fixed / 2) / self._per_token))

    def seconds(self, tokens: int) -> float:
        return self._fixed + self._per_token * tokens

    @property
    def overhead(self) -> int:
        return int(self._fixed / self._per_token) if self._per_token else 0

    @property
    def _fixed(self) -> float:
        return max(0.0, self._short.seconds - self._per_token * self._short.tokens)

    @property
    def _per_token(self) -> float:
        """0 where longer chunks have not taken longer yet."""
        if self._long.tokens <= self.APART * self._short.tokens:
            return 0.0
        return max(0.0, (self._long.seconds - self._short.seconds) / (self._long.tokens - self._short.tokens))


class Chunk(NamedTuple):
    tokens: float
    seconds: float

    def towards(self, other: Chunk, share: float) -> Chunk:
        return Chunk(
            self.tokens + share * (other.tokens - self.tokens),
            self.seconds + share * (other.seconds - self.seconds),
        )


def _smoothed(known: float | None, measured: float) -> float:
    return measured if known is None else 0.7 * known + 0.3 * measured
