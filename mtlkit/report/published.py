"""What others have published on the same data set, beside what was measured here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from mtlkit.report.blocks import TaskInfo
from mtlkit.report.summary import Row, Summary
from mtlkit.report.tables import Table, TableCell, csv_interval, csv_key, fixed, spread
from mtlkit.spec import parse_spec

FILE = Path(__file__).with_name("published.yaml")
PLAIN = ("uniform", "none")  # sources train their architectures on the plain sum of the losses


NOTES = (
    "Published: the test AUC that a source states. It had another draw of rows, other settings and "
    "another budget, so the differences are no test. Measured: mean over seeds, uniform weights.",
)


@dataclass(frozen=True)
class Published:
    """A measured row beside one source."""

    row: Row  # the row
    aucs: Mapping[str, float]  # score to the published AUC
    source: str  # who published them
    address: str  # where
    note: str  # how the source differs


def find_published(summary: Summary) -> list[Published]:
    """The rows of a block for which there are published numbers, source by source."""
    block = summary.block
    scores = {task.name for task in block.tasks if task.metric == "auc"}
    if block.simulated:
        return []

    found = []
    for entry in yaml.safe_load(FILE.read_text(encoding="utf-8")):
        if (entry["dataset"], entry["protocol"]) != (block.name, block.protocol):
            continue
        for model, published in entry["rows"].items():
            # A task that was trained beside another one is another experiment.
            if not published.keys() <= scores:
                continue
            source = (entry["source"], entry["address"], entry["note"])
            found += [Published(row, published, *source) for row in _rows_of(summary, model)]
    return found


def _rows_of(summary: Summary, model: str) -> Iterator[Row]:
    """The finished rows of an architecture under the plain sum of the losses."""
    for row in summary.finished:
        is_plain = row.group.balancer_name in PLAIN
        if is_plain and parse_spec(row.group.typed[0]).name == model:
            yield row


def published_table(summary: Summary, found: Sequence[Published]) -> Table:
    """The same as a table, a line a source and row."""
    block = summary.block
    tasks = [task for task in block.tasks if any(task.name in each.aucs for each in found)]
    heads = [f"{task.title} {what}" for task in tasks for what in ("published", "measured", "Δ")]
    lines = []
    for each in found:
        cells = [TableCell(each.row.group.model), TableCell(each.source)]
        for task in tasks:
            cells += _cells(each, task)
        lines.append((*cells, TableCell(each.note)))
    columns = ("model", "source", *heads, "note")
    title = f"{block.label}: published and measured"
    return Table(title, columns, tuple(lines), (*NOTES, *block.budget), texts=("note",))


def _cells(each: Published, task: TaskInfo) -> Iterator[TableCell]:
    """Published, measured, and the difference, of one score."""
    decimals = task.reading.decimals
    published = each.aucs.get(task.name, math.nan)
    measured = each.row.metric[task.name]
    yield TableCell(fixed(published, decimals))
    yield TableCell(spread(measured, decimals))
    yield TableCell(fixed(measured.mean - published, decimals, sign=True))


def published_rows(summary: Summary, found: Sequence[Published]) -> list[dict[str, object]]:
    """The same as plain values: a line a source, row and score."""
    lines: list[dict[str, object]] = []
    for each in found:
        for score, published in each.aucs.items():
            about = {"task": score, "published": published, **csv_interval(each.row.metric[score])}
            origin = {"source": each.source, "address": each.address, "note": each.note}
            lines.append(csv_key(summary.block, each.row.group) | about | origin)
    return lines
