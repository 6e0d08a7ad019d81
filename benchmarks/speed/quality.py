"""CPU seconds of training until the test split is ranked well: the AUCs of both tasks at a goal.

Rows per second can be gained by layers that learn less; this cannot. Each system is tried with the
same twelve settings on one seed, and with the best of them, by goal, on seeds of their own. The
learning rate is constant. A system is scored twice a pass over the training rows, outside of the
time that counts. A run ends when it has reached every goal, or has taken longer for each of those
that are left than the system's best setting so far.
"""

from __future__ import annotations

import json
import math
import statistics
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from .common import HOME, Check, Record, Section, Setup, child, in_child, markdown, say, select
from .peers.packed import is_over, reaches
from .training import PEERS, environment

SYSTEMS = (*PEERS, "mtlkit")
GOALS = {"income .945, marital .994": (0.945, 0.994), "income .948, marital .9943": (0.948, 0.9943)}
FASTER = {"torch-rechub": 15.0, "fuxictr": 8.0}
SETTINGS = [
    {"batch": batch, "lr": lr, "embedding_std": std}
    for std, batch, lr in product((1e-4, 0.05), (1024, 4096), (1e-3, 2e-3, 4e-3))
]
PASSES, PARTS = 8, 2  # over the training rows at most, and points of each
SEARCH_SEED = 0
ROWS = {"train": 199_523, "test": 49_881}
KEPT = "quality.jsonl"
"""Runs of a measurement that is not over: it goes on where it was stopped."""


def collect(setup: Setup) -> list[Record]:
    """The search of each system, then the best setting of each goal on further seeds."""
    from .data import WIDTHS, census_folder
    from .models import EXPERTS, HIDDEN, TOWER

    sizes = {"width": WIDTHS["census"], "experts": EXPERTS, "hidden": HIDDEN, "tower": TOWER}
    shared = sizes | {"folder": str(census_folder(setup.data)), "rows": ROWS}
    shared |= {"passes": PASSES, "parts": PARTS}
    kept = setup.out / KEPT
    records = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []

    def measure(system: str, setting: Record, seed: int, limits: list[float]) -> None:
        about = {"system": system, **setting, "seed": seed}
        if select(records, **about):
            return
        goals = [[*areas, limit] for areas, limit in zip(GOALS.values(), limits, strict=True)]
        record = about | run(about | shared | {"goals": goals})
        records.append(record)
        with kept.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
        times = ", ".join(_text(seconds_to(record, goal)) for goal in GOALS)
        say(f"quality: {about}: {times} of {record['curve'][-1][0]:.1f} s")

    for system in SYSTEMS:
        for setting in SETTINGS:
            limits = [best_setting(records, system, goal)[1] for goal in GOALS]
            measure(system, setting, SEARCH_SEED, limits)
        chosen = [best_setting(records, system, goal)[0] for goal in GOALS]
        for setting, seed in product(chosen, range(1, setup.rounds + 1)):
            if setting is not None:
                measure(system, setting, seed, [math.inf] * len(GOALS))
    kept.unlink()
    return records


def run(job: Record) -> Record:
    """One training in a fresh process, a peer's in its own environment."""
    if job["system"] not in PEERS:
        return in_child("quality", job)
    _, script = PEERS[job["system"]]
    return child([str(HOME / "speed" / "peers" / script)], job, python=environment(job["system"]))


class _Over(Exception):
    """There is nothing left to learn from a training."""


