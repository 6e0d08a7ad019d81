"""What a running grid says of itself: a small file in its results folder, for other terminals."""

from __future__ import annotations

import os
import platform
import time
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ValidationError

from mtlkit.records import Cell, RunRecord
from mtlkit.store import is_running

NAMES = ".grid-*.json"
WRITE_EVERY = 1.0  # seconds between two versions of the file, unless a cell has ended
SILENCE = 600.0  # seconds without news after which a grid on another machine counts as dead
LARGEST = 2**22  # bytes of the largest file that is read


class RunningCell(BaseModel):
    """A cell that runs, and the share of it that is done."""

    label: str
    share: float


class GridState(BaseModel):
    """What the file holds; times are seconds since 1970."""

    host: str  # name of the machine
    pid: int  # of the driver
    command: str  # what was typed
    total: int  # number of cells to run
    done: int = 0  # number of them that are over
    failed: int = 0  # number of those without numbers
    running: dict[str, RunningCell] = {}  # by key
    began: float
    updated: float  # when this was written

    def seconds_left(self, now: float) -> float | None:
        """The time left, judged by the work done so far; None if nobody can tell."""
        work = self.done + sum(cell.share for cell in self.running.values())
        if work < 0.1 or self.done == self.total:
            return None
        left = (self.updated - self.began) / work * (self.total - work)
        return max(0.0, left - (now - self.updated))

    def is_alive(self) -> bool:
        if self.host == platform.node():
            return is_running(self.pid)
        return time.time() - self.updated < SILENCE


class RunningGrid:
    """Counts what becomes of the cells of a grid, and keeps its file as long as it runs.

    Attributes:
        state: What the file says.
    """

    def __init__(self, root: Path, command: str, total: int) -> None:
        now = time.time()
        host, pid = platform.node(), os.getpid()
        self.file = root / f".grid-{host}-{pid}.json"
        self.state = GridState(
            host=host, pid=pid, command=command, total=total, began=now, updated=now
        )

    def __enter__(self) -> RunningGrid:
        _sweep(self.file.parent)
        self._write()
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):
            self.file.unlink(missing_ok=True)

    def advance(self, cell: Cell, share: float) -> None:
        """Take note that a cell is done to some share."""
        self.state.running[cell.key] = RunningCell(label=cell.label, share=share)
        if time.time() - self.state.updated >= WRITE_EVERY:
            self._write()

    def finish(self, record: RunRecord) -> None:
        """Take note that a cell is over."""
        self.state.running.pop(record.key, None)
        self.state.done += 1
        self.state.failed += not record.ok
        self._write()

    def seconds_left(self) -> float | None:
        self.state.updated = time.time()
        return self.state.seconds_left(self.state.updated)

    def _write(self) -> None:
        """Write the file; where there is no room for it, nobody looks at it either."""
        self.state.updated = time.time()
        partial = self.file.with_suffix(".new")
        with suppress(OSError):
            partial.write_text(self.state.model_dump_json(), encoding="utf-8")
            partial.replace(self.file)


def running_grids(root: Path) -> list[GridState]:
    """The grids that write to a results folder now, the oldest first."""
    states = [state for state in map(_read, root.glob(NAMES)) if state and state.is_alive()]
    return sorted(states, key=lambda state: state.began)


def _read(file: Path) -> GridState | None:
    try:
        if not file.is_file() or file.stat().st_size > LARGEST:
            return None
        return GridState.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


def _sweep(root: Path) -> None:
    """Remove the files of grids that are dead."""
    for file in root.glob(NAMES):
        state = _read(file)
        if state is None or not state.is_alive():
            with suppress(OSError):
                file.unlink()
