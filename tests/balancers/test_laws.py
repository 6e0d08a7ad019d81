"""What every balancer must satisfy; a new file in mtlkit/balancers is tested here without further
ado.
"""

import copy
import re
from functools import cache

import pytest
import torch

from mtlkit.balancers._step import SharedGradient
from mtlkit.registry import BALANCERS
from tests.balancers.fakes import (
    ALLOWED,
    CASES,
    DEGENERATE,
    FakeStep,
    differing,
    direction,
    families,
    load,
    losses_at,
    numbers,
    run,
)

PAPER = re.compile(r"doi:10\.\d{4,}/\S+|arXiv:\d{4}\.\d{4,5}")
COUNTS = (1, 2, 3, 8)
UNIFORM_BY_THEORY = {"uniform", "static"}  # static as long as its weights are equal
DRAWS = 100
PATH = 205  # steps: more than two windows of dwa


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture(params=COUNTS)
def count(request):
    return request.param


def check_scale(case, decision, active, where):
    """The promises of the contract about one decision."""
    assert numbers(decision).isfinite().all(), where
    if isinstance(decision, SharedGradient):
        return
    assert decision.shape == active.shape, where
    assert not decision[~active].any(), where
    assert case.kind.signed or decision.min() >= 0, where
    if case.kind.scale == "simplex":
        assert decision.min() >= 0, where
        assert float(decision.sum()) == pytest.approx(int(active.sum()), rel=1e-5), where


@pytest.mark.parametrize(
    ("count", "dtype"), [*((t, torch.float32) for t in COUNTS), (3, torch.float64)], ids=str
)
def test_finite_and_of_the_promised_scale(case, count, dtype):
    for family, jacobian in families(count).items():
        balancer = case.make(count)
        for decision in run(balancer, jacobian.to(dtype), 2):
            check_scale(case, decision, torch.ones(count, dtype=torch.bool), family)


@pytest.mark.parametrize("losses", [0.0, 1e-30, 1e30])
def test_extreme_losses(case, losses):
    jacobian = families(3)["random"].float()
    values = torch.tensor([1.0, 0.5, 1.0]) * losses
    for decision in run(case.make(3), jacobian, 3, losses=values):
        check_scale(case, decision, torch.ones(3, dtype=torch.bool), losses)


def test_extreme_gradients(case):
    if case.kind.needs == "norms":
        pytest.skip("norms are taken in float32 before the balancer sees them")
    for size in (1e-30, 1e30):
        jacobian = (families(3)["random"] * size).float()
        for decision in run(case.make(3), jacobian, 3, losses=torch.full((3,), 1e-12)):
            check_scale(case, decision, torch.ones(3, dtype=torch.bool), size)


def test_idle_tasks_get_nothing_and_keep_their_state(case, count):
    jacobian = families(count)["random"].float()
    masks = [torch.arange(count) != t for t in {0, count // 2, count - 1}] + [
        torch.zeros(count, dtype=torch.bool)
    ]
    for active in masks:
        balancer = case.make(count)
        run(balancer, jacobian, 3)
        before = copy.deepcopy(balancer.state_dict())
        for decision in run(balancer, jacobian, 3, first=3, active=active):
            check_scale(case, decision, active, active)
            if not active.any():
                assert not numbers(decision).any()
        for name, value in balancer.state_dict().items():
            if value.shape[:1] == (count,) and not (count == 1 and active.any()):
                torch.testing.assert_close(
                    value[~active], before[name][~active], rtol=0, atol=0, equal_nan=True
                )


def test_a_task_may_be_idle_from_the_start(case):
    jacobian = families(3)["random"].float()
    balancer = case.make(3)
    late = torch.tensor([True, True, False])
    for active in (late, late, ~late, late, torch.ones(3, dtype=torch.bool)):
        for decision in run(balancer, jacobian, 2, active=active):
            check_scale(case, decision, active, active)


def is_random(case, count):
    """Whether the seed plays a part: found out, not declared."""
    for family in ("random", "conflicting"):
        one, *others = (
            numbers(run(case.make(count), families(count)[family], 1, seed=s)[0]) for s in range(5)
        )
        if any(not torch.equal(one, other) for other in others):
            return True
    return False


def decisions(case, jacobian, order, steps):
    """(steps, T) or (steps, P) decisions for tasks in some order; weights are put back into the
    first order.
    """
    made = run(case.make(len(order), order), jacobian[order], steps, order=order)
    back = torch.argsort(torch.tensor(order))
    return torch.stack(
        [d.vector if isinstance(d, SharedGradient) else d[back] for d in made]
    ).double()


@pytest.mark.parametrize("count", COUNTS[1:])
def test_order_of_the_tasks_does_not_matter(case, count):
    """Exactly, or in the mean over seeds for a random method."""
    same = list(range(count))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count)).tolist()
    order = order if order != same else same[::-1]
    random = is_random(case, count)
    for family, jacobian in families(count).items():
        if (random and family != "conflicting") or (
            count > 3 and family not in {"conflicting", "badly scaled"}
        ):
            continue
        steps = DRAWS if random else 2
        one, other = (decisions(case, jacobian, tasks, steps) for tasks in (same, order))
        if random:
            error = (one.var(0) + other.var(0)).sqrt() / steps**0.5
            assert ((one.mean(0) - other.mean(0)).abs() <= 5 * error + 1e-9).all(), family
        elif family in DEGENERATE and case.kind.needs in {"gram", "rows"}:
            # the weights are not unique, the direction is
            first, second = (
                d[-1] @ jacobian if d.shape[1] == count else d[-1] for d in (one, other)
            )
            scale = count * float(jacobian.norm(dim=1).max()) or 1.0
            if max(first.norm(), second.norm()) > 1e-6 * scale:
                assert torch.cosine_similarity(first, second, 0) > 1 - 1e-6, family
        else:
            torch.testing.assert_close(
                one, other, rtol=1e-5, atol=1e-5, msg=lambda m, f=family: f"{f}: {m}"
            )


