"""What log-probabilities cost: `python bench/logprobs.py [MODEL] [--rows N]`, the engine in this process.

The same rows decode in turns without them and with the five likeliest of each token, and each turn is compared with
the one beside it: whatever else the machine does, it does to both.
"""

from __future__ import annotations

import statistics

from in_process import Decoding, arguments, loaded, made_up
from mlxrpc_server.engine.load import Loaded

TOP = 5
ROUNDS = 15
STEPS = 10
WARM_UP = 2
PROMPT = 16


def main() -> None:
    chosen = arguments(__doc__)
    model = loaded(chosen.model, chosen.rows)
    pairs = [[step_seconds(model, chosen.rows, logprobs) for logprobs in (-1, TOP)] for _ in range(ROUNDS)]
    without, with_them = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(before / after for before, after in pairs)
    print(
        f"{chosen.rows} rows, {model.vocabulary_size:,} ids: {without:.2f} ms a step without, {with_them:.2f} ms with"
        f" the top {TOP}: {ratio:.3f} of the tokens/s, the median of {ROUNDS} rounds"
    )


def step_seconds(model: Loaded, rows: int, logprobs: int) -> float:
    """The median step's, once all rows decode."""
    decoding = Decoding(model, rows)
    decoding.bring(made_up(number, PROMPT, logprobs=logprobs) for number in range(rows))
    decoding.steps(WARM_UP)
    seconds = decoding.steps(STEPS)
    decoding.dismiss()
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
