"""What turns a request's token ids into its answer: plain text, or sections where model and request have any.

It knows requests and tokenizers; nothing of how ids come or where the answer goes.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlxrpc_server import constraints
from mlxrpc_server.engine import wire
from mlxrpc_server.errors import Violation
from mlxrpc_server.reasoning import marks_in, thought_of
from mlxrpc_server.section_stream import SectionStream
from mlxrpc_server.sections import CallSections, Sections, Thought
from mlxrpc_server.text import TextStream
from mlxrpc_server.tokenizer import Tokenizer
from mlxrpc_server.tool_grammar import forced
from mlxrpc_server.tools import CallReader
from mlxrpc_server.types import Conversation, Request

Answer = TextStream | SectionStream


def answer_to(request: Request, tokenizer: Tokenizer, prompt: Sequence[int], seed: int, create_time: float) -> Answer:
    """Seed and time of the first request tell one answer's calls from another's."""
    is_free = request.constraint is None and not request.tool_choice.names
    vocabulary = tokenizer.vocabulary if is_free else tokenizer.vocabulary.literal
    thought = _thought(request, tokenizer, prompt)
    calls = _calls(request, tokenizer, f"{seed} {create_time!r}")
    stop = request.stop
    if thought is Thought.OVER and calls is None:
        return TextStream(vocabulary, stop.sequences, stop.min_tokens)
    return SectionStream(
        vocabulary,
        Sections(thought, tokenizer.reasoning, calls),
        stop.sequences,
        stop.min_tokens,
        inline=request.inline_reasoning,
    )


def expected(request: Request, tokenizer: Tokenizer, prompt: Sequence[int]) -> wire.Constraint | None:
    """What the engine must hold the answer to, behind its reasoning where there is any."""
    constraint = request.constraint or forced(request, tokenizer)
    if constraint is None:
        return None
    rules = constraints.grammar(constraint)
    if tokenizer.reasoning is None or (thought := _thought(request, tokenizer, prompt)) is Thought.OVER:
        return wire.Constraint(rules)
    after = tokenizer.encode(tokenizer.reasoning.end, special=False)
    if thought is Thought.OPEN:
        return wire.Constraint(rules, after)
    opening = tokenizer.encode(tokenizer.reasoning.start, special=False)
    may_think = isinstance(request.input, Conversation) and request.input.enable_thinking is not False
    return wire.Constraint(rules, after, opening[0]) if may_think and len(opening) == 1 else wire.Constraint(rules)


def budget_violations(request: Request, tokenizer: Tokenizer) -> list[Violation]:
    """Why there can be no limit to the reasoning, where there is to be one."""
    path = "stop.max_reasoning_tokens"
    if tokenizer.reasoning is None:
        return [Violation(path, "the model does no reasoning that is told from its answers")]
    ending = next((token for token in tokenizer.closing if token in request.stop.token_ids), None)
    if ending is None:
        return []
    return [Violation(path, f"reasoning is closed with token {ending}, which is one of stop.token_ids")]


def budgeted(request: Request, tokenizer: Tokenizer, prompt: Sequence[int]) -> wire.Budget | None:
    """How long the engine lets the answer reason, where there is a limit and it can reason at all."""
    tokens, markers = request.stop.max_reasoning_tokens, tokenizer.reasoning
    if tokens is None or markers is None or (thought := _thought(request, tokenizer, prompt)) is Thought.OVER:
        return None
    return wire.Budget(
        tokens=tokens,
        closing=tokenizer.closing,
        end=markers.end.encode(),
        start=b"" if thought is Thought.OPEN else markers.start.encode(),
        marks={token: mark.encode() for token, mark in marks_in(markers, tokenizer.vocabulary).items()},
    )


def bound(constraint: wire.Constraint, token_ids: Sequence[int]) -> Sequence[int]:
    """Those that the constraint is for: behind the reasoning."""
    after, opening = constraint.after, constraint.opening
    if not after or (opening is not None and token_ids[:1] != [opening]):
        return token_ids
    ends = (place for place in range(len(after), len(token_ids) + 1) if token_ids[place - len(after) : place] == after)
    return token_ids[next(ends, len(token_ids)) :]


def _thought(request: Request, tokenizer: Tokenizer, prompt: Sequence[int]) -> Thought:
    if tokenizer.reasoning is None:
        return Thought.OVER
    continues = isinstance(request.input, Conversation) and request.input.continues
    return thought_of(prompt, tokenizer.vocabulary, tokenizer.reasoning, continues=continues)


def _calls(request: Request, tokenizer: Tokenizer, origin: str) -> CallSections | None:
    """None where no tool can be called: what looks like a call is text then."""
    given = request.input
    if not isinstance(given, Conversation) or not given.tools or given.hides_tools or tokenizer.calls is None:
        return None
    return CallReader(tokenizer.calls, given.tools, origin).sections
