"""Statistics over seeds: t-intervals, paired differences, Holm, Delta m, the Pareto front.

What is estimated. A number of a report is the metric of one trained model on a test split.
Training again with another seed (initial parameters, order of rows, dropout) gives another number,
and so do other test rows. The interval of a single mean describes the spread over seeds alone. A
difference to a reference takes the standard error over test rows as well, where that is known (see
``row_noise.py``), as a claim about methods must hold for other rows too.

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
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy import special

from mtlkit.metrics.definitions import Metric

Word = Literal["better", "worse", "equivalent", "not told apart", "unknown"]
"""What is said of a difference."""

TINY = 1e-3  # a reference nearer than this to a useless model gives no relative change
MOST_SEEDS = 1000  # the largest number of seeds that anybody is asked for
MARGIN = 0.0025
"""Relative gains up to this one do not matter, unless the user says otherwise: a quarter of a
percent of the reference's distance from a useless model, such as 0.001 for an AUC of 0.9.
"""
NORMAL_95 = 1.96  # standard errors on either side of a mean that hold 95 % of a normal distribution


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % Student t-interval."""

    mean: float = math.nan  # the mean, NaN when there is no value
    # Half the width of the interval, NaN when there are fewer than two values.
    half: float = math.nan
    n: int = 0  # number of values
    # The standard error over test rows that is a part of it; NaN if it is left out.
    row_error: float = math.nan

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

    def scaled(self, factor: float) -> Interval:
        """The same in other units, such as percent."""
        return Interval(factor * self.mean, factor * self.half, self.n, factor * self.row_error)

    def overlaps(self, other: Interval) -> bool:
        """Whether the two intervals meet, or one of them is unknown and so cannot tell.

        Two intervals that do not meet show a difference. Two that meet do not show that there is
        none: the paired difference may still be clear of 0.
        """
        if not (self.bounded and other.bounded):
            return True
        return self.low <= other.high and other.low <= self.high


def t_interval(
    values: Sequence[float], level: float = 0.95, row_error: float = math.nan
) -> Interval:
    """Mean and Student t-interval of independent values (Student, 1908, doi:10.2307/2331554).

    With n values of mean m and sample standard deviation s (divisor n - 1), the interval is

        m ± t(n - 1) · s / √n

    where t(n - 1) is the quantile of Student's t distribution that leaves out (1 - level) / 2 on
    either side: 4.30 for three values, 2.78 for five, 2.26 for ten. Of many such intervals the
    share ``level`` holds the true mean, if the values are independent and normal. With an error
    over test rows e that all values share, s / √n becomes √(s² / n + e²), see :func:`_both_errors`.

    Args:
        values: One number a seed; NaN values do not count.
        level: Confidence.
        row_error: The standard error of the mean over test rows; NaN if it is to be left out.

    Returns:
        No mean for no values, and a mean without an interval for a single one.
    """
    kept = _not_nan(values)
    if not len(kept):
        return Interval()

    mean = float(kept.mean())
    if len(kept) == 1:
        return Interval(mean, math.nan, 1, row_error)

    error, freedom = _both_errors(kept, row_error)
    quantile = float(special.stdtrit(freedom, 0.5 + level / 2))
    return Interval(mean, quantile * error, len(kept), row_error)


def paired_delta(
    values: Mapping[int, float], reference: Mapping[int, float], row_error: float = math.nan
) -> Interval:
    """Mean difference to a reference, with the t-interval of the differences seed by seed.

    The interval is that of the n differences d = value - reference of the same seed, which is the
    interval of the paired t-test. Seeds that only one of the two has are left out.

    Args:
        values: Seed to value.
        reference: Seed to value of the reference.
        row_error: The standard error of the difference over test rows, if known.
    """
    common = sorted(values.keys() & reference.keys())
    return t_interval([values[seed] - reference[seed] for seed in common], row_error=row_error)


def t_test(differences: Sequence[float], row_error: float = math.nan) -> float:
    """The two-sided p-value of the paired t-test: do these differences have mean 0?

    The statistic is t = m / (s / √n) with n - 1 degrees of freedom, in the notation of
    :func:`t_interval`. The p-value is below 0.05 just where the 95 % interval excludes 0.

    Args:
        differences: One number a seed; NaN values do not count.
        row_error: The standard error of the mean over test rows, if known.

    Returns:
        1 where it is undefined: with fewer than two values, or where all of them are 0. 0 where
        they are all the same and not 0.
    """
    kept = _not_nan(differences)
    if len(kept) < 2 or not kept.any():
        return 1.0

    error, freedom = _both_errors(kept, row_error)
    if not error:
        return 0.0
    return float(2 * special.stdtr(freedom, -abs(kept.mean()) / error))


