"""The folder of ``benchmarks/large_folder.py``: every cell of its grid is done, and can be reported."""

import importlib.util
import sys
from pathlib import Path

import pytest

import mtlkit
from mtlkit.report import write_report
from mtlkit.store import ResultStore

FILE = Path(mtlkit.__file__).parents[1] / "benchmarks" / "large_folder.py"
SMALL = """
dataset: synthetic[rows=2000]
models: [mmoe, shared-bottom]
balancers: [uniform, uwl]
references: [single-task]
training: {epochs: 0.3}
"""


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("large_folder", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "GRID", SMALL)
    return module


def test_every_cell_of_its_grid_has_a_record_that_holds(script, tmp_path, cli):
    grid = script.make_folder(tmp_path, seeds=2)
    store = ResultStore(tmp_path / "results")
    runs = list(store.scan())
    assert len(runs) == 2 * (1 + 2 * 2)
    assert store.unreadable == []
    assert len({str(run.metrics["test"]) for run, _ in runs}) == len(runs)
    said = cli("bench", grid, "--dry-run", "--data-dir", tmp_path / "data")
    assert ": 10 done." in said.err
    assert write_report(store.root).unreadable == ()
