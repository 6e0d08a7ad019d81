"""Cells on this machine: a pool of processes, one cell at a time in each.

A worker stores what it finishes, so nothing is lost when the pool dies. A worker that dies takes
down its own cell
only: that cell is recorded as failed, and another worker takes its place.

Imports take seconds, many times what the rest of a small cell takes. So where the platform allows
it (Linux, and no GPU is used), one process imports everything once, and workers are forked from it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from mtlkit.records import Cell, RunRecord
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore

Progress = Callable[[Cell, float], None]
"""Called with a cell and the share of it that is done; 0 when it starts."""

MEMORY = {  # how workers get memory; numbers do not depend on it
    "THP_MEM_ALLOC_ENABLE": "1",  # PyTorch asks Linux for large pages: fewer misses in large tables
    # what a step frees is kept for the next one, instead of being given back and cleared again
    "MALLOC_TRIM_THRESHOLD_": f"{2**28}",
    "MALLOC_MMAP_THRESHOLD_": f"{2**25}",
}
GRACE = 2.0  # seconds in which an idle worker may end by itself
PRELOAD = "mtlkit.grid.engines.preload"
FORKS = (
    sys.platform == "linux"
)  # on macOS system libraries that torch has loaded may not survive a fork
GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    cell: Cell | None = None
    since: float | None = None  # when it took up the cell; its own start does not count


class LocalEngine:
    """Runs cells in processes of their own.

    Args:
        store: Where outcomes go.
        home: The data home.
        execution: Device, number of jobs, time limit.
    """

    def __init__(self, store: ResultStore, home: Path, execution: ExecutionSettings) -> None:
        self.store, self.home, self.execution = store, home, execution

    def jobs(self, cells: int) -> int:
        """Cells at a time: as asked, else one a core on the CPU and one on a GPU."""
        default = max(1, available_cores() // self.execution.threads) if self._on_cpu() else 1
        return max(1, min(self.execution.jobs or default, cells))

    def _on_cpu(self) -> bool:
        from mtlkit.grid.run_cell import resolve_device

        return resolve_device(self.execution.device).type == "cpu"

    def run(
        self, cells: Sequence[Cell], progress: Progress = lambda cell, share: None
    ) -> Iterator[RunRecord]:
        """Run cells and yield their records as they finish, in no particular order.

        Stopping the iteration, or an interrupt, ends the workers; finished cells are in the store.
        """
        waiting = deque(cells)
        workers: list[_Worker] = []
        try:
            for _ in range(min(self.jobs(len(cells)), len(cells))):
                workers.append(self._start())
            for worker in workers:
                self._assign(worker, waiting, progress)
            while busy := [worker for worker in workers if worker.cell is not None]:
                ready = wait([worker.pipe for worker in busy], timeout=1.0)
                for worker in busy:
                    record = self._hear(worker, worker.pipe in ready, progress)
                    if record is None:
                        continue
                    yield record
                    if not worker.process.is_alive() and waiting:
                        replacement = self._start()
                        worker.process, worker.pipe = replacement.process, replacement.pipe
                    self._assign(worker, waiting, progress)
        finally:
            for worker in workers:
                _end(worker)

    def _start(self) -> _Worker:
        _set_memory()
        arguments = (self.store.root, self.home, self.execution)
        if FORKS and self._on_cpu():
            start_server()
            forking = multiprocessing.get_context("forkserver")
            ours, theirs = forking.Pipe()
            process: BaseProcess = forking.Process(
                target=_work, args=(theirs, *arguments), daemon=True
            )
            process.start()  # may wait for the server: here Ctrl-C counts, and a worker without a parent ends
        else:
            spawning = multiprocessing.get_context("spawn")
            ours, theirs = spawning.Pipe()
            process = spawning.Process(target=_work, args=(theirs, *arguments), daemon=True)
            with _interrupts_held():
                process.start()
        theirs.close()
        return _Worker(process, ours)

    def _assign(self, worker: _Worker, waiting: deque[Cell], progress: Progress) -> None:
        worker.cell = waiting.popleft() if waiting else None
        worker.since = None
        if worker.cell is not None:
            progress(worker.cell, 0.0)
            try:
                worker.pipe.send(worker.cell)
            except OSError:
                return  # it died; the next look at its pipe says so

    def _hear(self, worker: _Worker, ready: bool, progress: Progress) -> RunRecord | None:
        """What a worker has to say: the record of its cell once it is over, for better or worse."""
        cell, limit = worker.cell, self.execution.timeout
        assert cell is not None
        if ready:
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):
                worker.process.join()
                code = worker.process.exitcode or 0
                how = (
                    f"was killed by {signal.Signals(-code).name}"
                    if code < 0
                    else f"ended with code {code}"
                )
                hint = " (out of memory?)" if code == -signal.SIGKILL else ""
                return self._give_up(
                    cell, "WorkerDied", f"the process of this cell {how}{hint}", timeout=False
                )
            if isinstance(message, RunRecord):
                return message
            worker.since = worker.since or time.monotonic()
            progress(cell, message)
        if (
            limit is not None
            and worker.since is not None
            and time.monotonic() - worker.since > limit
        ):
            worker.process.kill()
            worker.process.join()
            return self._give_up(
                cell, "Timeout", f"the cell took longer than {limit:g} seconds", timeout=True
            )
        return None

    def _give_up(self, cell: Cell, kind: str, message: str, timeout: bool) -> RunRecord:
        from mtlkit.grid.run_cell import failure

        outcome = failure(
            cell,
            type(kind, (RuntimeError,), {})(message),
            status="timeout" if timeout else "failed",
        )
        self.store.save(outcome.record, log=outcome.log)
        return outcome.record


def start_early(device: str) -> None:
    """Have the imports of the workers begin, if it can be told already that they will be forked."""
    if device == "cpu" or (device == "auto" and not any(path.exists() for path in GPU_DRIVERS)):
        start_server()


def start_server() -> None:
    """Start the process that workers are forked from, unless it runs. It ends with the last of its
    users.
    """
    if not FORKS:
        return
    _set_memory()
    multiprocessing.set_forkserver_preload([PRELOAD])
    with _interrupts_held():
        forkserver.ensure_running()


def _set_memory() -> None:
    """Processes that are started after this inherit it; they read it when they start, or import
    PyTorch.
    """
    for name, value in MEMORY.items():
        os.environ.setdefault(name, value)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """A process that is started in here never sees Ctrl-C, from its first moment on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # first: to start it later would let interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(worker: _Worker) -> None:
    """Without a pipe, a worker that waits for a cell ends by itself, and cleans up; one at work is
    stopped.
    """
    try:
        worker.pipe.close()
    finally:
        if worker.cell is None:
            worker.process.join(GRACE)
        if worker.process.is_alive():
            worker.process.terminate()
        worker.process.join()


def _work(pipe: Connection, results: Path, home: Path, execution: ExecutionSettings) -> None:
    """The life of a worker: receive a cell, run it, store it, say so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    import torch

    from mtlkit.grid.run_cell import run_cell

    torch.set_num_threads(execution.threads)
    store = ResultStore(results)
    while True:
        try:
            cell = pipe.recv()
        except (EOFError, OSError):
            return
        _tell(pipe, 0.0)  # taken up: from now on its time counts
        outcome = run_cell(cell, home, execution, on_progress=lambda share: _tell(pipe, share))
        store.save(outcome.record, outcome.arrays, outcome.log)
        _tell(pipe, outcome.record)


def _tell(pipe: Connection, message: float | RunRecord) -> None:
    """Send to the parent; without one, end at once, so that a killed grid leaves no worker and no
    false failure.
    """
    try:
        pipe.send(message)
    except OSError:
        os._exit(1)
