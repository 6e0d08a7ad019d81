"""Small grids that tests run in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mtlkit.data.sources import prepare
from mtlkit.grid.engines.local import LocalEngine
from mtlkit.grid.grid_settings import read_grid
from mtlkit.grid.plan import make_plan
from mtlkit.records import Cell, RunRecord
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore
from tests.conftest import DATA

NUMBERS = {"metrics", "best", "curve", "tasks", "warnings", "status", "error"}
"""The fields of a record that do not depend on when and where it was made."""


def cells_of(
    home: Path, store: ResultStore, balancers: list[str], dataset: str = DATA, *assignments: str
) -> list[Cell]:
    """The cells of a small model under some balancers."""
    flags = {
        "dataset": dataset,
        "models": "shared-bottom",
        "balancers": balancers,
        "references": [],
        "seeds": 1,
    }
    settings = read_grid(None, flags, ["epochs=2", "batch_size=50", "bottom=4", *assignments])
    return make_plan(settings, *prepare(dataset, home), store).to_run


def run(
    cells: list[Cell], home: Path, store: ResultStore, tell: Any = None, **execution: Any
) -> dict[str, RunRecord]:
    """Run cells one at a time, unless a test asks for more; the file name of a balancer to its
    record.
    """
    settings = ExecutionSettings(**{"device": "cpu", "jobs": 1} | execution)
    engine = LocalEngine(store, home, settings)
    said: list[str] = []
    records = list(engine.run(cells, tell=tell or said.append))
    return {Path(record.cell.balancer).stem: record for record in records}


def numbers(record: RunRecord, store: ResultStore) -> tuple[Any, ...]:
    """All that a run measured, bit by bit."""
    folder = store.folder(record.cell)
    arrays = {
        stem: {
            name: (array.dtype.str, array.shape, array.tobytes())
            for name, array in ResultStore.arrays(folder, stem).items()
        }
        for stem in ("probes", "scores", "weights")
    }
    return record.model_dump(mode="json", include=NUMBERS), arrays


def start_bench(home: Path, out: Path, balancers: list[str], *more: str) -> subprocess.Popen[str]:
    """``mtlkit bench`` in a session of its own."""
    words = ["bench", "-d", DATA, "--models", "shared-bottom", "--balancers", ",".join(balancers)]
    words += ["--references", "none", "--seeds", "1", "--epochs", "1", "--batch-size", "50"]
    words += ["--device", "cpu", "--jobs", "1", "--data-dir", str(home), "--out", str(out), *more]
    return subprocess.Popen(
        [sys.executable, "-m", "mtlkit", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"COLUMNS": "200"},
    )


def members(session: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:  # it has ended by now
            continue
        state, _, _, its_session = text.rpartition(")")[2].split()[:4]
        if int(its_session) == session and state != "Z":
            found.append(int(text.split()[0]))
    return found
