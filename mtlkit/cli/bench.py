"""``mtlkit bench``: run a grid of architecture x balancer x seed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from mtlkit.data.splits import Dataset
    from mtlkit.grid.grid_settings import GridSettings
    from mtlkit.grid.plan import Plan
    from mtlkit.records import RunRecord
    from mtlkit.store import ResultStore

SOME_FAILED = 1


def bench(
    file: Annotated[
        Path | None, typer.Argument(help="A YAML file with a grid; flags override it.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            "-d",
            help="E.g. 'census[protocol=rechub]'. Default: fetched last, else census.",
        ),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            help="Architectures, e.g. 'mmoe[experts=16],ple'; wildcards and .py files work."
        ),
    ] = None,
    balancers: Annotated[
        str | None, typer.Option(help="Balancers, e.g. 'uwl,static[w=1:2]'.")
    ] = None,
    references: Annotated[str | None, typer.Option(help="Models to compare with, or none.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Train only these tasks of the data set.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="How many (3), or which (0,5,7).")] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the training split; may be a fraction.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per batch.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:1.")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", help="Cells at a time. Default: one per core.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Stop and record a cell after so many seconds.")
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Start from the weights of a run: its folder in the results."
        ),
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(help="Parts that keep the weights of that run, e.g. 'embedding.*,experts.*'."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where results go. Default: results/.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where data live. Default: $MTLKIT_DATA, else ./datasets.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting as key=value, e.g. dropout=.1. Repeatable."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the grid as YAML and stop.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run cells again that failed before.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Run models that do not apply to the data, too.")
    ] = False,
) -> None:
    """Run every model under every balancer with several seeds, and compare them.

    Finished cells are never run again, so an interrupted grid goes on where it stopped. Without
    arguments a small grid runs on the data set fetched last, or on Census-Income.
    """
    from mtlkit.data.data_home import data_home, last_fetched
    from mtlkit.grid.grid_settings import read_grid, with_dataset, write_grid

    flags: dict[str, Any] = {
        "dataset": dataset,
        "models": models,
        "balancers": balancers,
        "references": references,
        "tasks": tasks,
        "seeds": seeds,
        "training": {"epochs": epochs, "batch_size": batch_size, "lr": lr, "freeze": freeze},
        "execution": {"device": device, "jobs": jobs, "timeout": timeout, "init_from": init_from},
        "out": out,
    }
    settings = read_grid(file, _given(flags), assignments or [])
    if print_config:
        named = settings.dataset or last_fetched(data_home(data_dir)) or "census"
        print(write_grid(with_dataset(settings, named)), end="")
        return
    if settings.dataset is not None:
        settings = with_dataset(settings, settings.dataset)
    raise typer.Exit(_run(settings, data_dir, dry_run, retry_failed, force))


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """What was typed, without the rest."""
    out = {}
    for key, value in flags.items():
        if isinstance(value, dict):
            value = _given(value) or None
        if value is not None:
            out[key] = value
    return out


def _run(
    settings: GridSettings, data_dir: Path | None, dry_run: bool, retry_failed: bool, force: bool
) -> int:
    from mtlkit.grid.engines.local import start_early

    if not dry_run:
        start_early(settings.execution.device)  # first: it imports in the background
    from rich.console import Console
    from rich.markup import escape

    from mtlkit.cli.fetch import show_downloads
    from mtlkit.data.data_home import data_home, last_fetched, remember
    from mtlkit.data.sources import prepare
    from mtlkit.grid.grid_settings import with_dataset
    from mtlkit.grid.plan import make_plan
    from mtlkit.grid.run_cell import resolve_device
    from mtlkit.store import ResultStore

    talk = Console(stderr=True)
    home = data_home(data_dir)
    resolve_device(settings.execution.device)
    if settings.dataset is None:
        last = last_fetched(home)
        settings = with_dataset(settings, last or "census")
        why = "fetched last" if last else "none was fetched before"
        talk.print(
            f"Data set [bold]{escape(str(settings.dataset))}[/bold] ({why}).", highlight=False
        )
    with show_downloads() as progress:
        source, data = prepare(str(settings.dataset), home, progress=progress)
    if last_fetched(home) is None:
        remember(home, str(settings.dataset))
    if settings.tasks is not None:
        data = data.select(settings.tasks)
    store = ResultStore(settings.out)
    plan = make_plan(settings, source, data, store, force=force, retry_failed=retry_failed)
    _show_plan(plan, data, talk, every_cell=dry_run)
    if dry_run:
        return 0
    failed = _execute(plan, settings, store, home, talk)
    _show_results(plan, settings.out, talk)
    return SOME_FAILED if failed else 0


def _show_plan(plan: Plan, data: Dataset, talk: Console, every_cell: bool) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from mtlkit.equivalences import notices

    counts = {
        state: sum(p.state == state for p in plan.cells)
        for state in ("to run", "done", "failed before")
    }
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    simulated = " (simulated)" if data.simulated else ""
    tasks = ", ".join(data.schema.task_names)
    said = f"{len(plan.cells)} cells on {data.name}{simulated}, tasks {tasks}: {summary}."
    talk.print(said, markup=False, highlight=False, soft_wrap=True)
    for name, reason in plan.inapplicable:
        talk.print(Text.assemble(("n/a", "yellow"), f" {name}: {reason}"), soft_wrap=True)
    if counts["failed before"]:
        talk.print("[dim]--retry-failed runs the failed ones again.[/dim]")
    resolved = [planned.cell.resolved["balancer"] for planned in plan.cells]
    for notice in notices(
        [(balancer["name"], balancer["options"]) for balancer in resolved], len(data.schema.tasks)
    ):
        talk.print(Text.assemble(("note", "yellow"), f" {notice}"), soft_wrap=True)
    if not every_cell:
        return
    from rich.console import Console

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("model", "balancer", "seed", "state", "key"):
        table.add_column(column, justify="right" if column == "seed" else "left")
    styles = {"to run": "bold", "done": "green", "failed before": "red"}
    for planned in plan.cells:
        cell = planned.cell
        state = Text(planned.state, style=styles[planned.state])
        table.add_row(Text(cell.model), Text(cell.balancer), str(cell.seed), state, cell.key[:8])
    for name, reason in plan.inapplicable:
        table.add_row(Text(name), "", "", Text(f"n/a: {reason}", style="yellow"), "")
    Console().print(table)


def _execute(
    plan: Plan, settings: GridSettings, store: ResultStore, home: Path, talk: Console
) -> int:
    """Run what is left to run; return how many cells of the plan have failed, earlier ones
    included.
    """
    from mtlkit.cli.progress import GridProgress
    from mtlkit.grid.engines.local import LocalEngine

    failed = sum(planned.state == "failed before" for planned in plan.cells)
    if not plan.to_run:
        return failed
    store.make()
    engine = LocalEngine(store, home, settings.execution)
    with GridProgress(len(plan.to_run), talk) as progress:
        for record in engine.run(plan.to_run, progress.advance):
            progress.finish(record)
            failed += not record.ok
    return failed


def _show_results(plan: Plan, out: Path, talk: Console) -> None:
    from rich.console import Console

    from mtlkit.cli.results import results_table

    groups = {planned.cell.group for planned in plan.cells}
    console = Console()
    console.print(results_table(out, groups, console.width))
    talk.print("Next:\n")
    talk.print(f"  mtlkit report {out}\n", markup=False, highlight=False, soft_wrap=True)


def describe(record: RunRecord) -> str:
    """One line about a finished cell."""
    if record.error is not None:
        at = f" at step {record.error.step}" if record.error.step is not None else ""
        return f"{record.cell.label}: {record.status}{at}: {record.error.message}"
    parts = []
    for task in record.tasks:
        value = record.metrics["test"][task["name"]].get(task["metric"])
        parts.append(
            f"{task.get('label') or task['name']} {'NA' if value is None else f'{value:.4f}'}"
        )
    return f"{record.cell.label}: {', '.join(parts)} ({record.timing['total_seconds']:.0f} s)"
