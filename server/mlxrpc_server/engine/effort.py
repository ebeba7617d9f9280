"""What following a row's grammar costs, and when that is too much: all rows of a batch wait for the one that is slowest.

An account: every token brings a share, and what is taken beyond is owed. Knows seconds; nothing of grammars.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Done = TypeVar("Done")

SHARE = 0.001
"""Seconds for each token. Schemas take 0.00002 in the mean, and 64 rows that take all of it hold a step up for 0.06."""

MOST = 0.25
"""Seconds that may be owed. Of 4,400 texts under schemas from the wild, the one that owed most came to 0.04."""


class Effort:
    def __init__(
        self, clock: Callable[[], float] = time.thread_time, glance: Callable[[], float] = time.perf_counter
    ) -> None:
        """The clock stands still while others have the processor: a row does not pay for a busy machine. Asking it takes
        ten times as long as a glance, which does for whoever has been quick."""
        self._clock = clock
        self._glance = glance
        self._owed = 0.0
        self.watched = False
        """Whether it has taken more than a token's share, or may have, since it was last found quick."""

    @property
    def too_much(self) -> bool:
        return self._owed > MOST

    def token(self) -> None:
        """One more token has come."""
        self._owed = max(0.0, self._owed - SHARE)

    def of(self, work: Callable[[], Done]) -> Done:
        """Only who is watched pays."""
        if self.watched:
            return self.paid(work)
        begun = self._glance()
        done = work()
        self.watched = self._glance() - begun > SHARE
        return done

    def paid(self, work: Callable[[], Done]) -> Done:
        begun = self._clock()
        done = work()
        taken = self._clock() - begun
        self._owed += taken
        self.watched = self.watched or taken > SHARE
        return done
