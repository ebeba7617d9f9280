"""How many prompt tokens a step may prefill, so that it takes about as long as it should by measure.

Beside rows that decode, a little longer than they take themselves, since they wait; more while none does, but never
so many that a cancel waits for seconds. Knows seconds and tokens, no rows.
"""

from __future__ import annotations


class Pace:
    STEPS_BESIDE_ROWS = 1.7
    """So many decoding steps' time: with its own, a step beside a prefill then stays under three."""
    LEAST_SECONDS = 0.005
    """For beside fast steps the rest of a chunk's cost, which does not depend on its length, would be most of it."""
    MOST_SECONDS = 0.1
    SECONDS_ALONE = 0.5
    FEWEST = 16
    UNMEASURED = 64

    def __init__(self, most: int) -> None:
        self._most = most
        self._tokens_per_second: float | None = None
        self._step_seconds: float | None = None

    def budget(self, *, beside_rows: bool) -> int:
        if self._tokens_per_second is None:
            return min(self.UNMEASURED, self._most)
        seconds = self._seconds_beside_rows if beside_rows else self.SECONDS_ALONE
        return max(self.FEWEST, min(self._most, int(self._tokens_per_second * seconds)))

    @property
    def _seconds_beside_rows(self) -> float:
        if self._step_seconds is None:
            return self.MOST_SECONDS
        return min(self.MOST_SECONDS, max(self.LEAST_SECONDS, self.STEPS_BESIDE_ROWS * self._step_seconds))

    def prefilled(self, tokens: int, seconds: float) -> None:
        if tokens >= self.FEWEST and seconds > 0:
            self._tokens_per_second = _smoothed(self._tokens_per_second, tokens / seconds)

    def decoded(self, seconds: float) -> None:
        """A step of nothing but decoding."""
        if seconds > 0:
            self._step_seconds = _smoothed(self._step_seconds, seconds)

    def stepped(self, tokens: int, seconds: float) -> None:
        """A step that could not be measured in parts, with so many tokens prefilled."""
        if not tokens:
            self.decoded(seconds)
        else:
            self.prefilled(tokens, seconds - (self._step_seconds or 0.0))


def _smoothed(known: float | None, measured: float) -> float:
    return measured if known is None else 0.7 * known + 0.3 * measured
