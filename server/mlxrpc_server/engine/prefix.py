"""What is kept of rows' beginnings, so that other rows need not compute them again: conversations' earlier turns, shared
system prompts, a row's own beginning when it has to begin again.

A tree over blocks of token ids, one for each tenant, with a budget in bytes. What is least recently used goes first, the
ends of branches before what they share. Knows tokens, sizes and what belongs together; nothing of arrays and layouts.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

BLOCK = 64
"""Tokens. Less than these are computed again sooner than found."""

NODE_BYTES = 1024
"""What a node takes beside what is kept in it: its tokens and its place in the tree."""

_ID_BYTES = array("I").itemsize
_BLOCK_BYTES = BLOCK * _ID_BYTES

LARGEST = 1 / 2
"""Of the budget, for one row: what is longer would push out everything else."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A part of a row, as its layout keeps it."""

    content: Any
    nbytes: int
    lazy: Sequence[Any] = ()
    """Arrays in it that are still to be computed."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """A beginning that need not be computed: so many tokens, and where they are."""

    length: int
    kept: Sequence[Kept]
    known: int = 0
    """Tokens, in whole blocks, with which some row began that was kept, though perhaps not at this place."""


NO_PREFIX = Prefix(0, ())


@dataclass(slots=True, eq=False)
class _Node:
    key: bytes
    parent: _Node | None
    children: dict[bytes, _Node] = field(default_factory=dict)
    kept: Kept | None = None


Take = Callable[[int, int], Kept]
"""Keeps the row's tokens from one place to another."""


class Prefixes:
    """`whole`: what is kept is good up to its own last token only, and each row is kept in one piece; else in blocks, of
    which so many are found that their tokens are a multiple of `step`."""

    def __init__(
        self, budget: int, *, whole: bool, drop: Callable[[Kept], None] = lambda _: None, step: int = BLOCK
    ) -> None:
        self.budget = budget
        self.nbytes = 0
        self._whole = whole
        self._drop = drop
        self._blocks = max(1, step // BLOCK)
        self._root = _Node(b"", None)
        self._by_use: OrderedDict[_Node, None] = OrderedDict()
        """The least recently used first. Whoever is used, those it hangs on are used behind it: the first is a leaf."""

    def find(self, tenant: str, tokens: Sequence[int]) -> Prefix:
        """The longest beginning of the tokens that is kept."""
        if self._root.children.get(_tenant_key(tenant)) is None:
            return NO_PREFIX
        text = _text(tokens)
        path = list(self._path(tenant, text))
        found = self._find_whole(path, text) if self._whole else path[(len(path) - 1) // self._blocks * self._blocks]
        if found is None:
            return Prefix(0, (), self._known(path))
        self._use(found)
        above = list(_above(found))
        kept = [node.kept for node in reversed(above) if node.kept is not None]
        length = sum(len(node.key) for node in above[:-1]) // _ID_BYTES
        return Prefix(length, kept[-1:] if self._whole else kept, self._known(path))

    def keep(self, tenant: str, tokens: Sequence[int], take: Take) -> list[Kept]:
        """Keeps a row's tokens, as far as they are not kept already and the budget allows; gives what is new."""
        if len(tokens) < BLOCK or not self.budget:
            return []
        text = _text(tokens)
        new = self._keep_whole(tenant, text, take) if self._whole else self._keep_blocks(tenant, text, take)
        while self.nbytes > self.budget:
            self.give_back()
        return new

    def give_back(self) -> bool:
        """Forgets what was least recently used; False where there is nothing."""
        if not self._by_use:
            return False
        node, _ = self._by_use.popitem(last=False)
        self._forget(node)
        return True

    def clear(self) -> None:
        while self.give_back():
            pass

    def _known(self, path: Sequence[_Node]) -> int:
        return BLOCK * (len(path) - 1)

    def _path(self, tenant: str, text: bytes) -> Iterator[_Node]:
        """The tenant, and the nodes of the text's whole blocks as far as there are any."""
        node = self._root.children.get(_tenant_key(tenant))
        for start in range(0, len(text) + 1, _BLOCK_BYTES):
            if node is None:
                return
            yield node
            node = node.children.get(text[start : start + _BLOCK_BYTES])

    def _find_whole(self, path: Sequence[_Node], text: bytes) -> _Node | None:
        for depth, node in reversed(list(enumerate(path))):
            start = depth * _BLOCK_BYTES
            ends = [
                one for key, one in node.children.items() if len(key) < _BLOCK_BYTES and text.startswith(key, start)
            ]
            if kept := [one for one in ends if one.kept is not None]:
                return max(kept, key=lambda one: len(one.key))
            if node.kept is not None:
                return node
        return None

    def _keep_blocks(self, tenant: str, text: bytes, take: Take) -> list[Kept]:
        new: list[Kept] = []
        node, nbytes = self._child(self._root, _tenant_key(tenant)), 0
        for number in range(len(text) // _BLOCK_BYTES):
            key = text[number * _BLOCK_BYTES : (number + 1) * _BLOCK_BYTES]
            known = node.children.get(key)
            kept = (known and known.kept) or take(number * BLOCK, (number + 1) * BLOCK)
            nbytes += kept.nbytes
            if nbytes > LARGEST * self.budget:
                if known is None:
                    self._drop(kept)
                break
            if known is None:
                new.append(kept)
            node = known or self._put(self._child(node, key), kept)
        self._use(node)
        return new

    def _keep_whole(self, tenant: str, text: bytes, take: Take) -> list[Kept]:
        node = self._child(self._root, _tenant_key(tenant))
        for start in range(0, len(text), _BLOCK_BYTES):
            node = self._child(node, text[start : start + _BLOCK_BYTES])
        self._use(node)
        if node.kept is not None:
            return []
        kept = take(0, len(text) // _ID_BYTES)
        if kept.nbytes > LARGEST * self.budget:
            self._drop(kept)
            return []
        self._put(node, kept)
        return [kept]

    def _put(self, node: _Node, kept: Kept) -> _Node:
        """Counted at once: to take the next one may raise, and then this one is to be given back all the same."""
        node.kept = kept
        self.nbytes += kept.nbytes
        self._count(node)
        return node

    def _child(self, node: _Node, key: bytes) -> _Node:
        child = node.children.get(key)
        if child is None:
            child = node.children[key] = _Node(key, node)
        return child

    def _use(self, node: _Node) -> None:
        for one in _above(node):
            self._count(one)
            self._by_use.move_to_end(one)

    def _count(self, node: _Node) -> None:
        if node not in self._by_use:
            self._by_use[node] = None
            self.nbytes += NODE_BYTES

    def _forget(self, node: _Node) -> None:
        if node.parent is not None:
            del node.parent.children[node.key]
        self.nbytes -= NODE_BYTES
        if node.kept is not None:
            self.nbytes -= node.kept.nbytes
            self._drop(node.kept)


def _above(node: _Node) -> Iterator[_Node]:
    """The node and those it hangs on, its tenant last."""
    while node.parent is not None:
        yield node
        node = node.parent


def _tenant_key(tenant: str) -> bytes:
    return b"tenant " + tenant.encode()


def _text(tokens: Sequence[int]) -> bytes:
    return array("I", tokens).tobytes()
