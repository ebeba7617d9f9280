"""The tokens of one flight on their way to becoming events: what is waiting to be sent, and how it ends.

Knows the request, its plan and its flight; not where the model came from or where the events go.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from mlxrpc_server.answer import Answer, bound
from mlxrpc_server.catalog import Entry
from mlxrpc_server.details import Details
from mlxrpc_server.engine.wire import Left
from mlxrpc_server.errors import InvalidRequest, ServerError, Violation
from mlxrpc_server.events import Delta, Finished, PrefillProgress, Started, Timings, Usage
from mlxrpc_server.flight import Flight, News, Orders
from mlxrpc_server.text import TextDelta
from mlxrpc_server.tokenizer import Tokenizer
from mlxrpc_server.types import FinishReason, Request

NOTHING = TextDelta((), "")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the request comes to, once the model's small files have been asked."""

    entry: Entry
    tokenizer: Tokenizer
    prompt: Sequence[int]
    resumed: Sequence[int]
    """The tokens that a broken stream had received, up to the one that ended it, if one did."""
    fingerprint: str
    create_time: float
    orders: Orders
    at_limit: FinishReason
    """What reaching the token limit means: the caller's own limit, or the model's context."""
    given: int = 0
    """How many tokens came as received: all count, also those behind that end, of which nothing else is made."""

    def with_text(self, tokens: Sequence[int]) -> Sequence[int]:
        """The tokens without the stop token at their end: whatever it spells, it has no text."""
        return tokens[:-1] if tokens and tokens[-1] in self.orders.stop_ids else tokens


