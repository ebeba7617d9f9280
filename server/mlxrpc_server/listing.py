"""Which models a ListModels call gets: filter, order, pages.

Pure. A page's token holds the last name given out and a digest that binds it to the filter. The digest has no key,
so that any server behind a balancer can go on; it tells accidents, not attackers, and a forged one gains nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlxrpc.v1.model_pb2 import Capabilities, Model

USUAL_PAGE = 50
LARGEST_PAGE = 1000

_DIGEST = 12


@dataclass(frozen=True, slots=True)
class Filter:
    """What a model must fulfil; whatever is empty or None asks for nothing."""

    states: frozenset[int] = frozenset()
    words: frozenset[str] = frozenset()
    """Without regard to case."""
    max_size_bytes: int | None = None
    capabilities: frozenset[str] = frozenset()

    def takes(self, model: Model) -> bool:
        return (
            (not self.states or model.state in self.states)
            and self._has_words(model)
            and self._is_small(model)
            and self.capabilities <= capability_names(model.capabilities)
        )

    def _has_words(self, model: Model) -> bool:
        names = (model.name, *model.aliases, model.display_name, model.description, model.architecture)
        text = "\n".join(names).casefold()
        return all(word in text for word in self.words)

    def _is_small(self, model: Model) -> bool:
        if self.max_size_bytes is None:
            return True
        return model.HasField("weights_bytes") and model.weights_bytes <= self.max_size_bytes


@dataclass(frozen=True, slots=True)
class Page:
    """One page, as asked for: at most `size` models behind the name `after`."""

    size: int
    after: str
    filter: Filter

    def of(self, models: Iterable[Model]) -> tuple[Sequence[Model], str]:
        """The page's models, and the next page's token; none where this is the last."""
        behind = (model for model in models if model.name > self.after and self.filter.takes(model))
        matching = sorted(behind, key=lambda model: model.name)
        page = matching[: self.size]
        more = len(matching) > self.size
        return page, write_token(page[-1].name, self.filter) if more else ""


def page_size(asked: int) -> int:
    return min(asked, LARGEST_PAGE) or USUAL_PAGE


def write_token(after: str, filter: Filter) -> str:
    name = after.encode()
    return base64.urlsafe_b64encode(_digest(name, filter) + name).decode()


def read_token(token: str, filter: Filter) -> str | None:
    """The name behind which the page begins; None for a token that no page with this filter gave."""
    if not token:
        return ""
    try:
        after = base64.urlsafe_b64decode(token)[_DIGEST:].decode()
    except (binascii.Error, ValueError):
        return None
    # Whole tokens are compared: base64 has several spellings of the same bytes, and only one is ours.
    return after if after and write_token(after, filter) == token else None


def capability_names(given: Capabilities) -> frozenset[str]:
    """Those that are true; fields that are false are not among a message's set ones."""
    return frozenset(field.name for field, _ in given.ListFields())


def _digest(name: bytes, filter: Filter) -> bytes:
    """Changes with the name and with everything that the filter means, however the request spelled it."""
    meaning = [sorted(filter.states), sorted(filter.words), filter.max_size_bytes, sorted(filter.capabilities)]
    return hashlib.sha256(json.dumps(meaning).encode() + b"\n" + name).digest()[:_DIGEST]
