"""Progress of downloads: bars on a terminal, else one line a download; all of it on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mtlkit.data.datasets._source import Progress as ProgressCallback

COUNTED_IN_ROWS = ("counting", "writing", "simulating")
"""Activities whose total is a number of rows, not of bytes."""


@contextmanager
def show_downloads() -> Iterator[ProgressCallback]:
    """A progress callback for :func:`mtlkit.data.sources.prepare`, which shows what it is told."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line_printer()
        return

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        rows: dict[str, TaskID] = {}

        def show_bar(what: str, done: int, total: int | None) -> None:
            if what not in rows:
                rows[what] = bars.add_task(_activity(what), total=total)
            bars.update(rows[what], completed=done, total=total)

        yield show_bar


def _line_printer() -> ProgressCallback:
    """Prints a line when an activity is first heard of."""
    announced: set[str] = set()

    def print_line(what: str, done: int, total: int | None) -> None:
        if what in announced:
            return
        announced.add(what)
        is_bytes = total and not what.startswith(COUNTED_IN_ROWS)
        size = f" ({total / 1e6:.1f} MB)" if total and is_bytes else ""
        print(f"{_activity(what)}{size}", file=sys.stderr, flush=True)

    return print_line


def _activity(what: str) -> str:
    """What is going on; a name alone is the name of a file that is fetched."""
    names_itself = what.startswith(("preparing", *COUNTED_IN_ROWS))
    return what if names_itself else f"fetching {what}"
