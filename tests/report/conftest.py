from datetime import UTC, datetime

import pytest

from mtlkit.report import write_report
from tests.fakes import cell, failure, fill
from tests.report import full_grid

WRITTEN = datetime(2030, 1, 2, 3, 4, tzinfo=UTC)


@pytest.fixture(scope="session")
def grid(tmp_path_factory):
    """A results folder with two data sets, failures, unequal seeds and a file that is no record."""
    root = tmp_path_factory.mktemp("results")
    store = fill(root, ("mmoe", "ple"), ("uniform", "uwl"), failures=[("mmoe", "uwl", 1)])
    for seed in range(2):
        store.save(failure(cell("ple", "mgda", seed)))
    generated = {
        "dataset": "synthetic",
        "protocol": None,
        "simulated": True,
        "tasks": ["a & b", "c_1", "level"],
    }
    generated["ceiling"] = {"a & b": 0.8, "c_1": 0.81, "level": 0.5}
    fill(
        root,
        ("mmoe",),
        ("uniform", "uwl"),
        seeds=(0, 1),
        kinds={"level": "regression"},
        **generated,
    )
    broken = root / "census" / "mmoe" / "uwl" / "seed-9-deadbeef"
    broken.mkdir()
    (broken / "record.json").write_text("{")
    return root


@pytest.fixture(scope="session")
def built(grid):
    """The report of that folder."""
    return write_report(grid, written=WRITTEN)


@pytest.fixture(scope="session")
def full_contexts(tmp_path_factory):
    """What figures read of a grid that has them all: of two tasks, and of many with long names."""
    root = tmp_path_factory.mktemp("full")
    return {
        name: full_grid.context_of(full_grid.fill(root / name, tasks).root)
        for name, tasks in full_grid.TASKS.items()
    }
