"""MGDA: closed forms for two tasks, brute force for three, and no conflict with any task."""

import numpy as np
import pytest
import torch

from tests.balancers.fakes import Case, FakeStep, families, losses_at

NORMALIZERS = ("none", "l2", "loss", "loss+")


def weights_of(normalize, rows, losses=None):
    jacobian = torch.as_tensor(rows, dtype=torch.float64)
    balancer = Case("mgda", (("normalize", normalize),)).make(len(jacobian))
    return balancer(FakeStep(jacobian, losses)).numpy()


def test_default_is_loss_plus():
    rows, losses = families(3)["random"], losses_at(0, 3)
    default = Case("mgda").make(3)(FakeStep(rows, losses)).numpy()
    np.testing.assert_array_equal(default, weights_of("loss+", rows, losses))


def pairs():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((2, 3)) * rng.lognormal(0, 1.5, (2, 1)) for _ in range(40)]


@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_closed_form_for_two_tasks(normalize):
    losses = np.array([0.7, 0.02])
    boundary = 0
    for rows in pairs():
        norms = np.linalg.norm(rows, axis=1)
        size = {"none": np.ones(2), "l2": norms, "loss": losses, "loss+": norms * losses}[normalize]
        one, two = rows / size[:, None]
        share = np.clip((two - one) @ two / ((one - two) @ (one - two)), 0, 1)
        boundary += share in (0, 1)
        expected = np.array([share, 1 - share]) / size
        np.testing.assert_allclose(
            weights_of(normalize, rows, torch.tensor(losses)),
            2 * expected / expected.sum(),
            rtol=1e-9,
            atol=1e-9,
        )
    assert (boundary > 0) == (normalize != "l2")  # the family covers both kinds of answer


def test_l2_is_the_bisector_of_two_tasks():
    for rows in pairs():
        bisector = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).sum(0)
        found = weights_of("l2", rows) @ rows
        np.testing.assert_allclose(
            found / np.linalg.norm(found), bisector / np.linalg.norm(bisector), atol=1e-9
        )


@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_three_tasks_by_brute_force(normalize):
    rng = np.random.default_rng(1)
    losses = np.array([0.5, 2.0, 0.1])
    points = rng.dirichlet([0.7] * 3, 4000)
    for _ in range(20):
        rows = rng.standard_normal((3, 5)) * rng.lognormal(0, 1, (3, 1))
        norms = np.linalg.norm(rows, axis=1)
        size = {"none": np.ones(3), "l2": norms, "loss": losses, "loss+": norms * losses}[normalize]
        scaled = rows / size[:, None]
        found = weights_of(normalize, rows, torch.tensor(losses)) * size
        found /= found.sum()
        assert (
            np.linalg.norm(found @ scaled) <= np.linalg.norm(points @ scaled, axis=1).min() + 1e-9
        )


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_never_conflicts_with_a_task(normalize, count):
    for family, jacobian in families(count).items():
        rows = jacobian.numpy()
        step = weights_of(normalize, rows, losses_at(0, count)) @ rows
        norms = np.linalg.norm(rows, axis=1)
        assert (rows @ step >= -1e-7 * norms * count * norms.max()).all(), family


@pytest.mark.parametrize("normalize", ["none", "loss"])
def test_vanishes_where_tasks_oppose(normalize):
    rows = np.array([[1.0, 0.0], [-4.0, 0.0]])
    np.testing.assert_allclose(weights_of(normalize, rows) @ rows, 0, atol=1e-12)


def test_unnormalised_follows_the_smallest_gradient():
    np.testing.assert_allclose(weights_of("none", [[0.1, 0.0], [5.0, 5.0]]), [2, 0], atol=1e-12)


@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_an_idle_task_is_as_if_it_were_not_there(normalize):
    rows, losses = families(3)["random"], losses_at(0, 3)
    active = torch.tensor([True, False, True])
    balancer = Case("mgda", (("normalize", normalize),)).make(3)
    found = balancer(FakeStep(rows, losses, active)).numpy()
    np.testing.assert_allclose(found[[0, 2]], weights_of(normalize, rows[[0, 2]], losses[[0, 2]]))


def test_collinear_rows_have_one_answer():
    """All shares of unit vectors of one direction are best; equal ones make the step w_t ~ 1 / n_t,
    whose sum is T.
    """
    norms = np.array([1.0, 4.0, 0.5, 3.0])
    rows = norms[:, None] * np.array([[3.0, -4.0]]) / 5
    weights = weights_of("l2", rows)
    np.testing.assert_allclose(weights, 4 / norms / (1 / norms).sum(), rtol=1e-12)
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(weights_of("l2", rows[order]), weights[order], rtol=1e-12)


def test_equal_directions_share_the_weight_of_one():
    """Rows 0 and 2 are parallel: together they count as one unit vector."""
    rows = np.array([[1.0, 0.2], [-0.5, 1.0], [3.0, 0.6]])
    norms = np.linalg.norm(rows, axis=1)
    pair = weights_of("l2", rows[:2]) * norms[:2]
    shares = weights_of("l2", rows) * norms
    expected = np.array([pair[0] / 2, pair[1], pair[0] / 2])
    np.testing.assert_allclose(shares / shares.sum(), expected / expected.sum(), rtol=1e-9)


def test_opposite_collinear_rows_make_no_step():
    rows = np.array([[2.0, 1.0], [-4.0, -2.0], [1.0, 0.5]])
    weights = weights_of("l2", rows)
    np.testing.assert_allclose(weights @ rows, 0, atol=1e-12)
    assert weights.min() > 0
