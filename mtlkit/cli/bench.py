"""``mtlkit bench``: run a grid of architecture x balancer x seed."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtlkit.cli import tables
from mtlkit.cli.cells import print_results, run_cells
from mtlkit.cli.plan_table import print_cells, print_summary, print_unreadable
from mtlkit.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from mtlkit.data.datasets._source import DatasetSource
    from mtlkit.data.splits import Dataset
    from mtlkit.grid.engines.engine import Engine
    from mtlkit.grid.grid_settings import GridSettings
    from mtlkit.grid.plan import Plan
    from mtlkit.grid.tuning import Tuning
    from mtlkit.store import ResultStore

SOME_FAILED = 1  # the exit code when cells failed


def bench(
    file: Annotated[
        Path | None, typer.Argument(help="A YAML file with a grid; flags override it.")
    ] = None,
    # the data
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            "-d",
            help="E.g. 'census\\[protocol=rechub]', or a table of your own: clicks.parquet. "
            "Default: fetched last, else census.",
        ),
    ] = None,
    labels: tables.LabelsFlag = None,
    funnel: tables.FunnelFlag = None,
    split_by: tables.SplitByFlag = None,
    ids: tables.IdsFlag = None,
    dense: tables.DenseFlag = None,
    bags: tables.BagsFlag = None,
    drop: tables.DropFlag = None,
    # what is compared
    models: Annotated[
        str | None,
        typer.Option(
            help="Architectures, e.g. 'mmoe\\[experts=16],ple'; wildcards and .py files work."
        ),
    ] = None,
    balancers: Annotated[
        str | None, typer.Option(help="Balancers, e.g. 'uwl,static\\[w=1:2]'.")
    ] = None,
    references: Annotated[
        str | None,
        typer.Option(help="What to compare with, e.g. single-task,tree,base-rate; or none."),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Train only these tasks of the data set.")
    ] = None,
    task_weights: Annotated[
        str | None, typer.Option(help="Factors on the losses of tasks, e.g. click=1,buy=4.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="How many (3), or which (0,5,7).")] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            metavar="BUDGET",
            help="First tune each model under each balancer on validation: by 20 trials, or for "
            "10m or 20Mrows.",
        ),
    ] = None,
    relations: Annotated[
        bool,
        typer.Option(
            "--relations", help="Also train each two tasks alone: what do they gain from another?"
        ),
    ] = False,
    # how each cell is trained
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the training split; may be a fraction.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per batch.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many evaluation points without improvement.")
    ] = None,
    # where cells run, and what becomes of them
    engine: Annotated[
        str | None,
        typer.Option(help="Where cells run: local, or ray (pip install 'mtlkit\\[ray]')."),
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
    processes: Annotated[
        int | None, typer.Option(help="Processes that train a cell together. Default: 1.")
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
    data_dir: tables.DataDirFlag = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting as key=value, e.g. dropout=.1. Repeatable."),
    ] = None,
    # what is done with the plan, and what is shown
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
    strict: tables.StrictFlag = False,
    force: Annotated[
        bool, typer.Option("--force", help="Run models that do not apply to the data, too.")
    ] = False,
) -> None:
    """Run every model under every balancer with several seeds, and compare them.

    Finished cells are never run again, so an interrupted grid goes on where it stopped. Without
    arguments a small grid runs on the data set fetched last, or on Census-Income.
    """
    given = dict(locals())  # the flags by their names, many of which are those of settings
    from mtlkit.data.data_home import data_home, last_fetched
    from mtlkit.grid.engines.processes import start_early
    from mtlkit.grid.engines.team import join, launched_place
    from mtlkit.grid.grid_settings import read_grid, with_dataset, write_grid

    # of processes that a launcher started, the first plans and stores; the others train along
    place = launched_place()
    if place is not None and place.number > 0:
        if not print_config:
            join(place).follow(ignores_signals=True)
        return

    settings = read_grid(file, _settings_of(given), assignments or [])
    if print_config:
        default = settings.dataset or last_fetched(data_home(data_dir)) or "census"
        print(write_grid(with_dataset(settings, default)), end="")
        return

    # before all else that takes a while: the workers' imports go on in the background
    execution = settings.execution
    if not (dry_run or place) and execution.engine == "local":
        start_early(execution.device)
    if settings.dataset is not None:
        settings = with_dataset(settings, settings.dataset)
    asked = {field.name: given[field.name] for field in fields(_How)}
    how = _How(**asked | {"shard": _read_shard(shard)})
    raise typer.Exit(_run(settings, how))


def _settings_of(given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a grid that flags give, as a file would hold them."""
    from mtlkit.grid.grid_settings import read_budget
    from mtlkit.settings import ExecutionSettings

    names = ("models", "balancers", "references", "tasks", "seeds", "out")
    grid = {name: given[name] for name in names}
    grid["dataset"] = tables.with_table_flags(given["dataset"], given)
    training = {name: given[name] for name in ("epochs", "batch_size", "lr", "patience", "freeze")}
    training["task_weights"] = _by_task(given["task_weights"])
    execution = {name: given[name] for name in ExecutionSettings.model_fields if name in given}
    tune = {} if given["tune"] is None else {"tune": read_budget(given["tune"])}
    return tables.without_none(grid | {"training": training, "execution": execution}) | tune


@dataclass(frozen=True)
class _How:
    """What was asked for beside the grid itself; ``shard`` is a number and the number of parts."""

    data_dir: Path | None
    dry_run: bool
    relations: bool
    retry_failed: bool
    force: bool
    strict: bool
    show_all: bool
    shard: tuple[int, int] | None
    quiet: bool
    json: bool


