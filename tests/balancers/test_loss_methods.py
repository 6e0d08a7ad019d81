"""Methods that see losses alone: numbers worked out by hand, the equations they solve, and what
they remember.
"""

import math
from fractions import Fraction as F

import numpy as np
import pytest
import torch

from mtlkit.data.types import Task
from mtlkit.errors import UsageError
from tests.balancers.fakes import FakeStep, families, load

ALL = {
    2: torch.zeros(2, 4),
    3: torch.zeros(3, 4),
}  # task gradients, which none of these methods looks at


def make(name, count, kinds="binary", **options):
    kind = load(name)
    tasks = [Task(name=f"t{t}", kind=kinds, losses=("mse",)) for t in range(count)]
    return kind(tasks, kind.Options.model_validate(options))


def ask(balancer, losses, index=0, active=None, seed=0, after=None):
    """The weights for some losses; ``after`` are those once the optimiser has stepped."""
    losses = torch.tensor([float(loss) for loss in losses], dtype=torch.float64)
    on = None if active is None else torch.tensor(active)
    step = FakeStep(ALL[len(losses)].double(), losses, on, index, seed=seed)
    weights = balancer(step)
    for callback in step.callbacks:
        callback(torch.tensor([float(loss) for loss in after], dtype=torch.float64))
    return weights


def close(weights, expected, **tolerance):
    expected = torch.tensor([float(value) for value in expected], dtype=torch.float64)
    torch.testing.assert_close(
        weights.double(), expected, **(tolerance or {"rtol": 1e-6, "atol": 1e-9})
    )


def gradient(function, losses):
    """Of a scalar function of losses."""
    losses = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(function(losses), losses)[0]


# --- alternating
# ------------------------------------------------------------------------------------------------------


def turns(balancer, steps, active=(True, True, True), first=0, seed=0):
    """Which task had its turn in each step; -1 for none."""
    found = []
    for index in range(first, first + steps):
        weights = ask(balancer, [1.0] * len(active), index, list(active), seed)
        assert (weights > 0).sum() == int(any(active))
        found.append(int(weights.argmax()) if weights.any() else -1)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_alternating_visits_every_task_once_a_round(seed):
    found = turns(make("alternating", 3), 30, seed=seed)
    assert all(sorted(found[i : i + 3]) == [0, 1, 2] for i in range(0, 30, 3))
    assert len({tuple(found[i : i + 3]) for i in range(0, 30, 3)}) > 2, "the order changes"


