"""The table that ``mtlkit bench`` ends with: the report's own rows, on a terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mtlkit.report.answer import answer
from mtlkit.report.findings import gather
from mtlkit.report.frame import Frames, load
from mtlkit.report.summary import summarise
from mtlkit.report.tables import Table as Content
from mtlkit.report.tables import build_table
from mtlkit.report.verdicts import judge
from mtlkit.store import ResultStore

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDE = 120  # columns of a terminal from which differences are shown
NARROW = 100  # columns below which times and seeds are left out
ALWAYS_LEFT_OUT = {"parameters", "kFLOP/row", "rows/s"}
LEFT_OUT_SHOWN = 5  # lines on files that could not be read, at most
GAIN = "Δm"  # beginning of the head of the mean over tasks
LABELS = 2  # the first columns of a table, model and balancer, which hold no numbers


def results_table(out: Path, groups: set[str], width: int) -> RenderableType:
    """The summary of some groups of runs."""
    frames = load(ResultStore(out), groups)
    parts: list[RenderableType] = [Text()]
    for block in frames.blocks:
        summary = summarise(frames, block)
        any_failed = any(row.group.failed for row in summary.all_rows)
        content = build_table(summary)
        columns = _columns(content, width, any_failed)
        missing = []

        # with many tasks that may not be enough: means alone, lower heads, then fewer of them
        if _width(content, columns) > width:
            content = _with_low_heads(_without_intervals(content))
            missing.append("intervals")
        fitting = _as_many_as_fit(content, columns, width)
        if len(fitting) < len(columns):
            missing.append(f"{len(columns) - len(fitting)} more columns")
        if missing:
            text = " and ".join(missing)
            note = f"{text[0].upper()}{text[1:]} do not fit here; the report has them."
            content = replace(content, notes=(note, *content.notes))
        parts += _render(content, fitting, width)
        for sentence in answer(gather(frames, summary, {}, out), judge(frames, summary)):
            parts.append(Text(sentence.text))
            if sentence.command:
                parts.append(Text(f"  {sentence.command}", no_wrap=True, overflow="ignore"))
        parts.append(Text())
    parts += _left_out(frames)
    return Group(*parts)


def _left_out(frames: Frames) -> list[RenderableType]:
    """A line a run of the folder that is not in the tables, up to a few."""
    unreadable = [f"could not be read: {left_out}" for left_out in frames.unreadable]
    copies = [f"{copy}; the run counts once" for copy in frames.copies]
    lines = [*unreadable, *copies]
    if len(lines) > LEFT_OUT_SHOWN:
        more = len(lines) - LEFT_OUT_SHOWN
        lines = [*lines[:LEFT_OUT_SHOWN], f"{more} more; mtlkit report lists them"]
    return [Text(line, style="yellow") for line in lines]


def _columns(content: Content, width: int, any_failed: bool) -> list[int]:
    """Positions of the columns to show on a terminal of some width."""
    left_out = set(ALWAYS_LEFT_OUT)
    if not any_failed:
        left_out.add("failed")
    if width < WIDE:
        left_out |= {name for name in content.columns if name.startswith("Δ ")}
    if width < NARROW:
        left_out |= {"train s", "seeds"}
    columns = [i for i, name in enumerate(content.columns) if name not in left_out]

    # differences give way first
    if _width(content, columns) > width:
        columns = [i for i in columns if not content.columns[i].startswith("Δ ")]
    return columns


def _as_many_as_fit(content: Content, columns: list[int], width: int) -> list[int]:
    """The names, the mean over tasks, then as many tasks as fit; at least one number."""
    labels, numbers = columns[:LABELS], columns[LABELS:]
    by_weight = sorted(numbers, key=lambda i: not content.columns[i].startswith(GAIN))
    fitting = [*labels, *by_weight[:1]]
    for column in by_weight[1:]:
        if _width(content, [*fitting, column]) > width:
            break
        fitting.append(column)
    return sorted(fitting)


def _width(content: Content, columns: list[int]) -> int:
    """Characters of a line, with two blanks between columns and one at each end."""
    total = 2 * len(columns)
    for i in columns:
        texts = [row[i].text + row[i].marks for row in content.lines]
        total += max(cell_len(text) for text in (*content.columns[i].split("\n"), *texts))
    return total


def _without_intervals(content: Content) -> Content:
    """The same table with means alone."""
    rows = []
    for row in content.rows:
        means = [replace(cell, text=cell.text.partition(" ± ")[0]) for cell in row[LABELS:]]
        rows.append((*row[:LABELS], *means))
    return replace(content, rows=tuple(rows), notes=content.notes[1:])


def _with_low_heads(content: Content) -> Content:
    """The same table with the metric below the task: ``income`` over ``AUC``."""
    heads = ["\n".join(head.rsplit(" ", 1)) for head in content.columns]
    return replace(content, columns=tuple(heads))


def _render(content: Content, columns: list[int], width: int) -> list[RenderableType]:
    """The table and its notes."""
    table = Table(
        title=content.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    table.padding = (0, 1, 0, 0)
    table.pad_edge = False
    # numbers are whole in any case; names are broken only where nothing else helps
    is_too_wide = _width(content, columns) > width
    for i in columns:
        is_label = i < LABELS
        justify: Literal["left", "right"] = "left" if is_label else "right"
        can_break = is_label and is_too_wide
        table.add_column(
            Text(content.columns[i]), justify=justify, no_wrap=not can_break, overflow="fold"
        )

    for row in content.rows:
        shown = [row[i] for i in columns]
        table.add_row(
            *(Text(cell.text + cell.marks, style="bold" if cell.best else "") for cell in shown)
        )
    if content.ceiling:
        table.add_section()
        table.add_row(*(Text(content.ceiling[i].text, style="yellow") for i in columns))

    # notes that explain something which is shown
    marks = "".join(row[i].marks for row in content.rows for i in columns)
    names = {content.columns[i] for i in columns}
    notes = [note for note in content.notes if _applies(note, marks, names)]
    return [table, Text("\n".join(notes) + "\n", style="dim")]


def _applies(note: str, marks: str, columns: set[str]) -> bool:
    """Whether a footnote explains something that is shown."""
    if note.startswith("Δ "):
        return any(name.startswith("Δ ") for name in columns)
    if note.startswith("kFLOP/row"):
        return "kFLOP/row" in columns
    return note[0].isalpha() or note[0] in f"±Δ{marks}"
