"""Cells on this machine: a pool of processes, one cell at a time in each.

A worker stores what it finishes, so nothing is lost when the pool dies. A worker that dies takes
down its own cell only: another worker takes its place. A cell whose process was killed runs again,
alone, when the others are done; if that does not help, or it ended in another way, it is recorded
as failed.

Where results cannot be written, each worker keeps the one cell that it has finished, and takes no
further one until that is stored. So a full disk stops the grid, and room on it lets it go on.
"""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import cycle, islice, takewhile
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING

from mtlkit.grid.engines.disk_wait import DiskWait, write_patiently
from mtlkit.grid.engines.engine import Engine, Progress, Tell
from mtlkit.grid.engines.processes import (
    CHECKPOINT_GRACE,
    FORKS,
    GRACE,
    Worker,
    available_cores,
    end_workers,
    start_worker,
)
from mtlkit.grid.engines.team import Place
from mtlkit.grid.engines.worker import Assignment, Finished, Unwritten, uses_plugin, with_history
from mtlkit.records import Cell, RunRecord, Status

if TYPE_CHECKING:
    import torch

POLL = 1.0  # seconds after which workers are looked at that have sent nothing, for the time limit


class LocalEngine(Engine):
    """Runs cells in processes of their own."""

    def slots(self, cells: int) -> list[str]:
        """The device of each cell that runs at a time: as many as asked for, else one a core on the
        CPU, and so many on each GPU as the settings say.
        """
        devices = [str(device) for device in self._devices()]
        processes = self.execution.processes
        default = max(1, available_cores() // (self.execution.threads * processes))
        if not self._on_cpu():
            default = len(devices) * self.execution.slots_per_gpu if processes == 1 else 1
        count = max(1, min(self.execution.jobs or default, cells))
        return list(islice(cycle(devices), count))

    def _devices(self) -> list[torch.device]:
        from mtlkit.grid.machine import resolve_devices

        return resolve_devices(self.execution.device)

    def _on_cpu(self) -> bool:
        return self._devices()[0].type == "cpu"

    def run(
        self,
        cells: Sequence[Cell],
        progress: Progress = lambda cell, share: None,
        tell: Tell = warnings.warn,
    ) -> Iterator[RunRecord]:
        """Run cells and yield their records as they finish, in no particular order.

        Stopping the iteration, or an interrupt, ends the workers; finished cells are in the store.

        Raises:
            MissingError: Results cannot be written, for longer than the settings allow.
        """
        from mtlkit.grid.stacking import stacks

        stacked, note = stacks(cells, self.execution, self._on_cpu())
        if note:
            tell(note)
        assignments = [Assignment(first, others=tuple(others)) for first, *others in stacked]
        slots = self.slots(len(assignments))
        while assignments and not self.stopping:
            pool = _Pool(self, progress, tell)
            yield from pool.run(assignments, slots)

            # most cells are killed for want of memory: alone they have all of it
            assignments, slots = pool.killed, slots[:1]

    def start(self, device: str) -> Worker:
        """A new worker, which waits for a cell that it will run on a device."""
        forked = FORKS and self._on_cpu()
        execution = self.execution.model_copy(update={"device": device})
        arguments = (Path.cwd(), self.store.root, self.home, execution)
        if execution.processes == 1:
            worker = start_worker(forked, arguments)
        else:
            worker = self._start_team(forked, arguments)
        worker.device = device
        return worker

    def _start_team(self, forked: bool, arguments: tuple[object, ...]) -> Worker:
        """A worker and the processes that train along with it, which meet in a file."""
        count, folder = self.execution.processes, tempfile.TemporaryDirectory(prefix="mtlkit-")
        places = [Place(number, count, f"file://{folder.name}/team") for number in range(count)]
        worker, *members = [start_worker(forked, (*arguments, place)) for place in places]
        worker.members, worker.meeting = members, folder
        return worker


class _Pool:
    """The workers of an engine, while they run a list of cells.

    Attributes:
        spares: Workers that wait to take the place of one that leaves after its cell.
        leaving: Workers that have been told to end, and may take a moment for it.
        killed: Cells that should run again, for their processes were killed.
        seconds: Group to the seconds that the last cell of it took.
    """

    def __init__(self, engine: LocalEngine, progress: Progress, tell: Tell) -> None:
        self.engine = engine
        self.store = engine.store
        self.execution = engine.execution
        self.progress = progress
        self.tell = tell
        self.waiting: deque[Assignment] = deque()
        self.workers: list[Worker] = []
        self.spares: list[Worker] = []
        self.leaving: list[Worker] = []
        self.killed: list[Assignment] = []
        self.seconds: dict[str, float] = {}
        self.disk = DiskWait(self.store.root, self.execution.disk_wait, tell)

    def run(self, assignments: Sequence[Assignment], slots: Sequence[str]) -> Iterator[RunRecord]:
        """Run cells, one at a time in each slot, and yield the records of those that are over."""
        self.waiting.extend(assignments)
        try:
            # all processes start before the first of them is waited for
            for device in slots[: len(assignments)]:
                self.workers.append(self.engine.start(device))
            for worker in self.workers:
                yield from self._assign(worker)

            while busy := [worker for worker in self.workers if worker.assignment is not None]:
                ready = wait([worker.pipe for worker in busy], timeout=POLL)
                for worker in busy:
                    record = self._look_after(worker, worker.pipe in ready)
                    if record is not None:
                        yield record
                    if worker.assignment is None:
                        yield from self._go_on(worker)
                self.disk.check()
        finally:
            has_checkpoints = self.execution.checkpoint_every is not None
            workers = [*self.workers, *self.spares, *self.leaving]
            end_workers(workers, CHECKPOINT_GRACE if has_checkpoints else GRACE)
            self._tell_what_is_lost()

    def _assign(self, worker: Worker) -> Iterator[RunRecord]:
        """Give a worker the next cell, if there is one; yield the records of those that another
        grid has finished in the meantime.
        """
        assignment = None
        while self.waiting and assignment is None and not self.engine.stopping:
            next_one = self._next_in_line()
            records = [self.store.get(cell) for cell in next_one.cells]
            finished = [record for record in records if record is not None and record.ok]
            yield from finished
            assignment = next_one.without(*(record.key for record in finished))
        if assignment is None:
            return
        worker.assignment = assignment
        worker.taken_up = None
        self._tell_progress(worker, 0.0)
        try:
            worker.pipe.send(worker.assignment)
        except OSError:
            return  # it died; the next look at its pipe says so

        # a worker leaves after a plugin: another one is ready by then
        if self.waiting and uses_plugin(assignment.cell):
            self.spares.append(self.engine.start(worker.device))

    def _next_in_line(self) -> Assignment:
        """Take out the cell that is to run next: of those with the seed of the first one, the one
        that took longest with another seed, so that no core is idle for long at the end. A cell
        that no other seed has told of comes before these.
        """
        seed = self.waiting[0].cell.seed
        same = list(takewhile(lambda waiting: waiting.cell.seed == seed, self.waiting))
        costs = [self.seconds.get(waiting.cell.group, math.inf) for waiting in same]
        position = costs.index(max(costs))
        del self.waiting[position]
        return same[position]

    def _go_on(self, worker: Worker) -> Iterator[RunRecord]:
        """After a cell, the next one, in the same process unless that ends."""
        if worker.leaves:
            self.workers.remove(worker)
            self._let_go(worker)
            if not self.waiting or self.engine.stopping:
                return
            worker = self._replacement(worker.device)
            self.workers.append(worker)
        yield from self._assign(worker)

    def _let_go(self, worker: Worker) -> None:
        """Have a worker end by itself. The next cell does not wait for that, except on a GPU, whose
        memory it needs.
        """
        worker.pipe.close()
        if worker.device != "cpu":
            end_workers([worker])
            return
        late = [other for other in self.leaving if other.has_run_longer_than(GRACE)]
        self.leaving = [other for other in (*self.leaving, worker) if other not in late]
        end_workers(late, grace=0)  # they have had their time

    def _replacement(self, device: str) -> Worker:
        """A spare worker, if one waits for this device; else a new one."""
        for worker in self.spares:
            if worker.device == device and worker.process.is_alive():
                self.spares.remove(worker)
                return worker
        return self.engine.start(device)

    def _look_after(self, worker: Worker, ready: bool) -> RunRecord | None:
        """The record of a worker's cell, once that is stored; None before, and for a cell that will
        run again.

        Args:
            worker: A worker with a cell; afterwards it has none if that is over.
            ready: Whether its pipe holds a message, or is closed.
        """
        assert worker.assignment is not None
        if ready:
            try:
                report = worker.pipe.recv()
            except (EOFError, OSError):
                return self._after_death(worker)
            if isinstance(report, Finished):
                return self._finish(worker, report)
            if isinstance(report, Unwritten):
                self._keep(worker, report.reason)
                return None

            # the first report says that the worker took up the cell: from now on its time counts
            worker.taken_up = worker.taken_up or time.monotonic()
            self._tell_progress(worker, report)

        # a stack may take as long as its cells together
        limit = self.execution.timeout
        count = len(worker.assignment.cells)
        if limit is not None and worker.has_run_longer_than(limit * count):
            worker.process.kill()
            if count > 1:
                self._run_apart(worker, f"took longer than {limit * count:g} seconds")
                return None
            message = f"the cell took longer than {limit:g} seconds"
            return self._give_up(worker, "Timeout", message)
        return None

    def _tell_progress(self, worker: Worker, share: float) -> None:
        """Tell how far the cells of a worker are."""
        assert worker.assignment is not None
        for cell in worker.assignment.cells:
            self.progress(cell, share)

    def _finish(self, worker: Worker, report: Finished) -> RunRecord:
        """Take note that a cell is stored."""
        self.seconds[report.record.group] = report.record.timing.get("total_seconds", 0.0)
        worker.unwritten = False
        if worker.assignment is not None:
            worker.assignment = worker.assignment.without(report.record.key)
        worker.taken_up = time.monotonic()  # the rest of a stack has its own time
        worker.leaves = report.leaves
        if not any(other.unwritten for other in self.workers):
            self.disk.has_room()
        return report.record

    # --- cells that came to nothing

    def _after_death(self, worker: Worker) -> RunRecord | None:
        """What becomes of the cell of a worker that has closed its pipe: a failure, or None if it
        runs again.
        """
        assignment = worker.assignment
        assert assignment is not None
        worker.process.join(GRACE)
        end = worker.describe_end()
        if assignment.others:
            self._run_apart(worker, end)
            return None
        if worker.was_killed() and assignment.attempts <= self.execution.retries:
            self.tell(f"The process of {assignment.cell.label} {end}. It will run again, alone.")
            self.killed.append(assignment.again(end))
            worker.assignment = None
            worker.leaves = True
            return None
        times = f" at attempt {assignment.attempts}" if assignment.lost else ""
        return self._give_up(worker, "WorkerDied", f"the process of this cell {end}{times}")

    def _run_apart(self, worker: Worker, end: str) -> None:
        """Have the cells of a stack that was lost run again, each by itself."""
        assert worker.assignment is not None
        cells = worker.assignment.cells
        self.tell(f"The process of a stack of {len(cells)} cells {end}. They will run one by one.")
        self.killed += [Assignment(cell).again(end) for cell in cells]
        worker.assignment = None
        worker.leaves = True

    def _give_up(self, worker: Worker, error_type: str, message: str) -> RunRecord:
        """Record that a cell gave no numbers for a reason outside of it."""
        from mtlkit.grid.run_cell import failure

        assert worker.assignment is not None
        status: Status = "timeout" if error_type == "Timeout" else "failed"
        error = type(error_type, (RuntimeError,), {})(message)
        outcome = failure(worker.assignment.cell, error, status=status)
        outcome.record = with_history(outcome.record, worker.assignment)
        write_patiently(
            lambda: self.store.save(outcome.record, log=outcome.log),
            lambda reason: self._keep(worker, reason),
        )
        return self._finish(worker, Finished(outcome.record, leaves=True))

    # --- results that cannot be written

    def _keep(self, worker: Worker, reason: str) -> None:
        """Take note that the outcome of a cell cannot be written now; it is tried again."""
        worker.unwritten = True
        worker.taken_up = None
        self.disk.lacks_room(reason)

    def _tell_what_is_lost(self) -> None:
        """Say how many finished cells go with the workers that hold them."""
        waiting = [worker.assignment for worker in self.workers if worker.unwritten]
        lost = sum(len(assignment.cells) for assignment in waiting if assignment is not None)
        if lost:
            cells = "cell is" if lost == 1 else "cells are"
            self.tell(f"{lost} finished {cells} not stored and will have to run again.")
