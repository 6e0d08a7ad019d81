"""``mtlkit bench``: run a grid of architecture x balancer x seed."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtlkit.cli.tables import (
    BagsFlag,
    DenseFlag,
    DropFlag,
    FunnelFlag,
    IdsFlag,
    LabelsFlag,
    SplitByFlag,
    StrictFlag,
    check_strictly,
    print_lints,
    with_table_flags,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mtlkit.data.splits import Dataset
    from mtlkit.grid.grid_settings import GridSettings
    from mtlkit.grid.plan import Plan
    from mtlkit.grid.tuning import Tuning
    from mtlkit.store import ResultStore

SOME_FAILED = 1
"""The exit code when cells failed."""

MANY_CELLS = 60
"""A dry run of more cells prints a row a model."""

STATES = {"to run": "bold", "done": "green", "failed before": "red"}
"""State of a planned cell to its style."""


def bench(
    file: Annotated[
        Path | None, typer.Argument(help="A YAML file with a grid; flags override it.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            "-d",
            help="E.g. 'census[protocol=rechub]', or a table of your own: clicks.parquet. "
            "Default: fetched last, else census.",
        ),
    ] = None,
    labels: LabelsFlag = None,
    funnel: FunnelFlag = None,
    split_by: SplitByFlag = None,
    ids: IdsFlag = None,
    dense: DenseFlag = None,
    bags: BagsFlag = None,
    drop: DropFlag = None,
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
    tune: Annotated[
        int | None,
        typer.Option(
            metavar="TRIALS",
            help="First tune each model under each balancer, by so many trials, on validation.",
        ),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the training split; may be a fraction.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per batch.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="Stop after so many evaluation points without improvement."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:1.")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", help="Cells at a time. Default: one per core.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Stop and record a cell after so many seconds.")
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option(help="Run a cell whose process was killed so often again. Default: 1."),
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
    show_all: Annotated[
        bool, typer.Option("--all", help="With --dry-run: every cell, however many.")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the grid as YAML and stop.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run cells again that failed before.")
    ] = False,
    strict: StrictFlag = False,
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

    table_flags = {
        "labels": labels,
        "funnel": funnel,
        "split": split_by,
        "ids": ids,
        "dense": dense,
        "bags": bags,
        "drop": drop,
    }
    flags: dict[str, Any] = {
        "dataset": with_table_flags(dataset, table_flags),
        "models": models,
        "balancers": balancers,
        "references": references,
        "tasks": tasks,
        "seeds": seeds,
        "tune": {"trials": tune},
        "training": {
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "patience": patience,
            "freeze": freeze,
        },
        "execution": {
            "device": device,
            "jobs": jobs,
            "timeout": timeout,
            "retries": retries,
            "init_from": init_from,
        },
        "out": out,
    }
    settings = read_grid(file, _without_none(flags), assignments or [])
    if print_config:
        default = settings.dataset or last_fetched(data_home(data_dir)) or "census"
        print(write_grid(with_dataset(settings, default)), end="")
        return
    if settings.dataset is not None:
        settings = with_dataset(settings, settings.dataset)
    raise typer.Exit(_run(settings, data_dir, dry_run, retry_failed, force, strict, show_all))


def _without_none(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given; a section without any is left out."""
    given_flags = {}
    for key, value in flags.items():
        if isinstance(value, dict):
            value = _without_none(value) or None
        if value is not None:
            given_flags[key] = value
    return given_flags


