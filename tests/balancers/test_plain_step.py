"""``balancer.backward`` in a loop of plain PyTorch, against autograd and against the trainer."""

import doctest

import numpy as np
import pytest
import torch
from torch import nn

import mtlkit.balancers._balancer
import mtlkit.balancers._build
from mtlkit.balancers._build import build
from mtlkit.data.types import Task
from mtlkit.errors import UsageError
from mtlkit.registry import BALANCERS
from tests.balancers.fakes import NAMES
from tests.toy import toy_dataset, toy_schema

TASKS = 3
ROWS = 16


class Net(nn.Module):
    """A trunk of two layers, and a head for each task."""

    def __init__(self, tasks=TASKS):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(tasks))

    def losses(self, seed=0):
        """T scalars."""
        rng = np.random.default_rng(seed)
        x = torch.from_numpy(rng.standard_normal((ROWS, 5))).float()
        y = torch.from_numpy(rng.standard_normal((ROWS, len(self.heads)))).float()
        hidden = self.trunk(x)
        return [
            (head(hidden)[:, 0] - y[:, t]).square().mean() * (t + 1)
            for t, head in enumerate(self.heads)
        ]


def grads(module):
    return {name: value.grad for name, value in module.named_parameters()}


def task_gradients(net, seed=0):
    """Parameter name to (T, ...) gradients by autograd; zeros where a task does not reach."""
    names, values = zip(*net.named_parameters(), strict=True)
    rows = []
    for loss in net.losses(seed):
        found = torch.autograd.grad(loss, values, allow_unused=True, retain_graph=True)
        rows.append(
            [torch.zeros_like(v) if g is None else g for v, g in zip(values, found, strict=True)]
        )
    return {
        name: torch.stack(by_task)
        for name, by_task in zip(names, zip(*rows, strict=True), strict=True)
    }


def weighted(gradients, weights):
    return {
        name: torch.einsum("t,t...->...", weights.to(value), value)
        for name, value in gradients.items()
    }


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("uniform", {}, [1, 1, 1]),
        ("static", {"w": (1, 2, 3)}, [0.5, 1, 1.5]),
        ("uwl", {}, [1, 1, 1]),
    ],
)
def test_gradients_are_the_weighted_sum_of_autograds(name, options, expected):
    net, balancer = Net(), build(name, TASKS, **options)
    weights = balancer.backward(net.losses(), net.trunk.parameters())
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(grads(net), weighted(task_gradients(net), weights))


def test_uwl_learns_from_step_to_step():
    net, balancer = Net(), build("uwl", TASKS, lr=0.1)
    first = balancer.backward(net.losses(), net.trunk.parameters())
    net.zero_grad()
    second = balancer.backward(net.losses(1), net.trunk.parameters())
    assert not torch.equal(first, second)
    torch.testing.assert_close(grads(net), weighted(task_gradients(net, 1), second))
    assert int(balancer.plain_steps) == 2


@pytest.mark.parametrize("name", ["imtl-g", "config", "aligned"])
def test_negative_weights_do_not_drive_heads_uphill(name):
    for seed in range(40):
        net, balancer = Net(), build(name, TASKS)
        weights = balancer.backward(net.losses(seed), net.trunk.parameters())
        gradients = task_gradients(net, seed)
        shared = weighted(gradients, weights)
        heads = weighted(gradients, weights.clamp_min(0))
        expected = {
            key: value if key.startswith("trunk") else heads[key] for key, value in shared.items()
        }
        torch.testing.assert_close(grads(net), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["graddrop", "metabalance", "moco", "db-mtl"])
def test_a_direction_is_for_the_shared_parameters_alone(name):
    net, balancer = Net(), build(name, TASKS)
    weights = balancer.backward(net.losses(), net.trunk.parameters())
    assert weights.tolist() == [1, 1, 1]
    gradients = task_gradients(net)
    uniform = weighted(gradients, weights)
    for key, value in grads(net).items():
        close = torch.allclose(value, uniform[key], rtol=1e-4, atol=1e-6)
        assert close == key.startswith("heads"), key


@pytest.mark.parametrize("name", ["uniform", "pcgrad", "imtl-g", "graddrop"])
def test_gradients_add_up(name):
    once, twice = Net(), Net()
    build(name, TASKS).backward(once.losses(), once.trunk.parameters())
    for value in twice.parameters():
        value.grad = torch.ones_like(value)
    build(name, TASKS).backward(twice.losses(), twice.trunk.parameters())
    for key, value in grads(once).items():
        torch.testing.assert_close(grads(twice)[key], value + 1, rtol=1e-5, atol=1e-6)


PLAIN = [name for name in NAMES if name != "sdmgrad"]


@pytest.mark.parametrize("name", PLAIN)
def test_every_balancer_trains(name):
    net, balancer = Net(), build(name, TASKS)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    before = torch.stack(net.losses()).sum()
    for _ in range(20):
        optimizer.zero_grad()
        weights = balancer.backward(net.losses(), net.trunk.parameters())
        assert weights.shape == (TASKS,)
        optimizer.step()
        balancer.after_step(net.losses())
    assert torch.stack(net.losses()).sum() < before


def test_a_plain_loop_has_no_independent_batches():
    net = Net()
    with pytest.raises(UsageError, match="gradients of independent batches") as caught:
        build("sdmgrad", TASKS).backward(net.losses(), net.trunk.parameters())
    assert "another balancer" in caught.value.hint