def is_equivalent(differences: Sequence[float], margin: float, row_error: float = math.nan) -> bool:
    """Whether the mean of these differences is within ±margin, by two one-sided tests at 5 %.

    That is the case just where the 90 % interval lies within the margin (Schuirmann, 1987,
    doi:10.1007/BF01068419). A difference as large as the margin is called equivalent in 5 % of
    repeats at most.

    Args:
        differences: One number a seed.
        margin: The largest difference that does not matter.
        row_error: The standard error of the mean over test rows, if known.
    """
    interval = t_interval(differences, 0.90, row_error)
    return interval.bounded and max(-interval.low, interval.high) <= margin


@dataclass(frozen=True)
class Comparison:
    """What paired differences say."""

    interval: Interval = field(default_factory=Interval)  # their mean with its 95 % interval
    # Equivalent, if the difference lies within the margin; else better or worse, if the interval
    # excludes 0; else not told apart. Unknown without an interval.
    word: Word = "unknown"
    p_value: float = 1.0  # of the hypothesis that there is no difference
    # Seeds that would tell what is not told apart; NaN for other words.
    seeds_to_tell: float = math.nan


def compare(differences: Sequence[float], margin: float, row_error: float = math.nan) -> Comparison:
    """The verdict on differences of which those above 0 are better.

    Args:
        differences: One number a seed; NaN values do not count.
        margin: The largest difference that does not matter.
        row_error: The standard error of the mean over test rows, if known.
    """
    interval = t_interval(differences, row_error=row_error)
    if not interval.bounded:
        return Comparison(interval)

    word: Word = "not told apart"
    if is_equivalent(differences, margin, row_error):
        word = "equivalent"
    elif interval.excludes_zero:
        word = "better" if interval.mean > 0 else "worse"
    undecided = word == "not told apart"
    seeds = seeds_to_tell(differences, row_error) if undecided else math.nan
    return Comparison(interval, word, t_test(differences, row_error), seeds)


def seeds_to_tell(differences: Sequence[float], row_error: float = math.nan) -> float:
    """How many seeds would make the 95 % interval of this mean exclude 0, if mean and spread stay
    as they are.

    Args:
        differences: One number a seed, two at least.
        row_error: The standard error of the mean over test rows, if known.

    Returns:
        A whole number of 2 and more; infinity where no number up to ``MOST_SEEDS`` does, as where
        the test rows alone leave too much open.
    """
    kept = _not_nan(differences)
    mean = abs(float(kept.mean()))
    variance = float(kept.var(ddof=1))
    row_variance = 0.0 if math.isnan(row_error) else row_error**2
    seeds = np.arange(2, MOST_SEEDS + 1)
    error, freedom = _combined(variance / seeds, seeds - 1, row_variance)
    enough = np.flatnonzero(special.stdtrit(freedom, 0.975) * error < mean)
    return float(seeds[enough[0]]) if len(enough) else math.inf


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Whether each of several tests rejects, in the order of ``p_values``, by the step-down
    procedure of Holm (1979).

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
    """
    rejected = [False] * len(p_values)
    smallest_first = np.argsort(p_values, kind="stable")
    for rank, test in enumerate(smallest_first):
        if p_values[test] > level / (len(p_values) - rank):
            break
        rejected[test] = True
    return rejected


def relative_gain(value: float, reference: float, metric: Metric) -> float:
    """Change relative to the reference's distance from a useless model; above 0 is better. A
    fraction; NaN where the reference is itself no better than useless, or unknown.

        ± (value - reference) / |reference - floor|

    The sign makes better positive for either kind of metric. The floor is what a useless model
    reaches, such as 0.5 for an AUC: 0.75 to 0.76 is then a gain of 4 %, not of 1.3 %.
    """
    distance = abs(reference - metric.floor)
    if math.isnan(distance) or distance < TINY:
        return math.nan
    return (metric.goodness(value) - metric.goodness(reference)) / distance


def gain_slopes(value: float, reference: float, metric: Metric) -> tuple[float, float]:
    """By how much :func:`relative_gain` grows with the value, and with the reference; NaN where
    there is no gain, and for a metric without a direction.
    """
    distance = abs(reference - metric.floor)
    if math.isnan(distance) or distance < TINY or metric.target is not None:
        return math.nan, math.nan
    by_value = (1.0 if metric.higher_is_better else -1.0) / distance
    return by_value, -by_value * (value - metric.floor) / (reference - metric.floor)


def recovered(value: float, ceiling: float, metric: Metric) -> float:
    """The share of a ceiling's distance from a useless model that a value covers: 1 at the ceiling,
    0 for a useless model; NaN where the ceiling is useless, or unknown.

        (value - floor) / (ceiling - floor)
    """
    distance = ceiling - metric.floor
    if math.isnan(distance) or abs(distance) < TINY:
        return math.nan
    return (value - metric.floor) / distance


def chance_error(positives: float, rows: float) -> float:
    """The standard error of the AUC of useless scores over test rows; NaN where a class is empty,
    or the counts are unknown.

    It is that of the Mann-Whitney statistic, √((n + 1) / (12 n₊ n₋)), where the scores of
    positives and negatives have one distribution (Mann & Whitney, 1947,
    doi:10.1214/aoms/1177730491).
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
    """The mean over tasks of the means over their scores: no task counts twice. NaN without any
    value, or with one that is NaN.

    Args:
        values: Score to value.
        tasks: Score to the task whose label it is compared with.
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
    """(N,) bool: the points that no other point dominates, all columns being better when higher.
    Equal points are all on the front.

    A point dominates another if it is at least as good in every column and better in one.

    Args:
        points: (N, T); a row with a NaN is never on the front.
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


