import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mtlkit.settings import TrainingSettings
from mtlkit.training.optimizers import START, Optimizers, learning_rate_factor
from tests.models.build import build
from tests.toy import toy_batch, toy_dataset, toy_schema
from tests.training.steps import loop_step

OPTIMIZERS = ["adam", "adamw", "adagrad", "sgd"]
SCHEDULES = ["constant", "onecycle", "cosine", "linear"]


def factors(schedule, total=100, warmup=0.3):
    settings = TrainingSettings(schedule=schedule, warmup=warmup)
    return [learning_rate_factor(settings, step, total) for step in range(total)]


def test_onecycle():
    values = factors("onecycle")
    assert START == 0.04
    assert START < values[0] < 1.1 * START
    assert values[30] == 1
    assert values[65] == pytest.approx(0.5)
    assert 0 < values[-1] < 0.001
    assert values[:31] == sorted(values[:31])
    assert values[30:] == sorted(values[30:], reverse=True)
    middle = START + (1 - START) * (1 - math.cos(math.pi * 15 / 31)) / 2
    assert values[14] == pytest.approx(middle)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_warmup_is_a_straight_line(schedule):
    values = factors(schedule)
    assert values[:30] == pytest.approx([(step + 1) / 31 for step in range(30)])
    assert values[30] == 1
    assert values[65] == pytest.approx(0.5)
    fall = {"cosine": (1 + math.cos(math.pi / 7)) / 2, "linear": 1 - 1 / 7}[schedule]
    assert values[40] == pytest.approx(fall)
    assert 0 < values[-1] < 0.02


def test_constant():
    assert set(factors("constant")) == {1.0}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_warmup_the_peak_comes_first(schedule):
    assert factors(schedule, warmup=0)[0] == 1


@given(st.sampled_from(SCHEDULES), st.integers(1, 300), st.floats(0, 0.99))
def test_factors_are_shares_and_no_step_is_in_vain(schedule, total, warmup):
    values = factors(schedule, total, warmup)
    assert all(0 < value <= 1 for value in values)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(3, 2)
        self.bottom = nn.Linear(2, 2)


def test_embeddings_are_a_group_of_their_own():
    model = Model()
    settings = TrainingSettings(lr=0.1, embedding_lr=0.3, l2_dense=0.01, l2_embedding=0.02)
    dense, tables = Optimizers(model, settings).param_groups
    assert {id(p) for p in dense["params"]} == {id(p) for p in model.bottom.parameters()}
    assert {id(p) for p in tables["params"]} == {id(model.embedding.weight)}
    assert (dense["lr"], tables["lr"]) == (0.1, 0.3)
    assert (dense["weight_decay"], tables["weight_decay"]) == (0.01, 0.02)


def test_one_learning_rate_unless_two_are_given():
    (group,) = Optimizers(Model(), TrainingSettings(lr=0.1)).param_groups
    assert (group["lr"], len(group["params"])) == (0.1, 3)


def test_a_model_without_embeddings_has_one_group():
    assert len(Optimizers(nn.Linear(2, 2), TrainingSettings()).param_groups) == 1


def test_parameters_may_have_a_factor_of_their_own():
    model = Model()
    factors = {"bottom.": 3.0, "bottom.bias": 0.5, "embedding.": 2.0, "other.": 9.0}
    optimizer = Optimizers(model, TrainingSettings(lr=0.1, embedding_lr=0.3), factors)
    rates = {
        id(value): group["peak"] for group in optimizer.param_groups for value in group["params"]
    }
    assert len(rates) == len(list(model.parameters()))
    assert rates[id(model.bottom.weight)] == pytest.approx(0.3)
    assert rates[id(model.bottom.bias)] == pytest.approx(0.05)  # the longest prefix counts
    assert rates[id(model.embedding.weight)] == pytest.approx(0.6)