def test_losses_may_be_one_tensor_and_the_graph_may_be_kept():
    net, other = Net(), Net()
    losses = torch.stack(net.losses())
    one = build("mgda", TASKS).backward(losses, net.trunk.parameters(), retain_graph=True)
    two = build("mgda", TASKS).backward(other.losses(), other.trunk.parameters())
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(grads(net), grads(other))
    losses.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        losses.sum().backward()


@pytest.mark.parametrize("name", ["uniform", "pcgrad", "gradnorm", "graddrop"])
def test_a_loss_without_a_graph_is_idle(name):
    net = Net()
    losses = net.losses()
    losses[1] = torch.tensor(torch.nan)  # the mean over no row
    weights = build(name, TASKS).backward(losses, net.trunk.parameters())
    assert weights[1] == 0 or name == "graddrop"
    assert net.heads[1].weight.grad is None
    assert net.heads[0].weight.grad.any()


def test_famo_waits_for_the_losses_after_the_step():
    net, balancer = Net(), build("famo", TASKS)
    balancer.backward(net.losses(), net.trunk.parameters())
    with pytest.raises(UsageError, match="FAMO waits") as caught:
        balancer.backward(net.losses(), net.trunk.parameters())
    assert "after_step" in caught.value.hint
    before = balancer.logits.clone()
    balancer.after_step([loss * (0.9 - 0.1 * t) for t, loss in enumerate(net.losses())])
    assert not torch.equal(balancer.logits, before)
    balancer.backward(net.losses(), net.trunk.parameters())


def test_randomness_follows_from_the_seed_and_state_goes_on():
    def weights(steps, balancer=None, seed=3):
        torch.manual_seed(seed)
        net, balancer = Net(), balancer or build("rlw", TASKS)
        torch.manual_seed(seed)
        made = [balancer.backward(net.losses(), net.trunk.parameters()) for _ in range(steps)]
        return balancer, torch.stack(made)

    first, one = weights(3)
    _, other = weights(3)
    assert torch.equal(one, other)
    assert not torch.equal(one[0], one[1])
    resumed = build("rlw", TASKS)
    resumed.load_state_dict(first.state_dict())
    assert torch.equal(weights(1, first)[1], weights(1, resumed)[1])


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (lambda net: net.losses()[:2], "2 losses for 3 tasks"),
        (lambda net: [torch.ones(2), *net.losses()[1:]], r"A loss has shape \(2,\)"),
        (lambda net: torch.ones(3, 2), r"losses have shape \(3, 2\)"),
        (lambda net: torch.ones(3), "No loss needs a gradient"),
    ],
)
def test_losses_that_make_no_sense(losses, words):
    net = Net()
    with pytest.raises(UsageError, match=words):
        build("uniform", TASKS).backward(losses(net), net.trunk.parameters())


@pytest.mark.parametrize(
    "name", ["uniform", "uwl", "mgda", "pcgrad", "upgrad", "nash", "gradnorm", "cagrad", "config"]
)
@pytest.mark.parametrize("tasks", [2, 3])
def test_equals_the_trainer_on_mmoe(trainer, name, tasks):
    """The same batch, the same parameters: the same weights and the same gradients."""
    data = toy_dataset(toy_schema(tasks=tasks), rows=160)
    run = trainer(data, "mmoe[experts=3,hidden=5,tower=4,embedding=3]", name)
    batch = next(run.stream)
    step = run._step(batch, 0)
    expected = step.apply(run.balancer.decide(step), "weighted", 1.0, run.balancer.signed)
    by_trainer = {name: value.grad.clone() for name, value in run.model.named_parameters()}

    run.model.zero_grad()
    shared = [item.parameter for item in run.sharing.scope("dense")]
    method = BALANCERS.load(name)
    balancer = method(data.schema.tasks, method.Options())
    torch.manual_seed(step.seed)
    objectives = run.model.objectives(run.model(batch), batch)
    weights = balancer.backward([objective.loss for objective in objectives], shared)

    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6)
    for key, value in run.model.named_parameters():
        if weights.min() >= 0 or key.startswith("towers"):
            torch.testing.assert_close(value.grad, by_trainer[key], rtol=1e-5, atol=1e-6)


def test_tasks_are_a_number_names_or_tasks():
    assert [task.name for task in build("uniform", 2).tasks] == ["task 1", "task 2"]
    assert [task.name for task in build("uniform", ("a", "b")).tasks] == ["a", "b"]
    regression = Task(name="y", kind="regression", losses=("mse",))
    assert build("uwl", [regression, Task(name="z")]).factor.tolist() == [0.5, 1]


def test_options_are_checked_like_those_of_a_grid():
    assert build("mgda[normalize=l2]", 2).options.normalize == "l2"
    assert build("mgda[normalize=l2]", 2, normalize="none").options.normalize == "none"
    with pytest.raises(UsageError, match="Did you mean normalize"):
        build("mgda", 2, normalise="l2")
    with pytest.raises(UsageError, match="Did you mean pcgrad"):
        build("pc-grad", 2)
    with pytest.raises(UsageError, match="static needs one positive weight"):
        build("static", 3, w=(1, 2))


def test_a_plugin_file_works_too(plugin, tmp_path):
    path = plugin(tmp_path, "mine.py", "return torch.softmax(step.losses, 0)")
    net = Net()
    weights = build(path, TASKS).backward(net.losses(), net.trunk.parameters())
    assert float(weights.sum()) == pytest.approx(TASKS)


@pytest.mark.parametrize("module", [mtlkit.balancers._balancer, mtlkit.balancers._build])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
