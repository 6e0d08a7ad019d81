"""From settings to cells: which runs there are, which are done, and which make no sense and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from mtlkit.data.datasets._source import DatasetSource
from mtlkit.data.planted import ceilings
from mtlkit.data.splits import Dataset
from mtlkit.data.types import Schema
from mtlkit.errors import UsageError
from mtlkit.grid.grid_settings import GridSettings
from mtlkit.models._funnel import NO_FUNNEL
from mtlkit.models._options import BaseOptions, ModelOptions
from mtlkit.records import Cell
from mtlkit.registry import BALANCERS, MODELS, Registry
from mtlkit.settings import Settings, validate
from mtlkit.spec import Spec, parse_spec
from mtlkit.store import ResultStore
from mtlkit.training.selection import check_task_names

NO_BALANCER = "none"


@dataclass(frozen=True)
class Planned:
    """A cell and what will become of it."""

    cell: Cell
    state: Literal["to run", "done", "failed before"]


@dataclass(frozen=True)
class Plan:
    """All cells of a grid.

    Args:
        cells: In the order in which they run.
        inapplicable: Model as typed, and why it makes no sense on this data set.
    """

    cells: list[Planned]
    inapplicable: list[tuple[str, str]]

    @property
    def to_run(self) -> list[Cell]:
        return [planned.cell for planned in self.cells if planned.state == "to run"]


@dataclass(frozen=True)
class _Method:
    typed: str
    resolved: dict[str, Any]


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
        source: The source of the data set.
        dataset: The loaded data set, with the tasks to use.
        store: Where finished cells are looked up.
        force: Plan models that do not apply, too.
        retry_failed: Plan failed cells again.

    Raises:
        UsageError: A method, an option or the name of a task is wrong, or nothing applies.
    """
    check_task_names(settings.training, dataset.schema)
    models: list[tuple[_Method, bool]] = []
    inapplicable: list[tuple[str, str]] = []
    references = (
        () if settings.execution.init_from else settings.references
    )  # they have other weights
    typed = _expand(references, MODELS) + _expand(settings.models, MODELS)
    for spec in typed:
        kind = MODELS.load(spec.name)
        options = _options(spec, settings.model, kind.Options, "model")
        reason = kind.inapplicable(dataset.schema)
        if reason and not force:
            inapplicable.append((str(spec), f"{dataset.name} {reason}"))
            continue
        _check_names(options, dataset.schema, spec)
        kind.check(dataset.schema, options)
        models.append((_method(spec, options, MODELS), kind.shares_parameters))
    _check_known(settings.model, (MODELS.load(spec.name).Options for spec in typed), "model")
    balancers = _balancers(settings, dataset)
    refused = {name for name, _ in inapplicable}
    if not models or (
        settings.models and refused.issuperset(map(str, _expand(settings.models, MODELS)))
    ):
        names = "; ".join(f"{name}: {reason}" for name, reason in inapplicable) or "none was named"
        raise UsageError(f"No model of this grid applies ({names}).", "mtlkit list models")

    data = {
        "name": source.name,
        "options": source.resolved_options(),
        "tasks": list(dataset.schema.task_names),
        "fingerprint": dataset.fingerprint,
        "simulated": dataset.simulated,
    }
    training = settings.training.model_dump(mode="json") | {"init_from": _start(settings)}
    ceiling = ceilings(dataset)
    cells: dict[str, Cell] = {}
    for seed in settings.seeds:
        for model, shares in models:
            for balancer in (
                balancers
                if shares
                else [_Method(NO_BALANCER, {"name": NO_BALANCER, "options": {}})]
            ):
                resolved = {
                    "dataset": data,
                    "model": model.resolved,
                    "balancer": balancer.resolved,
                    "training": training,
                }
                cell = Cell(
                    dataset=str(settings.dataset),
                    model=model.typed,
                    balancer=balancer.typed,
                    seed=seed,
                    resolved=resolved,
                    ceiling=ceiling,
                )
                cells.setdefault(cell.key, cell)
    return Plan(
        [Planned(cell, _state(cell, store, retry_failed)) for cell in cells.values()], inapplicable
    )


def _start(settings: GridSettings) -> str | None:
    """The key of the run to start from: the folder may move, what was learnt there is what counts."""
    folder, key = settings.execution.init_from, settings.training.init_from
    example = "mtlkit bench --init-from results/census/mmoe/uniform/seed-0-1a2b3c4d"
    if folder is None:
        if key is not None:
            raise UsageError(
                f"init_from of the training is the key of a run, which mtlkit fills in; {key!r} names no folder.",
                example,
            )
        if settings.training.freeze:
            raise UsageError(
                "freeze keeps weights of an earlier run, but none is named.",
                f"{example} --freeze 'embedding.*'",
            )
        return None
    record = ResultStore.record(folder)
    if record is None or not record.ok:
        raise UsageError(f"There is no finished run in {folder}.", example)
    if not (folder / "weights.npz").exists():
        raise UsageError(
            f"The run in {folder} kept no weights.",
            f"{_again(record.cell)} --set save_weights=true --out results/weights",
        )
    if key not in (None, record.key):
        raise UsageError(
            f"init_from of the training is {key!r}, but the run in {folder} has the key {record.key}.",
            f"mtlkit bench --init-from {folder}, without that setting",
        )
    return record.key