class Run:
    """One generation, between the engine and the caller."""

    def __init__(
        self, request: Request, plan: Plan, flight: Flight, text: Answer, *, arrived: float, model_load: float
    ) -> None:
        self._request = request
        self._plan = plan
        self._flight = flight
        self._text = text
        self._arrived = arrived
        self._model_load = model_load
        self._stop_token: int | None = None
        self._left: Left | None = None
        self._prefilled = 0
        self._prefilling = request.prefill_progress
        logprobs = None if request.logprobs is None else flight.logprobs
        self._details = Details(plan.tokenizer.vocabulary, plan.orders.stop_ids, logprobs)
        self.news = flight.news
        self.waiting = NOTHING
        """What may be sent and has not been."""

    @property
    def over(self) -> bool:
        return self._left is not None or self._text.matched is not None

    @property
    def wants_company(self) -> bool:
        """Whether the caller would rather wait than get so little."""
        return 0 < len(self.waiting.token_ids) < self._request.coalescing.min_tokens and not self.over

    def started(self) -> Started:
        plan = self._plan
        return Started(
            response_id=self._request.id,
            model=plan.entry.name,
            seed=plan.orders.sampling.seed,
            prompt_tokens=len(plan.prompt),
            create_time=plan.create_time,
            fingerprint=plan.fingerprint,
        )

    def take(self, news: News) -> PrefillProgress | None:
        """Lets its tokens wait; gives what is to be told of the prefill."""
        self._left = news.left
        self.waiting = self.waiting.joined(self._text.push(self._plan.with_text(news.tokens)))
        if not self._prefilling:
            return None
        # A replaced engine prefills again: behind the first token nobody is told.
        self._prefilling = not news.tokens
        before, self._prefilled = self._prefilled, news.prefilled
        return self._progress(news.prefilled) if news.prefilled != before else None

    async def accompanied(self) -> None:
        """Until what waits has company enough, or has waited long enough."""
        # An error is raised again to whoever asks next: what came before it is told first.
        with contextlib.suppress(TimeoutError, ServerError):
            async with asyncio.timeout(self._request.coalescing.max_delay):
                while self.wants_company:
                    self.take(await self.news())

    def delta(self) -> Delta:
        """All that waits."""
        waiting, self.waiting = self.waiting, NOTHING
        tokens = self._details.of(waiting.token_ids) if self._request.token_details else ()
        return Delta(waiting.text, waiting.token_ids, tokens, waiting.reasoning, waiting.calls)

    def _progress(self, prefilled: int) -> PrefillProgress:
        """The engine keeps a prompt's last token for its first decoding step: it counts it as done with the others."""
        total = len(self._plan.prompt) + len(self._plan.resumed)
        return PrefillProgress(prefilled if prefilled < total - 1 else total, total)

    def end(self) -> None:
        """Lets wait what was held back, and the stop token."""
        last = self.waiting.joined(self._text.finish(stopped=self._left in (Left.STOP_TOKEN, Left.CONSTRAINT_COMPLETE)))
        if self._left is Left.STOP_TOKEN and self._text.matched is None:
            self._stop_token = self._flight.produced[-1]
            if len(self._flight.produced) > len(self._plan.resumed):
                last = last.joined(TextDelta((self._stop_token,), ""))
        self.waiting = last

    @property
    def whole(self) -> bytes | None:
        """What the constraint was for, where the answer was not cut before its end."""
        constraint = self._plan.orders.constraint
        if constraint is None or self._text.matched is not None:
            return None
        if self._left not in (Left.STOP_TOKEN, Left.CONSTRAINT_COMPLETE):
            return None
        piece = self._plan.tokenizer.vocabulary.piece
        return b"".join(map(piece, bound(constraint, self._plan.with_text(self._flight.produced))))

    def finished(self) -> Finished:
        reason, matched = self._ending()
        stop_tokens = 0 if self._stop_token is None else 1
        return Finished(
            reason=reason,
            matched=matched,
            usage=Usage(
                prompt_tokens=len(self._plan.prompt),
                completion_tokens=max(self._plan.given, self._text.token_count + stop_tokens),
                reasoning_tokens=self._text.reasoning_tokens,
                cached_prompt_tokens=min(self._flight.cached or 0, len(self._plan.prompt)),
            ),
            timings=self._timings(),
        )

    def _ending(self) -> tuple[FinishReason, int | str | None]:
        if self._text.matched is not None:
            return FinishReason.STOP_SEQUENCE, self._text.matched
        match self._left:
            case Left.STOP_TOKEN | Left.CONSTRAINT_COMPLETE if self._calls_tools:
                return FinishReason.TOOL_CALLS, None
            case Left.STOP_TOKEN:
                return FinishReason.STOP_TOKEN, self._stop_token
            case Left.CONSTRAINT_COMPLETE:
                return FinishReason.CONSTRAINT_COMPLETE, None
            case Left.CONSTRAINT_BROKEN:
                raise self._broken()
            case Left.LENGTH:
                return self._plan.at_limit, None
            case Left.REFUSED:
                sentence = "holds an id that the model's logits do not have"
                raise InvalidRequest([Violation("input", sentence)])
            case _:
                raise ServerError(f"the engine gave the request up: {self._left}")

    @property
    def _calls_tools(self) -> bool:
        """A stop token of the caller's own ends the answer for a reason of the caller's own."""
        return self._text.only_calls and self._stop_token not in self._request.stop.token_ids

    def _broken(self) -> InvalidRequest:
        """Of tokens that came with the request, or of a grammar that turned out to be too much."""
        gained = len(self._flight.produced) - len(self._plan.resumed)
        constraint = self._request.constraint
        path = "resume.token_ids" if self._plan.resumed and not gained else constraint.path if constraint else "tools"
        return InvalidRequest([Violation(path, f"cannot be followed: {self._flight.cause}", "CONSTRAINT_BROKEN")])

    def _timings(self) -> Timings:
        flight = self._flight
        began = flight.began_at or flight.submitted_at
        first, last = flight.first_token_at, flight.last_token_at
        decode = last - first if first is not None and last is not None else 0.0
        gained = len(flight.produced) - len(self._plan.resumed)
        return Timings(
            queue=max(0.0, began - self._arrived - self._model_load),
            model_load=self._model_load,
            prefill=first - began if first is not None else 0.0,
            time_to_first_token=first - self._arrived if first is not None else None,
            decode=decode,
            tokens_per_second=(gained - 1) / decode if gained > 1 and decode > 0 else 0.0,
        )
