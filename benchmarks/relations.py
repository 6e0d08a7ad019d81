"""Verdicts on planted pairs of tasks: do `report` and its intervals find what was planted?

    python benchmarks/relations.py [--repeats 40] [--first 10] [--out FILE.md]

Each repeat draws new data (`mtlkit info synthetic`), trains shared-bottom and single-task on two
tasks with five seeds each, and asks the report for its verdict. Half an hour on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mtlkit
from mtlkit.report.frame import load
from mtlkit.report.relations import find_relations
from mtlkit.report.summary import summarise
from mtlkit.store import ResultStore

OUT = Path(__file__).parents[1] / "results" / "reference" / "relations.md"
DATA = "rows=2000,d=64,m=0,labelled=0.02"
CELLS: dict[str, Any] = {
    "models": "shared-bottom",
    "balancers": "uniform",
    "seeds": 5,
    "tower": [],
    "activation": "tanh",
    "epochs": 8,
    "batch_size": 200,
    "lr": 0.02,
    "device": "cpu",
    "probes": False,
    "stack": 5,
}


@dataclass(frozen=True)
class Planted:
    """A pair of tasks whose relation is known.

    Args:
        p: The cosine between the vectors that the two tasks depend on.
        bottom: The width of the model's bottom.
        right: The verdicts that are right.
        why: In words.
    """

    p: float
    bottom: int
    right: tuple[str, ...]
    why: str


PAIRS = {
    "related": Planted(0.9, 64, ("complementary",), "few labels of one task, many of the other"),
    "opposing": Planted(0, 1, ("conflicting",), "one unit has room for one of two directions"),
    "independent": Planted(
        0, 64, ("independent", "not known", "conflicting"), "two directions, and room for both"
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What a report says of the pair of one repeat; the affinity as a fraction."""

    verdict: str
    affinity: float


def find(planted: Planted, seed: int, folder: Path) -> Outcome:
    """Draw data, train, and read the verdict of the report.

    Args:
        planted: The pair.
        seed: Of the data.
        folder: An empty one.
    """
    mtlkit.run_grid(
        dataset=f"synthetic[{DATA},p={planted.p},seed={seed}]",
        data_dir=folder / "data",
        out=folder / "results",
        bottom=[planted.bottom],
        **CELLS,
    )
    frames = load(ResultStore(folder / "results"))
    [block] = frames.blocks
    [pair] = find_relations(frames, summarise(frames, block)).pairs.to_dict("records")
    return Outcome(pair["verdict"], pair["affinity"])


def repeat(planted: Planted, seeds: Sequence[int]) -> list[Outcome]:
    """One outcome a data set."""
    outcomes = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            outcomes.append(find(planted, seed, Path(folder)))
    return outcomes


def line(name: str, outcomes: Sequence[Outcome]) -> str:
    """A row of the table: what was planted, how often the verdict is right, and all verdicts."""
    planted = PAIRS[name]
    words = Counter(outcome.verdict for outcome in outcomes)
    right = sum(words[word] for word in planted.right)
    gains = sorted(100 * outcome.affinity for outcome in outcomes)
    counts = ", ".join(f"{count} {word}" for word, count in words.most_common())
    return (
        f"| {name} | {planted.p:g} | {planted.bottom} | {planted.why} | "
        f"{right} of {len(outcomes)} | {counts} | {gains[0]:+.1f} to {gains[-1]:+.1f} |"
    ).replace("-", "−")


def heading(seeds: Sequence[int]) -> str:
    """What was run, and the head of the table."""
    return (
        f"# Verdicts on planted pairs of tasks\n\n`python benchmarks/relations.py`: "
        f"`synthetic[{DATA}]`, data seeds {seeds[0]} to {seeds[-1]}, {CELLS['seeds']} runs of each "
        "model; settings were chosen on other data seeds. Any verdict but complementary is right "
        "for independent tasks.\n\n"
        "| pair | p | bottom | why | right | verdicts | mean gain, % |\n"
        "|---|---:|---:|---|---:|---|---|"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=40, help="data sets of each pair")
    parser.add_argument("--first", type=int, default=10, help="the seed of the first of them")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.repeats)
    lines = [heading(seeds)]
    print(lines[0], flush=True)
    for name, planted in PAIRS.items():
        lines.append(line(name, repeat(planted, seeds)))
        print(lines[-1], flush=True)  # a pair takes minutes
    arguments.out.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
