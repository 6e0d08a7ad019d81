"""A step on static memory is the plain step, bit for bit; no graph is recorded here."""

from dataclasses import replace

import pytest
import torch

from mtlkit.balancers._balancer import GramBalancer
from mtlkit.data.splits import SPLITS
from mtlkit.errors import UsageError
from mtlkit.grid.build import make_balancer, make_model
from mtlkit.ops._dispatch import plain_operations
from mtlkit.registry import BALANCERS
from mtlkit.settings import ExecutionSettings, TrainingSettings
from mtlkit.training.cuda_graph import StackGraph, StepGraph, _make_room, refusal
from mtlkit.training.setup import TrainingSetup
from mtlkit.training.stacked import StackedTrainer
from mtlkit.training.trainer import Trainer
from tests.toy import toy_dataset, toy_schema
from tests.training.test_batches import shared

CONSTANT = {"schedule": "constant", "lr": 2**-7}
"""A learning rate that single precision holds as it is."""


def trainer(balancer="uniform", *, seed=0, bags=0, vocab=7, options="", **settings):
    data = toy_dataset(toy_schema(3, bags=bags, vocab=vocab), rows=160, missing=0.3)
    chosen = {"epochs": 2, "batch_size": 20, "evaluations": 2} | settings
    training = TrainingSettings(**chosen)
    model = make_model(f"mmoe[experts=2,hidden=4,tower=3,embedding=2{options}]", data, seed)
    method = make_balancer(balancer, data, training.scope)
    setup = TrainingSetup(training, ExecutionSettings(), seed, torch.device("cpu"))
    return Trainer(model, method, data, setup)


def same_every_step():
    return [name for name in BALANCERS.names() if BALANCERS.load(name).same_every_step]


def two_graphs():
    """Balancers that ask for a Gram matrix, and for nothing else."""
    loaded = {name: BALANCERS.load(name) for name in BALANCERS.names()}
    return [name for name, method in loaded.items() if method.forward is GramBalancer.forward]


def trained(run, on_static_memory):
    if on_static_memory:
        run.graph = StepGraph(run, record=False)
    result = run.fit()
    return result, torch.cat([value.detach().flatten() for value in run.model.parameters()])


@pytest.mark.parametrize("balancer", [*same_every_step(), *two_graphs()])
@pytest.mark.parametrize(
    "settings",
    [
        CONSTANT,
        CONSTANT | {"optimizer": "sgd", "momentum": 0.5, "options": ",norm=batch"},
        CONSTANT | {"optimizer": "adamw", "l2_dense": 0.1, "clip_norm": 0.1},
        CONSTANT | {"options": ",dropout=0.3", "embedding_lr": 2**-5},
    ],
    ids=["adam", "sgd", "adamw", "dropout"],
)
def test_a_step_on_static_memory_is_the_plain_one(balancer, settings):
    check_equal(balancer, settings)


@pytest.mark.parametrize("scope", ["all", "representation"])
def test_scopes_of_a_gram_matrix(scope):
    check_equal("cagrad", CONSTANT | {"scope": scope})


def test_accumulated_batches():
    check_equal("uwl", CONSTANT | {"accumulate": 2})


@pytest.mark.parametrize(
    ("balancer", "settings"),
    [
        ("uwl", {}),
        ("uwl", {"optimizer": "adamw", "l2_embedding": 0.1, "clip_norm": 0.1}),
        ("pcgrad", {"scope": "all", "l2_embedding": 0.1}),
    ],
    ids=str,
)
def test_row_sparse_tables(balancer, settings):
    check_equal(balancer, CONSTANT | {"sparse_rows": 1, "vocab": 5000} | settings)


@pytest.mark.parametrize(
    ("balancer", "settings"),
    [
        ("uwl", {}),
        ("uniform", {"accumulate": 2}),
        ("pcgrad", {"scope": "all"}),
        ("uniform", {"sparse_rows": 1, "vocab": 5000}),
    ],
    ids=str,
)
@pytest.mark.parametrize("data", ["own", "shared"])
def test_bags(data, balancer, settings, monkeypatch):
    """In room for more ids than a batch has."""
    if data == "shared":
        split = shared(rows=160)
        whole = replace(
            toy_dataset(toy_schema(3, bags=2), rows=9), splits=dict.fromkeys(SPLITS, split)
        )
        monkeypatch.setattr("tests.training.test_cuda_graph.toy_dataset", lambda *a, **k: whole)
    with plain_operations():
        check_equal(balancer, CONSTANT | {"bags": 2} | settings)


