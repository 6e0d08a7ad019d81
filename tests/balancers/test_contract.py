"""What ``decide`` makes of answers that do not keep the contract."""

import time

import pytest
import torch

from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._simplex import on_simplex
from mtlkit.balancers._step import SharedGradient
from mtlkit.data.types import Task
from mtlkit.errors import MtlkitError
from mtlkit.registry import BALANCERS
from tests.balancers.fakes import DEFAULTS, Case, FakeStep, families

BUDGET = 10e-6  # seconds that the checks may take in a step


def answering(answer, scale="simplex", signed=False, tasks=3):
    """A plugin that always gives one answer."""

    class Plugin(Balancer):
        def forward(self, step):
            return answer

    Plugin.scale, Plugin.signed = scale, signed
    return Plugin([Task(name=f"t{t}") for t in range(tasks)], Plugin.Options())


def step(active=(True, True, True), dtype=torch.float32):
    return FakeStep(torch.eye(len(active), 12).to(dtype), active=torch.tensor(active))


def test_a_simplex_that_sums_to_one_is_scaled_to_the_number_of_tasks():
    weights = answering(torch.tensor([0.5, 0.25, 0.25])).decide(step())
    torch.testing.assert_close(weights, torch.tensor([1.5, 0.75, 0.75]))


def test_the_sum_is_the_number_of_active_tasks_and_idle_ones_weigh_nothing():
    weights = answering(torch.tensor([0.5, 0.25, 0.25])).decide(step((True, False, True)))
    torch.testing.assert_close(weights, torch.tensor([4 / 3, 0, 2 / 3]))
    infinite = torch.tensor([1.0, torch.inf, torch.nan])
    weights = answering(infinite).decide(step((True, False, False)))
    assert weights.tolist() == [1, 0, 0]


def test_native_weights_keep_their_length_but_idle_tasks_weigh_nothing():
    made = answering(torch.tensor([0.5, 0.25, 7.0]), "native")
    assert made.decide(step((True, True, False))).tolist() == [0.5, 0.25, 0]
    assert made.decide(step()).tolist() == [0.5, 0.25, 7]


@pytest.mark.parametrize("device", ["cpu", "another"])
def test_weights_that_keep_the_contract_stay_as_they_are(device, monkeypatch):
    """To the last digit, whether numbers are read or only calculated with."""
    weights = torch.tensor([1.1, 0.7, 1.2]) * (1 + 1e-6)
    balancer = answering(weights)
    if device != "cpu":
        monkeypatch.setattr(balancer, "_keeps_contract", lambda *values: False)
    assert torch.equal(balancer.decide(step()), weights)


@pytest.mark.parametrize("scale", ["simplex", "native"])
def test_without_numbers_the_answer_is_the_same(scale, monkeypatch):
    """On other devices than a CPU nothing is read."""
    for values in ([0.5, 0.25, 0.25], [3.0, 1.0, 0.0], [1.0, 1.0, 1.0]):
        for active in ((True, True, True), (False, True, True), (False, False, False)):
            balancer = answering(torch.tensor(values), scale)
            expected = balancer.decide(step(active))
            monkeypatch.setattr(balancer, "_keeps_contract", lambda *values: False)
            assert torch.equal(balancer.decide(step(active)), expected)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (torch.ones(()), r"weights of shape \(\) for 3 tasks"),
        (torch.ones(1), r"weights of shape \(1,\) for 3 tasks"),
        (torch.ones(3, 1), r"weights of shape \(3, 1\) for 3 tasks"),
        (torch.ones(4), r"weights of shape \(4,\) for 3 tasks"),
        (torch.ones(3, dtype=torch.bool), "numbers of torch.bool"),
        (torch.ones(3, dtype=torch.int64), "numbers of torch.int64"),
        ([1.0, 1.0, 1.0], "with list, not with a tensor"),
        (None, "with NoneType, not with a tensor"),
        (SharedGradient(torch.ones(3, 12)), r"direction of shape \(3, 12\)"),
        (torch.tensor([2.0, -0.5, 1.5]), "a task the weight -0.5"),
    ],
)
def test_a_wrong_answer_is_an_error_that_names_the_balancer(answer, words):
    with pytest.raises(MtlkitError, match=f"Plugin .*{words}") as caught:
        answering(answer).decide(step())
    assert caught.value.hint


