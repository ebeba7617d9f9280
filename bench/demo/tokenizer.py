"""The model's own byte-level tokenizer, trained on composed conversations.

Digits stand alone, and so do capital letters that follow each other: sums and spelling are then about characters.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from demo.conversation import CONTROL_TOKENS, MARKER_TOKENS, preamble
from demo.mixture import conversation

VOCABULARY = 3_072
ADDED_TOKENS = CONTROL_TOKENS + MARKER_TOKENS
LEARNED = VOCABULARY - len(ADDED_TOKENS)  # the added tokens stand last
END_OF_TEXT_ID, MESSAGE_START_ID, MESSAGE_END_ID = range(LEARNED, LEARNED + 3)
EOS_IDS = [MESSAGE_END_ID, END_OF_TEXT_ID]
SAMPLE = 25_000
SEED = 7


def train(conversations: int = SAMPLE) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.Split(Regex(r"\p{Lu}(?=\p{Lu})|(?<=\p{Lu})\p{Lu}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LEARNED,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=14,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(conversations), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in MARKER_TOKENS])
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(f"the text gave {tokenizer.get_vocab_size()} tokens instead of {VOCABULARY}")
    return tokenizer


def texts(conversations: int) -> Iterator[str]:
    draw = Random(SEED)
    for _ in range(conversations):
        made = conversation(draw)
        for turn in made.turns:
            yield turn.text
            if turn.reasoning:
                yield turn.reasoning
        if made.tools:
            yield preamble(made)


if __name__ == "__main__":
    train().save(sys.argv[1] if len(sys.argv) > 1 else str(Path("tokenizer.json")))
