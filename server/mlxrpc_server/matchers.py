"""How llguidance is asked, alike by the server that judges a grammar and by the worker that follows it.

What the one lets in the other must be able to follow, so both have the same limits from here. Knows neither requests
nor rows.
"""

from __future__ import annotations

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

LIMITS = LLParserLimits(verbose_errors=False, step_max_items=10_000)
"""llguidance's own, without a dump of the parser in every sentence, and with a fifth of its work for a mask: of 4,400 texts
under schemas from the wild, none needs a tenth, and one mask of an ambiguous grammar else takes half a second."""

TOO_LONG = (
    "following the grammar takes too long: it can be read in too many ways, or an expression in it is too complex"
)

_LIMITS_MET = ("Too many items", "Current row has", "too many expressions", "too many states", "fuel exhausted")
"""How llguidance says that it gives up."""


def matcher_of(tokenizer: LLTokenizer, rules: str) -> LLMatcher:
    """At the grammar's beginning; it may be one that cannot go on, and says so itself."""
    return LLMatcher(tokenizer, rules, log_level=0, limits=LIMITS)


def without_state(error: str) -> str:
    """llguidance's own words, without the parser's state behind them."""
    return error.split("\n<state>", maxsplit=1)[0].strip()


def gave_up(error: str) -> bool:
    """Whether a grammar took more than the limits allow, right as it may be."""
    return any(met in error for met in _LIMITS_MET)
