"""Own learning rates and update frequencies of tasks."""

import copy

import pytest
import torch

from mtlkit.errors import UsageError
from mtlkit.training.running_means import RunningMeans
from tests.training.runs import parameters, watch_steps


def steps(run, count):
    window = RunningMeans(len(run.tasks), run.device)
    run.model.train()
    for index in range(count):
        run._train_step(index, window)
    return window


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "adagrad"])
def test_a_task_moves_its_own_parameters_at_its_own_rate(trainer, pair, optimizer):
    settings = {"optimizer": optimizer, "l2_dense": 0.01, "schedule": "constant"}
    plain = trainer(pair, "mmoe[experts=2,hidden=5]", **settings)
    before = parameters(plain)
    fast = trainer(pair, "mmoe[experts=2,hidden=5]", task_lr={"t1": 3.0, "t2": 0.0}, **settings)
    steps(plain, 1)
    steps(fast, 1)
    slices = {sliced.name: sliced for sliced in plain.sharing.parameters}
    moved = {1.0: 0, 3.0: 0, 0.0: 0}
    for name, start in before.items():
        sliced = slices[name]
        for s in range(sliced.reached_by.shape[1]):
            owners = sliced.reached_by[:, s].nonzero().flatten().tolist()
            factor = {0: 3.0, 1: 0.0}[owners[0]] if len(owners) == 1 else 1.0

            def of(value, sliced=sliced, s=s):
                return value if sliced.axis is None else value.select(sliced.axis, s)

            step = of(parameters(plain)[name]) - of(start)
            torch.testing.assert_close(
                of(parameters(fast)[name]) - of(start), factor * step, rtol=1e-3, atol=1e-7
            )
            moved[factor] += int(bool(step.any()))
    assert all(moved.values())


def test_a_task_takes_part_in_every_nth_step(trainer, pair):
    run = trainer(pair, task_every={"t2": 3})
    seen = watch_steps(run)
    window = steps(run, 7)
    assert [step.active.tolist() for step in seen] == [[True, i % 3 == 0] for i in range(7)]
    assert all(bool(step.losses[1]) == bool(step.active[1]) for step in seen)
    assert window.count.tolist() == [7, 3]


def test_an_absent_task_leaves_no_gradient(trainer, pair):
    run = trainer(pair, optimizer="sgd", task_every={"t2": 2}, schedule="constant")
    steps(run, 1)
    before = copy.deepcopy(parameters(run))
    run._train_step(1, RunningMeans(2, run.device))
    for sliced in run.sharing.parameters:
        for s in range(sliced.reached_by.shape[1]):
            if sliced.reached_by[:, s].tolist() == [False, True]:
                now, then = parameters(run)[sliced.name], before[sliced.name]
                same = (
                    torch.equal(now, then)
                    if sliced.axis is None
                    else torch.equal(now.select(sliced.axis, s), then.select(sliced.axis, s))
                )
                assert same, sliced.name


def test_names_and_phases_are_checked(trainer, pair):
    with pytest.raises(UsageError, match="no task 'x'"):
        trainer(pair, task_lr={"x": 2.0})
    with pytest.raises(UsageError, match="no task 'x'"):
        trainer(pair, task_every={"x": 2})
    with pytest.raises(UsageError, match="steps without any") as caught:
        trainer(pair, task_every={"t1": 2, "t2": 3})
    assert caught.value.hint == "--set task_every.t1=1"
