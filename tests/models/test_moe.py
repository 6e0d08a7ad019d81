"""Levels of experts: in one kernel and layer by layer, their names, and their ablation."""

import re
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from mtlkit.errors import UsageError
from mtlkit.models._architecture import Architecture
from mtlkit.models._boundary import FirstLayerBoundary, TensorBoundary, dense_weights
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._layers import Gate, GateOptions, StackedLinear, StackedMLP, Towers
from mtlkit.models._moe import GateStack, MoELayer
from mtlkit.models._tables import FastPaths
from mtlkit.models._types import Batch
from mtlkit.ops._dispatch import plain_operations
from mtlkit.ops.combine_experts import combine_experts
from mtlkit.ops.inner_products import inner_products
from mtlkit.ops.mixture_gramian import mixture_gramian
from tests.models.build import build
from tests.toy import toy_batch, toy_schema

EXPERT_INDEX = torch.tensor([[0, 3, 4], [1, 3, 4], [2, 3, 4]])  # own, and two of all


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


def level(width, dtype, expert_index=None, rows=30, **options):
    """An embedding, a level of five experts and three readers on it, and a batch."""
    torch.manual_seed(0)
    schema = toy_schema(3)
    options = GateOptions(embedding=3, **options)
    embedding = FieldEmbedding(schema, options).to(dtype)
    seen = 5 if expert_index is None else expert_index.shape[1]
    gate = Gate(3, embedding.width, seen, options).to(dtype)
    experts = StackedMLP(5, embedding.width, (width,), options).to(dtype)
    layer = MoELayer(1, experts, [GateStack(schema.task_names, gate, expert_index)])
    whole = toy_batch(schema, 30)
    batch = Batch(whole.ids[:rows], whole.dense[:rows].to(dtype), whole.labels[:rows])
    return embedding, layer, batch


def weights_of(mixture):
    """(B, n, k)."""
    return torch.stack(list(mixture.gates.values()), 1)


def both(width, dtype, expert_index=None, rows=30, **options):
    """The mixture by one kernel and by the layers, and all parameters."""
    embedding, layer, batch = level(width, dtype, expert_index, rows, **options)
    mixtures = []
    for fuse in (True, False):
        embedding.fast_paths = FastPaths(fuse=fuse)
        mixtures.append(layer(embedding(batch)))
    assert isinstance(mixtures[0].boundary, FirstLayerBoundary)
    assert isinstance(mixtures[1].boundary, TensorBoundary)
    modules = [embedding, layer.gate_stacks[0].gate, layer.experts]
    return mixtures, [value for module in modules for value in module.parameters()]


@pytest.mark.parametrize("expert_index", [None, EXPERT_INDEX], ids=["all experts", "some experts"])
@pytest.mark.parametrize("width", [5, 16, 37])
@pytest.mark.parametrize("rows", [0, 1, 30])
def test_one_kernel_is_the_layers_one_after_the_other(rows, width, expert_index, dtype):
    (one, other), parameters = both(width, dtype, expert_index, rows, gate_bias=True)
    torch.testing.assert_close(one.outputs, other.outputs)
    torch.testing.assert_close(weights_of(one), weights_of(other).detach())
    grad = torch.randn_like(one.outputs)
    fused, plain = (
        torch.autograd.grad(m.outputs, parameters, grad, retain_graph=True) for m in (one, other)
    )
    torch.testing.assert_close(fused, plain)


@pytest.mark.parametrize("expert_index", [None, EXPERT_INDEX], ids=["all experts", "some experts"])
@pytest.mark.parametrize("width", [5, 16, 37])
def test_boundaries_separate_the_tasks(width, expert_index, dtype):
    (one, other), _ = both(width, dtype, expert_index)
    grad = torch.randn_like(one.outputs)
    by_task, by_gate = other.boundary.vjp(grad)
    size = 5 * width
    weights = weights_of(other)
    columns = one.boundary.vjp(grad).split([size, size, size, weights[0].numel()], 1)
    assert list(one.boundary.column_owners) == [(1, 0), (1, 1), (1, 2), (0, None)]
    outputs = other.boundary.trunk_output
    for t in range(3):
        expected = torch.where(outputs > 0, by_task[t], 0)  # through the rectifier
        torch.testing.assert_close(columns[t].view_as(expected), expected)
    logits = weights * (by_gate - (by_gate * weights).sum(-1, keepdim=True))
    torch.testing.assert_close(columns[3].view_as(logits), logits.detach())
    rows = by_task.flatten(1).double()
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {}
    for boundary in (one.boundary, other.boundary):
        torch.testing.assert_close(boundary.gramian(grad), rows @ rows.T, **tolerance)


