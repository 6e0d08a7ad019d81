"""Exact AUC against scikit-learn at 10 million rows, and what evaluation costs of a run."""

from __future__ import annotations

import statistics
import time
from typing import Any

from .common import Check, Record, Section, Setup, in_child, markdown, ratios, say, spread

ROWS = 10_000_000
RATES = (0.04, 0.5)
FASTER, EQUAL, SHARE = 3.0, 1e-12, 0.10
RUNS = {"census": {"epochs": 6.0, "batch": 1024}, "ali": {"epochs": 1.0, "batch": 4096}}


def collect(setup: Setup) -> list[Record]:
    """AUC of both, then a run of each data set with as many evaluation points as by default."""
    records = []
    for rate in RATES:
        say(f"evaluation: AUC of {ROWS:,} rows, {rate:.0%} positive")
        records.append(in_child("evaluation", {"rows": ROWS, "rate": rate, "rounds": setup.rounds}))
    for shape in RUNS:
        say(f"evaluation: a run on {shape}")
        records.append(in_child("evaluation", {"run": shape, "home": str(setup.data)}))
    return records


def work(job: dict[str, Any]) -> Record:
    """In a process of its own."""
    return run(job) if "run" in job else areas(job)


def areas(job: dict[str, Any]) -> Record:
    """Both AUCs of the same float32 scores, a tenth of them tied, in turn."""
    import numpy as np
    import torch
    from sklearn.metrics import roc_auc_score

    from mtlkit.training.metrics import auc

    # Scores that say something of the labels, as those of a model do.
    rng = np.random.default_rng(0)
    labels = (rng.random(job["rows"]) < job["rate"]).astype(np.float32)
    scores = rng.standard_normal(job["rows"], dtype=np.float32) + labels
    tied = rng.random(job["rows"]) < 0.1
    scores[tied] = np.round(scores[tied], 1)

    # In turn, by the CPU time of this process, which neighbours on the machine do not lengthen.
    score_tensor, label_tensor = torch.from_numpy(scores), torch.from_numpy(labels)
    record: Record = {"rate": job["rate"], "rows": job["rows"], "mtlkit": [], "scikit-learn": []}
    for _ in range(job["rounds"]):
        began = time.process_time()
        area = auc(score_tensor, label_tensor)
        record["mtlkit"].append(time.process_time() - began)

        began = time.process_time()
        expected = roc_auc_score(labels, scores)
        record["scikit-learn"].append(time.process_time() - began)
        assert area is not None
        record["difference"] = abs(area - expected)
    return record


def run(job: dict[str, Any]) -> Record:
    """One run with default evaluation: its seconds of training, of evaluation points and of the
    scoring at the end.
    """
    from pathlib import Path

    from mtlkit.settings import TrainingSettings
    from mtlkit.training.setup import TrainingSetup
    from mtlkit.training.trainer import Trainer

    from .data import WIDTHS, open_dataset
    from .models import CPU, EXECUTION, balancer, count_cpu_seconds, mmoe

    count_cpu_seconds()
    shape = job["run"]
    dataset = open_dataset(shape, Path(job["home"]))
    options = RUNS[shape]
    settings = TrainingSettings(epochs=options["epochs"], batch_size=int(options["batch"]))
    model = mmoe(dataset.schema, WIDTHS[shape])
    uniform = balancer("uniform", dataset.schema)
    trainer = Trainer(model, uniform, dataset, TrainingSetup(settings, EXECUTION, 0, CPU))

    # The timing at the last evaluation point: what comes after it is the scoring at the end.
    at_points = 0.0

    def note(share: float) -> None:
        nonlocal at_points
        at_points = trainer.timer.seconds["evaluation_seconds"]

    result = trainer.fit(note)
    return {
        "run": shape,
        "epochs": options["epochs"],
        "batch": options["batch"],
        "points": len(result.curve),
        "train_seconds": result.timing["train_seconds"],
        "point_seconds": at_points,
        "final_seconds": result.timing["evaluation_seconds"] - at_points,
    }


def shares(record: Record) -> dict[str, float]:
    """Of evaluation: one pass of an epoch, all points of the training, the scoring at the end of
    the training.
    """
    epoch = record["train_seconds"] / record["epochs"]
    one_pass = record["point_seconds"] / record["points"]
    return {
        "one pass / epoch": one_pass / epoch,
        "all points / training": record["point_seconds"] / record["train_seconds"],
        "final scoring / training": record["final_seconds"] / record["train_seconds"],
    }


def area_records(records: list[Record]) -> list[Record]:
    """Those of AUCs."""
    return [record for record in records if "rate" in record]


def run_records(records: list[Record]) -> list[Record]:
    """Those of runs."""
    return [record for record in records if "run" in record]


def table(records: list[Record]) -> str:
    """Two tables: AUC, and runs."""
    return f"{_area_table(area_records(records))}\n\n{_run_table(run_records(records))}"


def _area_table(records: list[Record]) -> str:
    head = ["rows", "positive", "mtlkit, s", "scikit-learn, s", "times as fast", "difference"]
    rows = [
        [
            f"{record['rows']:,}",
            f"{record['rate']:.0%}",
            spread(record["mtlkit"]),
            spread(record["scikit-learn"]),
            spread(ratios(record["scikit-learn"], record["mtlkit"]), ".1f"),
            f"{record['difference']:.0e}",
        ]
        for record in records
    ]
    return markdown(head, rows)


def _run_table(records: list[Record]) -> str:
    head = ["run on", "epochs", "batch", "points", "training, s", "points, s", "final scoring, s"]
    head += list(shares(records[0])) if records else []
    rows = [
        [
            record["run"],
            f"{record['epochs']:g}",
            f"{record['batch']:.0f}",
            f"{record['points']}",
            f"{record['train_seconds']:.1f}",
            f"{record['point_seconds']:.1f}",
            f"{record['final_seconds']:.1f}",
            *(f"{share:.1%}" for share in shares(record).values()),
        ]
        for record in records
    ]
    return markdown(head, rows)


def checks(records: list[Record]) -> list[Check]:
    """Speed and equality of the AUC; the share of an epoch that one pass takes, with the other
    shares beside it.
    """
    # The AUC at every rate of positives, and its equality at the worst of them.
    measured = area_records(records)
    judged = []
    for record in measured:
        faster = statistics.median(ratios(record["scikit-learn"], record["mtlkit"]))
        asked = (
            f"exact AUC, {record['rows']:,} rows, {record['rate']:.0%} positive: >= {FASTER:g} x "
            "scikit-learn"
        )
        judged.append(Check(asked, f"{faster:.1f} times as fast", faster >= FASTER))
    worst = max(record["difference"] for record in measured)
    judged.append(Check(f"equal to it within {EQUAL:g}", f"{worst:.0e}", worst <= EQUAL))

    # Only the first share has a target.
    for record in run_records(records):
        one_pass, all_points, final = shares(record).values()
        asked = f"one evaluation pass takes at most {SHARE:.0%} of an epoch, {record['run']}"
        beside = (
            f"all {record['points']} points {all_points:.1%} and final scoring {final:.1%} of "
            "training"
        )
        judged.append(Check(asked, f"{one_pass:.1%}; {beside}", one_pass <= SHARE))
    return judged


SECTION = Section("evaluation", "Evaluation", 3, collect, table, checks)
