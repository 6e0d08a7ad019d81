"""An operation, its plain form and a naive formula in double precision: values and gradients."""

import torch

from mtlkit.ops._dispatch import plain_operations, use_kernel

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def compare(operation, plain, formula, inputs, strange_gradient=False):
    """Equal outputs, and equal gradients of all inputs for an upstream gradient of any memory
    layout.

    Args:
        operation: What chooses between the kernel and the plain form.
        plain: The plain form.
        formula: What it should be; called in double precision.
        inputs: Tensors that all get a gradient.
        strange_gradient: Whether the upstream gradient is not contiguous.
    """
    assert use_kernel(*inputs)
    exact = results(formula, [value.double() for value in inputs], strange_gradient)
    by_plain = results(plain, inputs, strange_gradient)
    assert_close(by_plain, exact, check_dtype=False)
    by_kernel = results(operation, inputs, strange_gradient)
    assert_close(by_kernel, exact, check_dtype=False)
    assert_close(by_kernel, by_plain)
    with plain_operations():
        chosen = results(operation, inputs, strange_gradient)
    for one, other in zip(chosen, by_plain, strict=True):
        assert torch.equal(one, other)


def results(function, inputs, strange_gradient):
    """A function's output, and the gradients of its inputs."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    out = function(*leaves)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    if strange_gradient:
        upstream = upstream.transpose(0, -1).contiguous().transpose(0, -1)
        assert not upstream.is_contiguous() or upstream.numel() < 8
    return [out, *torch.autograd.grad(out, leaves, upstream)]


def assert_close(ones, others, **options):
    """Equal lists of tensors, within the tolerance of the first ones' type."""
    for one, other in zip(ones, others, strict=True):
        tolerance = TOLERANCE[one.dtype]
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, **options)
