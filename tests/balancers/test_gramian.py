"""The algebra on Gram matrices, against brute force and the conditions of optimality."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlkit.balancers._gramian import factor, min_norm, min_norm_above
from mtlkit.balancers._simplex import project_on_simplex
from tests.balancers.fakes import families

COUNTS = (1, 2, 3, 8)


def grid(count, steps=60):
    """(N, count) points of the simplex."""
    corner = np.stack(
        np.meshgrid(*[np.arange(steps + 1)] * (count - 1), indexing="ij"), -1
    ).reshape(-1, count - 1)
    corner = corner[corner.sum(1) <= steps]
    return np.column_stack([corner, steps - corner.sum(1)]) / steps


def value(weights, gram):
    """Squared norm of the weighted sum."""
    return np.einsum("...i,ij,...j", weights, gram, weights)


def check_optimal(weights, gram, floor=0.0):
    """Feasible, and no weight could be moved to another task to shorten the sum (the conditions of
    Karush et al.).
    """
    size = np.sqrt(np.maximum(gram.diagonal(), 0))
    assert weights.sum() == pytest.approx(1)
    assert (weights >= floor - 1e-12).all()
    slope = gram @ weights
    free = weights > floor + 1e-9
    least = slope[free].max() if free.any() else slope.min()
    assert (slope >= least - 1e-9 * size.max() * (size + 1e-30)).all()


@pytest.mark.parametrize("count", COUNTS)
def test_factor(count):
    for family, jacobian in families(count).items():
        gram = (jacobian @ jacobian.T).numpy()
        root = factor(gram)
        np.testing.assert_allclose(
            root.T @ root, gram, atol=1e-12 * max(gram.max(), 1e-300), err_msg=family
        )


@pytest.mark.parametrize("count", COUNTS)
def test_min_norm_is_optimal_on_every_family(count):
    for jacobian in families(count).values():
        gram = (jacobian @ jacobian.T).numpy()
        check_optimal(min_norm(gram), gram)


@pytest.mark.parametrize("width", [2, 70])
@pytest.mark.parametrize("count", [16, 64])
def test_min_norm_of_many_tasks(count, width):
    rng = np.random.default_rng(count + width)
    for shift in (0.0, 0.3, 3.0):
        rows = rng.standard_normal((count, width)) + shift
        gram = rows @ rows.T
        check_optimal(min_norm(gram), gram)


@pytest.mark.parametrize("count", [2, 3])
def test_min_norm_beats_every_point_of_a_grid(count):
    points = grid(count)
    rng = np.random.default_rng(0)
    for _ in range(30):
        rows = rng.standard_normal((count, 4)) * rng.lognormal(0, 1, (count, 1))
        gram = rows @ rows.T
        found, best = value(min_norm(gram), gram), value(points, gram).min()
        assert found <= best + 1e-12
        assert found >= best - 0.1 * gram.max()  # and is of the grid's size


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=1, max_size=6))
def test_min_norm_of_small_integers(rows):
    """Integers give many ties, duplicates, zeros and exact opposites."""
    gram = np.array(rows, float) @ np.array(rows, float).T
    check_optimal(min_norm(gram), gram)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=2, max_size=4),
    st.floats(0, 0.24),
)
def test_min_norm_above_a_floor(rows, floor):
    gram = np.array(rows, float) @ np.array(rows, float).T
    check_optimal(min_norm_above(gram, np.full(len(rows), floor)), gram, floor)


def test_min_norm_above_unequal_floors_beats_a_grid():
    rng = np.random.default_rng(1)
    floor = np.array([0.3, 0.05, 0.1])
    points = floor + (1 - floor.sum()) * grid(3)
    for _ in range(30):
        rows = rng.standard_normal((3, 4)) * rng.lognormal(0, 1, (3, 1))
        gram = rows @ rows.T
        weights = min_norm_above(gram, floor)
        assert (weights >= floor - 1e-12).all()
        assert weights.sum() == pytest.approx(1)
        assert value(weights, gram) <= value(points, gram).min() + 1e-12


def test_a_floor_that_takes_all_is_the_answer():
    np.testing.assert_allclose(min_norm_above(np.eye(2), np.array([0.25, 0.75])), [0.25, 0.75])


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=3), st.floats(0.1, 3))
def test_projection_on_the_simplex_is_the_nearest_point(point, total):
    point = np.array(point)
    nearest = project_on_simplex(point, total)
    assert (nearest >= 0).all()
    assert nearest.sum() == pytest.approx(total)
    points = grid(len(point)) * total if len(point) > 1 else np.array([[total]])
    distances = ((points - point) ** 2).sum(1)
    assert ((nearest - point) ** 2).sum() <= distances.min() + 1e-9
