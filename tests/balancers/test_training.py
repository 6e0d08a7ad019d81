"""Every balancer in the training loop: it trains on the architectures, and goes on from its state
bit for bit.
"""

import copy
import math
from itertools import cycle

import pytest
import torch

from mtlkit.errors import UsageError
from mtlkit.registry import MODELS
from mtlkit.training.running_means import RunningMeans
from tests.balancers.fakes import CASES, DEFAULTS
from tests.toy import toy_dataset, toy_schema
from tests.training.test_trainer import SMALL

OPTIONS = SMALL | {"dropout": "0.2"}
MIXED = toy_schema(tasks=3, kinds=("binary", "regression", "multiclass"), bags=1)
STEPS = 3  # before and after the interruption


def small(model):
    """A model with small options and dropout, as many of them as it has."""
    fields = MODELS.load(model).Options.model_fields
    return (
        f"{model}[{','.join(f'{key}={value}' for key, value in OPTIONS.items() if key in fields)}]"
    )


SMALL_MODELS = {name: small(name) for name in MODELS.names() if MODELS.load(name).shares_parameters}


def covering():
    """Every balancer on both data sets and each choice of its options on one, over all models in
    turn.
    """
    models = cycle(SMALL_MODELS)
    pairs = [("two", next(models), case) for case in CASES]
    next(models)  # another model for each balancer
    return pairs + [("three", next(models), case) for case in DEFAULTS]


@pytest.fixture(scope="module")
def data():
    """Two tasks with all labels; three of different kinds with so few that batches miss some task."""
    return {
        "two": toy_dataset(toy_schema(tasks=2), rows=160),
        "three": toy_dataset(MIXED, rows=160, missing=0.9),
        "binary three": toy_dataset(toy_schema(tasks=3, bags=1), rows=160, missing=0.9),
    }


def fitting(data, which, model):
    """The data set, with binary tasks for a model that takes them for a funnel."""
    kind = MODELS.load(model)
    try:
        kind.check(data[which].schema, kind.Options())
    except UsageError:
        return data[f"binary {which}"]
    return data[which]


class Drive:
    """A trainer, step by step.

    Args:
        run: The trainer.
    """

    def __init__(self, run):
        self.run, self.losses, self.idle, self.fresh = run, [], 0, 0
        self.window = RunningMeans(len(run.tasks), run.device)
        step, fresh = run._step, run._fresh_step
        run._step = lambda *arguments: self._seen(step(*arguments))
        run._fresh_step = lambda index: self._drawn(fresh(index))
        run.model.train()

    def _seen(self, step):
        self.losses.append(step.losses)
        self.idle += not step.active.all()
        return step

    def _drawn(self, step):
        self.fresh += 1
        return step

    def steps(self, first, count):
        for index in range(first, first + count):
            self.run._train_step(index, self.window)

    def state(self):
        run = self.run
        whole = {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}
        whole |= {
            "balancer": run.balancer.state_dict(),
            "random": torch.get_rng_state(),
            "fresh": self.fresh,
        }
        return copy.deepcopy(whole)

    def resume(self, state, done):
        """Go on where another run was after some steps: its states, and the streams of batches
        moved on.
        """
        run = self.run
        run.model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.balancer.load_state_dict(state["balancer"])
        for _ in range(done * run.settings.accumulate):
            next(run.stream)
        for _ in range(state["fresh"]):
            next(run.fresh)
        torch.set_rng_state(state["random"])

    def everything(self):
        own = (self.run.model.state_dict(), self.run.balancer.state_dict())
        return {f"{i}.{name}": value for i, part in enumerate(own) for name, value in part.items()}


def make(trainer, dataset, model, case, **settings):
    run = trainer(dataset, SMALL_MODELS[model], **settings)
    tasks = dataset.schema.tasks
    options = {k: [v(t) for t in range(len(tasks))] if callable(v) else v for k, v in case.options}
    run.balancer = case.kind(tasks, case.kind.Options.model_validate(options))
    return Drive(run)


def check(trainer, dataset, model, case, **settings):
    settings = {"batch_size": 16, "lr": 0.005, "seed": 3} | settings
    torch.manual_seed(0)
    first = make(trainer, dataset, model, case, **settings)
    before = copy.deepcopy(first.run.model.state_dict())
    first.steps(0, STEPS)
    state = first.state()
    first.steps(STEPS, STEPS)
    assert torch.stack(first.losses).isfinite().all()
    after = first.run.model.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(
        float((after[name] - before[name]).abs().max()) > 1e-4
        for name, _ in first.run.model.named_parameters()
    )
    second = make(trainer, dataset, model, case, **settings)
    second.resume(state, STEPS)
    second.steps(STEPS, STEPS)
    ours, theirs = first.everything(), second.everything()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value.nan_to_num(7.0), theirs[name].nan_to_num(7.0)), name
    return first


@pytest.mark.parametrize(("which", "model", "case"), covering(), ids=str)
def test_trains_and_resumes(trainer, data, which, model, case):
    drive = check(trainer, fitting(data, which, model), model, case)
    assert bool(drive.idle) == (which == "three")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["two", "three"])
@pytest.mark.parametrize("model", SMALL_MODELS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_balancer_on_every_model(trainer, data, which, model, case):
    check(trainer, fitting(data, which, model), model, case)


@pytest.mark.parametrize("case", [case for case in DEFAULTS if case.kind.needs != "gram"], ids=str)
def test_plain_heads_and_all_shared_parameters(trainer, data, case):
    check(trainer, data["three"], "shared-bottom", case, heads="plain", scope="all", accumulate=2)


@pytest.mark.parametrize("name", ["famo", "moco", "stch"])
def test_a_run_ends_with_finite_metrics(trainer, data, name):
    result = trainer(data["two"], SMALL_MODELS["mmoe"], name, epochs=2).fit()
    assert all(math.isfinite(found["auc"]) for found in result.metrics["test"].values())
