"""``mtlkit report``: tables, figures and a page from a results folder."""

from __future__ import annotations

import json as json_module
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtlkit.cli.tables import MarginFlag, MetricFlag, as_share

if TYPE_CHECKING:
    from mtlkit.report.build import ReportFiles
    from mtlkit.report.frame import Frames


class FigureFormat(StrEnum):
    """How figures are written; SVG always is."""

    svg = "svg"
    png = "png"
    pdf = "pdf"


def report(
    results: Annotated[Path, typer.Argument(help="The results folder.")] = Path("results"),
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where to write; RESULTS/report if not given."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the rows as JSON and write nothing.")
    ] = False,
    untuned: Annotated[
        bool, typer.Option("--untuned", help="Beside tuned rows, show those with the defaults.")
    ] = False,
    metric: MetricFlag = None,
    margin: MarginFlag = 0.25,
    rows: Annotated[
        list[str] | None,
        typer.Option("--rows", help="LaTeX of these rows and references alone: 'mmoe+*'."),
    ] = None,
    format: Annotated[
        list[FigureFormat],
        typer.Option("--format", help="Figures in this format beside SVG; several times for more."),
    ] = [FigureFormat.png],  # noqa: B006
    width: Annotated[
        str | None,
        typer.Option(
            "--width",
            metavar="column|text|INCHES",
            help="Width of the figures' files, for a paper: 3.3 inches, 7, or as given.",
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option("--top", min=1, help="LaTeX of the best rows and references alone."),
    ] = None,
) -> None:
    """Write a page, tables and figures that compare the runs of a results folder."""
    from mtlkit.report.build import open_results, write_report
    from mtlkit.report.result_rows import rows_of
    from mtlkit.report.run_warnings import all_run_warnings

    margin = as_share(margin)
    if json:
        frames = open_results(results, metric, untuned)
        _say_left_out(frames)
        _say_warnings(all_run_warnings(frames))
        text = json_module.dumps(rows_of(frames), indent=1, allow_nan=False)
        typer.echo(text)
        return

    files = write_report(
        results,
        out,
        metric=metric,
        untuned=untuned,
        margin=margin,
        rows=rows or (),
        top=top,
        formats=format,
        width=width,
    )
    _say_left_out(files)
    _say_warnings(files.warnings)
    for title in files.simulated:
        typer.echo(f"note: {title} is simulated data", err=True)

    _say_of_pictures(files, set(format) - {FigureFormat.svg})

    # what was written, for a person or a script to go on with
    for path in (files.page, *files.tables):
        typer.echo(path)
    if files.figures:
        folder = files.page.parent / "figures"
        typer.echo(f"{folder}  ({len(files.figures)} files)")
    else:
        typer.echo("no figures: no run has finished")
    typer.echo(f"\nhint: open {shlex.quote(str(files.page))} in a browser", err=True)


def _say_left_out(report: Frames | ReportFiles) -> None:
    for unreadable in report.unreadable:
        typer.echo(f"warning: could not be read: {unreadable}", err=True)
    for copy in report.copies:
        typer.echo(f"note: {copy}; the run counts once", err=True)


def _say_of_pictures(files: ReportFiles, formats: set[FigureFormat]) -> None:
    """What PNG and PDF files lack."""
    if formats and files.letters_without_font:
        typer.echo(
            f"note: no font here has {files.letters_without_font}: PNG and PDF files show boxes in "
            "their place, SVG files and the page take the fonts of whoever reads them",
            err=True,
        )
    pictures = {file.stem for file in files.figures if file.suffix == ".png"}
    drawn = [file.stem for file in files.figures if file.suffix == ".svg"]
    too_high = [name for name in drawn if name not in pictures]
    if FigureFormat.png in formats and too_high:
        typer.echo(f"note: too high for a PNG file: {', '.join(too_high)}", err=True)


def _say_warnings(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
