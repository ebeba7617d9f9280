from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, pre_tokenizers

from mlxrpc_server.vocabulary import Decode, Vocabulary

SPM = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
WORDS = ["▁", "▁the", "he", "##ing", "안녕", "▁▁", "a", "b▁", ".", "</w>", "x</w>", "<think>", "😀", "##"]
BY_TOKEN: dict[str, Decode] = {
    "llama": decoders.Sequence([*SPM, decoders.Strip(" ", 1, 0)]).decode,
    "gemma": decoders.Sequence([*SPM]).decode,
    "metaspace": decoders.Metaspace().decode,
    "metaspace, no prefix": decoders.Metaspace(prepend_scheme="never").decode,
    "wordpiece": decoders.WordPiece().decode,
    "none": " ".join,
}


def said(vocabulary: Vocabulary, ids: list[int]) -> bytes:
    return b"".join([*map(vocabulary.opening, ids[:1]), *map(vocabulary.piece, ids[1:])])


@pytest.mark.parametrize("name", BY_TOKEN)
@given(ids=st.lists(st.integers(0, len(WORDS) - 1), max_size=8))
def test_pieces_in_a_row_are_what_the_decoder_makes_of_them(name: str, ids: list[int]) -> None:
    decode = BY_TOKEN[name]
    vocabulary = Vocabulary.read(WORDS, decode)
    assert said(vocabulary, ids).decode() == decode([WORDS[token] for token in ids])


@given(ids=st.lists(st.integers(0, len(WORDS) - 1), max_size=8))
def test_a_decoder_that_trims_the_end_differs_there_alone(ids: list[int]) -> None:
    decode = decoders.BPEDecoder().decode
    vocabulary = Vocabulary.read(WORDS, decode)
    tokens = [WORDS[token] for token in ids]
    trimmed = " " if tokens and tokens[-1].endswith("</w>") else ""
    assert said(vocabulary, ids).decode() == decode(tokens) + trimmed


@given(st.text(max_size=20))
def test_byte_level_tokens_are_bytes(text: str) -> None:
    [(token, _)] = pre_tokenizers.ByteLevel(use_regex=False).pre_tokenize_str(f" {text}")
    halves = [token[:3], token[3:]]
    vocabulary = Vocabulary.read(halves, decoders.ByteLevel().decode)
    assert said(vocabulary, [0, 1]).decode() == f" {text}"


def test_every_byte_has_its_byte_level_token() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = Vocabulary.read(alphabet, decoders.ByteLevel().decode)
    assert sorted(vocabulary.piece(token) for token in range(256)) == [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize("token", ["<think>", "<｜User｜>", "two  spaces", "é가", "<café>", "\n"])
def test_added_tokens_of_a_byte_level_tokenizer_are_literal(token: str) -> None:
    vocabulary = Vocabulary.read([token], decoders.ByteLevel().decode, added=[0])
    assert vocabulary.piece(0) == token.encode()


def test_an_added_token_spelt_in_the_byte_alphabet_is_read_as_its_tokenizer_reads_it() -> None:
    vocabulary = Vocabulary.read(["Ġhello"], decoders.ByteLevel().decode, added=[0])
    assert vocabulary.piece(0) == b" hello"


@given(st.binary(max_size=8))
def test_byte_fallback_tokens_are_bytes(content: bytes) -> None:
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = Vocabulary.read(tokens, BY_TOKEN["gemma"])
    assert said(vocabulary, list(content)) == content


def test_one_leading_space_is_dropped_once_even_where_it_is_a_byte() -> None:
    vocabulary = Vocabulary.read(["<0x20>", "▁a"], BY_TOKEN["llama"])
    assert said(vocabulary, [0, 1]) == b" a"
    assert said(vocabulary, [1, 0, 1]) == b"a  a"


def test_byte_names_are_plain_text_without_byte_fallback() -> None:
    vocabulary = Vocabulary.read(["<0x41>"], decoders.Metaspace().decode)
    assert vocabulary.piece(0) == b"<0x41>"


@pytest.mark.parametrize("token", [-1, 0, 1, 3, 10**9])
def test_holes_special_tokens_and_unknown_ids_say_nothing(token: int) -> None:
    vocabulary = Vocabulary.read(["<s>", None, "▁a"], BY_TOKEN["llama"], added=[0], special=[0])
    assert len(vocabulary) == 3
    assert vocabulary.piece(token) == vocabulary.opening(token) == b""
