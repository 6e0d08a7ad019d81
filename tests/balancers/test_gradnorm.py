"""GradNorm: its update against autograd of the paper's loss, and what the training rates do."""

import pytest
import torch

from mtlkit.registry import BALANCERS, MODELS
from tests.balancers.fakes import WIDTH, Case, FakeStep

HALF = WIDTH // 2


def rows_with(norms):
    """(T, P) rows of these norms over the last weight, and of others elsewhere."""
    norms = torch.as_tensor(norms)
    rows = torch.randn(len(norms), WIDTH, generator=torch.Generator().manual_seed(0))
    rows[:, HALF:] *= (norms / rows[:, HALF:].norm(dim=1))[:, None]
    return rows


def gradnorm(count, **options):
    return Case("gradnorm", tuple(options.items())).make(count)


@pytest.mark.parametrize("name", ["gradnorm", "esmm", "escm2", "aitm"])
def test_info_says_what_the_last_shared_layer_is(name):
    registry = BALANCERS if name == "gradnorm" else MODELS
    text = " ".join(registry.docstring(name).split())
    assert "The last shared layer" in text or "The last layer that the networks share" in text
    assert name != "gradnorm" or "is at least 1e-3 before it is rescaled" in text


def paper_gradient(w, norms, losses, first, alpha):
    """d/dw of sum |w_t n_t - mean(w n) r_t^alpha|, with the target held fixed."""
    w = w.clone().requires_grad_()
    ratio = losses / first
    rate = ratio / ratio.mean()
    target = ((w * norms).mean() * rate**alpha).detach()
    (w * norms - target).abs().sum().backward()
    return w.grad


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_one_step_follows_the_loss_of_the_paper(count, alpha):
    torch.manual_seed(count)
    for _ in range(10):
        balancer = gradnorm(count, alpha=alpha, lr=0.1)
        first, losses = torch.rand(count) + 0.1, torch.rand(count) + 0.1
        norms = torch.rand(count) + 0.1
        w = torch.rand(count) + 0.5
        w *= count / w.sum()
        balancer.w.copy_(w)
        balancer.first.copy_(first)
        grads = []
        adam_step = balancer.adam.step

        def spy(value, grad, active, grads=grads, adam_step=adam_step):
            grads.append(grad.clone())
            adam_step(value, grad, active)

        balancer.adam.step = spy
        weights = balancer(FakeStep(rows_with(norms), losses))
        expected = paper_gradient(w, norms, losses, first, alpha)
        torch.testing.assert_close(weights, w)  # this step still uses the weights it came with
        torch.testing.assert_close(grads[0], expected, rtol=1e-4, atol=1e-5)
        moved = (w - 0.1 * expected.sign()).clamp_min(1e-3)  # the first step of Adam has length lr
        torch.testing.assert_close(balancer.w, moved * count / moved.sum(), rtol=1e-4, atol=1e-4)


def train(balancer, norms, losses_at, steps):
    for index in range(steps):
        weights = balancer(FakeStep(rows_with(norms), losses_at(index), index=index))
        assert weights.min() > 0
        assert float(weights.sum()) == pytest.approx(len(norms), rel=1e-5)
    return weights


def test_levels_the_norms_where_all_learn_alike():
    norms = torch.tensor([0.5, 1.0, 2.0])
    weights = train(gradnorm(3), norms, lambda _: torch.ones(3), 600)
    assert float((weights * norms).std() / (weights * norms).mean()) < 0.1
    assert weights[0] > weights[1] > weights[2]


def test_rates_matter_between_tasks_of_equal_norm():
    """A constant target would leave these weights equal."""

    def losses(index):
        return torch.tensor([0.99**index, 0.9999**index])

    weights = train(gradnorm(2), torch.ones(2), losses, 100)
    assert weights[1] > 1.2 > 0.8 > weights[0]
    even = train(gradnorm(2, alpha=0.0), torch.ones(2), losses, 100)
    assert float((even - 1).abs().max()) < 0.1  # alpha = 0 asks for equal norms only


def test_rates_are_relative_to_the_first_loss():
    """Losses of very different size that fall alike leave the weights alone."""
    weights = train(
        gradnorm(2), torch.ones(2), lambda i: 0.99**i * torch.tensor([100.0, 0.01]), 100
    )
    torch.testing.assert_close(weights, torch.ones(2), rtol=0.1, atol=0)


def test_looks_at_the_last_shared_weight_only():
    asked = []

    class Asked(FakeStep):
        def grad_norms(self, part):
            asked.append(part)
            return super().grad_norms(part)

    gradnorm(2)(Asked(rows_with([1.0, 2.0])))
    assert asked == ["last"]


def test_first_loss_is_that_of_the_first_active_batch():
    balancer = gradnorm(2)
    late = torch.tensor([True, False])
    for index in range(3):
        balancer(FakeStep(rows_with([1.0, 1.0]), torch.tensor([1.0, 5.0]), late, index))
    assert balancer.first.isnan().tolist() == [False, True]
    balancer(FakeStep(rows_with([1.0, 1.0]), torch.tensor([0.5, 4.0]), index=3))
    assert balancer.first.tolist() == [1, 4]


def test_idle_tasks_neither_move_nor_are_moved():
    balancer = gradnorm(3, lr=0.1)
    for index in range(5):
        balancer(FakeStep(rows_with([0.5, 1.0, 2.0]), index=index))
    before = balancer.w.clone()
    for index in range(5, 10):
        weights = balancer(
            FakeStep(
                rows_with([0.5, 1.0, 2.0]), active=torch.tensor([True, False, True]), index=index
            )
        )
        assert float(weights.sum()) == pytest.approx(2, rel=1e-5)
    assert balancer.w[1] == before[1]
    assert balancer.w[0] > before[0]
    assert float(balancer.w.sum()) == pytest.approx(3, rel=1e-5)


@pytest.mark.parametrize("zero", [(True, False), (True, True)])
def test_tasks_without_a_gradient_there(zero):
    balancer = gradnorm(2)
    norms = torch.where(torch.tensor(zero), 0.0, 1.0)
    rows = rows_with(norms).nan_to_num()
    rows[torch.tensor(zero), HALF:] = 0
    for index in range(20):
        weights = balancer(FakeStep(rows, index=index))
        assert weights.isfinite().all()
        assert weights.min() > 0