def test_alternating_draws_all_orders_alike():
    balancer = make("alternating", 3)
    found = turns(balancer, 1800)
    orders = [tuple(found[i : i + 3]) for i in range(0, 1800, 3)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert min(counts) > 70  # 100 expected, standard deviation 9


def test_alternating_skips_idle_tasks_and_does_not_make_up_for_them():
    balancer = make("alternating", 3)
    turns(balancer, 3)
    found = turns(balancer, 20, (True, False, True), first=3)
    assert all(sorted(found[i : i + 2]) == [0, 2] for i in range(0, 20, 2))
    found = turns(balancer, 7, first=23)
    assert found[0] == 1, "the round that goes on has not visited it"
    assert sorted(found[1:4]) == sorted(found[4:]) == [0, 1, 2]
    assert turns(balancer, 2, (False, False, False), first=30) == [-1, -1]


def test_alternating_rates():
    balancer = make("alternating", 2, rates=(0.5, 3.0))
    total = sum(ask(balancer, (1, 1), index) for index in range(10))
    close(total, (2.5, 15))


# --- rlw
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
def test_rlw_is_a_softmax_of_normal_draws(count):
    balancer = make("rlw", count)
    logs = torch.stack([ask(balancer, [1] * count, index).log() for index in range(2000)])
    torch.testing.assert_close(
        logs.exp().sum(1), torch.full((2000,), float(count), dtype=torch.float64)
    )
    difference = (logs[:, 0] - logs[:, 1]).numpy()  # of two standard normal numbers
    assert abs(difference.mean()) < 4 * math.sqrt(2 / 2000)
    assert difference.std() == pytest.approx(math.sqrt(2), rel=0.06)
    assert np.mean(np.abs(difference) < math.sqrt(2)) == pytest.approx(0.6827, abs=0.04)


def test_rlw_draws_follow_from_seed_and_step_alone():
    one, other = make("rlw", 3), make("rlw", 3)
    ask(other, (5, 6, 7), 8, seed=9)
    assert torch.equal(ask(one, (1, 2, 3), 4, seed=5), ask(other, (3, 2, 1), 4, seed=5))
    assert not torch.equal(ask(one, (1, 2, 3), 4, seed=5), ask(one, (1, 2, 3), 4, seed=6))
    assert not torch.equal(ask(one, (1, 2, 3), 4, seed=5), ask(one, (1, 2, 3), 5, seed=5))


def test_rlw_leaves_ratios_of_active_tasks_alone():
    balancer = make("rlw", 3)
    whole, part = ask(balancer, (1, 1, 1)), ask(balancer, (1, 1, 1), active=[True, False, True])
    assert float(part[0] / part[2]) == pytest.approx(float(whole[0] / whole[2]))
    assert float(part.sum()) == pytest.approx(2)


# --- gls
# --------------------------------------------------------------------------------------------------------------

GLS = {
    (F(1, 4), F(4)): (2, F(1, 8)),  # geometric mean 1
    (F(2), F(8)): (1, F(1, 4)),  # 4
    (F(1), F(8), F(27, 8)): (1, F(1, 8), F(8, 27)),  # 3
    (F(1, 2), F(1, 2), F(32)): (F(4, 3), F(4, 3), F(1, 48)),  # 2
}


@pytest.mark.parametrize("losses", GLS, ids=str)
def test_gls_by_hand(losses):
    close(ask(make("gls", len(losses)), losses), GLS[losses])


@pytest.mark.parametrize("losses", [(0.3, 1.7), (1e-6, 2.0, 300.0)])
def test_gls_is_the_gradient_of_the_geometric_mean(losses):
    close(
        ask(make("gls", len(losses)), losses),
        gradient(lambda x: x.prod() ** (1 / len(losses)), losses),
    )


def test_gls_leaves_idle_tasks_out():
    close(ask(make("gls", 3), (F(1, 4), 0, 4), active=[True, False, True]), (2, 0, F(1, 8)))


def test_gls_does_not_mind_the_unit_of_a_loss():
    one, other = ask(make("gls", 2), (0.2, 3)), ask(make("gls", 2), (0.2, 3000))
    close(other / other[0] * torch.tensor([1, 1000]), one / one[0])


# --- stch
# -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nadir", "losses", "mu", "expected"),
    [
        ((1, 2), (1, 1), 1, (F(4, 3), F(2, 3))),  # relative losses 1, 1/2
        ((1, 2), (1, 1), 0.5, (F(8, 5), F(2, 5))),
        ((1, 2, 4), (F(1, 2), 2, 1), 1, (F(12, 7), F(6, 7), F(3, 7))),  # 1/2, 1, 1/4
        ((1, 2, 4), (F(1, 2), 2, 1), 0.01, (0, F(3, 2), 0)),
    ],
)
def test_stch_by_hand(nadir, losses, mu, expected):
    balancer = make("stch", len(nadir), mu=mu, warmup=1)
    close(ask(balancer, nadir), [1 / F(loss) for loss in nadir])
    close(ask(balancer, losses, 1), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mu", [0.2, 1.0])
def test_stch_is_the_gradient_of_the_smooth_maximum(mu):
    nadir, losses = (0.3, 1.5, 0.02), (0.1, 2.0, 0.019)
    balancer = make("stch", 3, mu=mu, warmup=1)
    ask(balancer, nadir)
    expected = gradient(
        lambda x: 3 * mu * torch.logsumexp(torch.log(x / torch.tensor(nadir)) / mu, 0), losses
    )
    close(ask(balancer, losses, 1), expected, rtol=1e-5, atol=1e-8)


def test_stch_warm_up_ends_with_the_nadir_of_its_last_fifth():
    balancer = make("stch", 2, warmup=10)
    for index in range(10):
        close(ask(balancer, (index + 1, 2), index), (1 / F(index + 1), F(1, 2)))
    nadir = F(9 + 10, 2)
    share = F(1) / (F(1) + nadir)  # of the first task, at relative losses 1/nadir and 1
    close(ask(balancer, (1, 2), 10), (2 * share, 2 * (1 - share) / 2))


def test_stch_takes_the_first_loss_of_a_task_that_comes_late():
    balancer = make("stch", 2, warmup=2)
    for index in range(2):
        ask(balancer, (1, 0), index, [True, False])
    close(ask(balancer, (1, 0), 2, [True, False]), (1, 0))
    close(ask(balancer, (1, 4), 3), (1, F(1, 4)))  # both where they began
    close(ask(balancer, (1, 2), 4), (F(4, 3), F(1, 3)))


# --- imtl-l
# -----------------------------------------------------------------------------------------------------------

LOSSES = (0.1, 0.4, 2.0)


@pytest.mark.parametrize("losses", [LOSSES[:2], LOSSES])
def test_imtl_l_rests_at_one_over_the_loss(losses):
    balancer = make("imtl-l", len(losses), lr=0.03)
    close(ask(balancer, losses), [1] * len(losses))
    for index in range(1, 1500):
        weights = ask(balancer, losses, index)
    close(weights, [1 / loss for loss in losses], rtol=1e-3, atol=0)


def test_imtl_l_descends_the_loss_of_the_paper():
    balancer = make("imtl-l", 3)
    grads = []
    balancer.adam.step = lambda value, grad, active: grads.append(grad)
    balancer.s.copy_(torch.tensor([-0.7, 0.3, 1.1]))
    weights = ask(balancer, LOSSES)
    s = balancer.s.double().requires_grad_()
    (torch.exp(s) * torch.tensor(LOSSES) - s).sum().backward()
    torch.testing.assert_close(grads[0], s.grad)
    close(weights, torch.exp(torch.tensor([-0.7, 0.3, 1.1])))


def test_imtl_l_is_twice_uwl_for_regression():
    one, other = make("imtl-l", 3, "regression"), make("uwl", 3, "regression")
    for index in range(50):
        losses = [loss * (1 + 0.3 * math.sin(index)) for loss in LOSSES]
        close(ask(one, losses, index), 2 * ask(other, losses, index), rtol=1e-4, atol=0)


# --- imtl: imtl-l, and imtl-g on the gradients of the scaled losses
# ---------------------------------------------------


@pytest.mark.parametrize(
    ("norms", "scales", "expected"),
    [  # orthogonal gradients: a proportional to 1 / (scale norm), w = a scale
        ((1, 2), (1, 1), (F(2, 3), F(1, 3))),
        ((1, 2), (2, F(1, 2)), (F(2, 3), F(1, 3))),  # scaled norms 2, 1: a = 1/3, 2/3
        ((1, 2, 4), (1, 1, F(1, 4)), (F(2, 5), F(1, 5), F(1, 10))),  # 1, 2, 1: a = 2/5, 1/5, 2/5
    ],
)
def test_imtl_by_hand(norms, scales, expected):
    balancer = make("imtl", len(norms))
    balancer.loss_balance.s.copy_(torch.tensor([float(scale) for scale in scales]).log())
    rows = torch.diag(torch.tensor([float(norm) for norm in norms]))
    close(balancer(FakeStep(rows)), expected, rtol=1e-5, atol=1e-7)


def test_imtl_has_equal_projections_and_learns_the_scales():
    balancer, losses_alone, gradients_alone = (
        make(name, 3) for name in ("imtl", "imtl-l", "imtl-g")
    )
    rows = families(3)["aligned"]
    for index in range(100):
        step = FakeStep(rows, torch.tensor(LOSSES), index=index)
        weights, scales = balancer(step).double(), losses_alone(step).double()
        assert float((weights / scales).sum()) == pytest.approx(1, rel=1e-5)  # a sums to 1
        projections = weights @ rows @ rows.T / rows.norm(dim=1)
        torch.testing.assert_close(projections, projections.mean().expand(3), rtol=1e-4, atol=0)
    one, other = weights @ rows, gradients_alone(step).double() @ rows
    assert float(torch.cosine_similarity(one, other, 0)) == pytest.approx(1)
    assert float(one.norm()) != pytest.approx(float(other.norm()), rel=0.1)


# --- famo
# -------------------------------------------------------------------------------------------------------------


def test_famo_by_hand():
    two, three = make("famo", 2, decay=0), make("famo", 3, decay=0)
    close(ask(two, (1, 3), after=(F(1, 2), 3)), (F(3, 4), F(1, 4)), rtol=1e-6, atol=1e-6)
    close(
        two.logits, (-0.025, 0.025), rtol=1e-4, atol=0
    )  # Adam's first step has the length of its learning rate
    close(ask(three, (1, 2, 4), after=(1, 2, 4)), (F(4, 7), F(2, 7), F(1, 7)), rtol=1e-6, atol=1e-6)
    assert not three.logits.any()  # nothing fell


def test_famo_weighs_by_the_softmax_over_the_loss():
    balancer = make("famo", 3, floor=(0.5, 0, 1))
    balancer.logits.copy_(torch.tensor([2.0, 3, 4]).log())
    weights = ask(balancer, (1, 2, 3), after=(1, 2, 3))
    close(weights, (F(8, 15), F(1, 5), F(4, 15)), rtol=1e-6, atol=1e-6)  # 2/(1/2) : 3/2 : 4/2


def test_famo_gradient_of_the_logits():
    """That of sum z (log before - log after), from the definition."""
    balancer = make("famo", 3, decay=0.1)
    grads = []
    balancer.adam.step = lambda value, grad, active: grads.append(grad)
    balancer.logits.copy_(torch.tensor([0.4, -1.0, 0.1]))
    before, after = torch.tensor([1.0, 0.2, 3.0]), torch.tensor([0.8, 0.21, 1.0])
    ask(balancer, before, after=after)
    logits = balancer.logits.double().requires_grad_()
    fall = before.double().log() - after.double().log()
    (torch.softmax(logits, 0) @ fall + 0.05 * (logits**2).sum()).backward()
    torch.testing.assert_close(grads[0].double(), logits.grad, rtol=1e-5, atol=1e-6)


def test_famo_helps_the_task_that_fell_least():
    balancer = make("famo", 3)
    for index in range(20):
        weights = ask(balancer, (1, 1, 1), index, after=(0.9, 0.99, 0.95))
    assert weights[1] > weights[2] > weights[0]
    assert balancer.logits[1] > balancer.logits[2] > balancer.logits[0]
    for index in range(20, 200):  # a loss that rises gains most
        weights = ask(balancer, (1, 1, 1), index, after=(1.1, 0.99, 0.95))
    assert weights[0] > weights[1] > weights[2]


def test_famo_leaves_idle_tasks_out():
    balancer, pair = make("famo", 3), make("famo", 2)
    for index in range(5):
        three = ask(balancer, (1, 0, 2), index, [True, False, True], after=(0.5, 0, 1.9))
        close(three[[0, 2]], ask(pair, (1, 2), index, after=(0.5, 1.9)))
    assert balancer.logits[1] == 0
    assert balancer.adam.count.tolist() == [5, 0, 5]


# --- options with one number a task
# -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "option"), [("alternating", "rates"), ("famo", "floor")])
def test_one_number_a_task(name, option):
    with pytest.raises(UsageError, match=f"{option} needs one number for each of t0, t1, t2"):
        make(name, 3, **{option: (1.0, 2.0)})


# --- an independent implementation
# ------------------------------------------------------------------------------------


@pytest.fixture
def scalarization():
    return pytest.importorskip("torchjd.scalarization")


def random_losses(index, count=3):
    return np.exp(np.random.default_rng([7, index]).normal(size=count)).tolist()


@pytest.mark.parametrize("count", [2, 3])
def test_gls_agrees_with_torchjd(scalarization, count):
    for index in range(5):
        losses = random_losses(index, count)
        close(ask(make("gls", count), losses), gradient(scalarization.GeometricMean(), losses))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("mu", [0.1, 1.0])
def test_stch_agrees_with_torchjd(scalarization, count, mu):
    """Their f is the logarithm of the relative loss, their preferences are 1, and ours is T times
    theirs.
    """
    nadir = torch.tensor(random_losses(99, count), dtype=torch.float64)
    balancer = make("stch", count, mu=mu, warmup=1)
    ask(balancer, nadir)
    theirs = scalarization.STCH(mu, weights=torch.ones(count, dtype=torch.float64))
    for index in range(1, 6):
        losses = random_losses(index, count)
        expected = count * gradient(lambda x: theirs(torch.log(x / nadir)), losses)
        close(ask(balancer, losses, index), expected, rtol=1e-5, atol=1e-7)


def test_imtl_l_agrees_with_torchjd(scalarization):
    theirs = scalarization.IMTLL(3)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.01)
    balancer = make("imtl-l", 3)
    for index in range(30):
        losses = torch.tensor(random_losses(index), requires_grad=True)
        optimizer.zero_grad()
        theirs(losses).backward()
        close(ask(balancer, losses.tolist(), index), losses.grad, rtol=1e-4, atol=1e-6)
        optimizer.step()


@pytest.mark.parametrize("count", [2, 3])
def test_famo_agrees_with_torchjd(scalarization, count):
    floor = [0.01 * (t + 1) for t in range(count)]
    theirs = scalarization.FAMO(count, min_losses=torch.tensor(floor))
    balancer = make("famo", count, floor=floor)
    for index in range(30):
        losses = torch.tensor(
            [loss + 0.1 for loss in random_losses(index, count)], requires_grad=True
        )
        after = [loss * 0.9 + 0.1 for loss in random_losses(index + 1000, count)]
        theirs(losses).backward()
        theirs.update(torch.tensor(after))
        weights = ask(balancer, losses.tolist(), index, after=after)
        close(weights, losses.grad, rtol=1e-4, atol=1e-6)
