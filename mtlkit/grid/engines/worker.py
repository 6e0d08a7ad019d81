"""A worker: a process that runs one cell after another, stores each, and reports to the driver.

It outlives neither its driver nor a cell that may have spoilt it. A cell with a plugin may have:
code from outside the package can replace any function of any library, which nobody sees.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from mtlkit.grid.engines.disk_wait import write_patiently
from mtlkit.grid.engines.team import Place, join
from mtlkit.records import Cell, RunRecord
from mtlkit.registry import BALANCERS, DATASETS, MODELS
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore

if TYPE_CHECKING:
    from mtlkit.grid.global_state import GlobalState
    from mtlkit.grid.run_cell import Outcome


@dataclass(frozen=True)
class Assignment:
    """A cell to run, or a stack of cells."""

    cell: Cell  # the cell, or the first of the stack
    lost: tuple[str, ...] = ()  # how the process of each earlier attempt ended, in words
    others: tuple[Cell, ...] = ()  # the other cells of the stack

    @property
    def cells(self) -> list[Cell]:
        return [self.cell, *self.others]

    def without(self, *keys: str) -> Assignment | None:
        """The cells that are left when some of them are over."""
        left = [cell for cell in self.cells if cell.key not in keys]
        return replace(self, cell=left[0], others=tuple(left[1:])) if left else None

    @property
    def attempts(self) -> int:
        return len(self.lost) + 1

    def again(self, end: str) -> Assignment:
        """The same cell, after another process of it was lost."""
        return replace(self, lost=(*self.lost, end))


@dataclass(frozen=True)
class Unwritten:
    """Report of a finished cell that cannot be written; the worker keeps it and tries again."""

    reason: str


@dataclass(frozen=True)
class Finished:
    """Report of a cell that is over and stored."""

    record: RunRecord  # its record
    leaves: bool  # whether the worker ends after the last cell of its assignment


Report = float | Unwritten | Finished
"""What a worker sends; a number is the share of its cell that is done, at first 0."""


def work(
    pipe: Connection,
    here: Path,
    results: Path,
    home: Path,
    execution: ExecutionSettings,
    place: Place | None = None,
) -> None:
    """The life of a worker: receive a cell, run it, store it, send its record.

    Args:
        here: The driver's folder, from which relative paths start.
        place: In the team that trains each cell together; None for no team. All but the first
            train along.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides
    _end_with_driver()
    os.chdir(here)
    import torch

    from mtlkit.grid.global_state import GlobalState
    from mtlkit.grid.stacking import run_stack

    torch.set_num_threads(execution.threads)
    store = ResultStore(results)
    clean_state = GlobalState.now()
    team = None if place is None else join(place)
    if team is not None and team.place.number > 0:
        team.follow()
        return

    while True:
        try:
            assignment: Assignment = pipe.recv()
        except (EOFError, OSError):
            return
        _send(pipe, 0.0)  # taken up: from now on its time counts

        tell = partial(_send, pipe)
        if team is None:
            outcomes = run_stack(assignment.cells, home, execution, tell, store.folder)
        else:
            folder = store.folder(assignment.cell)
            outcomes = team.run(assignment.cell, home, execution, tell, folder)
        if _run_assignment(assignment, outcomes, store, pipe, clean_state, team is not None):
            return


def _run_assignment(
    assignment: Assignment,
    outcomes: Iterator[Outcome],
    store: ResultStore,
    pipe: Connection,
    clean_state: GlobalState,
    in_team: bool,
) -> bool:
    """Run the cells of an assignment, whose outcomes come one by one; store and report each.
    Returns whether the process may be spoilt, and ends.
    """
    from mtlkit.grid.global_state import same_start
    from mtlkit.grid.run_cell import failure

    left: Assignment | None = assignment
    leaves = uses_plugin(assignment.cell)
    while left is not None:
        with same_start():
            try:
                finished = [next(outcomes)]
            except BaseException as error:  # a plugin may raise what is no Exception
                finished = [failure(lost_cell, error) for lost_cell in left.cells]
                leaves = True

        # what the cell left behind
        changes = clean_state.changes()
        leaves = leaves or bool(changes) or any(map(_may_have_lost_gpu, finished))
        leaves = leaves or (in_team and not finished[0].record.ok)
        for outcome in finished:
            outcome.record = with_history(outcome.record, assignment, changes)
            outcome = _store(store, outcome, pipe)
            _send(pipe, Finished(outcome.record, leaves))
        left = left.without(*(outcome.record.key for outcome in finished))
    return leaves


def _may_have_lost_gpu(outcome: Outcome) -> bool:
    """Whether a cell failed on a GPU: most errors there spoil it for the rest of the process."""
    import torch

    return not outcome.record.ok and torch.cuda.is_initialized()


def uses_plugin(cell: Cell) -> bool:
    """Whether code from outside the package takes part in a cell."""
    if cell.resolved.get("losses"):
        return True
    registries = {"dataset": DATASETS, "model": MODELS, "balancer": BALANCERS}
    return any(
        registry.is_plugin(cell.resolved[kind]["name"]) for kind, registry in registries.items()
    )


def with_history(
    record: RunRecord, assignment: Assignment, changes: list[str] | None = None
) -> RunRecord:
    """A record that also says how often its cell was tried, and what the cell changed."""
    warnings = list(record.warnings)
    for end in assignment.lost:
        warnings.append(f"the process of an earlier attempt {end}; the cell ran again")
    if changes:
        warnings.append(
            f"the cell changed settings of its whole process: {', '.join(changes)}; "
            "the cells after it run in another one"
        )
    return record.model_copy(update={"attempts": assignment.attempts, "warnings": warnings})


def _store(store: ResultStore, outcome: Outcome, pipe: Connection) -> Outcome:
    """Write an outcome, as often as it takes: the driver decides how long that may be. Returns what
    was written: a failure where no attempt could ever succeed.
    """
    from mtlkit.grid.run_cell import failure

    try:
        write_patiently(lambda: outcome.save(store), lambda reason: _send(pipe, Unwritten(reason)))
        return outcome
    except (TypeError, ValueError) as error:  # of what a plugin measured, no file can be made
        record = outcome.record
        failed = failure(record.cell, error, record.environment)
        failed.record = failed.record.model_copy(update={"attempts": record.attempts})
        return _store(store, failed, pipe)


def _send(pipe: Connection, report: Report) -> None:
    """Send to the driver.

    Without a driver the worker ends at once, so that a killed grid leaves no process and no false
    failure.
    """
    try:
        pipe.send(report)
    except OSError:
        os._exit(1)


def _end_with_driver() -> None:
    """End this process with its driver, however that ends and whatever this process is doing then.

    The driver holds one end of a pipe. Its system closes that, at the latest when it dies.
    """
    driver = multiprocessing.parent_process()
    assert driver is not None
    threading.Thread(target=_watch, args=(driver.sentinel,), daemon=True).start()

    # A thread waits in vain where the cell hangs in compiled code. On Linux, the kernel kills us.
    if hasattr(fcntl, "F_SETSIG"):
        flags = fcntl.fcntl(driver.sentinel, fcntl.F_GETFL)
        fcntl.fcntl(driver.sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(driver.sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(driver.sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)


def _watch(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