def _read_shard(text: str | None) -> tuple[int, int] | None:
    """Which part of a grid to run, of how many; a :class:`UsageError` if it is no such part."""
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
    from mtlkit.spec import parse_value, split_list

    if text is None:
        return None
    pairs = [pair.rpartition("=") for pair in split_list(text)]
    if not pairs or not all(name.strip() for name, _, _ in pairs):
        raise UsageError(f"Cannot read the task weights {text!r}.", "--task-weights click=1,buy=4")
    return {name.strip(): parse_value(value) for name, _, value in pairs}


def _run(settings: GridSettings, how: _How) -> int:
    """Plan a grid, run it and show what came of it; returns the exit code."""
    from rich.console import Console

    from mtlkit.data.data_home import data_home
    from mtlkit.grid.engines import make_engine
    from mtlkit.grid.engines.team import launched_place
    from mtlkit.grid.plan import make_plan
    from mtlkit.grid.relations import check_not_tuned, with_pairs
    from mtlkit.grid.tuning import Tuning
    from mtlkit.store import ResultStore

    execution = settings.execution
    place = launched_place()
    console = Console(stderr=True)
    home = data_home(how.data_dir)
    store = ResultStore(settings.out)
    engine = make_engine(store, home, execution)
    if place is not None:  # the plan asks how many there are
        execution = execution.model_copy(update={"processes": place.processes})
        settings = settings.model_copy(update={"execution": execution})
    settings, source, dataset = _prepare(settings, home, how, console)
    anew: dict[str, bool] = {"force": how.force, "retry_failed": how.retry_failed}

    # trials choose the settings first, if asked for
    if settings.tune.budget is not None:
        if how.relations:
            check_not_tuned(settings)
        if how.shard is not None:
            message = "--shard cannot go with --tune: the choice needs all trials."
            raise UsageError(message, "mtlkit bench --tune 20")
        tuning = Tuning(settings, source, dataset, store, **anew)
        return _run_tuned(tuning, engine, home, how, console)

    # the plan
    plan = make_plan(settings, source, dataset, store, **anew)
    if how.relations:
        plan = with_pairs(plan, settings, source, dataset, store, **anew)
    if how.shard is not None:
        plan = plan.shard(*how.shard)
    print_summary(plan, dataset, console)
    tables.print_lints(dataset, console)
    print_unreadable(store, console)
    if how.dry_run:
        print_cells(plan, how.show_all)
        return 0
    return _run_and_show(plan, engine, store, how, console)


def _prepare(
    settings: GridSettings, home: Path, how: _How, console: Console
) -> tuple[GridSettings, DatasetSource, Dataset]:
    """The data of a grid, and its settings with them named."""
    from mtlkit.cli.downloads import show_downloads
    from mtlkit.data.data_home import last_fetched, remember
    from mtlkit.data.sources import prepare

    if settings.dataset is None:
        settings = _with_default_dataset(settings, home, console)
    dataset_text = str(settings.dataset)
    with show_downloads() as progress:
        source, dataset = prepare(dataset_text, home, progress=progress)
    if how.strict:
        tables.check_strictly(dataset)
    if last_fetched(home) is None:
        remember(home, source.typed or dataset_text)
    if settings.tasks is not None:
        dataset = dataset.select(settings.tasks)
    return settings, source, dataset


def _run_tuned(tuning: Tuning, engine: Engine, home: Path, how: _How, console: Console) -> int:
    """Run the trials of a grid, then the settings that they chose; returns the exit code."""
    from mtlkit.grid.engines import make_engine

    settings, store, dataset = tuning.settings, tuning.store, tuning.dataset
    methods, most = len(tuning.searches), ""
    trials = f"all trials that begin within {tuning.limit_text}"
    if tuning.climbers:
        trials = f"{' + '.join(map(str, tuning.climbers))} trials"
        most = f" = {tuning.trial_cells} cells at most"
    console.print(
        f"Phase 1: {methods} methods x {trials} x {_counted(tuning.seeds, 'seed')}{most}.\n"
        f"Phase 2: {methods} methods x {_counted(settings.seeds, 'other seed')} = "
        f"{tuning.chosen_cells} cells, with the settings that phase 1 finds best on validation.",
        highlight=False,
        soft_wrap=True,
    )
    tables.print_lints(dataset, console)
    if how.dry_run:
        first = tuning.next_trials()
        print_summary(first, dataset, console)
        print_cells(first, how.show_all)
        return 0

    # failed trials are spent, and no reason for concern
    lean_engine = make_engine(store, home, tuning.trial_execution)

    def run(plan: Plan) -> None:
        print_summary(plan, dataset, console)
        run_cells(plan, lean_engine, store, console, how.quiet, how.json)

    store.make()
    chosen = tuning.run_trials(run)
    for note in tuning.notes:
        tables.say(console, "warning", note)
    console.print("Phase 2: the chosen settings.")
    print_summary(chosen, dataset, console)
    print_unreadable(store, console)
    return _run_and_show(chosen, engine, store, how, console)


def _run_and_show(
    plan: Plan, engine: Engine, store: ResultStore, how: _How, console: Console
) -> int:
    """Run what is left to run, and show what came of it; returns the exit code."""
    if not how.json:  # what shows it is imported now, while the workers' imports go on
        importlib.import_module("mtlkit.cli.results")
    failed = run_cells(plan, engine, store, console, how.quiet, how.json)
    if not how.json:
        print_results(plan, store.root, console)
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
