"""The softmax of gates."""

import pytest
import torch

from mtlkit.ops.softmax import (
    plain_softmax,
    plain_softmax_backward,
    softmax,
    softmax_backward,
    softmax_forward,
)
from tests.ops.compare import assert_close, compare


def formula(logits):
    exponentials = logits.exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


@pytest.mark.parametrize("strange_gradient", [False, True])
@pytest.mark.parametrize(
    "shape", [(40, 2, 8), (1, 3, 5), (7, 1, 1), (9, 2, 15), (6, 2, 16), (0, 2, 8)]
)
def test_softmax(dtype, shape, strange_gradient):
    logits = 8 * torch.randn(shape, dtype=dtype)
    compare(softmax, plain_softmax, formula, [logits], strange_gradient)
    assert softmax(logits).dtype == dtype


def test_strided_inputs(dtype):
    """Columns of a wider matrix, and a last dimension that is not contiguous."""
    for view in (lambda x: x[:, 3:13].view(-1, 2, 5), lambda x: x.view(6, 5, 4).transpose(1, 2)):
        compare(
            lambda x, view=view: softmax(view(x)),
            lambda x, view=view: plain_softmax(view(x)),
            lambda x, view=view: formula(view(x)),
            [torch.randn(6, 20, dtype=dtype)],
        )


def test_the_gradient_by_hand(dtype):
    weights = softmax_forward(torch.randn(7, 2, 5, dtype=dtype))
    grad = torch.randn(5, 2, 7, dtype=dtype).transpose(0, 2)
    out = torch.empty(5, 2, 7, dtype=dtype).transpose(0, 2)  # need not be contiguous
    softmax_backward(weights, grad, out)
    assert_close([out], [plain_softmax_backward(weights, grad)])


def test_numbers_far_apart(dtype):
    numbers = torch.cat(
        [torch.linspace(-100, 0, 1001), torch.tensor([-torch.inf, -3e38, 3e38])]
    ).to(dtype)
    logits = torch.stack([numbers, torch.zeros_like(numbers), numbers.flip(0)], 1)[:, None]
    torch.testing.assert_close(softmax(logits), plain_softmax(logits), rtol=1e-6, atol=1e-37)
    assert softmax(torch.tensor([[[0, -torch.inf]]], dtype=dtype)).tolist() == [[[1, 0]]]


def test_what_is_no_number(dtype):
    logits = torch.randn(6, 1, 4, dtype=dtype)
    logits[1, 0, 0] = logits[2, 0, 3] = torch.nan
    logits[3, 0, 1] = torch.inf
    logits[4] = -torch.inf
    torch.testing.assert_close(softmax(logits), plain_softmax(logits), equal_nan=True)
    half = torch.randn(3, 2, 4).bfloat16()
    assert torch.equal(softmax(half), half.softmax(-1, dtype=torch.float32))
