"""Gated mixtures of experts: gates, experts and mixing in one, where they are a single layer each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mtlkit.models.inputs import Inputs, Product
from mtlkit.models.kernels import kernel, mixture_gram, reach_array, softmax_backward, softmax_forward
from mtlkit.models.lanes import LANES, fma, load, positive, store, total, where_positive, zeros
from mtlkit.models.layers import Gate, StackedMLP, mix
from mtlkit.models.parting import Parting, PartingAtProduct, parted_mixture, spread


@dataclass
class Mixture:
    """Mixtures of experts.

    Args:
        own: (B, n, d) the mixtures.
        weights: (B, n, k) the gates' weights.
        parting: Where the tasks part, if each has a mixture.
    """

    own: Tensor
    weights: Tensor
    parting: Parting | None


def gated_mixture(
    x: Inputs,
    gate: Gate,
    experts: StackedMLP,
    reach: Tensor | None = None,
    present: Callable[[Tensor], Tensor] | None = None,
) -> Mixture:
    """Experts on x, mixed by n softmax gates on x.

    Args:
        x: The input of all of them.
        gate: n gates.
        experts: E experts.
        reach: (n, k) int64, the experts that each gate mixes; None where every one mixes all.
        present: Applied to the experts' outputs (B, E, d) before they are mixed, if at all.
    """
    x.together(*gate.first, *experts.first)
    if present is None and _is_one_kernel(x, gate, experts):
        return _in_one_kernel(x.product(gate.linear), experts, reach_array(gate.linear.n, experts.n, reach), reach)
    return mixture(gate(x), experts(x), reach, present)


def mixture(
    weights: Tensor,
    outputs: Tensor,
    reach: Tensor | None = None,
    present: Callable[[Tensor], Tensor] | None = None,
) -> Mixture:
    """As :func:`gated_mixture`, of the gates' weights (B, n, k) and the experts' outputs (B, E, d)."""
    outputs = outputs if present is None else present(outputs)
    own = mix(weights, outputs, reach)
    return Mixture(own, weights, parted_mixture(own, weights, outputs, reach))


def _in_one_kernel(product: Product, experts: StackedMLP, known: np.ndarray, reach: Tensor | None) -> Mixture:
    outputs = product.whole
    own, weights = _GatedMixture.apply(outputs, experts.outputs, known)

    def gram(grad: Tensor) -> Tensor:
        return mixture_gram(spread(weights, reach, experts.n), grad)

    def pull(grad: Tensor) -> Tensor:
        return _pull(outputs, weights, known, grad, apart=True)

    return Mixture(own, weights, PartingAtProduct(own, gram, product, shared=1, private=0, pull=pull))


def _is_one_kernel(x: Inputs, gate: Gate, experts: StackedMLP) -> bool:
    """Whether the compiled kernels do what these layers do.

    They may in one mode and not in another (dropout). As gates and experts are one layer each, the same parameters lie
    beneath the parting either way, so that what ``training.reach`` has seen in one mode holds in the other.
    """
    weight = gate.linear.weight
    return (
        x.embedding.fusable
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


@kernel
def _mix_relu(weights: np.ndarray, outputs: np.ndarray, start: int, reach: np.ndarray, out: np.ndarray) -> None:
    """``out[b, n] = weights[b, n] @ relu(experts[b, reach[n]])``.

    Args:
        weights: (B, n, k).
        outputs: (B, C), of which (E, d) numbers are the experts'.
        start: The first of them.
        reach: (n, k).
        out: (B, n, d).
    """
    width = out.shape[2]
    whole = width - width % LANES
    for b in range(out.shape[0]):
        row = outputs[b]
        for n in range(out.shape[1]):
            target, own = out[b, n], weights[b, n]
            for i in range(0, whole, LANES):
                mixed = zeros(target)
                for k in range(reach.shape[1]):
                    mixed = fma(own[k], positive(load(row, start + reach[n, k] * width + i)), mixed)
                store(target, i, mixed)
            for i in range(whole, width):
                target[i] = 0
                for k in range(reach.shape[1]):
                    value = row[start + reach[n, k] * width + i]
                    if not value <= 0:
                        target[i] += own[k] * value


@kernel
def _mix_relu_backward(
    weights: np.ndarray,
    outputs: np.ndarray,
    start: int,
    reach: np.ndarray,
    grad: np.ndarray,
    d_weights: np.ndarray,
    d_outputs: np.ndarray,
    to: int,
    step: int,
    fresh: bool,
) -> None:
    """The gradients of ``_mix_relu``.

    Args:
        weights: As there, like the next three.
        outputs: Likewise.
        start: Likewise.
        reach: Likewise.
        grad: (B, n, d) of its result.
        d_weights: (B, n, k).
        d_outputs: (B, C').
        to: The first number of the experts there.
        step: How many numbers further those of the next mixture are; 0 for the sum of all.
        fresh: Whether the first mixture there need not add to what stands there.
    """
    width = grad.shape[2]
    whole = width - width % LANES
    for b in range(grad.shape[0]):
        row, d_row = outputs[b], d_outputs[b]
        for n in range(grad.shape[1]):
            g, own = grad[b, n], weights[b, n]
            for k in range(reach.shape[1]):
                first, place = start + reach[n, k] * width, to + n * step + reach[n, k] * width
                products, empty = zeros(g), fresh and (n == 0 or step > 0)
                for i in range(0, whole, LANES):
                    value, part = load(row, first + i), load(g, i)
                    products = fma(part, positive(value), products)
                    before = zeros(g) if empty else load(d_row, place + i)
                    store(d_row, place + i, fma(own[k], where_positive(value, part), before))
                d_value = total(products)
                for i in range(whole, width):
                    before = total(zeros(g)) if empty else d_row[place + i]
                    if row[first + i] <= 0:
                        d_row[place + i] = before
                    else:
                        d_value += g[i] * row[first + i]
                        d_row[place + i] = before + own[k] * g[i]
                d_weights[b, n, k] = d_value


def _gates(outputs: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """The gates' part (B, n, k) of the outputs (B, C), which comes first."""
    return outputs[:, : reach.size].reshape(len(outputs), *reach.shape)


def _pull(outputs: Tensor, weights: Tensor, reach: np.ndarray, grad: Tensor, apart: bool) -> Tensor:
    """The gradient of the outputs (B, C) of gates and experts, in that order.

    With ``apart`` (B, n * E * d + n * k): the experts' by each mixture, one after the other, and then the gates'.
    """
    known, gates = outputs.detach().numpy(), reach.size
    size = known.shape[1] - gates
    fresh = reach.shape[1] == size // grad.shape[2]  # every mixture has all experts
    shape = len(outputs), grad.shape[1] * size + gates if apart else size + gates
    found = outputs.new_empty(shape) if fresh else outputs.new_zeros(shape)
    d_weights, d_outputs = torch.empty_like(weights), found.numpy()
    to, step = (0, size) if apart else (gates, 0)
    _mix_relu_backward(
        weights.numpy(), known, gates, reach, grad.contiguous().numpy(), d_weights.numpy(), d_outputs, to, step, fresh
    )
    d_gates = found[:, -gates:] if apart else found[:, :gates]
    softmax_backward(weights, d_weights, d_gates.unflatten(1, reach.shape))
    return found


class _GatedMixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, width: int, reach: np.ndarray) -> tuple[Tensor, Tensor]:
        weights = softmax_forward(outputs[:, : reach.size].unflatten(1, reach.shape))
        own = outputs.new_empty(len(outputs), len(reach), width)
        _mix_relu(weights.numpy(), outputs.numpy(), reach.size, reach, own.numpy())
        ctx.save_for_backward(outputs, weights)
        ctx.reach = reach
        ctx.mark_non_differentiable(weights)
        return own, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        outputs, weights = ctx.saved_tensors
        return _pull(outputs, weights, ctx.reach, grad, apart=False), None, None
