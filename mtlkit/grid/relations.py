"""The pairs of a grid's tasks as further cells, from which a report reads what tasks gain."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from mtlkit.data.datasets._source import DatasetSource
from mtlkit.data.splits import Dataset
from mtlkit.data.types import Schema
from mtlkit.errors import UsageError
from mtlkit.grid.grid_settings import GridSettings
from mtlkit.grid.methods import expand_wildcards, known_options, owner
from mtlkit.grid.plan import Plan, make_plan
from mtlkit.registry import MODELS
from mtlkit.settings import TrainingSettings, training_of_tasks
from mtlkit.store import ResultStore

REFERENCE = "single-task"
USUAL_MODEL = "shared-bottom"
MAX_PAIR_CELLS = 500
Pair = tuple[str, str]


def with_pairs(
    plan: Plan,
    settings: GridSettings,
    source: DatasetSource,
    dataset: Dataset,
    store: ResultStore,
    *,
    force: bool = False,
    retry_failed: bool = False,
) -> Plan:
    """A plan with cells added: single-task on all tasks, and a multi-task model on each two alone.

    The model is the first of the grid that shares parameters and applies to every pair, else
    shared-bottom; with uniform weights. The cells are those that ``--tasks a,b`` would plan.

    Raises:
        UsageError: There is a single task, runs start from another run, there are too many cells,
            or a setting needs a task, or a kind of task, that not every pair has.
    """
    tasks = dataset.schema.task_names
    auxiliary = set(settings.training.auxiliary)
    trained = [task for task in tasks if task not in settings.training.scored_by]
    pairs = [pair for pair in combinations(trained, 2) if not set(pair) <= auxiliary]
    count = len(pairs) * len(settings.seeds)
    _check_pairs(settings, tasks, count)
    if len(tasks) > 2:
        _check_tasks_needed(settings.training, dataset.schema)

    # what a pair gains is told against single-task, whether or not the grid asked for it
    model = _model_of(settings, dataset, pairs)
    anew = {"force": force, "retry_failed": retry_failed}
    single = _one_model(settings, REFERENCE)
    plans = [plan, make_plan(single, source, dataset, store, **anew)]
    paired = _one_model(settings, model)
    for pair in pairs:
        if len(tasks) > 2:
            values = training_of_tasks(settings.training.model_dump(), pair)
            training = TrainingSettings.model_validate(values)
            paired = paired.model_copy(update={"training": training})
        try:
            plans.append(make_plan(paired, source, dataset.select(pair), store, **anew))
        except UsageError as error:
            message = f"--relations trains {' and '.join(pair)} alone, for which a setting is wrong"
            problem = f"{error.message[:1].lower()}{error.message[1:]}"
            raise UsageError(f"{message}: {problem}", error.hint) from error

    # a cell that the grid has anyway runs once
    cells = {planned.cell.key: planned for added in plans for planned in added.cells}
    note = (
        f"--relations trains {model} on each of {len(pairs)} pairs of tasks alone, {count} cells; "
        "the report says what tasks gain from each other"
    )
    return replace(plan, cells=list(cells.values()), notes=(*plan.notes, note))


def check_not_tuned(settings: GridSettings) -> None:
    """Raise a :class:`UsageError` where trials would choose the settings."""
    if settings.tune.budget is not None:
        raise UsageError(
            "--relations cannot go with --tune: its pairs run with the given settings.",
            "mtlkit bench --relations",
        )


def _one_model(settings: GridSettings, model: str) -> GridSettings:
    """A grid of one model with uniform weights, and those settings of models that it has."""
    options = known_options(settings.model, (model,))
    methods = {"models": (model,), "references": (), "balancers": ("uniform",)}
    return settings.model_copy(update=methods | {"model": options, "balancer": {}})


def _check_pairs(settings: GridSettings, tasks: tuple[str, ...], count: int) -> None:
    if len(tasks) < 2:
        raise UsageError(
            f"--relations needs two tasks or more, and there is only {tasks[0]!r}.",
            "mtlkit bench --relations, without --tasks",
        )
    if settings.execution.init_from is not None:
        raise UsageError(
            "--relations compares with single-task, which starts from no other run.",
            "mtlkit bench --relations, without --init-from",
        )
    if count > MAX_PAIR_CELLS:
        raise UsageError(
            f"{len(tasks)} tasks have {count // len(settings.seeds):,} pairs, which are {count:,} "
            f"cells; --relations runs at most {MAX_PAIR_CELLS}.",
            f"mtlkit bench --relations --tasks {','.join(tasks[:8])} --seeds 3",
        )


def _check_tasks_needed(training: TrainingSettings, schema: Schema) -> None:
    """Look that no setting needs a task that is not in every pair."""
    which, _, metric = training.select.partition(":")
    if which in {score.name for score in schema.scores()}:
        raise UsageError(
            f"select={training.select} goes by a task that not every pair of --relations has.",
            f"mtlkit bench --relations --set select=mean{':' if metric else ''}{metric}",
        )
    for task in schema.tasks:
        weights = training.row_weights.get(task.name, task.row_weights)
        if weights is not None:
            raise UsageError(
                f"The rows of {task.name} are weighted by {weights.indicator}, a task that not "
                "every pair of --relations has.",
                f"mtlkit bench --relations --tasks {task.name},{weights.indicator}",
            )


def _model_of(settings: GridSettings, dataset: Dataset, pairs: list[Pair]) -> str:
    """The first model of a grid that shares parameters and applies to each pair."""
    schemas = [dataset.schema.select(pair) for pair in pairs]
    for spec in expand_wildcards(settings.models, MODELS):
        model_class = owner(MODELS, spec.name).load(spec.name)
        if not model_class.shares_parameters:
            continue
        if not any(model_class.inapplicable(schema) for schema in schemas):
            return str(spec)
    return USUAL_MODEL
