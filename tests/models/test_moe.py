"""Gates and experts as one kernel, beside the layers one after the other."""

from dataclasses import replace

import pytest
import torch

from mtlkit.models._boundary import FirstLayerBoundary, TensorBoundary, dense_weights
from mtlkit.models._embedding import FastPaths, FieldEmbedding
from mtlkit.models._layers import Gate, GateOptions, StackedMLP
from mtlkit.models._moe import gated_mixture
from mtlkit.models._types import Batch
from mtlkit.ops.inner_products import inner_products
from mtlkit.ops.mixture_gramian import mixture_gramian
from tests.models.build import build
from tests.toy import toy_batch, toy_schema

REACH = torch.tensor([[0, 3, 4], [1, 3, 4], [2, 3, 4]])  # own, and two of all


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


def layers(width, dtype, expert_index=None, rows=30, **options):
    torch.manual_seed(0)
    schema = toy_schema(3)
    given = GateOptions(embedding=3, **options)
    embedding = FieldEmbedding(schema, given).to(dtype)
    gate = Gate(3, embedding.width, 5 if expert_index is None else expert_index.shape[1], given).to(
        dtype
    )
    made = toy_batch(schema, 30)
    batch = Batch(made.ids[:rows], made.dense[:rows].to(dtype), made.labels[:rows])
    return embedding, gate, StackedMLP(5, embedding.width, (width,), given).to(dtype), batch


def both(width, dtype, expert_index=None, rows=30, **options):
    """The mixture by one kernel and by the layers, and all parameters."""
    embedding, gate, experts, batch = layers(width, dtype, expert_index, rows, **options)
    found = []
    for fusable in (True, False):
        embedding.fast_paths = FastPaths(fuse=fusable)
        found.append(gated_mixture(embedding(batch), gate, experts, expert_index))
    assert isinstance(found[0].boundary, FirstLayerBoundary)
    assert isinstance(found[1].boundary, TensorBoundary)
    return found, [*embedding.parameters(), *gate.parameters(), *experts.parameters()]


@pytest.mark.parametrize("expert_index", [None, REACH], ids=["all experts", "some experts"])
@pytest.mark.parametrize("width", [5, 16, 37])
@pytest.mark.parametrize("rows", [0, 1, 30])
def test_one_kernel_is_the_layers_one_after_the_other(rows, width, expert_index, dtype):
    (one, other), parameters = both(width, dtype, expert_index, rows, gate_bias=True)
    torch.testing.assert_close((one.own, one.weights), (other.own, other.weights.detach()))
    grad = torch.randn_like(one.own)
    found, plain = (
        torch.autograd.grad(m.own, parameters, grad, retain_graph=True) for m in (one, other)
    )
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize("expert_index", [None, REACH], ids=["all experts", "some experts"])
@pytest.mark.parametrize("width", [5, 16, 37])
def test_partings_take_the_tasks_apart(width, expert_index, dtype):
    (one, other), _ = both(width, dtype, expert_index)
    grad = torch.randn_like(one.own)
    by_task, private = other.boundary.vjp(grad)
    size = 5 * width
    columns = one.boundary.vjp(grad).split([size, size, size, one.weights[0].numel()], 1)
    assert list(one.boundary.column_owners) == [(1, 0), (1, 1), (1, 2), (0, None)]
    outputs = other.boundary.trunk_output
    for t in range(3):
        expected = torch.where(outputs > 0, by_task[t], 0)  # through the rectifier
        torch.testing.assert_close(columns[t].view_as(expected), expected)
    logits = other.weights * (private - (private * other.weights).sum(-1, keepdim=True))
    torch.testing.assert_close(columns[3].view_as(logits), logits.detach())
    rows = by_task.flatten(1).double()
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {}
    for boundary in (one.boundary, other.boundary):
        torch.testing.assert_close(boundary.gramian(grad), rows @ rows.T, **tolerance)


def test_what_is_not_a_number_stays_so():
    embedding, gate, experts, batch = layers(16, torch.float32)
    batch.dense[3] = torch.nan
    mixture = gated_mixture(embedding(batch), gate, experts)
    assert mixture.own[3].isnan().all()
    assert mixture.own[:3].isfinite().all()
    with torch.no_grad():
        experts.linears[0].bias[0, 0] = torch.nan
    mixture = gated_mixture(embedding(batch), gate, experts)
    assert mixture.own[:3, :, 0].isnan().all()
    assert mixture.own[:3, :, 1:].isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {"gate_hidden": (4,)},
        {"gate_norm": "layer"},
        {"norm": "batch"},
        {"activation": "tanh"},
        {"dropout": 0.5},
    ],
    ids=str,
)
def test_other_layers_are_no_single_kernel(options):
    embedding, gate, experts, batch = layers(16, torch.float32, **options)
    assert isinstance(gated_mixture(embedding(batch), gate, experts).boundary, TensorBoundary)
    if "dropout" in options:
        experts.eval()
        assert isinstance(
            gated_mixture(embedding(batch), gate, experts).boundary, FirstLayerBoundary
        )


@pytest.mark.parametrize("name", ["mmoe", "omoe", "cgc", "ple"])
def test_models_are_the_same_either_way(name):
    schema = toy_schema(3)
    model, batch = build(name, schema), toy_batch(schema, 40)
    found = []
    for fusable in (True, False):
        model.use(replace(model.fast_paths, fuse=fusable))
        logits = [prediction.logits for prediction in model(batch).predictions]
        grads = torch.autograd.grad(sum(x.square().sum() for x in logits), list(model.parameters()))
        found.append([*logits, *grads])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (7,), (300, 5), (4, 16, 33), (33, 4, 16)])
def test_inner_products(shape, kind):
    values = [torch.randn(shape).to(kind) for _ in range(3)]
    rows = torch.stack(values).view(3, -1).double()
    for form in (values, [value.transpose(0, -1) if value.dim() else value for value in values]):
        torch.testing.assert_close(inner_products(form), rows @ rows.T, rtol=1e-5, atol=1e-5)


def test_inner_products_whatever_the_layout():
    values = [torch.randn(40, 33), torch.randn(33, 40).t(), torch.randn(40, 1).expand(40, 33)]
    rows = torch.stack(values).flatten(1).double()
    torch.testing.assert_close(inner_products(values), rows @ rows.T, rtol=1e-5, atol=1e-4)
    assert not inner_products([torch.randn(0, 3)] * 2).any()


def test_inner_products_do_not_lose_what_is_small():
    """Beside 300,000 numbers near 1000, in single precision."""
    one = torch.full((300_000,), 1000.0) + torch.randn(300_000)
    exact = one.double() @ one.double()
    assert abs(inner_products([one])[0, 0] / exact - 1) < 1e-7


def test_gram_of_mixtures_without_kernels():
    weights, grad = torch.rand(6, 2, 3, requires_grad=True), torch.randn(6, 2, 5)
    assert not mixture_gramian(weights, grad).requires_grad
    assert not mixture_gramian(weights, grad.bfloat16()).requires_grad
    torch.testing.assert_close(
        mixture_gramian(weights, grad),
        mixture_gramian(weights.bfloat16(), grad),
        rtol=0.05,
        atol=0.1,
    )
    spread_out = dense_weights(weights, torch.tensor([[0, 1, 2], [3, 1, 2]]), 4)
    assert spread_out.shape == (6, 2, 4)
    assert not spread_out[:, 0, 3].any()
    assert not spread_out[:, 1, 0].any()
