"""``mtlkit bench``: run a grid of architecture x balancer x seed."""

from __future__ import annotations

import re
import shlex
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
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
from mtlkit.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mtlkit.data.splits import Dataset
    from mtlkit.grid.engines.engine import Engine
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
    task_weights: Annotated[
        str | None, typer.Option(help="Factors on the losses of tasks, e.g. click=1,buy=4.")
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
    engine: Annotated[
        str | None, typer.Option(help="Where cells run: local, or ray (pip install 'mtlkit[ray]').")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster. Default: one on this machine.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:1, cuda:0,cuda:1 or all.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", help="Cells at a time. Default: one per core.")
    ] = None,
    slots_per_gpu: Annotated[int | None, typer.Option(help="Cells at a time on a GPU.")] = None,
    gpus_per_cell: Annotated[
        float | None, typer.Option(help="Share of a GPU that Ray gives a cell, e.g. 0.25.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Stop and record a cell after so many seconds.")
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option(help="Run a cell whose process was killed so often again. Default: 1."),
    ] = None,
    checkpoint_every: Annotated[
        str | None,
        typer.Option(help="Write the state of running cells so often: 10m, or 0.1 of a run."),
    ] = None,
    save_weights: Annotated[
        str | None, typer.Option(help="Keep the weights that are best, last or none.")
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
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Run only one of N parts, e.g. 3/16.")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show only failures, warnings and results.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON a cell, instead of a table.")
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
            "task_weights": _by_task(task_weights),
        },
        "execution": {
            "engine": engine,
            "address": address,
            "device": device,
            "jobs": jobs,
            "slots_per_gpu": slots_per_gpu,
            "gpus_per_cell": gpus_per_cell,
            "timeout": timeout,
            "retries": retries,
            "checkpoint_every": checkpoint_every,
            "save_weights": save_weights,
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
    how = _How(
        data_dir=data_dir,
        dry_run=dry_run,
        retry_failed=retry_failed,
        force=force,
        strict=strict,
        show_all=show_all,
        shard=_read_shard(shard),
        quiet=quiet,
        json=json,
    )
    raise typer.Exit(_run(settings, how))


@dataclass(frozen=True)
class _How:
    """What was asked for beside the grid itself; ``shard`` is a number and the number of parts."""

    data_dir: Path | None
    dry_run: bool
    retry_failed: bool
    force: bool
    strict: bool
    show_all: bool
    shard: tuple[int, int] | None
    quiet: bool
    json: bool


def _read_shard(text: str | None) -> tuple[int, int] | None:
    """Which part of a grid to run, of how many.

    Raises:
        UsageError: It is no such part.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    number, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= parts:
        message = f"--shard cannot be {text!r}: write which part of how many, from 1/16 to 16/16."
        raise UsageError(message, "mtlkit bench --shard 3/16")
    return number, parts


def _by_task(text: str | None) -> dict[str, Any] | None:
    """``click=1,buy=4`` as a mapping; None where it was not given."""
    from mtlkit.errors import UsageError
    from mtlkit.spec import parse_value, split_list

    if text is None:
        return None
    pairs = [pair.rpartition("=") for pair in split_list(text)]
    if not pairs or not all(name.strip() for name, _, _ in pairs):
        raise UsageError(f"Cannot read the task weights {text!r}.", "--task-weights click=1,buy=4")
    return {name.strip(): parse_value(value) for name, _, value in pairs}


def _without_none(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given; a section without any is left out."""
    given_flags = {}
    for key, value in flags.items():
        if isinstance(value, dict):
            value = _without_none(value) or None
        if value is not None:
            given_flags[key] = value
    return given_flags


def _run(settings: GridSettings, how: _How) -> int:
    """Plan a grid, run it and show what came of it; returns the exit code."""
    from mtlkit.grid.engines.processes import start_early

    # first of all: the workers' imports go on in the background
    execution = settings.execution
    if not how.dry_run and execution.engine == "local":
        start_early(execution.device)
    from rich.console import Console

    from mtlkit.cli.downloads import show_downloads
    from mtlkit.data.data_home import data_home, last_fetched, remember
    from mtlkit.data.sources import prepare
    from mtlkit.grid.engines import make_engine
    from mtlkit.grid.plan import make_plan
    from mtlkit.grid.tuning import Tuning
    from mtlkit.store import ResultStore

    console = Console(stderr=True)
    home = data_home(how.data_dir)
    store = ResultStore(settings.out)
    engine = make_engine(store, home, execution)

    # the data
    if settings.dataset is None:
        settings = _with_default_dataset(settings, home, console)
    dataset_text = str(settings.dataset)
    with show_downloads() as progress:
        source, dataset = prepare(dataset_text, home, progress=progress)
    if how.strict:
        check_strictly(dataset)
    if last_fetched(home) is None:
        remember(home, source.typed or dataset_text)
    if settings.tasks is not None:
        dataset = dataset.select(settings.tasks)

    # trials choose the settings first, if asked for
    if settings.tune.trials is not None:
        if how.shard is not None:
            message = "--shard cannot go with --tune: the choice needs all trials."
            raise UsageError(message, "mtlkit bench --tune 20")
        tuning = Tuning(
            settings, source, dataset, store, force=how.force, retry_failed=how.retry_failed
        )
        return _run_tuned(tuning, engine, home, how, console)

    # the plan
    plan = make_plan(
        settings, source, dataset, store, force=how.force, retry_failed=how.retry_failed
    )
    if how.shard is not None:
        plan = plan.shard(*how.shard)
    _print_summary(plan, dataset, console)
    print_lints(dataset, console)
    _print_unreadable(store, console)
    if how.dry_run:
        _print_cells(plan, how.show_all)
        return 0

    # the runs, and what came of them
    failed = _run_cells(plan, engine, store, how, console)
    if not how.json:
        _print_results(plan, settings.out, console)
    return SOME_FAILED if failed else 0


def _run_tuned(tuning: Tuning, engine: Engine, home: Path, how: _How, console: Console) -> int:
    """Run the trials of a grid, then the settings that they chose; returns the exit code."""
    from rich.text import Text

    from mtlkit.grid.engines import make_engine

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
    if how.dry_run:
        first = tuning.next_trials()
        _print_summary(first, dataset, console)
        _print_cells(first, how.show_all)
        return 0

    # failed trials are spent, and no reason for concern
    lean_engine = make_engine(store, home, tuning.trial_execution)

    def run(plan: Plan) -> None:
        _print_summary(plan, dataset, console)
        _run_cells(plan, lean_engine, store, how, console)

    store.make()
    chosen = tuning.run_trials(run)
    for note in tuning.notes:
        console.print(Text.assemble(("warning", "yellow"), f" {note}"), soft_wrap=True)
    console.print("Phase 2: the chosen settings.")
    _print_summary(chosen, dataset, console)
    _print_unreadable(store, console)
    failed = _run_cells(chosen, engine, store, how, console)
    if not how.json:
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


def _run_cells(plan: Plan, engine: Engine, store: ResultStore, how: _How, console: Console) -> int:
    """Run what is left to run; return how many cells of the plan have failed, earlier ones
    included.
    """
    from mtlkit.cli.progress import GridProgress
    from mtlkit.grid.running import RunningGrid, running_grids

    failed = _count_states(plan)["failed before"]
    if not plan.to_run:
        return failed
    store.make()
    command = shlex.join(["mtlkit", *sys.argv[1:]])
    others = running_grids(store.root)
    grid = RunningGrid(store.root, command, len(plan.to_run))
    with grid, GridProgress(grid, console, quiet=how.quiet, json=how.json) as progress:
        if others:
            progress.warn(
                f"Another grid is writing to {store.root} ({others[0].command}). Cells that both "
                "have may run twice; each is kept once."
            )
        with _finishing_first(engine, progress.warn) as interrupted:
            for record in engine.run(plan.to_run, progress.advance, progress.warn):
                progress.finish(record)
                failed += not record.ok
        if interrupted:
            raise KeyboardInterrupt
    return failed


@contextmanager
def _finishing_first(engine: Engine, warn: Callable[[str], None]) -> Iterator[list[int]]:
    """In here the first Ctrl-C only keeps further cells from starting; the next one stops all.

    Yields:
        The signals that were taken so.
    """
    before = signal.getsignal(signal.SIGINT)
    taken: list[int] = []

    def finish_first(number: int, frame: FrameType | None) -> None:
        taken.append(number)
        signal.signal(signal.SIGINT, before)
        engine.finish_running()
        # in a thread of its own, for the signal may have come in the midst of printing
        sentence = "No further cell starts; those that run are finished. Ctrl-C again stops them."
        threading.Thread(target=warn, args=(sentence,), daemon=True).start()

    # what ignores Ctrl-C, as a background job of a shell does, goes on ignoring it
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield taken
        return
    signal.signal(signal.SIGINT, finish_first)
    try:
        yield taken
    finally:
        signal.signal(signal.SIGINT, before)


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
