"""``mtlkit status``: what a grid is doing, seen from another terminal."""

from __future__ import annotations

import json as json_module
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtlkit.errors import MissingError

if TYPE_CHECKING:
    from mtlkit.grid.running import GridState

LOOK_EVERY = 2.0  # seconds between two looks of ``--watch``
MANY_FAILURES = 20  # of more failures than these only the number is told


@dataclass(frozen=True)
class StatusView:
    """What there is in a results folder, and who works on it."""

    done: int  # number of finished runs
    failed: int  # number of runs without numbers
    running: dict[str, float]  # label of each running cell to the share of it that is done
    to_run: int  # number of cells that running grids have yet to finish
    # Until the last of those grids ends; None if there is none, or nobody can tell.
    seconds_left: float | None
    failures: list[tuple[str, str]]  # label and reason of the first failed runs
    commands: list[str]  # what was typed to start those grids


def status(
    results: Annotated[Path, typer.Argument(help="The results folder.")] = Path("results"),
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again and again, until no grid runs.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON, with --watch one a look.")
    ] = False,
) -> None:
    """Say what is done, running and failed in a results folder, and how long it will take."""
    while True:
        current = read_status(results)
        typer.echo(json_module.dumps(asdict(current)) if json else as_text(results, current))
        if not watch or not current.commands:
            return
        time.sleep(LOOK_EVERY)


def read_status(results: Path) -> StatusView:
    """Look at a results folder.

    Raises:
        MissingError: There is none.
    """
    from mtlkit.grid.running import running_grids
    from mtlkit.store import ResultStore

    if not results.is_dir():
        raise MissingError(f"There is no results folder {results}.", "mtlkit bench")
    grids = running_grids(results)
    statuses = ResultStore(results).statuses()
    counts = Counter(statuses.values())
    failed = [folder for folder, one in statuses.items() if one != "ok"]
    return StatusView(
        done=counts["ok"],
        failed=len(failed),
        running={
            cell.label: round(cell.share, 3) for grid in grids for cell in grid.running.values()
        },
        to_run=sum(grid.total - grid.done for grid in grids),
        seconds_left=_seconds_left(grids),
        failures=[_failure(folder) for folder in failed[:MANY_FAILURES]],
        commands=[grid.command for grid in grids],
    )


def _seconds_left(grids: list[GridState]) -> float | None:
    left = [grid.seconds_left(time.time()) for grid in grids]
    known = [seconds for seconds in left if seconds is not None]
    return round(max(known), 1) if known else None


def _failure(folder: Path) -> tuple[str, str]:
    """What a failed run is called, and why it failed."""
    from mtlkit.store import ResultStore

    record = ResultStore.record(folder)
    if record is None or record.error is None:
        return str(folder), "its record could not be read"
    return record.cell.label, record.error.message


def as_text(results: Path, current: StatusView) -> str:
    """For people: what runs, what failed, and last a line that sums up."""
    from mtlkit.cli.progress import time_left
    from mtlkit.store import printable

    lines = [f"running  {label}: {share:.0%}" for label, share in current.running.items()]
    lines += [f"failed   {label}: {reason}" for label, reason in current.failures]
    if current.failed > len(current.failures):
        lines.append(f"failed   and {current.failed - len(current.failures):,} more")

    counts = f"{current.done:,} done, {current.failed:,} failed"
    if current.commands:
        counts += f", {current.to_run:,} to go of which {len(current.running):,} running"
        end = time_left(current.seconds_left) or "the time left is not known yet"
    else:
        end = "no grid is running"
    lines.append(f"{results}: {counts}; {end}.")
    return "\n".join(map(printable, lines))
