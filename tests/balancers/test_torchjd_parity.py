"""The same steps as torchjd's, an independent implementation:
``torchjd[cagrad,nash_mtl,quadprog_projector]``.

Its conventions of length, and ours, which agree unless a line says otherwise:

- mgda: a point of the convex hull (ours is then scaled to weights that sum to T, outside ``solve``)
- pcgrad: the sum of the projected gradients
- gradvac: the sum of the turned gradients
- cagrad: ``g_0 + ...``, g_0 the mean, not divided by ``1 + c^2``
- imtl-g: weights that sum to 1; dependent gradients, or a sum near 0 or below: another length, even
  another sign
- nash: theirs: G a = 1/a for the Gram matrix divided by its norm; ours: for the Gram matrix, a step
  of sqrt(T)
- aligned: the mean of orthogonal gradients as short as the smallest component
- upgrad: the mean of the projections
- dualproj: the projection of the mean
- config: the sum of the projections of all gradients on the step
- fairgrad: G a = a^(-1/alpha)

Where torchjd is further from the answer than the tolerance, ``EXACT`` says why, and the answer is
checked by itself.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from tests.balancers.test_gram_methods import lengths, solve

torchjd = pytest.importorskip("torchjd.aggregation")
for package in ("cvxpy", "clarabel", "ecos", "qpsolvers", "quadprog"):
    pytest.importorskip(package)

import cvxpy  # noqa: E402
from torchjd.linalg import QuadprogProjector  # noqa: E402

TOLERANCE = 1e-4
COUNTS = (2, 3, 8)
WIDTH = 12


def families(count, seed=0):
    """(T, P) gradients."""
    rng = np.random.default_rng([count, seed])
    rows = rng.standard_normal((count, WIDTH))
    line = rng.standard_normal(WIDTH)
    size = np.arange(1.0, count + 1)[:, None]
    sign = (-1.0) ** np.arange(count)[:, None]
    return {
        "random": rows,
        "conflicting": rows - 0.9 * rows.mean(0),
        "collinear": size * line,
        "opposing": size * sign * line,
        "nearly opposing": size * sign * line + 0.1 * rows,
        "badly scaled": np.logspace(0, 3, count)[:, None] * rows,
        "very badly scaled": np.logspace(0, 6, count)[:, None] * rows,
    }


FAMILIES = list(families(2))


@dataclass
class Method:
    """One method in both implementations.

    Args:
        theirs: Makes torchjd's aggregator for given gradients.
        options: Ours.
        length: Whether lengths agree, too.
        prepare: What torchjd is given in place of the gradients.
    """

    theirs: Callable[[np.ndarray], Any]
    options: dict[str, Any] = field(default_factory=dict)
    length: bool = True
    prepare: Callable[[np.ndarray], np.ndarray] = lambda rows: rows


def projector(rows):
    """Their quadratic programs, with no more regularisation than they need (by default 1e-4 of the
    trace).
    """
    singular = np.linalg.matrix_rank(rows / lengths(rows)[:, None]) < len(rows)
    return QuadprogProjector(norm_eps=0.0, reg_eps=1e-13 if singular else 0.0)


def nash(rows):
    """Their procedure until it solves its equation to 1e-6, where it is content with 1e-3; without
    clipping.
    """
    aggregator = torchjd.NashMTL(len(rows), max_norm=0, optim_niter=50)
    weighting = aggregator.weighting

    def solved(gram, a):
        return weighting.alpha_param.value is None or np.abs(gram @ a * a - 1).max() < 1e-6

    weighting._stop_criteria = solved
    return aggregator


def units(rows):
    """Of length 1, the same for rows that differ in length alone."""
    return np.round(rows / lengths(rows)[:, None], 9)


METHODS = {
    "mgda": Method(lambda rows: torchjd.MGDA(epsilon=1e-9, max_iters=2000), {"normalize": "none"}),
    "pcgrad": Method(lambda rows: torchjd.PCGrad()),
    "gradvac": Method(lambda rows: torchjd.GradVac(beta=0.01, eps=1e-14)),
    "cagrad": Method(lambda rows: torchjd.CAGrad(c=0.4, norm_eps=1e-9), {"c": 0.4, "rescale": 0}),
    "imtl-g": Method(lambda rows: torchjd.IMTLG(), length=False),
    # the step does not depend on the norms of the gradients, but their solver does
    "nash": Method(nash, length=False, prepare=units),
    "aligned": Method(lambda rows: torchjd.AlignedMTL()),
    "upgrad": Method(lambda rows: torchjd.UPGrad(projector=projector(rows))),
    "dualproj": Method(lambda rows: torchjd.DualProj(projector=projector(rows))),
    "config": Method(lambda rows: torchjd.ConFIG()),
    "fairgrad": Method(lambda rows: torchjd.FairGrad(alpha=2.0), {"alpha": 2.0}),
}


def step_of_ours(name, rows, seed=0):
    """(P,) by our implementation."""
    return solve(name, rows @ rows.T, seed, **METHODS[name].options) @ rows


def step_of_theirs(name, rows, seed=0):
    """(P,) by torchjd; random orders are those that ours draws for this seed."""
    given = METHODS[name].prepare(rows)
    return _step_of_theirs(name, given.tobytes(), len(given), seed)


@cache
def _step_of_theirs(name, content, count, seed):
    given = np.frombuffer(content).reshape(count, -1).copy()
    rng = np.random.default_rng(seed)
    if name == "gradvac":  # it permutes the others, ours all

        def randperm(count):
            turn = len(drawn) % (count + 1)
            drawn.append(rng.permutation(count + 1))
            order = drawn[-1][drawn[-1] != turn]
            return torch.from_numpy(order - (order > turn))
    else:

        def randperm(count):
            return torch.from_numpy(rng.permutation(count))

    drawn: list[np.ndarray] = []
    exact = {"tol_gap_abs": 1e-15, "tol_gap_rel": 1e-15, "tol_feas": 1e-15}
    whole = cvxpy.Problem.solve
    with (
        warnings.catch_warnings(action="ignore"),
        mock.patch("torch.randperm", randperm),
        mock.patch.object(
            cvxpy.Problem,
            "solve",
            lambda self, *a, **k: whole(self, *a, **k, **(exact if "CLARABEL" in a else {})),
        ),
    ):
        return METHODS[name].theirs(given)(torch.from_numpy(given)).numpy()


def difference(name, ours, theirs):
    """Of two steps, relative; of their directions where the conventions of length differ."""
    if not METHODS[name].length:
        ours, theirs = ours / np.linalg.norm(ours), theirs / np.linalg.norm(theirs)
        if name == "imtl-g":
            theirs = theirs * np.sign(ours @ theirs)
    return np.linalg.norm(ours - theirs) / np.linalg.norm(ours)


def check_shortest(rows, ours, theirs):
    """The conditions of optimality in the convex hull, and at least as short as theirs."""
    weights = solve("mgda", rows @ rows.T, normalize="none")
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    slack = 1e-9 * np.linalg.norm(ours) * lengths(rows) + 1e-12 * lengths(rows).max()
    assert (rows @ ours >= ours @ ours - slack).all()
    assert np.linalg.norm(ours) <= np.linalg.norm(theirs) + 1e-12 * lengths(rows).max()


def check_equal_projections(rows, ours, theirs):
    """Opposite gradients have equal projections on 0 alone; theirs are those of a least-squares
    fit.
    """
    np.testing.assert_allclose(ours, 0, atol=1e-12)
    assert solve("imtl-g", rows @ rows.T).sum() == pytest.approx(1)
    assert np.ptp(units(rows) @ theirs) > 1


def check_next_to_nothing(rows, ours, theirs):
    """No a solves the equation; ours is next to 0 beside its terms."""
    terms = solve("nash", rows @ rows.T) * lengths(rows)
    assert np.linalg.norm(ours) < 1e-6 * terms.sum()


def check_fair(rows, ours, theirs):
    """G a = a^(-1/2), which theirs leaves before it is reached."""
    a = solve("fairgrad", rows @ rows.T)
    np.testing.assert_array_less(
        np.abs(rows @ ours - a**-0.5), 1e-8 * lengths(rows) * (lengths(rows) @ a)
    )


EXACT = {
    # Frank-Wolfe steps approach an answer inside a face at a rate of 1 / steps
    **{("mgda", family): check_shortest for family in FAMILIES},
    ("imtl-g", "opposing"): check_equal_projections,
    ("nash", "opposing"): check_next_to_nothing,
    ("fairgrad", "opposing"): check_next_to_nothing,
    # norms up to 1e6 make Gram entries of 1e12, on which a general least-squares solver gives up
    ("fairgrad", "very badly scaled"): check_fair,
}
VANISHES = {"mgda", "pcgrad", "gradvac", "upgrad", "dualproj", "config"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", METHODS)
def test_same_step(name, count, family):
    for seed in range(1 if name == "nash" else 3):
        rows = families(count, seed)[family]
        ours, theirs = step_of_ours(name, rows, seed), step_of_theirs(name, rows, seed)
        exact = EXACT.get((name, family))
        if exact:
            exact(rows, ours, theirs)
        if name in VANISHES and family == "opposing" and np.linalg.norm(ours) < 1e-6:
            assert np.linalg.norm(theirs) < 1e-6
        elif not exact or (name == "mgda" and count == 2):
            assert difference(name, ours, theirs) < TOLERANCE


@pytest.mark.parametrize("family", ["random", "conflicting", "nearly opposing", "badly scaled"])
@pytest.mark.parametrize("count", COUNTS)
def test_length_of_nash(count, family):
    rows = families(count)[family]
    ours = step_of_ours("nash", rows)
    assert ours @ ours == pytest.approx(count, rel=1e-6)


@pytest.mark.parametrize("count", COUNTS)
def test_length_of_imtl_g(count):
    """The sum of the weights is 1 in both, where it is not small."""
    for seed in range(10):
        rows = families(count, seed)["random"]
        weights = solve("imtl-g", rows @ rows.T)
        if weights.sum() == pytest.approx(1):
            np.testing.assert_allclose(
                weights @ rows, step_of_theirs("imtl-g", rows), rtol=TOLERANCE
            )