def test_a_model_sets_factors_and_the_schedule_keeps_them(trainer):
    run = trainer(toy_dataset(toy_schema(), rows=320), "cross-stitch[stitch_lr=5]", lr=0.1)
    run.optimizer.set_learning_rate(0.5)
    stitches = {id(value) for value in run.model.stitches.parameters()}
    rates = {
        id(value) in stitches: group["lr"]
        for group in run.optimizer.param_groups
        for value in group["params"]
    }
    assert rates == pytest.approx({True: 0.25, False: 0.05})


def test_a_factor_scales_the_peak_of_every_group():
    optimizer = Optimizers(Model(), TrainingSettings(lr=0.1, embedding_lr=0.3))
    for factor in (0.5, 0.25):
        optimizer.set_learning_rate(factor)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [0.1 * factor, 0.3 * factor]
        )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("which", ["l2_dense", "l2_embedding"])
def test_l2_shrinks_its_own_part_only(name, which):
    model = Model()
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimizer = Optimizers(model, TrainingSettings(optimizer=name, lr=0.01, **{which: 0.5}))
    for value in model.parameters():
        value.grad = torch.zeros_like(value)
    optimizer.step()
    for key, value in model.named_parameters():
        shrunk = key.startswith("embedding") == (which == "l2_embedding")
        assert torch.equal(value, before[key]) != shrunk, key
        assert (value.abs() <= before[key].abs()).all()
        if shrunk and name in {"sgd", "adamw"}:
            torch.testing.assert_close(value.detach(), before[key] * (1 - 0.01 * 0.5))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_rule_is_that_of_its_name(name):
    classes = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "adagrad": torch.optim.Adagrad,
        "sgd": torch.optim.SGD,
    }
    optimizer = Optimizers(Model(), TrainingSettings(optimizer=name, momentum=0.5))
    assert type(optimizer.dense) is classes[name]
    assert optimizer.lazy is None
    assert optimizer.param_groups[0].get("momentum") == (0.5 if name == "sgd" else None)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains(trainer, name):
    data = toy_dataset(toy_schema(), rows=320)
    lr = {"sgd": 0.5, "adagrad": 0.1}.get(name, 0.02)
    run = trainer(data, optimizer=name, lr=lr, epochs=6)
    curve = run.fit().curve
    for task in ("t1", "t2"):
        assert curve[-1]["train_loss"][task] < 0.9 * curve[0]["train_loss"][task]


def test_the_learning_rate_of_every_step_is_the_schedules(trainer, monkeypatch):
    seen = []
    run = trainer(
        toy_dataset(toy_schema(), rows=320), lr=0.1, embedding_lr=0.2, schedule="linear", warmup=0.5
    )
    step = run.optimizer.step
    monkeypatch.setattr(
        run.optimizer,
        "step",
        lambda: (seen.append([g["lr"] for g in run.optimizer.param_groups]), step()),
    )
    run.fit()
    expected = [learning_rate_factor(run.settings, index, 10) for index in range(10)]
    assert run.total_steps == 10
    assert [dense for dense, _ in seen] == pytest.approx([0.1 * factor for factor in expected])
    assert [tables for _, tables in seen] == pytest.approx([0.2 * factor for factor in expected])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["mmoe", "stem", "ple", "single-task"])
def test_steps_after_task_gradients_are_those_of_one_backward(name, optimizer):
    """Fused optimisers read a gradient's memory in the parameter's order, whatever the gradient's
    strides.
    """
    schema = toy_schema(tasks=3)
    batch, plain = toy_batch(schema, 24), build(name, schema).eval()
    asked = copy.deepcopy(plain)
    for model in (plain, asked):
        optimizers = Optimizers(model, TrainingSettings(optimizer=optimizer, lr=0.05))
        for _ in range(3):
            optimizers.zero_grad()
            step = loop_step(model, batch)
            if model is asked:
                step.jacobian("all")
            step.apply(torch.tensor([1.0, 0.5, 2.0]), "weighted", 1.0)
            optimizers.step()
    for (where, one), other in zip(plain.named_parameters(), asked.parameters(), strict=True):
        torch.testing.assert_close(
            one, other, rtol=1e-3, atol=1e-4, msg=lambda text, where=where: f"{where}: {text}"
        )
