from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.trainers import BpeTrainer, UnigramTrainer

from mlxrpc_server import lengths

CORPUS = ["the quick brown fox jumps over the lazy dog" + " " * 40, "안녕하세요 세계", "hello\n\n\n world 1234"] * 8


@cache
def words_apart() -> RustTokenizer:
    rust = RustTokenizer(models.BPE())
    rust.normalizer = normalizers.NFC()
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    rust.train_from_iterator(CORPUS, BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    return rust


@cache
def one_word() -> RustTokenizer:
    """As a converted Llama: nothing parts the text, and what it does not know is one token, however long."""
    rust = RustTokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    rust.train_from_iterator(CORPUS, BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False))
    return rust


@cache
def probable() -> RustTokenizer:
    rust = RustTokenizer(models.Unigram())
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = UnigramTrainer(vocab_size=90, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    rust.train_from_iterator(CORPUS, trainer)
    return rust


@cache
def unknown_where_long() -> RustTokenizer:
    """Words of more than a hundred characters are one token; shorter ones may be as many as they have characters."""
    tokens = ["[UNK]", *"abcxyz", *(f"##{letter}" for letter in "abcxyz")]
    rust = RustTokenizer(models.WordPiece({token: number for number, token in enumerate(tokens)}, unk_token="[UNK]"))
    rust.normalizer = normalizers.BertNormalizer()
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return rust


@cache
def greedy_marks() -> RustTokenizer:
    """An added token takes all spaces beside it."""
    rust = RustTokenizer.from_str(words_apart().to_str())
    rust.add_tokens([AddedToken("<mask>", lstrip=True, rstrip=True)])
    return rust


TOKENIZERS = (words_apart, one_word, probable, unknown_where_long, greedy_marks)

FRAGMENTS = st.text("abcxyz ▁\n\t1안e\u0301\u00e9\u0301<>.", min_size=1, max_size=8) | st.sampled_from(
    [" ", "x", "<mask>", "the quick ", "\u0301"]
)
RUNS = st.tuples(FRAGMENTS, st.integers(1, 120_000))
TEXTS = st.lists(RUNS, min_size=1, max_size=4).map(
    lambda runs: "".join((fragment * times)[:120_000] for fragment, times in runs)
)


@pytest.mark.parametrize("make", TOKENIZERS)
@settings(max_examples=25)
@given(text=TEXTS)
def test_no_text_has_fewer_tokens_than_its_pieces_let_expect(make: Callable[[], RustTokenizer], text: str) -> None:
    rust = make()

    def count(piece: str) -> int:
        return len(rust.encode(piece).ids)

    assert lengths.least(text, len(text), count) <= count(text)


def test_a_text_is_read_until_it_is_long_enough() -> None:
    pieces: list[str] = []

    def count(piece: str) -> int:
        pieces.append(piece)
        return len(piece)

    enough = 3 * lengths.PIECE
    assert lengths.least("x" * 100 * lengths.PIECE, enough, count) >= enough
    assert len(pieces) == 7


def test_the_spaces_between_two_pieces_are_not_counted() -> None:
    assert lengths.least(" " * 10 * lengths.PIECE, 1, len) == 0


@pytest.mark.parametrize("most, length", [(48, lengths.PIECE), (100_000, 100_000 * lengths.LIKELY)])
def test_what_is_short_enough_to_fit_or_to_be_encoded_at_once_is_not_suspicious(most: int, length: int) -> None:
    assert not lengths.is_suspicious("x" * length, most)
    assert lengths.is_suspicious("x" * (length + 1), most)
