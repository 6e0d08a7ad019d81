"""Run the cells of a plan on a terminal: progress, Ctrl-C, and the table of results."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from mtlkit.grid.engines.engine import Engine
    from mtlkit.grid.plan import Plan
    from mtlkit.store import ResultStore


def run_cells(
    plan: Plan, engine: Engine, store: ResultStore, console: Console, quiet: bool, json: bool
) -> int:
    """Run what is left to run; return how many cells of the plan have failed, now or earlier."""
    from mtlkit.cli.progress import GridProgress
    from mtlkit.grid.running import RunningGrid, running_grids

    failed = sum(planned.state == "failed before" for planned in plan.cells)
    if not plan.to_run:
        return failed
    store.make()
    command = shlex.join(["mtlkit", *sys.argv[1:]])
    others = running_grids(store.root)
    grid = RunningGrid(store.root, command, len(plan.to_run))
    with grid, GridProgress(grid, console, quiet, json) as progress:
        if others:
            progress.warn(
                f"Another grid is writing to {store.root} ({others[0].command}). Cells that both "
                "have may run twice; each is kept once."
            )
        with _finishing_first(engine, progress.warn) as interrupted:
            for record in engine.run(plan.to_run, progress.advance, progress.warn):
                progress.finish(record)
                failed += not record.ok
        if interrupted:
            raise KeyboardInterrupt
    return failed


@contextmanager
def _finishing_first(engine: Engine, warn: Callable[[str], None]) -> Iterator[list[int]]:
    """In here the first Ctrl-C only keeps further cells from starting; the next one stops all.
    Yields the signals that were taken so.
    """
    before = signal.getsignal(signal.SIGINT)
    taken: list[int] = []

    def finish_first(number: int, frame: FrameType | None) -> None:
        taken.append(number)
        signal.signal(signal.SIGINT, before)
        engine.finish_running()
        # in a thread of its own, for the signal may have come in the midst of printing
        sentence = "No further cell starts; those that run are finished. Ctrl-C again stops them."
        threading.Thread(target=warn, args=(sentence,), daemon=True).start()

    # what ignores Ctrl-C, as a background job of a shell does, goes on ignoring it
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield taken
        return
    signal.signal(signal.SIGINT, finish_first)
    try:
        yield taken
    finally:
        signal.signal(signal.SIGINT, before)


def print_results(plan: Plan, out: Path, messages: Console) -> None:
    """The table of results on stdout; what to type next on stderr."""
    from rich.console import Console

    from mtlkit.cli.results import results_table
    from mtlkit.cli.tables import print_command

    groups = {planned.cell.group for planned in plan.cells}
    console = Console()
    console.print(results_table(out, groups, console.width), crop=False)
    messages.print("Next:\n")
    print_command(["mtlkit", "report", str(out)], messages)