def _run(
    settings: GridSettings,
    data_dir: Path | None,
    dry_run: bool,
    retry_failed: bool,
    force: bool,
    strict: bool,
    show_all: bool,
) -> int:
    """Plan a grid, run it and show what came of it; returns the exit code."""
    from mtlkit.grid.engines.processes import start_early

    # first of all: the workers' imports go on in the background
    if not dry_run:
        start_early(settings.execution.device)
    from rich.console import Console

    from mtlkit.cli.downloads import show_downloads
    from mtlkit.data.data_home import data_home, last_fetched, remember
    from mtlkit.data.sources import prepare
    from mtlkit.grid.machine import resolve_device
    from mtlkit.grid.plan import make_plan
    from mtlkit.grid.tuning import Tuning
    from mtlkit.store import ResultStore

    console = Console(stderr=True)
    home = data_home(data_dir)
    resolve_device(settings.execution.device)

    # the data
    if settings.dataset is None:
        settings = _with_default_dataset(settings, home, console)
    dataset_text = str(settings.dataset)
    with show_downloads() as progress:
        source, dataset = prepare(dataset_text, home, progress=progress)
    if strict:
        check_strictly(dataset)
    if last_fetched(home) is None:
        remember(home, source.typed or dataset_text)
    if settings.tasks is not None:
        dataset = dataset.select(settings.tasks)

    # trials choose the settings first, if asked for
    store = ResultStore(settings.out)
    if settings.tune.trials is not None:
        tuning = Tuning(settings, source, dataset, store, force=force, retry_failed=retry_failed)
        return _run_tuned(tuning, home, console, dry_run, show_all)

    # the plan
    plan = make_plan(settings, source, dataset, store, force=force, retry_failed=retry_failed)
    _print_summary(plan, dataset, console)
    print_lints(dataset, console)
    _print_unreadable(store, console)
    if dry_run:
        _print_cells(plan, show_all)
        return 0

    # the runs, and what came of them
    failed = _run_cells(plan, settings, store, home, console)
    _print_results(plan, settings.out, console)
    return SOME_FAILED if failed else 0


def _run_tuned(tuning: Tuning, home: Path, console: Console, dry_run: bool, show_all: bool) -> int:
    """Run the trials of a grid, then the settings that they chose; returns the exit code."""
    from rich.text import Text

    settings, store, dataset = tuning.settings, tuning.store, tuning.dataset
    methods, trials = len(tuning.searches), tuning.budget
    console.print(
        f"Phase 1: {methods} methods x {trials} trials x {_counted(tuning.seeds, 'seed')} = "
        f"{tuning.trial_cells} cells at most.\n"
        f"Phase 2: {methods} methods x {_counted(settings.seeds, 'other seed')} = "
        f"{tuning.chosen_cells} cells, with the settings that phase 1 finds best on validation.",
        highlight=False,
        soft_wrap=True,
    )
    print_lints(dataset, console)
    if dry_run:
        first = tuning.next_trials()
        _print_summary(first, dataset, console)
        _print_cells(first, show_all)
        return 0

    # failed trials are spent, and no reason for concern
    lean = settings.model_copy(update={"execution": tuning.trial_execution})

    def run(plan: Plan) -> None:
        _print_summary(plan, dataset, console)
        _run_cells(plan, lean, store, home, console)

    store.make()
    chosen = tuning.run_trials(run)
    for note in tuning.notes:
        console.print(Text.assemble(("warning", "yellow"), f" {note}"), soft_wrap=True)
    console.print("Phase 2: the chosen settings.")
    _print_summary(chosen, dataset, console)
    _print_unreadable(store, console)
    failed = _run_cells(chosen, settings, store, home, console)
    _print_results(chosen, settings.out, console)
    return SOME_FAILED if failed else 0


def _counted(values: Sequence[int], noun: str) -> str:
    """How many there are: ``1 seed``, ``3 seeds``."""
    return f"{len(values)} {noun}{'s' if len(values) > 1 else ''}"


def _with_default_dataset(settings: GridSettings, home: Path, console: Console) -> GridSettings:
    """The grid on the data set that was fetched last, or on Census-Income."""
    from rich.markup import escape

    from mtlkit.data.data_home import last_fetched
    from mtlkit.grid.grid_settings import with_dataset

    last = last_fetched(home)
    dataset = last or "census"
    reason = "fetched last" if last else "none was fetched before"
    settings = with_dataset(settings, dataset)
    console.print(f"Data set [bold]{escape(dataset)}[/bold] ({reason}).", highlight=False)
    return settings


