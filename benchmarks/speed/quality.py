"""CPU seconds of training until the test split is ranked well: the AUCs of both tasks at a goal.

Rows per second can be gained by layers that learn less; this cannot. Each system is tried with the
same twelve settings on one seed, and with the best of them, by goal, on seeds of their own. The
learning rate is constant. A system is scored some times a pass over the training rows, outside of
the time that counts. A run ends when it has reached every goal, or has taken longer for each of
those that are left than the system's best setting so far.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from .common import HOME, Check, Record, Section, Setup, child, in_child, markdown, say, select
from .peers.packed import is_over, reaches
from .training import PEERS, environment

SYSTEMS = (*PEERS, "mtlkit")
SETTINGS = [
    {"batch": batch, "lr": lr, "embedding_std": std}
    for std, batch, lr in product((1e-4, 0.05), (1024, 4096), (1e-3, 2e-3, 4e-3))
]
SEARCH_SEED = 0
Goal = tuple[float, ...]
"""The AUC that each task is to reach."""


@dataclass(frozen=True)
class Race:
    """Rows to train on, and what is to be reached on them.

    Args:
        section: Its name, and that of the file of what was measured so far.
        data: ``census`` or ``ali``.
        rows: Of the splits ``train`` and ``test``.
        passes: Over the training rows at most.
        parts: Points of a pass.
        tasks: Names for the table.
        goals: What is to be reached, given all that was measured.
        faster: By peer, how many times as soon mtlkit is to be there.
    """

    section: str
    data: str
    rows: dict[str, int]
    passes: int
    parts: int
    tasks: tuple[str, ...]
    goals: Callable[[list[Record]], list[Goal]]
    faster: dict[str, float]

    def name(self, goal: Goal) -> str:
        """A goal in words."""
        areas = zip(self.tasks, goal, strict=True)
        return ", ".join(f"{task} {area:g}".replace("0.", ".") for task, area in areas)


class Runs:
    """All that is measured of a race, kept in a file until all is there, so that a measurement goes
    on where it was stopped.
    """

    def __init__(self, race: Race, setup: Setup) -> None:
        from .data import WIDTHS, ali_folder, census_folder
        from .models import EXPERTS, HIDDEN, TOWER

        folder = {"census": census_folder, "ali": ali_folder}[race.data](setup.data)
        self.shared: Record = {"width": WIDTHS[race.data], "folder": str(folder)}
        self.shared |= {"experts": EXPERTS, "hidden": HIDDEN, "tower": TOWER}
        self.shared |= {"rows": race.rows, "passes": race.passes, "parts": race.parts}
        self.race = race
        self.file = setup.out / f"{race.section}.jsonl"
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.records: list[Record] = [json.loads(line) for line in lines]

    def measure(
        self, system: str, setting: Record, seed: int, goals: list[list[float]], **more: Any
    ) -> None:
        """Measure a run, unless it was; each goal has the AUCs and the seconds after which it is
        too late. Others of what is shared may be given.
        """
        about = {"system": system, **setting, "seed": seed}
        if select(self.records, **about):
            return
        record = about | run(about | self.shared | more | {"goals": goals})
        self.records.append(record)
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
        seconds, *areas = record["curve"][-1]
        last = ", ".join(f"{area:.4f}" for area in areas)
        say(f"{self.race.section}: {about}: test AUC {last} after {seconds:.1f} s")


def collect(race: Race, setup: Setup) -> list[Record]:
    """The search of each system, then the best setting of each goal on further seeds."""
    runs = Runs(race, setup)
    goals = race.goals(runs.records)
    for system in SYSTEMS:
        for setting in SETTINGS:
            limits = [best_setting(runs.records, system, goal)[1] for goal in goals]
            limited = [[*goal, limit] for goal, limit in zip(goals, limits, strict=True)]
            runs.measure(system, setting, SEARCH_SEED, limited)
        chosen = [best_setting(runs.records, system, goal)[0] for goal in goals]
        for setting, seed in product(chosen, range(1, setup.rounds + 1)):
            if setting is not None:
                runs.measure(system, setting, seed, [[*goal, math.inf] for goal in goals])
    runs.file.unlink()
    return runs.records


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


def seconds_to(record: Record, goal: Goal) -> float:
    """Seconds of training at the first point that reaches a goal; infinity without any."""
    for seconds, *areas in record["curve"]:
        if reaches(areas, goal):
            return float(seconds)
    return math.inf


def best_setting(records: list[Record], system: str, goal: Goal) -> tuple[Record | None, float]:
    """The setting with which the search reached a goal first, and its seconds; None and infinity
    where none did.
    """
    tried = select(records, system=system, seed=SEARCH_SEED)
    best = min(tried, key=lambda record: seconds_to(record, goal), default=None)
    if best is None or math.isinf(seconds_to(best, goal)):
        return None, math.inf
    return {name: best[name] for name in SETTINGS[0]}, seconds_to(best, goal)


def times(records: list[Record], system: str, goal: Goal) -> list[float]:
    """Seconds to a goal by seed, with the setting that the search chose; empty without one."""
    setting, _ = best_setting(records, system, goal)
    chosen = [] if setting is None else select(records, system=system, **setting)
    return [seconds_to(record, goal) for record in chosen if record["seed"] != SEARCH_SEED]


def median(records: list[Record], system: str, goal: Goal) -> float:
    """The median of :func:`times`, infinity where the goal is not reached."""
    return statistics.median(times(records, system, goal) or [math.inf])


def _text(seconds: float) -> str:
    return "not reached" if math.isinf(seconds) else f"{seconds:.2f} s"


def table(race: Race, records: list[Record]) -> str:
    """By goal and system."""
    head = ["test AUC of both", "system", "batch", "learning rate", "initial embeddings"]
    head += ["seconds of training", "seeds that reach it", *(f"x {peer}" for peer in PEERS)]
    rows = []
    for goal, system in product(race.goals(records), SYSTEMS):
        setting, _ = best_setting(records, system, goal)
        seconds = times(records, system, goal)
        extremes = f" ({min(seconds):.2f}-{max(seconds):.2f})" if seconds else ""
        own = median(records, system, goal)
        row = [race.name(goal), system, *(f"{value:g}" for value in (setting or {}).values())]
        row += [""] * (5 - len(row))
        row += [_text(own) + extremes, f"{sum(map(math.isfinite, seconds))} of {len(seconds)}"]
        faster = [median(records, peer, goal) / own for peer in PEERS]
        rows.append(
            [*row, *(f"{factor:.1f}" if math.isfinite(factor) else "-" for factor in faster)]
        )
    return markdown(head, rows)


def checks(race: Race, records: list[Record]) -> list[Check]:
    """How much earlier mtlkit is there; not judged where neither arrives."""
    judged = []
    for goal, (peer, target) in product(race.goals(records), race.faster.items()):
        own, other = median(records, "mtlkit", goal), median(records, peer, goal)
        met = None if math.isinf(own) and math.isinf(other) else other / own >= target
        measured = f"{_text(own)} and {_text(other)}"
        reached = f"{race.data}, test AUC {race.name(goal)}"
        asked = f"{reached}: reached in 1/{target:g} of the seconds of {peer}"
        judged.append(Check(asked, measured, met))
    return judged


CENSUS = Race(
    section="quality",
    data="census",
    rows={"train": 199_523, "test": 49_881},
    passes=8,
    parts=2,
    tasks=("income", "marital"),
    goals=lambda records: [(0.945, 0.994), (0.948, 0.9943)],
    faster={"torch-rechub": 15.0, "fuxictr": 8.0},
)
SECTION = Section(
    CENSUS.section,
    "Seconds of training to a test AUC",
    5,
    partial(collect, CENSUS),
    partial(table, CENSUS),
    partial(checks, CENSUS),
)
