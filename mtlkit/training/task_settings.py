"""What the settings of a run say of tasks, put into the schema that models and metrics read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from mtlkit.data.splits import NO_GROUP, Dataset, Split
from mtlkit.data.types import Schema, Task
from mtlkit.errors import UsageError, first_problem
from mtlkit.losses._build import build_loss, canonical
from mtlkit.settings import RowWeights, TrainingSettings


def with_task_settings(dataset: Dataset, settings: TrainingSettings) -> Dataset:
    """A data set whose tasks have the losses, row weights and roles that the settings give them.

    Its fingerprint stays that of the data.

    Args:
        settings: ``loss``, ``row_weights``, ``auxiliary`` and ``scored_by`` count here. Of tasks
            that another one scores, train has no label.

    Raises:
        UsageError: A setting names a task, a loss or an option that does not exist, or a loss does
            not fit the data.
    """
    named = (*settings.loss, *settings.row_weights, *settings.auxiliary)
    dataset.schema.check_names((*named, *settings.scored_by, *settings.scored_by.values()))
    _check_scored_by(dataset.schema, settings, named)
    tasks = [_with_settings(task, settings) for task in dataset.schema.tasks]
    train = dataset.splits["train"]
    if any(task.row_weights is not None for task in tasks):
        tasks = [_with_train_mean(dataset.schema, task, train) for task in tasks]
    if not any(task.report for task in tasks):
        raise UsageError(
            "All tasks are auxiliary, so there is nothing to report.",
            f"leave one out: {', '.join(dataset.schema.task_names)}",
        )
    try:
        schema = Schema(
            features=dataset.schema.features, tasks=tuple(tasks), funnel=dataset.schema.funnel
        )
    except ValidationError as error:
        problem = first_problem(error)
        names = ", ".join(dataset.schema.task_names)
        hint = f"its tasks are {names}; mtlkit list losses shows what there is"
        raise UsageError(f"{problem[:1].upper()}{problem[1:]}.", hint) from None
    for task in schema.tasks:
        _check_groups(dataset, task)
        _check_amounts(schema, task, train)
    if not settings.scored_by:
        return replace(dataset, schema=schema)

    # a task without a label is idle in every batch
    is_trained = [task.scored_by is None for task in schema.tasks]
    unseen = replace(train, observed=train.observed & np.array(is_trained))
    return replace(dataset, schema=schema, splits={**dataset.splits, "train": unseen})


def key_of(settings: TrainingSettings) -> dict[str, Any]:
    """What a cell's key holds of the settings; losses with all their options."""
    values = settings.of_key()
    if settings.loss:
        values["loss"] = {task: canonical(losses) for task, losses in settings.loss.items()}
    return values


def group_names(tasks: Iterable[Task]) -> list[str]:
    """The groups of rows that losses compare within, such as ``session``."""
    names = [name for task in tasks for name in sorted(build_loss(task).groups)]
    return list(dict.fromkeys(names))


def partners(split: Split, group: str, batch_size: int) -> float:
    """How many other rows of its group a row meets in a shuffled batch, on average."""
    ids = split.groups[group]
    _, sizes = np.unique(ids[ids != NO_GROUP], return_counts=True)
    others = float((sizes * (sizes - 1.0)).sum()) / len(split)
    return others * (batch_size - 1) / max(1, len(split) - 1)


def _check_scored_by(schema: Schema, settings: TrainingSettings, named: tuple[str, ...]) -> None:
    """Raise a :class:`UsageError` where no prediction of another task can score a task."""
    weights = [settings.row_weights.get(task.name, task.row_weights) for task in schema.tasks]
    choosing = {each.indicator for each in weights if each is not None}
    choosing |= {task.given for task in schema.tasks if task.given}
    for name, other in settings.scored_by.items():
        problem = ""
        if other == name or other in settings.scored_by:
            problem = f"{other} is not trained itself"
        elif {schema.task(name).kind, schema.task(other).kind} != {"binary"}:
            problem = "both must be binary, so that a probability of one can be one of the other"
        elif name in (schema.funnel or ()):
            problem = f"{name} is a step of the funnel, whose scores follow from the other steps"
        elif name in choosing:
            problem = f"rows count by the label of {name} for another task"
        elif name in named:
            problem = f"another setting trains {name}, or makes it auxiliary"
        if problem:
            trained = [each for each in schema.task_names if each not in settings.scored_by]
            raise UsageError(
                f"{name} cannot be scored by {other}: {problem}.",
                f"leave scored_by.{name} out, or name a task that is trained: {', '.join(trained)}",
            )


def _with_settings(task: Task, settings: TrainingSettings) -> Task:
    changes: dict[str, Any] = {}
    if task.name in settings.loss:
        changes["losses"] = settings.loss[task.name]
    if task.name in settings.row_weights:
        changes["row_weights"] = settings.row_weights[task.name]
    if task.name in settings.auxiliary:
        changes["report"] = False
    if task.name in settings.scored_by:
        changes["scored_by"] = settings.scored_by[task.name]
    return task.model_copy(update=changes)


def _with_train_mean(schema: Schema, task: Task, train: Split) -> Task:
    """A task whose row weights know their mean over the rows of train that have its label."""
    weights = task.row_weights
    if weights is None or weights.mean == "batch" or weights.indicator not in schema.task_names:
        return task
    inside = schema.task_names.index(weights.indicator)
    is_inside = (train.labels[:, inside] > 0) & train.observed[:, inside]
    values = np.where(is_inside, weights.inside, weights.outside)
    column = schema.label_column(task)
    if train.weight is not None:
        values = values * (train.weight if train.weight.ndim == 1 else train.weight[:, column])
    mean = float(values[train.observed[:, column]].mean())
    changed = RowWeights.model_validate(weights.model_dump() | {"train_mean": mean})
    return task.model_copy(update={"row_weights": changed})


def _check_groups(dataset: Dataset, task: Task) -> None:
    """Raise a :class:`UsageError` where a loss compares rows of a group that data do not name."""
    groups = dataset.splits["train"].groups
    for name in sorted(build_loss(task).groups - groups.keys()):
        hint = "name it in a YAML file: roles: {session: COLUMN}, or groups: [COLUMN]"
        if groups:
            hint = f"its groups are {', '.join(groups)}: jrc[within={next(iter(groups))}]"
        raise UsageError(
            f"{' + '.join(task.losses)} of the task {task.name!r} compares rows of one {name}, but "
            f"{dataset.name} says of no row which {name} it belongs to.",
            hint,
        )


def _check_amounts(schema: Schema, task: Task, train: Split) -> None:
    """Raise a :class:`UsageError` where a loss meets labels that are too small for it."""
    least = build_loss(task).main.least_label
    if least is None:
        return
    column = schema.label_column(task)
    labels = train.labels[:, column][train.observed[:, column]].astype(np.float64)
    mean, std = task.scale or (0.0, 1.0)
    lowest = float((labels * std + mean).min(initial=least))
    if lowest < least - 1e-5 * (abs(mean) + std):
        raise UsageError(
            f"{task.losses[0]} takes amounts of {least:g} or more, but train has labels of "
            f"{task.name!r} down to {lowest:g}.",
            f"--set loss.{task.name}=mse",
        )
