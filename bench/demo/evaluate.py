"""Measures the skills on held-out items: `python -m demo.evaluate FOLDER`, with the folder of the 8-bit model.

Every answer comes from the engine, as a worker runs it: loaded by its loader, generated in its batch, greedily.
Prints one table, in the 8-bit weights as they are and read as float32, as a CPU serves them, and in bf16 where
--bf16 names that folder; then some failing answers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model, load_model
from tokenizers import Tokenizer

from demo.exams import Answer, Exam, Item, Mark, exams
from demo.tokenizer import EOS_IDS
from mlxrpc_server.engine import blas
from mlxrpc_server.engine.batch import Batch
from mlxrpc_server.engine.load import load
from mlxrpc_server.engine.row import Row
from mlxrpc_server.types import RowId, Sampling

SHIPPED = Path(__file__).parents[2] / "server/mlxrpc_server/demo/pebble"
GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0)
PREFILL_TOKENS = 2_048
STORIES_SHOWN = 20
ON_CPU = mx.default_device() == mx.Device(mx.cpu)


@dataclass(frozen=True, slots=True)
class Form:
    """The weights in one form, and how many items of each exam they are asked."""

    name: str
    folder: Path
    items: int
    keep_quantized: bool = False


@dataclass(frozen=True, slots=True)
class Marked:
    """An exam as one form of the weights took it."""

    exam: Exam
    items: Sequence[Item]
    answers: Sequence[Answer]

    def right(self, mark: int) -> list[bool]:
        return [item.judges[mark](answer) for item, answer in zip(self.items, self.answers, strict=True)]

    def scores(self) -> dict[Mark, float]:
        return {mark: 100 * sum(self.right(place)) / len(self.items) for place, mark in enumerate(self.exam.marks)}

    def failures(self, most: int) -> Iterator[str]:
        for place, mark in enumerate(self.exam.marks):
            wrong = [number for number, right in enumerate(self.right(place)) if not right]
            for number in wrong[:most]:
                item, answer = self.items[number], self.answers[number]
                yield f"- {mark.name}: {item.prompt[-160:]!r}\n    expected {item.expected!r}\n    got      {answer.text!r}"


def main() -> None:
    choices = arguments()
    if ON_CPU:
        blas.install()
        mx.disable_compile()  # as in a worker
    vocabulary = Tokenizer.from_file(str(choices.folder / "tokenizer.json"))
    asked = [each for each in exams(vocabulary) if any(choices.skill in mark.name for mark in each.marks)]
    if not asked:
        sys.exit(f"no skill has {choices.skill!r} in its name")
    taken: dict[Form, list[Marked]] = {}
    with TemporaryDirectory() as scratch:
        for form in forms(choices, Path(scratch)):
            print(f"{form.name}: {form.items} items of each skill", file=sys.stderr, flush=True)
            begin = time.monotonic()
            taken[form] = sat(form, asked, vocabulary, choices.rows)
            print(f"{form.name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
            write(choices.results, report(taken, choices.failures))
            write(choices.stories, told(taken[form]))
    print(report(taken, choices.failures))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=SHIPPED, help="the 8-bit model (the built-in one)")
    parser.add_argument("--bf16", type=Path, help="the folder of the same model in bf16")
    parser.add_argument("--items", type=int, default=20 if ON_CPU else 200, help="of each skill")
    few = "items in 8 bits as they are: minutes each on a CPU, where it is none by default"
    parser.add_argument("--as-they-are", type=int, default=0 if ON_CPU else None, help=few)
    parser.add_argument("--rows", type=int, default=32 if ON_CPU else 128, help="generated at a time")
    parser.add_argument("--only", default="", help="a part of a column's name")
    parser.add_argument("--skill", default="", help="a part of a skill's name")
    parser.add_argument("--failures", type=int, default=2, help="shown for each line of the table")
    parser.add_argument("--results", type=Path, help="where to write the table as well, after each column")
    parser.add_argument("--stories", type=Path, help="where to write twenty stories")
    return parser.parse_args()


def forms(choices: argparse.Namespace, scratch: Path) -> Iterator[Form]:
    few = choices.items if choices.as_they_are is None else choices.as_they_are
    every = [Form("8 bits in float32", scratch, choices.items), Form("8 bits as they are", choices.folder, few, True)]
    if choices.bf16:
        name = "bf16 read as float32" if ON_CPU else "bf16"
        every.insert(0, Form(name, choices.bf16, choices.items))
    widen(choices.folder, scratch)
    return (form for form in every if choices.only in form.name and form.items)


def widen(folder: Path, into: Path) -> None:
    """The same weights, dequantized, in float32."""
    model = dequantize_model(load_model(folder)[0])
    arrays: Any = {name: array.astype(mx.float32) for name, array in _flat(model)}
    mx.save_safetensors(str(into / "model.safetensors"), arrays, {"format": "mlx"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    plain = {key: value for key, value in config.items() if not key.startswith("quantization")}
    (into / "config.json").write_text(json.dumps(plain | {"dtype": "float32"}), encoding="utf-8")
    shutil.copy(folder / "tokenizer.json", into)


def _flat(model: Any) -> list[tuple[str, mx.array]]:
    found: Any = tree_flatten(model.parameters())
    return list(found)


# Taking the exams


def sat(form: Form, asked: Sequence[Exam], vocabulary: Tokenizer, rows: int) -> list[Marked]:
    loaded = load(form.folder, lambda _: None, keep_quantized=form.keep_quantized)
    batch = Batch(loaded.model, loaded.kv, max_rows=rows, prefill_tokens=PREFILL_TOKENS, clock=time.perf_counter)
    taken = []
    for exam in asked:
        items = exam.items(form.items)
        taken.append(Marked(exam, items, answers(batch, vocabulary, items)))
    return taken


def answers(batch: Batch, vocabulary: Tokenizer, items: Sequence[Item]) -> list[Answer]:
    for number, item in enumerate(items):
        ids = vocabulary.encode(item.prompt, add_special_tokens=False).ids
        batch.submit(Row(RowId(number), ids, [], GREEDY, item.longest, frozenset(EOS_IDS)))
    written: list[list[int]] = [[] for _ in items]
    while not batch.idle:
        for row, token in batch.step().tokens:
            written[row].append(token)
    return [answer(vocabulary, ids) for ids in written]


def answer(vocabulary: Tokenizer, ids: list[int]) -> Answer:
    kept = ids[:-1] if ids and ids[-1] in EOS_IDS else ids
    return Answer(vocabulary.decode(kept, skip_special_tokens=False), len(kept))


# What is shown


def report(taken: dict[Form, list[Marked]], failures: int) -> str:
    first = next(iter(taken.values()), [])
    failing = [line for marked in first for line in marked.failures(failures)]
    return "\n".join([table(taken), "", "Failing answers:" if failing else "No failing answers.", "", *failing]) + "\n"


def table(taken: dict[Form, list[Marked]]) -> str:
    columns = [{mark: score for each in exams for mark, score in each.scores().items()} for exams in taken.values()]
    heads = [f"{form.name} ({form.items} items)" for form in taken]
    lines = [f"| skill | target | {' | '.join(heads)} |", "| --- " * (2 + len(heads)) + "|"]
    for mark in columns[0] if columns else ():
        values = [f"{column[mark]:.1f}{'' if mark.met(column[mark]) else ' ✗'}" for column in columns]
        lines.append(f"| {mark.name} | {'' if mark.target is None else f'{mark.target:g}'} | {' | '.join(values)} |")
    return "\n".join(lines)


def told(taken: Sequence[Marked]) -> str:
    """The first answers of the exam on stories, each behind its question."""
    found = [
        f"[{question(item)}] {answer.text}"
        for marked in taken
        if marked.exam.marks[0].name.startswith("stories")
        for item, answer in zip(marked.items, marked.answers, strict=True)
    ]
    return "\n\n".join(found[:STORIES_SHOWN]) + "\n"


def question(item: Item) -> str:
    return item.prompt.rsplit("<|im_start|>user\n", 1)[-1].split("<|im_end|>")[0]


def write(path: Path | None, text: str) -> None:
    if path is not None:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