@pytest.mark.parametrize("count", COUNTS[1:])
def test_unit_of_the_gradients_does_not_matter(case, count):
    """Weights of a simplex method stay, those of another may change in length alone."""
    if case.kind.needs not in {"gram", "rows"}:
        pytest.skip("does not look at gradients")
    for family in ("random", "conflicting"):
        jacobian = families(count)[family]
        for factor in (1e-3, 64.0):
            one = numbers(run(case.make(count), jacobian, 1)[0])
            other = numbers(run(case.make(count), jacobian * factor, 1)[0])
            if case.kind.scale == "native":
                one, other = one / one.norm(), other / other.norm()
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@cache
def path(case, steps):
    """(steps, P) gradients over a short run on changing task gradients and losses."""
    balancer, out = case.make(3), []
    for index in range(steps):
        jacobian = differing(index)
        (decision,) = run(balancer, jacobian, 1, first=index)
        out.append(direction(decision, jacobian))
    return torch.stack(out)


def alike(case, other, steps):
    """Whether two methods train the shared parameters alike; lengths count, since imtl-g and config
    have one direction wherever gradients are linearly independent.
    """
    one, two = path(case, steps), path(other, steps)
    apart = (one - two).norm(dim=1) / (one.norm(dim=1) + two.norm(dim=1)).clamp_min(1e-30)
    return bool(apart.max() < 1e-3)


def test_is_no_other_balancer_in_disguise(case):
    """And not the uniform one either, unless the theory says so."""
    for other in CASES:
        if other != case:
            same = alike(case, other, 10) and alike(case, other, PATH)
            assert same == ({str(case), str(other)} == UNIFORM_BY_THEORY), str(other)


@pytest.mark.parametrize("count", [1, 3])
def test_state_round_trip(case, count):
    jacobian = families(count)["random"].float()
    options = {"seed": 3}
    first = case.make(count)
    run(first, jacobian, 6, **options)
    state = copy.deepcopy(first.state_dict())
    second = case.make(count)
    second.load_state_dict(state)
    for one, other in zip(
        run(first, jacobian, 6, first=6, **options),
        run(second, jacobian, 6, first=6, **options),
        strict=True,
    ):
        assert torch.equal(numbers(one), numbers(other))
    after = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0)) for one, other in after)


def test_asks_only_for_what_it_needs(case):
    for count in (1, 3):
        run(case.make(count), families(count)["random"], 3, allowed=ALLOWED[case.kind.needs])


def test_leaves_the_step_and_its_own_answers_alone(case):
    jacobian = families(3)["conflicting"].float()
    balancer = case.make(3)
    step = FakeStep(jacobian.clone(), losses_at(0, 3))
    losses = step.losses.clone()
    answer = balancer(step)
    kept = numbers(answer).clone()
    run(balancer, jacobian, 3, first=1)
    assert torch.equal(numbers(answer), kept)  # no view of a buffer that moves on
    assert not numbers(answer).requires_grad
    assert torch.equal(step.losses, losses)
    assert torch.equal(step.task_gradients, jacobian)
    assert step.active.all()


@pytest.mark.parametrize("name", BALANCERS.names())
def test_docstring_names_paper_uses_and_cost(name):
    text = BALANCERS.docstring(name)
    assert PAPER.search(text)
    assert all(f"\n{line}:" in text for line in ("When to use", "When not", "Cost"))
    assert len(BALANCERS.summary(name)) < 110
    assert load(name).__doc__
