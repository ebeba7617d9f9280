"""What the batch needs of a layout: where rows' keys and values live, and how one decoding step runs over them.

Layouts know tokens and caches, not requests; nothing in them is evaluated before somebody asks for a step's logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx

from mlxrpc_server.engine.prefix import Kept
from mlxrpc_server.engine.sizes import Sizes
from mlxrpc_server.types import RowId

Beginnings = Sequence[Sequence[Kept]]
"""Of each row, part by part."""


class KV(Protocol):
    """What the batch needs of any of them."""

    joint: bool
    """Whether prompts of different lengths may be prefilled in one pass, padded behind."""

    ahead: bool
    """Whether a step may be dispatched while the one before it still runs. Where storage is changed by replacing it,
    MLX would copy all of it then."""

    whole: bool
    """Whether what is kept of a row is good up to its own last token only: a state cannot be cut, a window has forgotten."""

    sizes: Sizes
    """In which prompts are prefilled and rows decode."""

    @property
    def nbytes(self) -> int:
        """What the rows take as they are laid out now."""

    def fits(self, lengths: Sequence[int], beside: int = 0) -> bool:
        """Whether rows of these lengths, and no others, would find room together, beside so many bytes kept."""

    def open(self, kept: Beginnings = ()) -> list[Any]:
        """A cache for a prefill: empty, or of rows that begin with what was kept of others, equally many tokens each."""

    def keep(self, row: RowId, start: int, end: int) -> Kept:
        """What the row holds from one token to another, beyond its own life: whole blocks, or all of it."""

    def drop(self, kept: Kept) -> None:
        """It will not be asked for any more."""

    def join(self, rows: Sequence[RowId], cache: list[Any], lengths: Sequence[int]) -> None:
        """Takes the first rows of a prefilled cache: so many tokens of each are its own, what is behind them is padding."""

    def leave(self, row: RowId) -> None: ...

    def arrange(self) -> Sequence[RowId]:
        """Makes room for one more token in each row; gives the order in which `decode` takes them."""

    def decode(self, tokens: mx.array) -> mx.array:
        """Feeds each row its token; gives the logits behind it, [rows, vocabulary]."""

    def clear(self) -> None:
        """Forgets every row."""
