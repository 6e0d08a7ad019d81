"""From a results folder to the files of a report."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from mtlkit.errors import MissingError, UsageError
from mtlkit.report.blocks import Block, slug
from mtlkit.report.frame import Frames, load
from mtlkit.report.page import PageFigure, PageTable, Section, failures, inline_svg, render
from mtlkit.report.probe_frames import load_probes
from mtlkit.report.summary import Summary, summarise
from mtlkit.report.tables import Table, build_table, rows_to_csv, to_csv, to_markdown, to_tex
from mtlkit.report.verdicts import judge, verdict_rows, verdict_table
from mtlkit.store import ResultStore

WRITTEN = ".mtlkit-report.json"
"""Lists the files of a report, so that the next one can remove those that it does not write again.
"""
LAYOUT = 1
OWN_FILE = re.compile(r"index\.html|(tables|figures)/[^/\\]+\.(csv|md|tex|svg|png)")
"""Names under which a report is written. Nothing else is ever removed, whatever the list says."""


@dataclass(frozen=True)
class ReportFiles:
    """What a report consists of.

    Args:
        page: ``index.html``.
        tables: Table files.
        figures: Figure files.
        unreadable: Records that were skipped.
        simulated: Titles of the blocks whose data is simulated.
    """

    page: Path
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]
    unreadable: tuple[Path, ...] = ()
    simulated: tuple[str, ...] = ()


def open_results(results: Path) -> Frames:
    """Read a results folder.

    Raises:
        UsageError: The path is a file.
        MissingError: There is no finished or failed run in it.
    """
    if results.is_file():
        raise UsageError(f"{results} is a file, not a results folder.", "mtlkit report results")
    frames = load(ResultStore(results))
    if not frames.blocks:
        unread = f" ({len(frames.unreadable)} unreadable)" if frames.unreadable else ""
        raise MissingError(f"There are no run records in {results}{unread}.", "mtlkit bench")
    return frames


def write_report(
    results: Path, out: Path | None = None, written: datetime | None = None
) -> ReportFiles:
    """Write page, tables and figures; files of an earlier report that have no successor are
    removed.

    Args:
        results: The results folder.
        out: Where to write; ``<results>/report`` by default.
        written: The time that the page states; now by default, or ``SOURCE_DATE_EPOCH`` where that
            is set.

    Raises:
        MtlkitError: There is nothing to report.
    """
    from mtlkit.report.figures.style import (
        Look,
    )  # matplotlib takes half a second, which --json need not pay

    frames = open_results(results)
    out = out or results / "report"
    look = Look.of(frames)
    (out / "tables").mkdir(parents=True, exist_ok=True)
    (out / "figures").mkdir(exist_ok=True)
    sections = [_section(frames, block, look, out) for block in frames.blocks]
    page = out / "index.html"
    page.write_text(render(frames, sections, written or _now()), encoding="utf-8")
    tables = tuple(
        out / file for section in sections for table in section.tables for file in table.files
    )
    figures = tuple(
        out / file for section in sections for figure in section.figures for file in figure.files
    )
    _replace(out, [str(file.relative_to(out)) for file in (page, *tables, *figures)])
    simulated = tuple(block.title for block in frames.blocks if block.simulated)
    return ReportFiles(page, tables, figures, frames.unreadable, simulated)


def _replace(out: Path, files: list[str]) -> None:
    """Note what was written, and remove what the report before wrote and this one did not."""
    for name in _earlier(out):
        if name not in files and (out / name).is_file():
            (out / name).unlink()
    (out / WRITTEN).write_text(
        json.dumps({"mtlkit": LAYOUT, "files": files}, indent=0), encoding="utf-8"
    )


def _earlier(out: Path) -> list[str]:
    """The files of the report before, as it noted them."""
    try:
        noted = json.loads((out / WRITTEN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    if (
        not isinstance(noted, dict)
        or noted.get("mtlkit") != LAYOUT
        or not isinstance(noted.get("files"), list)
    ):
        return []
    return [name for name in noted["files"] if isinstance(name, str) and OWN_FILE.fullmatch(name)]


def _now() -> datetime:
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(epoch), UTC) if epoch.isdigit() else datetime.now(UTC)


def _section(frames: Frames, block: Block, look: object, out: Path) -> Section:
    summary = summarise(frames, block)
    table = build_table(summary)
    tables = [PageTable(table, _write_table(f"tables/{block.slug}", table, to_csv(summary), out))]
    verdicts = judge(frames, summary)
    for found in verdicts:
        table = verdict_table(summary, found)
        stem = f"tables/{block.slug}-verdicts-{slug(found.model)}"
        tables.append(
            PageTable(
                table, _write_table(stem, table, rows_to_csv(verdict_rows(block, [found])), out)
            )
        )
    figures = tuple(_write_figures(frames, summary, look, out))
    sentences = [found.sentence for found in verdicts]
    return Section(summary, tuple(tables), tuple(sentences), figures, failures(frames, block))


def _write_table(stem: str, table: Table, csv_text: str, out: Path) -> tuple[str, ...]:
    texts = {"csv": csv_text, "md": to_markdown(table), "tex": to_tex(table)}
    for ending, text in texts.items():
        (out / f"{stem}.{ending}").write_text(text, encoding="utf-8")
    return tuple(f"{stem}.{ending}" for ending in texts)


def _write_figures(
    frames: Frames, summary: Summary, look: object, out: Path
) -> Iterator[PageFigure]:
    from mtlkit.report.figures import draw_all
    from mtlkit.report.figures.style import Context, Look, save

    assert isinstance(look, Look)
    slug = summary.block.slug
    for drawing in draw_all(Context(summary, load_probes(frames, summary.block), look)):
        drawing = replace(drawing, title=drawing.title + summary.block.mark)
        files = save(drawing, out / "figures" / f"{slug}-{drawing.name}")
        svg = inline_svg(
            files[0].read_text(encoding="utf-8"), f"{slug}-{drawing.name}", drawing.title
        )
        yield PageFigure(
            drawing.title, drawing.caption, svg, tuple(f"figures/{file.name}" for file in files)
        )
