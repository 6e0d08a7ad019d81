"""Row-sparse gradients of large tables: the numbers of dense ones, and rows that a batch lacks stay
as they are.
"""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from mtlkit.balancers._step import SharedGradient
from mtlkit.errors import UsageError
from mtlkit.models import _tables
from mtlkit.ops._dispatch import plain_operations
from mtlkit.ops.take_rows import coalesced, summed_rows, take_rows
from mtlkit.registry import MODELS
from mtlkit.training.lazy_adam import LazyAdam
from mtlkit.training.sharing import SharedParameters
from tests.models.build import build
from tests.toy import toy_dataset, toy_schema
from tests.training.steps import loop_step
from tests.training.test_step import doubled, toy_batch

MODEL = "mmoe[experts=3,hidden=5]"
NAMES = ["mmoe", "shared-bottom", "stem", "ple"]


@pytest.fixture(autouse=True)
def no_folding(monkeypatch):
    monkeypatch.setattr(_tables, "FOLD_VOCABULARY", 0)


@pytest.fixture(scope="module")
def pair():
    return toy_dataset(toy_schema(tasks=2, bags=1, vocab=9), rows=320)


@pytest.fixture(params=["kernels", "plain"])
def form(request):
    """With compiled kernels, and in the form that other devices take."""
    with plain_operations() if request.param == "plain" else nullcontext():
        yield


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("table_rows", "count", "width"),
    [(9, 4, 3), (5000, 700, 16), (5_000_000, 3000, 3), (3, 50, 17), (7, 1, 8), (7, 0, 16)],
)
def test_taking_rows_is_index_select_with_a_sparse_gradient(form, table_rows, count, width, kind):
    generator = torch.Generator().manual_seed(count)
    table = torch.randn(
        table_rows, 2, width, generator=generator, dtype=torch.float64, requires_grad=True
    )
    rows = (table_rows * torch.rand(count, generator=generator) ** 3).to(kind)  # some many times
    rows[-1:] = table_rows - 1
    upstream = torch.randn(count, 2, width, generator=generator, dtype=torch.float64)
    found, expected = take_rows(table, rows), table.index_select(0, rows)
    assert torch.equal(found, expected)
    (dense,) = torch.autograd.grad(expected, table, upstream)
    for factor in (1, 2):
        (sparse,) = torch.autograd.grad(found, table, factor * upstream, retain_graph=True)
        assert sparse.is_sparse
        assert torch.equal(summed_rows(sparse)[0], rows.unique().long())
        torch.testing.assert_close(sparse.to_dense(), factor * dense)


@pytest.mark.parametrize("beyond", [-1, 5])
def test_a_row_beyond_the_table_is_not_taken(form, beyond):
    table = torch.zeros(5, 3, requires_grad=True)
    with pytest.raises((IndexError, RuntimeError)):
        take_rows(table, torch.tensor([0, 4, beyond]))


@pytest.mark.parametrize("rows", [[1, 3, 4], [3, 1, 4], [1, 1, 4], []])
def test_a_gradient_keeps_its_rows_in_order_or_gets_them_so(rows):
    values = torch.arange(len(rows) * 2.0).view(-1, 2)
    index = torch.tensor([rows], dtype=torch.int64)
    grad = torch.sparse_coo_tensor(index, values, (6, 2), is_coalesced=False)
    found, expected = coalesced(grad), grad.coalesce()
    assert found.is_coalesced()
    assert torch.equal(found.indices(), expected.indices())
    assert torch.equal(found.values(), expected.values())


