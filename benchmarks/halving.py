"""What successive halving loses against full runs, measured on the trials of tuned grids.

    python benchmarks/halving.py RESULTS [--trials 12] [--out FILE.md]

Each study in RESULTS whose first trials all ran to their end is chosen from in several ways. What a
way loses is the validation score of the best trial minus that of its choice, both of full runs.

- *halving*: a second study in RESULTS, of the same method with ``--set tune.halving=3``. Its short
  runs are runs of their own, whose learning rate comes to its end.
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

OUT = Path(__file__).parents[1] / "results" / "reference" / "halving.md"
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
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    text = compare(arguments.results, arguments.trials)
    print(text)
    arguments.out.write_text(text, encoding="utf-8")


def compare(results: Path, trials: int) -> str:
    """The table, a line a data set and way."""
    records = {record.key: record for record, _ in ResultStore(results).scan()}
    studies = [
        study
        for file in sorted((results / "studies").glob("*.json"))
        if isinstance(study := read_study(file), Study)
    ]
    halved = {identity(study): study for study in studies if study.halving == FACTOR}
    lost, spent = defaultdict(list), defaultdict(list)
    for study in studies:
        values = np.array([trial.value for trial in study.trials[:trials]], dtype=float)
        if study.halving or len(values) < trials or np.isnan(values).any():
            continue
        [data] = {records[key].cell.dataset for key in study.trials[0].keys}
        for way, choice in choices(study, halved.get(identity(study)), records, values).items():
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
    return "\n".join(lines) + "\n"


def identity(study: Study) -> tuple[str, str, str]:
    """What a study and its twin with halving have in common."""
    return study.model, study.balancer, study.training


def choices(
    study: Study, twin: Study | None, records: dict[str, RunRecord], values: np.ndarray
) -> dict[str, Choice]:
    """Way to what it chooses among the first trials of a study."""
    count = len(values)
    paused = [[at(records[key], s) for s in SHARES] for t in study.trials for key in t.keys]
    left, rows, before = np.arange(count), 0.0, 0.0
    for rung, share in enumerate(SHARES):
        rows += len(left) * (share - before)
        before = share
        order = sorted(left, key=lambda trial, rung=rung: -paused[trial][rung])
        left = np.array(sorted(order[: math.ceil(len(left) / FACTOR)]))
    rows += len(left) * (1 - before)
    found = {"halving on curves": Choice(int(left[np.argmax(values[left])]), rows / count)}
    found["defaults"] = Choice(0, 1 / count)

    # the short runs of the twin begin anew, so it spends more than a curve that goes on
    if twin is not None and twin.choice is not None and twin.budget == count:
        full_rows = sum(trial.rows for trial in study.trials[:count])
        share = sum(trial.rows for trial in twin.spent) / full_rows
        found["halving"] = Choice(twin.choice, share)
        fewer = round(share * count)
        found["fewer trials"] = Choice(int(np.argmax(values[:fewer])), fewer / count)
    return found


def at(record: RunRecord, share: float) -> float:
    """The mean validation AUC over the tasks, at the evaluation point nearest to a share of a run."""
    point = min(record.curve, key=lambda p: abs(p["epoch"] / record.curve[-1]["epoch"] - share))
    return float(np.mean([scores["auc"] for scores in point["validation"].values()]))


if __name__ == "__main__":
    main()
