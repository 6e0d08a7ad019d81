"""Inner products of gradients, formed or not."""

import pytest
import torch

from mtlkit.ops._dispatch import plain_operations
from mtlkit.ops.inner_products import inner_products, plain_inner_products
from mtlkit.ops.mixture_gramian import mixture_gramian, plain_mixture_gramian


@pytest.mark.parametrize("shape", [(), (3,), (7, 300), (5, 2, 37), (0, 3)])
def test_inner_products(dtype, shape):
    values = [torch.randn(shape, dtype=dtype) for _ in range(3)]
    plain = plain_inner_products(values)
    expected = [[float((a.double() * b.double()).sum()) for b in values] for a in values]
    torch.testing.assert_close(plain, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(inner_products(values), plain, rtol=1e-6, atol=1e-5)
    with plain_operations():
        assert torch.equal(inner_products(values), plain)


@pytest.mark.parametrize("width", [1, 16, 37])
def test_mixture_gramian(dtype, width):
    weights = torch.rand(9, 3, 4, dtype=dtype, requires_grad=True)
    grad = torch.randn(9, 3, width, dtype=dtype)
    formed = (weights[..., None] * grad[:, :, None]).detach().double()  # (B, n, E, d)
    expected = torch.einsum("bsed,bted->st", formed, formed)
    plain = plain_mixture_gramian(weights, grad)
    torch.testing.assert_close(plain, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixture_gramian(weights, grad), plain, rtol=1e-5, atol=1e-5)
    with plain_operations():
        assert torch.equal(mixture_gramian(weights, grad), plain)