@pytest.mark.parametrize("shape", [(6, 2, 5), (50, 37)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lazy_adam_is_adam_where_every_row_is_in_every_batch(form, dtype, shape):
    torch.manual_seed(0)
    lazy = torch.nn.Parameter(torch.randn(shape, dtype=dtype))
    plain = torch.nn.Parameter(lazy.detach().clone())
    one, other = LazyAdam([{"params": [lazy], "lr": 0.1}]), torch.optim.Adam([plain], lr=0.1)
    for _ in range(7):
        grad = torch.randn(shape, dtype=dtype)
        lazy.grad, plain.grad = grad.to_sparse(1), grad
        one.step()
        other.step()
        torch.testing.assert_close(lazy, plain)


def test_lazy_adam_leaves_other_rows_alone(form):
    table = torch.nn.Parameter(torch.randn(8, 3))
    before = table.detach().clone()
    optimizer = LazyAdam([{"params": [table], "lr": 0.1}])
    for rows in ([5, 1], [1], [], [1, 6]):
        values = torch.ones(len(rows), 3)
        table.grad = torch.sparse_coo_tensor(
            torch.tensor([rows], dtype=torch.int64), values, table.shape
        )
        optimizer.step()
    moved = (table != before).any(1)
    assert moved.nonzero().flatten().tolist() == [1, 5, 6]
    moments = optimizer.state[table]["moments"]
    assert not moments[~moved].any()
    assert (moments[1, 0] > moments[5, 0]).all()


def two(name):
    """One model with dense gradients and its copy with row-sparse ones."""
    schema = toy_schema(tasks=3, bags=1, vocab=40)
    batch = doubled(toy_batch(schema, 24))
    dense = build(name, schema).double().eval()
    sparse = copy.deepcopy(dense)
    sparse.use(replace(sparse.fast_paths, sparse_from=1))
    return dense, sparse, batch


def grads(model):
    return {
        name: torch.zeros_like(value) if value.grad is None else value.grad.to_dense()
        for name, value in model.named_parameters()
    }


@pytest.mark.parametrize("scope", ["dense", "all"])
@pytest.mark.parametrize("name", NAMES)
def test_steps_are_the_same(name, scope):
    dense, sparse, batch = two(name)
    one, other = (loop_step(model, batch, scope=scope) for model in (dense, sparse))
    tables = [sliced for sliced in other.sharing.parameters if sliced.sparse]
    assert {sliced.name for sliced in tables} == {
        i.name for i in other.sharing.parameters if i.is_embedding
    }
    torch.testing.assert_close(one.gramian(), other.gramian())
    if scope == "all":
        assert other.jacobian().shape[1] < one.jacobian().shape[1], (
            "rows that the batch lacks are not there"
        )
    assert (
        sum(part.stop - part.start for part in other.jacobian_columns().values())
        == other.jacobian().shape[1]
    )
    for sliced in tables:
        torch.testing.assert_close(one.grad_norms(sliced.name), other.grad_norms(sliced.name))
    weights = torch.tensor([0.5, 2.0, 0.7], dtype=torch.float64)
    for heads in ("weighted", "plain"):
        for ask in (False, True):
            for model in (dense, sparse):
                model.zero_grad()
                step = loop_step(model, batch, scope=scope)
                if ask:
                    step.jacobian()
                step.apply(weights, heads, 0.5)
            torch.testing.assert_close(grads(sparse), grads(dense))


@pytest.mark.parametrize("scope", ["dense", "all", "representation"])
@pytest.mark.parametrize("name", ["mmoe", "stem"])
def test_directions_are_the_same(name, scope):
    dense, sparse, batch = two(name)
    for model in (dense, sparse):
        model.use(
            replace(model.fast_paths, fuse=scope != "representation")
        )  # which is then a tensor
        step = loop_step(model, batch, scope=scope)
        step.apply(
            SharedGradient(torch.tensor([1.0, -2.0, 0.5]).double() @ step.jacobian(), scope),
            "weighted",
            1.0,
        )
    torch.testing.assert_close(grads(sparse), grads(dense))


def test_reach_is_the_same():
    for name in MODELS.names():
        if MODELS.load(name).inapplicable(toy_schema(tasks=3, bags=1, vocab=40)) is None:
            dense, sparse, batch = two(name)
            for one, other in zip(
                SharedParameters(dense, batch).parameters,
                SharedParameters(sparse, batch).parameters,
                strict=True,
            ):
                assert torch.equal(one.reached_by, other.reached_by), (name, one.name)


def trained(trainer, data, sparse_rows, **settings):
    run = trainer(data, MODEL, sparse_rows=sparse_rows, **settings)
    run.fit()
    return run, {name: value.detach() for name, value in run.model.named_parameters()}


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "lr": 0.3},
        {"optimizer": "adagrad", "lr": 0.1},
        {"optimizer": "sgd", "lr": 0.3, "clip_norm": 0.2},
        {"optimizer": "sgd", "lr": 0.3, "accumulate": 2},
        {"optimizer": "adam", "lr": 0.01, "batch_size": 320},  # which holds every id in every step
        {"optimizer": "adam", "lr": 0.01, "batch_size": 320, "l2_embedding": 0.1},
        {"optimizer": "adamw", "lr": 0.01, "batch_size": 320, "l2_embedding": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("balancer", ["uniform", "mgda"])
def test_training_is_that_of_dense_gradients(trainer, pair, balancer, settings):
    settings = {"balancer": balancer, "epochs": 2, "batch_size": 16, "scope": "all"} | settings
    dense, expected = trained(trainer, pair, 10**9, **settings)
    sparse, found = trained(trainer, pair, 1, **settings)
    assert dense.optimizer.lazy is None
    assert sparse.optimizer.lazy is not None
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adagrad", "sgd"])
def test_rows_that_a_batch_lacks_stay(trainer, optimizer):
    data = toy_dataset(toy_schema(tasks=2, vocab=200), rows=320)
    run = trainer(
        data, MODEL, optimizer=optimizer, lr=0.1, sparse_rows=1, l2_embedding=0.1, batch_size=16
    )
    table = run.model.embedding.width_8
    from mtlkit.training.running_means import RunningMeans

    batches, take = [], run.splits["train"].take
    run.splits["train"].take = lambda *rows: (batches.append(take(*rows)), batches[-1])[1]
    run.model.train()
    for index in range(3):
        before = table.detach().clone()
        run._train_step(index, RunningMeans(2, run.device))
        rows = (batches[-1].ids + run.model.embedding.width_8_offsets).unique().long()
        moved = (table.detach() != before).any(1).nonzero().flatten()
        assert set(moved.tolist()) <= set(rows.tolist())
        assert len(moved) >= len(rows) - 3  # all but perhaps the ids that say nothing


@pytest.mark.parametrize(
    "balancer", ["pcgrad", "graddrop", "metabalance", "gradnorm", "imtl-g", "famo"]
)
@pytest.mark.parametrize("scope", ["dense", "all"])
def test_balancers_train(trainer, pair, balancer, scope):
    result = trainer(
        pair, MODEL, balancer, sparse_rows=1, scope=scope, epochs=2, accumulate=2, probes=True
    ).fit()
    assert all(found["auc"] > 0.4 for found in result.metrics["test"].values())


def test_what_cannot_be_is_refused(trainer, pair):
    for balancer in ("moco", "db-mtl", "excessmtl", "sdmgrad"):
        with pytest.raises(UsageError, match="compares gradients"):
            trainer(pair, MODEL, balancer, sparse_rows=1, scope="all")
        trainer(pair, MODEL, balancer, sparse_rows=1, scope="dense")
    with pytest.raises(UsageError, match="no lazy form"):
        trainer(pair, MODEL, optimizer="sgd", momentum=0.9, sparse_rows=1)
