"""PCGrad: by hand for two tasks, by vectors for more."""

import numpy as np
import pytest
import torch

from tests.balancers.fakes import Case, FakeStep, families


def weights_of(rows, index=0, seed=0, active=None):
    jacobian = torch.as_tensor(np.asarray(rows), dtype=torch.float64)
    return (
        Case("pcgrad")
        .make(len(jacobian))(FakeStep(jacobian, active=active, index=index, seed=seed))
        .numpy()
    )


def surgery(rows, index, seed):
    """The sum of the projected gradients, as the paper writes it, over vectors."""
    rng = np.random.default_rng([seed, index])
    total = np.zeros(rows.shape[1])
    for i in range(len(rows)):
        own = rows[i].copy()
        for j in rng.permutation(len(rows)):
            inner = own @ rows[j]
            if j != i and inner < 0:
                own -= inner / (rows[j] @ rows[j]) * rows[j]
        total += own
    return total


def test_worked_example():
    """g1 = (1, 0), g2 = (-1, 1): g1 becomes (1/2, 1/2), g2 becomes (0, 1)."""
    rows = np.array([[1.0, 0.0], [-1.0, 1.0]])
    np.testing.assert_allclose(weights_of(rows), [2, 1.5])
    np.testing.assert_allclose(weights_of(rows) @ rows, [0.5, 1.5])


def test_closed_form_for_two_tasks():
    rng = np.random.default_rng(0)
    conflicts = 0
    for index in range(40):
        rows = rng.standard_normal((2, 3)) * rng.lognormal(0, 1, (2, 1))
        gram = rows @ rows.T
        conflict = min(gram[0, 1], 0)
        conflicts += conflict < 0
        np.testing.assert_allclose(
            weights_of(rows, index), 1 - conflict / gram.diagonal(), rtol=1e-12
        )
    assert 5 < conflicts < 35


@pytest.mark.parametrize("count", [3, 8])
def test_many_tasks_by_vectors(count):
    for family in ("random", "conflicting", "orthogonal", "badly scaled", "aligned"):
        rows = families(count)[family].numpy()
        for index in range(10):
            scale = np.abs(rows).sum()
            np.testing.assert_allclose(
                weights_of(rows, index, 5) @ rows / scale,
                surgery(rows, index, 5) / scale,
                atol=1e-12,
                err_msg=family,
            )


def test_order_is_random_from_step_to_step():
    rows = families(8)["conflicting"]
    answers = {tuple(weights_of(rows, index, seed)) for index in range(3) for seed in range(3)}
    assert len(answers) == 9


def test_uniform_where_no_gradients_conflict():
    np.testing.assert_array_equal(weights_of(families(8)["aligned"]), np.ones(8))


def test_idle_tasks_take_no_part():
    rows = families(3)["conflicting"].numpy()
    active = torch.tensor([True, False, True])
    weights = weights_of(rows, active=active)
    np.testing.assert_allclose(weights[[0, 2]], weights_of(rows[[0, 2]]))
