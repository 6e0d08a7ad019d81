"""``mtlkit rerun``: repeat a run and compare its numbers."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from mtlkit.cli.tables import DataDirFlag


def rerun(
    run: Annotated[
        str, typer.Argument(help="A record.json, the folder of a run, or the start of a key.")
    ],
    results: Annotated[Path, typer.Option(help="Where a key is looked up.")] = Path("results"),
    data_dir: DataDirFlag = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="Largest difference of any metric that counts as the same."),
    ] = None,
    plugins: Annotated[
        bool, typer.Option("--plugins", help="Run the plugin files that the record names.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Repeat a run in a process of its own, and say whether its metrics match and what differs.

    The run itself is never changed. On the same kernels metrics must match to the digit; else they
    may differ by as much as seeds do, if the folder holds three or more. The exit code is 0 if they
    match, and 1 if not.
    """
    from mtlkit.data.data_home import data_home
    from mtlkit.grid.rerun import find_run
    from mtlkit.grid.rerun import rerun as repeat
    from mtlkit.store import printable

    record, folder = find_run(run, results)
    if not json:
        typer.echo(printable(f"repeating {record.cell.label} on {record.cell.dataset}"), err=True)
    repeated = repeat(record, folder, data_home(data_dir), plugins=plugins, tolerance=tolerance)
    if json:
        typer.echo(json_module.dumps(repeated.as_json(), indent=1))
        raise typer.Exit(0 if repeated.matches else 1)

    # the verdict, the scores that differ, and what else does
    typer.echo(printable(f"{repeated.verdict}: {repeated.reason}"))
    for one in repeated.metrics:
        if one.before != one.now:
            bound = "" if one.bound is None else f"  (bound {one.bound:.2g})"
            change = f"{_shown(one.before)} -> {_shown(one.now)}"
            typer.echo(printable(f"  {one.split} {one.task} {one.metric}: {change}{bound}"))
    largest = repeated.largest
    if largest is not None and largest.difference:
        name = f"{largest.split} {largest.task} {largest.metric}"
        typer.echo(printable(f"largest difference: {largest.difference:.3g} in {name}"))
    for difference in repeated.differences:
        effect = "" if difference.moves_digits else "  (moves no digit)"
        change = f"{_shown(difference.before)} -> {_shown(difference.now)}"
        typer.echo(printable(f"other {difference.what}: {change}{effect}"))
    raise typer.Exit(0 if repeated.matches else 1)


def _shown(value: Any) -> str:
    return "not recorded" if value is None else str(value)
