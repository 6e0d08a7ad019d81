"""From frames to the rows of one table: means over seeds and paired differences to single-task."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mtlkit.equivalences import notices
from mtlkit.report.blocks import Block, RunGroup, TaskInfo
from mtlkit.report.frame import Frames
from mtlkit.report.statistics import (
    Interval,
    delta_m,
    paired_delta,
    pareto_front,
    recovered,
    t_interval,
)

SPLIT = "test"
TaskValues = dict[str, dict[int, float]]
"""Task to seed to the task's primary metric."""
FEW_POSITIVES = 100
"""Below this number, the draw of the test rows moves an AUC more than most seeds do."""
SHOWN = 6  # rows that a warning lists by name


@dataclass(frozen=True)
class Row:
    """One group of runs.

    Args:
        group: The group.
        values: Task to seed to the task's primary metric.
        metric: Task to mean and interval.
        delta: Task to the paired difference to single-task; empty for single-task itself.
        gain: Mean relative gain over all tasks (delta m), as a fraction.
        derived: Tasks that the model does not predict itself.
        on_front: Whether no other row's means are at least as good on all tasks.
        parameters: Mean over seeds, as the next four.
        flops_per_row: Operations of the matrix products of a forward pass, by row.
        rows_per_second: Training rows a second.
        seconds: Training seconds.
        peak_memory: Bytes.
        has_reference: Whether there is a single-task group with the same training settings.
    """

    group: RunGroup
    values: Mapping[str, Mapping[int, float]]
    metric: Mapping[str, Interval]
    delta: Mapping[str, Interval]
    gain: Interval
    derived: frozenset[str]
    on_front: bool
    parameters: float
    flops_per_row: float
    rows_per_second: float
    seconds: float
    peak_memory: float
    has_reference: bool


@dataclass(frozen=True)
class Summary:
    """The rows of one data set block, best first.

    Args:
        block: The block.
        rows: Sorted by gain over single-task where there is one, else by mean metric.
        best: Task to the label-independent id of the group with the best mean.
        counts: Task to (positives, rows) of the test split; NaN when unknown or not the same in all
            runs.
        warnings: What a reader must know before comparing rows.
    """

    block: Block
    rows: tuple[Row, ...]
    best: Mapping[str, str]
    counts: Mapping[str, tuple[float, float]]
    warnings: tuple[str, ...]

    @property
    def finished(self) -> tuple[Row, ...]:
        """Rows with at least one finished run."""
        return tuple(row for row in self.rows if row.group.seeds)

    def row(self, group: str) -> Row:
        return next(row for row in self.rows if row.group.id == group)

    @property
    def reference(self) -> Row | None:
        """The single-task row that most rows are compared with."""
        rows = [row for row in self.finished if row.group.is_reference]
        trainings = Counter(row.group.training for row in self.rows)
        return max(rows, key=lambda row: trainings[row.group.training], default=None)

    def recovered(self, task: TaskInfo) -> float:
        """The share of the planted model's distance from a useless one that the best mean covers;
        NaN if unknown.
        """
        best = self.best.get(task.name)
        if best is None:
            return math.nan
        return recovered(self.row(best).metric[task.name].mean, task.ceiling, task.reading)

    def worse(self, task: TaskInfo, row: Row) -> bool:
        """Whether a row's interval lies clear of the best mean's interval."""
        best = self.best.get(task.name)
        return best is not None and not row.metric[task.name].overlaps(
            self.row(best).metric[task.name]
        )


