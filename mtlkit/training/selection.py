"""Which evaluation point of a run counts: chosen on the validation split, by one value."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mtlkit.data.groups import RowGroups, group_names
from mtlkit.data.splits import Dataset
from mtlkit.data.types import Schema, Task
from mtlkit.errors import UsageError
from mtlkit.metrics.definitions import METRICS, PRIMARY_METRIC, MetricName, read_metric, reading
from mtlkit.settings import TrainingSettings
from mtlkit.training.scoring import Scores

RULES = ("mean", "weighted", "loss")


@dataclass
class BestPoint:
    """The best evaluation point of a group of tasks that share parameters."""

    tasks: list[int]  # positions of the tasks
    value: float = -math.inf  # the selection value of the point
    point: int = -1  # the number of the point; -1 before the first
    state: dict[str, Tensor] = field(default_factory=dict)  # the model at that point
    # Its scores of the validation rows of the point; None before the first.
    scores: Scores | None = None


@dataclass(frozen=True)
class SelectionRule:
    """What picks the best point of a group of tasks: ``which``, ``metric`` or ``which:metric``."""

    # ``mean`` or ``weighted`` over the scores, the ``loss``, or the name of a score, which counts
    # alone in its group, while other groups go by the mean.
    which: str
    # What the scores are measured by; None for the primary metric of each.
    metric: MetricName | None
    weights: Mapping[str, float]  # of scores, for ``weighted``

    @classmethod
    def read(cls, settings: TrainingSettings, dataset: Dataset) -> SelectionRule:
        """The rule of a run's settings.

        Raises:
            UsageError: There is no such score or metric, or the data cannot give the metric.
        """
        text, schema = settings.select, dataset.schema
        kinds = {task.name: task.kind for task in schema.tasks}
        kind_of = {score.name: kinds[score.task] for score in schema.scores() if not score.hidden}
        weights = settings.select_weights
        if text in RULES or text in kind_of:
            return cls(text, None, weights)

        which, colon, metric_text = text.rpartition(":")
        which = which if colon else "mean"
        if which not in kind_of and which not in ("mean", "weighted"):
            raise _no_such_task(which, schema)
        if not colon and text.partition("@")[0] not in METRICS:
            raise _no_such_task(text, schema)
        metric = resolve_metric(read_metric(metric_text), dataset)

        # Some score that counts must have it.
        kinds_that_count = [kind_of[which]] if which in kind_of else list(kind_of.values())
        if not any(metric.applies_to(kind) for kind in kinds_that_count):
            raise UsageError(
                f"No {' or '.join(metric.metric.kinds)} task is there to select by {metric}.",
                f"--set select={which} goes by the primary metric",
            )
        return cls(which, metric, weights)

    def metric_of(self, task: Task) -> str:
        """The metric by which a task counts: another one for a kind that does not have it."""
        if self.metric is not None and self.metric.applies_to(task.kind):
            return str(self.metric)
        return PRIMARY_METRIC[task.kind]

    def narrow(self, tasks: dict[str, Task]) -> dict[str, Task]:
        """The scores of a group that count: the one named, those with the metric, or all."""
        if self.which in tasks:
            return {self.which: tasks[self.which]}
        if self.metric is None:
            return tasks
        metric = self.metric
        with_metric = {name: task for name, task in tasks.items() if metric.applies_to(task.kind)}
        return with_metric or tasks


def selection_value(
    rule: SelectionRule, tasks: dict[str, Task], metrics: dict[str, dict[str, Any]], loss: float
) -> float:
    """The value, higher is better, of an evaluation point for a group of tasks.

    It is a mean over tasks: a step of a funnel that has two scores counts as much as one that has
    one, half for each score. A metric of which lower values are better counts with its sign turned.

    Args:
        tasks: The scores of the group, by name, each with its task.
        metrics: Score name to validation metrics.
        loss: Summed validation loss of the group, which decides where no metric is defined.
    """
    if rule.which == "loss":
        return -loss

    # The metrics that are defined.
    tasks = rule.narrow(tasks)
    values: dict[str, float] = {}
    for name, task in tasks.items():
        metric = rule.metric_of(task)
        value = metrics[name].get(metric)
        if value is not None:
            values[name] = reading(metric).goodness(value)
    scores_of_task = Counter(tasks[name].name for name in values)

    # Their mean over tasks, or the mean that the user has weighted.
    weighted_sum, weight_sum = 0.0, 0.0
    for name, value in values.items():
        task = tasks[name]
        weight = 1.0 / scores_of_task[task.name]
        if rule.which == "weighted":
            weight = rule.weights.get(name, task.weight / scores_of_task[task.name])
        weighted_sum += weight * value
        weight_sum += weight
    return weighted_sum / weight_sum if weight_sum > 0 else -loss


def resolve_metric(
    name: MetricName, dataset: Dataset, splits: Sequence[str] = ("validation",)
) -> MetricName:
    """A metric with the group that it takes by default in a data set.

    Args:
        name: As the user wrote it.
        splits: Those of which one must have rows of its segment.

    Raises:
        UsageError: The data does not have its group or its segment.
    """
    if name.segment is not None:
        of_splits = [RowGroups(dataset, split).all_segments() for split in splits]
        known = dict.fromkeys(segment for segments in of_splits for segment in segments)
        if name.segment not in known:
            listed = ", ".join(known) or "none"
            raise UsageError(
                f"{dataset.name} has no segment {name.segment!r} of {' or '.join(splits)} rows.",
                f"its segments are: {listed}; in the YAML of a table, groups: [COLUMN] names more",
            )
    return name.resolve(group_names(dataset), dataset.name)


def requested_metrics(texts: Iterable[str], dataset: Dataset) -> tuple[MetricName, ...]:
    """The metrics that a user asks for besides those that are always there.

    Raises:
        UsageError: There is no such metric, or no task and no group of the data has it.
    """
    kinds = {task.kind for task in dataset.schema.tasks}
    splits = ("validation", "test")
    names = [resolve_metric(read_metric(text), dataset, splits) for text in texts]
    for name in names:
        if not any(name.applies_to(kind) for kind in kinds):
            raise UsageError(
                f"{name} needs a {' or '.join(name.metric.kinds)} task; {dataset.name} has none.",
                f"its tasks are of the kind {' and '.join(sorted(kinds))}",
            )
    return tuple(names)


def check_task_names(settings: TrainingSettings, dataset: Dataset) -> None:
    """Check that the settings fit the tasks and groups of a data set.

    Raises:
        UsageError: A setting names a task, or a score or a metric to select by, that does not
            exist; or no task takes part in some steps.
    """
    schema = dataset.schema
    SelectionRule.read(settings, dataset)

    # Every name that a setting uses must be a task, a score or a rule.
    tasks = schema.task_names
    scores = [score.name for score in schema.scores() if not score.hidden]
    by_task = (settings.task_weights, settings.task_lr, settings.task_every)
    unknown = {name for values in by_task for name in values} - set(tasks)
    unknown |= set(settings.select_weights) - set(scores)
    if unknown:
        raise _no_such_task(min(unknown), schema)

    # Step 1 has no task if none takes part in every step.
    if min(settings.task_every.get(name, 1) for name in tasks) > 1:
        raise UsageError(
            "With task_every above 1 for all tasks, there are steps without any.",
            f"--set task_every.{tasks[0]}=1",
        )


def _no_such_task(name: str, schema: Schema) -> UsageError:
    """The error about a name that is no task, and no score to select by."""
    tasks = schema.task_names
    scores = [score.name for score in schema.scores() if not score.hidden]
    scores_beside_tasks = [score for score in scores if score not in tasks]
    also = ""
    if scores_beside_tasks:
        also = f"; to select by, also {', '.join(scores_beside_tasks)}"
    return UsageError(
        f"There is no task {name!r} in this data set.", f"its tasks are {', '.join(tasks)}{also}"
    )
