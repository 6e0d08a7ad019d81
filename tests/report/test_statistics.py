"""Statistics against scipy and numbers worked by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from mtlkit.metrics.definitions import METRICS
from mtlkit.report.statistics import (
    Interval,
    chance_error,
    delta_m,
    distance_beyond,
    hypervolume,
    is_useful,
    paired_delta,
    pareto_front,
    relative_gain,
    t_interval,
)

AUC, LOGLOSS = METRICS["auc"], METRICS["logloss"]


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_t_interval_is_that_of_scipy(count):
    values = np.random.default_rng(count).normal(0.9, 0.01, count)
    interval = t_interval(list(values))
    low, high = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=stats.sem(values))
    assert interval.n == count
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_t_interval_by_hand():
    interval = t_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half == pytest.approx(4.302652729911275 / math.sqrt(3))


def test_few_values_give_no_interval():
    assert not t_interval([]).known
    one = t_interval([0.5, math.nan])
    assert one.known
    assert one.n == 1
    assert not one.bounded
    assert not one.excludes_zero
    assert one.overlaps(Interval(9.0, 0.1, 3))


def test_t_interval_covers_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(2000, 3))
    covered = sum(
        abs(interval.mean) <= interval.half for interval in (t_interval(list(row)) for row in draws)
    )
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


def test_paired_delta_uses_common_seeds_only():
    delta = paired_delta({0: 0.9, 1: 0.8, 2: 0.7}, {1: 0.75, 2: 0.66, 3: 0.1})
    assert delta.n == 2
    assert delta.mean == pytest.approx(0.045)


def test_relative_gain_follows_direction_and_floor():
    assert relative_gain(0.76, 0.75, AUC) == pytest.approx(0.04)
    assert relative_gain(0.18, 0.20, LOGLOSS) == pytest.approx(0.1)
    assert math.isnan(relative_gain(0.6, 0.5, AUC))
    assert math.isnan(relative_gain(0.6, math.nan, AUC))


def test_delta_m_is_the_mean_over_tasks_a_seed():
    values = {"a": {0: 0.76, 1: 0.77}, "b": {0: 0.9, 2: 0.9}}
    reference = {"a": {0: 0.75, 1: 0.75}, "b": {0: 0.8, 1: 0.8, 2: 0.8}}
    gains = delta_m(values, reference, {"a": AUC, "b": AUC}, {"a": "a", "b": "b"})
    assert gains == {0: pytest.approx((0.04 + 1 / 3) / 2)}


def test_delta_m_is_na_where_one_task_is():
    gains = delta_m(
        {"a": {0: 0.7}, "b": {0: 0.7}},
        {"a": {0: 0.6}, "b": {0: 0.5}},
        {"a": AUC, "b": AUC},
        {"a": "a", "b": "b"},
    )
    assert math.isnan(gains[0])


def test_delta_m_counts_a_task_once_however_many_scores_it_has():
    values = {"click": {0: 0.76}, "buy": {0: 0.9}, "buy-given-click": {0: 0.6}}
    reference = {"click": {0: 0.75}, "buy": {0: 0.8}, "buy-given-click": {0: 0.7}}
    tasks = {"click": "click", "buy": "buy", "buy-given-click": "buy"}
    gains = delta_m(values, reference, dict.fromkeys(values, AUC), tasks)
    by_hand = (0.01 / 0.25 + (0.1 / 0.3 + -0.1 / 0.2) / 2) / 2
    assert gains == {0: pytest.approx(by_hand)}


def test_the_error_of_an_auc_by_chance_is_that_of_random_scores():
    """Against the spread of the AUC of 4,000 draws of useless scores, by ranks."""
    random = np.random.default_rng(0)
    positives, rows = 12, 80
    ranks = np.argsort(np.argsort(random.random((4000, rows)), 1), 1) + 1
    u = ranks[:, :positives].sum(1) - positives * (positives + 1) / 2
    aucs = u / (positives * (rows - positives))
    assert chance_error(positives, rows) == pytest.approx(aucs.std(), rel=0.04)
    assert math.isnan(chance_error(0, 10))
    assert math.isnan(chance_error(math.nan, 10))


def test_useful_is_above_the_floor_by_more_than_noise():
    assert is_useful(Interval(0.6, 0.05, 3), AUC, math.nan, math.nan)
    assert not is_useful(Interval(0.6, 0.11, 3), AUC, math.nan, math.nan)
    assert not is_useful(Interval(0.5005), AUC, math.nan, math.nan)
    assert not is_useful(Interval(), AUC, math.nan, math.nan)
    # 1.96 standard errors of 12 positives among 80 rows are .177
    assert not is_useful(Interval(0.65, 0.01, 3), AUC, 12, 80)
    assert is_useful(Interval(0.7, 0.01, 3), AUC, 12, 80)
    assert is_useful(Interval(0.2), LOGLOSS, math.nan, math.nan)


@pytest.mark.parametrize("tasks", [1, 2, 3, 8])
def test_front_is_what_nothing_dominates(tasks):
    points = np.random.default_rng(tasks).integers(0, 5, (40, tasks)).astype(float)
    front = pareto_front(points)
    assert front.any()
    for index, point in enumerate(points):
        dominated = any((other >= point).all() and (other > point).any() for other in points)
        assert front[index] == (not dominated)


def test_front_leaves_out_missing_points_and_keeps_equal_ones():
    front = pareto_front(np.array([[1.0, 2.0], [1.0, 2.0], [np.nan, 9.0], [0.0, 1.0]]))
    assert front.tolist() == [True, True, False, False]


def by_cells(points):
    """The same volume cell by cell: all coordinates of all points cut space into boxes, and a box
    counts if some point lies at or above its upper corner.
    """
    edges = [np.unique(np.maximum([0.0, *column], 0.0)) for column in points.T]
    upper = np.stack(np.meshgrid(*[edge[1:] for edge in edges], indexing="ij"), axis=-1)
    sides = np.stack(np.meshgrid(*map(np.diff, edges), indexing="ij"), axis=-1)
    dominated = (points[:, None] >= upper.reshape(1, -1, points.shape[1])).all(-1).any(0)
    return float(sides.prod(-1).ravel()[dominated].sum())


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_hypervolume_is_that_of_cells(columns):
    random = np.random.default_rng(columns)
    for count in (0, 1, 2, 7):
        points = random.normal(0.5, 0.6, (count, columns)).round(1)  # with ties, some below 0
        assert hypervolume(points) == pytest.approx(by_cells(points), abs=1e-12)


@pytest.mark.parametrize("columns", [2, 3, 4])
def test_hypervolume_is_that_of_another_implementation(columns):
    """Of points on the unit sphere, and some below the reference point."""
    moocore = pytest.importorskip("moocore")
    random = np.random.default_rng(columns)
    for count in (1, 5, 12):
        points = random.normal(0.5, 0.5, (count, columns))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        expected = moocore.hypervolume(points, ref=np.zeros(columns), maximise=True)
        assert hypervolume(points) == pytest.approx(expected, rel=1e-9)


def test_distance_beyond_a_front():
    front = np.array([[1.0, 0.0], [0.0, 1.0], [0.4, 0.4]])
    for point, distance in [((0.5, 0.5), 0.1), ((0.3, 0.3), -0.1), ((1.2, 0.1), 0.2)]:
        assert distance_beyond(np.array(point), front) == pytest.approx(distance)
    assert distance_beyond(front[0], front) == 0
