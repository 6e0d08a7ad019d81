"""The fused table against a dictionary of plain lookups, and the folded first layer against the
plain one.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlkit.data.splits import Bag
from mtlkit.data.types import Feature, Schema
from mtlkit.models import _input_linear
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._layers import StackedLinear
from mtlkit.models._options import ModelOptions
from mtlkit.models._tables import FOLD_VOCABULARY
from mtlkit.registry import MODELS
from mtlkit.training.batches import DeviceSplit
from tests.models.build import build, gradients, load, task_losses
from tests.toy import toy_batch, toy_schema, toy_split

WIDTHS = {"id1": 4, "id2": 2, "id3": 4, "bag1": 5}

DATA = {
    "one width": (toy_schema(2), {}),
    "several widths": (toy_schema(2, ids=4), {"embedding_dims": {"id2": 3, "id4": 11}}),
    "bags": (toy_schema(2, bags=2), {"embedding_dims": {"bag1": 5}}),
    "dense only": (toy_schema(2, ids=0, dense=5), {}),
    "ids only": (toy_schema(2, dense=0), {}),
    "ids only of several widths": (toy_schema(2, dense=0), {"embedding_dims": {"id1": 3}}),
    "numbers as vectors": (toy_schema(2, dense=3), {"numbers": "vector"}),
    "bags and numbers as vectors": (
        toy_schema(2, bags=1),
        {"numbers": "vector", "embedding_dims": {"id2": 3}},
    ),
    "vectors only": (toy_schema(2, ids=0, dense=5), {"numbers": "vector"}),
    "piecewise linear numbers": (toy_schema(2, dense=3), {"numbers": "piecewise"}),
    "bags and periodic numbers": (toy_schema(2, bags=1), {"numbers": "periodic"}),
}


def plain(module: FieldEmbedding, schema: Schema, batch, copy=None):
    """x by one lookup a feature, in the documented order: ids by width, bags, dense values."""
    ids = schema.of_kind("id")
    by_width = sorted(range(len(ids)), key=lambda i: WIDTHS[ids[i].name])  # a stable sort
    columns, start = [], dict.fromkeys(WIDTHS.values(), 0)
    for i in by_width:
        width = WIDTHS[ids[i].name]
        table = getattr(module, f"width_{width}")
        table = table if copy is None else table[:, copy]
        columns.append(table[start[width] : start[width] + ids[i].vocab][batch.ids[:, i].long()])
        start[width] += ids[i].vocab
    for feature in schema.of_kind("bag"):
        table = getattr(module, f"bag_{feature.name}")
        table = table if copy is None else table[:, copy]
        offsets, values, weights, _ = batch.bags[feature.name]
        sums = [
            (table[values[a:b].long()] * weights[a:b, None]).sum(0) for a, b in pairwise(offsets)
        ]
        columns.append(torch.stack(sums))
    return torch.cat([*columns, batch.dense], -1)


def make(schema, copies=0, **options):
    torch.manual_seed(0)
    return FieldEmbedding(schema, ModelOptions(**options), copies)


@pytest.fixture
def schema():
    return toy_schema(2, bags=1)


def test_x_is_a_concatenation_of_lookups(schema):
    module, batch = make(schema, embedding_dims=WIDTHS), toy_batch(schema, 30)
    x = module(batch).tensor()
    assert x.shape == (30, module.width)
    torch.testing.assert_close(x, plain(module, schema, batch))


@pytest.mark.parametrize("copies", [0, 2])
@pytest.mark.parametrize("name", DATA)
def test_x_without_gradients_is_the_same(name, copies):
    schema, options = DATA[name]
    module, batch = make(schema, copies, **options), toy_batch(schema, 30)
    with torch.no_grad():
        x = module(batch).tensor()
    assert torch.equal(x, module(batch).tensor())


LARGE = toy_schema(2, bags=1, vocab=100_000)
LARGE_EMBEDDING = make(LARGE, embedding_dims=WIDTHS)
LAST_IDS = torch.tensor([99_999, 100_000, 100_001])


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_of_a_hundred_thousand_ids_and_empty_bags(lengths, last, seed):
    drawn = np.random.default_rng(seed)
    bag = Bag(
        np.cumsum([0, *lengths]),
        drawn.integers(0, 100_000, sum(lengths)).astype(np.int32),
        drawn.random(sum(lengths)).astype(np.float32),
    )
    split = replace(toy_split(toy_schema(2, bags=1), len(lengths), seed), bags={"bag1": bag})
    ids = drawn.integers(0, 100_000, split.ids.shape).astype(np.int32)
    batch = DeviceSplit.load(replace(split, ids=ids), torch.device("cpu")).columns
    if last:
        batch.ids[:] = LAST_IDS
    x = LARGE_EMBEDDING(batch).tensor()
    torch.testing.assert_close(x, plain(LARGE_EMBEDDING, LARGE, batch))


def test_copies_are_separate_tables(schema):
    module, batch = make(schema, copies=3, embedding_dims=WIDTHS), toy_batch(schema, 30)
    x = module(batch).tensor()
    assert x.shape == (30, 3, module.width)
    for copy in range(3):
        torch.testing.assert_close(x[:, copy], plain(module, schema, batch, copy))
    assert set(module.stack_axes) == {name for name, _ in module.named_parameters()}


def test_widths_come_from_option_then_feature_then_default():
    features = [
        Feature(name="a", vocab=3),
        Feature(name="b", vocab=4, dim=6),
        Feature(name="c", vocab=5, dim=6),
    ]
    schema = Schema(features=tuple(features), tasks=toy_schema(1).tasks)
    module = make(schema, embedding=2, embedding_dims={"c": 3})
    assert {name: tuple(value.shape) for name, value in module.named_parameters()} == {
        "width_2": (3, 2),
        "width_6": (4, 6),
        "width_3": (5, 3),
    }
    assert module.width == 11


def test_feature_columns_say_which_columns_a_feature_fills():
    schema = toy_schema(2, ids=3, dense=2, bags=1)
    module, batch = make(schema, embedding_dims={"id2": 2, "bag1": 5}), toy_batch(schema, 30)
    x = module(batch).tensor().detach()
    assert {name: len(columns) for name, columns in module.feature_columns.items()} == {
        "id1": 8,
        "id2": 2,
        "id3": 8,
        "bag1": 5,
        "dense1": 1,
        "dense2": 1,
    }
    assert sorted(
        column for columns in module.feature_columns.values() for column in columns
    ) == list(range(module.width))
    torch.testing.assert_close(
        x[:, list(module.feature_columns["id2"])], module.width_2.detach()[batch.ids[:, 1].long()]
    )
    start = schema.of_kind("id")[0].vocab  # id3 follows id1 in the table of their width
    torch.testing.assert_close(
        x[:, list(module.feature_columns["id3"])],
        module.width_8.detach()[start + batch.ids[:, 2].long()],
    )
    assert torch.equal(x[:, list(module.feature_columns["dense2"])][:, 0], batch.dense[:, 1])


@pytest.mark.parametrize("foldable", [True, False])
@pytest.mark.parametrize("name", ["mmoe", "pepnet", "stem", "cross-stitch"])
def test_a_vector_of_numbers_is_as_many_numbers(name, foldable):
    """A model that appends them is the same when it is given the products as its dense features."""
    schema = toy_schema(2, dense=2, bags=1)
    wide = schema.model_copy(update={"features": toy_schema(2, dense=6, bags=1).features})
    model, twin = build(name, schema, numbers="vector", embedding=3), build(name, wide, embedding=3)
    for one in (model, twin):
        one.use(replace(one.fast_paths, fold=foldable))
    assert model.embedding.width == twin.embedding.width
    twin.load_state_dict(
        {key: value for key, value in model.state_dict().items() if key != "embedding.numbers"}
    )
    vectors = model.embedding.numbers  # (2, [copies,] 3)
    with torch.no_grad():
        if model.embedding.copies:
            vectors.copy_(
                vectors[:, :1].expand_as(vectors)
            )  # a copy of the twin has no numbers of its own
    batch = toy_batch(schema, 30)
    products = torch.stack(
        [batch.dense[:, d] * value for d in range(2) for value in vectors[d].view(-1, 3)[0]], 1
    )
    widened = replace(batch, dense=products.detach().requires_grad_())
    for one, other in zip(model(batch).predictions, twin(widened).predictions, strict=True):
        torch.testing.assert_close(one.logits, other.logits)
    grads, expected = gradients(model, batch), gradients(twin, widened)
    for key, grad in expected.items():
        torch.testing.assert_close(grads[key], grad, rtol=1e-4, atol=1e-6)
    (by_product,) = torch.autograd.grad(sum(task_losses(twin, widened)), widened.dense)
    by_vector = (by_product.unflatten(1, (2, 3)) * batch.dense[:, :, None]).sum(0)
    summed = grads["embedding.numbers"].view(2, -1, 3).sum(1)
    torch.testing.assert_close(summed, by_vector, rtol=1e-4, atol=1e-6)


def test_vectors_of_numbers_start_as_linear_layers_on_one_number():
    schema = toy_schema(2, dense=400)
    uniform, xavier = (
        build("mmoe", schema, numbers="vector", init=i).embedding.numbers
        for i in ("uniform", "xavier")
    )
    assert uniform.shape == xavier.shape == (400, 8)
    assert 0.99 < float(uniform.detach().abs().max()) <= 1
    assert float(uniform.detach().std()) == pytest.approx(3**-0.5, rel=0.03)
    assert float(xavier.detach().std()) == pytest.approx((2 / 9) ** 0.5, rel=0.05)


def test_vectors_of_numbers_follow_the_tables_and_their_copies():
    schema = toy_schema(2, bags=1)
    tables = dict(make(schema, copies=3).named_parameters())
    module, batch = make(schema, copies=3, numbers="vector", embedding=5), toy_batch(schema, 30)
    x = module(batch).tensor()
    assert module.numbers.shape == (2, 3, 5)
    assert module.stack_axes["numbers"] == 1
    for d, name in enumerate(("dense1", "dense2")):
        assert len(module.feature_columns[name]) == 5
        for copy in range(3):
            scaled = batch.dense[:, d, None] * module.numbers[d, copy]
            assert torch.equal(x[:, copy, list(module.feature_columns[name])], scaled)
    assert sorted(
        column for columns in module.feature_columns.values() for column in columns
    ) == list(range(module.width))
    again = dict(make(schema, copies=3, numbers="vector").named_parameters())
    assert again.keys() == {*tables, "numbers"}
    assert all(torch.equal(value, again[key]) for key, value in tables.items())  # the same start


def test_without_dense_features_there_are_no_vectors():
    schema = toy_schema(2, dense=0)
    one, other = make(schema, numbers="vector"), make(schema)
    assert one.width == other.width
    assert one.state_dict().keys() == other.state_dict().keys()


def test_initial_rows(schema):
    big = toy_schema(2, ids=2, bags=1, vocab=4000)
    module = make(big, embedding_std=0.3)
    for value in module.parameters():
        assert float(value.detach().std()) == pytest.approx(0.3, rel=0.02)
    assert [int(row) for row in (module.width_8 == 0).all(1).nonzero()] == [
        0,
        4000,
    ]  # the unknown of each feature
    assert [int(row) for row in (module.bag_bag1 == 0).all(1).nonzero()] == [0]
    assert float(make(big, embedding_std=0).width_8.detach().abs().max()) == 0


@pytest.mark.parametrize("case", DATA)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_a_linear_layer_on_x(case, bias):
    schema, options = DATA[case]
    module, batch = make(schema, **options), toy_batch(schema, 30)
    leaves = [torch.randn(7, module.width, requires_grad=True)]
    leaves += [torch.randn(7, requires_grad=True)] if bias else []
    leaves += list(module.parameters())
    upstream = torch.randn(30, 7)
    results = []
    for out in (
        module(batch).linear(leaves[0], leaves[1] if bias else None),
        F.linear(module(batch).tensor(), leaves[0], leaves[1] if bias else None),
    ):
        results.append([out, *torch.autograd.grad(out, leaves, upstream)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", DATA)
@pytest.mark.parametrize("name", MODELS.names())
def test_folding_changes_nothing_but_speed(name, case, monkeypatch):
    schema, options = DATA[case]
    model, batch = build(name, schema, **options), toy_batch(schema, 30, missing=0.1)
    calls = []

    def counted(*args):
        calls.append(args)
        return kernel(*args)

    kernel = _input_linear.fold
    monkeypatch.setattr(_input_linear, "fold", counted)
    results = []
    for foldable in (True, False):
        model.use(replace(model.fast_paths, fold=foldable))
        before = len(calls)
        torch.manual_seed(1)  # for models that draw
        results.append(
            [p.logits for p in model(batch).predictions] + list(gradients(model, batch).values())
        )
        if name == "mmoe" and foldable:
            assert len(calls) == 2 * len(
                model.embedding.groups
            )  # of experts and gates in one, in two forward passes
        assert foldable or len(calls) == before
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_layers_on_sums_of_copies_never_form_the_embedded_rows(schema):
    """They are one fold a stack; the sums are those of the copies, numbers included."""
    module, batch = make(schema, copies=3, numbers="vector"), toy_batch(schema, 30)
    reads = [(0, 2), (1, 2), (2,)]
    layers = StackedLinear(3, module.width, 4)
    x = module(batch)
    folded = layers(x.sums_of_copies(reads))
    assert x.materialised is None
    copies = module(batch).tensor()
    inputs = torch.stack([copies[:, list(read)].sum(1) for read in reads], 1)
    torch.testing.assert_close(folded, layers(inputs), rtol=1e-4, atol=1e-6)
    module.fast_paths = replace(module.fast_paths, fold=False)
    looked_up = layers(module(batch).sums_of_copies(reads))
    torch.testing.assert_close(looked_up, layers(inputs), rtol=1e-4, atol=1e-6)


def test_large_vocabularies_are_not_folded():
    for vocab, folded in ((FOLD_VOCABULARY, True), (FOLD_VOCABULARY + 1, False)):
        module = make(toy_schema(2, ids=1, vocab=vocab))
        assert bool(module.foldable_groups()) == folded


@pytest.mark.parametrize("name", [name for name in MODELS.names() if load(name).shares_parameters])
def test_x_is_known_as_the_representation_once_made(name):
    schema = toy_schema(2)
    model = build(name, schema)
    model.use(replace(model.fast_paths, fold=False))  # as training does for scope=representation
    x = model(toy_batch(schema, 30)).representation
    assert x is not None
    assert len(x) == 30
    assert x.requires_grad


@pytest.mark.parametrize("options", [{}, {"specific": 2}, {"levels": 1}])
def test_all_that_a_task_of_stem_reads_of_the_shared_copy_is_in_the_representation(options):
    schema = toy_schema(3)
    model, batch = build("stem", schema, **options), toy_batch(schema, 30)
    model.use(replace(model.fast_paths, fold=False))
    x = model.embedding(batch).tensor().detach().requires_grad_()
    output = model(replace(batch, embedding_output=x))
    for objective in model.objectives(output, batch):
        of_x, of_shared = torch.autograd.grad(
            objective.loss, [x, output.representation], retain_graph=True
        )
        torch.testing.assert_close(of_shared, of_x[:, 3])
