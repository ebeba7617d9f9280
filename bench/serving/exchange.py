"""What is asked of a server, and what came back and when. Values for all contenders alike; no I/O."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sampling:
    temperature: float = 0.7
    top_p: float = 0.9
    seed: int | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. The text and the ids are the same prompt, for servers that take only one of them."""

    text: str
    token_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()


@dataclass(frozen=True, slots=True)
class Stream:
    """A client: waits, then makes its requests one after the other."""

    asks: tuple[Ask, ...]
    after: float = 0.0
    """Seconds from the job's begin."""


@dataclass(frozen=True, slots=True)
class Job:
    """Streams that run side by side. What has not ended by `cap` seconds is cut, and counts as far as it came."""

    streams: tuple[Stream, ...]
    cap: float


CUT = "cut"


@dataclass(slots=True)
class Answer:
    """To one request. Times are of the monotonic clock, which all processes of a machine share."""

    asked: Ask
    stream: int
    begun: float
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """Each message's time and number of new tokens."""
    ended: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """As the server counts them; None where it did not come to that."""
    error: str = ""

    def heard(self, tokens: int) -> None:
        self.arrivals.append((time.monotonic(), tokens))

    @property
    def tokens(self) -> int:
        """The server's own count where there is one: a server of text may send two tokens as one piece."""
        if self.completion_tokens is not None:
            return self.completion_tokens
        return sum(tokens for _, tokens in self.arrivals)

    @property
    def as_asked(self) -> bool:
        """Ended, with exactly the tokens that were asked for, on exactly the prompt that was sent."""
        counts = (self.prompt_tokens, self.completion_tokens)
        return not self.error and counts == (len(self.asked.token_ids), self.asked.max_tokens)
