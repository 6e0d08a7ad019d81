"""From settings to cells: which runs there are, which are done, and which make no sense and why."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from mtlkit.commands import command_of
from mtlkit.data.datasets._source import DatasetSource
from mtlkit.data.planted import ceilings
from mtlkit.data.splits import Dataset
from mtlkit.data.types import Schema, loss_spec
from mtlkit.errors import UsageError
from mtlkit.grid.build import build_model
from mtlkit.grid.grid_settings import GridSettings
from mtlkit.grid.methods import (
    Method,
    check_common_options,
    check_model,
    expand_balancer,
    expand_wildcards,
    method_options,
    owner,
    resolve,
    running_references,
    typed_common,
)
from mtlkit.metrics.definitions import MetricName
from mtlkit.records import NO_BALANCER, Cell
from mtlkit.registry import BALANCERS, LOSSES, MODELS, is_baseline
from mtlkit.settings import Settings
from mtlkit.store import ResultStore
from mtlkit.training.scoring import FUNNEL_SCORING
from mtlkit.training.selection import check_task_names, requested_metrics
from mtlkit.training.task_settings import key_of, with_task_settings
from mtlkit.training.warm_start import frozen_names

State = Literal["to run", "done", "failed before"]
MAX_CELLS = 100_000


@dataclass(frozen=True)
class PlannedCell:
    """A cell and what will become of it."""

    cell: Cell
    state: State


@dataclass(frozen=True)
class Plan:
    """All cells of a grid."""

    cells: list[PlannedCell]  # seed by seed; engines order those of a seed
    # Model as typed, and why it makes no sense on this data set.
    inapplicable: list[tuple[str, str]]
    notes: tuple[str, ...] = ()  # sentences for the user

    @property
    def to_run(self) -> list[Cell]:
        return [planned.cell for planned in self.cells if planned.state == "to run"]

    def shard(self, number: int, parts: int) -> Plan:
        """One of several parts of the grid, counted from 1. The key of a cell says which part it is
        in, whatever else is in the grid.
        """
        cells = [
            planned for planned in self.cells if int(planned.cell.key, 16) % parts == number - 1
        ]
        return replace(self, cells=cells)


def make_plan(
    settings: GridSettings,
    source: DatasetSource,
    dataset: Dataset,
    store: ResultStore,
    *,
    force: bool = False,
    retry_failed: bool = False,
) -> Plan:
    """List the cells of a grid, one seed after another so that early results are complete across
    methods.

    Args:
        settings: The grid; ``settings.dataset`` is the text that was typed.
        dataset: The loaded data set, with the tasks to use.
        force: Plan models that do not apply, too.
        retry_failed: Plan failed cells again.

    Raises:
        UsageError: A method, an option, the name of a task or a pattern of ``freeze`` is wrong, or
            nothing applies, or there are too many cells, or one cannot be trained by processes.
    """
    dataset = with_task_settings(dataset, settings.training)
    check_task_names(settings.training, dataset)
    metrics = requested_metrics(settings.execution.metrics, dataset)
    models, inapplicable = _models(settings, dataset, force)
    balancers = _balancers(settings, dataset.schema)
    _check_something_applies(settings, models, inapplicable)
    pairs = _pairs(models, balancers)
    check_count(len(settings.seeds) * len(pairs))

    cells = _cells(settings, source, dataset, pairs)
    _check_freeze(settings, models, dataset.schema)
    planned = [PlannedCell(cell, _state(cell, store, retry_failed)) for cell in cells]
    only_baselines = all(is_baseline(model.resolved["name"]) for model, _ in pairs)
    repeated = settings.training.repeats_rows(len(dataset.splits["train"]))
    notes = ("" if only_baselines else repeated, _unmeasured(planned, store, metrics))
    plan = Plan(planned, inapplicable, tuple(note for note in notes if note))
    if settings.execution.processes > 1:
        _check_processes(plan.to_run, settings, dataset)
    return plan


def _cells(
    settings: GridSettings,
    source: DatasetSource,
    dataset: Dataset,
    pairs: list[tuple[Method, Method]],
) -> list[Cell]:
    """The cells of pairs of a model and a balancer, seed by seed. One that is named twice, such as
    by a sweep and by hand, runs once.
    """
    common = _common(settings, source, dataset)
    of_baselines = common | {"training": settings.training.of_baselines()}
    of_baselines.pop("losses", None)
    ceiling = ceilings(dataset)
    typed = {(m.typed, b.typed): typed_common(settings, m.typed, b.typed) for m, b in pairs}
    cells: dict[str, Cell] = {}
    for seed, (model, balancer) in product(settings.seeds, pairs):
        cell = Cell(
            dataset=str(settings.dataset),
            model=model.typed,
            balancer=balancer.typed,
            seed=seed,
            resolved={
                "model": model.resolved,
                "balancer": balancer.resolved,
                **(of_baselines if is_baseline(model.resolved["name"]) else common),
            },
            ceiling=ceiling,
            common=typed[model.typed, balancer.typed],
            forced=model.forced,
        )
        cells.setdefault(cell.key, cell)
    return list(cells.values())


# --- methods


@dataclass(frozen=True)
class _Model:
    method: Method
    options: Settings
    shares_parameters: bool


def _models(
    settings: GridSettings, dataset: Dataset, force: bool
) -> tuple[list[_Model], list[tuple[str, str]]]:
    """The models that apply, references first; and those that do not, each with the reason."""
    specs = expand_wildcards((*running_references(settings), *settings.models), MODELS)

    models = []
    inapplicable = []
    for spec in specs:
        registry = owner(MODELS, spec.name)
        model_class = registry.load(spec.name)
        options = method_options(spec, settings.model, registry)
        if is_baseline(spec.name):
            models.append(_Model(resolve(spec, options, registry), options, False))
            continue
        with MODELS.told_as_error_of(spec.name):
            reason = model_class.inapplicable(dataset.schema)
            if reason and not force:
                inapplicable.append((str(spec), f"{dataset.name} {reason}"))
                continue
            check_model(spec, model_class, options, dataset.schema)
        method = replace(resolve(spec, options, MODELS), forced=bool(reason))
        models.append(_Model(method, options, model_class.shares_parameters))

    check_common_options(settings.model, specs, MODELS)
    return models, inapplicable


def _balancers(settings: GridSettings, schema: Schema) -> list[Method]:
    """The balancers, with sweeps expanded."""
    methods = []
    specs = expand_wildcards(settings.balancers, BALANCERS)
    for spec in specs:
        options = method_options(spec, settings.balancer, BALANCERS)
        methods += expand_balancer(spec, options, schema, settings.training.scope)
    check_common_options(settings.balancer, specs, BALANCERS)
    return methods


def _check_something_applies(
    settings: GridSettings, models: list[_Model], inapplicable: list[tuple[str, str]]
) -> None:
    """Raise a :class:`UsageError` where no model is left; a reference alone compares nothing."""
    refused = {name for name, _ in inapplicable}
    asked_for = {str(spec) for spec in expand_wildcards(settings.models, MODELS)}
    all_refused = bool(settings.models) and asked_for <= refused
    if not models or all_refused:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in inapplicable)
        raise UsageError(
            f"No model of this grid applies ({reasons or 'none was named'}).", "mtlkit list models"
        )


def _pairs(models: list[_Model], balancers: list[Method]) -> list[tuple[Method, Method]]:
    """Every model under every balancer; a model whose tasks share nothing runs once, without."""
    no_balancer = Method(NO_BALANCER, {"name": NO_BALANCER, "options": {}})
    pairs = []
    for model in models:
        applicable = balancers if model.shares_parameters else [no_balancer]
        pairs += [(model.method, balancer) for balancer in applicable]
    return pairs


def check_count(count: int) -> None:
    """Raise a :class:`UsageError` for a grid that no memory holds."""
    if count > MAX_CELLS:
        raise UsageError(
            f"This grid has {count:,} cells, but the most is {MAX_CELLS:,}.",
            "mtlkit bench --seeds 3, with fewer models, balancers or trials",
        )


def _common(settings: GridSettings, source: DatasetSource, dataset: Dataset) -> dict[str, Any]:
    """What all cells hold: the data, the training, and digests of losses that are files, if any."""
    schema = dataset.schema
    data = {
        "name": source.entry,
        "options": source.resolved_options(),
        "tasks": list(schema.task_names),
        "fingerprint": dataset.fingerprint,
        "simulated": dataset.simulated,
    }
    if schema.funnel is not None:
        data["funnel_scoring"] = FUNNEL_SCORING
    training = key_of(settings.training) | {"init_from": _key_of_start(settings)}
    names = {loss_spec(loss).name for task in schema.tasks for loss in task.losses}
    digests = {name: LOSSES.source_digest(name) for name in sorted(names)}
    plugins = {name: digest for name, digest in digests.items() if digest is not None}
    return {"dataset": data, "training": training} | ({"losses": plugins} if plugins else {})


def _check_processes(cells: list[Cell], settings: GridSettings, dataset: Dataset) -> None:
    """Raise a :class:`UsageError` for a cell that several processes cannot train together."""
    import torch

    from mtlkit.grid.run_cell import build_trainer
    from mtlkit.training.parallel import BlockTrainer

    tried = set()
    for cell in cells:
        if is_baseline(cell.resolved["model"]["name"]):
            continue
        # what a model and a kind of balancer allow is the same for all seeds
        no_balancer = cell.balancer == NO_BALANCER
        needs = None if no_balancer else BALANCERS.load_planned(cell.resolved["balancer"]).needs
        if (cell.model, needs) in tried:
            continue
        tried.add((cell.model, needs))
        try:
            build_trainer(
                cell, dataset, settings.execution, torch.device("cpu"), trainer_type=BlockTrainer
            )
        except UsageError as error:
            message = f"{cell.model} under {cell.balancer}: {error.message}"
            raise UsageError(message, error.hint) from error
        except Exception:  # what is wrong with it alone is its own failure
            continue


# --- the start, and what is done already


def _check_freeze(settings: GridSettings, models: list[_Model], schema: Schema) -> None:
    """Raise a :class:`UsageError` for a model without the parameters that shall be frozen, or
    without others to train.
    """
    if not settings.training.freeze:
        return
    for model in models:
        if is_baseline(model.method.resolved["name"]):
            continue
        model_class = MODELS.load(model.method.resolved["name"])
        with MODELS.told_as_error_of(model.method.resolved["name"]):
            network = build_model(model_class, schema, model.options, seed=0)
        names = [name for name, _ in network.named_parameters()]
        frozen_names(names, settings.training.freeze, model.method.typed)


def _key_of_start(settings: GridSettings) -> str | None:
    """The key of the run to start from: its folder may move, what was learnt there counts."""
    folder, key = settings.execution.init_from, settings.training.init_from
    example = "mtlkit bench --init-from results/census/mmoe/uniform/seed-0-1a2b3c4d"

    # no folder: then nothing else may speak of a start
    if folder is None:
        if key is not None:
            raise UsageError(
                "init_from of the training is the key of a run, which mtlkit fills in; "
                f"{key!r} names no folder.",
                example,
            )
        if settings.training.freeze:
            raise UsageError(
                "freeze keeps weights of an earlier run, but none is named.",
                f"{example} --freeze 'embedding.*'",
            )
        return None

    # a folder must hold a finished run, with its weights
    record = ResultStore.record(folder)
    if record is None or not record.ok:
        raise UsageError(f"There is no finished run in {folder}.", example)
    if not (folder / "weights.npz").exists():
        raise UsageError(
            f"The run in {folder} kept no weights.",
            f"{command_of(record.cell)} --set save_weights=true --out results/weights",
        )

    # a grid that was written to a file holds the key as well
    if key not in (None, record.key):
        raise UsageError(
            f"init_from of the training is {key!r}, "
            f"but the run in {folder} has the key {record.key}.",
            f"leave that setting out: mtlkit bench --init-from {shlex.quote(str(folder))}",
        )
    return record.key


def _state(cell: Cell, store: ResultStore, retry_failed: bool) -> State:
    """What the store knows of a cell."""
    record = store.get(cell)
    if record is None or (retry_failed and not record.ok):
        return "to run"
    return "done" if record.ok else "failed before"


def _unmeasured(
    planned: list[PlannedCell], store: ResultStore, metrics: tuple[MetricName, ...]
) -> str:
    """A sentence on finished runs that lack a metric which is asked for now; empty without any."""
    lacking: set[str] = set()
    for done in planned if metrics else []:
        record = store.get(done.cell)
        if record is not None and record.ok:
            measured = {name for values in record.metrics["test"].values() for name in values}
            lacking |= set(map(str, metrics)) - measured
    if not lacking:
        return ""
    return (
        f"some finished runs were not measured by {', '.join(sorted(lacking))}, and are "
        "not run again; with --out another-folder they are"
    )
