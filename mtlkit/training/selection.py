"""Which evaluation point of a run counts: chosen on the validation split, by one value."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mtlkit.data.types import Schema, Task
from mtlkit.errors import UsageError
from mtlkit.records import PRIMARY_METRIC
from mtlkit.settings import TrainingSettings

RULES = ("mean", "weighted", "loss")


@dataclass
class BestPoint:
    """The best evaluation point of a group of tasks that share parameters.

    Args:
        tasks: Positions of the tasks.
        value: The selection value of the point.
        point: The number of the point; -1 before the first.
        state: The model at that point.
    """

    tasks: list[int]
    value: float = -math.inf
    point: int = -1
    state: dict[str, Tensor] = field(default_factory=dict)


def selection_value(
    settings: TrainingSettings,
    tasks: dict[str, Task],
    metrics: dict[str, dict[str, Any]],
    loss: float,
) -> float:
    """The value, higher is better, of an evaluation point for a group of tasks.

    It is a mean over tasks: a step of a funnel that has two scores counts as much as one that has
    one, half for each score.

    Args:
        settings: ``select`` is the rule; a named score counts alone in its group, and other groups
            go by the mean. With ``weighted``, ``select_weights`` are weights of scores.
        tasks: The scores of the group, by name, each with its task.
        metrics: Score name to validation metrics.
        loss: Summed validation loss of the group, which decides where no metric is defined.
    """
    if settings.select == "loss":
        return -loss
    if settings.select in tasks:
        tasks = {settings.select: tasks[settings.select]}

    # The primary metrics that are defined.
    values: dict[str, float] = {}
    for name, task in tasks.items():
        value = metrics[name].get(PRIMARY_METRIC[task.kind])
        if value is not None:
            values[name] = value
    scores_of_task = Counter(tasks[name].name for name in values)

    # Their mean over tasks, or the mean that the user has weighted.
    weighted_sum, weight_sum = 0.0, 0.0
    for name, value in values.items():
        task = tasks[name]
        weight = 1.0
        if settings.select == "weighted":
            weight = task.weight
        weight /= scores_of_task[task.name]
        if settings.select == "weighted":
            weight = settings.select_weights.get(name, weight)
        weighted_sum += weight * value
        weight_sum += weight
    return weighted_sum / weight_sum if weight_sum > 0 else -loss


def check_task_names(settings: TrainingSettings, schema: Schema) -> None:
    """Check that the settings fit the tasks of a data set.

    Raises:
        UsageError: A setting names a task, or a score to select by, that does not exist; or no task
            takes part in some steps.
    """
    # Every name that a setting uses must be a task, a score or a rule.
    tasks = schema.task_names
    scores = [score.name for score in schema.scores() if not score.hidden]
    by_task = (settings.task_weights, settings.task_lr, settings.task_every)
    unknown = {name for values in by_task for name in values} - set(tasks)
    unknown |= {settings.select, *settings.select_weights} - set(RULES) - set(scores)
    if unknown:
        scores_beside_tasks = [name for name in scores if name not in tasks]
        also = ""
        if scores_beside_tasks:
            also = f"; to select by, also {', '.join(scores_beside_tasks)}"
        raise UsageError(
            f"There is no task {min(unknown)!r} in this data set.",
            f"its tasks are {', '.join(tasks)}{also}",
        )

    # Step 1 has no task if none takes part in every step.
    if min(settings.task_every.get(name, 1) for name in tasks) > 1:
        raise UsageError(
            "With task_every above 1 for all tasks, there are steps without any.",
            f"--set task_every.{tasks[0]}=1",
        )
