"""Softmax gates, rectified experts and their mixtures, where gates and experts are one layer each.

``out[b, n] = sum over k of softmax(gates[b, n])[k] * relu(experts[b, index[n, k]])``, in one pass.
The plain form is that of ``models._moe.MoELayer``, layer by layer; it asks whether this one may be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtlkit.ops._numba import kernel
from mtlkit.ops._simd import LANES, fma, load, positive, store, total, where_positive, zero, zeros
from mtlkit.ops.softmax import softmax_backward, softmax_forward


class MixedExperts:
    """Which experts each of N gates mixes.

    Args:
        stacks: For each stack of gates (n, k) int64, the experts that each gate mixes, none of them
            twice.

    Attributes:
        flat: (G,) the experts of the first gate, of the second one, and so on.
        starts: (N + 1,) where those of each gate begin; the last number is G.
        first: (G,) bool, whether no earlier gate mixes the expert.
    """

    def __init__(self, stacks: Sequence[np.ndarray]) -> None:
        self.stacks = tuple(stacks)
        self.flat = np.concatenate([index.ravel() for index in stacks])
        self.starts = np.cumsum([0, *(len(gate) for index in stacks for gate in index)])
        self.first = np.zeros(len(self.flat), dtype=np.bool_)
        self.first[np.unique(self.flat, return_index=True)[1]] = True

    def by_stack(self, columns: Tensor) -> list[Tensor]:
        """Columns (B, G) as (B, n, k) for each stack."""
        parts = columns.split([index.size for index in self.stacks], 1)
        return [
            part.unflatten(1, index.shape) for part, index in zip(parts, self.stacks, strict=True)
        ]


@kernel
def _combine_rectified(
    weights: np.ndarray,
    experts: np.ndarray,
    expert_index: np.ndarray,
    starts: np.ndarray,
    out: np.ndarray,
) -> None:
    """``out[b, n] = weights[b, g] @ relu(experts[b, expert_index[g]])`` for the weights g of n.

    Args:
        weights: (B, G).
        experts: (B, E * d), contiguous rows.
        expert_index: (G,).
        starts: (N + 1,), the weights of n begin with ``starts[n]``.
        out: (B, N, d).
    """
    width = out.shape[2]
    vector_end = width - width % LANES

    for b in range(out.shape[0]):
        row_experts, row_weights = experts[b], weights[b]  # (E * d,), (G,)
        for n in range(out.shape[1]):
            mixture = out[b, n]  # (d,)

            # the full vectors
            for i in range(0, vector_end, LANES):
                weighted_sum = zeros(mixture)
                for g in range(starts[n], starts[n + 1]):
                    value = load(row_experts, expert_index[g] * width + i)
                    weighted_sum = fma(row_weights[g], positive(value), weighted_sum)
                store(mixture, i, weighted_sum)

            # the rest; what is no number stays so
            for i in range(vector_end, width):
                mixture[i] = 0
                for g in range(starts[n], starts[n + 1]):
                    value = row_experts[expert_index[g] * width + i]
                    if not value <= 0:
                        mixture[i] += row_weights[g] * value


@kernel
def _combine_rectified_backward(
    weights: np.ndarray,
    experts: np.ndarray,
    expert_index: np.ndarray,
    starts: np.ndarray,
    grad: np.ndarray,
    d_weights: np.ndarray,
    d_experts: np.ndarray,
    fresh: np.ndarray,
) -> None:
    """Write the gradients of ``_combine_rectified``.

    Args:
        weights: (B, G).
        experts: (B, E * d), contiguous rows.
        expert_index: (G,).
        starts: (N + 1,), the weights of n begin with ``starts[n]``.
        grad: (B, N, d) of the mixtures.
        d_weights: (B, G).
        d_experts: (N, B, E * d) for each mixture apart, or (1, B, E * d) for their sum; contiguous
            rows.
        fresh: (G,) bool, whether a gradient is the first in its place, to be written and not added.
    """
    width = grad.shape[2]
    vector_end = width - width % LANES
    apart = d_experts.shape[0] > 1

    for b in range(grad.shape[0]):
        row_experts, row_weights = experts[b], weights[b]  # (E * d,), (G,)
        for n in range(grad.shape[1]):
            d_mixture = grad[b, n]  # (d,)
            d_row_experts = d_experts[n if apart else 0, b]  # (E * d,)
            for g in range(starts[n], starts[n + 1]):
                start, is_fresh = expert_index[g] * width, fresh[g]
                products = zeros(d_mixture)

                # the full vectors
                for i in range(0, vector_end, LANES):
                    value, d_out = load(row_experts, start + i), load(d_mixture, i)
                    products = fma(d_out, positive(value), products)
                    before = zeros(d_mixture) if is_fresh else load(d_row_experts, start + i)
                    d_value = where_positive(value, d_out)
                    store(d_row_experts, start + i, fma(row_weights[g], d_value, before))

                # the rest
                d_weight = total(products)
                for i in range(vector_end, width):
                    value = row_experts[start + i]
                    before = zero(d_mixture) if is_fresh else d_row_experts[start + i]
                    if value <= 0:
                        d_row_experts[start + i] = before
                    else:
                        d_weight += d_mixture[i] * value
                        d_row_experts[start + i] = before + row_weights[g] * d_mixture[i]
                d_weights[b, g] = d_weight


def _vjp(
    outputs: Tensor, weights: Sequence[Tensor], mixed: MixedExperts, grad: Tensor, apart: bool
) -> Tensor:
    """:func:`gated_experts_vjp`; the gates', then the sum of the experts' where not ``apart``."""
    gates = len(mixed.flat)
    experts = outputs.detach().numpy()[:, gates:]  # (B, E * d)
    rows, size = experts.shape
    parts = grad.shape[1] if apart else 1
    fresh = np.ones_like(mixed.first) if apart else mixed.first

    # the kernel writes the gradients of the experts that are mixed
    sees_all = fresh.sum() * grad.shape[2] == parts * size
    make = outputs.new_empty if sees_all else outputs.new_zeros
    d_outputs = make(rows, parts * size + gates)
    if apart:
        d_experts, d_logits = d_outputs[:, : parts * size], d_outputs[:, parts * size :]
    else:
        d_logits, d_experts = d_outputs[:, :gates], d_outputs[:, gates:]

    d_weights = outputs.new_empty(rows, gates)
    _combine_rectified_backward(
        _side_by_side(weights).numpy(),
        experts,
        mixed.flat,
        mixed.starts,
        grad.contiguous().numpy(),
        d_weights.numpy(),
        d_experts.numpy().reshape(rows, parts, size).swapaxes(0, 1),
        fresh,
    )
    by_stack = zip(weights, mixed.by_stack(d_weights), mixed.by_stack(d_logits), strict=True)
    for stack_weights, d_stack_weights, d_stack_logits in by_stack:
        softmax_backward(stack_weights, d_stack_weights, d_stack_logits)
    return d_outputs


def _side_by_side(weights: Sequence[Tensor]) -> Tensor:
    """(B, G) the weights (B, n, k) of all stacks."""
    flat = [stack_weights.flatten(1) for stack_weights in weights]
    return flat[0] if len(flat) == 1 else torch.cat(flat, 1)


class _GatedExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, width: int, mixed: MixedExperts) -> tuple[Tensor, ...]:
        gates = len(mixed.flat)
        weights = [softmax_forward(logits) for logits in mixed.by_stack(outputs[:, :gates])]
        experts = outputs.numpy()[:, gates:]  # (B, E * d)
        mixtures = outputs.new_empty(len(outputs), len(mixed.starts) - 1, width)
        _combine_rectified(
            _side_by_side(weights).numpy(), experts, mixed.flat, mixed.starts, mixtures.numpy()
        )
        ctx.save_for_backward(outputs, *weights)
        ctx.mixed = mixed
        ctx.mark_non_differentiable(*weights)
        return mixtures, *weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        outputs, *weights = ctx.saved_tensors
        return _vjp(outputs, weights, ctx.mixed, grad, apart=False), None, None


def gated_experts(outputs: Tensor, width: int, mixed: MixedExperts) -> tuple[Tensor, list[Tensor]]:
    """Mixtures of rectified experts by softmax gates.

    Args:
        outputs: (B, G + E * d), the outputs of the gates' layers, one after the other, and then of
            the experts'.
        width: Width of an expert, d.
        mixed: The experts that each gate mixes.

    Returns:
        The mixtures (B, N, d), and for each stack the gates' weights (B, n, k), which get no
        gradient.
    """
    mixtures, *weights = _GatedExperts.apply(outputs, width, mixed)
    return mixtures, weights


def gated_experts_vjp(
    outputs: Tensor, weights: Sequence[Tensor], mixed: MixedExperts, grad: Tensor
) -> Tensor:
    """The gradient of the outputs of gates and experts, the experts' for each mixture apart.

    Args:
        outputs: (B, G + E * d), as in :func:`gated_experts`.
        weights: For each stack (B, n, k) the gates' weights.
        mixed: The experts that each gate mixes.
        grad: (B, N, d) of the mixtures.

    Returns:
        (B, N * E * d + G) in the order of ``FirstLayerBoundary.vjp`` in the models: the experts' by
        each mixture, one after the other, and then the gates'.
    """
    return _vjp(outputs.detach(), weights, mixed, grad.detach(), apart=True)
