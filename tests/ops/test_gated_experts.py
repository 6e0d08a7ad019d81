"""Gates, rectified experts and their mixtures in one kernel."""

import numpy as np
import pytest
import torch

from mtlkit.ops.gated_experts import MixedExperts, gated_experts, gated_experts_vjp
from tests.ops.compare import assert_close, results

ALL = np.tile(np.arange(4), (3, 1))
SOME = np.array([[0, 3], [1, 3], [2, 3]])
STACKS = {"all": [ALL], "some": [SOME], "both": [SOME, ALL[:1]], "not all": [SOME[:1], SOME[1:2]]}


@pytest.fixture(params=STACKS)
def mixed(request):
    return MixedExperts(STACKS[request.param])


def formula(outputs, width, mixed):
    """One mixture after the other."""
    experts = outputs[:, len(mixed.flat) :].unflatten(1, (-1, width)).clamp(min=0)
    mixtures, start = [], 0
    for index in (gate for stack in mixed.stacks for gate in stack):
        weights = outputs[:, start : start + len(index)].softmax(-1)
        mixtures.append(torch.einsum("bk,bkd->bd", weights, experts[:, torch.from_numpy(index)]))
        start += len(index)
    return torch.stack(mixtures, 1)


@pytest.mark.parametrize("strange_gradient", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(0, 16), (1, 5), (7, 16), (9, 37)])
def test_mixtures(dtype, rows, width, mixed, strange_gradient):
    outputs = torch.randn(rows, len(mixed.flat) + 4 * width, dtype=dtype)
    exact = results(lambda x: formula(x, width, mixed), [outputs.double()], strange_gradient)
    by_kernel = results(lambda x: gated_experts(x, width, mixed)[0], [outputs], strange_gradient)
    assert_close(by_kernel, exact, check_dtype=False)


def test_weights_get_no_gradient(dtype, mixed):
    outputs = torch.randn(5, len(mixed.flat) + 12, dtype=dtype, requires_grad=True)
    logits = mixed.by_stack(outputs.detach()[:, : len(mixed.flat)])
    _, weights = gated_experts(outputs, 3, mixed)
    assert not any(stack_weights.requires_grad for stack_weights in weights)
    assert_close(weights, [stack_logits.softmax(-1) for stack_logits in logits])


@pytest.mark.parametrize("width", [5, 16, 37])
def test_the_gradient_of_each_mixture_apart(dtype, width, mixed):
    gates = len(mixed.flat)
    outputs = torch.randn(6, gates + 4 * width, dtype=dtype, requires_grad=True)
    mixtures, weights = gated_experts(outputs, width, mixed)
    grad = torch.randn_like(mixtures)

    # one backward pass for each mixture
    alone = [torch.zeros_like(grad) for _ in range(grad.shape[1])]
    for n, upstream in enumerate(alone):
        upstream[:, n] = grad[:, n]
    exact = formula(outputs, width, mixed)
    by_mixture = [torch.autograd.grad(exact, outputs, g, retain_graph=True)[0] for g in alone]
    of_gates = torch.stack(by_mixture).sum(0)[:, :gates]
    expected = torch.cat([*(g[:, gates:] for g in by_mixture), of_gates], 1)
    d_outputs = gated_experts_vjp(outputs, weights, mixed, grad)
    assert_close([d_outputs], [expected])


def test_what_is_no_number_stays_so(dtype):
    outputs = torch.randn(2, ALL.size + 4 * 18, dtype=dtype)
    outputs[0, ALL.size + 1] = outputs[1, -1] = torch.nan
    by_kernel, _ = gated_experts(outputs, 18, MixedExperts([ALL]))
    exact = formula(outputs, 18, MixedExperts([ALL]))
    torch.testing.assert_close(by_kernel, exact, equal_nan=True)
    assert by_kernel.isnan().any(-1).all()
