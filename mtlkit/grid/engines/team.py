"""The processes that train a cell together: how they meet, work and part.

The first one runs cells and stores them; the others hear of each cell from it and train along. A
team does not outlive a failed cell: what one process misses, the others would wait for.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlkit.errors import MtlkitError
from mtlkit.grid.engines.disk_wait import DiskWait
from mtlkit.grid.engines.engine import Engine, Progress, Tell
from mtlkit.records import Cell, Failure, RunRecord
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore

if TYPE_CHECKING:
    from mtlkit.grid.run_cell import Outcome

START = timedelta(minutes=5)  # how long the processes of a team wait for each other at the start
SILENCE = timedelta(hours=2)
"""How long they do later, as while the first one plans, measures or writes."""


@dataclass(frozen=True)
class Place:
    """Which process of a team one is (``number``, from 0), of how many, and where they meet:
    ``file://`` on this machine, or ``env://`` for what a launcher has set.
    """

    number: int
    processes: int
    address: str


def launched_place() -> Place | None:
    """The place that torchrun, Ray or SLURM has given this process; None if it was started alone.

    SLURM's numbers count only where ``MASTER_ADDR`` says that processes are to meet.
    """
    variables = os.environ
    number = variables.get("RANK", variables.get("SLURM_PROCID", ""))
    processes = variables.get("WORLD_SIZE", variables.get("SLURM_NTASKS", ""))
    if not (variables.get("MASTER_ADDR") and number.isdecimal() and processes.isdecimal()):
        return None
    return Place(int(number), int(processes), "env://") if int(processes) > 1 else None


@cache
def join(place: Place) -> Team:
    """The team of this process, once all others are there."""
    return Team(place)


class Team:
    """The processes of a cell, as the one with this place sees it.

    Raises:
        MtlkitError: The others do not come.
    """

    def __init__(self, place: Place) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        self.place = place
        number, processes = place.number, place.processes
        if place.address != "env://":  # all are on this machine: nothing is open to others
            os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
        try:
            self.store, *_ = next(rendezvous(place.address, number, processes, timeout=START))
            self.store.set(f"here {number}", "")
            self.store.wait([f"here {other}" for other in range(processes)], START)
        except (RuntimeError, ValueError) as error:
            message = f"The {processes} processes of a cell did not meet: {error}"
            raise MtlkitError(message, "mtlkit bench --processes 1") from error
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        place_of = {"store": self.store, "rank": number, "world_size": processes}
        dist.init_process_group(backend, timeout=SILENCE, **place_of)
        atexit.register(dist.destroy_process_group)  # its threads would abort the interpreter

    def run(
        self,
        cell: Cell,
        home: Path,
        execution: ExecutionSettings,
        on_progress: Callable[[float], None],
        folder: Path,
    ) -> Iterator[Outcome]:
        """Run a cell with all processes: the first one's :func:`mtlkit.grid.run_cell.run_cell`."""
        import torch.distributed as dist

        from mtlkit.grid.run_cell import failure, run_cell

        try:
            dist.broadcast_object_list([(cell, home, execution, folder)])
            outcome = run_cell(cell, home, self._here(execution), on_progress, folder)
        except RuntimeError as gone:
            outcome = failure(cell, gone)
        error = outcome.record.error
        if error is not None and _tells_of_another(error):
            reason = f"one of the {self.place.processes} processes of the cell was lost"
            if self.store.check(["failed"]):
                reason = self.store.get("failed").decode()
            lost = error.model_copy(update={"type": "WorkerDied", "message": reason})
            outcome.record = outcome.record.model_copy(update={"error": lost})
        yield outcome

    def follow(self, ignores_signals: bool = False) -> None:
        """Train along, until the first process ends or a cell fails.

        Args:
            ignores_signals: A launcher passes Ctrl-C and SIGTERM on to all its processes. What they
                mean is for the first one to say: a cell that it may finish needs all of them.
        """
        import torch
        import torch.distributed as dist

        from mtlkit.grid.run_cell import run_cell

        for number in (signal.SIGINT, signal.SIGTERM) if ignores_signals else ():
            signal.signal(number, signal.SIG_IGN)
        error = None
        while error is None:
            told: list[Any] = [None]
            try:
                dist.broadcast_object_list(told)
            except RuntimeError:  # the first one has ended
                return
            cell, home, execution, folder = told[0]
            torch.set_num_threads(execution.threads)
            error = run_cell(cell, home, self._here(execution), folder=folder).record.error
        if not _tells_of_another(error):
            who = f"process {self.place.number + 1} of {self.place.processes}"
            self.store.set("failed", f"{who}: {error.type}: {error.message}")

    def _here(self, execution: ExecutionSettings) -> ExecutionSettings:
        """The settings with the device of this process: each has a GPU of its own."""
        import torch

        if execution.device == "cpu" or not torch.cuda.is_available():
            return execution
        number = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", self.place.number))
        return execution.model_copy(update={"device": f"cuda:{number}"})


def _tells_of_another(error: Failure) -> bool:
    """Whether an error only says that another process is gone."""
    words = ("gloo", "NCCL", "onnection")
    is_known = error.type in ("RuntimeError", "DistBackendError")
    return is_known and any(word in error.message for word in words)


class TeamEngine(Engine):
    """Runs cells one after another in processes that a launcher has started; this is the first."""

    def __init__(
        self, store: ResultStore, home: Path, execution: ExecutionSettings, place: Place
    ) -> None:
        super().__init__(store, home, execution.model_copy(update={"processes": place.processes}))
        self.team = join(place)

    def run(
        self,
        cells: Sequence[Cell],
        progress: Progress = lambda cell, share: None,
        tell: Tell = warnings.warn,
    ) -> Iterator[RunRecord]:
        """Run cells and yield their records; a :class:`MtlkitError` after one that failed."""
        import torch

        torch.set_num_threads(self.execution.threads)
        for cell in cells:
            if self.stopping:
                return
            progress(cell, 0.0)
            how = (self.execution, partial(progress, cell), self.store.folder(cell))
            (outcome,) = self.team.run(cell, self.home, *how)
            disk = DiskWait(self.store.root, self.execution.disk_wait, tell)
            disk.write(partial(outcome.save, self.store))
            yield outcome.record
            if not outcome.record.ok:
                message = f"The cell {cell.label} failed, and its processes with it."
                hint = "start them again: the grid goes on with the other cells"
                raise MtlkitError(message, hint)
