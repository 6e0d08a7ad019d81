"""The table that ``mtlkit bench`` ends with: the report's own rows, on a terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mtlkit.report.frame import load
from mtlkit.report.summary import summarise
from mtlkit.report.tables import Table as Content
from mtlkit.report.tables import build_table
from mtlkit.store import ResultStore

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDE = 120
NARROW = 100


def results_table(out: Path, groups: set[str], width: int) -> RenderableType:
    """The summary of some groups of runs.

    Args:
        out: The results folder.
        groups: Digests of the groups to show.
        width: Columns of the terminal, which decide how much is shown.
    """
    frames = load(ResultStore(out), groups)
    parts: list[RenderableType] = [Text()]
    for block in frames.blocks:
        summary = summarise(frames, block)
        content = build_table(summary)
        dropped = {"parameters", "kFLOP/row", "rows/s"}
        if not any(row.group.failed for row in summary.rows):
            dropped.add("failed")
        if width < WIDE:
            dropped |= {name for name in content.columns if name.startswith("Δ ")}
        if width < NARROW:
            dropped |= {"train s", "seeds"}
        columns = [i for i, name in enumerate(content.columns) if name not in dropped]
        if _width(content, columns) > width:  # many tasks
            columns = [i for i in columns if not content.columns[i].startswith("Δ ")]
        if _width(content, columns) > width:
            content = _without_intervals(content)
        parts += _table(content, columns)
    return Group(*parts)


def _width(content: Content, columns: list[int]) -> int:
    longest = [
        max(
            len(text)
            for text in (content.columns[i], *(row[i].text + row[i].marks for row in content.lines))
        )
        for i in columns
    ]
    return sum(longest) + len(columns)


def _without_intervals(content: Content) -> Content:
    rows = tuple(
        tuple(
            cell if i < 2 else replace(cell, text=cell.text.partition(" ± ")[0])
            for i, cell in enumerate(row)
        )
        for row in content.rows
    )
    return replace(
        content,
        rows=rows,
        notes=("Intervals do not fit here; the report has them.", *content.notes[1:]),
    )


def _table(content: Content, columns: list[int]) -> list[RenderableType]:
    table = Table(
        title=content.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    for i in columns:
        name = content.columns[i]
        left = name in {"model", "balancer"}
        table.add_column(
            name, justify="left" if left else "right", no_wrap=not left, overflow="fold"
        )
    for row in content.rows:
        table.add_row(
            *(
                Text(row[i].text + row[i].marks, style="bold" if row[i].best else "")
                for i in columns
            )
        )
    if content.ceiling:
        table.add_section()
        table.add_row(*(Text(content.ceiling[i].text, style="yellow") for i in columns))
    shown = "".join(row[i].marks for row in content.rows for i in columns)
    names = {content.columns[i] for i in columns}
    notes = [note for note in content.notes if _applies(note, shown, names)]
    return [table, Text("\n".join(notes) + "\n", style="dim")]


def _applies(note: str, marks: str, columns: set[str]) -> bool:
    """Whether a footnote explains something that is shown."""
    if note.startswith("Δ "):
        return any(name.startswith("Δ ") for name in columns)
    if note.startswith("kFLOP/row"):
        return "kFLOP/row" in columns
    return note[0].isalpha() or note[0] in f"±Δ{marks}"
