"""The card of a data set: what it is, on one screen."""

from __future__ import annotations

from typing import Literal

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mtlkit.data.datasets._source import DatasetSource
from mtlkit.data.planted import ceilings, ceilings_of_all_rows
from mtlkit.data.splits import Dataset, Split
from mtlkit.data.types import Task

INPUTS: dict[Literal["id", "bag", "dense"], str] = {
    "id": "ids",
    "bag": "bags of ids",
    "dense": "numbers",
}
"""Kind of a feature to what the card calls it."""


COLUMN_KINDS = {
    "id": "columns of ids",
    "bag": "columns of lists",
    "dense": "columns of numbers",
    "vector": "columns of vectors",
    "date": "columns of dates",
}
MAX_LISTED = 40  # columns that the card names, of a kind


def card(
    source: DatasetSource, data: Dataset, prepared: list[str], provenance: str | None
) -> RenderableType:
    """What a data set is, on one screen.

    Args:
        source: Where it comes from.
        data: The prepared data.
        prepared: Every ``name[options]`` that is ready, the shown one first.
        provenance: Where the raw files were taken from, if that is recorded.
    """
    facts = facts_table(source, data, prepared, provenance)
    return Group(Padding(facts, (1, 0, 0, 1)), _tasks_table(data), _lints_table(data))


def facts_table(
    source: DatasetSource, data: Dataset, prepared: list[str], provenance: str | None
) -> RenderableType:
    """The upper half of a card: a row a fact; the arguments are those of :func:`card`."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")

    title = Text(source.title, style="bold")
    if data.simulated:
        title.append("  SIMULATED", style="bold yellow")
    table.add_row("data set", title)

    # where it comes from, and what may be done with it
    table.add_row("source", Text(source.url))
    if provenance:
        table.add_row("taken from", Text(provenance))
    table.add_row("licence", Text(source.licence))

    # what is in it
    counts = {kind: len(data.schema.of_kind(kind)) for kind in INPUTS}
    inputs = [f"{count} {INPUTS[kind]}" for kind, count in counts.items() if count]
    table.add_row("inputs", ", ".join(inputs))
    _add_table_facts(table, data)
    table.add_row("prepared", Text("\n".join(prepared)))

    # how good a model can be, where a generator noted it
    on_test, on_all_rows = ceilings(data), ceilings_of_all_rows(data)
    if on_test:
        meaning = "the planted model on test, which none passes but by luck"
        table.add_row("ceiling", Text(f"{_scores(data, on_test)}: {meaning}"))
    elif on_all_rows:
        meaning = "the planted model on all simulated test rows, of which test holds some"
        table.add_row("near the ceiling", Text(f"{_scores(data, on_all_rows)}: {meaning}"))
    return table


def _add_table_facts(table: Table, data: Dataset) -> None:
    """Of a table of the user's: what became of each column, and how rows were dealt out."""
    facts = data.details.get("table")
    if facts is None:
        return
    for kind, label in COLUMN_KINDS.items():
        columns = [name for name, own in facts["columns"].items() if own == kind]
        if columns:
            table.add_row(label, Text(_listed(columns)))
    left_out = [f"{name} ({why})" for name, why in facts["left out"].items()]
    if left_out:
        table.add_row("no inputs", Text(_listed(left_out)))
    if facts["roles"]:
        roles = [f"{role}: {name}" for role, name in facts["roles"].items()]
        table.add_row("roles", Text(", ".join(roles)))
    by, column = facts["split"]["by"], facts["split"]["column"]
    table.add_row("split by", Text(f"{by}: {column}" if column else by))


def _listed(names: list[str]) -> str:
    """Names with commas, cut where there are many."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def _lints_table(data: Dataset) -> RenderableType:
    """A row for each thing that is likely a mistake."""
    table = Table.grid(padding=(0, 2))
    for lint in data.details.get("lints", []):
        sentence = Text.assemble(f"{lint['message']}. ", (lint["mend"], "dim"))
        table.add_row(Text(lint["name"], style="yellow"), sentence)
    return Padding(table, (0, 0, 0, 1))


def _scores(data: Dataset, values: dict[str, float]) -> str:
    """``CTR 0.7000, CTCVR 0.6500``."""
    scores = [score for score in data.schema.scores() if score.name in values]
    return ", ".join(f"{score.label} {values[score.name]:.4f}" for score in scores)


def _tasks_table(data: Dataset) -> RenderableType:
    """The lower half of a card: a row a task, with its labels in each split."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), title_justify="left")
    table.add_column("task")
    table.add_column("label", overflow="fold")
    for name, split in data.splits.items():
        table.add_column(f"{name}\n{len(split):,} rows", justify="right", no_wrap=True)

    for column, task in enumerate(data.schema.tasks):
        label = task.description if task.kind == "binary" else f"{task.kind}: {task.description}"
        counts = [_label_count(split, task, column) for split in data.splits.values()]
        table.add_row(Text(task.name, style="bold"), Text(label), *counts)
    return table


def _label_count(split: Split, task: Task, column: int) -> str:
    """Positives and their share of a binary task; else the number of labels."""
    labelled = int(split.observed[:, column].sum())
    if task.kind != "binary":
        return f"{labelled:,}"
    positives = split.positives()[column]
    return f"{positives:,} ({positives / max(labelled, 1):.2%})"
