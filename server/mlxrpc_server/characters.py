"""One answer's tokens into characters, as Python's incremental UTF-8 decoder makes them. Knows a vocabulary, no rules."""

from __future__ import annotations

import codecs

from mlxrpc_server.vocabulary import Vocabulary


class Characters:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._opened = False
        self._unfinished = b""

    @property
    def whole(self) -> bool:
        """Whether it has begun and stands between two characters: a token's own text is what it adds then."""
        return self._opened and not self._unfinished

    @property
    def unfinished(self) -> int:
        """How many characters have begun and not ended.

        One, as a rule; but Python's decoder also waits on ED A0, half a surrogate, and then makes two of it.
        """
        return len(self._unfinished.decode(errors="replace"))

    def of(self, token: int) -> str:
        """Those that are finished with this token."""
        piece = self._vocabulary.piece(token)
        if not self._opened:
            self._opened = bool(piece)
            piece = self._vocabulary.opening(token)
        waiting = self._unfinished + piece
        text, used = codecs.utf_8_decode(waiting, "replace", False)
        self._unfinished = waiting[used:]
        return text
