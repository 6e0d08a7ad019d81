"""``mtlkit advise``: what to try first on a data set, after a small probe grid."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtlkit.cli import tables

if TYPE_CHECKING:
    from mtlkit.data.splits import Dataset
    from mtlkit.grid.grid_settings import GridSettings
    from mtlkit.report.advice import Advice, Facts

ROWS = 2_000_000  # training rows of the whole probe grid: about a minute on two cores
MOST_SEEDS = 3
SAMPLE = 100_000  # rows of train that correlations are computed of


def advise(
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="As for mtlkit bench.")],
    labels: tables.LabelsFlag = None,
    funnel: tables.FunnelFlag = None,
    split_by: tables.SplitByFlag = None,
    ids: tables.IdsFlag = None,
    dense: tables.DenseFlag = None,
    bags: tables.BagsFlag = None,
    drop: tables.DropFlag = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where the runs of the probe go.")
    ] = Path("results-advice"),
    data_dir: tables.DataDirFlag = None,
) -> None:
    """Say which models and balancers to try first on a data set, why, and how sure that is.

    A probe grid of single-task, shared-bottom and mmoe runs first, for about a minute.
    """
    given = dict(locals())  # the flags by their names
    from rich.console import Console

    from mtlkit.cli.cells import run_cells
    from mtlkit.data.data_home import data_home
    from mtlkit.data.sources import prepare
    from mtlkit.grid.engines import make_engine
    from mtlkit.grid.plan import make_plan
    from mtlkit.report import advice
    from mtlkit.report.build import open_results
    from mtlkit.report.frame import load
    from mtlkit.store import ResultStore

    typed = str(tables.with_table_flags(dataset, given))
    home = data_home(data_dir)
    source, data = prepare(typed, home)
    facts = facts_of(data)

    # the probe grid
    settings = _probe_grid(typed, out, facts.rows)
    store = ResultStore(out)
    plan = make_plan(settings, source, data, store)
    console = Console(stderr=True)
    engine = make_engine(store, home, settings.execution)
    run_cells(plan, engine, store, console, quiet=False, json=False)

    # what follows from it
    open_results(out)
    facts = facts.with_probe(load(store, {planned.cell.group for planned in plan.cells}))
    _print_advice(advice.advise(facts), facts, typed)


def _probe_grid(dataset: str, out: Path, train_rows: int) -> GridSettings:
    """As many epochs as usual if the budget of rows allows it, then more seeds."""
    from mtlkit.grid.grid_settings import read_grid, with_dataset
    from mtlkit.report.advice import PROBED

    grid = {"dataset": dataset, "models": PROBED, "balancers": "uniform", "out": out}
    settings = with_dataset(read_grid(None, grid, []), dataset)
    rows = ROWS / (1 + len(PROBED))
    epochs = min(settings.training.epochs, rows / train_rows)
    seeds = tuple(range(max(1, min(MOST_SEEDS, int(rows / (train_rows * epochs))))))
    training = settings.training.model_copy(update={"epochs": float(f"{epochs:.3g}")})
    return settings.model_copy(update={"training": training, "seeds": seeds})


def _print_advice(advised: Advice, facts: Facts, dataset: str) -> None:
    """What to try, why, and the command that does."""
    typer.echo(_facts_line(facts))
    for number, (model, balancer) in enumerate(advised.pairs, start=1):
        typer.echo(f"{number}. {model} + {balancer}")
    for rule, why in advised.reasons:
        typer.echo(f"   {rule.name}: {why} ({rule.source}; {rule.sure})")
    models, balancers = (",".join(dict.fromkeys(pair[i] for pair in advised.pairs)) for i in (0, 1))
    words = ["mtlkit", "bench", "-d", dataset, "--models", models, "--balancers", balancers]
    typer.echo(f"\n{shlex.join([*words, '--tune', '12', '--seeds', '5'])}")


def _facts_line(facts: Facts) -> str:
    """What the advice rests on."""
    from mtlkit.report.tables import fixed

    sharing, gates = (fixed(gain, 2, sign=True) for gain in (facts.sharing, facts.gates))
    return (
        f"{facts.rows:,} training rows, {facts.tasks} tasks of {facts.kinds} kinds, correlation of "
        f"labels at most {fixed(facts.correlation, 2)}; in the probe, on validation: shared-bottom "
        f"{sharing} points of Δm beside single-task, mmoe {gates} beside shared-bottom, gradients "
        f"conflict at {fixed(100 * facts.conflict, 0)} % of points.\n"
    )


def facts_of(data: Dataset) -> Facts:
    """What is known of a data set before anything was trained."""
    import numpy as np
    import pandas as pd

    from mtlkit.report.advice import Facts

    train, schema = data.splits["train"], data.schema
    step = -(-len(train) // SAMPLE)
    labels = pd.DataFrame(train.labels[::step]).where(train.observed[::step])
    correlations = labels.corr(min_periods=2).abs().to_numpy(copy=True)
    np.fill_diagonal(correlations, np.nan)
    largest = pd.Series(correlations.ravel()).max()
    kinds = {task.kind for task in schema.tasks}
    return Facts(len(train), len(schema.tasks), len(kinds), bool(schema.funnel), float(largest))
