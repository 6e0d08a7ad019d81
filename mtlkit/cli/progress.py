"""Progress of a grid: a bar with the time left on a terminal, one line a cell elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from mtlkit.records import Cell, RunRecord


class GridProgress:
    """Shows running cells and the whole grid.

    Args:
        total: Number of cells to run.
        console: Where to print.
        command: What was typed; typed again, it goes on.

    Attributes:
        done: Number of cells that are over.
        shares: Key of a running cell to the share of it that is done.
        rows: Key of a running cell to its row on the terminal.
    """

    def __init__(self, total: int, console: Console, command: str) -> None:
        self.total = total
        self.console = console
        self.command = command
        self.done = 0
        self.shares: dict[str, float] = {}
        self.rows: dict[str, TaskID] = {}
        self.began = time.monotonic()
        self.live = console.is_terminal

        # elsewhere than on a terminal the bars are kept, but not shown
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.bars = Progress(*columns, console=console, transient=True, disable=not self.live)
        self.whole_grid = self.bars.add_task("all cells", total=total, left="")

    def __enter__(self) -> GridProgress:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()
        if kind is not None:
            self.console.print(
                f"{self.done} of {self.total} cells finished and kept; the same command goes on:"
                f"\n\n  {self.command}\n",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def warn(self, sentence: str) -> None:
        """Tell of trouble that the grid goes through."""
        line = Text.assemble(("warning", "yellow"), f" {sentence}")
        self.bars.console.print(line, soft_wrap=True, highlight=False)

    def advance(self, cell: Cell, share: float) -> None:
        """Take note that a cell is done to some share."""
        self.shares[cell.key] = share
        if cell.key not in self.rows:
            self.rows[cell.key] = self.bars.add_task(cell.label, total=100, left="")
        self.bars.update(self.rows[cell.key], completed=round(100 * share))
        self._update()

    def finish(self, record: RunRecord) -> None:
        """Take note that a cell is over, and print its line."""
        self.shares.pop(record.key, None)
        row = self.rows.pop(record.key, None)
        if row is not None:
            self.bars.remove_task(row)
        self.done += 1
        self._update()

        width = len(str(self.total))
        line = Text(f"[{self.done:>{width}}/{self.total}] ", style="dim")
        line.append(describe(record), style="" if record.ok else "red")
        if not self.live:
            line.append(f" {self._time_left()}", style="dim")
        self.bars.console.print(line, soft_wrap=True, highlight=False)

    def _update(self) -> None:
        self.bars.update(self.whole_grid, completed=self.done, left=self._time_left())

    def _time_left(self) -> str:
        """The time left, judged by the work done so far."""
        work = self.done + sum(self.shares.values())
        if work < 0.1 or self.done == self.total:
            return ""
        elapsed = time.monotonic() - self.began
        seconds = elapsed / work * (self.total - work)
        if seconds >= 90:
            return f"about {seconds / 60:.0f} min left"
        return f"about {seconds:.0f} s left"


def describe(record: RunRecord) -> str:
    """One line about a finished cell: the primary metrics on test, or why there are none."""
    label, error = record.cell.label, record.error
    if error is not None:
        step = f" at step {error.step}" if error.step is not None else ""
        return f"{label}: {record.status}{step}: {error.message}"

    scores = []
    for task in record.tasks:
        name = task.get("label") or task["name"]
        value = record.metrics["test"][task["name"]].get(task["metric"])
        scores.append(f"{name} {'NA' if value is None else f'{value:.4f}'}")
    return f"{label}: {', '.join(scores)} ({record.timing['total_seconds']:.0f} s)"
