"""Statistics over seeds: t-intervals, paired differences, relative gain over all tasks, the Pareto
front.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mtlkit.records import Metric

TINY = 1e-3
"""A reference nearer than this to a useless model gives no relative change."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % Student t-interval.

    Args:
        mean: The mean, NaN when there is no value.
        half: Half the width of the interval, NaN when there are fewer than two values.
        n: Number of values.
    """

    mean: float = math.nan
    half: float = math.nan
    n: int = 0

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    @property
    def known(self) -> bool:
        """Whether there is a mean at all."""
        return not math.isnan(self.mean)

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.half)

    @property
    def excludes_zero(self) -> bool:
        return self.bounded and abs(self.mean) > self.half

    def overlaps(self, other: Interval) -> bool:
        """Whether the two intervals meet, or one of them is unknown and so cannot tell."""
        if not (self.bounded and other.bounded):
            return True
        return self.low <= other.high and other.low <= self.high


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean and Student t-interval of independent values; NaN values do not count."""
    kept = np.asarray([value for value in values if not math.isnan(value)], dtype=float)
    if not len(kept):
        return Interval()
    mean = float(kept.mean())
    if len(kept) == 1:
        return Interval(mean, math.nan, 1)
    error = float(kept.std(ddof=1)) / math.sqrt(len(kept))
    return Interval(mean, float(stats.t.ppf(0.5 + level / 2, len(kept) - 1)) * error, len(kept))


def paired_delta(values: Mapping[int, float], reference: Mapping[int, float]) -> Interval:
    """Mean difference to a reference over the seeds that both have."""
    return t_interval(
        [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]
    )


def t_test(differences: Sequence[float]) -> float:
    """The two-sided p-value of Student's t-test that paired differences have mean 0; 1 where it is
    undefined.
    """
    kept = np.asarray([value for value in differences if not math.isnan(value)], dtype=float)
    if len(kept) < 2 or not kept.any():
        return 1.0
    error = float(kept.std(ddof=1)) / math.sqrt(len(kept))
    return float(2 * stats.t.sf(abs(kept.mean()) / error, len(kept) - 1)) if error else 0.0


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which of several tests reject by the step-down procedure of Holm (1979),
    https://www.jstor.org/stable/4615733.
    """
    rejected = [False] * len(p_values)
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[place] > level / (len(p_values) - rank):
            break
        rejected[place] = True
    return rejected


def relative_gain(value: float, reference: float, metric: Metric) -> float:
    """Change relative to the reference's distance from a useless model; above 0 is better, NaN when
    undefined.
    """
    distance = abs(reference - metric.floor)
    if math.isnan(distance) or distance < TINY:
        return math.nan
    return (1 if metric.higher_is_better else -1) * (value - reference) / distance


def recovered(value: float, ceiling: float, metric: Metric) -> float:
    """The share of a ceiling's distance from a useless model that a value covers; NaN when
    undefined.
    """
    distance = ceiling - metric.floor
    return (
        math.nan
        if math.isnan(distance) or abs(distance) < TINY
        else (value - metric.floor) / distance
    )


def delta_m(
    values: Mapping[str, Mapping[int, float]],
    reference: Mapping[str, Mapping[int, float]],
    metrics: Mapping[str, Metric],
) -> dict[int, float]:
    """Mean relative gain over all tasks, a seed.

    Args:
        values: Task to seed to value.
        reference: The same of the single-task runs.
        metrics: Task to metric.

    Returns:
        Seed to gain as a fraction, over the seeds that both have in every task; NaN where one
        task's is undefined.
    """
    seeds = set.intersection(
        *(set(values.get(task, {})) & set(reference.get(task, {})) for task in metrics)
    )
    return {
        seed: float(
            np.mean(
                [
                    relative_gain(values[task][seed], reference[task][seed], metrics[task])
                    for task in metrics
                ]
            )
        )
        for seed in sorted(seeds)
    }


def pareto_front(points: np.ndarray) -> np.ndarray:
    """Mark the points that no other point dominates, all columns being better when higher.

    Args:
        points: (N, T); a row with a NaN is never on the front.

    Returns:
        (N,) bool. Equal points are all on the front.
    """
    points = np.asarray(points, dtype=float)
    usable = ~np.isnan(points).any(axis=1)
    front = usable.copy()
    for index in np.flatnonzero(usable):
        others = points[usable]
        front[index] = not (
            (others >= points[index]).all(axis=1) & (others > points[index]).any(axis=1)
        ).any()
    return front