@pytest.mark.parametrize("scale", ["simplex", "native"])
@pytest.mark.parametrize("weight", [torch.nan, torch.inf, -torch.inf, 1e30, 3e38, -1e30])
def test_a_weight_that_float32_cannot_train_with_is_an_error(scale, weight):
    for answer in ([1.0, weight, 1.0], [weight] * 3):
        with pytest.raises(MtlkitError, match="Plugin gave a task the weight ") as caught:
            answering(torch.tensor(answer), scale).decide(step())
        assert caught.value.hint
    idle = answering(torch.tensor([1.0, weight, 1.0]), scale).decide(step((True, False, True)))
    assert idle.tolist() == [1, 0, 1]


def test_after_a_loss_that_is_not_finite_the_loop_tells_of_it():
    diverged = step()
    diverged.losses = torch.full((3,), torch.nan)
    weights = answering(torch.full((3,), torch.nan)).decide(diverged)
    assert weights.isnan().all()


def test_a_sum_that_overflows_gives_no_zeros():
    """As on another device, where weights are not looked at in each step."""
    weights = on_simplex(torch.tensor([3e38, 3e38, 1.0]), torch.ones(3, dtype=torch.bool))
    assert weights.isnan().all()


def test_negative_weights_are_declared():
    weights = torch.tensor([2.0, -0.5, 1.5])
    assert torch.equal(answering(weights, "native", signed=True).decide(step()), weights)
    rounding = torch.tensor([2.0, -1e-9, 1.0])
    assert torch.equal(answering(rounding).decide(step()), rounding)
    idle = torch.tensor([2.0, -5.0, 0.0])
    assert answering(idle, "native").decide(step((True, False, True))).tolist() == [2, 0, 0]


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_balancers_of_the_package_keep_it_by_themselves(case):
    """What they answer is what the loop gets, to the last digit."""
    for family in ("random", "conflicting", "badly scaled", "one zero"):
        jacobian = families(3)[family].float()
        asked, called = case.make(3), case.make(3)
        decision, answer = asked.decide(FakeStep(jacobian)), called(FakeStep(jacobian))
        if isinstance(decision, SharedGradient):
            decision, answer = decision.vector, answer.vector
        assert torch.equal(decision, answer), family


def test_the_checks_cost_next_to_nothing():
    weights, one = torch.ones(3), step()
    balancer = answering(weights)

    def seconds(function, calls=2000):
        began = time.process_time()
        for _ in range(calls):
            function(one)
        return (time.process_time() - began) / calls

    extra = min(seconds(balancer.decide) - seconds(balancer) for _ in range(5))
    assert extra < BUDGET


def test_held_weights_are_rescaled_before_they_are_rounded():
    """Two tasks whose weights are tiny beside that of a third, which is idle now."""
    balancer = Case("mgda", (("update_every", 2),)).make(3)
    balancer.last_weights = torch.tensor([1e-60, 3e-60, 3.0], dtype=torch.float64)
    active = torch.tensor([True, True, False])
    step = FakeStep(torch.eye(3), active=active, index=1)
    assert balancer.decide(step).tolist() == [0.5, 1.5, 0]
    assert balancer.decide(step).dtype == torch.float32


def test_on_scale_is_said_of_one_forward():
    """What every shipped forward gives by itself is held by the laws; others are mended."""

    class Doubled(BALANCERS.load("uniform")):
        def forward(self, step):
            return 2 * super().forward(step)

    assert BALANCERS.load("uniform").on_scale
    assert not Doubled.on_scale
