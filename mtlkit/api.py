"""The functions of ``import mtlkit``: a run, a grid, a data set, a balancer, results and reports.

Each of them is thin: it reads what the user wrote, and calls what the commands call. Imports stand
inside the functions, so that reading results needs no PyTorch.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlkit.errors import MtlkitError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from mtlkit.balancers._balancer import Balancer
    from mtlkit.data.splits import Dataset
    from mtlkit.data.types import Task
    from mtlkit.grid.loaded_run import LoadedRun
    from mtlkit.models._architecture import Architecture
    from mtlkit.records import RunRecord
    from mtlkit.report.build import ReportFiles
    from mtlkit.training.result import FitResult


def fit(
    model: str | type[Architecture] | Architecture,
    dataset: str | Dataset,
    balancer: str | type[Balancer] | Balancer = "uniform",
    *,
    seed: int = 0,
    device: str = "auto",
    metrics: str | Sequence[str] = (),
    **training_settings: Any,
) -> FitResult:
    """Train one model under one balancer on one data set, as a cell of ``mtlkit bench`` does.

    Args:
        model: A name with options, such as ``"mmoe[experts=4]"``; a class; or an instance, which is
            trained in place and ends with the weights of its best evaluation point.
        dataset: A name with options, such as ``"census[protocol=rechub]"``, which is prepared where
            that is needed; or the data itself.
        balancer: A name with options, a class or an instance. A model whose tasks share no
            parameter takes none.
        seed: Source of initial weights, batch order, dropout and the balancer's randomness.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        metrics: Further ones of the final scores, such as ``"gauc@item,ndcg@5"``.
        **training_settings: Fields of :class:`mtlkit.settings.TrainingSettings`, such as
            ``epochs=1`` or ``lr=1e-3``; defaults are those that suit the data set.

    Returns:
        Metrics by split and task (``result.metrics["test"]["income"]["auc"]``), the curve, probes,
        scores and weights.

    Raises:
        MtlkitError: A name, an option or a setting is wrong, data or a device are missing, or
            training diverged.

    Examples:
        >>> result = mtlkit.fit("mmoe[experts=4]", "synthetic[rows=2000]", "pcgrad", epochs=1)
        >>> sorted(result.metrics["test"])
        ['task-1', 'task-2']
    """
    import torch

    from mtlkit.data.splits import Dataset
    from mtlkit.grid.build import make_balancer, make_model
    from mtlkit.grid.machine import resolve_devices
    from mtlkit.registry import DATASETS
    from mtlkit.settings import ExecutionSettings, TrainingSettings, validate
    from mtlkit.training.numerics import numerics
    from mtlkit.training.result import DivergedError
    from mtlkit.training.setup import TrainingSetup
    from mtlkit.training.task_settings import with_task_settings
    from mtlkit.training.trainer import Trainer

    execution = validate(ExecutionSettings, {"device": device, "metrics": metrics}, "run")
    torch_device = resolve_devices(execution.device)[0]
    data = dataset if isinstance(dataset, Dataset) else load_dataset(dataset)
    seed = _as_seed(seed)

    # settings that suit the data set, then what the user asked for
    suited = DATASETS.load(data.name).training if data.name in DATASETS.names() else {}
    settings = validate(TrainingSettings, {**suited, **training_settings}, "training")
    _check_no_start(settings.init_from, settings.freeze)

    data = with_task_settings(data, settings)
    network = make_model(model, data, seed)
    method = None
    if network.shares_parameters:
        method = make_balancer(balancer, data, settings.scope)

    # the caller's own random numbers go on as if nothing had happened
    gpus = [torch_device] if torch_device.type == "cuda" else []
    with (
        numerics(settings.model_dump(include={"matmul", "deterministic"}), torch_device),
        torch.random.fork_rng(devices=gpus),
    ):
        try:
            setup = TrainingSetup(settings, execution, seed, torch_device)
            return Trainer(network, method, data, setup).fit()
        except DivergedError as error:
            message = f"Training diverged by step {error.step}: {error}."
            raise MtlkitError(message, "try a smaller lr, or clip_norm=1") from error


def load_dataset(spec: str, data_dir: str | Path | None = None) -> Dataset:
    """Load a data set; fetch and prepare it first where that is needed.

    Args:
        spec: A name with options, such as ``"census[protocol=rechub]"``, or the path of a plugin.
        data_dir: The data home; ``$MTLKIT_DATA`` by default, else ``./datasets``.

    Raises:
        MtlkitError: The name or an option is wrong, or the data cannot be had; what takes long to
            download needs ``mtlkit fetch``.
    """
    from mtlkit.data.sources import prepare

    if not isinstance(spec, str):
        message = f"{spec!r} is no name of a data set."
        raise UsageError(message, "mtlkit list datasets shows the names")
    _, dataset = prepare(spec, _home(data_dir))
    return dataset


def balancer(name: str, tasks: int | Sequence[str] | Sequence[Task], **options: Any) -> Balancer:
    """A balancer for a training loop of your own: call its ``backward`` instead of the loss's.

    Args:
        name: A name as in ``mtlkit list balancers``, also with options in brackets, or the path of
            a plugin.
        tasks: Their number, their names, or the tasks themselves.
        **options: Options of the balancer, as in ``mtlkit info NAME``.

    Raises:
        UsageError: The name or an option is wrong.

    Examples:
        >>> pcgrad = mtlkit.balancer("pcgrad", tasks=2)
        >>> weights = pcgrad.backward(losses, shared_parameters=model.trunk.parameters())
    """
    from mtlkit.balancers._build import build

    return build(name, tasks, **options)


def run_grid(
    file: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    relations: bool = False,
    **settings: Any,
) -> list[RunRecord]:
    """Run a grid of architecture x balancer x seed, as ``mtlkit bench`` does; finished cells are
    not run again.

    Args:
        file: A YAML file with a grid.
        data_dir: The data home; ``$MTLKIT_DATA`` by default, else ``./datasets``.
        relations: Whether each two tasks are trained alone, too, so that the report says what they
            gain from each other.
        **settings: What ``mtlkit bench --print-config`` shows, such as ``models="mmoe,ple"``,
            ``seeds=3``, ``out="results"``. They win over the file. A setting of training or
            execution needs no section (``epochs=1``); any other name is an option of the models.

    Returns:
        The records of all cells of the grid, failed ones included, in the order of the plan. Where
        ``tune={"trials": 20}`` tunes it first, they are those of the chosen settings.

    Raises:
        MtlkitError: A setting is wrong, nothing applies, or data or a device are missing.
    """
    from mtlkit.data.data_home import last_fetched
    from mtlkit.data.sources import prepare
    from mtlkit.grid.engines import make_engine
    from mtlkit.grid.grid_settings import read_grid, with_dataset
    from mtlkit.grid.plan import Plan, make_plan
    from mtlkit.grid.relations import check_not_tuned, with_pairs
    from mtlkit.grid.running import RunningGrid
    from mtlkit.grid.tuning import Tuning
    from mtlkit.settings import ExecutionSettings
    from mtlkit.store import ResultStore

    home = _home(data_dir)
    grid_file = None if file is None else _as_path(file)
    grid = read_grid(grid_file, _in_sections(settings), [])
    grid = with_dataset(grid, grid.dataset or last_fetched(home) or "census")
    if relations:
        check_not_tuned(grid)

    source, dataset = prepare(str(grid.dataset), home)
    if grid.tasks is not None:
        dataset = dataset.select(grid.tasks)
    store = ResultStore(grid.out)

    # the engine stores each outcome, so the records are read from there
    def run(plan: Plan, execution: ExecutionSettings = grid.execution) -> None:
        engine = make_engine(store, home, execution)
        store.make()
        with RunningGrid(store.root, "mtlkit.run_grid", len(plan.to_run)) as running:
            for record in engine.run(plan.to_run, running.advance):
                running.finish(record)

    if grid.tune.budget is None:
        plan = make_plan(grid, source, dataset, store)
        if relations:
            plan = with_pairs(plan, grid, source, dataset, store)
    else:
        tuning = Tuning(grid, source, dataset, store)
        plan = tuning.run_trials(lambda trials: run(trials, tuning.trial_execution))
    run(plan)
    stored = [store.get(planned.cell) for planned in plan.cells]
    return [record for record in stored if record is not None]


def load_run(folder: str | Path) -> LoadedRun:
    """The model of a finished run, with its schema, its encoders and its record.

    Args:
        folder: The folder of the run, which must have kept its weights.

    Raises:
        MtlkitError: There is no finished run with weights.

    Examples:
        >>> run = mtlkit.load_run("results/census/mmoe/uniform/seed-0-1a2b3c4d")
        >>> scores = run.predict("new-rows.parquet")  # a frame with a column a score
    """
    from mtlkit.grid import loaded_run

    return loaded_run.load_run(_as_path(folder))


def read_results(folder: str | Path) -> pd.DataFrame:
    """The rows of a report: one a group of runs x split x task x metric, with mean and interval.

    Runs that cannot be read, and copies of a run, are left out with a warning each.

    Args:
        folder: A results folder.

    Raises:
        MtlkitError: There are no records in it.
    """
    import pandas as pd

    from mtlkit.report.build import open_results
    from mtlkit.report.result_rows import rows_of

    frames = open_results(_as_path(folder))
    for left_out in [*frames.unreadable, *frames.copies]:
        warnings.warn(f"left out: {left_out}", stacklevel=2)
    return pd.DataFrame(rows_of(frames))


def write_report(
    folder: str | Path, out: str | Path | None = None, metric: str | None = None
) -> ReportFiles:
    """Write the page, tables and figures of a results folder.

    Args:
        folder: A results folder.
        out: Where to write; ``<folder>/report`` by default.
        metric: What to compare by where it was measured, such as ``gauc``; AUC, R² or accuracy by
            default.

    Returns:
        The paths of what was written.

    Raises:
        MtlkitError: There is nothing to report.
    """
    from mtlkit.report import build

    folder_out = None if out is None else _as_path(out)
    return build.write_report(_as_path(folder), folder_out, metric=metric)


# --- what the functions have in common


def _home(data_dir: str | Path | None) -> Path:
    from mtlkit.data.data_home import data_home

    return data_home(None if data_dir is None else _as_path(data_dir))


def _as_path(path: str | Path) -> Path:
    """The path of a file or a folder; a :class:`UsageError` for what can be none."""
    if not isinstance(path, (str, Path)) or "\0" in str(path):
        raise UsageError(f"{path!r} is no path.", "give the path of a file or a folder, as a text")
    return Path(path)


def _as_seed(seed: int) -> int:
    """A seed as a grid takes it: a whole number that is not negative."""
    from mtlkit.grid.grid_settings import SEED_LIMIT

    # also a number of another package, such as one out of an array
    is_whole = hasattr(seed, "__index__") and not isinstance(seed, bool)
    if not is_whole or not 0 <= int(seed) < SEED_LIMIT:
        message = f"The seed cannot be {seed!r}: it is a whole number from 0 to 10^18 - 1."
        raise UsageError(message, "mtlkit.fit(model, dataset, seed=0)")
    return int(seed)


def _in_sections(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a grid by section: ``epochs=1`` becomes ``training={"epochs": 1}``."""
    from mtlkit.grid.grid_settings import section_of

    values: dict[str, Any] = {}
    for key, value in settings.items():
        section = section_of(key)
        if section is not None:
            values[section] = {**values.get(section, {}), key: value}
        elif isinstance(value, dict):
            values[key] = {**values.get(key, {}), **value}
        else:
            values[key] = value
    return values


def _check_no_start(init_from: str | None, freeze: Sequence[str]) -> None:
    if init_from is not None or freeze:
        raise UsageError(
            "fit starts from the model's own weights, so it takes no init_from and no freeze.",
            "pass a model with the weights loaded, or use mtlkit bench --init-from",
        )
