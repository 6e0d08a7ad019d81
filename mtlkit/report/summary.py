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
FEW = 100
"""Of so few positives the draw of the test rows moves an AUC more than most seeds do."""


@dataclass(frozen=True)
class Row:
    """One group of runs.

    Args:
        group: Which one.
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
        block: Which one.
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
    metrics = frames.metrics[
        (frames.metrics["block"] == block.id) & (frames.metrics["split"] == SPLIT)
    ]
    runs = frames.runs[(frames.runs["block"] == block.id) & (frames.runs["status"] == "ok")]
    values = {
        group.id: task_values(metrics[metrics["group"] == group.id], block.tasks)
        for group in block.groups
    }
    means = {
        key: {task: t_interval(list(seeds.values())) for task, seeds in of.items()}
        for key, of in values.items()
    }
    front = _front(block, means)
    rows = []
    for group in block.groups:
        reference = _reference(block, group)
        derived = metrics[(metrics["group"] == group.id) & metrics["derived"]]["task"]
        costs = runs[runs["group"] == group.id]
        rows.append(
            Row(
                group=group,
                values=values[group.id],
                metric=means[group.id],
                delta=_deltas(values[group.id], values[reference.id])
                if reference and not group.is_reference
                else {},
                gain=_gain(block, values[group.id], values[reference.id] if reference else {}),
                derived=frozenset(derived),
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
    return Summary(
        block,
        tuple(rows),
        _best(block, means),
        counts,
        tuple(_warnings(block, counts)),
    )


def task_values(metrics: pd.DataFrame, tasks: tuple[TaskInfo, ...]) -> dict[str, dict[int, float]]:
    """Task to seed to primary metric, from the metric rows of one group and split."""
    values = {}
    for task in tasks:
        own = metrics[(metrics["task"] == task.name) & (metrics["metric"] == task.metric)].dropna(
            subset=["value"]
        )
        values[task.name] = {
            int(seed): float(v) for seed, v in zip(own["seed"], own["value"], strict=True)
        }
    return values


def _reference(block: Block, group: RunGroup) -> RunGroup | None:
    """The finished single-task group with the same training settings; of several, the one with the
    shortest name.
    """
    same = [
        other
        for other in block.groups
        if other.is_reference and other.training == group.training and other.seeds
    ]
    if group in same:
        return group
    return min(same, key=lambda other: (len(other.model), other.model), default=None)


def _deltas(
    values: dict[str, dict[int, float]], reference: dict[str, dict[int, float]]
) -> dict[str, Interval]:
    return {task: paired_delta(values[task], reference.get(task, {})) for task in values}


def _gain(
    block: Block, values: dict[str, dict[int, float]], reference: dict[str, dict[int, float]]
) -> Interval:
    if not block.tasks or not reference:
        return Interval()
    gains = delta_m(values, reference, {task.name: task.reading for task in block.tasks})
    return t_interval(list(gains.values()))


def _front(block: Block, means: Mapping[str, Mapping[str, Interval]]) -> dict[str, bool]:
    if not block.tasks:
        return dict.fromkeys(means, False)
    signs = np.array([1 if task.reading.higher_is_better else -1 for task in block.tasks])
    points = np.array([[of[task.name].mean for task in block.tasks] for of in means.values()])
    return dict(zip(means, map(bool, pareto_front(points * signs)), strict=True))


def _mean(runs: pd.DataFrame, column: str) -> float:
    kept = runs[column].dropna()
    return float(kept.mean()) if len(kept) else math.nan


def _rank(row: Row, block: Block) -> tuple[bool, bool, float, str]:
    means = [
        row.metric[task.name].mean * (1 if task.reading.higher_is_better else -1)
        for task in block.tasks
    ]
    score = float(np.mean(means)) if means else math.nan
    missing = math.isnan(score)
    order = row.gain.mean if row.gain.known else score
    return missing, not row.gain.known, 0.0 if math.isnan(order) else -order, row.group.label


def _best(block: Block, means: Mapping[str, Mapping[str, Interval]]) -> dict[str, str]:
    best = {}
    for task in block.tasks:
        known = {key: of[task.name].mean for key, of in means.items() if of[task.name].known}
        if known:
            best[task.name] = (max if task.reading.higher_is_better else min)(
                known, key=lambda key: known[key]
            )
    return best


def _counts(metrics: pd.DataFrame, task: TaskInfo) -> tuple[float, float]:
    own = metrics[(metrics["task"] == task.name)][["positives", "rows"]].drop_duplicates()
    return (
        (float(own["positives"].iloc[0]), float(own["rows"].iloc[0]))
        if len(own) == 1
        else (math.nan, math.nan)
    )


def _warnings(block: Block, counts: Mapping[str, tuple[float, float]]) -> list[str]:
    balancers = [
        (group.balancer_name, group.resolved["balancer"].get("options") or {})
        for group in block.groups
    ]
    copies = notices(balancers, block.trained)
    said = (
        _unequal_seeds(block),
        _several_trainings(block),
        _few_positives(block, counts),
        *copies,
    )
    return [text for text in said if text]


def _few_positives(block: Block, counts: Mapping[str, tuple[float, float]]) -> str:
    few = {task.title: counts[task.name] for task in block.tasks if task.metric == "auc"}
    few = {
        name: (positives, rows)
        for name, (positives, rows) in few.items()
        if 0 < positives < FEW and positives < rows
    }
    if not few:
        return ""
    positives, rows = min(few.values())
    error = math.sqrt(
        (rows + 1) / (12 * positives * (rows - positives))
    )  # of the AUC of useless scores
    listed = ", ".join(f"{name} {positives:.0f}" for name, (positives, _) in few.items())
    return (
        f"Few positives in the test split: {listed}. With {positives:.0f} of them the standard error of an AUC over "
        f"test rows is about {error:.2f}, and intervals over seeds leave it out."
    )


def _unequal_seeds(block: Block) -> str:
    sets = Counter(group.seeds for group in block.groups)
    if len(sets) == 1:
        return ""
    usual = max(sets, key=lambda seeds: (len(seeds), sets[seeds], seeds))
    odd = [group for group in block.groups if group.seeds != usual]
    listed = "; ".join(f"{group.label} ({_seed_list(group.seeds)})" for group in odd[:6])
    more = f"; and {len(odd) - 6} more" if len(odd) > 6 else ""
    return (
        f"Not all rows are means over the same seeds. Most complete: {_seed_list(usual)}. Others: {listed}{more}. "
        "Means of such rows are not strictly comparable; differences to single-task use common seeds only."
    )


def _seed_list(seeds: tuple[int, ...]) -> str:
    if not seeds:
        return "no finished seed"
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _several_trainings(block: Block) -> str:
    trainings = {group.training: group.resolved.get("training") or {} for group in block.groups}
    if len(trainings) == 1:
        return ""
    keys = sorted({key for training in trainings.values() for key in training})
    differing = [
        key for key in keys if len({str(training.get(key)) for training in trainings.values()}) > 1
    ]
    return (
        f"Rows were trained under {len(trainings)} different settings (they differ in {', '.join(differing)}). "
        "Each is compared with single-task under its own settings, where that was run."
    )
