"""Which evaluation point of a run counts: chosen on the validation split, by one value."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mtlkit.data.types import Schema, Task
from mtlkit.errors import UsageError
from mtlkit.records import PRIMARY_METRIC
from mtlkit.settings import TrainingSettings

RULES = ("mean", "weighted", "loss")


@dataclass
class Best:
    """The best evaluation point of a group of tasks that share parameters.

    Args:
        tasks: Positions of the tasks.
        value: Its selection value.
        point: Its number; -1 before the first.
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

    Args:
        settings: ``select`` is the rule; a named score counts alone in its group, and other groups
            go by the mean.
        tasks: The scores of the group, by name, each with its task.
        metrics: Task to validation metrics.
        loss: Summed validation loss of the group, which decides where no metric is defined.
    """
    if settings.select == "loss":
        return -loss
    if settings.select in tasks:
        tasks = {settings.select: tasks[settings.select]}
    weighted = settings.select == "weighted"
    pairs = []
    for name, task in tasks.items():
        value = metrics[name].get(PRIMARY_METRIC[task.kind])
        weight = settings.select_weights.get(name, task.weight) if weighted else 1.0
        if value is not None and weight > 0:
            pairs.append((weight, value))
    if not pairs:
        return -loss
    return sum(weight * value for weight, value in pairs) / sum(weight for weight, _ in pairs)


def check_task_names(settings: TrainingSettings, schema: Schema) -> None:
    """Raise a :class:`UsageError` where a setting names a task, or a score to select by, that does
    not exist.
    """
    tasks = schema.task_names
    scores = [score.name for score in schema.scores() if not score.hidden]
    by_task = (settings.task_weights, settings.task_lr, settings.task_every)
    unknown = {name for values in by_task for name in values} - set(tasks)
    unknown |= {settings.select, *settings.select_weights} - set(RULES) - set(scores)
    if unknown:
        more = [name for name in scores if name not in tasks]
        also = f"; to select by, also {', '.join(more)}" if more else ""
        raise UsageError(
            f"There is no task {min(unknown)!r} in this data set.",
            f"its tasks are {', '.join(tasks)}{also}",
        )
    if min(settings.task_every.get(name, 1) for name in tasks) > 1:
        raise UsageError(
            "With task_every above 1 for all tasks, there are steps without any.",
            f"--set task_every.{tasks[0]}=1",
        )
