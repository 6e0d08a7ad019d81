"""The settings ``deterministic`` and ``matmul``: what they set, and that nothing of it stays."""

import os

import pytest
import torch

from mtlkit.grid.global_state import GlobalState
from mtlkit.training.numerics import WORKSPACE, numerics

GPU = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)


def test_both_hold_inside_and_nothing_is_left(monkeypatch):
    before = GlobalState.now()
    with numerics({"deterministic": True, "matmul": "tf32"}, GPU):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert torch.get_float32_matmul_precision() == "high"
        assert os.environ[WORKSPACE] == ":4096:8"
    assert before.changes() == []
    with pytest.raises(ZeroDivisionError), numerics({"deterministic": True, "matmul": "tf32"}, GPU):
        raise ZeroDivisionError
    assert before.changes() == []

    # what the user has set stays
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with numerics({"deterministic": True}, GPU):
        assert os.environ[WORKSPACE] == ":16:8"
    assert os.environ[WORKSPACE] == ":16:8"


def test_by_default_and_in_old_cells_nothing_is_set():
    before = GlobalState.now()
    with numerics({}, GPU):
        assert before.changes() == []
    with numerics({"deterministic": False, "matmul": "tf32"}, torch.device("cpu")):
        assert before.changes() == []