def summarise(frames: Frames, block: Block) -> Summary:
    """Aggregate one block over seeds."""
    in_block = (frames.metrics["block"] == block.id) & (frames.metrics["split"] == SPLIT)
    metrics = frames.metrics[in_block]
    runs = frames.runs[(frames.runs["block"] == block.id) & (frames.runs["status"] == "ok")]

    # group to task to seed to value, and to the mean over seeds
    values: dict[str, TaskValues] = {}
    means: dict[str, dict[str, Interval]] = {}
    for group in block.groups:
        by_task = task_values(metrics[metrics["group"] == group.id], block.tasks)
        values[group.id] = by_task
        means[group.id] = {
            task: t_interval(list(seeds.values())) for task, seeds in by_task.items()
        }

    front = _front(block, means)
    rows = []
    for group in block.groups:
        reference = _reference(block, group)
        baseline = values[reference.id] if reference else {}
        compared = reference is not None and not group.is_reference
        of_group = metrics["group"] == group.id
        costs = runs[runs["group"] == group.id]
        rows.append(
            Row(
                group=group,
                values=values[group.id],
                metric=means[group.id],
                delta=_deltas(values[group.id], baseline) if compared else {},
                gain=_gain(block, values[group.id], baseline),
                derived=frozenset(metrics[of_group & metrics["derived"]]["task"]),
                on_front=front[group.id],
                parameters=_mean(costs, "parameters"),
                flops_per_row=_mean(costs, "flops_per_row"),
                rows_per_second=_mean(costs, "rows_per_second"),
                seconds=_mean(costs, "train_seconds"),
                peak_memory=_mean(costs, "peak_memory_bytes"),
                has_reference=reference is not None,
            )
        )
    rows.sort(key=lambda row: _rank(row, block))

    counts = {task.name: _counts(metrics, task) for task in block.tasks}
    warnings = tuple(_warnings(block, counts))
    return Summary(block, tuple(rows), _best(block, means), counts, warnings)


def task_values(metrics: pd.DataFrame, tasks: tuple[TaskInfo, ...]) -> TaskValues:
    """Task to seed to primary metric, from the metric rows of one group and split."""
    values: TaskValues = {}
    for task in tasks:
        is_primary = (metrics["task"] == task.name) & (metrics["metric"] == task.metric)
        primary = metrics[is_primary].dropna(subset=["value"])
        seeds = zip(primary["seed"], primary["value"], strict=True)
        values[task.name] = {int(seed): float(value) for seed, value in seeds}
    return values


def _reference(block: Block, group: RunGroup) -> RunGroup | None:
    """The finished reference group with the same training settings; of several, the one with the
    shortest name.
    """
    candidates = [
        other
        for other in block.groups
        if other.is_reference and other.training == group.training and other.seeds
    ]
    if group in candidates:
        return group
    return min(candidates, key=lambda other: (len(other.model), other.model), default=None)


def _deltas(values: TaskValues, reference: TaskValues) -> dict[str, Interval]:
    return {task: paired_delta(values[task], reference.get(task, {})) for task in values}


def _gain(block: Block, values: TaskValues, reference: TaskValues) -> Interval:
    """The mean relative gain over all tasks, over common seeds."""
    if not block.tasks or not reference:
        return Interval()
    gains = delta_m(values, reference, {task.name: task.reading for task in block.tasks})
    return t_interval(list(gains.values()))


def _front(block: Block, means: Mapping[str, Mapping[str, Interval]]) -> dict[str, bool]:
    """Group to whether it is on the Pareto front of the means, higher being better."""
    if not block.tasks:
        return dict.fromkeys(means, False)
    points = [[_score(task, by_task) for task in block.tasks] for by_task in means.values()]
    on_front = pareto_front(np.array(points))
    return {group: bool(on) for group, on in zip(means, on_front, strict=True)}


def _score(task: TaskInfo, means: Mapping[str, Interval]) -> float:
    """The mean of a task, with its sign turned where lower is better."""
    mean = means[task.name].mean
    return mean if task.reading.higher_is_better else -mean


def _mean(runs: pd.DataFrame, column: str) -> float:
    kept = runs[column].dropna()
    return float(kept.mean()) if len(kept) else math.nan


