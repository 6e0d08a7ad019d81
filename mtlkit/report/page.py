"""The page: one self-contained HTML file with the findings, tables and figures of all data set
blocks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mtlkit._version import __version__
from mtlkit.report.blocks import Block
from mtlkit.report.frame import Frames
from mtlkit.report.summary import Summary
from mtlkit.report.tables import Table, counts
from mtlkit.report.wording import sentences

HERE = Path(__file__).parent


@dataclass(frozen=True)
class PageFigure:
    """One figure of the page: its heading, caption, inlined drawing and the files it is in."""

    title: str
    caption: str
    svg: Markup
    files: tuple[str, ...]


@dataclass(frozen=True)
class PageTable:
    """One table of the page and the files it is in."""

    table: Table
    files: tuple[str, ...]

    @property
    def has_worse(self) -> bool:
        return any(cell.worse for cells in self.table.rows for cell in cells)


@dataclass(frozen=True)
class Section:
    """What the page says of one block: its results come first among the tables."""

    summary: Summary
    tables: tuple[PageTable, ...]
    verdicts: tuple[str, ...]
    figures: tuple[PageFigure, ...]
    failures: tuple[dict[str, Any], ...]

    @property
    def block(self) -> Block:
        return self.summary.block

    @property
    def findings(self) -> list[str]:
        return [*sentences(self.summary), *self.verdicts]

    @property
    def task_lines(self) -> list[str]:
        return [self._task_line(task.name) for task in self.block.tasks]

    def _task_line(self, name: str) -> str:
        task = next(task for task in self.block.tasks if task.name == name)
        text = f"{task.reading.label}, {task.space}{counts(self.summary, task)} in the test split"
        about = "; ".join(filter(None, [name if name != task.title else "", task.description]))
        return f"{task.title}{f' ({about})' if about else ''}: {text}"


def render(frames: Frames, sections: Sequence[Section], written: datetime) -> str:
    """The whole page as text."""
    loader = FileSystemLoader(HERE)
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    status = frames.runs["status"]
    return environment.get_template("page.html.j2").render(
        sections=sections,
        version=__version__,
        simulated=_simulated(sections),
        written=written.strftime("%Y-%m-%d %H:%M UTC"),
        runs=len(frames.runs),
        failed=int((status != "ok").sum()),
        unreadable=len(frames.unreadable),
        environment=environments(frames),
    )


def _simulated(sections: Sequence[Section]) -> str:
    """What the page's own title says of the data."""
    names = dict.fromkeys(section.block.name for section in sections if section.block.simulated)
    if not names:
        return ""
    return (
        " (simulated data)"
        if all(section.block.simulated for section in sections)
        else (f" (simulated: {', '.join(names)})")
    )


def environments(frames: Frames) -> list[tuple[str, str]]:
    """What the runs recorded of their surroundings: each key with its distinct values."""
    values: dict[str, set[str]] = defaultdict(set)
    for environment in frames.runs["environment"]:
        for key, value in environment.items():
            if isinstance(value, (str, int, float, bool)):
                values[key].add(str(value))
    return [(key, _few(sorted(found))) for key, found in sorted(values.items())]


def _few(values: list[str], most: int = 4) -> str:
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(values[:most]) + more


def failures(frames: Frames, block: Block) -> tuple[dict[str, Any], ...]:
    """The cells of a block that have no numbers, with their reasons."""
    labels = {group.id: group for group in block.groups}
    failed = frames.runs[(frames.runs["block"] == block.id) & (frames.runs["status"] != "ok")]
    return tuple(
        {
            "label": labels[run["group"]].label,
            "seed": run["seed"],
            "status": run["status"],
            "reason": ": ".join(part for part in (run["error"], run["message"]) if part)
            or "no reason recorded",
            "step": f"{run['step']:.0f}" if run["step"] == run["step"] else "–",
        }
        for run in failed.sort_values(["group", "seed"]).to_dict("records")
    )


def inline_svg(text: str, name: str, title: str) -> Markup:
    """An SVG file made fit to stand in a page: ids of its own, no size, no prologue, no styles that
    leak.
    """
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<style type="text/css">.*?</style>', "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'((?:xlink:)?href)="#([^"]+)"', rf'\1="#{name}-\2"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body, count=1)
    label = Markup.escape(title)
    style = "stroke-linejoin:round;stroke-linecap:butt"
    return Markup(body.replace("<svg", f'<svg role="img" aria-label="{label}" style="{style}"', 1))
