"""``mtlkit compare``: two folders of results, or two rows of one, with a verdict on each score."""

from __future__ import annotations

import json as json_module
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtlkit.cli.tables import MarginFlag, MetricFlag, as_share
from mtlkit.errors import MissingError, UsageError

if TYPE_CHECKING:
    from mtlkit.report.compare import SharedResults


def compare(
    first: Annotated[Path, typer.Argument(help="A: the results folder that is compared with.")],
    second: Annotated[Path | None, typer.Argument(help="B: the other one.")] = None,
    rows: Annotated[
        tuple[str, str] | None,
        typer.Option("--rows", metavar="A B", help="Two rows of one folder: single-task ple+uwl."),
    ] = None,
    fail_if_worse: Annotated[
        bool, typer.Option("--fail-if-worse", help="Exit with 1 if B is worse in anything.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the differences as JSON.")] = False,
    metric: MetricFlag = None,
    margin: MarginFlag = 0.25,
) -> None:
    """Compare two results folders, or two rows of one: B less A over the seeds that both have.

    Rows are compared where data, protocol and tasks are the same; the rest is listed.
    """
    from mtlkit.report.build import open_results
    from mtlkit.report.compare import as_plain, compare_folders, compare_rows
    from mtlkit.report.tables import equivalence_note

    share = as_share(margin)
    if (second is None) == (rows is None):
        raise UsageError(
            "There must be two folders, or one folder and --rows.",
            shlex.join(["mtlkit", "compare", str(first), "--rows", "single-task", "mmoe+uniform"]),
        )
    frames = open_results(first, metric)
    if second is None:
        assert rows is not None
        compared = compare_rows(frames, rows, share)
    else:
        compared = compare_folders(frames, open_results(second, metric), share)
    if not compared.differences:
        reasons = "\n".join(("The two share no finished run.", *compared.left_out))
        raise MissingError(reasons, shlex.join(["mtlkit", "report", str(first)]))

    if json:
        plain = [as_plain(one) for one in compared.differences]
        found = {"differences": plain, "left_out": compared.left_out, "notes": compared.notes}
        typer.echo(json_module.dumps(found, indent=1, allow_nan=False))
    else:
        _print(compared)
        typer.echo(
            "B less A, seed by seed; above 0, B is better. ± is half of the 95 % interval. "
            f"{equivalence_note(share)} ¶ outlasts Holm's correction for all differences."
        )
    if fail_if_worse and not any(one.found.interval.bounded for one in compared.differences):
        message = "Nothing can be told: no two rows share two seeds."
        raise UsageError(message, "mtlkit bench --seeds 5")
    if fail_if_worse and compared.is_worse:
        raise typer.Exit(1)


def _print(compared: SharedResults) -> None:
    """A paragraph a row, a line a score; then what was not compared."""
    lines = [one.cells for one in compared.differences]
    widths = [max(len(cells[column]) for cells in lines) for column in range(3)]
    heading = ""
    for one, cells in zip(compared.differences, lines, strict=True):
        if heading != f"{one.dataset}: {one.row}":
            heading = f"{one.dataset}: {one.row}"
            noun = "seed" if one.found.interval.n == 1 else "seeds"
            typer.echo(f"\n{heading} ({one.found.interval.n} common {noun})")
        padded = [text.ljust(width) for text, width in zip(cells, widths, strict=False)]
        typer.echo("  ".join(["", *padded, cells[3]]))
    typer.echo()
    for text in (*compared.notes, *compared.left_out):
        typer.echo(text)
