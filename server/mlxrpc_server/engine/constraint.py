"""Compiled grammars, and one guide a row, which knows how far the row's text has come in its grammar.

Knows what each token id says in bytes, and llguidance; nothing of schemas or requests, which came to grammars in the
server process. Grammars are compiled in a thread of their own, because large ones take seconds.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from mlxrpc_server.deep import deep_thread
from mlxrpc_server.engine import wire
from mlxrpc_server.engine.effort import Effort
from mlxrpc_server.matchers import TOO_LONG, gave_up, matcher_of, without_state

MOST_COMPILED = 64
"""Grammars that are kept; one takes from some kilobytes to a few megabytes."""

MOST_BREAKS = 2
"""Tokens of line breaks that are let in behind the end of thinking."""

END = b"<end>"
"""A token of llguidance's alone, behind those of the model: its bit says that the text may end here."""


class Broken(Exception):
    """A constraint that cannot be followed any further; `str()` says why."""


class Grammars:
    """The grammars of one model's rows, compiled; those used last are kept."""

    def __init__(self, spelling: Sequence[bytes], effort: Callable[[], Effort] = Effort) -> None:
        """`effort` opens a row's account."""
        self.spelling = spelling
        self.words = len(spelling)
        self._effort = effort
        self._breaks = frozenset(token for token, said in enumerate(spelling) if said and not said.strip(b"\n"))
        self._thread = deep_thread("grammars")
        self._tokenizer = self._thread.submit(_tokenizer, spelling)
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def begin(self, constraint: wire.Constraint, produced: Sequence[int]) -> Future[Guide]:
        """A guide for a row that has produced these tokens. Raises Broken where they, or the grammar, cannot be."""
        return self._thread.submit(self._begun, constraint, list(produced))

    @property
    def compiled(self) -> int:
        return len(self._compiled)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _begun(self, constraint: wire.Constraint, produced: Sequence[int]) -> Guide:
        matcher = self._matcher(constraint.grammar)
        guide = Guide(matcher, self.words, constraint.after, constraint.opening, self._breaks, self._effort())
        for place, token in enumerate(produced):
            guide.follow(token)
            if guide.fault:
                raise Broken(f"at token {place} of those produced before, {guide.fault}")
        return guide

    def _matcher(self, grammar: str) -> LLMatcher:
        """At the grammar's beginning; its copies share what they find out about the vocabulary."""
        if grammar not in self._compiled:
            matcher = matcher_of(self._tokenizer.result(), grammar)
            if matcher.is_error():
                raise Broken(f"the grammar cannot be read: {_first_line(matcher.get_error())}")
            self._compiled[grammar] = matcher
            if len(self._compiled) > MOST_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return self._compiled[grammar].deep_copy()


class Guide:
    """One row's place in its grammar.

    What comes before `after`, a sequence of tokens, is free: always, or where `opening` is the row's first token. Line
    breaks behind it belong to it: a model that learned to write them says something else without.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        words: int,
        after: Sequence[int] = (),
        opening: int | None = None,
        breaks: Collection[int] = (),
        effort: Effort | None = None,
    ) -> None:
        self.matcher = matcher
        self.effort = effort or Effort()
        self.words = words
        self.fault = ""
        """Why it cannot go on."""
        self.opening = opening if after else None
        self._breaks = breaks
        self._breaks_left = 0
        self.free = bool(after) and opening is None
        self._after = list(after)
        self._seen = deque[int](maxlen=len(self._after))

    @property
    def complete(self) -> bool:
        """Whether the text is whole and nothing may follow."""
        return not self.free and not self.fault and self.matcher.is_stopped() and self.matcher.is_accepting()

    @property
    def besides(self) -> Collection[int]:
        """What the next token may be beside what the grammar says."""
        if self.opening is not None:
            return (self.opening,)
        return self._breaks if self._breaks_left else ()

    def follow(self, token: int) -> None:
        opening, self.opening = self.opening, None
        if self.free:
            self._seen.append(token)
            self.free = list(self._seen) != self._after
            self._breaks_left = 0 if self.free else MOST_BREAKS
        elif token == opening:
            self.free = True
        elif self._breaks_left and token in self._breaks:
            self._breaks_left -= 1
        else:
            self._breaks_left = 0
            self._take(token)

    def _take(self, token: int) -> None:
        self.effort.token()
        taken = self.effort.of(lambda: self.matcher.consume_token(token))
        if not self.stuck() and not taken:
            self.fault = "nothing may follow the text"

    def stuck(self) -> bool:
        """Whether the grammar cannot be followed from here."""
        if self.matcher.is_error():
            self.fault = _in_words(self.matcher.get_error())
        elif self.effort.too_much and not self.matcher.is_stopped():
            self.fault = TOO_LONG
        return bool(self.fault)


def _in_words(error: str) -> str:
    """Of a token that does not fit, llguidance tells bytes and its own state: nobody's concern."""
    if gave_up(error):
        return TOO_LONG
    return "the text cannot go on as it does" if "satisfy the grammar" in error else _first_line(error)


def _first_line(error: str) -> str:
    return without_state(error).split("\n")[0]


def _tokenizer(spelling: Sequence[bytes]) -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Words(spelling)))


class _Words:
    """A vocabulary, as llguidance asks for it. It encodes nothing: grammars here leave the choice of tokens to the model."""

    bos_token_id = None

    def __init__(self, spelling: Sequence[bytes]) -> None:
        self.tokens = [*spelling, END]
        self.eos_token_id = len(spelling)
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: str) -> list[int]:
        return []
