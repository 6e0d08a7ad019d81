"""Own learning rates and update frequencies of tasks."""

import copy

import pytest
import torch

from mtlkit.errors import UsageError
from mtlkit.training.running_means import RunningMeans
from tests.toy import toy_dataset, toy_schema


@pytest.fixture(scope="module")
def pair():
    return toy_dataset(toy_schema(tasks=2), rows=320)


def steps(run, count):
    window = RunningMeans(len(run.tasks), run.device)
    run.model.train()
    for index in range(count):
        run._train_step(index, window)
    return window


def values(run):
    return {name: value.detach().clone() for name, value in run.model.named_parameters()}


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "adagrad"])
def test_a_task_moves_its_own_parameters_at_its_own_rate(trainer, pair, optimizer):
    settings = {"optimizer": optimizer, "l2_dense": 0.01, "schedule": "constant"}
    plain = trainer(pair, "mmoe[experts=2,hidden=5]", **settings)
    before = values(plain)
    fast = trainer(pair, "mmoe[experts=2,hidden=5]", task_lr={"t1": 3.0, "t2": 0.0}, **settings)
    steps(plain, 1)
    steps(fast, 1)
    slices = {item.name: item for item in plain.sharing.slices}
    moved = {1.0: 0, 3.0: 0, 0.0: 0}
    for name, start in before.items():
        item = slices[name]
        for s in range(item.reached_by.shape[1]):
            owners = item.reached_by[:, s].nonzero().flatten().tolist()
            factor = {0: 3.0, 1: 0.0}[owners[0]] if len(owners) == 1 else 1.0

            def of(value, item=item, s=s):
                return value if item.axis is None else value.select(item.axis, s)

            step = of(values(plain)[name]) - of(start)
            torch.testing.assert_close(
                of(values(fast)[name]) - of(start), factor * step, rtol=1e-3, atol=1e-7
            )
            moved[factor] += int(bool(step.any()))
    assert all(moved.values())


def test_a_task_takes_part_in_every_nth_step(trainer, pair):
    run = trainer(pair, task_every={"t2": 3})
    seen, own = [], run._step
    run._step = lambda *arguments: (
        made := own(*arguments),
        seen.append((made.active.tolist(), made.losses)),
    )[0]
    window = steps(run, 7)
    assert [active for active, _ in seen] == [[True, index % 3 == 0] for index in range(7)]
    assert all(bool(losses[1]) == active[1] for active, losses in seen)
    assert window.count.tolist() == [7, 3]


def test_an_absent_task_leaves_no_gradient(trainer, pair):
    run = trainer(pair, optimizer="sgd", task_every={"t2": 2}, schedule="constant")
    steps(run, 1)
    before = copy.deepcopy(values(run))
    run._train_step(1, RunningMeans(2, run.device))
    for item in run.sharing.slices:
        for s in range(item.reached_by.shape[1]):
            if item.reached_by[:, s].tolist() == [False, True]:
                now, then = values(run)[item.name], before[item.name]
                same = (
                    torch.equal(now, then)
                    if item.axis is None
                    else torch.equal(now.select(item.axis, s), then.select(item.axis, s))
                )
                assert same, item.name


def test_names_and_phases_are_checked(trainer, pair):
    with pytest.raises(UsageError, match="no task 'x'"):
        trainer(pair, task_lr={"x": 2.0})
    with pytest.raises(UsageError, match="no task 'x'"):
        trainer(pair, task_every={"x": 2})
    with pytest.raises(UsageError, match="steps without any") as caught:
        trainer(pair, task_every={"t1": 2, "t2": 3})
    assert caught.value.hint == "--set task_every.t1=1"
