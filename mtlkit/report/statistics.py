"""Statistics over seeds: t-intervals, paired differences, Holm, Delta m, the Pareto front.

What is estimated. A number of a report is the metric of one trained model on a fixed test split.
Training again with another seed (initial parameters, order of rows, dropout) gives another number.
All intervals and tests here describe this spread over seeds, and only this: the rows of the test
split are taken as given, so a difference that is clear over seeds may still be specific to them.

What is assumed. Seeds are independent draws, and the mean of a few of them is near enough to
normal for Student's t distribution. With three to ten seeds nobody can check that from the data.
It is a mild assumption for AUCs and losses of runs that converged; a run that diverged breaks it.

What is paired. A seed fixes the same initial parameters and the same order of rows for every
method. So methods are compared by their differences seed by seed: what a lucky seed adds to both
cancels, and the interval of the mean difference is narrower than the two single intervals suggest.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from mtlkit.metrics.definitions import Metric

TINY = 1e-3
"""A reference nearer than this to a useless model gives no relative change."""
NORMAL_95 = 1.96
"""Standard errors on either side of a mean that hold 95 % of a normal distribution."""


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
        """The lower end; NaN when there is no interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The upper end; NaN when there is no interval."""
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
        """Whether 0 lies outside of the interval; False when there is none."""
        return self.bounded and abs(self.mean) > self.half

    def overlaps(self, other: Interval) -> bool:
        """Whether the two intervals meet, or one of them is unknown and so cannot tell.

        Two intervals that do not meet show a difference. Two that meet do not show that there is
        none: the paired difference may still be clear of 0.
        """
        if not (self.bounded and other.bounded):
            return True
        return self.low <= other.high and other.low <= self.high


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean and Student t-interval of independent values (Student, 1908, doi:10.2307/2331554).

    With n values of mean m and sample standard deviation s (divisor n - 1), the interval is

        m ± t(n - 1) · s / √n

    where t(n - 1) is the quantile of Student's t distribution that leaves out (1 - level) / 2 on
    either side: 4.30 for three values, 2.78 for five, 2.26 for ten. Of many such intervals the
    share ``level`` holds the true mean, if the values are independent and normal.

    Args:
        values: One number a seed; NaN values do not count.
        level: Confidence.

    Returns:
        No mean for no values, and a mean without an interval for a single one.
    """
    kept = _not_nan(values)
    if not len(kept):
        return Interval()

    mean = float(kept.mean())
    if len(kept) == 1:
        return Interval(mean, math.nan, 1)

    quantile = float(special.stdtrit(len(kept) - 1, 0.5 + level / 2))
    return Interval(mean, quantile * _standard_error(kept), len(kept))


def paired_delta(values: Mapping[int, float], reference: Mapping[int, float]) -> Interval:
    """Mean difference to a reference, with the t-interval of the differences seed by seed.

    The interval is that of the n differences d = value - reference of the same seed, which is the
    interval of the paired t-test. Seeds that only one of the two has are left out.

    Args:
        values: Seed to value.
        reference: Seed to value of the reference.
    """
    common = sorted(values.keys() & reference.keys())
    return t_interval([values[seed] - reference[seed] for seed in common])


