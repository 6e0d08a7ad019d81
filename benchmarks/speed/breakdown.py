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
        job = {"shape": shape, "rounds": setup.rounds, "home": str(setup.data)}
        records += in_child("breakdown", job)
    return records


def work(job: dict[str, Any]) -> list[Record]:
    """In a process of its own: rounds of phases and of whole steps."""
    from .data import WIDTHS, head, open_dataset
    from .models import Windows, count_cpu_seconds, training
    from .phases import timed_steps
    from .turns import take_turns

    count_cpu_seconds()
    dataset = head(open_dataset(job["shape"], Path(job["home"])), validation=SCORED, test=SCORED)
    width = WIDTHS[job["shape"]]
    # Phases and whole steps in turn, so that a machine that slows down slows both.
    records = []
    for batch in BATCHES:
        phases: dict[str, list[float]] = {}
        whole: list[float] = []
        for _ in range(job["rounds"]):
            for phase, ms in timed_steps(dataset, width, batch, STEPS).items():
                phases.setdefault(phase, []).append(statistics.median(ms))
            run = training(dataset, width, "uniform", Windows(1, STEPS, batch))
            [seconds] = take_turns({"run": run})["run"]
            whole.append(1000 * seconds / STEPS)
        records.append({"shape": job["shape"], "batch": batch, "phases": phases, "whole": whole})
    return records


def medians(record: Record) -> dict[str, float]:
    """Milliseconds of a step by phase; the rest is what the trainer's loop takes beyond them, if
    anything.
    """
    by_phase = {phase: statistics.median(ms) for phase, ms in record["phases"].items()}
    phases = by_phase.pop("sum")
    whole = max(statistics.median(record["whole"]), phases)
    by_phase["rest"] = whole - phases
    return {phase: by_phase[phase] for phase in PHASES}


def table(records: list[Record]) -> str:
    """Milliseconds, and shares of the step."""
    head = ["data", "batch", "step, ms", "thousand rows/s", *(f"{phase}, ms" for phase in PHASES)]
    rows = []
    for record in records:
        by_phase = medians(record)
        step = sum(by_phase.values())
        row = [
            record["shape"],
            f"{record['batch']}",
            f"{step:.2f}",
            f"{record['batch'] / step:.0f}",
        ]
        row += [f"{ms:.2f} ({ms / step:.0%})" for ms in by_phase.values()]
        rows.append(row)
    return markdown(head, rows)


SECTION = Section("breakdown", "Where a step's time goes", 3, collect, table)
