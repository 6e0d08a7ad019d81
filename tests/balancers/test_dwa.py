"""DWA: windows of steps, worked out by hand."""

import torch

from tests.balancers.fakes import Case, FakeStep, families

ROWS = families(2)["random"].float()  # DWA never looks at them


def train(balancer, losses, first=0, active=None):
    """A step for each pair of losses; returns the weights of each."""
    out = []
    for index, pair in enumerate(losses, start=first):
        on = None if active is None else torch.tensor(active[index - first])
        out.append(balancer(FakeStep(ROWS, torch.tensor(pair), on, index)))
    return torch.stack(out)


def dwa(window=2, temperature=2.0):
    return Case("dwa", (("window", window), ("temperature", temperature))).make(2)


def expected(ratios, temperature=2.0):
    return 2 * torch.softmax(torch.tensor(ratios) / temperature, 0)


def test_worked_example():
    weights = train(
        dwa(), [(1.0, 2.0), (3.0, 2.0), (1.0, 3.0), (0.0, 2.0), (9.0, 9.0), (1.0, 1.0), (0.0, 0.0)]
    )
    # windows have mean losses (2, 2), (0.5, 2.5), (5, 5)
    torch.testing.assert_close(weights[:4], torch.ones(4, 2))  # no two windows yet
    torch.testing.assert_close(weights[4:6], expected([0.25, 1.25]).expand(2, 2))
    torch.testing.assert_close(weights[6], expected([10.0, 2.0]))


def test_slow_tasks_gain():
    weights = train(dwa(), [(1.0, 1.0)] * 2 + [(0.5, 0.9)] * 2 + [(0.5, 0.9)])[-1]
    assert weights[1] > 1 > weights[0]


def test_temperature():
    losses = [(1.0, 1.0)] * 2 + [(0.5, 0.9)] * 3
    for temperature in (0.1, 50.0):
        torch.testing.assert_close(
            train(dwa(temperature=temperature), losses)[-1],
            expected([0.5, 0.9], temperature),
            rtol=1e-5,
            atol=1e-5,
        )


def test_a_window_is_counted_in_steps():
    losses = [(2.0**-i, 1.0) for i in range(12)]
    for window in (1, 3, 5):
        weights = train(dwa(window), losses)
        changed = [i for i in range(1, 12) if not torch.equal(weights[i], weights[i - 1])]
        assert changed[0] == 2 * window


def test_means_are_over_the_steps_in_which_a_task_was_active():
    losses = [(1.0, 2.0), (3.0, 0.0), (1.0, 3.0), (0.0, 0.0), (1.0, 1.0)]
    active = [(True, True), (True, False), (True, True), (True, False), (True, True)]
    weights = train(dwa(), losses, active=active)
    torch.testing.assert_close(weights[-1], expected([0.25, 1.5]))
    torch.testing.assert_close(weights[1], torch.tensor([1.0, 0.0]))


def test_a_window_without_a_task_does_not_count_for_it():
    losses = [(1.0, 2.0)] * 2 + [(1.0, 1.0)] * 2 + [(1.0, 0.0)] * 2 + [(1.0, 1.0)]
    active = [(True, True)] * 4 + [(True, False)] * 2 + [(True, True)]
    weights = train(dwa(), losses, active=active)
    torch.testing.assert_close(weights[-1], expected([1.0, 0.5]))  # as before the pause


def test_a_loss_of_zero_is_no_accident():
    for losses in (
        [(0.0, 1.0)] * 5,
        [(0.0, 1.0)] * 2 + [(1.0, 1.0)] * 3,
        [(1.0, 1.0)] * 2 + [(0.0, 1.0)] * 3,
    ):
        weights = train(dwa(), losses)
        assert weights.isfinite().all()
        torch.testing.assert_close(weights.sum(1), torch.full((5,), 2.0))
