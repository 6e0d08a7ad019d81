"""PE-LTR: worked examples, the closed form for two tasks, and the two solvers."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from mtlkit.balancers._simplex import project_on_simplex
from mtlkit.errors import UsageError
from tests.balancers.fakes import Case, FakeStep, families

SOLVERS = ("exact", "paper")


def weights_of(rows, solver="exact", c=None, active=None):
    jacobian = torch.as_tensor(np.asarray(rows), dtype=torch.float64)
    options = (("solver", solver),) + ((("c", c),) if c is not None else ())
    return Case("pareto", options).make(len(jacobian))(
        FakeStep(jacobian, active=active)
    ).numpy() / len(jacobian)


@pytest.mark.parametrize("solver", SOLVERS)
def test_worked_example(solver):
    """g1 = (1, 0), g2 = (0, 3), no bounds: w1 = 9 / (1 + 9)."""
    w = Fraction(9, 1 + 9)
    np.testing.assert_allclose(
        weights_of([[1, 0], [0, 3]], solver, 0.0), [float(w), float(1 - w)], rtol=1e-12
    )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("c", [(0.0, 0.0), (0.2, 0.05), (0.45, 0.45)])
def test_closed_form_for_two_tasks(solver, c):
    rng = np.random.default_rng(0)
    for _ in range(40):
        one, two = rows = rng.standard_normal((2, 3)) * rng.lognormal(0, 1.5, (2, 1))
        share = np.clip((two - one) @ two / ((one - two) @ (one - two)), c[0], 1 - c[1])
        np.testing.assert_allclose(
            weights_of(rows, solver, c), [share, 1 - share], rtol=1e-9, atol=1e-9
        )


def test_default_bound_is_a_tenth_of_an_equal_share():
    rows = [[0.1, 0.0], [5.0, 5.0]]
    np.testing.assert_allclose(weights_of(rows), [0.95, 0.05], rtol=1e-9)
    default = Case("pareto").make(3)
    np.testing.assert_allclose(default.floor, [0.1 / 3] * 3)


def best_by_slsqp(rows, c):
    """The bounded program by a solver of its own."""
    rows = np.asarray(rows, float)
    found = minimize(
        lambda w: ((w @ rows) ** 2).sum(),
        np.full(len(rows), 1 / len(rows)),
        jac=lambda w: 2 * rows @ (w @ rows),
        method="SLSQP",
        bounds=[(c, 1)] * len(rows),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return found.x


def paper_by_hand(rows, c):
    """KKT point without bounds, by substitution of the sum; then the nearest feasible point, by
    bisection.
    """
    rows = np.asarray(rows, float)
    basis = np.vstack([np.eye(len(rows) - 1), -np.ones(len(rows) - 1)])
    start = np.full(len(rows), 1 / len(rows))
    free = np.linalg.solve(basis.T @ rows @ rows.T @ basis, -basis.T @ rows @ rows.T @ start)
    point = start + basis @ free
    low, high = point.min() - 2, point.max() + 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(point - middle, c).sum() > 1 else (low, middle)
    return np.maximum(point - low, c)


@pytest.mark.parametrize("c", [0.0, 0.05, 0.2])
def test_solvers_for_three_tasks(c):
    rng = np.random.default_rng(3)
    differ = 0
    for _ in range(25):
        rows = rng.standard_normal((3, 4)) * rng.lognormal(0, 1, (3, 1))
        exact, paper = weights_of(rows, "exact", c), weights_of(rows, "paper", c)
        np.testing.assert_allclose(exact, best_by_slsqp(rows, c), atol=1e-5)
        np.testing.assert_allclose(paper, paper_by_hand(rows, c), atol=1e-9)
        assert np.linalg.norm(exact @ rows) <= np.linalg.norm(paper @ rows) + 1e-12
        differ += not np.allclose(exact, paper, atol=1e-3)
    assert 5 < differ < 25


def test_three_tasks_where_the_paper_is_not_optimal():
    """The optimum without bounds is (1, -1/3, 1/3), and (5/6, 0, 1/6) the nearest weights; (1/2, 0,
    1/2) are better.
    """
    rows = np.array([[1, 0, 0], [2, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(weights_of(rows, "paper", 0.0), [5 / 6, 0, 1 / 6], atol=1e-9)
    np.testing.assert_allclose(weights_of(rows, "exact", 0.0), [1 / 2, 0, 1 / 2], atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_task_keeps_its_share(solver, count):
    for family, jacobian in families(count).items():
        weights = weights_of(jacobian, solver)
        assert weights.min() >= 0.1 / count - 1e-9, family
        assert weights.sum() == pytest.approx(1), family


@pytest.mark.parametrize("solver", SOLVERS)
def test_bounds_belong_to_tasks(solver):
    rows = np.array([[5.0, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 4.0]])
    weights = weights_of(rows, solver, (0.3, 0.0, 0.2))
    np.testing.assert_allclose(weights, [0.3, 0.5, 0.2], atol=1e-3)
    # an idle task takes its bound along
    weights = weights_of(rows, solver, (0.3, 0.0, 0.2), active=torch.tensor([False, True, True]))
    np.testing.assert_allclose(weights * 3 / 2, [0, 0.8, 0.2], atol=1e-3)


def test_without_bounds_it_is_mgda():
    for jacobian in families(3).values():
        mgda = Case("mgda", (("normalize", "none"),)).make(3)(FakeStep(jacobian)).numpy() / 3
        rows = jacobian.numpy()
        scale = np.abs(rows).max() + 1e-300
        np.testing.assert_allclose(
            weights_of(rows, c=0.0) @ rows / scale, mgda @ rows / scale, atol=1e-7
        )


@pytest.mark.parametrize("c", [(0.1, 0.2), (-0.1,), (0.4,), (0.5, 0.3, 0.2)])
def test_impossible_bounds_are_refused(c):
    with pytest.raises(UsageError, match="bounds"):
        Case("pareto", (("c", c),)).make(3)


def kkt_by_fractions(rows, floor):
    """The KKT point in exact arithmetic, by elimination; then the nearest feasible point."""
    count = len(rows)
    exact = [[Fraction(value) for value in row] for row in rows.tolist()]
    system = [
        [sum(x * y for x, y in zip(a, b, strict=True)) for b in exact] + [Fraction(1), Fraction(0)]
        for a in exact
    ]
    system.append([Fraction(1)] * count + [Fraction(0), Fraction(1)])
    for column in range(count + 1):
        row = next(r for r in range(column, count + 1) if system[r][column])
        system[column], system[row] = system[row], system[column]
        for r in range(count + 1):
            if r != column and system[r][column]:
                ratio = system[r][column] / system[column][column]
                system[r] = [x - ratio * y for x, y in zip(system[r], system[column], strict=True)]
    w = np.array([float(system[t][-1] / system[t][t]) for t in range(count)])
    return floor + project_on_simplex(w - floor, 1 - count * floor)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_solver_of_the_paper_at_norms_far_apart(count):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        norms = 10.0 ** np.append(rng.uniform(-8, 0, count - 2), [-8, 0])
        rows = rng.standard_normal((count, count + 2)) * norms[:, None]
        expected = kkt_by_fractions(rows, 0.1 / count)
        np.testing.assert_allclose(weights_of(rows, "paper"), expected, rtol=1e-9, atol=1e-12)


def test_the_solver_of_the_paper_where_several_points_are_best():
    # parallel rows: 2 g_1 - g_2 = 0, from where the nearest feasible point is a corner
    np.testing.assert_allclose(weights_of([[1, 1], [2, 2]], "paper", 0.1), [0.9, 0.1], rtol=1e-12)
    # equal rows: all mixtures are
    np.testing.assert_allclose(weights_of([[1, 1], [1, 1]], "paper"), [0.5, 0.5], rtol=1e-12)
    # a row of no length is a mixture that vanishes
    weights = weights_of([[1, 0], [0, 0], [0, 1]], "paper", 0.05)
    np.testing.assert_allclose(weights, [0.05, 0.9, 0.05], rtol=1e-12)
