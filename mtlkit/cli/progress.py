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
        console: Where to talk.
    """

    def __init__(self, total: int, console: Console) -> None:
        self.total, self.console = total, console
        self.done = 0
        self.shares: dict[str, float] = {}
        self.rows: dict[str, TaskID] = {}
        self.began = time.monotonic()
        self.live = console.is_terminal
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.bars = Progress(*columns, console=console, transient=True, disable=not self.live)
        self.whole = self.bars.add_task("all cells", total=total, left="")

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
        if kind is KeyboardInterrupt:
            self.console.print(
                f"{self.done} of {self.total} cells finished and kept; the same command goes on."
            )

    def advance(self, cell: Cell, share: float) -> None:
        """Take note that a cell is done to some share."""
        self.shares[cell.key] = share
        if cell.key not in self.rows:
            self.rows[cell.key] = self.bars.add_task(cell.label, total=100, left="")
        self.bars.update(self.rows[cell.key], completed=round(100 * share))
        self._update()

    def finish(self, record: RunRecord) -> None:
        """Take note that a cell is over, and print its line."""
        from mtlkit.cli.bench import describe

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
            line.append(f" {self._left()}", style="dim")
        self.bars.console.print(line, soft_wrap=True, highlight=False)

    def _update(self) -> None:
        self.bars.update(self.whole, completed=self.done, left=self._left())

    def _left(self) -> str:
        """The time left, judged by the work done so far."""
        work = self.done + sum(self.shares.values())
        elapsed = time.monotonic() - self.began
        if work < 0.1 or self.done == self.total:
            return ""
        seconds = elapsed / work * (self.total - work)
        return (
            f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"
        )
