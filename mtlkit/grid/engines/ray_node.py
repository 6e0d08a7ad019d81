"""What a node of a Ray cluster does with a cell, and what it tells the driver meanwhile."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlkit.data.data_home import data_home
from mtlkit.data.sources import prepare_planned
from mtlkit.errors import MissingError, UsageError
from mtlkit.files import replacing
from mtlkit.grid.engines.local import LocalEngine
from mtlkit.records import Cell, RunRecord
from mtlkit.settings import ExecutionSettings
from mtlkit.store import CHECKPOINT, ResultStore

POLL = 0.2  # seconds between two reports of a cell

News = tuple[str, float] | str
"""The key of a cell and the share of it that is done, or a sentence for the user."""


@dataclass(frozen=True)
class NodeTask:
    """What a node must know to run a cell."""

    cell: Cell  # the cell
    here: Path  # the driver's folder, from which paths of plugins start
    results: Path  # the driver's results folder
    mark: str  # name of a file in there: a node that sees it writes to that folder
    home: Path  # the driver's data home; a node may have another one, in ``$MTLKIT_DATA``
    execution: ExecutionSettings  # how to run it there
    plugins: dict[str, bytes]  # path of each plugin of the cell, as typed, to its content


class NewsBoard:
    """Where tasks leave what the driver shows, and checkpoints if their node does not see the
    results folder; an actor beside the driver.
    """

    def __init__(self, results: Path) -> None:
        self.store = ResultStore(results)
        self.news: list[News] = []

    def put(self, news: News) -> None:
        self.news.append(news)

    def take(self) -> list[News]:
        """All that came since the last time."""
        news, self.news = self.news, []
        return news

    def put_checkpoint(self, cell: Cell, content: bytes) -> None:
        file = self.store.folder(cell) / CHECKPOINT
        with suppress(OSError):  # where there is no room, the one before stays
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as handle:
                handle.write(content)

    def checkpoint(self, cell: Cell) -> bytes | None:
        """The last one, if there is any."""
        file = self.store.folder(cell) / CHECKPOINT
        return file.read_bytes() if file.is_file() else None


def run_on_node(task: NodeTask, board: Any) -> tuple[RunRecord, dict[str, bytes] | None]:
    """Run a cell on this node; returns its record, and the files of the run unless they are in the
    driver's folder by now.

    Raises:
        MtlkitError: This node cannot run any cell of this kind.
    """
    import ray

    board.put.remote((task.cell.key, 0.0))
    shares_disk = (task.results / task.mark).exists()
    with _folder_with(task), tempfile.TemporaryDirectory(prefix="mtlkit-") as scratch:
        home = data_home(None if "MTLKIT_DATA" in os.environ else task.home)
        _check_data(task.cell, home)

        # where another node was lost, its last checkpoint is with the driver
        store = ResultStore(task.results if shares_disk else Path(scratch))
        checkpoint = store.folder(task.cell) / CHECKPOINT
        reporter = _Reporter(board, None if shares_disk else checkpoint)
        content = None if shares_disk else ray.get(board.checkpoint.remote(task.cell))
        if content is not None:
            checkpoint.parent.mkdir(parents=True)
            checkpoint.write_bytes(content)

        engine = LocalEngine(store, home, task.execution)
        record = next(iter(engine.run([task.cell], reporter, board.put.remote)))
        return record, None if shares_disk else store.files(store.folder(record.cell))


class _Reporter:
    """Puts shares on the board, once in a while, and new versions of a checkpoint that is named."""

    def __init__(self, board: Any, checkpoint: Path | None) -> None:
        self.board = board
        self.checkpoint = checkpoint
        self.last = time.monotonic()
        self.sent = 0

    def __call__(self, cell: Cell, share: float) -> None:
        import ray

        if share == 0 or time.monotonic() - self.last < POLL:
            return
        self.last = time.monotonic()
        self.board.put.remote((cell.key, share))
        if self.checkpoint is None:
            return
        with suppress(FileNotFoundError):  # there is none yet, or the cell has just ended
            written = self.checkpoint.stat().st_mtime_ns
            if written != self.sent:
                ray.get(self.board.put_checkpoint.remote(cell, self.checkpoint.read_bytes()))
                self.sent = written


def _check_data(cell: Cell, home: Path) -> None:
    """Raise a :class:`MtlkitError` unless the node has the data that the driver planned with; it
    prepares them where they lack.
    """
    planned = cell.resolved["dataset"]
    dataset = prepare_planned(planned["name"], planned["options"], home)
    if dataset.fingerprint != planned["fingerprint"]:
        raise MissingError(
            f"The prepared data of {cell.dataset} in {home} on {socket.gethostname()} are others "
            "than those of the driver.",
            "give all nodes the same data, or a data home of their own in the variable MTLKIT_DATA",
        )


@contextmanager
def _folder_with(task: NodeTask) -> Iterator[None]:
    """Be in a folder where the plugins of a cell have the paths that were typed: the driver's, if
    this node sees it, else one of our own.

    Raises:
        UsageError: A plugin is not here, and its path leads out of the driver's folder.
    """
    if task.here.is_dir():
        with chdir(task.here):
            if all(_holds(name, content) for name, content in task.plugins.items()):
                yield
                return
    with tempfile.TemporaryDirectory(prefix="mtlkit-") as folder, chdir(folder):
        for name, content in task.plugins.items():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise UsageError(
                    f"The plugin {name} is not on the node {socket.gethostname()}.",
                    "start mtlkit in the folder of the plugin, and give its name",
                )
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(content)
        yield


def _holds(name: str, content: bytes) -> bool:
    return Path(name).is_file() and Path(name).read_bytes() == content
