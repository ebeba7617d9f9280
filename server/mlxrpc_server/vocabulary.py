"""What each token id says, in bytes, derived once per tokenizer.

It knows token strings and a decode function, not where they come from.

Exact for byte-level BPE and for decoders that spell tokens one by one (SentencePiece's ▁ and byte
fallback, WordPiece, no decoder at all), also where the first token is spelt differently. Not exact where a
decoder looks at neighbours (CTC) or trims the end of the whole text: such trimming does not happen here.
`clean_up_tokenization_spaces` is never applied; a token's text would then depend on the next one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

Decode = Callable[[list[str]], str]
"""A tokenizer's own joining of token strings into text."""

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
_NEIGHBOUR = "a"
_SAMPLE = "é 안😀"


class Vocabulary:
    """Token id to bytes. Special tokens, holes and ids beyond the table say nothing."""

    def __init__(
        self,
        pieces: Sequence[bytes],
        openings: Mapping[int, bytes] = MappingProxyType({}),
        marks: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        self.marks = dict(marks)
        """How the special tokens are written, which have no text."""
        self.pieces = tuple(pieces)
        self._openings = dict(openings)
        self._texts: dict[int, str | None] = {}

    @classmethod
    def read(
        cls,
        tokens: Sequence[str | None],
        decode: Decode,
        *,
        added: Collection[int] = (),
        special: Collection[int] = (),
    ) -> Vocabulary:
        """`tokens` are the strings by id, None for a hole; `added` ones match their text literally."""
        spelling = _ByteLevel() if _is_byte_level(decode) else _Probed(decode)
        pieces = [b""] * len(tokens)
        openings = {}
        for number, token in enumerate(tokens):
            if token is None or number in special:
                continue
            pieces[number] = spelling.piece(token, number in added)
            opening = spelling.opening(token, pieces[number])
            if opening != pieces[number]:
                openings[number] = opening
        marks = {number: tokens[number] or "" for number in special if number < len(tokens)}
        return cls(pieces, openings, marks)

    def __len__(self) -> int:
        return len(self.pieces)

    def piece(self, token: int) -> bytes:
        return self.pieces[token] if 0 <= token < len(self.pieces) else b""

    def text(self, token: int) -> str | None:
        """The token's text where it is whole characters, whatever its neighbours; made once, on first use."""
        try:
            return self._texts[token]
        except KeyError:
            self._texts[token] = text = _text_of(self.piece(token))
            return text

    @functools.cached_property
    def literal(self) -> Vocabulary:
        """The same where a text begins with all that its first token says, as constraints count it."""
        return Vocabulary(self.pieces, marks=self.marks) if self._openings else self

    def opening(self, token: int) -> bytes:
        """The token's bytes where it is the first of a text: many decoders drop a leading space there."""
        opening = self._openings.get(token)
        return self.piece(token) if opening is None else opening


def _byte_characters() -> dict[int, str]:
    """Byte-level BPE's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    shifted = {byte: chr(0x100 + number) for number, byte in enumerate(others)}
    return {byte: chr(byte) for byte in printable} | shifted


_TO_CHARACTER = _byte_characters()
# A Latin-1 character outside the alphabet stands for no byte: it becomes one that cannot be encoded below.
_TO_BYTE = dict.fromkeys(range(0x100), "\u0100") | {
    ord(character): chr(byte) for byte, character in _TO_CHARACTER.items()
}


def _is_byte_level(decode: Decode) -> bool:
    """Asked of the decoder's behaviour, since its settings take several equivalent forms."""
    token = "".join(_TO_CHARACTER[byte] for byte in _SAMPLE.encode())
    return decode([token]) == _SAMPLE


class _ByteLevel:
    """Each character of a token stands for a byte."""

    def piece(self, token: str, added: bool) -> bytes:
        try:
            piece = token.translate(_TO_BYTE).encode("latin-1")
        except UnicodeEncodeError:
            return token.encode()
        # An added token is literal text; "<café>" must not be read as the lone byte E9.
        return token.encode() if added and not _is_text(piece) else piece

    def opening(self, token: str, piece: bytes) -> bytes:
        return piece


class _Probed:
    """Lets the decoder spell a token between neighbours, and as the first of two."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._tail = decode([_NEIGHBOUR, _NEIGHBOUR]).removeprefix(_NEIGHBOUR)
        self._byte_fallback = self._text("<0x41>") == "A"

    def piece(self, token: str, added: bool) -> bytes:
        byte = self._byte_fallback and _BYTE_TOKEN.fullmatch(token)
        return bytes.fromhex(byte[1]) if byte else self._text(token).encode()

    def opening(self, token: str, piece: bytes) -> bytes:
        joined = self._decode([token, _NEIGHBOUR])
        if not _is_text(piece) or not joined.endswith(self._tail):
            return piece
        return joined.removesuffix(self._tail).encode()

    def _text(self, token: str) -> str:
        joined = self._decode([_NEIGHBOUR, token, _NEIGHBOUR])
        if not joined.startswith(_NEIGHBOUR) or not joined.endswith(self._tail):
            return token
        return joined[len(_NEIGHBOUR) : len(joined) - len(self._tail)]


def _text_of(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None


def _is_text(piece: bytes) -> bool:
    return _text_of(piece) is not None