def test_room_for_bags_grows_and_then_graphs_are_recorded_anew():
    run = trainer(bags=2)
    graph = StepGraph(run, record=False)
    counts = [{"bag1": 8, "bag2": 0}, {"bag1": 9, "bag2": 0}, {"bag1": 10, "bag2": 1}]
    fits = []
    for count in counts:
        _make_room(graph.room, count, graph.pieces)
        fits.append(([piece.fits for piece in graph.pieces], dict(graph.room)))
        for piece in graph.pieces:
            piece.fits = True
    new, same = [False, False], [True, True]
    assert fits == [
        (new, {"bag1": 9, "bag2": 0}),
        (same, {"bag1": 9, "bag2": 0}),
        (new, {"bag1": 11, "bag2": 1}),
    ]


def stacked(balancer, **settings):
    """Three cells that differ in their seeds."""
    return StackedTrainer([trainer(balancer, seed=seed, **settings) for seed in range(3)])


@pytest.mark.parametrize(
    ("balancer", "settings"),
    [
        *((name, {"options": ",dropout=0.3"}) for name in same_every_step()),
        ("uwl", {"optimizer": "adamw", "l2_dense": 0.1, "clip_norm": 0.1, "accumulate": 2}),
        ("pcgrad", {"options": ",dropout=0.3", "clip_norm": 0.1}),
        ("gradvac", {"scope": "all"}),
        ("uniform", {"bags": 2, "accumulate": 2}),
        ("pcgrad", {"bags": 2}),
    ],
    ids=str,
)
def test_a_stacked_step_on_static_memory_is_the_plain_one(balancer, settings):
    found = []
    for on_static_memory in (False, True):
        stack = stacked(balancer, **CONSTANT, **settings)
        if on_static_memory:
            stack.graph = StackGraph(stack, record=False)
        stack.fit()
        assert stack.errors == [None] * 3
        found.append(stack)
    plain, static = found
    for one, other in zip(plain.results, static.results, strict=True):
        assert one.metrics == other.metrics
        assert one.cost["backward_passes_per_step"] == other.cost["backward_passes_per_step"]
    for name, value in plain.stack.parameters.items():
        assert torch.equal(value, static.stack.parameters[name]), name
        assert not torch.equal(value[0], value[1]) or "weight" not in name, "cells differ"


def test_a_stack_that_is_no_graph_says_why():
    with pytest.raises(UsageError, match="under DWA a step depends"):
        StackGraph(stacked("dwa"), record=False)
    with pytest.raises(UsageError, match="there is no GPU"):
        StackGraph(stacked("uniform"))


def check_equal(balancer, settings):
    plain, weights = trained(trainer(balancer, **settings), on_static_memory=False)
    other, static_weights = trained(trainer(balancer, **settings), on_static_memory=True)
    assert torch.equal(weights, static_weights)
    assert other.metrics == plain.metrics
    assert [point["train_loss"] for point in other.curve] == [
        point["train_loss"] for point in plain.curve
    ]
    assert other.cost["backward_passes_per_step"] == plain.cost["backward_passes_per_step"]


def test_a_learning_rate_that_changes_is_followed_in_single_precision():
    _, weights = trained(trainer("uwl"), on_static_memory=False)
    _, static_weights = trained(trainer("uwl"), on_static_memory=True)
    torch.testing.assert_close(static_weights, weights, rtol=1e-4, atol=1e-6)


def test_these_are_the_same_in_every_step():
    assert same_every_step() == ["gls", "imtl-l", "scalarization", "static", "uniform", "uwl"]


@pytest.mark.parametrize(
    ("balancer", "settings", "reason"),
    [
        ("pcgrad", {"accumulate": 2}, "several batches a step"),
        ("pcgrad[update_every=2]", {}, "update_every"),
        ("imtl", {}, "under IMTL a step depends"),
        ("dwa", {}, "under DWA a step depends"),
        ("uwl[update_every=2]", {}, "update_every"),
        ("uniform", {"sparse_rows": 1, "vocab": 5000, "optimizer": "sgd"}, "sgd moves the rows"),
        ("uniform", {"heads": "plain"}, "heads=plain"),
        ("uniform", {"task_every": {"t1": 2}}, "task_every"),
        ("uniform", {"batches": "covering"}, "covering"),
        ("uniform", {"optimizer": "adagrad"}, "adagrad"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_a_graph_says_why(balancer, settings, reason):
    run = trainer(balancer, **settings)
    assert reason in refusal(run)
    with pytest.raises(UsageError, match="A step cannot be one CUDA graph"):
        StepGraph(run, record=False)


def test_these_are_two_graphs():
    assert {"aligned", "cagrad", "mgda", "nash", "pcgrad", "upgrad"} <= set(two_graphs())
    assert "imtl" not in two_graphs(), "it asks for scaled gradients"


def test_without_a_gpu_no_graph_is_recorded():
    with pytest.raises(UsageError, match="there is no GPU"):
        StepGraph(trainer())
