"""Methods on the Gram matrix: golden vectors in exact arithmetic, defining equations, and state."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from mtlkit.balancers._balancer import GramProblem
from mtlkit.balancers._gramian import NO_RANK
from mtlkit.balancers._solvers import NO_LENGTH, unit_rows
from mtlkit.balancers.aligned import alignment
from mtlkit.balancers.fairgrad import fair_weights
from mtlkit.registry import BALANCERS
from tests.balancers.fakes import Case, FakeStep, families

F = Fraction
COUNTS = (2, 3, 8)
REGULAR = ("random", "aligned", "conflicting", "orthogonal", "badly scaled", "tiny", "huge")
NAMES = tuple("gradvac cagrad imtl-g nash aligned upgrad dualproj config fairgrad".split())


def solve(name, gram, seed=0, losses=None, **options):
    """(T,) weights by one balancer; options as keywords."""
    gram = np.array(gram, dtype=float)
    count = len(gram)
    balancer = Case(name, tuple(options.items())).make(count)
    losses = np.ones(count) if losses is None else losses
    return balancer.solve(GramProblem(gram, losses, np.arange(count), (seed,)))


def gram_of(*rows):
    """Exact inner products."""
    return [
        [sum((F(a) * F(b) for a, b in zip(x, y, strict=True)), F(0)) for y in rows] for x in rows
    ]


def exact_solve(matrix, target):
    """The solution of a regular linear system, in fractions."""
    rows = [[F(x) for x in row] + [F(y)] for row, y in zip(matrix, target, strict=True)]
    for i in range(len(rows)):
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for j in range(len(rows)):
            if j != i:
                rows[j] = [x - rows[j][i] * y for x, y in zip(rows[j], rows[i], strict=True)]
    return [row[-1] for row in rows]


def scaled(cosines, norms):
    """The Gram matrix of unit vectors made longer."""
    return [
        [c * F(n) * F(m) for c, m in zip(row, norms, strict=True)]
        for row, n in zip(cosines, norms, strict=True)
    ]


CONFLICT = [[1, -3], [-3, 25]]  # norms 1 and 5, cosine -3/5
PAIR = [[1, F(1, 2), 0], [F(1, 2), 1, 0], [0, 0, 1]]
SPREAD = [[1, F(-1, 2), F(1, 4)], [F(-1, 2), 1, F(-1, 3)], [F(1, 4), F(-1, 3), 1]]


def equal_cosines(cosines, norms):
    """x = C^-1 1 and x / n, in fractions."""
    x = exact_solve(cosines, [1] * len(cosines))
    return x, [value / F(n) for value, n in zip(x, norms, strict=True)]


def imtl_g(cosines, norms):
    _, a = equal_cosines(cosines, norms)
    return [value / sum(a) for value in a]


def config(cosines, norms):
    x, a = equal_cosines(cosines, norms)
    return [sum(norms) / sum(x) * value for value in a]


# G = M M, so G^(-1/2) = M^-1; the eigenvalues of these M are 1 and 6, and 1, 3 and 5
ROOT_2 = [[F(14, 5), F(12, 5)], [F(12, 5), F(21, 5)]]
ROOT_3 = [[2, 1, 0], [1, 2, 0], [0, 0, 5]]

GOLDEN = {
    "gradvac T=2, as pcgrad": ("gradvac", CONFLICT, {}, [4, F(28, 25)]),
    # g_1' = g_1 + g_2 / 2, g_2' = g_2 + g_1, g_3' = g_3
    "gradvac T=3": ("gradvac", gram_of((1, 0, 0), (-1, 1, 0), (0, 0, 1)), {}, [2, F(3, 2), 1]),
    # |g_0| = 5/2, so the ball has radius 1, best spent on the task that gains least, the first: 7.5
    # and 8
    "cagrad T=2": ("cagrad", gram_of((3, 0), (0, 4)), {}, [F(1, 2) + F(1, 3), F(1, 2)]),
    "cagrad T=2, opposite": ("cagrad", gram_of((1,), (-2,)), {"c": 0.5}, [F(3, 4), F(1, 2)]),
    "cagrad T=3": (
        "cagrad",
        gram_of((3, 0, 0), (0, 6, 0), (0, 0, 6)),
        {},
        [F(11, 15), F(1, 3), F(1, 3)],
    ),
    "cagrad T=3, official scale": (
        "cagrad",
        gram_of((3, 0, 0), (0, 6, 0), (0, 0, 6)),
        {"rescale": 1},
        [F(11, 15) / F(29, 25), F(1, 3) / F(29, 25), F(1, 3) / F(29, 25)],
    ),
    # g_w = 0 can be had, and the mean conflicts with no task
    "cagrad T=3, stationary": ("cagrad", gram_of((1, 0), (-1, 0), (0, 1)), {}, [F(1, 3)] * 3),
    "imtl-g T=2": ("imtl-g", CONFLICT, {}, [F(5, 6), F(1, 6)]),
    "imtl-g T=2, opposite": ("imtl-g", gram_of((1,), (-2,)), {}, [F(2, 3), F(1, 3)]),
    "imtl-g T=3": ("imtl-g", scaled(PAIR, [1, 2, 4]), {}, [F(8, 15), F(4, 15), F(3, 15)]),
    "imtl-g T=3, all cosines": ("imtl-g", scaled(SPREAD, [3, 1, 2]), {}, imtl_g(SPREAD, [3, 1, 2])),
    "nash T=2": ("nash", [[1, F(-7, 8)], [F(-7, 8), 4]], {}, [F(4, 3), F(2, 3)]),
    "nash T=3": (
        "nash",
        [[F(5, 4), -1, F(1, 2)], [-1, F(13, 2), F(-1, 2)], [F(1, 2), F(-1, 2), F(7, 2)]],
        {},
        [1, F(1, 2), F(1, 2)],
    ),
    "aligned T=2": ("aligned", gram_of(*ROOT_2), {}, exact_solve(ROOT_2, [F(1, 2)] * 2)),
    "aligned T=3": ("aligned", gram_of(*ROOT_3), {}, [F(1, 9), F(1, 9), F(1, 15)]),
    "aligned T=2, one direction": ("aligned", gram_of((3,), (4,)), {}, [F(21, 50), F(28, 50)]),
    "upgrad T=2": ("upgrad", CONFLICT, {}, [2, F(14, 25)]),
    # the cone is 0 <= d_1 <= d_2 <= d_3: projections (1, 1, 1) / 3, (0, 1, 1) / 2 and (0, 0, 1)
    "upgrad T=3": (
        "upgrad",
        gram_of((1, 0, 0), (-1, 1, 0), (0, -1, 1)),
        {},
        [1, F(8, 9), F(11, 18)],
    ),
    "dualproj T=2": ("dualproj", CONFLICT, {}, [F(3, 2), F(1, 2)]),
    # the mean (-1, 1/3, 1/3) loses its first entry
    "dualproj T=3": (
        "dualproj",
        gram_of((1, 0, 0), (-4, 1, 0), (0, 0, 1)),
        {},
        [F(4, 3), F(1, 3), F(1, 3)],
    ),
    "config T=2": ("config", CONFLICT, {}, [3, F(3, 5)]),
    "config T=2, opposite": ("config", gram_of((1,), (-2,)), {}, [0, 0]),
    "config T=3": ("config", scaled(PAIR, [1, 2, 4]), {}, [2, 1, F(3, 4)]),
    "config T=3, all cosines": ("config", scaled(SPREAD, [3, 1, 2]), {}, config(SPREAD, [3, 1, 2])),
    "fairgrad T=2": ("fairgrad", [[F(5, 4), -1], [-1, 12]], {}, [1, F(1, 4)]),
    "fairgrad T=3": (
        "fairgrad",
        [[F(7, 4), -1, F(-1, 8)], [-1, 16, F(-1, 4)], [F(-1, 8), F(-1, 4), F(11, 64)]],
        {},
        [1, F(1, 4), 4],
    ),
    "fairgrad T=2, alpha 1/2": (
        "fairgrad",
        [[2, F(-1, 2)], [F(-1, 2), F(3, 8)]],
        {"alpha": 0.5},
        [1, 2],
    ),
}


@pytest.mark.parametrize("case", GOLDEN.values(), ids=GOLDEN)
def test_golden(case):
    name, gram, options, expected = case
    np.testing.assert_allclose(
        solve(name, gram, **options), np.array(expected, dtype=float), rtol=1e-9, atol=1e-12
    )


@pytest.fixture(params=COUNTS)
def count(request):
    return request.param


@pytest.fixture(params=REGULAR)
def rows(request, count):
    """(T, P) linearly independent gradients."""
    return families(count)[request.param].numpy()


def random_rows(count, seed, width=12):
    """(T, P) with some conflict, of unequal norm."""
    rng = np.random.default_rng([count, seed])
    made = rng.standard_normal((count, width))
    return (made - rng.uniform(0, 1) * made.mean(0)) * rng.uniform(0.3, 3, (count, 1))


def lengths(rows):
    return np.linalg.norm(rows, axis=1)


def check_no_conflict(weights, rows):
    """Up to the rounding errors of the weighted sum."""
    step, size = weights @ rows, lengths(rows)
    assert (rows @ step >= -1e-9 * size * (np.abs(weights) @ size)).all()


@pytest.mark.parametrize("name", ["nash", "fairgrad", "config", "upgrad", "dualproj"])
def test_no_conflict(name, count):
    for family, tensor in families(count).items():
        rows = tensor.numpy()
        # config promises nothing for gradients that depend on each other
        if rows.any() and not (name == "config" and family == "opposing"):
            check_no_conflict(solve(name, rows @ rows.T), rows)
    for seed in range(20):
        rows = random_rows(count, seed)
        check_no_conflict(solve(name, rows @ rows.T), rows)


NO_LENGTH_METHODS = (
    "aligned", "cagrad", "config", "dualproj", "fairgrad", "imtl-g", "mgda", "nash", "pareto", "upgrad",
)  # fmt: skip


def far_apart(count, exponent, seed):
    """Rows of random directions whose norms lie between 10^exponent and 1, both of which occur."""
    rng = np.random.default_rng([seed, count])
    rows = rng.standard_normal((count, count + 2))
    exponents = np.append(rng.uniform(exponent, 0, count - 2), [exponent, 0])
    return rows / lengths(rows)[:, None] * 10.0 ** exponents[:, None]


@pytest.mark.parametrize("exponent", [-4, -8, -11.9])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nash", {}),
        ("fairgrad", {}),
        ("upgrad", {}),
        ("dualproj", {}),
        ("mgda", {"normalize": "none"}),
        ("mgda", {"normalize": "l2"}),
        ("pareto", {"c": 0}),
    ],
)
def test_no_conflict_up_to_where_a_gradient_counts_as_none(name, options, exponent):
    for seed in range(20):
        for count in (2, 3, 6):
            rows = far_apart(count, exponent, seed)
            check_no_conflict(solve(name, rows @ rows.T, **options), rows)


def test_methods_say_when_a_gradient_counts_as_none():
    for name in NO_LENGTH_METHODS:
        assert f"{NO_LENGTH:g} times as long as the longest" in BALANCERS.docstring(name), name


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9])
def test_cagrad_closes_the_gap_of_duality_at_norms_far_apart(c):
    """In the size of the smallest gradient, whose gain is the worst one as a rule."""
    for seed in range(40):
        for count in (2, 3, 6):
            rows = far_apart(count, -8, seed)
            a = solve("cagrad", rows @ rows.T, c=c)
            mean, step, w = rows.mean(0), a @ rows, a - 1 / count
            radius = c * np.linalg.norm(mean)
            assert np.linalg.norm(step - mean) <= radius * (1 + 1e-9)
            mixed = w / w.sum() @ rows
            dual = mixed @ mean + radius * np.linalg.norm(mixed)
            unit = lengths(rows).min() * np.linalg.norm(mean)
            assert abs(dual - worst_gain(step, rows)) <= 1e-6 * max(unit, abs(dual))


def test_cagrad_conflicts_less_than_the_mean(count):
    for seed in range(20):
        rows = random_rows(count, seed)
        gains = [
            worst_gain(solve("cagrad", rows @ rows.T, c=c) @ rows, rows) for c in (0, 0.2, 0.4, 0.8)
        ]
        assert np.diff(gains).min() > -1e-9


@pytest.mark.parametrize("alpha", [0.5, 1, 2, 5])
def test_fair_weights_solve_their_equation(rows, alpha):
    gram = rows @ rows.T
    a = solve("nash", gram) if alpha == 1 else solve("fairgrad", gram, alpha=alpha)
    assert (a > 0).all()
    size = lengths(rows)
    np.testing.assert_array_less(np.abs(gram @ a - a ** (-1 / alpha)), 1e-8 * size * (size @ a))


def test_nash_has_the_largest_product_of_gains(count):
    rows = random_rows(count, 3)
    step = solve("nash", rows @ rows.T) @ rows
    assert step @ step == pytest.approx(count, rel=1e-6)
    rng = np.random.default_rng(0)
    for size in (1e-4, 1e-2, 1):
        for _ in range(100):
            other = step + size * rng.standard_normal(rows.shape[1])
            other *= np.linalg.norm(step) / np.linalg.norm(other)
            gains = rows @ other
            assert gains.min() <= 0 or np.log(gains).sum() <= np.log(rows @ step).sum() + 1e-9


def test_imtl_g_has_equal_projections(rows):
    a = solve("imtl-g", rows @ rows.T)
    projections = rows @ (a @ rows) / lengths(rows)
    assert projections.min() > 0
    np.testing.assert_allclose(projections, projections[0], rtol=1e-6)
    total, size = a.sum(), np.abs(a).sum()
    assert total == pytest.approx(1) if total > 0.1 * size else size == pytest.approx(10)


def test_imtl_g_does_not_turn_round():
    """The second gradient stands so far between the others that its weight outweighs theirs: sum a
    = 1 would ascend.
    """
    rows = np.array([[1.0, 0.0, 0.0], [0.05, 0.05, 0.02], [0.0, 1.0, 0.0]])
    x = np.linalg.solve(unit_rows(rows @ rows.T)[1], np.ones(3))
    assert (x / lengths(rows)).sum() < 0
    a = solve("imtl-g", rows @ rows.T)
    assert (rows @ (a @ rows) > 0).all()


def test_config_has_equal_cosines_and_the_summed_length(rows):
    a = solve("config", rows @ rows.T)
    step = a @ rows
    cosines = rows @ step / lengths(rows) / np.linalg.norm(step)
    np.testing.assert_allclose(cosines, cosines[0], rtol=1e-6)
    assert np.linalg.norm(step) == pytest.approx((rows @ step).sum() / np.linalg.norm(step))


def test_aligned_rows_are_orthogonal_and_of_one_norm(rows):
    gram = rows @ rows.T
    moved = alignment(gram) @ rows
    smallest = np.linalg.svd(rows, compute_uv=False).min()
    np.testing.assert_allclose(
        moved @ moved.T, smallest**2 * np.eye(len(rows)), atol=1e-6 * smallest**2
    )
    np.testing.assert_allclose(solve("aligned", gram) @ rows, moved.mean(0), atol=1e-9 * smallest)


def test_aligned_leaves_out_what_has_no_length():
    rows = np.array([[3.0, 0, 0], [0, 0, 0], [0, 4, 0], [3, 0, 0]])
    moved = alignment(rows @ rows.T) @ rows
    np.testing.assert_allclose(np.linalg.svd(moved, compute_uv=False), [4, 4, 0], atol=1e-12)


def projected(vector, rows):
    """The nearest vector that conflicts with no row: by SLSQP, in the space of the gradients."""
    units = rows / lengths(rows)[:, None]
    size = np.linalg.norm(vector)
    found = minimize(
        lambda d: ((d - vector / size) ** 2).sum(),
        vector / size,
        jac=lambda d: 2 * (d - vector / size),
        constraints={"type": "ineq", "fun": lambda d: units @ d, "jac": lambda d: units},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return found.x * size


@pytest.mark.parametrize("family", ["random", "aligned", "conflicting", "orthogonal"])
def test_projections_against_another_solver(family, count):
    rows = families(count)[family].numpy()
    gram = rows @ rows.T
    close = {"rtol": 1e-5, "atol": 1e-6 * lengths(rows).max()}
    np.testing.assert_allclose(
        solve("dualproj", gram) @ rows, projected(rows.mean(0), rows), **close
    )
    each = np.mean([projected(row, rows) for row in rows], 0)
    np.testing.assert_allclose(solve("upgrad", gram) @ rows, each, **close)


@pytest.mark.parametrize("count", [*COUNTS, 20, 64])
@pytest.mark.parametrize("width", [6, 64, 400])
def test_projections_are_optimal(count, width):
    """v = u + y with y >= 0, z = G v >= 0, y z = 0: also with fewer parameters than tasks."""
    for seed in range(3):
        rows = random_rows(count, seed, width)
        size = lengths(rows)
        excess = (solve("dualproj", rows @ rows.T) - 1 / count) * size
        gains = rows @ (solve("dualproj", rows @ rows.T) @ rows) / size
        scale = np.abs(excess).sum() + size.sum()
        assert excess.min() >= -1e-9 * scale
        assert gains.min() >= -1e-9 * scale
        assert np.abs(excess * gains).max() <= 1e-9 * scale**2


def worst_gain(d, rows):
    return (rows @ d).min()


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9, 3.0])
def test_cagrad_closes_the_gap_of_duality(rows, c):
    """The worst gain of the step, in the ball, is a lower bound of every dual value: so both are
    optimal.
    """
    a = solve("cagrad", rows @ rows.T, c=c)
    mean = rows.mean(0)
    radius = c * np.linalg.norm(mean)
    step = a @ rows
    assert np.linalg.norm(step - mean) <= radius * (1 + 1e-9)
    w = a - 1 / len(rows)
    assert w.min() >= -1e-12 * w.max()
    mixed = w / w.sum() @ rows
    dual = mixed @ mean + radius * np.linalg.norm(mixed)
    assert worst_gain(step, rows) >= dual - 1e-7 * np.linalg.norm(step) * lengths(rows).max() * (
        1e-3 + c
    )


@pytest.mark.parametrize("count", [2, 3])
def test_cagrad_against_brute_force(count):
    for seed in range(5):
        rows = random_rows(count, seed)
        mean = rows.mean(0)
        radius = 0.4 * np.linalg.norm(mean)
        fine = np.linspace(0, 1, 20_001 if count == 2 else 301)
        w = np.stack(np.meshgrid(*[fine] * (count - 1), indexing="ij"), -1).reshape(-1, count - 1)
        w = np.column_stack([w, 1 - w.sum(1)])
        mixed = w[w[:, -1] >= 0] @ rows
        best = (mixed @ mean + radius * np.linalg.norm(mixed, axis=1)).min()
        step = solve("cagrad", rows @ rows.T) @ rows
        assert worst_gain(step, rows) == pytest.approx(best, rel=1e-3, abs=1e-3)
        assert worst_gain(step, rows) <= best + 1e-9


@pytest.mark.parametrize("c", [0.0, 0.4, 1.0, 5.0])
def test_cagrad_at_a_stationary_point(c):
    """Opposite gradients: no step serves both, and within its reach the step takes least from the
    worst.
    """
    a = solve("cagrad", gram_of((1,), (-3,)), c=c)
    assert a @ [1, -3] == pytest.approx(-max(1 - c, 0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 2, 3, 8, 64])
def test_finite_whatever_comes(name, count):
    rng = np.random.default_rng(count)
    made = [rows.numpy() for rows in families(min(count, 12)).values()]
    for _ in range(3):
        base = rng.standard_normal((count, rng.integers(1, 2 * count + 2)))
        made += [base * 10.0 ** rng.uniform(-6, 6, (count, 1)), base[rng.integers(0, count, count)]]
        made += [base - base.mean(0), base * (rng.uniform(size=(count, 1)) < 0.5), np.round(base)]
    for place, rows in enumerate(made):
        unit = (1e-12, 1, 1e12)[place % 3]
        if rows.any():
            weights = solve(name, unit * rows @ (unit * rows).T)
            assert np.abs(weights).max() < torch.finfo(torch.float32).max, (place, unit)


@pytest.mark.parametrize("name", ["nash", "imtl-g", "config"])
def test_norms_do_not_matter(name, count):
    rows = random_rows(count, 1)
    steps = []
    for norms in (np.ones(count), np.logspace(-4, 4, count)):
        own = rows / lengths(rows)[:, None] * norms[:, None]
        step = solve(name, own @ own.T) @ own
        steps.append(step / np.linalg.norm(step))
    np.testing.assert_allclose(steps[0], steps[1], atol=1e-9)


def test_opposite_gradients_give_finite_fair_weights_and_next_to_no_step():
    gram = np.array(gram_of((1,), (-2,)), dtype=float)
    a = fair_weights(gram, 1)
    assert np.isfinite(a).all()
    assert abs(a @ [1, -2]) < 1e-3
    assert a[0] == pytest.approx(2 * a[1], rel=1e-6)
    assert a[0] == pytest.approx(NO_RANK**-0.5, rel=0.5)


def test_gradvac_reaches_its_target():
    balancer = Case("gradvac").make(2)
    balancer.target.fill_(0.8)
    # cosine -3/5: (4/5 * 4/5 + 3/5 * 3/5) / (3/5) = 5/3 of the ratio of norms
    weights = balancer.solve(GramProblem(np.array(CONFLICT, float), np.ones(2), np.arange(2), (0,)))
    np.testing.assert_allclose(weights, [1 + 25 / 3, 1 + 1 / 3], rtol=1e-6)
    rows = np.array([[1.0, 0], [-3, 4]])
    turned = rows[0] + rows[1] / 3
    assert turned @ rows[1] / np.linalg.norm(turned) / 5 == pytest.approx(0.8)
    np.testing.assert_allclose(balancer.target[0, 1], 0.8 + 0.01 * (-0.6 - 0.8), rtol=1e-6)
    assert balancer.target.diagonal().tolist() == [pytest.approx(0.8)] * 2


def test_gradvac_targets_move_up_too():
    balancer = Case("gradvac", (("beta", 0.5),)).make(3)
    rows = np.array([[1.0, 0, 0], [3, 4, 0], [0, 0, 2]])
    for index in range(3):
        balancer.solve(GramProblem(rows @ rows.T, np.ones(3), np.arange(3), (index,)))
    np.testing.assert_allclose(balancer.target[0, 1], 0.6 * (1 - 0.5**3), rtol=1e-6)
    np.testing.assert_allclose(balancer.target[0, 2], 0, atol=1e-7)


def test_gradvac_with_perfect_targets_stays_bounded():
    balancer = Case("gradvac").make(2)
    balancer.target.fill_(1.0)
    weights = balancer.solve(GramProblem(np.eye(2), np.ones(2), np.arange(2), (0,)))
    assert np.abs(weights).max() < 50


def test_gradvac_without_targets_is_pcgrad():
    rows = random_rows(8, 0)
    for seed in range(5):
        one, other = (
            solve(name, rows @ rows.T, seed, **o)
            for name, o in (("gradvac", {"beta": 0}), ("pcgrad", {}))
        )
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_gradvac_ignores_idle_tasks():
    balancer = Case("gradvac", (("beta", 0.5),)).make(3)
    jacobian = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1]])
    balancer(FakeStep(jacobian, active=torch.tensor([True, False, True])))
    assert not balancer.target[1].any()
    assert not balancer.target[:, 1].any()
