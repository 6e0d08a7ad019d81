"""Faults of a Ray cluster and of joined results folders."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mtlkit.store import RECORD
from tests.campaign.faults import (
    DAMAGES,
    ENDS,
    ENDS_OF_TWO,
    FAILED,
    INTERRUPTED,
    KILLED,
    MISSING,
    OK,
    Fault,
    runs,
    struck,
    surely,
    to_driver,
    to_worker,
)
from tests.campaign.processes import COMMAND, Grid, read_process
from tests.conftest import CommandResult

ON_RAY = (*COMMAND, "--engine", "ray")
RAYLET, TASK = b"raylet/raylet", b"ray::run_on_node"
"""How the command lines of processes of Ray begin, or what they hold."""

RAY_SECONDS = 60.0
"""Seconds in which Ray's own processes must notice that their driver was killed."""

Act = Callable[[Grid], CommandResult | None]


def on_ray(act: Act) -> Act:
    """The same on a cluster that the command starts; later it is resumed without."""

    def act_there(grid: Grid) -> CommandResult | None:
        grid.command = ON_RAY
        grid.orphan_seconds = RAY_SECONDS
        return act(grid)

    return act_there


def to_ray(name: bytes) -> Callable[[Grid], None]:
    """SIGKILL to the processes of Ray with this name."""

    def strike(grid: Grid) -> None:
        for pid in grid.family():
            if name in read_process(pid, "cmdline"):
                os.kill(pid, signal.SIGKILL)

    return strike


def ray_faults() -> Iterator[Fault]:
    if importlib.util.find_spec("ray") is None:
        return
    once, twice = to_driver(signal.SIGINT), surely(to_driver(signal.SIGINT, signal.SIGINT))
    killed = to_driver(signal.SIGKILL)
    for moment in ("training", "writing"):
        # the command
        for name, ends, strike, held in (
            ("Ctrl-C", ENDS[signal.SIGINT], once, False),
            ("Ctrl-C twice", ENDS_OF_TWO, twice, True),
            ("SIGTERM", ENDS[signal.SIGTERM], to_driver(signal.SIGTERM), True),
            ("SIGKILL", (KILLED,), killed, True),
        ):
            act = on_ray(struck(moment, strike, held=held))
            yield Fault("ray cluster", f"{name} to the command in {moment}", ends, act)

        # a cell, the task around it, and the node, without which there is no cluster
        cell = to_worker(moment, signal.SIGKILL)
        lost = (OK, FAILED, MISSING, INTERRUPTED, KILLED, -signal.SIGABRT)
        for name, ends, strike in (
            ("a cell", (OK, FAILED), cell),
            ("a task", (OK,), to_ray(TASK)),
            ("the only node", lost, to_ray(RAYLET)),
        ):
            act = on_ray(struck(moment, strike, held=False))
            yield Fault("ray cluster", f"SIGKILL to {name} in {moment}", ends, act)


def merged(change: Callable[[Grid, Path], object]) -> Act:
    """Merge a changed copy of the results, after half of them were lost."""

    def act(grid: Grid) -> CommandResult | None:
        other = grid.place.root / "other"
        shutil.copytree(grid.place.out, other)
        for folder in runs(grid)[:2]:
            shutil.rmtree(folder)
        change(grid, other)
        grid.note()
        merge = Grid(grid.place, grid.token, ("merge", "../out", "../other"))
        return merge.run()

    return act


def first_record(other: Path) -> Path:
    return sorted(other.rglob(RECORD))[0]


def damaged_there(damage: Callable[[Path], object]) -> Callable[[Grid, Path], object]:
    return lambda grid, other: damage(first_record(other))


def damaged_here(damage: Callable[[Path], object]) -> Callable[[Grid, Path], object]:
    return lambda grid, other: damage(runs(grid)[0] / RECORD)


def change_numbers(grid: Grid, other: Path) -> None:
    for file in other.rglob(RECORD):
        plain: dict[str, Any] = json.loads(file.read_text())
        plain["metrics"]["test"]["heads"]["auc"] = 0.123
        file.write_text(json.dumps(plain))


def merge_faults() -> Iterator[Fault]:
    whole = merged(lambda grid, other: None)
    yield Fault("merge", "half of the results were lost", (OK,), whole, True)
    for damage in DAMAGES:
        for where, change in (
            ("there", damaged_there(damage)),
            ("here", damaged_here(damage)),
        ):
            name = f"record.json {where} {damage.__name__}"
            yield Fault("merge", name, (OK,), merged(change), True)
    yield Fault("merge", "other numbers", (FAILED,), merged(change_numbers), True)


def cluster_faults() -> Iterator[Fault]:
    """All of them."""
    yield from ray_faults()
    yield from merge_faults()
