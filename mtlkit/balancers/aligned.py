"""Aligned-MTL: the principal components of the gradients are scaled to one length.

The rows of gradients G = V S^(1/2) W' become sqrt(smallest eigenvalue) V W', the nearest rows that
are orthogonal and of one norm, and the step is their mean: weights sqrt(s_min) V S^(-1/2) V' 1 / T,
with S, V the non-zero eigenpairs of the Gram matrix.

Paper: Senushkin et al., "Independent Component Alignment for Multi-Task Learning", CVPR 2023,
arXiv:2305.19000.

When to use: conflict and gradients of different size at once; stable directions.
When not: almost collinear gradients, of which the smallest component sets the length of the step;
weights may be negative; a task's own parameters then rest, or move on with ``heads=plain``.
Cost: one backward pass a task.
Deviations: the official code takes eigenvalues of the Gram matrix itself; here its rank is that of
the cosines, and components are found on a factor, so that a short gradient keeps its digits beside
a long one. The official code's other scales (median, mean) change the length alone, and preferences
other than 1 / T are left out.
Zero: a gradient that is 1e-12 times as long as the longest, or shorter, counts as none.
"""

from __future__ import annotations

import numpy as np

from mtlkit.balancers._balancer import GramBalancer, GramProblem
from mtlkit.balancers._gramian import NO_RANK
from mtlkit.balancers._solvers import unit_rows


class AlignedMTL(GramBalancer):
    """Independent component alignment."""

    scale = "native"
    signed = True

    def solve(self, problem: GramProblem) -> np.ndarray:
        return alignment(problem.gramian).mean(1)


def alignment(gram: np.ndarray) -> np.ndarray:
    """(T, T) B of which ``B @ gradients`` are orthogonal and of one norm (in their span)."""
    nonzero, cosines, norms = unit_rows(gram)

    # a factor F of the Gram matrix, F @ F.T = Gram, from the eigenpairs of the cosines
    values, vectors = np.linalg.eigh(cosines)
    in_span = values > NO_RANK * values.max()
    lengths = norms / norms.max()
    rows = lengths[:, None] * vectors[:, in_span] * np.sqrt(values[in_span])

    # F = V S^(1/2) W', so B = sqrt(s_min) V S^(-1/2) V'
    v, roots, _ = np.linalg.svd(rows, full_matrices=False)
    aligned = np.zeros_like(gram)
    aligned[np.ix_(nonzero, nonzero)] = (v * (roots.min() / roots)) @ v.T
    return aligned
