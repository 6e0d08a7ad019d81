"""The differences of one row to its references, with both noises, and the verdict on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from mtlkit.report.blocks import TaskInfo
from mtlkit.report.references import TaskValues
from mtlkit.report.row_noise import RowNoise
from mtlkit.report.statistics import (
    Comparison,
    Interval,
    compare,
    delta_m,
    gain_slopes,
    paired_delta,
)


def difference_of(
    score: str,
    row: str,
    values: TaskValues,
    reference_row: str,
    reference: TaskValues,
    noise: RowNoise,
) -> Interval:
    """The paired difference of a score to its reference, over common seeds, with both noises."""
    row_error = noise.error([(row, score, 1.0), (reference_row, score, -1.0)])
    return paired_delta(values[score], reference[score], row_error)


def compare_score(
    score: TaskInfo,
    row: str,
    values: TaskValues,
    reference_row: str,
    reference: TaskValues,
    noise: RowNoise,
    margin: float,
) -> Comparison:
    """The verdict on one score, over common seeds: differences above 0 are better, whatever the
    metric's direction.

    Args:
        values: Score to seed to its primary metric.
        reference_row: Group id of the reference.
        reference: Score to seed to the reference's primary metric.
        margin: Differences up to this one do not matter, see :func:`margin_of`.
    """
    common = sorted(values[score.name].keys() & reference[score.name].keys())
    goodness = score.reading.goodness
    differences = [
        goodness(values[score.name][seed]) - goodness(reference[score.name][seed])
        for seed in common
    ]
    row_error = noise.error([(row, score.name, 1.0), (reference_row, score.name, -1.0)])
    return compare(differences, margin, row_error)


def margin_of(score: TaskInfo, reference: float, margin: float) -> float:
    """A relative margin in units of a metric: times the reference's distance from its floor."""
    return margin * abs(reference - score.reading.floor)


def compare_gains(
    row: str,
    values: TaskValues,
    reference_rows: Mapping[str, str],
    reference: TaskValues,
    scores: Sequence[TaskInfo],
    task_of: Mapping[str, str],
    noise: RowNoise,
    margin: float,
) -> Comparison:
    """The verdict on the mean relative gain over all tasks (delta m), over common seeds.

    Args:
        values: Score to seed to its primary metric.
        reference_rows: Score to the group id of its reference.
        reference: Score to seed to the reference's primary metric.
    """
    metrics = {score.name: score.reading for score in scores}
    gains = delta_m(values, reference, metrics, task_of)

    # The gain is smooth in the metrics, so its error over test rows follows from its slopes. A
    # task's scores share its part of the mean.
    scores_of_task = Counter(task_of[name] for name in metrics)
    terms = []
    for name, metric in metrics.items():
        mean, reference_mean = _mean(values, name, gains), _mean(reference, name, gains)
        by_value, by_reference = gain_slopes(mean, reference_mean, metric)
        share = 1 / (len(scores_of_task) * scores_of_task[task_of[name]])
        terms.append((row, name, share * by_value))
        terms.append((reference_rows[name], name, share * by_reference))
    return compare(list(gains.values()), margin, noise.error(terms))


def _mean(values: TaskValues, score: str, seeds: Mapping[int, float]) -> float:
    """The mean of a score over some seeds; NaN over none."""
    return float(np.mean([values[score][seed] for seed in seeds])) if seeds else float("nan")
