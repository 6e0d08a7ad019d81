"""``torch.compile`` is an option that changes no number, and whose failure is a warning."""

import functools

import pytest
import torch

from mtlkit.models._tables import FastPaths
from mtlkit.registry import MODELS
from mtlkit.training.compiled import CompiledForward
from mtlkit.training.scoring import autocast
from tests.toy import toy_dataset, toy_schema

MMOE = "mmoe[experts=3,hidden=8,tower=4,embedding=3]"


@pytest.fixture
def compiler(monkeypatch):
    """Replaces the compiler behind ``torch.compile`` and counts the shapes that it compiles."""
    torch._dynamo.reset()
    seen = []

    def use(backend):
        def counted(graph, examples):
            seen.append(
                [tuple(value.shape) for value in examples if isinstance(value, torch.Tensor)]
            )
            return backend(graph, examples)

        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counted))
        return seen

    return use


def plain(graph, examples):
    return graph.forward


def compiled_fit(trainer):
    """Train with a compiled body."""
    stand_in = CompiledForward(trainer.model, trainer.settings.batch_size, trainer.warnings.append)
    batch = trainer.train.take(torch.arange(trainer.settings.batch_size))
    stand_in.try_out(batch, autocast(trainer.device, trainer.settings.precision))
    return stand_in, trainer.fit()


def assert_same(one, two, tolerance):
    assert [point["step"] for point in one.curve] == [point["step"] for point in two.curve]
    for a, b in zip(one.curve, two.curve, strict=True):
        assert a["train_loss"] == {
            name: pytest.approx(loss, rel=tolerance) for name, loss in b["train_loss"].items()
        }
    for name, found in one.metrics["test"].items():
        for metric in ("logloss", "mse"):
            if metric in found:
                assert found[metric] == pytest.approx(
                    two.metrics["test"][name][metric], rel=tolerance
                )


@pytest.mark.parametrize(
    ("model", "balancer", "more"),
    [
        (MMOE, "uniform", {}),
        (MMOE, "upgrad", {}),
        (
            "ple[specific=1,shared=1,hidden=8,tower=4,embedding=3]",
            "mgda",
            {"scope": "representation"},
        ),
        (
            "shared-bottom[bottom=8,tower=4,embedding=3,norm=batch,dropout=.3]",
            "pcgrad",
            {"accumulate": 2, "optimizer": "sgd"},
        ),
    ],
)
def test_numbers_are_those_of_the_plain_run(trainer, compiler, model, balancer, more):
    data = toy_dataset(toy_schema(), rows=200)
    uncompiled = trainer(data, model, balancer, **more)
    # a folded layer and one kernel for gates and experts sum in another order, which Adam can
    # amplify
    uncompiled.model.use(FastPaths(fold=False, fuse=False))
    wanted = uncompiled.fit()
    graphs = compiler(plain)
    stand_in, found = compiled_fit(trainer(data, model, balancer, **more))
    assert stand_in.working
    assert found.warnings == []
    assert len(graphs) == 1, "batches of training alone, at one size"
    assert (32, 11) in graphs[0], "x, above which all is compiled"
    # sgd with batch norm: a bias in front of it has no gradient but rounding errors, of which Adam
    # makes whole steps
    assert_same(found, wanted, 1e-6)


def no_compiler(graph, examples):
    raise RuntimeError("no C++ compiler\nfound")


def test_without_a_compiler_the_run_is_the_plain_one(trainer, compiler):
    data = toy_dataset(toy_schema(), rows=200)
    wanted = trainer(data, MMOE, "upgrad").fit()
    compiler(no_compiler)
    stand_in, found = compiled_fit(trainer(data, MMOE, "upgrad"))
    assert not stand_in.working
    (warning,) = found.warnings
    assert warning.startswith("torch.compile failed, the run went on without it: ")
    assert "\n" not in warning
    assert (found.curve, found.metrics) == (wanted.curve, wanted.metrics), (
        "bit for bit, kernels of our own included"
    )


def test_what_fails_in_the_middle_of_a_run_is_a_warning(trainer, monkeypatch):
    calls = []

    def fails_later(function, **_):
        def body(batch):
            calls.append(len(batch))
            if len(calls) > 5:
                raise RuntimeError("lost")
            return function(batch)

        return body

    data = toy_dataset(toy_schema(), rows=200)
    wanted = trainer(data, MMOE).fit()
    monkeypatch.setattr(torch, "compile", fails_later)
    stand_in, found = compiled_fit(trainer(data, MMOE))
    assert not stand_in.working
    assert calls == [32] * 6
    assert found.warnings == [
        "torch.compile failed, the run went on without it: RuntimeError: lost"
    ]
    assert_same(found, wanted, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS.names())
def test_every_architecture_compiles(trainer, compiler, model):
    schema = toy_schema()
    if MODELS.load(model).needs_funnel:
        schema = schema.model_copy(update={"funnel": schema.task_names})
    data = toy_dataset(schema, rows=200)
    wanted = trainer(data, model).fit()
    compiler(plain)
    stand_in, found = compiled_fit(trainer(data, model))
    part = model == "stem"  # its tasks share a part of the embedding only
    assert stand_in.working != part
    assert len(found.warnings) == len(wanted.warnings) + part
    assert_same(found, wanted, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_real_compiler(trainer, precision):
    torch._dynamo.reset()
    data = toy_dataset(toy_schema(), rows=200)
    wanted = trainer(data, MMOE, "upgrad", precision=precision).fit()
    stand_in, found = compiled_fit(trainer(data, MMOE, "upgrad", precision=precision))
    assert stand_in.working
    assert stand_in.seconds > 0
    assert_same(found, wanted, 1e-4 if precision == "fp32" else 3e-2)


def test_more_variants_of_a_model_than_the_compiler_keeps(trainer, compiler):
    data = toy_dataset(toy_schema(), rows=100)
    graphs = compiler(plain)
    for experts in range(1, 11):
        run = trainer(data, f"mmoe[experts={experts},hidden=3,tower=2,embedding=2]")
        stand_in = CompiledForward(run.model, 32, run.warnings.append)
        stand_in.try_out(run.train.take(torch.arange(32)), autocast(run.device, "fp32"))
        assert stand_in.working, run.warnings
    assert len(graphs) == 10


def test_a_compiler_that_cannot_even_be_set_up_is_a_warning(trainer, monkeypatch):
    monkeypatch.setattr(torch, "compile", no_compiler)
    run = trainer(toy_dataset(toy_schema(), rows=100), MMOE)
    foldable = run.model.fast_paths.fold
    assert not CompiledForward(run.model, 32, run.warnings.append).working
    assert "torch.compile failed" in run.warnings[-1]
    assert run.model.fast_paths.fold == foldable
