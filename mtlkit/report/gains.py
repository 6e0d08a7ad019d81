"""The differences of one row to its references, with both noises, and the verdict on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Paired:
    """A row and what it is compared with, seed by seed."""

    row: str  # id of the row's group
    values: TaskValues  # score to seed to its primary metric
    references: Mapping[str, str]  # score to the id of the group that it is compared with
    reference_values: TaskValues  # score to seed to the primary metric of that group
    noise: RowNoise  # what the test rows add to metrics

    def difference(self, score: str) -> Interval:
        """The paired difference of a score, over common seeds, with both noises."""
        reference = self.reference_values[score]
        return paired_delta(self.values[score], reference, self._row_error(score))

    def compare(self, score: TaskInfo, margin: float) -> Comparison:
        """The verdict on one score, over common seeds: differences above 0 are better, whatever the
        metric's direction, and those up to the margin do not matter, see :func:`margin_of`.
        """
        values, reference = self.values[score.name], self.reference_values[score.name]
        goodness = score.reading.goodness
        common = sorted(values.keys() & reference.keys())
        differences = [goodness(values[seed]) - goodness(reference[seed]) for seed in common]
        return compare(differences, margin, self._row_error(score.name))

    def compare_gains(
        self, scores: Sequence[TaskInfo], task_of: Mapping[str, str], margin: float
    ) -> Comparison:
        """The verdict on the mean relative gain over all tasks (delta m), over common seeds."""
        metrics = {score.name: score.reading for score in scores}
        gains = delta_m(self.values, self.reference_values, metrics, task_of)

        # The gain is smooth in the metrics, so its error over test rows follows from its slopes. A
        # task's scores share its part of the mean.
        scores_of_task = Counter(task_of[name] for name in metrics)
        terms = []
        for name, metric in metrics.items():
            mean = _mean(self.values, name, gains)
            reference_mean = _mean(self.reference_values, name, gains)
            by_value, by_reference = gain_slopes(mean, reference_mean, metric)
            share = 1 / (len(scores_of_task) * scores_of_task[task_of[name]])
            terms.append((self.row, name, share * by_value))
            terms.append((self.references[name], name, share * by_reference))
        return compare(list(gains.values()), margin, self.noise.error(terms))

    def _row_error(self, score: str) -> float:
        """The standard error of a score's difference over test rows."""
        return self.noise.error([(self.row, score, 1.0), (self.references[score], score, -1.0)])


def margin_of(score: TaskInfo, reference: float, margin: float) -> float:
    """A relative margin in units of a metric: times the reference's distance from its floor."""
    return margin * abs(reference - score.reading.floor)


def _mean(values: TaskValues, score: str, seeds: Mapping[int, float]) -> float:
    """The mean of a score over some seeds; NaN over none."""
    return float(np.mean([values[score][seed] for seed in seeds])) if seeds else float("nan")