def t_test(differences: Sequence[float]) -> float:
    """The two-sided p-value of the paired t-test: do these differences have mean 0?

    The statistic is t = m / (s / √n) with n - 1 degrees of freedom, in the notation of
    :func:`t_interval`. The p-value is below 0.05 just where the 95 % interval excludes 0.

    Args:
        differences: One number a seed; NaN values do not count.

    Returns:
        1 where it is undefined: with fewer than two values, or where all of them are 0. 0 where
        they are all the same and not 0.
    """
    kept = _not_nan(differences)
    if len(kept) < 2 or not kept.any():
        return 1.0

    error = _standard_error(kept)
    if not error:
        return 0.0
    return float(2 * special.stdtr(len(kept) - 1, -abs(kept.mean()) / error))


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which of several tests reject, by the step-down procedure of Holm (1979).

    With k comparisons at 5 % each, some reject by chance alone. The procedure keeps the chance
    that ANY of the rejections is false below ``level``, whatever the dependence between the tests
    (here they share their reference): the smallest p-value must not exceed level / k, the next one
    level / (k - 1), and so on; at the first that does, this test and all later ones are kept.
    It is never less powerful than Bonferroni's level / k for all of them.

    S. Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of
    Statistics 6, 1979, https://www.jstor.org/stable/4615733.

    Args:
        p_values: One a test, in any order.
        level: The chance of one false rejection or more.

    Returns:
        Whether each test rejects, in the order of ``p_values``.
    """
    rejected = [False] * len(p_values)
    smallest_first = np.argsort(p_values, kind="stable")
    for rank, test in enumerate(smallest_first):
        if p_values[test] > level / (len(p_values) - rank):
            break
        rejected[test] = True
    return rejected


def relative_gain(value: float, reference: float, metric: Metric) -> float:
    """Change relative to the reference's distance from a useless model; above 0 is better.

        ± (value - reference) / |reference - floor|

    The sign makes better positive for either kind of metric. The floor is what a useless model
    reaches, such as 0.5 for an AUC: 0.75 to 0.76 is then a gain of 4 %, not of 1.3 %.

    Returns:
        A fraction; NaN where the reference is itself no better than useless, or unknown.
    """
    distance = abs(reference - metric.floor)
    if math.isnan(distance) or distance < TINY:
        return math.nan
    return (metric.goodness(value) - metric.goodness(reference)) / distance


def recovered(value: float, ceiling: float, metric: Metric) -> float:
    """The share of a ceiling's distance from a useless model that a value covers.

        (value - floor) / (ceiling - floor)

    Returns:
        1 at the ceiling, 0 for a useless model; NaN where the ceiling is useless, or unknown.
    """
    distance = ceiling - metric.floor
    if math.isnan(distance) or abs(distance) < TINY:
        return math.nan
    return (value - metric.floor) / distance


def chance_error(positives: float, rows: float) -> float:
    """The standard error of the AUC of useless scores over test rows.

    It is that of the Mann-Whitney statistic, √((n + 1) / (12 n₊ n₋)), where the scores of
    positives and negatives have one distribution (Mann & Whitney, 1947,
    doi:10.1214/aoms/1177730491).

    Returns:
        NaN where a class is empty, or the counts are unknown.
    """
    negatives = rows - positives
    if not (positives > 0 and negatives > 0):
        return math.nan
    return math.sqrt((rows + 1) / (12 * positives * negatives))


def is_useful(mean: Interval, metric: Metric, positives: float, rows: float) -> bool:
    """Whether a model is better than a useless one by more than what seeds and test rows may do.

    Args:
        mean: Its metric over seeds.
        metric: The metric.
        positives: Positive rows of the test split, NaN if unknown.
        rows: Rows of the test split, NaN if unknown.
    """
    # An error is relative to its own size.
    if not metric.higher_is_better:
        return mean.known

    noise = [TINY]
    if mean.bounded:
        noise.append(mean.half)
    error = chance_error(positives, rows)
    if metric.floor == 0.5 and not math.isnan(error):  # an AUC
        noise.append(NORMAL_95 * error)
    return mean.mean - metric.floor > max(noise)


def mean_over_tasks(values: Mapping[str, float], tasks: Mapping[str, str]) -> float:
    """The mean over tasks of the means over their scores: no task counts twice.

    Args:
        values: Score to value.
        tasks: Score to the task whose label it is compared with.

    Returns:
        NaN without any value, or with one that is NaN.
    """
    by_task: dict[str, list[float]] = defaultdict(list)
    for score, value in values.items():
        by_task[tasks[score]].append(value)
    means = [math.fsum(scores) / len(scores) for scores in by_task.values()]
    return math.fsum(means) / len(means) if means else math.nan


def delta_m(
    values: Mapping[str, Mapping[int, float]],
    reference: Mapping[str, Mapping[int, float]],
    metrics: Mapping[str, Metric],
    tasks: Mapping[str, str],
) -> dict[int, float]:
    """Delta m of each seed: the mean relative gain over all tasks.

    The idea is that of Maninis et al. (2019, arXiv:1904.08918), who divide by the reference itself.
    Here each task's change is divided by the reference's distance from a useless model, see
    :func:`relative_gain`, so that an AUC near 0.5 counts for what it is. A step of a funnel has
    several scores; its gain is their mean.

    Args:
        values: Score to seed to value.
        reference: The same of the reference of each score.
        metrics: Score to metric, of all scores that count.
        tasks: Score to the task whose label it is compared with.

    Returns:
        Seed to gain as a fraction, over the seeds that both have in every score; NaN where one
        score's is undefined.
    """
    # Only seeds with every score in both: a mean over fewer would be another quantity.
    seeds_by_score = [set(values.get(name, {})) & set(reference.get(name, {})) for name in metrics]
    common = set.intersection(*seeds_by_score) if seeds_by_score else set()

    gains = {}
    for seed in sorted(common):
        by_score = {
            name: relative_gain(values[name][seed], reference[name][seed], metric)
            for name, metric in metrics.items()
        }
        gains[seed] = mean_over_tasks(by_score, tasks)
    return gains


def pareto_front(points: np.ndarray) -> np.ndarray:
    """Mark the points that no other point dominates, all columns being better when higher.

    A point dominates another if it is at least as good in every column and better in one.

    Args:
        points: (N, T); a row with a NaN is never on the front.

    Returns:
        (N,) bool. Equal points are all on the front.
    """
    points = np.asarray(points, dtype=float)
    usable = ~np.isnan(points).any(axis=1)  # (N,)
    others = points[usable]
    front = usable.copy()
    for index in np.flatnonzero(usable):
        as_good = (others >= points[index]).all(axis=1)
        better_somewhere = (others > points[index]).any(axis=1)
        front[index] = not (as_good & better_somewhere).any()
    return front


def _not_nan(values: Sequence[float]) -> np.ndarray:
    return np.asarray([value for value in values if not math.isnan(value)], dtype=float)


def _standard_error(values: np.ndarray) -> float:
    """Of the mean of independent values: s / √n, with divisor n - 1 in the variance."""
    return float(values.std(ddof=1)) / math.sqrt(len(values))
