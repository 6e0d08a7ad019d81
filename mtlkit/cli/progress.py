"""Progress of a grid: a bar with the time left on a terminal, one line a cell elsewhere."""

from __future__ import annotations

import json as json_module
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

from mtlkit.cli.tables import say
from mtlkit.grid.running import RunningGrid
from mtlkit.records import Cell, RunRecord


class GridProgress:
    """Shows running cells and the whole grid.

    Attributes:
        rows: Key of a running cell to its row on the terminal.
    """

    def __init__(
        self, grid: RunningGrid, console: Console, quiet: bool = False, json: bool = False
    ) -> None:
        self.grid = grid
        self.console = console
        self.quiet = quiet or json
        self.json = json
        self.rows: dict[str, TaskID] = {}
        self.live = console.is_terminal and not self.quiet

        # elsewhere than on a terminal the bars are kept, but not shown
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.bars = Progress(*columns, console=console, transient=True, disable=not self.live)
        self.whole_grid = self.bars.add_task("all cells", total=grid.state.total, left="")

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
            state = self.grid.state
            self.console.print(
                f"{state.done} of {state.total} cells finished and kept; the same command goes on:"
                f"\n\n  {state.command}\n",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def warn(self, sentence: str) -> None:
        """Tell of trouble that the grid goes through."""
        say(self.bars.console, "warning", sentence)

    def advance(self, cell: Cell, share: float) -> None:
        """Take note that a cell is done to some share."""
        self.grid.advance(cell, share)
        if cell.key not in self.rows:
            self.rows[cell.key] = self.bars.add_task(cell.label, total=100, left="")
        self.bars.update(self.rows[cell.key], completed=round(100 * share))
        self._update()

    def finish(self, record: RunRecord) -> None:
        """Take note that a cell is over, and print its line."""
        self.grid.finish(record)
        row = self.rows.pop(record.key, None)
        if row is not None:
            self.bars.remove_task(row)
        self._update()
        if self.json:
            print(json_module.dumps(_as_plain(record), allow_nan=False), flush=True)
        if self.quiet and record.ok:
            return

        total = self.grid.state.total
        line = Text(f"[{self.grid.state.done:>{len(str(total))}}/{total}] ", style="dim")
        line.append(describe(record), style="" if record.ok else "red")
        if not self.live:
            line.append(f" {time_left(self.grid.seconds_left())}", style="dim")
        self.bars.console.print(line, soft_wrap=True, highlight=False)

    def _update(self) -> None:
        left = time_left(self.grid.seconds_left())
        self.bars.update(self.whole_grid, completed=self.grid.state.done, left=left)


def time_left(seconds: float | None) -> str:
    """In words; nothing if nobody can tell."""
    if seconds is None:
        return ""
    if seconds >= 90:
        return f"about {seconds / 60:.0f} min left"
    return f"about {seconds:.0f} s left"


def _as_plain(record: RunRecord) -> dict[str, object]:
    """What a line of JSON says of a cell that is over."""
    return {
        "key": record.key,
        "model": record.cell.model,
        "balancer": record.cell.balancer,
        "seed": record.cell.seed,
        "status": record.status,
        "test": record.metrics.get("test", {}),
        "error": record.error.message if record.error else None,
    }


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
