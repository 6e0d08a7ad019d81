"""Cells on this machine: a pool of processes, one cell at a time in each.

A worker stores what it finishes, so nothing is lost when the pool dies. A worker that dies takes
down its own cell only: that cell is recorded as failed, and another worker takes its place.

Imports take seconds, many times what the rest of a small cell takes. So where the platform allows
it (Linux, and no GPU is used), one process imports everything once, and workers are forked from it.

Ctrl-C is for the parent alone: workers never see it, from their first moment on. The parent ends
them. Where the parent itself ignores Ctrl-C, as a background job of a shell does, nothing reacts.
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
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

from mtlkit.records import Cell, RunRecord
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore

Progress = Callable[[Cell, float], None]
"""Called with a cell and the share of it that is done; 0 when it starts."""

MEMORY = {
    # PyTorch asks Linux for large pages: fewer misses in large tables
    "THP_MEM_ALLOC_ENABLE": "1",
    # what a step frees is kept for the next one, instead of being given back and cleared again
    "MALLOC_TRIM_THRESHOLD_": f"{2**28}",
    "MALLOC_MMAP_THRESHOLD_": f"{2**25}",
}
"""Environment of the workers: how they get memory. Numbers do not depend on it."""

GRACE = 2.0
"""Seconds in which an idle worker may end by itself."""

POLL = 1.0
"""Seconds after which workers are looked at that have sent nothing, for the time limit."""

PRELOAD = "mtlkit.grid.engines.preload"

FORKS = sys.platform == "linux"
"""Whether workers are forked: on macOS, system libraries that torch loads may not survive it."""

GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))


@dataclass
class _Worker:
    """A process and the cell that it runs.

    Args:
        process: The process.
        pipe: Our end of the pipe to it.
        cell: What it was given, until that is over.
        taken_up: Monotonic time at which it said that it took up the cell; the start of the process
            does not count.
    """

    process: BaseProcess
    pipe: Connection
    cell: Cell | None = None
    taken_up: float | None = None

    def has_run_longer_than(self, limit: float | None) -> bool:
        if limit is None or self.taken_up is None:
            return False
        return time.monotonic() - self.taken_up > limit


class LocalEngine:
    """Runs cells in processes of their own.

    Args:
        store: Where outcomes go.
        home: The data home.
        execution: Device, number of jobs, time limit.
    """

    def __init__(self, store: ResultStore, home: Path, execution: ExecutionSettings) -> None:
        self.store = store
        self.home = home
        self.execution = execution

    def jobs(self, cells: int) -> int:
        """Cells at a time: as asked, else one a core on the CPU and one on a GPU."""
        default = max(1, available_cores() // self.execution.threads) if self._on_cpu() else 1
        return max(1, min(self.execution.jobs or default, cells))

    def _on_cpu(self) -> bool:
        from mtlkit.grid.machine import resolve_device

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
            # all processes start before the first of them is waited for
            for _ in range(min(self.jobs(len(cells)), len(cells))):
                workers.append(self._start())
            for worker in workers:
                self._assign(worker, waiting, progress)

            while busy := [worker for worker in workers if worker.cell is not None]:
                ready = wait([worker.pipe for worker in busy], timeout=POLL)
                for worker in busy:
                    record = self._listen(worker, worker.pipe in ready, progress)
                    if record is None:
                        continue
                    yield record

                    # a worker that died with its cell is replaced while there is work
                    if not worker.process.is_alive() and waiting:
                        replacement = self._start()
                        worker.process, worker.pipe = replacement.process, replacement.pipe
                    self._assign(worker, waiting, progress)
        finally:
            for worker in workers:
                _end(worker)

    def _start(self) -> _Worker:
        """A new process, which waits for a cell."""
        _set_memory()
        arguments = (self.store.root, self.home, self.execution)
        if FORKS and self._on_cpu():
            # This may wait for the server. Interrupts are not held back here, so Ctrl-C ends the
            # wait; a worker that is left without a parent ends by itself.
            start_server()
            context: BaseContext = multiprocessing.get_context("forkserver")
            with _main_hidden():
                return _start_process(context, arguments)
        context = multiprocessing.get_context("spawn")
        with _interrupts_held(), _main_hidden():
            return _start_process(context, arguments)

    def _assign(self, worker: _Worker, waiting: deque[Cell], progress: Progress) -> None:
        """Give a worker the next cell, if there is one."""
        worker.cell = waiting.popleft() if waiting else None
        worker.taken_up = None
        if worker.cell is None:
            return
        progress(worker.cell, 0.0)
        try:
            worker.pipe.send(worker.cell)
        except OSError:
            return  # it died; the next look at its pipe says so

    def _listen(self, worker: _Worker, ready: bool, progress: Progress) -> RunRecord | None:
        """The record of a worker's cell, once that is over, for better or worse; None before.

        Args:
            worker: A worker with a cell.
            ready: Whether its pipe holds a message, or is closed.
            progress: Told what the worker reports.
        """
        cell = worker.cell
        assert cell is not None
        if ready:
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):
                worker.process.join()
                reason = f"the process of this cell {_describe_end(worker.process)}"
                return self._give_up(cell, "WorkerDied", reason, timeout=False)
            if isinstance(message, RunRecord):
                return message

            # the first report says that the worker took up the cell: from now on its time counts
            worker.taken_up = worker.taken_up or time.monotonic()
            progress(cell, message)

        limit = self.execution.timeout
        if worker.has_run_longer_than(limit):
            worker.process.kill()
            worker.process.join()
            reason = f"the cell took longer than {limit:g} seconds"
            return self._give_up(cell, "Timeout", reason, timeout=True)
        return None

    def _give_up(self, cell: Cell, error_type: str, message: str, timeout: bool) -> RunRecord:
        """Record that a cell gave no numbers for a reason outside of it."""
        from mtlkit.grid.run_cell import failure

        error = type(error_type, (RuntimeError,), {})(message)
        outcome = failure(cell, error, status="timeout" if timeout else "failed")
        self.store.save(outcome.record, log=outcome.log)
        return outcome.record


# --- the driver's side of a worker


def start_early(device: str) -> None:
    """Have the imports of the workers begin, if it can be told already that they will be forked."""
    if device == "cpu" or (device == "auto" and not any(path.exists() for path in GPU_DRIVERS)):
        start_server()


def start_server() -> None:
    """Start the process that workers are forked from, unless it runs.

    It ends with the last of its users.
    """
    if not FORKS:
        return
    _set_memory()
    multiprocessing.set_forkserver_preload([PRELOAD])
    with _interrupts_held():
        forkserver.ensure_running()


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _set_memory() -> None:
    """Set what processes read when they start, or import PyTorch, for those started after this."""
    for name, value in MEMORY.items():
        os.environ.setdefault(name, value)


def _start_process(context: BaseContext, arguments: tuple[object, ...]) -> _Worker:
    our_end, worker_end = context.Pipe()
    process: BaseProcess = context.Process(  # type: ignore[attr-defined]
        target=_work, args=(worker_end, *arguments), daemon=True
    )
    process.start()

    # closed here, so that the pipe ends when the worker does
    worker_end.close()
    return _Worker(process, our_end)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """A process that is started in here never sees Ctrl-C, from its first moment on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return

    # multiprocessing starts it on first use, and would let interrupts through again
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _main_hidden() -> Iterator[None]:
    """A process that is started in here does not import the program that started it.

    Workers need nothing of it, and a script that starts a grid without asking whether it is the
    main module would start another one in each of them.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _describe_end(process: BaseProcess) -> str:
    """How a process ended, in words."""
    code = process.exitcode or 0
    if code >= 0:
        return f"ended with code {code}"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}"


def _end(worker: _Worker) -> None:
    """End a worker.

    An idle one ends by itself when its pipe is closed, and cleans up; one at work is stopped.
    """
    try:
        worker.pipe.close()
    finally:
        if worker.cell is None:
            worker.process.join(GRACE)
        if worker.process.is_alive():
            worker.process.terminate()
        worker.process.join()


# --- the worker


def _work(pipe: Connection, results: Path, home: Path, execution: ExecutionSettings) -> None:
    """The life of a worker: receive a cell, run it, store it, send its record."""
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
        _report(pipe, 0.0)  # taken up: from now on its time counts
        outcome = run_cell(cell, home, execution, on_progress=lambda share: _report(pipe, share))
        store.save(outcome.record, outcome.arrays, outcome.log)
        _report(pipe, outcome.record)


def _report(pipe: Connection, message: float | RunRecord) -> None:
    """Send to the parent.

    Without a parent the worker ends at once, so that a killed grid leaves no process and no false
    failure.
    """
    try:
        pipe.send(message)
    except OSError:
        os._exit(1)
