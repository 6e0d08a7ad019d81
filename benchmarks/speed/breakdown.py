"""Where the time of a training step goes."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from .common import Record, Section, Setup, in_child, markdown, say
from .phases import PHASES

SHAPES, BATCHES = ("census", "ali"), (1024, 4096)
STEPS, SCORED = 15, 2048


def collect(setup: Setup) -> list[Record]:
    """Milliseconds by phase; the trainer's own loop is measured in between."""
    records = []
    for shape in SHAPES:
        say(f"breakdown: {shape}")
        records += in_child(
            "breakdown", {"shape": shape, "rounds": setup.rounds, "home": str(setup.data)}
        )
    return records


def work(job: dict[str, Any]) -> list[Record]:
    """In a process of its own: rounds of phases and of whole steps."""
    from .data import WIDTHS, head, open_dataset
    from .models import count_cpu_seconds, training
    from .phases import timed_steps
    from .turns import take_turns

    count_cpu_seconds()
    dataset = head(open_dataset(job["shape"], Path(job["home"])), validation=SCORED, test=SCORED)
    width = WIDTHS[job["shape"]]
    records = []
    for batch in BATCHES:
        phases: dict[str, list[float]] = {}
        whole: list[float] = []
        for _ in range(job["rounds"]):
            for phase, ms in timed_steps(dataset, width, batch, STEPS).items():
                phases.setdefault(phase, []).append(statistics.median(ms))
            run = training(dataset, width, "uniform", batch, 1, STEPS)
            whole += [1000 * seconds / STEPS for seconds in take_turns({"run": run})["run"]]
        records.append({"shape": job["shape"], "batch": batch, "phases": phases, "whole": whole})
    return records


def medians(record: Record) -> dict[str, float]:
    """Milliseconds of a step by phase; the rest is what the trainer's loop takes beyond them, if
    anything.
    """
    found = {phase: statistics.median(ms) for phase, ms in record["phases"].items()}
    whole = max(statistics.median(record["whole"]), found["sum"])
    found["rest"] = whole - found.pop("sum")
    return {phase: found[phase] for phase in PHASES}


def table(records: list[Record]) -> str:
    """Milliseconds, and shares of the step."""
    rows = []
    for record in records:
        found = medians(record)
        total = sum(found.values())
        cells = [f"{ms:.2f} ({ms / total:.0%})" for ms in found.values()]
        rate = f"{record['batch'] / total:.0f}"
        rows.append([record["shape"], f"{record['batch']}", f"{total:.2f}", rate, *cells])
    return markdown(
        ["data", "batch", "step, ms", "thousand rows/s", *(f"{phase}, ms" for phase in PHASES)],
        rows,
    )


SECTION = Section("breakdown", "Where a step's time goes", 3, collect, table)
