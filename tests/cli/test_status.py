import json
import os
import platform
import time

import pytest

from mtlkit.cli.status import read_status
from mtlkit.grid.running import GridState, RunningGrid, running_grids
from mtlkit.store import RECORD, ResultStore
from tests import fakes


@pytest.fixture
def results(tmp_path):
    """Eleven finished runs and one that failed."""
    fakes.fill(
        tmp_path,
        models=("mmoe",),
        balancers=("uniform", "uwl", "dwa"),
        failures={("mmoe", "uwl", 0)},
        with_probes=False,
    )
    return tmp_path


def test_without_a_grid(results, cli):
    told = cli("status", results)
    assert (told.code, told.err) == (0, "")
    failure, summary = told.out.splitlines()
    assert failure.startswith("failed   mmoe + uwl, seed 0: the loss of task income is not finite")
    assert summary == f"{results}: 11 done, 1 failed; no grid is running."


def test_while_a_grid_runs(results, cli):
    cells = [fakes.cell("ple", seed=seed) for seed in range(4)]
    with RunningGrid(results, "mtlkit bench --models ple", 4) as grid:
        grid.state.began -= 60
        grid.finish(fakes.record(cells[0]))
        grid.finish(fakes.failure(cells[1]))
        grid._write()
        grid.advance(cells[2], 0.5)
        grid._write()
        told = cli("status", results)
        plain = json.loads(cli("status", results, "--json").out)
    assert told.out.splitlines()[0] == "running  ple + uniform, seed 2: 50%"
    assert "11 done, 1 failed, 2 to go of which 1 running; about 3" in told.out
    assert told.out.endswith("s left.\n")
    assert plain["running"] == {"ple + uniform, seed 2": 0.5}
    assert (plain["done"], plain["failed"], plain["to_run"]) == (11, 1, 2)
    assert plain["commands"] == ["mtlkit bench --models ple"]
    # 2.5 cells of work took 60 seconds, 1.5 are left
    assert plain["seconds_left"] == pytest.approx(36, abs=5)
    assert read_status(results).commands == [], "its file goes with the grid"


def test_grids_that_are_dead_do_not_count(results):
    now = time.time()
    state = {"command": "mtlkit bench", "total": 3, "began": now, "updated": now}
    ended = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(ended, 0)
    states = [
        GridState(host=platform.node(), pid=ended, **state),
        GridState(host="elsewhere", pid=1, **state | {"updated": now - 3600}),
        GridState(host="elsewhere", pid=2, **state),
    ]
    for number, one in enumerate(states):
        (results / f".grid-{number}.json").write_text(one.model_dump_json())
    (results / ".grid-torn.json").write_text('{"host": ')
    (results / ".grid-folder.json").mkdir()
    assert running_grids(results) == states[2:]
    with RunningGrid(results, "mtlkit bench", 1):
        assert [state.pid for state in running_grids(results)] == [2, os.getpid()]
    assert sorted(path.name for path in results.glob(".grid-*")) == [
        ".grid-2.json",
        ".grid-folder.json",
    ]


def test_watch_ends_with_the_grid(results, cli, monkeypatch):
    grid = RunningGrid(results, "mtlkit bench", 1)
    grid.__enter__()
    monkeypatch.setattr("time.sleep", lambda _: grid.__exit__(None, None, None))
    lines = cli("status", results, "--watch", "--json").out.splitlines()
    assert [bool(json.loads(line)["commands"]) for line in lines] == [True, False]


def test_many_failures_and_files_that_are_no_records(tmp_path, cli):
    store = ResultStore(tmp_path)
    for seed in range(23):
        store.save(fakes.failure(fakes.cell(seed=seed)))
    folder = store.folder(fakes.cell(seed=99))
    folder.mkdir()
    (folder / RECORD).write_text("{")
    told = cli("status", tmp_path).out.splitlines()
    assert len(told) == 22
    assert told[-2:] == [
        "failed   and 3 more",
        f"{tmp_path}: 0 done, 23 failed; no grid is running.",
    ]


def test_no_such_folder(tmp_path, cli):
    told = cli("status", tmp_path / "none")
    assert told.code == 3
    assert told.err.endswith("\n\nhint: mtlkit bench\n")
