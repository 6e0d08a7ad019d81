"""Gated mixtures of experts: gates, experts and mixing in one, where they are a single layer each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.models._boundary import Boundary, FirstLayerBoundary, dense_weights, mixture_boundary
from mtlkit.models._embedded_batch import EmbeddedBatch, FirstLayer
from mtlkit.models._layers import Gate, StackedMLP
from mtlkit.ops.combine_experts import combine_experts, expert_index_array
from mtlkit.ops.gated_experts import gated_experts, gated_experts_vjp
from mtlkit.ops.mixture_gramian import mixture_gramian


@dataclass
class Mixture:
    """Mixtures of experts.

    Args:
        own: (B, n, d) the mixtures.
        weights: (B, n, k) the gates' weights.
        boundary: Where the tasks part, if each has a mixture.
    """

    own: Tensor
    weights: Tensor
    boundary: Boundary | None


def gated_mixture(
    x: EmbeddedBatch,
    gate: Gate,
    experts: StackedMLP,
    expert_index: Tensor | None = None,
    present: Callable[[Tensor], Tensor] | None = None,
) -> Mixture:
    """Experts on x, mixed by n softmax gates on x.

    Args:
        x: The input of all of them.
        gate: n gates.
        experts: E experts.
        expert_index: (n, k) int64, the experts that each gate mixes; None where every one mixes
            all.
        present: Applied to the experts' outputs (B, E, d) before they are mixed, if at all.
    """
    x.fuse(*gate.first, *experts.first)
    if present is None and _is_one_kernel(x, gate, experts):
        return _in_one_kernel(
            x.first_layer_of(gate.linear),
            experts,
            expert_index_array(gate.linear.n, experts.n, expert_index),
            expert_index,
        )
    return mixture(gate(x), experts(x), expert_index, present)


def mixture(
    weights: Tensor,
    outputs: Tensor,
    expert_index: Tensor | None = None,
    present: Callable[[Tensor], Tensor] | None = None,
) -> Mixture:
    """As :func:`gated_mixture`, of the gates' weights (B, n, k) and the experts' outputs (B, E, d)."""
    outputs = outputs if present is None else present(outputs)
    own = combine_experts(weights, outputs, expert_index)
    boundary = mixture_boundary(own, weights, outputs, expert_index)
    return Mixture(own, weights, boundary)


def _in_one_kernel(
    product: FirstLayer, experts: StackedMLP, known: np.ndarray, expert_index: Tensor | None
) -> Mixture:
    outputs = product.output
    own, weights = gated_experts(outputs, experts.outputs, known)

    def gramian(grad: Tensor) -> Tensor:
        return mixture_gramian(dense_weights(weights, expert_index, experts.n), grad)

    def vjp(grad: Tensor) -> Tensor:
        return gated_experts_vjp(outputs, weights, known, grad, apart=True)

    return Mixture(
        own, weights, FirstLayerBoundary(own, gramian, product, trunk=1, gates=0, vjp=vjp)
    )


def _is_one_kernel(x: EmbeddedBatch, gate: Gate, experts: StackedMLP) -> bool:
    """Whether the compiled kernels do what these layers do.

    They may in one mode and not in another (dropout). As gates and experts are one layer each, the
    same parameters lie beneath the boundary either way, so that what ``training.sharing`` has seen
    in one mode holds in the other.
    """
    weight = gate.linear.weight
    return (
        x.embedding.fast_paths.fuse
        and not x.embedding.copies
        and gate.hidden is None
        and gate.norm is None
        and len(experts.linears) == 1
        and isinstance(experts.norms[0], nn.Identity)
        and experts.activation is F.relu
        and not (experts.training and experts.dropout.p > 0)
        and weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
