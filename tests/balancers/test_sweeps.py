"""Entries of a grid that stand for several balancers, and weights that are used for several steps."""

import numpy as np
import pytest
import torch

from mtlkit.balancers._simplex import simplex_points
from mtlkit.data.types import Task
from mtlkit.errors import UsageError
from mtlkit.registry import BALANCERS
from tests.balancers.fakes import Case, FakeStep, load

TASKS = [Task(name=name) for name in "abc"]
REUSING = [name for name in BALANCERS.names() if "update_every" in load(name).Options.model_fields]


def expand(name, tasks=2, **options):
    kind = load(name)
    return kind.expand(name, TASKS[:tasks], kind.Options(**options))


@pytest.mark.parametrize("tasks", [2, 3, 8])
@pytest.mark.parametrize("n", [2, 9, 30])
def test_points_lie_spread_over_the_simplex(tasks, n):
    points = simplex_points(tasks, n)
    assert points.shape == (n, tasks)
    assert points.min() > 0
    np.testing.assert_allclose(points.sum(1), 1)
    assert len(np.unique(points.round(6), axis=0)) == n
    if n == 30:  # every task is favoured by some point, and neglected by some
        assert (points.max(0) > 2 / tasks * 0.9).all()
        assert (points.min(0) < 0.5 / tasks).all()


def test_scalarization_is_static_weights_with_uniform_in_the_middle():
    cells = expand("scalarization", n=3)
    assert [name for name, _ in cells] == ["static", "uniform", "static"]
    assert [getattr(options, "w", None) for _, options in cells] == [(0.5, 1.5), None, (1.5, 0.5)]
    three = expand("scalarization", tasks=3, n=5)
    assert [name for name, _ in three] == ["uniform"] + ["static"] * 4
    for name, options in three[1:]:
        load(name)(TASKS, options)  # valid
        assert sum(options.w) == pytest.approx(3, abs=0.02)


def test_a_pareto_sweep_is_one_cell_a_preference():
    cells = expand("pareto", tasks=2, sweep=3, solver="paper")
    assert [options.c for _, options in cells] == [(0.2, 0.6), (0.4, 0.4), (0.6, 0.2)]
    assert all(name == "pareto" and o.sweep is None and o.solver == "paper" for name, o in cells)
    [(_, alone)] = expand("pareto")
    assert alone.c is None
    with pytest.raises(UsageError, match="not both"):
        expand("pareto", sweep=3, c=(0.1,))


def decide(balancer, jacobian, index, **given):
    step = FakeStep(jacobian, index=index, **given)
    return balancer.decide(step)


@pytest.mark.parametrize("name", REUSING)
def test_weights_are_used_again_without_a_question(name):
    case = Case(name, (("update_every", 3),))
    balancer, always = case.make(3), Case(name).make(3)
    rng = np.random.default_rng(0)
    for index in range(7):
        jacobian = torch.from_numpy(rng.standard_normal((3, 12)))
        losses = torch.from_numpy(rng.random(3))
        given = {"losses": losses} if index % 3 == 0 else {"losses": losses, "allowed": set()}
        weights = decide(balancer, jacobian, index, **given)
        if index == 0:
            torch.testing.assert_close(weights, decide(always, jacobian, 0, losses=losses))
        if index % 3 == 0:
            last = weights
        torch.testing.assert_close(weights, last, check_dtype=False)


def test_weights_are_made_sooner_for_a_task_without_one():
    balancer = Case("nash", (("update_every", 100),)).make(2)
    jacobian = torch.tensor([[2.0, 0], [0, 4]])
    first = decide(balancer, jacobian, 0, active=torch.tensor([True, False]))
    torch.testing.assert_close(first, torch.tensor([0.5, 0]))
    torch.testing.assert_close(decide(balancer, jacobian, 1), torch.tensor([0.5, 0.25]))
    idle = decide(balancer, 5 * jacobian, 2, active=torch.tensor([False, True]))
    torch.testing.assert_close(idle, torch.tensor([0, 0.25]))


def test_weights_of_zero_are_no_weights():
    balancer = Case("mgda", (("update_every", 100), ("normalize", "none"))).make(2)
    jacobian = torch.tensor([[1.0, 0], [3.0, 0]])
    torch.testing.assert_close(decide(balancer, jacobian, 0), torch.tensor([2.0, 0]))
    alone = decide(balancer, jacobian, 1, active=torch.tensor([False, True]))
    torch.testing.assert_close(alone, torch.tensor([0.0, 1]))


def test_weights_used_again_keep_the_scale_when_a_task_is_idle():
    balancer = Case("dwa", (("update_every", 10),)).make(3)
    jacobian = torch.eye(3)
    decide(balancer, jacobian, 0)
    weights = decide(balancer, jacobian, 1, active=torch.tensor([True, False, True]))
    torch.testing.assert_close(weights, torch.tensor([1.0, 0, 1]))


@pytest.mark.parametrize("name", ["metabalance", "moco", "db-mtl", "graddrop", "uniform", "static"])
def test_a_direction_is_not_used_again(name):
    assert "update_every" not in load(name).Options.model_fields
