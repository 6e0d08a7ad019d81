"""Whether tuning and verdict find what is planted, and find nothing between two names of one method.

    python benchmarks/planted.py [--repeats 40] [--first 0] [--trials 4] [--seeds 5] [--out FILE.md]

Each repeat generates data of its own and runs three tuned grids of two rows. Both rows get the same
number of trials, what they chose runs with fresh seeds, and the verdict on the mean gain of one over
the other is that of a report, with both noises.

- *worse*: two unrelated linear tasks. One hidden unit for both (shared-bottom) carries one of them,
  a unit for each (single-task) carries both.
- *one model*: mmoe with a single expert is shared-bottom, though it draws other initial weights.
- *one balancer*: with two tasks, pcgrad and upgrad take the same step up to its length.

Takes about half an hour on one core.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from mtlkit.api import run_grid
from mtlkit.report.build import open_results
from mtlkit.report.statistics import MARGIN, Word
from mtlkit.report.summary import beside, summarise

OUT = Path(__file__).parents[1] / "results" / "reference" / "planted.md"
TRAINING = {"epochs": 10, "batch_size": 64}
ONE_UNIT = "bottom=1,tower=1,activation=leaky_relu"


@dataclass(frozen=True)
class Planted:
    """A grid of two rows of which it is known what must be said.

    Args:
        data: The data set, but for its seed.
        models: With their options; the first, or its first balancer, is compared with the other.
        balancers: Of all models.
        goal: What must be said, in words.
    """

    data: str
    models: tuple[str, ...]
    balancers: tuple[str, ...]
    goal: str


PLANTED = {
    "worse": Planted(
        "synthetic[p=0,m=0,rows=2000,d=16",
        (f"shared-bottom[{ONE_UNIT}]", f"single-task[{ONE_UNIT}]"),
        ("uniform",),
        "worse in 95 % or more",
    ),
    "one model": Planted(
        "synthetic[p=0.5,rows=2000,d=32",
        ("mmoe[experts=1,hidden=16]", "shared-bottom[bottom=16]"),
        ("uniform",),
        "better or worse in 5 % or fewer",
    ),
    "one balancer": Planted(
        "synthetic[p=0.5,rows=2000,d=32",
        ("shared-bottom[bottom=16]",),
        ("pcgrad", "upgrad"),
        "better or worse in 5 % or fewer",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--first", type=int, default=0, help="seed of the first data set")
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()

    words: dict[str, Counter[Word]] = {name: Counter() for name in PLANTED}
    for repeat in range(arguments.first, arguments.first + arguments.repeats):
        for name, planted in PLANTED.items():
            with tempfile.TemporaryDirectory() as folder:
                word = said_of(planted, Path(folder), repeat, arguments.trials, arguments.seeds)
            words[name][word] += 1
            print(f"{repeat}: {name}: {word}", flush=True)

    command = f"python benchmarks/planted.py --repeats {arguments.repeats}"
    text = (
        f"# Planted methods, tuned and judged\n\n`{command}`: {arguments.trials} trials of each "
        f"row, then {arguments.seeds} fresh seeds; how often each word was said.\n\n{table(words)}"
    )
    print(text)
    arguments.out.write_text(text, encoding="utf-8")


def said_of(planted: Planted, folder: Path, repeat: int, trials: int, seeds: int) -> Word:
    """Run a grid on the data of a repeat; the word on its first row beside its second."""
    run_grid(
        dataset=f"{planted.data},seed={repeat}]",
        models=list(planted.models),
        balancers=list(planted.balancers),
        references=[],
        seeds=seeds,
        tune={"trials": trials, "seed": repeat},
        **TRAINING,
        jobs=1,
        probes=False,
        out=str(folder / "results"),
        data_dir=folder / "data",
    )
    frames = open_results(folder / "results")
    block = frames.blocks[0]
    summary = summarise(frames, block)

    # The rows of a summary are sorted by quality, so the planted order is found by name.
    in_order = [*planted.models, *planted.balancers]
    rows = sorted(
        summary.finished,
        key=lambda row: (in_order.index(row.group.model), row.group.balancer == in_order[-1]),
    )
    row, other = rows
    gain = beside(row, other, summary.noise).compare_gains(block.comparable, block.task_of, MARGIN)
    return gain.word


def table(words: dict[str, Counter[Word]]) -> str:
    """Markdown: how often each word was said of each grid."""
    columns = get_args(Word)
    lines = [f"| planted | {' | '.join(columns)} | goal |", f"|---|{'---:|' * len(columns)}---|"]
    for name, counts in words.items():
        numbers = " | ".join(str(counts[word]) for word in columns)
        lines.append(f"| {name} | {numbers} | {PLANTED[name].goal} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