def _print_summary(plan: Plan, dataset: Dataset, console: Console) -> None:
    """How many cells there are in which state, what does not apply, what the settings lead to, and
    which methods are one.
    """
    from rich.text import Text

    from mtlkit.equivalences import notices

    counts = _count_states(plan)
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    simulated = " (simulated)" if dataset.simulated else ""
    tasks = ", ".join(dataset.schema.task_names)
    message = f"{len(plan.cells)} cells on {dataset.name}{simulated}, tasks {tasks}: {summary}."
    console.print(message, markup=False, highlight=False, soft_wrap=True)

    for name, reason in plan.inapplicable:
        console.print(Text.assemble(("n/a", "yellow"), f" {name}: {reason}"), soft_wrap=True)
    if counts["failed before"]:
        console.print("[dim]--retry-failed runs the failed ones again.[/dim]")

    by_text = {planned.cell.balancer: planned.cell.resolved["balancer"] for planned in plan.cells}
    balancers = [(balancer["name"], balancer["options"]) for balancer in by_text.values()]
    for notice in (*plan.notes, *notices(balancers, len(dataset.schema.tasks))):
        console.print(Text.assemble(("note", "yellow"), f" {notice}"), soft_wrap=True)


def _print_unreadable(store: ResultStore, console: Console) -> None:
    """The cells whose record does not hold; they run again."""
    from rich.text import Text

    for unreadable in store.unreadable:
        kept = f"its folder is kept as unreadable-{unreadable.path.parent.name}-*"
        sentence = f" could not be read: {unreadable}. The cell runs again; {kept}."
        console.print(Text.assemble(("warning", "yellow"), sentence), soft_wrap=True)


def _count_states(plan: Plan) -> dict[str, int]:
    counts = dict.fromkeys(STATES, 0)
    for planned in plan.cells:
        counts[planned.state] += 1
    return counts


def _print_cells(plan: Plan, show_all: bool) -> None:
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
        table.add_row(Text(cell.model), Text(cell.balancer), str(cell.seed), state, cell.key[:8])
    return table


def _table_of_models(plan: Plan) -> Table:
    """Model, how many balancers and seeds it has, and its cells by state."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    for column in ("balancers", "seeds", *STATES):
        table.add_column(column, justify="right")
    for model in dict.fromkeys(planned.cell.model for planned in plan.cells):
        same_model = [planned for planned in plan.cells if planned.cell.model == model]
        balancers = {planned.cell.balancer for planned in same_model}
        seeds = {planned.cell.seed for planned in same_model}
        states = Counter[str](planned.state for planned in same_model)
        counts = (len(balancers), len(seeds), *(states[state] for state in STATES))
        table.add_row(Text(model), *map(str, counts))
    return table


def _run_cells(
    plan: Plan, settings: GridSettings, store: ResultStore, home: Path, console: Console
) -> int:
    """Run what is left to run; return how many cells of the plan have failed, earlier ones
    included.
    """
    from mtlkit.cli.progress import GridProgress
    from mtlkit.grid.engines.local import LocalEngine

    failed = _count_states(plan)["failed before"]
    if not plan.to_run:
        return failed
    store.make()
    engine = LocalEngine(store, home, settings.execution)
    command = shlex.join(["mtlkit", *sys.argv[1:]])
    with GridProgress(len(plan.to_run), console, command) as progress:
        for record in engine.run(plan.to_run, progress.advance, progress.warn):
            progress.finish(record)
            failed += not record.ok
    return failed


def _print_results(plan: Plan, out: Path, messages: Console) -> None:
    """The table of results on stdout; what to type next on stderr."""
    from rich.console import Console

    from mtlkit.cli.results import results_table

    groups = {planned.cell.group for planned in plan.cells}
    console = Console()
    console.print(results_table(out, groups, console.width))
    messages.print("Next:\n")
    command = shlex.join(["mtlkit", "report", str(out)])
    messages.print(f"  {command}\n", markup=False, highlight=False, soft_wrap=True)
