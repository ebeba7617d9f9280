"""How llguidance is asked, alike by the server that judges a grammar and by the worker that follows it.

What the one lets in the other must be able to follow, so both have the same limits from here. Knows neither requests
nor rows.
"""

from __future__ import annotations

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

LIMITS = LLParserLimits(verbose_errors=False)
"""llguidance's own, without a dump of the parser in every sentence."""


def matcher_of(tokenizer: LLTokenizer, rules: str) -> LLMatcher:
    """At the grammar's beginning; it may be one that cannot go on, and says so itself."""
    return LLMatcher(tokenizer, rules, log_level=0, limits=LIMITS)


def without_state(error: str) -> str:
    """llguidance's own words, without the parser's state behind them."""
    return error.split("\n<state>", maxsplit=1)[0].strip()
