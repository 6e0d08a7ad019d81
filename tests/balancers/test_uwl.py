"""UWL: where it starts, where it rests, and that it passes 0 on the way."""

import math

import pytest
import torch

from tests.balancers.fakes import Case, FakeStep, families

ROWS = families(3)["random"].float()  # UWL never looks at them
LOSSES = torch.tensor([0.1, 0.4, 2.0])  # of a binary, a regression and a multiclass task


def train(balancer, losses, steps, active=None):
    for index in range(steps):
        weights = balancer(FakeStep(ROWS, losses, active, index))
    return weights


def test_starts_at_the_factors_of_the_paper():
    assert train(Case("uwl").make(3), LOSSES, 1).tolist() == [1, 0.5, 1]


def test_rests_at_one_over_twice_the_loss():
    """c exp(-s) L + s / 2 is least where c exp(-s) = 1 / (2 L), for every c."""
    balancer = Case("uwl", (("lr", 0.03),)).make(3)
    torch.testing.assert_close(train(balancer, LOSSES, 1500), 1 / (2 * LOSSES), rtol=1e-3, atol=0)


def test_small_losses_take_s_below_zero():
    balancer = Case("uwl", (("lr", 0.03),)).make(3)
    train(balancer, LOSSES, 1500)
    expected = torch.tensor([math.log(2 * 0.1), math.log(0.4), math.log(2 * 2.0)])
    torch.testing.assert_close(balancer.s, expected, rtol=1e-3, atol=1e-3)
    assert balancer.s[0] < 0 < balancer.s[2]


def test_descends_the_loss_of_the_paper():
    """The gradient that Adam gets is that of sum c exp(-s) L + s / 2."""
    balancer = Case("uwl").make(3)
    grads = []
    balancer.adam.step = lambda value, grad, active: grads.append(grad)
    with torch.no_grad():
        balancer.s.copy_(torch.tensor([-0.7, 0.3, 1.1]))
    train(balancer, LOSSES, 1)
    s = balancer.s.clone().requires_grad_()
    (torch.tensor([1.0, 0.5, 1.0]) * torch.exp(-s) * LOSSES + s / 2).sum().backward()
    torch.testing.assert_close(grads[0], s.grad)


def test_first_step_is_as_long_as_the_learning_rate():
    balancer = Case("uwl", (("lr", 0.2),)).make(3)
    train(balancer, LOSSES, 1)
    torch.testing.assert_close(
        balancer.s, 0.2 * torch.tensor([-1.0, -1.0, 1.0]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("steps", [1, 40])
def test_a_task_that_was_idle_goes_on_where_it_stopped(steps):
    """Its Adam has counted no step, so that it moves as if the idle batches had not been."""
    with_pause, without = Case("uwl").make(3), Case("uwl").make(3)
    for balancer in (with_pause, without):
        train(balancer, LOSSES, 5)
    train(with_pause, LOSSES, steps, active=torch.tensor([False, True, True]))
    for balancer in (with_pause, without):
        train(balancer, LOSSES, 5)
    assert torch.equal(with_pause.s[0], without.s[0])
    assert not torch.equal(with_pause.s[1], without.s[1])
