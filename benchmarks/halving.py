"""What successive halving loses against full runs, measured on the trials of tuned grids.

    python benchmarks/halving.py RESULTS [--trials 12] [--out FILE.md]

RESULTS holds two studies of a method, by ``--tune 12`` and by ``--tune 12 --set tune.halving=3``.
Of the trials of the first, one is chosen in several ways; what a way loses is the validation score
of the best of them minus that of its choice, both of full runs.

- *halving*: as the second study. Its short runs are runs of their own, whose learning rate comes to
  its end.
- *halving on curves*: the same rule on the curves of the full runs, as if all were paused at a
  ninth and at a third and the best went on.
- *fewer trials*: as many full runs as cost the same rows.
- *defaults*: trial 0.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtlkit.records import RunRecord
from mtlkit.store import ResultStore
from mtlkit.studies import Study, read_study

FACTOR, SHARES = 3, (1 / 9, 1 / 3)


@dataclass(frozen=True)
class Choice:
    """What a way of choosing took, and what it spent."""

    trial: int
    rows: float  # as a share of those of the full runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    text = compare(arguments.results, arguments.trials)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


def compare(results: Path, trials: int) -> str:
    """The table, a line a data set and way."""
    records = {record.key: record for record, _ in ResultStore(results).scan()}
    studies = [
        study
        for file in sorted((results / "studies").glob("*.json"))
        if isinstance(study := read_study(file), Study)
    ]
    # the defaults, which are trial 0 of both, tell which studies belong together
    halved = {
        study.trials[0].group: study
        for study in studies
        if study.halving == FACTOR and study.budget == trials and study.choice is not None
    }
    lost, spent = defaultdict(list), defaultdict(list)
    for study in studies:
        values = np.array([trial.value for trial in study.trials[:trials]], dtype=float)
        twin = halved.get(study.trials[0].group)
        if study.halving or twin is None or len(values) < trials or np.isnan(values).any():
            continue
        data = records[study.trials[0].keys[0]].cell.dataset
        for way, choice in choices(study, twin, records, values).items():
            lost[data, way].append(values.max() - values[choice.trial])
            spent[data, way].append(choice.rows)

    lines = [
        "| data set | choice by | methods | rows | best trial found | lost, mean | lost, most |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for (data, way), losses in sorted(lost.items()):
        found = sum(loss == 0 for loss in losses) / len(losses)
        lines.append(
            f"| {data} | {way} | {len(losses)} | {np.mean(spent[data, way]):.0%} | {found:.0%} | "
            f"{np.mean(losses):.5f} | {max(losses):.5f} |"
        )
    head = (
        "# What successive halving loses\n\n"
        f"`python benchmarks/halving.py RESULTS --trials {trials}`: validation score lost against the "
        f"best of {trials} full runs, over methods, and rows seen as a share of theirs.\n\n"
    )
    return head + "\n".join(lines) + "\n"


def choices(
    study: Study, twin: Study, records: dict[str, RunRecord], values: np.ndarray
) -> dict[str, Choice]:
    """Way to what it chooses among the first trials of a study."""
    # on curves, those that are left go on from where they were
    count = len(values)
    keys = [trial.keys[0] for trial in study.trials[:count]]
    left, rows, before = np.arange(count), 0.0, 0.0
    for share in SHARES:
        rows += len(left) * (share - before)
        before = share
        paused = np.array([at(records[keys[trial]], share) for trial in left])
        best = np.argsort(-paused, kind="stable")[: math.ceil(len(left) / FACTOR)]
        left = np.sort(left[best])
    rows += len(left) * (1 - before)

    # short runs begin anew, and cost more
    assert twin.choice is not None
    full_rows = sum(trial.rows for trial in study.trials[:count])
    share = sum(trial.rows for trial in twin.spent) / full_rows
    fewer = round(share * count)
    return {
        "halving": Choice(twin.choice, share),
        "halving on curves": Choice(int(left[np.argmax(values[left])]), rows / count),
        "fewer trials": Choice(int(np.argmax(values[:fewer])), fewer / count),
        "defaults": Choice(0, 1 / count),
    }


def at(record: RunRecord, share: float) -> float:
    """The mean validation AUC over the tasks, at the evaluation point nearest to a share of a run."""
    point = min(record.curve, key=lambda p: abs(p["epoch"] / record.curve[-1]["epoch"] - share))
    return float(np.mean([scores["auc"] for scores in point["validation"].values()]))


if __name__ == "__main__":
    main()