def test_what_is_not_a_number_stays_so():
    embedding, layer, batch = level(16, torch.float32)
    batch.dense[3] = torch.nan
    mixed = layer(embedding(batch)).outputs
    assert mixed[3].isnan().all()
    assert mixed[:3].isfinite().all()
    with torch.no_grad():
        layer.experts.linears[0].bias[0, 0] = torch.nan
    mixed = layer(embedding(batch)).outputs
    assert mixed[:3, :, 0].isnan().all()
    assert mixed[:3, :, 1:].isfinite().all()


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
    embedding, layer, batch = level(16, torch.float32, **options)
    assert isinstance(layer(embedding(batch)).boundary, TensorBoundary)
    if "dropout" in options:
        layer.experts.eval()
        assert isinstance(layer(embedding(batch)).boundary, FirstLayerBoundary)


@pytest.mark.parametrize("expert_index", [None, EXPERT_INDEX], ids=["all experts", "some experts"])
@pytest.mark.parametrize("fuse", [True, False])
def test_an_ablated_expert_is_taken_for_zero(fuse, expert_index, dtype):
    embedding, layer, batch = level(16, dtype, expert_index)
    embedding.fast_paths = FastPaths(fuse=fuse)
    whole = layer(embedding(batch))
    outputs = layer.expert_outputs(embedding(batch)).clone()
    outputs[:, 3] = 0
    with layer.ablate(3):
        ablated = layer(embedding(batch))
    torch.testing.assert_close(
        ablated.outputs, combine_experts(weights_of(whole).detach(), outputs, expert_index)
    )
    assert torch.equal(layer(embedding(batch)).outputs, whole.outputs)


def test_several_stacks_of_gates_mix_one_after_the_other():
    embedding, layer, batch = level(16, torch.float32, EXPERT_INDEX)
    x = embedding(batch).tensor()
    shared = Gate(1, embedding.width, 5, GateOptions())
    gate = layer.gate_stacks[0].gate
    gate_stacks = [
        GateStack(("t1", "t2", "t3"), gate, EXPERT_INDEX, slice(3)),
        GateStack(["shared"], shared, paths=slice(3, None)),
    ]
    owner = torch.tensor([0, 1, 2, 3, 3])
    names = ("a", "b", "c", "d", "e")
    two = MoELayer(2, layer.experts, gate_stacks, names, owner)
    assert two.gate_experts == {
        "level-2/t1": ("a", "d", "e"),
        "level-2/t2": ("b", "d", "e"),
        "level-2/t3": ("c", "d", "e"),
        "level-2/shared": names,
    }
    mixture = two(x)
    assert mixture.boundary is None
    assert list(mixture.gates) == list(two.gate_experts)
    torch.testing.assert_close(mixture.outputs[:, :3], layer(x).outputs)
    expected = combine_experts(shared(x), layer.experts(x))
    torch.testing.assert_close(mixture.outputs[:, 3:], expected)

    # With a path for each task and a shared one, each expert and each gate reads its own.
    paths = torch.randn(30, 4, embedding.width, requires_grad=True)
    outputs = layer.experts(paths[:, owner])
    by_task = combine_experts(gate(paths[:, :3]), outputs, EXPERT_INDEX)
    expected = torch.cat([by_task, combine_experts(shared(paths[:, 3:]), outputs)], 1)
    modules = [gate, shared, layer.experts]
    leaves = [paths, *(value for module in modules for value in module.parameters())]
    upstream = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, leaves, upstream)
    for form in (nullcontext, plain_operations):
        with form():
            mixed = two(paths).outputs
            torch.testing.assert_close(mixed, expected)
            grads = torch.autograd.grad(mixed, leaves, upstream)
            torch.testing.assert_close(grads, expected_grads)


def test_gates_that_are_not_one_for_each_path_are_no_single_kernel():
    """Two gates a path, and a path that no expert reads, whose columns the kernel would miss."""
    _, layer, _ = level(16, torch.float32)
    width = layer.experts.first[0].weight.shape[2]
    owner = torch.tensor([0, 0, 1, 1, 2])
    six = GateStack([str(n) for n in range(6)], Gate(6, width, 5, GateOptions()))
    of_each = GateStack(["a", "b", "c"], Gate(3, width, 5, GateOptions()), paths=slice(3))
    alone = GateStack(["d"], Gate(1, width, 5, GateOptions()), paths=slice(3, None))
    for stacks, paths in (([six], 3), ([of_each, alone], 4)):
        x = torch.randn(8, paths, width)
        made = MoELayer(2, layer.experts, stacks, expert_paths=owner)
        outputs = layer.experts(x[:, owner])
        weights = torch.cat(made.gate_weights(x), 1)
        torch.testing.assert_close(made(x).outputs, combine_experts(weights, outputs))


