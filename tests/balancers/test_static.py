"""Fixed weights, and the case of equal ones."""

import pytest
import torch

from mtlkit.errors import UsageError
from tests.balancers.fakes import Case, FakeStep, families


def weights_of(w, active=None):
    return Case("static", (("w", w),)).make(3)(
        FakeStep(families(3)["random"].float(), active=active)
    )


def test_weights_keep_their_ratio_and_sum_to_the_number_of_tasks():
    torch.testing.assert_close(weights_of((1, 2, 3)), torch.tensor([0.5, 1.0, 1.5]))
    torch.testing.assert_close(weights_of((10, 20, 30)), torch.tensor([0.5, 1.0, 1.5]))


def test_idle_tasks_leave_their_share_to_the_others():
    active = torch.tensor([True, False, True])
    torch.testing.assert_close(weights_of((1, 2, 3), active), torch.tensor([0.5, 0.0, 1.5]))


def test_default_is_uniform():
    step = FakeStep(families(3)["random"].float(), active=torch.tensor([True, False, True]))
    assert torch.equal(Case("static").make(3)(step), Case("uniform").make(3)(step))
    assert Case("uniform").make(3)(step).tolist() == [1, 0, 1]


@pytest.mark.parametrize("w", [(1, 2), (1, 2, 3, 4), (1, 0, 1), (1, -1, 1)])
def test_wrong_weights_are_refused_with_an_example(w):
    with pytest.raises(UsageError, match="t0, t1, t2") as caught:
        weights_of(w)
    assert "static[w=1:2:3]" in caught.value.hint
