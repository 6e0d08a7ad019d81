"""Mixtures of experts."""

import pytest
import torch

from mtlkit.ops.combine_experts import (
    combine_experts,
    combine_experts_vjp,
    plain_combine_experts,
    plain_combine_experts_vjp,
)
from tests.ops.compare import assert_close, compare


def formula(weights, experts):
    return torch.einsum("bne,bed->bnd", weights, experts)


@pytest.mark.parametrize("strange_gradient", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(40, 2, 5, 16), (7, 1, 1, 3), (3, 4, 2, 1), (5, 3, 2, 37), (1, 2, 8, 48), (0, 2, 3, 16)],
)
def test_all_experts(dtype, shape, strange_gradient):
    rows, gates, experts, width = shape
    inputs = [
        torch.randn(rows, gates, experts, dtype=dtype),
        torch.randn(rows, experts, width, dtype=dtype),
    ]
    compare(combine_experts, plain_combine_experts, formula, inputs, strange_gradient)


def test_strided_inputs(dtype):
    def of_transposed(function):
        return lambda weights, experts: function(weights.transpose(1, 2), experts.transpose(1, 2))

    inputs = [torch.randn(6, 5, 2, dtype=dtype), torch.randn(6, 4, 5, dtype=dtype)]
    compare(*map(of_transposed, (combine_experts, plain_combine_experts, formula)), inputs)


@pytest.mark.parametrize("width", [5, 16, 19])
def test_some_experts(dtype, width):
    expert_index = torch.tensor([[0, 3], [1, 3], [2, 3]])
    compare(
        lambda weights, experts: combine_experts(weights, experts, expert_index),
        lambda weights, experts: plain_combine_experts(weights, experts, expert_index),
        lambda weights, experts: torch.einsum("bnk,bnkd->bnd", weights, experts[:, expert_index]),
        [torch.randn(6, 3, 2, dtype=dtype), torch.randn(6, 4, width, dtype=dtype)],
        True,
    )


@pytest.mark.parametrize("width", [5, 16, 19])
@pytest.mark.parametrize("some", [False, True])
def test_gradients_of_mixtures_apart(dtype, some, width):
    """Those of the experts by mixture: one backward pass each, with the other mixtures' gradients
    set to 0.
    """
    expert_index = torch.tensor([[0, 3], [1, 3], [2, 3]]) if some else None
    weights = torch.rand(6, 3, 2 if some else 4, dtype=dtype, requires_grad=True)
    experts = torch.randn(6, 4, width, dtype=dtype, requires_grad=True)
    grad = torch.randn(6, 3, width, dtype=dtype)
    by_mixture, by_weights = combine_experts_vjp(weights, experts, expert_index, grad)
    out = combine_experts(weights, experts, expert_index)
    assert by_mixture.shape == (3, 6, 4, width)
    for n in range(3):
        alone = torch.zeros_like(grad)
        alone[:, n] = grad[:, n]
        (expected,) = torch.autograd.grad(out, experts, alone, retain_graph=True)
        torch.testing.assert_close(by_mixture[n], expected)
    torch.testing.assert_close(by_weights, torch.autograd.grad(out, weights, grad)[0])

    plain = plain_combine_experts_vjp(weights, experts, expert_index, grad)
    assert_close([by_mixture, by_weights], plain)
    # mixed types take the plain form
    mixed, mixed_weights = combine_experts_vjp(
        weights.float(), experts.bfloat16(), expert_index, grad.bfloat16()
    )
    torch.testing.assert_close(mixed.to(dtype), by_mixture, rtol=0.05, atol=0.05)
    torch.testing.assert_close(mixed_weights.to(dtype), by_weights, rtol=0.05, atol=0.1)