def _rank(row: Row, block: Block) -> tuple[bool, bool, float, str]:
    """Sorts rows: by gain, then those without one by mean metric, then those without any metric."""
    scores = [_score(task, row.metric) for task in block.tasks]
    score = float(np.mean(scores)) if scores else math.nan
    order = row.gain.mean if row.gain.known else score
    return (
        math.isnan(score),
        not row.gain.known,
        0.0 if math.isnan(order) else -order,
        row.group.label,
    )


def _best(block: Block, means: Mapping[str, Mapping[str, Interval]]) -> dict[str, str]:
    """Task to the group of the best mean."""
    best = {}
    for task in block.tasks:
        scores = {
            group: _score(task, by_task)
            for group, by_task in means.items()
            if by_task[task.name].known
        }
        if scores:
            best[task.name] = max(scores, key=lambda group: scores[group])
    return best


def _counts(metrics: pd.DataFrame, task: TaskInfo) -> tuple[float, float]:
    """(positives, rows) of a task; NaN where the runs do not agree."""
    of_task = metrics[metrics["task"] == task.name]
    counts = of_task[["positives", "rows"]].drop_duplicates()
    if len(counts) != 1:
        return math.nan, math.nan
    return float(counts["positives"].iloc[0]), float(counts["rows"].iloc[0])


def _warnings(block: Block, counts: Mapping[str, tuple[float, float]]) -> list[str]:
    balancers = [
        (group.balancer_name, group.resolved["balancer"].get("options") or {})
        for group in block.groups
    ]
    warnings = [
        _unequal_seeds(block),
        _several_trainings(block),
        _few_positives(block, counts),
        *notices(balancers, block.trained),
    ]
    return [warning for warning in warnings if warning]


def _few_positives(block: Block, counts: Mapping[str, tuple[float, float]]) -> str:
    """A warning about AUCs of few positives; empty where there are enough."""
    few = {}
    for task in block.tasks:
        positives, rows = counts[task.name]
        if task.metric == "auc" and 0 < positives < FEW_POSITIVES and positives < rows:
            few[task.title] = (positives, rows)
    if not few:
        return ""

    # the standard error of the AUC of useless scores
    positives, rows = min(few.values())
    error = math.sqrt((rows + 1) / (12 * positives * (rows - positives)))
    listed = ", ".join(f"{title} {positives:.0f}" for title, (positives, _) in few.items())
    return (
        f"Few positives in the test split: {listed}. With {positives:.0f} of them the standard "
        f"error of an AUC over test rows is about {error:.2f}, and intervals over seeds leave it "
        "out."
    )


def _unequal_seeds(block: Block) -> str:
    """A warning about rows that are means over other seeds than most; empty without any."""
    counts = Counter(group.seeds for group in block.groups)
    if len(counts) == 1:
        return ""
    usual = max(counts, key=lambda seeds: (len(seeds), counts[seeds], seeds))
    others = [group for group in block.groups if group.seeds != usual]
    listed = "; ".join(f"{group.label} ({_seed_list(group.seeds)})" for group in others[:SHOWN])
    more = f"; and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    return (
        f"Not all rows are means over the same seeds. Most complete: {_seed_list(usual)}. "
        f"Others: {listed}{more}. Means of such rows are not strictly comparable; differences to "
        "single-task use common seeds only."
    )


def _seed_list(seeds: tuple[int, ...]) -> str:
    if not seeds:
        return "no finished seed"
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _several_trainings(block: Block) -> str:
    """A warning about rows of different training settings; empty where all are the same."""
    by_digest = {group.training: group.resolved.get("training") or {} for group in block.groups}
    if len(by_digest) == 1:
        return ""
    trainings = list(by_digest.values())
    differing = []
    for key in sorted({key for training in trainings for key in training}):
        if len({str(training.get(key)) for training in trainings}) > 1:
            differing.append(key)
    return (
        f"Rows were trained under {len(trainings)} different settings "
        f"(they differ in {', '.join(differing)}). "
        "Each is compared with single-task under its own settings, where that was run."
    )
