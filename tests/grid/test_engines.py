"""Which engine the settings ask for, and what is said where it cannot be had."""

import sys

import pytest

from mtlkit.errors import MissingError, UsageError
from mtlkit.grid.engines import make_engine
from mtlkit.grid.engines.local import LocalEngine
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore
from tests.conftest import DATA


def make(tmp_path, **settings):
    return make_engine(ResultStore(tmp_path), tmp_path, ExecutionSettings(**settings))


def test_the_default_is_this_machine(tmp_path):
    assert isinstance(make(tmp_path, device="cpu"), LocalEngine)


def test_without_the_extra(tmp_path, home, cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    told = cli("bench", "-d", DATA, "--engine", "ray", "--data-dir", home, "--out", tmp_path)
    assert told.code == 3
    assert told.err.endswith(
        "error: The engine ray needs the package ray, which is not installed.\n\n"
        "hint: pip install 'mtlkit[ray]'\n"
    )


@pytest.mark.parametrize("device", ["cuda:1", "all", "cuda:0,cuda:1"])
def test_ray_chooses_the_gpu(tmp_path, device):
    with pytest.raises(UsageError, match="Ray chooses the GPU"):
        make(tmp_path, engine="ray", device=device)


@pytest.mark.parametrize(("name", "value"), [("address", "auto"), ("gpus_per_cell", 0.5)])
def test_settings_of_ray_alone(tmp_path, name, value):
    with pytest.raises(UsageError, match=f"{name} is a setting of the engine ray"):
        make(tmp_path, device="cpu", **{name: value})


def test_a_gpu_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(MissingError, match="There is no GPU 'cuda:1' here"):
        make(tmp_path, device="cuda:1,cuda:2")


def test_quiet_and_json(tmp_path, home, cli, plugin):
    """Quiet: only what failed, and the table. JSON: a line a cell, and no table."""
    import json

    raises = plugin(tmp_path, "raises.py", "raise ValueError('bad luck')")
    grid = ["-d", DATA, "--models", "shared-bottom", "--balancers", f"uniform,{raises}"]
    grid += ["--references", "none", "--seeds", "1", "--epochs", "1", "--device", "cpu"]
    grid += ["--data-dir", home, "--out", tmp_path / "results", "--jobs", "1"]
    told = cli("bench", *grid, "--json")
    lines = {line["balancer"]: line for line in map(json.loads, told.out.splitlines())}
    assert told.code == 1
    assert lines["uniform"]["status"] == "ok"
    assert 0 < lines["uniform"]["test"]["task-1"]["auc"] < 1
    assert "bad luck" in lines[raises]["error"]

    told = cli("bench", *grid, "--quiet", "--retry-failed", "--seeds", "2")
    shown = [line for line in told.err.splitlines() if line.startswith("[")]
    assert len(shown) == 2
    assert all("bad luck" in line for line in shown)
    assert "task-1 AUC" in told.out
