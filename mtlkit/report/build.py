"""From a results folder to the files of a report."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlkit.errors import MissingError, UsageError
from mtlkit.files import reason_of
from mtlkit.report.across import across_table, compare_across
from mtlkit.report.answer import Sentence, answer
from mtlkit.report.blocks import slug
from mtlkit.report.expert_table import expert_rows, expert_table, expert_use
from mtlkit.report.findings import find, findings_table, gather
from mtlkit.report.frame import Frames, curves_by_group, garbage_left_alone, load
from mtlkit.report.importance import importance_rows, importance_table
from mtlkit.report.latex import check_patterns, paper_tables, to_tex
from mtlkit.report.metric_tables import metric_tables
from mtlkit.report.page import (
    Overview,
    PageFigure,
    PageTable,
    Section,
    failures,
    inline_svg,
    render,
)
from mtlkit.report.page_data import page_data
from mtlkit.report.paper import paper_width
from mtlkit.report.probe_frames import Probes, load_probes
from mtlkit.report.provenance import origin_rows, origin_table
from mtlkit.report.published import find_published, published_rows, published_table
from mtlkit.report.relations import Relations, find_relations, relation_rows, relation_table
from mtlkit.report.run_warnings import all_run_warnings
from mtlkit.report.statistics import MARGIN
from mtlkit.report.submissions import Board
from mtlkit.report.summary import Summary, summarise
from mtlkit.report.tables import Table, build_table, csv_block, rows_to_csv, to_csv, to_markdown
from mtlkit.report.tuned_table import tuned_rows, tuned_table
from mtlkit.report.verdicts import Verdicts, judge, verdict_rows, verdict_table
from mtlkit.store import RECORD, Copy, ResultStore, Unreadable

if TYPE_CHECKING:
    from mtlkit.report.figures.context import Context, Look
    from mtlkit.report.figures.sheet import Drawing

WRITTEN = ".mtlkit-report.json"
"""Lists the files of a report, so that the next one can remove those that it does not write again.
"""
SHOWN = 5  # unreadable records that an error names
LAYOUT = 1  # the version of that list
REPORT_FILE = re.compile(r"index\.html|(tables|figures)/[^/\\]+\.(csv|md|tex|svg|png|pdf)")
"""Names under which a report is written. Nothing else is ever removed, whatever the list says."""


@dataclass(frozen=True)
class ReportFiles:
    """What a report consists of."""

    page: Path  # the page, ``index.html``
    tables: tuple[Path, ...]  # the files of tables
    figures: tuple[Path, ...]  # the files of figures
    # The records and probes that could not be read, with the reasons.
    unreadable: tuple[Unreadable, ...] = ()
    copies: tuple[Copy, ...] = ()  # folders that hold the same run as another one, which counts
    simulated: tuple[str, ...] = ()  # titles of the blocks whose data is simulated
    # What the runs of each block warned of, a sentence a kind with the rows it touches.
    warnings: tuple[str, ...] = ()
    # Letters of names that no font here has; PNG and PDF files show boxes there.
    letters_without_font: str = ""


def open_results(results: Path, metric: str | None = None, untuned: bool = False) -> Frames:
    """Read a results folder, or a folder of submissions.

    Args:
        metric: What to compare scores by where it was recorded; the primary metrics by default.
        untuned: Whether runs with the defaults are rows beside the tuned ones.

    Raises:
        UsageError: The path is a file or one run, or no run has the metric.
        MissingError: There is no finished or failed run in it.
    """
    what = "a file" if results.is_file() else "one run" if (results / RECORD).exists() else ""
    if what:
        raise UsageError(f"{results} is {what}, not a results folder.", "mtlkit report results")
    store = Board(results) if Board.is_at(results) else ResultStore(results)
    frames = load(store, metric=metric, untuned=untuned)
    if not frames.blocks:
        unreadable = [f"\ncould not be read: {left_out}" for left_out in frames.unreadable]
        some = "".join(unreadable[:SHOWN])
        count = f" ({len(unreadable)} unreadable)" if unreadable else ""
        raise MissingError(f"There are no run records in {results}{count}.{some}", "mtlkit bench")
    return frames


def write_report(
    results: Path,
    out: Path | None = None,
    written: datetime | None = None,
    metric: str | None = None,
    untuned: bool = False,
    margin: float = MARGIN,
    rows: Sequence[str] = (),
    top: int | None = None,
    formats: Sequence[str] = ("png",),
    width: str | float | None = None,
) -> ReportFiles:
    """Write page, tables and figures; files of an earlier report that have no successor are
    removed.

    Args:
        out: Where to write; ``<results>/report`` by default.
        written: The time that the page states; now by default, or ``SOURCE_DATE_EPOCH`` where that
            is set.
        metric: What to compare scores by, such as ``gauc``; the primary metrics by default.
        untuned: Whether runs with the defaults are rows beside the tuned ones.
        margin: Relative gains up to this one do not matter.
        rows: Patterns of the rows in the LaTeX of the main table, see :func:`paper_tables`.
        top: How many of these at most.
        formats: Of figures beside SVG: ``png``, ``pdf``.
        width: Of the files of figures, for a paper: ``column``, ``text`` or inches; the page's by
            default. Figures of the page keep theirs.

    Raises:
        MtlkitError: There is nothing to report, a pattern matches nothing, no figure has such a
            width, or the folder cannot be made.
    """
    # matplotlib takes half a second to import, which ``mtlkit report --json`` need not pay. That it
    # has no home for its cache is no news for a reader.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from mtlkit.report.figures.context import Look
    from mtlkit.report.figures.text import letters_without_font, missing_letters_allowed

    frames = open_results(results, metric, untuned)
    out = out or results / "report"
    _make_folders(out, results)

    # One look for all blocks, so that a balancer has the same colour in every figure.
    summaries = [summarise(frames, block, margin) for block in frames.blocks]
    check_patterns(rows, summaries)
    look = Look.of(summaries)
    files = _FigureFiles(out, formats, None if width is None else paper_width(width))
    home = Path("results") if frames.board else results  # runs go to no leaderboard by themselves
    with missing_letters_allowed():
        sections = [
            _write_section(frames, summary, look, home, paper_tables(summary, rows, top), files)
            for summary in summaries
        ]
    damaged = [file for section in sections for file in section.unreadable]
    frames = replace(frames, unreadable=(*frames.unreadable, *damaged))
    page = out / "index.html"
    overview = _write_overview(summaries, files)
    page.write_text(render(frames, sections, written or _now(), overview), encoding="utf-8")

    shown = [*overview.tables, *(table for section in sections for table in section.all_tables)]
    tables = list(dict.fromkeys(file for table in shown for file in table.files))
    drawn = [*overview.figures, *(figure for section in sections for figure in section.figures)]
    figures = [file for figure in drawn for file in figure.files]
    _replace_earlier(out, ["index.html", *tables, *figures])
    return ReportFiles(
        page=page,
        tables=tuple(out / file for file in tables),
        figures=tuple(out / file for file in figures),
        unreadable=frames.unreadable,
        copies=frames.copies,
        simulated=tuple(block.title for block in frames.blocks if block.simulated),
        warnings=all_run_warnings(frames),
        letters_without_font=letters_without_font(_names(frames)),
    )


def _names(frames: Frames) -> Iterator[str]:
    """The names that figures show."""
    for block in frames.blocks:
        yield block.title
        yield from (task.title for task in block.tasks)
        yield from (group.label for group in block.groups)


def _make_folders(out: Path, results: Path) -> None:
    try:
        (out / "tables").mkdir(parents=True, exist_ok=True)
        (out / "figures").mkdir(exist_ok=True)
    except OSError as error:
        raise MissingError(
            f"The report folder {out} cannot be made: {reason_of(error)}.",
            shlex.join(["mtlkit", "report", str(results), "--out", "another-folder"]),
        ) from None


def _replace_earlier(out: Path, files: list[str]) -> None:
    """Note what was written, and remove what the report before wrote and this one did not."""
    for name in _earlier_files(out):
        if name not in files and (out / name).is_file():
            (out / name).unlink()
    noted = json.dumps({"mtlkit": LAYOUT, "files": files}, indent=0)
    (out / WRITTEN).write_text(noted, encoding="utf-8")


def _earlier_files(out: Path) -> list[str]:
    """The files of the report before, as it noted them; none if the note is not one of ours."""
    try:
        noted = json.loads((out / WRITTEN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(noted, dict) or noted.get("mtlkit") != LAYOUT:
        return []
    files = noted.get("files")
    if not isinstance(files, list):
        return []
    return [name for name in files if isinstance(name, str) and REPORT_FILE.fullmatch(name)]


def _now() -> datetime:
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(epoch), UTC) if epoch.isdigit() else datetime.now(UTC)


@dataclass(frozen=True)
class _FigureFiles:
    """Where figures are written, and how."""

    out: Path  # the folder of the report
    formats: Sequence[str]  # beside SVG
    width: float | None  # inches; None for the page's width

    def write(self, of_page: Drawing, drawing: Drawing, name: str) -> PageFigure:
        """Write the files of a figure, and make it fit for the page.

        Args:
            of_page: The figure at the page's width.
            drawing: The figure at the width of the files; the same one where that is the page's.
        """
        from mtlkit.report.figures.sheet import file_content, save

        paths = save(drawing, self.out / "figures" / name, self.formats)
        if drawing is of_page:
            text = paths[0].read_text(encoding="utf-8")
        else:
            text = file_content(of_page, "svg").decode()
        svg = inline_svg(text, name, of_page.title)
        files = tuple(f"figures/{path.name}" for path in paths)
        return PageFigure(of_page.title, of_page.caption, svg, files, of_page.name)


def _write_overview(summaries: Sequence[Summary], files: _FigureFiles) -> Overview:
    """Write what several data sets say together; nothing where they share too few methods."""
    from mtlkit.report.figures.ranks import draw_ranks

    across = compare_across(summaries)
    if across is None:
        return Overview((), (), ())
    sentences = tuple(across.sentences)
    if not across.blocks:
        return Overview(sentences, (), ())
    table = replace(across_table(across), lead=tuple((text, "") for text in sentences))
    csv_text = across.standings.to_csv()
    written = _write_table(table, csv_text, "tables/across-data-sets", files.out)
    if math.isnan(across.critical):
        return Overview(sentences, (written,), ())
    of_page = draw_ranks(across)
    drawing = of_page if files.width is None else draw_ranks(across, files.width)
    figure = files.write(of_page, drawing, "across-data-sets-ranks")
    return Overview(sentences, (written,), (figure,))


@garbage_left_alone()
def _write_section(
    frames: Frames, summary: Summary, look: Look, results: Path, latex: str, files: _FigureFiles
) -> Section:
    """Write the tables and figures of one block, and gather what the page says of it."""
    from mtlkit.report.figures.context import Context

    block, out = summary.block, files.out
    probes = load_probes(frames, block)
    judged = judge(frames, summary)
    sentences = answer(gather(frames, summary, probes.by_group, results), judged)
    relations = find_relations(frames, summary, probes.by_group)
    origins = origin_rows(frames, block)
    tables = [
        _write_table(
            table, csv_text, f"tables/{block.slug}{suffix}", out, latex=None if suffix else latex
        )
        for suffix, table, csv_text in _tables(
            summary, probes.by_group, sentences, judged, relations, origins
        )
    ]

    # What to look into, where there is something.
    diagnosis = None
    found = find(frames, summary, probes.by_group, results)
    if found:
        csv_text = rows_to_csv([csv_block(block) | asdict(finding) for finding in found])
        stem = f"tables/{block.slug}-findings"
        diagnosis = _write_table(findings_table(summary, found), csv_text, stem, out)

    # Everything else that was measured is one file.
    by_metric = list(metric_tables(frames, summary))
    csv_rows = [row for found in by_metric for row in found.csv_rows]
    metrics_file = f"tables/{block.slug}-metrics.csv"
    if csv_rows:
        (out / metrics_file).write_text(rows_to_csv(csv_rows), encoding="utf-8")
    folded = [PageTable(found.table, (metrics_file,), found.heading) for found in by_metric]

    curves = curves_by_group(frames, block)
    context = Context(summary, probes.by_group, look, curves, relations)

    # A damaged file of scores may have been met twice.
    unreadable = (*probes.unreadable, *summary.noise.unreadable, *relations.unreadable)
    return Section(
        summary=summary,
        tables=tuple(tables),
        metric_tables=tuple(folded),
        relations=tuple(relations.sentences),
        figures=tuple(_write_figures(context, files)),
        failures=failures(frames, block),
        data=page_data(summary, look),
        unreadable=tuple(dict.fromkeys(unreadable)),
        diagnosis=diagnosis,
        answer=sentences,
    )


def _tables(
    summary: Summary,
    probes: dict[str, Probes],
    sentences: Sequence[Sentence],
    judged: Sequence[Verdicts],
    relations: Relations,
    origins: Sequence[dict[str, Any]],
) -> Iterator[tuple[str, Table, str]]:
    """The tables of a block: what the file's name ends with, the table, and its CSV."""
    block = summary.block
    lead = tuple((sentence.text, sentence.command) for sentence in sentences)
    yield "", replace(build_table(summary), lead=lead), to_csv(summary)

    # Who sent the runs, if they were sent.
    if origins:
        yield "-origin", origin_table(block, origins), rows_to_csv(origins)

    # What tuning chose, if it did.
    tuned = tuned_rows(summary)
    if tuned:
        yield "-tuned", tuned_table(summary, tuned), rows_to_csv(tuned)
    mattered = importance_rows(summary)
    if mattered:
        yield "-importance", importance_table(summary, mattered), rows_to_csv(mattered)

    # A table of verdicts for every model that was swept over fixed weights.
    for verdicts in judged:
        csv_text = rows_to_csv(verdict_rows(block, [verdicts]))
        yield f"-verdicts-{slug(verdicts.model)}", verdict_table(summary, verdicts), csv_text

    uses = expert_use(summary, probes)
    if uses:
        yield "-experts", expert_table(summary, uses), rows_to_csv(expert_rows(summary, uses))
    published = find_published(summary)
    if published:
        csv_text = rows_to_csv(published_rows(summary, published))
        yield "-published", published_table(summary, published), csv_text
    if len(relations.pairs):
        csv_text = rows_to_csv(relation_rows(block, relations))
        yield "-relations", relation_table(block, relations), csv_text


def _write_table(
    table: Table, csv_text: str, stem: str, out: Path, latex: str | None = None
) -> PageTable:
    texts = {"csv": csv_text, "md": to_markdown(table), "tex": latex or to_tex(table)}
    for ending, text in texts.items():
        (out / f"{stem}.{ending}").write_text(text, encoding="utf-8")
    return PageTable(table, tuple(f"{stem}.{ending}" for ending in texts))


def _write_figures(context: Context, files: _FigureFiles) -> Iterator[PageFigure]:
    from mtlkit.report.figures import draw_all

    block = context.summary.block
    of_paper = draw_all(context.at(files.width)) if files.width else None
    for drawing in draw_all(context):
        of_page = replace(drawing, title=drawing.title + block.mark)
        of_files = replace(next(of_paper), title=of_page.title) if of_paper else of_page
        yield files.write(of_page, of_files, f"{block.slug}-{drawing.name}")
