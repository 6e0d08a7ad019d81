"""Stacked cells are held to separate runs, which take the plain form of every operation."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle, islice

import numpy as np
import pytest
import torch

from mtlkit.data.splits import SPLITS
from mtlkit.errors import MtlkitError
from mtlkit.grid.build import build_model
from mtlkit.ops._dispatch import plain_operations
from mtlkit.registry import BALANCERS, MODELS
from mtlkit.settings import ExecutionSettings, TrainingSettings
from mtlkit.training import batches
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.result import DivergedError
from mtlkit.training.setup import TrainingSetup
from mtlkit.training.stacked import StackedTrainer, refusal
from mtlkit.training.trainer import Trainer
from tests.toy import toy_dataset, toy_schema
from tests.training.test_batches import shared

SMALL = {
    "embedding": 3,
    "tower": (4,),
    "bottom": (6,),
    "hidden": (5,),
    "experts": 3,
    "specific": 2,
    "shared": 1,
    "levels": 2,
    "dropout": 0.2,
}
CELLS = 3


@pytest.fixture
def double(monkeypatch):
    """Everything is computed in double precision."""

    def tensor(array):
        value = torch.from_numpy(np.array(array))
        return value.double() if value.dtype == torch.float32 else value

    monkeypatch.setattr(batches, "_tensor", tensor)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def mixed():
    schema = toy_schema(tasks=3, kinds=("binary", "regression", "multiclass"), bags=1)
    return toy_dataset(schema, rows=160, missing=0.7)


@pytest.fixture(scope="module")
def funnel():
    schema = toy_schema(tasks=3, bags=1)
    schema = schema.model_copy(update={"funnel": schema.task_names})
    return toy_dataset(schema, rows=160, missing=0.2)


def trainer(data, model, balancer, seed, *, options=None, balancer_options=None, **settings):
    model_class, balancer_class = MODELS.load(model), BALANCERS.load(balancer)
    chosen = SMALL | (options or {})
    fields = model_class.Options.model_fields
    chosen = {name: value for name, value in chosen.items() if name in fields}
    network = build_model(model_class, data.schema, model_class.Options(**chosen), seed)
    method = balancer_class(data.schema.tasks, balancer_class.Options(**(balancer_options or {})))
    defaults = {"epochs": 1, "batch_size": 32, "evaluations": 2, "clip_norm": 1.0}
    return Trainer(
        network,
        method if network.shares_parameters else None,
        data,
        TrainingSetup(
            TrainingSettings(**(defaults | settings)),
            ExecutionSettings(),
            seed,
            torch.device("cpu"),
        ),
    )


def check_equal(data, model, balancer, by_cell=None, **settings):
    """Cells that are stacked end with the weights and metrics of separate runs."""
    each = [{**settings, **values} for values in by_cell or [{}] * CELLS]

    def built():
        return [trainer(data, model, balancer, seed, **own) for seed, own in enumerate(each)]

    with plain_operations():
        expected = [run.fit() for run in built()]
    stacked = StackedTrainer(built())
    stacked.fit()
    assert stacked.errors == [None] * len(each)
    for one, other in zip(stacked.results, expected, strict=True):
        assert [point["step"] for point in one.curve] == [point["step"] for point in other.curve]
        assert one.best.keys() == other.best.keys()
        for name, value in other.weights.items():
            np.testing.assert_allclose(one.weights[name], value, rtol=0, atol=1e-9)
    return stacked


def pairs():
    """Every model, and every balancer that stacks, with one another; the balancer that meets
    single-task, which has none, with mmoe as well.
    """
    balancers = [name for name in BALANCERS.names() if BALANCERS.load(name).needs != "rows"]
    models = MODELS.names()
    count = max(len(models), len(balancers))
    both = list(islice(zip(cycle(models), cycle(balancers), strict=False), count))
    return both + [("mmoe", balancer) for model, balancer in both if model == "single-task"]


@pytest.mark.parametrize(("model", "balancer"), pairs())
def test_stacked_cells_are_separate_ones(double, mixed, funnel, model, balancer):
    model_class = MODELS.load(model)
    data = funnel if model_class.inapplicable(mixed.schema) or model_class.needs_funnel else mixed
    check_equal(data, model, balancer)


@pytest.mark.parametrize(
    "settings",
    [
        {"heads": "plain"},
        {"accumulate": 2},
        {"scope": "all"},
        {"task_every": {"t1": 2}, "task_weights": {"t2": 0.3}},
        {"task_lr": {"t2": 0.3}},
        {"batches": "covering", "patience": 1},
        {"optimizer": "adagrad", "l2_dense": 0.01},
        {"optimizer": "sgd", "momentum": 0.9},
        {"options": {"norm": "batch"}},
        {"options": {"numbers": "piecewise"}},
        {"options": {"numbers": "periodic"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("balancer", ["uniform", "upgrad"])
def test_settings_mean_the_same_in_a_stack(double, mixed, settings, balancer):
    check_equal(mixed, "ple", balancer, **settings)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_cells_have_learning_rates_of_their_own(double, mixed, optimizer):
    rates = [{"lr": 1e-3}, {"lr": 2e-3, "embedding_lr": 5e-3}, {"lr": 4e-3}]
    check_equal(mixed, "mmoe", "uwl", rates, optimizer=optimizer, l2_dense=0.1)


def test_cells_have_balancer_options_of_their_own(double, mixed):
    weights = [{"balancer_options": {"w": w}} for w in ((1, 2, 3), (3, 2, 1), (1, 1, 1))]
    check_equal(mixed, "shared-bottom", "static", weights)


def test_a_cell_that_diverges_fails_alone(double, mixed):
    rates = [{"lr": 1e-3}, {"lr": 1e30}, {"lr": 2e-3}]
    settings = {"optimizer": "sgd", "clip_norm": None, "schedule": "constant"}

    def built(cells):
        return [trainer(mixed, "mmoe", "pcgrad", k, **settings, **rates[k]) for k in cells]

    stacked = StackedTrainer(built(range(3)))
    stacked.fit()
    assert isinstance(stacked.errors[1], (DivergedError, MtlkitError))
    with plain_operations():
        expected = [run.fit() for run in built((0, 2))]
    for one, other in zip([stacked.results[0], stacked.results[2]], expected, strict=True):
        for name, value in other.weights.items():
            np.testing.assert_allclose(one.weights[name], value, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("balancer", "settings", "reason"),
    [
        ("graddrop", {}, "the rows of the Jacobian"),
        ("upgrad", {"scope": "representation"}, "scope=representation"),
        ("uniform", {"sparse_rows": 5}, "row-sparse"),
    ],
)
def test_what_cannot_be_stacked_is_refused_with_its_reason(mixed, balancer, settings, reason):
    run = trainer(mixed, "mmoe", balancer, 0, **settings)
    assert reason in refusal(run)
    with pytest.raises(ValueError, match=reason):
        StackedTrainer([run, trainer(mixed, "mmoe", balancer, 1, **settings)])


def test_models_of_different_shape_are_refused(mixed):
    runs = [trainer(mixed, "mmoe", "uniform", 0, options={"experts": n}) for n in (2, 3)]
    with pytest.raises(ValueError, match="shape"):
        StackedTrainer(runs)


def test_a_model_that_reads_numbers_on_the_host_is_refused(mixed, monkeypatch):
    forward = MODELS.load("mmoe").forward

    def looks(self, batch):
        if bool(batch.dense.sum() > 1e9):
            raise AssertionError
        return forward(self, batch)

    monkeypatch.setattr(MODELS.load("mmoe"), "forward", looks)
    with pytest.raises(ValueError, match="does not work in a stack"):
        StackedTrainer([trainer(mixed, "mmoe", "uniform", seed) for seed in (0, 1)])


def test_bags_that_rows_share_are_stacked(double):
    schema = toy_schema(bags=2)
    data = replace(toy_dataset(schema, rows=40), splits=dict.fromkeys(SPLITS, shared()))
    check_equal(data, "shared-bottom", "uniform", batch_size=8)


@pytest.mark.parametrize(
    "settings", [{}, {"batches": "covering", "patience": 1}, {"accumulate": 2}], ids=str
)
def test_rows_that_are_sent_are_gathered_by_a_thread(double, mixed, monkeypatch, settings):
    """As those of single runs are; here they are sent from one name of the CPU to another."""

    def in_a_thread(take, rows, device):
        with ThreadPoolExecutor(1, "mtlkit-batches") as thread:
            for arguments in rows:
                yield thread.submit(take, *arguments).result()

    threads = set()
    take = StackedTrainer.take

    def noted(stack, *arguments):
        threads.add(threading.current_thread().name)
        return take(stack, *arguments)

    monkeypatch.setattr(batches, "prefetched", in_a_thread)
    monkeypatch.setattr(DeviceSplit, "batch_device", property(lambda split: torch.device("cpu:0")))
    monkeypatch.setattr(StackedTrainer, "take", noted)
    stack = check_equal(mixed, "mmoe", "uwl", **settings)
    assert threads == {"mtlkit-batches_0", "MainThread"}, "the main thread tries the model out"
    assert next(stack._batches, None) is None, "no thread is left"