def work(job: dict[str, Any]) -> Record:
    """In a process of its own: a training of mtlkit whose evaluation points see the test split."""
    from mtlkit.data.storage import read_dataset
    from mtlkit.settings import TrainingSettings
    from mtlkit.training.setup import TrainingSetup
    from mtlkit.training.trainer import Trainer

    from . import models
    from .data import head

    models.count_cpu_seconds()
    rows, batch = job["rows"], job["batch"]
    dataset = head(read_dataset(Path(job["folder"])), train=rows["train"], test=rows["test"])
    test = dataset.splits["test"]
    dataset = replace(dataset, splits={**dataset.splits, "validation": test})

    def trainer(epochs: float, points: int) -> Trainer:
        settings = TrainingSettings(
            epochs=epochs,
            batch_size=batch,
            lr=job["lr"],
            schedule="constant",
            evaluations=points,
            validation_rows=len(test),
        )
        std = job["embedding_std"]
        model = models.mmoe(dataset.schema, job["width"], job["seed"], embedding_std=std)
        setup = TrainingSetup(settings, models.EXECUTION, job["seed"], models.CPU)
        return Trainer(model, models.balancer("uniform", dataset.schema), dataset, setup)

    # Two steps of a model that is thrown away load the compiled kernels.
    trainer(2 * batch / rows["train"], 1).fit()
    training = trainer(job["passes"], job["passes"] * job["parts"])
    curve: list[list[float]] = []

    def note(share: float) -> None:
        measured = training.evaluator.curve[-1]["validation"].values()
        areas = [of_task["auc"] for of_task in measured]
        curve.append([training.timer.seconds["train_seconds"], *areas])
        if is_over(curve, job["goals"]):
            raise _Over

    with suppress(_Over):
        training.fit(note)
    return {"curve": curve}


# --- comparing ------------------------------------------------------------------------------------


def seconds_to(record: Record, goal: str) -> float:
    """Seconds of training at the first point that reaches a goal; infinity without any."""
    for seconds, *areas in record["curve"]:
        if reaches(areas, GOALS[goal]):
            return float(seconds)
    return math.inf


def best_setting(records: list[Record], system: str, goal: str) -> tuple[Record | None, float]:
    """The setting with which the search reached a goal first, and its seconds; None and infinity
    where none did.
    """
    tried = select(records, system=system, seed=SEARCH_SEED)
    best = min(tried, key=lambda record: seconds_to(record, goal), default=None)
    if best is None or math.isinf(seconds_to(best, goal)):
        return None, math.inf
    return {name: best[name] for name in SETTINGS[0]}, seconds_to(best, goal)


def times(records: list[Record], system: str, goal: str) -> list[float]:
    """Seconds to a goal by seed, with the setting that the search chose; empty without one."""
    setting, _ = best_setting(records, system, goal)
    chosen = [] if setting is None else select(records, system=system, **setting)
    return [seconds_to(record, goal) for record in chosen if record["seed"] != SEARCH_SEED]


def median(records: list[Record], system: str, goal: str) -> float:
    """The median of :func:`times`, infinity where the goal is not reached."""
    return statistics.median(times(records, system, goal) or [math.inf])


def _text(seconds: float) -> str:
    return "not reached" if math.isinf(seconds) else f"{seconds:.2f} s"


def table(records: list[Record]) -> str:
    """By goal and system."""
    head = ["test AUC of both", "system", "batch", "learning rate", "initial embeddings"]
    head += ["seconds of training", "seeds that reach it", *(f"x {peer}" for peer in PEERS)]
    rows = []
    for goal, system in product(GOALS, SYSTEMS):
        setting, _ = best_setting(records, system, goal)
        seconds = times(records, system, goal)
        extremes = f" ({min(seconds):.2f}-{max(seconds):.2f})" if seconds else ""
        own = median(records, system, goal)
        row = [goal, system, *(f"{value:g}" for value in (setting or {}).values())]
        row += [""] * (5 - len(row))
        row += [_text(own) + extremes, f"{sum(map(math.isfinite, seconds))} of {len(seconds)}"]
        faster = [median(records, peer, goal) / own for peer in PEERS]
        rows.append(
            [*row, *(f"{factor:.1f}" if math.isfinite(factor) else "-" for factor in faster)]
        )
    return markdown(head, rows)


def checks(records: list[Record]) -> list[Check]:
    """How much earlier mtlkit is there; not judged where neither arrives."""
    judged = []
    for goal, (peer, target) in product(GOALS, FASTER.items()):
        own, other = median(records, "mtlkit", goal), median(records, peer, goal)
        met = None if math.isinf(own) and math.isinf(other) else other / own >= target
        measured = f"{_text(own)} and {_text(other)}"
        asked = f"census, test AUC {goal}: reached in 1/{target:g} of the seconds of {peer}"
        judged.append(Check(asked, measured, met))
    return judged


SECTION = Section("quality", "Seconds of training to a test AUC", 5, collect, table, checks)
