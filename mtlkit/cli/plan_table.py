"""What ``mtlkit bench`` says of a plan before it runs: a summary, and a table of its cells."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mtlkit.cli.tables import say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mtlkit.data.splits import Dataset
    from mtlkit.grid.plan import Plan, PlannedCell
    from mtlkit.store import ResultStore

MANY_CELLS = 60  # a dry run of more cells prints a row a model

STATES = {"to run": "bold", "done": "green", "failed before": "red"}
"""State of a planned cell to its style."""


def print_summary(plan: Plan, dataset: Dataset, console: Console) -> None:
    """How many cells are in which state, what does not apply, and which methods are one."""
    from mtlkit.equivalences import notices

    counts = Counter[str](planned.state for planned in plan.cells)
    summary = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    simulated = " (simulated)" if dataset.simulated else ""
    tasks = ", ".join(dataset.schema.task_names)
    message = f"{len(plan.cells)} cells on {dataset.name}{simulated}, tasks {tasks}: {summary}."
    console.print(message, markup=False, highlight=False, soft_wrap=True)

    for name, reason in plan.inapplicable:
        say(console, "n/a", f"{name}: {reason}")
    if counts["failed before"]:
        console.print("[dim]--retry-failed runs the failed ones again.[/dim]")

    by_text = {planned.cell.balancer: planned.cell.resolved["balancer"] for planned in plan.cells}
    balancers = [(balancer["name"], balancer["options"]) for balancer in by_text.values()]
    for notice in (*plan.notes, *notices(balancers, len(dataset.schema.tasks))):
        say(console, "note", notice)


def print_unreadable(store: ResultStore, console: Console) -> None:
    """The cells whose record does not hold; they run again."""
    for unreadable in store.unreadable:
        kept = f"its folder is kept as unreadable-{unreadable.path.parent.name}-*"
        say(console, "warning", f"could not be read: {unreadable}. The cell runs again; {kept}.")


def print_cells(plan: Plan, show_all: bool) -> None:
    """A row a cell, or a model where there are many; and one a model that does not apply."""
    from rich.console import Console
    from rich.text import Text

    is_short = show_all or len(plan.cells) <= MANY_CELLS
    table = _table_of_cells(plan) if is_short else _table_of_models(plan)
    for name, reason in plan.inapplicable:
        table.add_row(Text(name), "", "", Text(f"n/a: {reason}", style="yellow"))
    Console().print(table)
    if not is_short:
        Console(stderr=True).print("[dim]--dry-run --all lists every cell.[/dim]")


def _table_of_cells(plan: Plan) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("model", "balancer", "seed", "state", "key"):
        table.add_column(column, justify="right" if column == "seed" else "left")
    for planned in plan.cells:
        cell = planned.cell
        state = Text(planned.state, style=STATES[planned.state])
        table.add_row(
            Text(_model_of(plan, planned)), Text(cell.balancer), str(cell.seed), state, cell.key[:8]
        )
    return table


def _model_of(plan: Plan, planned: PlannedCell) -> str:
    """The model of a cell, with its tasks where they are not those of the grid."""
    tasks = planned.cell.resolved["dataset"]["tasks"]
    if tasks == plan.cells[0].cell.resolved["dataset"]["tasks"]:
        return planned.cell.model
    return f"{planned.cell.model} on {' + '.join(tasks)}"


def _table_of_models(plan: Plan) -> Table:
    """Model, how many balancers and seeds it has, and its cells by state."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    for column in ("balancers", "seeds", *STATES):
        table.add_column(column, justify="right")
    by_model: dict[str, list[PlannedCell]] = {}
    for planned in plan.cells:
        pairs = " on pairs of tasks" if " on " in _model_of(plan, planned) else ""
        by_model.setdefault(planned.cell.model + pairs, []).append(planned)
    for model, same_model in by_model.items():
        balancers = {planned.cell.balancer for planned in same_model}
        seeds = {planned.cell.seed for planned in same_model}
        states = Counter[str](planned.state for planned in same_model)
        counts = (len(balancers), len(seeds), *(states[state] for state in STATES))
        table.add_row(Text(model), *map(str, counts))
    return table
