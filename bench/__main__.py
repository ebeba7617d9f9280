"""`python bench WORD`, from the repository's root: measures this machine. Nothing leaves the loopback interface.

Beside what its word names, every word measures the same contenders: mlxrpc, mlx_lm.server, the raw loop, and the
smg gRPC servicer where an environment for it is named.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from health import checks
from serving import machine
from serving.contenders import Contender
from serving.contenders.mlx_lm_server import MlxLmServer
from serving.contenders.ours import Ours
from serving.contenders.smg import Smg
from serving.plans import PLANS
from serving.report import Report
from serving.run import RAW, Run

OUT = Path("build/bench")
NAMES = ("mlxrpc", "mlx_lm.server", "smg-grpc-servicer", RAW)


def main() -> None:
    chosen = arguments()
    if chosen.word == "health":
        checks.main()
        return
    smg = Smg(chosen.smg_python or sys.executable, chosen.smg_path) if chosen.smg_python or chosen.smg_path else None
    measured = contenders(smg, chosen.only)
    run = Run(measured, chosen.seconds, lambda line: print(line, file=sys.stderr, flush=True), raw=RAW in chosen.only)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for plan in PLANS[chosen.word](Path(scratch)):
                run.measure(plan)
    finally:  # also what was measured before something failed, or somebody had enough
        report = Report(machine.about(smg), run.results)
        print(report.text())
        write(report, chosen.out, chosen.word)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python bench",
        description=__doc__,
        epilog="words:\n" + "\n".join(f"  {word:<10}{measures}" for word, measures in words()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("word", nargs="?", default="short", choices=[*PLANS, "health"], help="(default short)")
    parser.add_argument(
        "--only",
        type=lambda names: names.split(","),
        default=NAMES,
        metavar="NAMES",
        help=f"of these, with commas between: {', '.join(NAMES)} (default all)",
    )
    parser.add_argument("--smg-python", default="", metavar="FILE", help="a Python that has smg-grpc-servicer")
    parser.add_argument("--smg-path", default="", metavar="FOLDERS", help="where this Python finds smg-grpc-servicer")
    parser.add_argument("--seconds", type=float, default=3600, help="no cell is begun after so many")
    parser.add_argument(
        "--out", type=Path, default=OUT, metavar="FOLDER", help=f"for tables, figures and charts (default {OUT})"
    )
    return parser.parse_args()


def words() -> Iterator[tuple[str, str]]:
    """Each with what it measures, in a line."""
    for word, measured in [*PLANS.items(), ("health", checks)]:
        yield word, (measured.__doc__ or "").partition("\n")[0]


def contenders(smg: Smg | None, only: list[str]) -> list[Contender]:
    every: list[Contender] = [Ours(), MlxLmServer(), *([smg] if smg else [])]
    return [contender for contender in every if contender.name in only]


def write(report: Report, folder: Path, word: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{word}.md").write_text(report.text(), encoding="utf-8")
    (folder / f"{word}.json").write_text(report.as_json(), encoding="utf-8")
    for number, (_model, picture) in enumerate(report.charts()):
        (folder / f"{word}-{number}.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
