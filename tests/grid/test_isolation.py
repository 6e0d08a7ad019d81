"""No cell changes the numbers of another one that runs after it."""

import multiprocessing
import random
import signal
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from mtlkit.grid.engines import worker
from mtlkit.grid.engines.worker import Assignment, Finished, uses_plugin, work
from mtlkit.grid.global_state import GlobalState, same_start
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore
from tests.grid.grids import cells_of, numbers, run

KEEPS = "\nreturn step.active.to(step.losses.dtype)"
NASTY = {
    "functions": "torch.nn.functional.relu = torch.relu = torch.tanh"
    "\ntorch.nn.functional.linear = lambda x, *more: torch.zeros(())",
    "gradients": "torch.set_grad_enabled(False)",
    "dtype": "torch.set_default_dtype(torch.float64)",
    "random": "torch.manual_seed(7)\ntorch.rand(9)",
}


@pytest.mark.parametrize("name", NASTY)
def test_a_plugin_does_not_poison_the_next_cell(tmp_path, home, plugin, name):
    nasty = plugin(tmp_path, f"{name}.py", NASTY[name] + KEEPS)
    clean, mixed = (ResultStore(tmp_path / folder) for folder in ("clean", "mixed"))
    expected = run(cells_of(home, clean, ["uniform"]), home, clean)["uniform"]
    records = run(cells_of(home, mixed, [nasty, "uniform"]), home, mixed)
    assert list(records) == [name, "uniform"]
    assert numbers(records["uniform"], mixed) == numbers(expected, clean)


DATASET = '''
"""Drifts: whoever loads it doubles what comes out of a linear layer."""

import numpy as np
import torch

from mtlkit import Dataset, Feature, GeneratedSource, Schema, Split, Task, fingerprint


class Drifts(GeneratedSource):
    def prepare(self, home):
        schema = Schema(
            features=(Feature(name="x", kind="dense"),), tasks=(Task(name="a"), Task(name="b"))
        )
        rng = np.random.default_rng(0)
        x = rng.normal(size=(200, 1)).astype(np.float32)
        labels = (x + rng.normal(size=(200, 2)) > 0).astype(np.float32)
        split = Split(np.zeros((200, 0), np.int32), x, labels, np.ones(labels.shape, bool))
        splits = dict.fromkeys(("train", "validation", "test"), split)
        return Dataset("drifts", schema, splits, fingerprint(schema, splits), simulated=True)

    def load(self, *arguments):
        linear = torch.nn.functional.linear
        torch.nn.functional.linear = lambda *given, **named: 2 * linear(*given, **named)
        return super().load(*arguments)
'''


def test_nor_does_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drifts.py").write_text(DATASET)
    home, one, two = tmp_path / "home", ResultStore(tmp_path / "one"), ResultStore(tmp_path / "two")
    expected = run(cells_of(home, one, ["uwl"], "./drifts.py"), home, one)["uwl"]
    records = run(cells_of(home, two, ["uniform", "uwl"], "./drifts.py"), home, two)
    assert expected.ok
    assert numbers(records["uwl"], two) == numbers(expected, one)


def test_which_cells_use_a_plugin(tmp_path, home, plugin):
    store = ResultStore(tmp_path / "results")
    mine, uniform = cells_of(home, store, [plugin(tmp_path, "mine.py"), "uniform"])
    assert uses_plugin(mine)
    assert not uses_plugin(uniform)
    alone = uniform.resolved | {"balancer": {"name": "none", "options": {}}}
    assert not uses_plugin(uniform.model_copy(update={"resolved": alone}))


def restore_torch(state):
    torch.set_grad_enabled(state.grad_mode)
    torch.set_default_dtype(state.default_dtype)
    torch.set_num_threads(state.threads)


@pytest.fixture
def untouched():
    """Settings of this process that a test may change."""
    state = GlobalState.now()
    handler = signal.getsignal(signal.SIGINT)
    yield state
    restore_torch(state)
    signal.signal(signal.SIGINT, handler)
    assert state.changes() == []


def test_a_worker_whose_settings_were_changed_says_so_and_leaves(
    tmp_path, home, plugin, monkeypatch, untouched
):
    """A worker's life, lived in this process: a cell of the package would not do such a thing, so
    a plugin passes for one.
    """
    monkeypatch.setattr(worker, "_end_with_driver", lambda: None)
    monkeypatch.setattr(worker, "uses_plugin", lambda cell: False)
    store = ResultStore(tmp_path / "results")
    changes = "torch.set_default_dtype(torch.float64)\ntorch.set_num_threads(3)"
    nasty = plugin(tmp_path, "nasty.py", changes + KEEPS)
    ours, theirs = multiprocessing.Pipe()
    for cell in cells_of(home, store, ["uniform", nasty, "uwl"]):
        ours.send(Assignment(cell))

    work(theirs, Path.cwd(), store.root, home, ExecutionSettings(device="cpu"))
    theirs.close()
    reports = []
    with suppress(EOFError, ConnectionResetError):
        while True:
            reports.append(ours.recv())
    first, second = (report for report in reports if isinstance(report, Finished))
    assert (first.leaves, first.record.warnings) == (False, [])
    assert (second.leaves, second.record.warnings) == (
        True,
        [
            "the cell changed settings of its whole process: default dtype, threads; "
            "the cells after it run in another one"
        ],
    )
    assert store.get(second.record.cell).warnings == second.record.warnings


CHANGES = {
    "grad mode": lambda: torch.set_grad_enabled(not torch.is_grad_enabled()),
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True),
    "matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "numpy errors": lambda: np.seterr(divide="raise"),
    "denormals are zero": lambda: torch.set_flush_denormal(True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_setting_is_seen(name, untouched, monkeypatch):
    CHANGES[name]()
    try:
        assert untouched.changes() == [name]
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision(untouched.matmul_precision)
        torch.autograd.set_detect_anomaly(False)
        np.seterr(divide="warn")
        torch.set_flush_denormal(False)


def test_folder_and_environment_are_seen(untouched, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        assert untouched.changes() == ["working directory", "environment"]


def test_every_cell_starts_alike():
    draws = []
    for _ in range(2):
        filters = list(warnings.filters)
        with same_start():
            draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
            warnings.simplefilter("ignore")
        assert list(warnings.filters) == filters
    assert draws[0] == draws[1]