def test_columns_that_fill_up_vectors_change_nothing():
    # 3 gates of 5 weights and 5 experts of 7 numbers are 50 columns, and 14 more in the kernels
    embedding, layer, batch = level(7, torch.float64)
    x = embedding(batch)
    mixture = layer(x)
    (first_layer,) = x.first_layers
    assert first_layer.sizes == [15, 35, 14]
    assert first_layer.output.shape == (30, 50)
    assert first_layer.cuts[0].shape[1] == 64
    with plain_operations():
        plain = layer(embedding(batch))
    torch.testing.assert_close(mixture.outputs, plain.outputs, rtol=1e-12, atol=1e-12)


class Plugin(Architecture):
    """A mixture of experts as a user may write it.

    Args:
        schema: Tasks and features.
        layer: Whether its experts belong to an ``MoELayer``.
        registered: Whether they are sub-modules.
        embedding: Name of its embedding.
    """

    Options = GateOptions

    def __init__(self, schema, layer=True, registered=True, embedding="embedding"):
        options = GateOptions(embedding=3)
        super().__init__(schema, options)
        table = FieldEmbedding(schema, options)
        setattr(self, embedding, table)
        self.gates = Gate(len(self.tasks), table.width, 4, options)
        experts = StackedMLP(4, table.width, (5,), options)
        if registered:
            self.experts = experts
        if layer:
            self.moe = MoELayer(1, experts, [GateStack(schema.task_names, self.gates)])
        self.towers = Towers(self.tasks, 5, options)

    def forward(self, batch):
        x = self.embedding(batch).tensor()
        mixed = combine_experts(self.gates(x), self.experts(x))  # never asks its layer
        return self.output(self.towers(mixed))


def test_a_plugin_cannot_forget_an_ablation():
    """Experts have names, and with them an ablation, by their layer alone, which silences them
    whoever asks for their outputs.
    """
    schema = toy_schema(2)
    batch = toy_batch(schema, 40)
    torch.manual_seed(0)
    without, model = Plugin(schema, layer=False), Plugin(schema)
    assert without.expert_names == []
    assert without.moe_layers == []
    assert model.expert_names == [("expert 1", "expert 2", "expert 3", "expert 4")]
    whole = model(batch).predictions[0].logits
    for expert in range(4):
        with model.moe_layers[0].ablate(expert):
            assert not torch.equal(model(batch).predictions[0].logits, whole)
    assert torch.equal(model(batch).predictions[0].logits, whole)


def test_what_is_wrong_with_a_plugin_is_said_when_it_is_used():
    schema = toy_schema(2)
    Plugin(schema).use(FastPaths())
    with pytest.raises(UsageError, match="Plugin has no FieldEmbedding called 'embedding'") as told:
        Plugin(schema, embedding="tables").use(FastPaths())
    assert "self.embedding = FieldEmbedding(" in told.value.hint
    with pytest.raises(UsageError, match="level 1 are no sub-modules of Plugin"):
        Plugin(schema, registered=False).use(FastPaths())
    twice = Plugin(schema)
    twice.more = MoELayer(1, twice.experts, [GateStack(["shared"], twice.gates)])
    with pytest.raises(UsageError, match=re.escape("of Plugin are numbered [1, 1]")):
        twice.use(FastPaths())


@pytest.mark.parametrize("name", ["mmoe", "omoe", "cgc", "ple"])
def test_models_are_the_same_either_way(name):
    schema = toy_schema(3)
    model, batch = build(name, schema), toy_batch(schema, 40)
    results = []
    for fuse in (True, False):
        model.use(replace(model.fast_paths, fuse=fuse))
        logits = [prediction.logits for prediction in model(batch).predictions]
        grads = torch.autograd.grad(sum(x.square().sum() for x in logits), list(model.parameters()))
        results.append([*logits, *grads])
    torch.testing.assert_close(*results)


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


@pytest.mark.parametrize("bias", [True, False])
def test_layers_of_one_input_are_as_layers_that_each_get_a_copy_of_it(bias):
    layers, x = StackedLinear(6, 5, 4, bias=bias), torch.randn(10, 3, 5, requires_grad=True)
    parameters = [x, *layers.parameters()]
    results = []
    for inputs in (x, x.index_select(1, torch.tensor([0, 0, 1, 1, 2, 2]))):
        out = layers(inputs)
        grads = torch.autograd.grad(out.square().sum(), parameters)
        results.append([out, *grads])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_experts_get_copies_of_paths_only_where_they_do_not_take_turns():
    options = GateOptions()
    others = ([0, 0, 1, 2], [1, 1, 0, 0], [0, 0, 2, 2], [1, 1, 1, 1])
    for paths, in_turn in (([0, 0, 1, 1], True), *((paths, False) for paths in others)):
        experts = StackedMLP(4, 5, (3,), options)
        level = MoELayer(1, experts, [GateStack("a")], expert_paths=torch.tensor(paths))
        x = torch.randn(10, 3 if 2 in paths else 2, 5)
        assert level._in_turn == in_turn
        expected = experts(x[:, paths])
        torch.testing.assert_close(level.expert_outputs(x), expected)
