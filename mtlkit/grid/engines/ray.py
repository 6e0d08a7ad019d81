"""Cells on a Ray cluster: each is a task of Ray, which places it, and repeats it elsewhere when its
node is lost.

On its node a cell runs as on a single machine, by a :class:`LocalEngine` with one slot. Where the
node sees the driver's results folder, the run is written there. Else its files come back through
Ray, and the driver writes them.
"""

from __future__ import annotations

import os
import signal
import socket
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtlkit.errors import MissingError, MtlkitError, UsageError, one_line
from mtlkit.grid.engines.disk_wait import DiskWait
from mtlkit.grid.engines.engine import Engine, Progress, Tell
from mtlkit.grid.engines.processes import available_cores
from mtlkit.grid.engines.ray_node import POLL, NewsBoard, NodeTask, run_on_node
from mtlkit.records import Cell, RunRecord
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore

LOST_NODES = 5  # how often a cell whose node was lost is run again
NEWS_SECONDS = 5.0  # how long the driver waits for news of running cells
OWN = "local"  # the address with which Ray starts a cluster, instead of joining an existing one
CONNECTION_SECONDS = 5


class RayEngine(Engine):
    """Runs cells as tasks of a Ray cluster.

    Attributes:
        address: Of the cluster; ``OWN`` for one that is started.
        marks_results: Whether nodes are told how to know the results folder, if they see it.

    Raises:
        UsageError: A certain GPU is asked for.
        MissingError: Ray is not installed.
    """

    def __init__(self, store: ResultStore, home: Path, execution: ExecutionSettings) -> None:
        if execution.device not in ("auto", "cpu", "cuda"):
            raise UsageError(
                f"Ray chooses the GPU of a cell, so --device cannot be {execution.device}.",
                "mtlkit bench --engine ray --gpus-per-cell 0.5",
            )
        super().__init__(store, home, execution)
        self.marks_results = True
        self.address = execution.address or os.environ.get("RAY_ADDRESS") or OWN
        self.ray = _import_ray(self.address)

    def run(
        self,
        cells: Sequence[Cell],
        progress: Progress = lambda cell, share: None,
        tell: Tell = warnings.warn,
    ) -> Iterator[RunRecord]:
        """Run cells and yield their records as they finish, in no particular order.

        Raises:
            MissingError: There is no cluster, none of its nodes can run cells, or results cannot be
                written for longer than the settings allow.
        """
        if not cells:
            return
        with _connected(self.ray, self.address), self._marked_results() as mark:
            board = self._start_board()
            gpus = self._gpus()
            submit = self._remote_function(gpus)
            waiting = deque(cells)
            running = _Running(self.ray, board, progress, tell)
            try:
                while (waiting and not self.stopping) or running.tasks:
                    limit = self.execution.jobs or len(cells)
                    while waiting and len(running.tasks) < limit and not self.stopping:
                        cell = waiting.popleft()
                        running.tasks[submit(self._task(cell, mark, gpus), board)] = cell
                    for task in running.wait(self.stopping):
                        record = self._outcome(task, running.tasks.pop(task), tell)
                        if record is not None:
                            yield record
            finally:
                running.cancel(running.tasks)

    # --- what a task is given

    def _gpus(self) -> float:
        """The share of a GPU that a cell takes: as asked for, else a slot of one, if any."""
        if self.execution.device == "cpu":
            return 0.0
        if self.execution.gpus_per_cell is not None:
            return self.execution.gpus_per_cell
        has_gpus = self.ray.cluster_resources().get("GPU", 0) > 0
        on_gpu = has_gpus or self.execution.device == "cuda"
        return 1 / self.execution.slots_per_gpu if on_gpu else 0.0

    def _remote_function(self, gpus: float) -> Callable[..., Any]:
        """Submits a task to Ray; a :class:`MissingError` where it would wait forever, for no node
        has so many cores and GPUs.
        """
        cores = self.execution.threads
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= cores and node.get("GPU", 0) >= gpus for node in nodes):
            raise MissingError(
                f"No node of the Ray cluster has {cores} cores and {gpus:g} GPUs for a cell.",
                "mtlkit bench --engine ray --device cpu --set threads=1",
            )
        options = {"num_cpus": cores, "num_gpus": gpus, "max_retries": LOST_NODES}
        return self.ray.remote(**options)(run_on_node).remote

    def _task(self, cell: Cell, mark: str, gpus: float) -> NodeTask:
        own = {"engine": "local", "jobs": 1, "device": "cuda" if gpus > 0 else "cpu"}
        plugins = [name for name in cell.plugin_files if Path(name).is_file()]
        return NodeTask(
            cell=cell,
            here=Path.cwd(),
            results=self.store.root.absolute(),
            mark=mark,
            home=self.home.absolute(),
            execution=self.execution.model_copy(update=own),
            plugins={name: Path(name).read_bytes() for name in plugins},
        )

    def _start_board(self) -> Any:
        """The board, on the node of the driver: it lives as long as that does.

        With a soft affinity Ray places it on another node at times, and it is lost with that one.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = self.ray.get_runtime_context().get_node_id()
        strategy = NodeAffinitySchedulingStrategy(here, soft=False)
        actor = self.ray.remote(num_cpus=0, scheduling_strategy=strategy)(NewsBoard)
        return actor.remote(self.store.root.absolute())

    @contextmanager
    def _marked_results(self) -> Iterator[str]:
        """A file in the results folder, by which a node knows that it sees the same one."""
        mark = self.store.root / f".shared-{uuid.uuid4().hex}"
        if self.marks_results:
            mark.touch()
        try:
            yield mark.name
        finally:
            mark.unlink(missing_ok=True)

    # --- what comes of it

    def _outcome(self, task: Any, cell: Cell, tell: Tell) -> RunRecord | None:
        """The record of a task that has ended, once it is stored; None if it was not started."""
        from ray.exceptions import RayError, RayTaskError, TaskCancelledError

        try:
            record, files = self.ray.get(task)
        except TaskCancelledError:
            return None
        except RayTaskError as error:
            raise _as_grid_error(error) from error
        except RayError as error:
            return self._store_loss(cell, error, tell)
        if files is not None:
            self._write(lambda: self.store.adopt(record, files), tell)
        return record

    def _store_loss(self, cell: Cell, error: Exception, tell: Tell) -> RunRecord:
        """Record that a cell was lost more often than it is run again."""
        from mtlkit.grid.run_cell import failure

        message = f"Ray lost the process of this cell {LOST_NODES + 1} times: {one_line(error)}"
        outcome = failure(cell, type("WorkerDied", (RuntimeError,), {})(message))
        self._write(lambda: self.store.save(outcome.record, log=outcome.log), tell)
        return outcome.record

    def _write(self, write: Callable[[], object], tell: Tell) -> None:
        """Write to the results folder, as often as it takes while the settings allow it."""
        DiskWait(self.store.root, self.execution.disk_wait, tell).write(write)


@dataclass
class _Running:
    """Tasks that were submitted, and what is known of them."""

    ray: Any
    board: Any
    progress: Progress
    tell: Tell
    tasks: dict[Any, Cell] = field(default_factory=dict)  # reference of a task to its cell
    started: set[str] = field(default_factory=set)  # keys of the cells that a node has taken up

    def wait(self, stopping: bool) -> list[Any]:
        """Tasks that have ended, after a moment at the latest; news are shown."""
        ended, _ = self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=0)
        self._show_news()
        if not ended:
            # not inside Ray, which does not listen to Ctrl-C
            time.sleep(POLL)
        if stopping:
            started = self.started
            self.cancel([task for task, cell in self.tasks.items() if cell.key not in started])
        return ended

    def cancel(self, tasks: Any) -> None:
        for task in list(tasks):
            with suppress(Exception):  # the cluster may be gone
                self.ray.cancel(task, force=True)

    def _show_news(self) -> None:
        from ray.exceptions import RayError

        try:
            all_news = self.ray.get(self.board.take.remote(), timeout=NEWS_SECONDS)
        except RayError:  # numbers are more important than news of them
            return
        cells = {cell.key: cell for cell in self.tasks.values()}
        for news in all_news:
            if isinstance(news, str):
                self.tell(news)
                continue
            key, share = news
            if key not in cells:
                continue
            if share == 0 and key in self.started:
                self.tell(f"The node of {cells[key].label} was lost. The cell runs again.")
            self.started.add(key)
            self.progress(cells[key], share)


def _as_grid_error(error: Any) -> MtlkitError:
    """What a node raised; no cell is to blame, so the grid ends with it."""
    if isinstance(error.cause, MtlkitError):
        return error.cause
    return MissingError(
        f"A node of the Ray cluster cannot run cells: {one_line(error.cause)}.",
        "install the same mtlkit on all nodes, and run the same command again",
    )


# --- the cluster


def _import_ray(address: str) -> Any:
    """The package, told to keep to this machine where it starts a cluster of its own; a
    :class:`MissingError` if it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address == OWN:
        # the name is Ray's: with 0, it binds to the loopback address alone
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError:
        message = "The engine ray needs the package ray, which is not installed."
        raise MissingError(message, "pip install 'mtlkit[ray]'") from None
    return ray


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Be a driver of a cluster, or raise a :class:`MissingError`. Signals stay the affair of the
    command.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address == OWN:
        options |= {"num_cpus": available_cores(), "include_dashboard": False}

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _check_answers(address)
        ray.init(**options)
        _keep_quiet()
    except (OSError, RuntimeError, ValueError) as error:
        message = f"No Ray cluster can be used at {address}: {one_line(error)}."
        hint = "ray start --head, or leave --address out: then Ray runs on this machine"
        raise MissingError(message, hint) from error
    finally:
        for number, handler in before.items():
            with suppress(ValueError):  # in a thread that is not the main one
                signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _keep_quiet() -> None:
    """Keep Ray from printing what its nodes log, page by page: what matters is told by us."""
    with suppress(ImportError, AttributeError, KeyError):  # it is no public function
        from ray._private.ray_logging import global_worker_stdstream_dispatcher

        global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")


def _check_answers(address: str) -> None:
    """Raise an :class:`OSError` unless somebody listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), CONNECTION_SECONDS).close()
