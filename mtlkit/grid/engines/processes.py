"""The driver's side of worker processes: how they start and how they end.

Imports take seconds, many times what the rest of a small cell takes. So where the platform allows
it (Linux, and no GPU is used), one process imports everything once, and workers are forked from it.

Ctrl-C is for the driver alone: workers never see it, from their first moment on. The driver ends
them. Where the driver itself ignores Ctrl-C, as a background job of a shell does, nothing reacts.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from mtlkit.errors import MtlkitError
from mtlkit.grid.engines.worker import Assignment, work

MEMORY = {
    # PyTorch asks Linux for large pages: fewer misses in large tables
    "THP_MEM_ALLOC_ENABLE": "1",
    # what a step frees is kept for the next one, instead of being given back and cleared again
    "MALLOC_TRIM_THRESHOLD_": f"{2**28}",
    "MALLOC_MMAP_THRESHOLD_": f"{2**25}",
}
"""Environment of the workers: how they get memory. Numbers do not depend on it."""

GRACE = 2.0
"""Seconds that workers have to end by themselves or when asked to, before they are killed."""

CHECKPOINT_GRACE = 30.0  # the same, where they have checkpoints to write
STARTS = 3  # how often a worker is started before that counts as impossible
START_PAUSE = 0.2  # seconds: until the system says that the server is dead
LOST = 255  # the exit code of a forked worker whose end nobody saw, for the fork server is dead
PRELOAD = "mtlkit.grid.engines.preload"

FORKS = sys.platform == "linux"
"""Whether workers are forked: on macOS, system libraries that torch loads may not survive it."""

GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))


@dataclass
class Worker:
    """A process and the cell that it runs."""

    process: BaseProcess  # the process
    pipe: Connection  # the driver's end of the pipe to it
    assignment: Assignment | None = None  # the cell that it was given, until that is over
    # Monotonic time at which it said that it took up the cell; the start of the process does not
    # count, nor does the time in which a finished cell waits to be written.
    taken_up: float | None = None
    unwritten: bool = False  # whether its cell is finished and cannot be written
    leaves: bool = False  # whether it takes no further cell
    device: str = "cpu"  # where its cells run
    # Processes that train its cells along with it; they end after it.
    members: Sequence[Worker] = ()
    # The folder in which they find each other, which goes with the worker.
    meeting: TemporaryDirectory[str] | None = None

    def has_run_longer_than(self, limit: float) -> bool:
        return self.taken_up is not None and time.monotonic() - self.taken_up > limit

    def was_killed(self) -> bool:
        """Whether it was ended by a signal, as by a system that is short of memory."""
        code = self.process.exitcode
        return code is not None and (code < 0 or code == LOST)

    def describe_end(self) -> str:
        """How it ended, in words."""
        code = self.process.exitcode
        if code is None:
            return "fell silent"
        if code == LOST:
            return "was lost"
        if code >= 0:
            return f"ended with code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{hint}"


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
    os.environ["MTLKIT_DRIVER"] = str(os.getpid())  # the server ends where it has another parent
    multiprocessing.set_forkserver_preload([PRELOAD])
    with _interrupts_held():
        forkserver.ensure_running()


def start_worker(forked: bool, arguments: tuple[object, ...]) -> Worker:
    """A new process, which waits for a cell.

    Args:
        forked: Whether it is forked from the server; the start of another interpreter otherwise.
        arguments: Those of :func:`work` after the pipe.

    Raises:
        MtlkitError: The system does not allow it.
    """
    _set_memory()
    for _ in range(STARTS):
        # EOFError: the server died just now; the next attempt starts another
        try:
            return _start_forked(arguments) if forked else _start_spawned(arguments)
        except (EOFError, OSError) as error:
            last_error = error
            time.sleep(START_PAUSE)
    message = f"No process for a cell can be started: {last_error or type(last_error).__name__}."
    raise MtlkitError(message, "run the same command again with --jobs 1")


def _start_forked(arguments: tuple[object, ...]) -> Worker:
    # This may wait for the server. Interrupts are not held back here, so Ctrl-C ends the wait; a
    # worker that is left without a driver ends by itself.
    start_server()
    with _main_hidden():
        return _start_process(multiprocessing.get_context("forkserver"), arguments)


def _start_spawned(arguments: tuple[object, ...]) -> Worker:
    with _interrupts_held(), _main_hidden():
        return _start_process(multiprocessing.get_context("spawn"), arguments)


def _start_process(context: BaseContext, arguments: tuple[object, ...]) -> Worker:
    our_end, worker_end = context.Pipe()
    process: BaseProcess = context.Process(  # type: ignore[attr-defined]
        target=work, args=(worker_end, *arguments), daemon=True
    )
    try:
        process.start()
    finally:
        # closed here, so that the pipe ends when the worker does
        worker_end.close()
    return Worker(process, our_end)


def end_workers(workers: Sequence[Worker], grace: float = GRACE) -> None:
    """End workers, whatever they do. They get a moment for it; Ctrl-C cuts that short, and goes on
    to whoever called.

    An idle one ends by itself when its pipe is closed, and cleans up; one at work is stopped, and
    may write a checkpoint before it ends.
    """
    try:
        for worker in workers:
            if worker.assignment is None:
                worker.pipe.close()
            else:
                worker.process.terminate()
        deadline = time.monotonic() + grace
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
    finally:
        with _interrupts_held():
            for worker in workers:
                worker.pipe.close()
                _kill(worker)


def _kill(worker: Worker) -> None:
    """End a process for good, without waiting for what does not come."""
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join(GRACE)

    for member in worker.members:
        member.pipe.close()
        _kill(member)
    if worker.meeting is not None:
        worker.meeting.cleanup()

    # closes the last pipe to it, at whose end it dies even where the process that forked it is gone
    with suppress(ValueError):
        worker.process.close()


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _set_memory() -> None:
    """Set what processes read when they start, or import PyTorch, for those started after this."""
    for name, value in MEMORY.items():
        os.environ.setdefault(name, value)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until this is over, and a process that is started in here never sees it."""
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