def hypervolume(points: np.ndarray) -> float:
    """The volume of all that some points dominate above 0, exactly, by slices along the last column
    (While et al., 2006, doi:10.1109/TEVC.2005.851275). Its cost grows with the power T - 1 of N.

    Args:
        points: (N, T); one that is not above 0 in every column adds nothing.
    """
    points = points[(points > 0).all(axis=1)]
    if points.shape[1] == 1:
        return float(points.max(initial=0.0))

    # From the top down, each slice is as thick as the step to the next point below.
    points = points[np.argsort(-points[:, -1])]
    thickness = -np.diff(points[:, -1], append=0.0)  # (N,)
    slices = np.flatnonzero(thickness)
    return sum(float(thickness[i]) * hypervolume(points[: i + 1, :-1]) for i in slices)


def distance_beyond(point: np.ndarray, front: np.ndarray) -> float:
    """How far a point lies beyond a front: what it may lose in every column until one point of the
    front is at least as good in all of them. Below 0, what it would have to gain. This is the
    additive epsilon indicator (Zitzler et al., 2003, doi:10.1109/TEVC.2003.810758) of one point.

    Args:
        point: (T,) higher is better.
        front: (N, T) with N of 1 or more; dominated points change nothing.
    """
    return float((point - front).max(axis=1).min())


def _not_nan(values: Sequence[float]) -> np.ndarray:
    return np.asarray([value for value in values if not math.isnan(value)], dtype=float)


def _both_errors(values: np.ndarray, row_error: float) -> tuple[float, float]:
    """The standard error of the mean of one value a seed, and its degrees of freedom.

    The two noises are independent, so their variances add up: s² / n with n - 1 degrees of freedom,
    and that over test rows, which many rows settle. The sum has n - 1 degrees of freedom over the
    seeds' share of the variance. Satterthwaite (1946, doi:10.2307/3002019) divides by the squared
    share, whose intervals of three seeds cover 92 to 95 % in simulation; these cover 94 to 96 %.

    Args:
        values: (n,) at least two.
        row_error: Over test rows; NaN if it is to be left out.
    """
    row_variance = 0.0 if math.isnan(row_error) else row_error**2
    error, freedom = _combined(values.var(ddof=1) / len(values), len(values) - 1, row_variance)
    return float(error), float(freedom)


def _combined(seed_variance: Any, freedom: Any, row_variance: float) -> tuple[Any, Any]:
    """The error and the degrees of freedom of :func:`_both_errors`, number by number."""
    total = seed_variance + row_variance
    seed_share = np.divide(
        seed_variance, total, out=np.ones_like(total, dtype=float), where=total > 0
    )
    return np.sqrt(total), freedom / np.maximum(seed_share, TINY)
