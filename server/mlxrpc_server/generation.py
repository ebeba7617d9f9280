"""One generation, from a well-formed request to its last event.

The data flow of the server in one place: find the model, make the prompt, refuse what cannot be, lease, submit,
and turn token ids into deltas. Both RPCs consume it. Knows neither protos nor MLX.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace

from mlxrpc_server import tool_grammar, types
from mlxrpc_server.answer import Answer, answer_to, budget_violations, budgeted, expected
from mlxrpc_server.catalog import Catalog, Entry
from mlxrpc_server.constraints import Constraints
from mlxrpc_server.errors import (
    DeadlineTooShort,
    FingerprintMismatch,
    InvalidRequest,
    MaxTokensTooLarge,
    ModelUnusable,
    PromptTooLong,
    Violation,
)
from mlxrpc_server.events import Event
from mlxrpc_server.flight import Orders
from mlxrpc_server.model import Model
from mlxrpc_server.models import Models
from mlxrpc_server.run import Plan, Run
from mlxrpc_server.tokenizer import Tokenizer, TokenizerError, Tokenizers
from mlxrpc_server.types import FinishReason, ModelState, Request

REPLAYED_AT_ONCE = 1000
"""Tokens whose replay the event loop does not notice."""


class Service:
    """What the RPCs share: the catalog, the tokenizers and the loaded models."""

    def __init__(self, catalog: Catalog, tokenizers: Tokenizers, models: Models) -> None:
        self.catalog = catalog
        self.tokenizers = tokenizers
        self.models = models
        self.constraints = Constraints()

    async def generate(self, request: Request, deadline: float | None) -> AsyncGenerator[Event, None]:
        """Started, then progress and deltas, then Finished; or an error. `deadline` is in time.monotonic's terms.

        Whatever the engine produced while the caller was busy with one event is in the next one.
        """
        async with self._run(request, deadline) as run:
            yield run.started()
            while not run.over:
                progress = run.take(await run.news())
                if progress is not None:
                    yield progress
                if run.wants_company:
                    await run.accompanied()
                if run.waiting.token_ids and not run.over:
                    yield run.delta()
            run.end()
            self._judge(request, run)
            if run.waiting.token_ids:
                yield run.delta()
            yield run.finished()

    @contextlib.asynccontextmanager
    async def _run(self, request: Request, deadline: float | None) -> AsyncIterator[Run]:
        """The request, taken up by the engine; leaving takes it out again and lets the model go."""
        arrived = time.monotonic()
        plan = await self.plan(request)
        planned = time.monotonic()
        loaded = self.models.status(plan.entry).state is ModelState.LOADED
        async with self.models.lease(plan.entry, deadline) as model:
            leased = time.monotonic()
            await _check_deadline(model, plan.orders, deadline)
            with model.fly(plan.orders, plan.resumed) as flight:
                await flight.begun()
                seed = plan.orders.sampling.seed
                text = answer_to(request, plan.tokenizer, plan.prompt, seed, plan.create_time)
                await _replayed(text, plan.with_text(plan.resumed))
                model_load = 0.0 if loaded else leased - planned
                yield Run(request, plan, flight, text, arrived=arrived, model_load=model_load)

    def _judge(self, request: Request, run: Run) -> None:
        if request.constraint is not None and (text := run.whole) is not None:
            self.constraints.judge(request.id, request.constraint, text)

    async def plan(self, request: Request) -> Plan:
        """Everything that config and tokenizer can tell is refused here, before any model is loaded or evicted."""
        entry = self.catalog.find(request.model)
        tokenizer = await self.tokenizer(entry)
        fingerprint = await entry.read_fingerprint()
        _check_fingerprint(request, fingerprint)
        self._check_configured_biases(entry, tokenizer)
        create_time = request.resume.create_time if request.resume else time.time()
        prompt = await self._checked_prompt(request, entry, tokenizer, create_time)
        max_tokens, at_limit = _limit(request, entry, len(prompt.token_ids))
        given = request.resume.token_ids if request.resume else ()
        _check_resumed(given, max_tokens)
        _check_minimum(request.stop.min_tokens, max_tokens)
        eos = frozenset() if request.stop.ignore_eos else tokenizer.eos_token_ids
        stop_ids = eos | frozenset(request.stop.token_ids)
        resumed = _up_to_stop(given, stop_ids)
        return Plan(
            entry=entry,
            tokenizer=tokenizer,
            prompt=prompt.token_ids,
            resumed=resumed,
            given=len(given),
            fingerprint=fingerprint,
            create_time=create_time,
            orders=Orders(
                prompt=prompt.token_ids,
                sampling=request.sampling.over(entry.defaults).resolve(_seed(request), tokenizer.eos_token_ids),
                max_tokens=max_tokens,
                stop_ids=stop_ids,
                logprobs=-1 if request.logprobs is None else request.logprobs,
                min_tokens=request.stop.min_tokens,
                constraint=expected(request, tokenizer, prompt.token_ids),
                budget=budgeted(request, tokenizer, prompt.token_ids),
                cache=request.cache,
            ),
            at_limit=at_limit,
        )

    async def tokenizer(self, entry: Entry) -> Tokenizer:
        try:
            return await self.tokenizers.get(entry.tokenizer_path)
        except TokenizerError as error:
            unusable = ModelUnusable(entry.name, f"its tokenizer cannot be loaded: {error}")
            self.models.failed(entry, unusable)
            raise unusable from error

    def _check_configured_biases(self, entry: Entry, tokenizer: Tokenizer) -> None:
        """A configuration knows no tokenizer: this is the first that does."""
        for wrong in tokenizer.biases_outside("defaults.logit_bias", entry.defaults.logit_bias or ()):
            raise ModelUnusable(entry.name, f"its configured {wrong.path}: {wrong.description}")

    async def held(self, entry: Entry, prompt: types.Prompt) -> int:
        """How many of its first tokens the model would not compute now, without a tenant. Loads nothing."""
        model = self.models.status(entry).model
        return await model.held("", prompt.token_ids) if model is not None else 0

    async def prompt(
        self, entry: Entry, given: types.Input, create_time: float, context: int | None = None
    ) -> types.Prompt:
        """The input as the model gets it: what Generate feeds, if it can fit the context, and CountTokens counts."""
        given = _with_system_prompt(given, entry.config.system_prompt)
        return await self.tokenizers.prompt(entry.tokenizer_path, given, create_time, context)

    async def _checked_prompt(
        self, request: Request, entry: Entry, tokenizer: Tokenizer, create_time: float
    ) -> types.Prompt:
        """The prompt; or one error with everything that is wrong with it and with the other ids."""
        violations = await self.constraints.violations(request.constraint)
        violations += await tool_grammar.violations(request, tokenizer, self.constraints)
        violations += tokenizer.outside("stop.token_ids", request.stop.token_ids)
        if request.stop.max_reasoning_tokens is not None:
            # In a thread: it encodes, and another thread may be encoding something long.
            violations += await asyncio.to_thread(budget_violations, request, tokenizer)
        violations += tokenizer.biases_outside("sampling.logit_bias", request.sampling.logit_bias or ())
        if request.resume is not None:
            # More than the context are refused for their number, behind the prompt's own checks.
            given = request.resume.token_ids[: entry.context_length]
            violations += tokenizer.outside("resume.token_ids", given)
        try:
            prompt = await self.prompt(entry, request.input, create_time, entry.context_length)
        except InvalidRequest as error:
            if not violations:
                raise
            raise InvalidRequest([*error.violations, *violations]) from error
        if violations:
            raise InvalidRequest(violations)
        return prompt


def _with_system_prompt(given: types.Input, system_prompt: str) -> types.Input:
    """The model's configured system prompt, where no message is the caller's own."""
    if not system_prompt or not isinstance(given, types.Conversation):
        return given
    if any(message.role == "system" for message in given.messages):
        return given
    messages = (types.Message(role="system", content=system_prompt), *given.messages)
    return replace(given, messages=messages)


def _seed(request: Request) -> int:
    if request.resume is not None:
        return request.resume.seed
    return secrets.randbits(64) if request.seed is None else request.seed


async def _check_deadline(model: Model, orders: Orders, deadline: float | None) -> None:
    if deadline is None:
        return
    remaining = deadline - time.monotonic()
    estimate = await model.soonest(orders, remaining)
    if estimate > remaining:
        raise DeadlineTooShort(estimate, remaining)


def _check_fingerprint(request: Request, own: str) -> None:
    if request.resume is not None and request.resume.fingerprint != own:
        raise FingerprintMismatch(request.resume.fingerprint, own)


def _check_resumed(resumed: Sequence[int], max_tokens: int) -> None:
    if len(resumed) > max_tokens:
        sentence = f"{len(resumed):,} tokens were received, and at most {max_tokens:,} could have been produced"
        raise InvalidRequest([Violation("resume.token_ids", sentence)])


def _up_to_stop(token_ids: Sequence[int], stop_ids: frozenset[int]) -> Sequence[int]:
    """With the first stop token, where there is one: nothing can have followed it."""
    end = next((place for place, token in enumerate(token_ids, 1) if token in stop_ids), len(token_ids))
    return token_ids[:end]


def _check_minimum(min_tokens: int, max_tokens: int) -> None:
    """Against what the model leaves, too, where the caller gave no limit."""
    if min_tokens > max_tokens:
        sentence = f"{min_tokens:,} is more than the {max_tokens:,} tokens that can be generated"
        raise InvalidRequest([Violation("stop.min_tokens", sentence)])


async def _replayed(text: Answer, token_ids: Sequence[int]) -> None:
    """Many go through in a thread: each costs microseconds."""
    if len(token_ids) > REPLAYED_AT_ONCE:
        await asyncio.to_thread(text.replay, token_ids)
    else:
        text.replay(token_ids)


def _limit(request: Request, entry: Entry, prompt_tokens: int) -> tuple[int, FinishReason]:
    """How many tokens may be produced in all, and what reaching that number is called."""
    context = entry.context_length
    room = context - prompt_tokens
    if room < 1:
        raise PromptTooLong(
            "input", f"the prompt is {prompt_tokens:,} tokens; the model takes {context:,}", prompt_tokens, context
        )
    wanted, most = request.stop.max_tokens, entry.config.max_output_tokens
    if wanted is not None:
        if most is not None and wanted > most:
            sentence = f"{wanted:,} is above the model's max_output_tokens of {most:,}"
            raise InvalidRequest([Violation("stop.max_tokens", sentence)])
        if wanted > room:
            sentence = (
                f"the prompt is {prompt_tokens:,} tokens and max_tokens {wanted:,}: the model takes {context:,} in all"
            )
            raise MaxTokensTooLarge(sentence, prompt_tokens, wanted, context)
        return wanted, FinishReason.MAX_TOKENS
    if most is not None and most <= room:
        return most, FinishReason.MAX_TOKENS
    return room, FinishReason.CONTEXT_LENGTH
