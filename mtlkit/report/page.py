"""The page: one self-contained HTML file with the findings, tables and figures of all data set
blocks.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mtlkit._version import __version__
from mtlkit.report.answer import Sentence
from mtlkit.report.blocks import Block, TaskInfo
from mtlkit.report.frame import Frames
from mtlkit.report.latex import TEX
from mtlkit.report.summary import Summary
from mtlkit.report.tables import Table, spread
from mtlkit.store import Unreadable, printable

HERE = Path(__file__).parent
ASSETS = HERE / "page_assets"
SCRIPTS = ("dom", "view", "scales", "chart", "figures", "copying", "tables", "sections", "page")
"""The files of the page's script, in the order in which they run."""
LETTER = 0.6  # width of a letter, as a share of the font's size
LONGEST_NAME = 26  # letters of a line of a name
PADDING = 1.8  # around a name, in multiples of the font's size


@dataclass(frozen=True)
class PageFigure:
    """One figure of the page: its heading, caption, inlined drawing, the files it is in, and the
    end of their names.
    """

    title: str
    caption: str
    svg: Markup
    files: tuple[str, ...]
    name: str = ""


@dataclass(frozen=True)
class PageTable:
    """One table of the page, the files it is in, and its heading if it is folded."""

    table: Table
    files: tuple[str, ...]
    heading: str = ""

    @property
    def has_worse(self) -> bool:
        """Whether a cell is greyed, which then needs a note."""
        return any(cell.worse for cells in self.table.rows for cell in cells)

    @property
    def first_width(self) -> float:
        """Width of the first column, see :meth:`_width`."""
        return self._width(0)

    @property
    def second_width(self) -> float:
        """Width of the second column."""
        return self._width(1)

    def _width(self, column: int) -> float:
        """Of a column of names that stays in place: as much as its names need, up to a limit, in
        multiples of the font's size.
        """
        names = [self.table.columns[column], *(cells[column].text for cells in self.table.lines)]
        return round(LETTER * min(max(map(len, names)), LONGEST_NAME) + PADDING, 1)


@dataclass(frozen=True)
class Section:
    """What the page says of one block."""

    summary: Summary  # the rows of the block
    tables: tuple[PageTable, ...]  # the table of results, then those of verdicts
    metric_tables: tuple[PageTable, ...]  # all metrics of each score, and by segment
    relations: tuple[str, ...]  # sentences on relations of tasks
    figures: tuple[PageFigure, ...]  # the figures in their order
    failures: tuple[dict[str, Any], ...]  # the runs without numbers, see :func:`failures`
    unreadable: tuple[Unreadable, ...]  # files of probes that could not be read
    data: dict[str, Any]  # what the page's script filters by and draws
    # What to look into, a line a finding; None if nothing was found.
    diagnosis: PageTable | None = None
    # Which row to use; each sentence names the row of its numbers.
    answer: tuple[Sentence, ...] = ()

    @property
    def all_tables(self) -> tuple[PageTable, ...]:
        """Every table that was written."""
        return (*self.tables, *self.metric_tables, *filter(None, [self.diagnosis]))

    @property
    def block(self) -> Block:
        """The data set block."""
        return self.summary.block

    @property
    def overview_line(self) -> tuple[str, ...]:
        """Its line of the overview: rows, failed runs, the row of the answer, and its gain."""
        numbers = str(len(self.summary.rows)), str(len(self.failures))
        answered = self.answer[0].row if self.answer else ""
        if not answered:
            return (*numbers, "–", "", "")  # the first row is the best on test
        best = self.summary.row(answered)
        gain = spread(best.gain.scaled(100), 2, sign=True)
        word = "" if best.word == "unknown" else best.word
        return (*numbers, best.group.label, gain, word)

    @property
    def has_chart_figure(self) -> bool:
        """Whether a figure is there that the script's chart replaces."""
        return any(figure.name == "pareto" for figure in self.figures)

    @property
    def task_lines(self) -> list[str]:
        """A line a task: what it is."""
        return [self._task_line(task) for task in self.block.tasks]

    def _task_line(self, task: TaskInfo) -> str:
        # Tables may show a label; then the name is said here.
        name = printable(task.name)
        if name == task.title:
            name = ""
        details = "; ".join(text for text in (name, task.description) if text)
        return f"{task.title} ({details})" if details else task.title


@dataclass(frozen=True)
class Overview:
    """What the page says of several data sets together: sentences, a table and perhaps a figure."""

    sentences: tuple[str, ...]
    tables: tuple[PageTable, ...]
    figures: tuple[PageFigure, ...]


