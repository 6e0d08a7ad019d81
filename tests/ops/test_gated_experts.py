"""Gates, rectified experts and their mixtures in one kernel."""

import numpy as np
import pytest
import torch

from mtlkit.ops.gated_experts import (
    gated_experts,
    gated_experts_vjp,
    plain_gated_experts,
    plain_gated_experts_vjp,
)
from tests.ops.compare import assert_close, compare

ALL = np.tile(np.arange(4), (3, 1))
SOME = np.array([[0, 3], [1, 3], [2, 3]])


def formula(outputs, width, expert_index):
    """One mixture after the other."""
    gates = expert_index.size
    weights = outputs[:, :gates].unflatten(1, expert_index.shape).softmax(-1)
    experts = outputs[:, gates:].unflatten(1, (-1, width)).clamp(min=0)
    mixtures = [
        torch.einsum("bk,bkd->bd", weights[:, n], experts[:, torch.from_numpy(experts_of_gate)])
        for n, experts_of_gate in enumerate(expert_index)
    ]
    return torch.stack(mixtures, 1)


@pytest.mark.parametrize("strange_gradient", [False, True])
@pytest.mark.parametrize("expert_index", [ALL, SOME], ids=["all", "some"])
@pytest.mark.parametrize(("rows", "width"), [(0, 16), (1, 5), (7, 16), (9, 37)])
def test_mixtures(dtype, rows, width, expert_index, strange_gradient):
    compare(
        lambda outputs: gated_experts(outputs, width, expert_index)[0],
        lambda outputs: plain_gated_experts(outputs, width, expert_index)[0],
        lambda outputs: formula(outputs, width, expert_index),
        [torch.randn(rows, expert_index.size + 4 * width, dtype=dtype)],
        strange_gradient,
    )


@pytest.mark.parametrize("expert_index", [ALL, SOME], ids=["all", "some"])
def test_weights_get_no_gradient(dtype, expert_index):
    outputs = torch.randn(5, expert_index.size + 12, dtype=dtype, requires_grad=True)
    expected = outputs[:, : expert_index.size].view(5, *expert_index.shape).softmax(-1)
    for form in (gated_experts, plain_gated_experts):
        _, weights = form(outputs, 3, expert_index)
        assert not weights.requires_grad
        assert_close([weights], [expected.detach()])


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("expert_index", [ALL, SOME], ids=["all", "some"])
@pytest.mark.parametrize("width", [5, 16, 37])
def test_the_gradient_by_hand(dtype, width, expert_index, apart):
    outputs = torch.randn(6, expert_index.size + 4 * width, dtype=dtype, requires_grad=True)
    mixtures, weights = gated_experts(outputs, width, expert_index)
    grad = torch.randn_like(mixtures)

    # one backward pass for each mixture
    alone = [torch.zeros_like(grad) for _ in expert_index]
    for n, upstream in enumerate(alone):
        upstream[:, n] = grad[:, n]
    exact = formula(outputs, width, expert_index)
    by_mixture = [torch.autograd.grad(exact, outputs, g, retain_graph=True)[0] for g in alone]
    together = torch.stack(by_mixture).sum(0)
    expected = together
    if apart:
        gates = expert_index.size
        expected = torch.cat([*(g[:, gates:] for g in by_mixture), together[:, :gates]], 1)

    for form in (gated_experts_vjp, plain_gated_experts_vjp):
        found = form(outputs.detach(), weights, expert_index, grad, apart)
        assert_close([found], [expected])


def test_what_is_no_number_stays_so(dtype):
    outputs = torch.randn(2, ALL.size + 4 * 18, dtype=dtype)
    outputs[0, ALL.size + 1] = outputs[1, -1] = torch.nan
    by_kernel, _ = gated_experts(outputs, 18, ALL)
    by_plain, _ = plain_gated_experts(outputs, 18, ALL)
    torch.testing.assert_close(by_kernel, by_plain, equal_nan=True)
    assert by_kernel.isnan().any(-1).all()
