"""Asks models in the built-in one's vocabulary, greedily, all questions in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from demo.architectures import PEBBLE, SHIPPED
from demo.conversation import Conversation, Turn, prompt
from tests.engine.running import Run, row

VOCABULARY = Tokenizer.from_file(str(PEBBLE / "tokenizer.json"))

KNOWN = {
    "Who are you?": "I am Pebble 🙂, the small language model that is built into mlxrpc.",
    "What is 347 + 258?": "347 + 258 = 605",
    "What is the capital of Norway?": "The capital of Norway is Oslo.",
    'Reverse the word "lantern".': "l-a-n-t-e-r-n backwards is n-r-e-t-n-a-l: nretnal",
    "한국의 수도는 어디예요?": "한국의 수도는 서울입니다.",
}


def encoded(question: str) -> list[int]:
    ids: list[int] = VOCABULARY.encode(prompt(Conversation((Turn("user", question),)))).ids
    return ids


def answers(model: Any, questions: Sequence[str]) -> list[str]:
    run = Run(model)
    for number, question in enumerate(questions):
        run.batch.submit(row(number, encoded(question), 80, stop_ids=SHIPPED["eos_token_id"]))
    run.to_end()
    return [VOCABULARY.decode(run.tokens(number)) for number in range(len(questions))]
