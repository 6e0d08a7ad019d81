"""Each compiled kernel against its plain PyTorch form: values and all gradients."""

import pytest
import torch
import torch.nn.functional as F

from mtlkit.models.kernels import embed_linear, mix_shared

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(params=TOLERANCE, ids=str)
def dtype(request):
    torch.manual_seed(0)
    return request.param


def compare(kernel, plain, inputs, strange_gradient):
    """Equal outputs, and equal gradients of all inputs for an upstream gradient of any memory layout."""
    results = []
    for function in (kernel, plain):
        leaves = [value.clone().requires_grad_() for value in inputs]
        out = function(*leaves)
        upstream = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
        if strange_gradient:
            upstream = upstream.transpose(0, -1).contiguous().transpose(0, -1)
            assert not upstream.is_contiguous()
        results.append([out, *torch.autograd.grad(out, leaves, upstream)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=TOLERANCE[one.dtype], atol=TOLERANCE[one.dtype])


@pytest.mark.parametrize("strange_gradient", [False, True])
@pytest.mark.parametrize(("width", "outputs", "vocabularies"), [(1, 3, (4,)), (8, 33, (3, 9, 2)), (5, 2, (6, 1, 1, 7))])
def test_embed_linear(dtype, width, outputs, vocabularies, strange_gradient):
    rows = 50
    starts = torch.tensor([0, *vocabularies[:-1]]).cumsum(0)
    ids = torch.stack([torch.randint(v, (rows,)) for v in vocabularies], -1).int() + starts.int()
    field = torch.repeat_interleave(torch.arange(len(vocabularies)), torch.tensor(vocabularies)).int()
    table = torch.randn(sum(vocabularies), width, dtype=dtype)
    whole = torch.randn(outputs, width * len(vocabularies) + 3, dtype=dtype)
    compare(
        lambda table, whole: embed_linear(table, whole[:, 1:-2], ids, field),  # a slice of a wider layer, as in models
        lambda table, whole: F.linear(table[ids.long()].flatten(1), whole[:, 1:-2]),
        [table, whole],
        strange_gradient,
    )


@pytest.mark.parametrize("strange_gradient", [False, True])
@pytest.mark.parametrize("shape", [(40, 2, 5, 16), (7, 1, 1, 3), (3, 4, 2, 1)])
def test_mix_shared(dtype, shape, strange_gradient):
    rows, gates, experts, width = shape
    compare(
        mix_shared,
        lambda weights, values: torch.einsum("bne,bed->bnd", weights, values),
        [torch.randn(rows, gates, experts, dtype=dtype), torch.randn(rows, experts, width, dtype=dtype)],
        strange_gradient,
    )


def test_mix_shared_of_strided_inputs(dtype):
    compare(
        lambda weights, values: mix_shared(weights.transpose(1, 2), values.transpose(1, 2)),
        lambda weights, values: torch.einsum("ben,bde->bnd", weights, values),
        [torch.randn(6, 5, 2, dtype=dtype), torch.randn(6, 4, 5, dtype=dtype)],
        False,
    )
