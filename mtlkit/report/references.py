"""What the rows of a block are compared with: for each score, a model that was trained for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mtlkit.metrics.definitions import MetricName, recorded_metric
from mtlkit.metrics.grouped import RankedRows
from mtlkit.record_check import UnreadableError
from mtlkit.report.blocks import Block, RunGroup, TaskInfo
from mtlkit.report.statistics import Interval, is_useful, t_interval
from mtlkit.report.stored_scores import read_scores

Counts = Mapping[str, tuple[float, float]]
"""Score to (positives, rows) of the test split; NaN where unknown."""
TaskValues = Mapping[str, Mapping[int, float]]  # score to seed to the primary metric


@dataclass(frozen=True)
class References:
    """The reference of each score, for the rows of one training.

    A score has a reference where a reference model predicts it itself. What is derived from models
    that were trained for other scores is no honest reference, and for a score that needs labels
    only a generator knows no model can be trained.
    """

    groups: Mapping[str, RunGroup]  # score to the group of its reference
    values: TaskValues  # score to seed to its reference's primary metric
    # A sentence if a reference is not clearly better than a useless model, so that no change can be
    # relative to it.
    useless: str = ""

    @property
    def ids(self) -> dict[str, str]:
        """Score to the id of its reference's group."""
        return {score: group.id for score, group in self.groups.items()}

    def is_of(self, group: RunGroup) -> frozenset[str]:
        """The scores whose reference a group is."""
        return frozenset(score for score, other in self.groups.items() if other is group)

    def mean(self, score: str) -> Interval:
        """The mean of a score's reference; unknown without one."""
        return t_interval(list(self.values.get(score, {}).values()))


def find_references(
    block: Block,
    training: str,
    values: Mapping[str, TaskValues],
    derived: Mapping[str, frozenset[str]],
    counts: Counts,
) -> References:
    """The references of all rows of one training.

    Args:
        block: The block.
        training: Digest of the training settings.
        values: Group to score to seed to primary metric.
        derived: Group to the scores that it does not predict itself.
        counts: Of the test split.
    """
    candidates = [
        group
        for group in block.groups
        if group.is_reference and group.seeds and group.training == training
    ]

    # Of several models that were trained for a score, the one with the shortest name.
    groups = {}
    for task in block.comparable:
        honest = [
            group
            for group in candidates
            if task.name not in derived[group.id] and values[group.id][task.name]
        ]
        if honest:
            groups[task.name] = min(honest, key=lambda group: (len(group.model), group.model))
    reference_values = {score: values[group.id][score] for score, group in groups.items()}

    means = {}
    for task in block.comparable:
        if task.name in groups:
            seeds = reference_values[task.name]
            means[task] = t_interval(list(seeds.values()))
    return References(groups, reference_values, say_if_useless("single-task", means, counts))


def with_floors(block: Block, counts: Counts, folders: Sequence[Path]) -> Block:
    """A block whose tasks know what a random order of the test rows reaches, where their metric has
    no floor of its own: the positive rate for average precision, the mean over all orders for NDCG
    and recall within groups.
    """
    tasks = []
    for task in block.tasks:
        name = recorded_metric(task.metric)
        floor = math.nan
        if name is not None and name.segment is None:
            positives, rows = counts[task.name]
            if name.name == "average_precision" and rows > 0:
                floor = positives / rows
            elif name.name in ("ndcg", "recall"):
                floor = _floor_within_groups(task.name, name, folders)
        tasks.append(task if math.isnan(floor) else replace(task, floor=floor))
    return replace(block, tasks=tuple(tasks))


def _floor_within_groups(task: str, name: MetricName, folders: Sequence[Path]) -> float:
    """NDCG or recall of rows that all have one score, which is the mean over all their orders."""
    for folder in folders:
        try:
            scores = read_scores(folder)
        except UnreadableError:
            continue
        labels, groups = scores.get(f"label/{task}"), scores.get(f"group/{name.group}")
        if labels is None or groups is None:
            continue
        counted = scores.get(f"observed/{task}", np.ones(len(labels), bool)) & (groups >= 0)
        ranked = RankedRows(np.zeros(counted.sum()), labels[counted] > 0, groups[counted])
        floor = ranked.ndcg(name.cut) if name.name == "ndcg" else ranked.recall(name.cut)
        return math.nan if floor is None else floor
    return math.nan


def say_if_useless(name: str, means: Mapping[TaskInfo, Interval], counts: Counts) -> str:
    """A sentence if a reference is not clearly better than a useless model, else nothing."""
    useless = []
    for task, mean in means.items():
        if not is_useful(mean, task.reading, *counts[task.name]):
            digits = task.reading.decimals
            half = "" if math.isnan(mean.half) else f" ± {mean.half:.{digits}f}"
            useless.append(f"{task.title} ({task.reading.label} {mean.mean:.{digits}f}{half})")
    if not useless:
        return ""
    return (
        f"Δm is not given: {name} is not clearly better than a useless model on "
        f"{', '.join(useless)}, so no change can be relative to it."
    )