def _again(cell: Cell) -> str:
    """The command that runs a cell alone."""
    balancer = "" if cell.balancer == NO_BALANCER else f" --balancers '{cell.balancer}'"
    alone = f"--references none --seeds {cell.seed},"
    return f"mtlkit bench -d '{cell.dataset}' --models '{cell.model}'{balancer} {alone}"


def _balancers(settings: GridSettings, dataset: Dataset) -> list[_Method]:
    methods = []
    specs = _expand(settings.balancers, BALANCERS)
    for spec in specs:
        kind = BALANCERS.load(spec.name)
        options = _options(spec, settings.balancer, kind.Options, "balancer")
        if settings.training.scope not in kind.scopes:
            raise UsageError(
                f"{spec.name} compares gradients of several batches, so it cannot work with scope=representation.",
                f"mtlkit bench --balancers {spec.name} --set scope=dense",
            )
        for name, own in kind.expand(spec.name, dataset.schema.tasks, options):
            BALANCERS.load(name)(
                dataset.schema.tasks, own
            )  # raises where an option does not fit the tasks
            typed = (
                spec
                if own is options
                else Spec(name, own.model_dump(mode="json", exclude_unset=True))
            )
            methods.append(_method(typed, own, BALANCERS))
    _check_known(
        settings.balancer, (BALANCERS.load(spec.name).Options for spec in specs), "balancer"
    )
    return methods


def _expand(typed: Iterable[str], registry: Registry) -> list[Spec]:
    """Read specs, with wildcards in names replaced by all that match."""
    specs = []
    for text in typed:
        spec = parse_spec(text)
        names = [spec.name]
        if any(sign in spec.name for sign in "*?"):
            names = registry.names(spec.name)
            if not names:
                raise UsageError(
                    f"No {registry.kind} matches {spec.name!r}.", f"mtlkit list {registry.kind}s"
                )
        specs += [Spec(registry.check(name), spec.options) for name in names]
    return specs


def _options(spec: Spec, common: dict[str, Any], kind: type[Settings], what: str) -> Settings:
    """Options in brackets, over those given for all methods that have them."""
    own = {key: value for key, value in common.items() if key in kind.model_fields}
    return validate(kind, own | spec.options, f"{what} {spec.name}")


def _method(spec: Spec, options: Settings, registry: Registry) -> _Method:
    resolved: dict[str, Any] = {"name": spec.name, "options": options.model_dump(mode="json")}
    plugin = registry.source_digest(spec.name)
    if plugin is not None:
        resolved["source_sha256"] = plugin
    return _Method(str(spec), resolved)


def _check_known(common: dict[str, Any], kinds: Iterable[type[BaseModel]], what: str) -> None:
    known = sorted({field for kind in kinds for field in kind.model_fields})
    for key in common:
        if key not in known:
            raise UsageError(
                f"No setting and no option of a {what} in this grid is called {key!r}.",
                f"options of its {what}s are {', '.join(known)}"
                if known
                else f"its {what}s take no options",
            )


def _check_names(options: Settings, schema: Schema, spec: Spec) -> None:
    """Options that name features or tasks must name ones that exist."""
    assert isinstance(options, BaseOptions)
    if isinstance(options, ModelOptions) and options.cvr != "derived" and schema.funnel is None:
        raise UsageError(
            f"{spec} asks for a CVR, but the data set {NO_FUNNEL}.",
            f"mtlkit bench --models {spec.name}",
        )
    features = {feature.name for feature in schema.features if feature.kind != "dense"}
    towers = options.tower if isinstance(options.tower, dict) else {}
    checks: list[tuple[Iterable[str], Iterable[str], str]] = [
        (options.embedding_dims, features, "embedded feature"),
        (towers, schema.task_names, "task"),
    ]
    for named, known, what in checks:
        for name in sorted(set(named) - set(known)):
            raise UsageError(
                f"{spec.name} names the {what} {name!r}, which the data set does not have.",
                f"it has {', '.join(sorted(known))}",
            )


def _state(
    cell: Cell, store: ResultStore, retry_failed: bool
) -> Literal["to run", "done", "failed before"]:
    record = store.get(cell)
    if record is None or (retry_failed and not record.ok):
        return "to run"
    return "done" if record.ok else "failed before"