def render(
    frames: Frames, sections: Sequence[Section], written: datetime, overview: Overview
) -> str:
    """The whole page as text.

    Args:
        frames: All runs, for their number and what they were run on.
        sections: One a block.
        overview: Of all data sets together; empty where there is nothing to say.
    """
    # Everything that comes from data sets and plugins is escaped; a misspelt variable is an error.
    template_engine = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    failed = frames.runs["status"] != "ok"
    style, script = _assets()
    return template_engine.get_template("page.html.j2").render(
        sections=sections,
        overview=overview,
        style=Markup(style),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        tex_letters=TEX,
        version=__version__,
        simulated=_simulated(sections),
        written=written.strftime("%Y-%m-%d %H:%M UTC"),
        runs=len(frames.runs),
        failed=int(failed.sum()),
        unreadable=frames.unreadable,
        copies=frames.copies,
        environment=environments(frames),
    )


def _assets() -> tuple[str, str]:
    """The page's style, and its script: its files one after the other, in a scope of their own."""
    parts = [(ASSETS / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    script = "\n".join(['"use strict";', "{", *parts, "}"])
    return (ASSETS / "page.css").read_text(encoding="utf-8"), script


def _simulated(sections: Sequence[Section]) -> str:
    """What the page's own title says of the data."""
    names = dict.fromkeys(section.block.name for section in sections if section.block.simulated)
    if not names:
        return ""
    if all(section.block.simulated for section in sections):
        return " (simulated data)"
    return f" (simulated: {', '.join(names)})"


def environments(frames: Frames) -> list[tuple[str, str]]:
    """What the runs recorded of their surroundings: each key with its distinct values."""
    values: dict[str, set[str]] = defaultdict(set)
    for environment in frames.runs["environment"]:
        for key, value in environment.items():
            if isinstance(value, (str, int, float, bool)):
                values[key].add(printable(str(value)))
    return [(key, _shortened(sorted(distinct))) for key, distinct in sorted(values.items())]


def _shortened(values: list[str], most: int = 4) -> str:
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(values[:most]) + more


def failures(frames: Frames, block: Block) -> tuple[dict[str, Any], ...]:
    """The cells of a block that have no numbers, with their reasons."""
    labels = {group.id: group.label for group in block.groups}
    in_block = frames.runs["block"] == block.id
    failed = frames.runs[in_block & (frames.runs["status"] != "ok")]
    ordered = failed.sort_values(["group", "seed"]).to_dict("records")
    return tuple(_failure(run, labels[run["group"]]) for run in ordered)


def _failure(run: Mapping[Any, Any], label: str) -> dict[str, Any]:
    """One line of the table of failures."""
    reason = ": ".join(text for text in (run["error"], run["message"]) if text)
    step = "–" if math.isnan(run["step"]) else f"{run['step']:.0f}"
    return {
        "label": label,
        "seed": run["seed"],
        "status": run["status"],
        "reason": reason or "no reason recorded",
        "step": step,
    }


def inline_svg(text: str, name: str, title: str) -> Markup:
    """An SVG file made fit to stand in a page: ids of its own, no size, no prologue, no styles that
    leak.

    Args:
        text: The content of the file.
        name: Stands before each id, so that no two figures of a page share one.
        title: What a screen reader says.
    """
    svg = text[text.index("<svg") :]

    # A style element would hold for the whole page; its rules move to the root below.
    svg = re.sub(r'<style type="text/css">.*?</style>', "", svg, flags=re.DOTALL)

    # Ids that the drawing refers to get short names of this figure alone; others go.
    short = _short_name(name)
    referred = dict.fromkeys(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    new_ids = {old: f"{short}-{number}" for number, old in enumerate(referred)}

    def with_new_id(match: re.Match[str]) -> str:
        return f' id="{new_ids[match[1]]}"' if match[1] in new_ids else ""

    svg = re.sub(r' id="([^"]+)"', with_new_id, svg)
    svg = re.sub(r'(href="|url\()#([^")]+)', lambda m: f"{m[1]}#{new_ids[m[2]]}", svg)

    # A few looks are repeated thousands of times: they become classes.
    looks = dict.fromkeys(re.findall(r' style="([^"]*)"', svg))
    classes = {look: _short_name(look) for look in looks}
    svg = re.sub(r' style="([^"]*)"', lambda m: f' class="{classes[m[1]]}"', svg)
    rules = "".join(f".{class_name}{{{look}}}" for look, class_name in classes.items())

    # Without a size of its own it takes the width of the page's column.
    attributes, _, drawing = svg.removeprefix("<svg").partition(">")
    attributes = re.sub(r' (?:width|height)="[^"]*"', "", attributes)
    label = Markup.escape(title)
    style = "stroke-linejoin:round;stroke-linecap:butt;font-family:'DejaVu Sans',sans-serif"
    root = f'<svg role="img" aria-label="{label}" style="{style}"{attributes}>'
    return Markup(f"{root}<style>{rules}</style>{drawing}")


def _short_name(text: str) -> str:
    """A short name that follows from a text, fit for ids and classes."""
    return "f" + hashlib.sha256(text.encode()).hexdigest()[:7]
