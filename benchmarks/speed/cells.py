"""The fixed cost of a cell, and two cells at once against one, through the engine that ``mtlkit
bench`` uses.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from itertools import pairwise
from typing import Any

from .common import Check, Record, Section, Setup, in_child, markdown, say, select, spread

FIXED, TWICE = 1.0, 1.9
EPOCHS = 3.0
ONE_STEP = 1e-6
"""Epochs that come to a single step."""


def collect(setup: Setup) -> list[Record]:
    """Every round measures fixed costs, one cell at a time on one core, and two at a time on two."""
    records = []
    for number in range(setup.rounds):
        say(f"cells: round {number + 1} of {setup.rounds}")
        job = {"home": str(setup.data), "jobs": 1, "seeds": [0, 1, 2], "epochs": ONE_STEP}
        records.append({"kind": "fixed", "round": number} | in_child("cells", job))

        # Two cells a core. The order alternates, so that neither always comes first.
        for jobs in (1, 2) if number % 2 == 0 else (2, 1):
            seeds = list(range(2 * jobs))
            job = {"home": str(setup.data), "jobs": jobs, "seeds": seeds, "epochs": EPOCHS}
            about = {"kind": f"jobs={jobs}", "round": number}
            records.append(about | in_child("cells", job, cores=jobs))
    return records


def work(job: dict[str, Any]) -> Record:
    """In a process of its own, on the cores that it was given: run a grid and note when each cell
    was done.
    """
    from pathlib import Path

    from mtlkit.grid.engines.local import LocalEngine
    from mtlkit.settings import ExecutionSettings
    from mtlkit.store import ResultStore

    from .data import CENSUS

    # The engine is asked how many cells it would run at once; then it is told.
    home = Path(job["home"])
    cells = grid(CENSUS, home, job)
    execution = ExecutionSettings(device="cpu", probes=False, save_scores=False, jobs=None)
    with tempfile.TemporaryDirectory() as folder:
        store = ResultStore(Path(folder))
        chosen = LocalEngine(store, home, execution).jobs(len(cells))
        engine = LocalEngine(store, home, execution.model_copy(update={"jobs": job["jobs"]}))

        # Wall time: what start-up, scoring and storing cost is part of it.
        began = time.perf_counter()
        done = []
        for record in engine.run(cells):
            assert record.ok, record.error
            done.append(
                {
                    "at": time.perf_counter() - began,
                    "evaluation_seconds": record.timing["evaluation_seconds"],
                    "rows_per_second": record.cost["train_rows_per_second"],
                    "threads": record.environment["threads"],
                }
            )
    return {"cells": done, "jobs_by_default": chosen}


def grid(dataset: str, home: Any, job: dict[str, Any]) -> list[Any]:
    """Cells of the benchmark's model, one a seed."""
    from pathlib import Path

    from mtlkit.data.sources import prepare
    from mtlkit.grid.grid_settings import GridSettings
    from mtlkit.grid.plan import make_plan
    from mtlkit.store import ResultStore

    settings = GridSettings(
        dataset=dataset,
        models=("mmoe[experts=8,hidden=16,tower=8,embedding=8]",),
        balancers=("uniform",),
        references=(),
        seeds=tuple(job["seeds"]),
        training={"epochs": job["epochs"], "evaluations": 1},
    )
    source, prepared = prepare(dataset, home)

    # A plan leaves out what a store holds, so it is made against an empty one.
    with tempfile.TemporaryDirectory() as empty:
        return make_plan(settings, source, prepared, ResultStore(Path(empty))).to_run


def fixed_costs(record: Record) -> tuple[float, float]:
    """Seconds of a cell of one step without its scoring: the first in a new worker, and the mean of
    the later ones.
    """
    cells = record["cells"]
    first = cells[0]["at"] - cells[0]["evaluation_seconds"]
    later = [
        cell["at"] - before["at"] - cell["evaluation_seconds"] for before, cell in pairwise(cells)
    ]
    return first, statistics.mean(later)


def speedups(records: list[Record]) -> tuple[list[float], list[float]]:
    """Two at a time over one at a time, by round: by the rate of training alone, and cells a second
    of wall time.
    """
    singles = select(records, kind="jobs=1")
    doubles = select(records, kind="jobs=2")
    training, wall = [], []
    for one, two in zip(singles, doubles, strict=True):
        training.append(2 * _training_rate(two) / _training_rate(one))
        wall.append(_seconds_a_cell(one) / _seconds_a_cell(two))
    return training, wall


def _training_rate(record: Record) -> float:
    """Rows a second of one cell, while it trains."""
    return statistics.mean(cell["rows_per_second"] for cell in record["cells"])


def _seconds_a_cell(record: Record) -> float:
    """Wall time of all cells by their number."""
    return record["cells"][-1]["at"] / len(record["cells"])


def table(records: list[Record]) -> str:
    """Fixed costs and speed-ups."""
    costs = [fixed_costs(record) for record in select(records, kind="fixed")]
    first, later = zip(*costs, strict=True)
    training, wall = speedups(records)
    measured = {
        "fixed cost of a cell, first in a new worker, s": first,
        "fixed cost of a cell in a worker that has run one, s": later,
        "two cells at once on two cores / one on one, rows per second of training": training,
        "the same with start-up, scoring and storing, cells per second": wall,
    }
    rows = [[what, spread(values)] for what, values in measured.items()]
    return markdown(["", "median (min-max)"], rows)


def checks(records: list[Record]) -> list[Check]:
    """Below a second; nearly twice as fast, and chosen by default."""
    costs = [fixed_costs(record) for record in select(records, kind="fixed")]
    first, later = (statistics.median(values) for values in zip(*costs, strict=True))
    fixed = [
        Check("fixed cost of a cell below 1 s, new worker", f"{first:.2f} s", first < FIXED),
        Check("fixed cost of a cell below 1 s, warm worker", f"{later:.2f} s", later < FIXED),
    ]

    # A speed-up counts only if every cell really had one thread.
    doubles = select(records, kind="jobs=2")
    single = all(cell["threads"] == 1 for record in doubles for cell in record["cells"])
    threads = f"threads each: {'1' if single else 'more'}"
    training, wall = (statistics.median(values) for values in speedups(records))
    asked = f"two cells on two cores >= {TWICE:g} x one, "
    by_training = asked + "rows per second of training"
    by_clock = asked + "cells per second of wall time, all included"
    chosen = doubles[0]["jobs_by_default"]
    return [
        *fixed,
        Check(by_training, f"{training:.2f}, {threads}", single and training >= TWICE),
        Check(by_clock, f"{wall:.2f}, {threads}", single and wall >= TWICE),
        Check("--jobs chooses one cell a core by itself", f"{chosen} on two cores", chosen == 2),
    ]


SECTION = Section(
    "cells", "The fixed cost of a cell, and two cells at once", 3, collect, table, checks
)
