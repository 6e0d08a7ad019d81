"""``mtlkit bench --tune`` from its flags to its table."""

import json
import os
import subprocess
import sys
import time

import pytest

from mtlkit.store import ResultStore
from tests.conftest import DATA
from tests.documents import ROOT


@pytest.fixture
def bench(cli, home, tmp_path):
    """A tuned grid of one small model, or what a test adds to it."""

    def run(*arguments):
        grid = ["bench", "-d", DATA, "--models", "shared-bottom", "--balancers", "uniform,uwl"]
        grid += ["--references", "none", "--epochs", "1", "--batch-size", "50", "--device", "cpu"]
        return cli(*grid, "--data-dir", home, "--out", tmp_path / "results", *arguments)

    return run


def test_a_dry_run_shows_both_phases(bench, tmp_path):
    result = bench("--tune", "3", "--seeds", "2", "--dry-run")
    assert result.code == 0
    assert "Phase 1: 2 methods x 3 trials x 1 seed = 6 cells at most." in result.err
    assert "Phase 2: 2 methods x 2 other seeds = 4 cells, with the settings that phase 1" in (
        result.err
    )
    assert sum(" to run " in line for line in result.out.splitlines()) == 6
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "phase"),
    [
        (["--tune", "10m"], "2 methods x all trials that begin within 600 s x 1 seed."),
        (["--tune", "2Mrows"], "x all trials that begin within 2,000,000 training rows x 1 seed."),
        (["--tune", "9", "--set", "tune.halving=3"], "x 9 + 3 + 1 trials x 1 seed = 26 cells"),
    ],
)
def test_a_dry_run_says_the_budget(bench, arguments, phase):
    result = bench(*arguments, "--dry-run")
    assert result.code == 0
    assert phase in result.err


def test_from_trials_to_a_table(bench, cli, tmp_path):
    first = bench("--tune", "2", "--seeds", "2", "--jobs", "2")
    assert first.code == 0, first.err
    assert "of 2 trials" in " ".join(first.out.split())
    rows = [line for line in first.out.splitlines() if line.strip().startswith("shared-bottom")]
    assert len(rows) == 2

    again = bench("--tune", "2", "--seeds", "2", "--jobs", "1")
    assert "[" not in again.err.replace("[dim]", ""), "nothing runs twice"
    assert again.out == first.out

    store = ResultStore(tmp_path / "results")
    keys = [record.key for record, _ in store.scan()]
    assert len(keys) == len(set(keys)) == 2 * 2 + 2 * 2
    shown = json.loads(cli("report", tmp_path / "results", "--json").out)
    assert {(row["model"], row["balancer"], row["seeds"]) for row in shown} == {
        ("shared-bottom", "uniform", 2),
        ("shared-bottom", "uwl", 2),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tune", "0"], "'tune.trials' of the grid cannot be 0"),
        (["--tune", "2", "--set", "tune.space.lr.log=0:1"], "no logarithm"),
        (["--tune", "2", "--set", "tune.space.lr.log=1:1"], "is empty: 1 is not below 1"),
        (["--tune", "2", "--set", "tune.space.rate.log=1:2"], "is called 'rate'"),
        (["--tune", "2", "--set", "tune.sampler=grid"], "tune.sampler"),
        (["--tune", "2", "--set", "tune.space=3"], "cannot be 3: it holds key: value pairs."),
        (["--tune", "10 minutes"], "--tune cannot be '10 minutes': write how many trials (20)"),
        (["--tune", "2", "--set", "tune.rows=5"], "choose one of trials and rows"),
        (["--tune", "9s", "--set", "tune.halving=3"], "'tune' of the grid does not hold: halving"),
    ],
)
def test_what_cannot_be_tuned(bench, arguments, message):
    result = bench(*arguments)
    assert result.code == 2
    assert message in result.err
    assert "hint:" in result.err
    assert "Traceback" not in result.err


def test_a_missing_extra(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = bench("--tune", "2", "--set", "tune.sampler=optuna")
    assert result.code == 3
    assert "sampler=optuna needs Optuna, which is not installed." in result.err
    assert "pip install 'mtlkit[optuna]'" in result.err


def test_from_python(home, tmp_path):
    import mtlkit

    grid = {"dataset": DATA, "models": "shared-bottom", "balancers": "uniform", "seeds": 1}
    records = mtlkit.run_grid(
        **grid,
        references="none",
        tune={"trials": 2},
        epochs=1,
        batch_size=50,
        device="cpu",
        data_dir=home,
        out=tmp_path / "results",
    )
    assert [record.cell.seed for record in records] == [0]
    assert len(list(ResultStore(tmp_path / "results").scan())) == 3


class Program:
    """``mtlkit bench --tune 4`` in a process of its own: 8 trials, then 4 cells of what they chose."""

    def __init__(self, out, home, jobs):
        words = ["bench", "-d", DATA, "--models", "shared-bottom", "--balancers", "uniform,uwl"]
        words += ["--references", "none", "--seeds", 2, "--tune", 4, "--epochs", 60]
        words += ["--batch-size", 20, "--device", "cpu", "--jobs", jobs, "--out", out]
        words += ["--data-dir", home, "--quiet"]
        command = [sys.executable, "-m", "mtlkit", *map(str, words)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        self.out = out

    def end(self):
        assert self.process.wait(timeout=300) == 0
        return self.results()

    def kill(self, after):
        """Kill it while the run after so many is under way; when each record was written."""
        while len(self.written()) < after:
            assert self.process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        self.process.kill()
        self.process.wait()
        return self.written()

    def written(self):
        return {path: path.stat().st_mtime_ns for path in self.out.rglob("record.json")}

    def results(self):
        """The studies without their seconds, and the numbers of all records by their keys."""
        studies = [json.loads(path.read_text()) for path in sorted(self.out.glob("studies/*"))]
        for trial in (trial for study in studies for trial in study["trials"]):
            del trial["seconds"]
        records = [record for record, _ in ResultStore(self.out).scan()]
        numbers = {r.key: (r.status, r.metrics, r.best, r.curve) for r in records}
        assert len(records) == len(numbers) == len(self.written()) == 12
        return studies, numbers


@pytest.fixture(scope="module")
def uninterrupted(home, tmp_path_factory):
    return Program(tmp_path_factory.mktemp("uninterrupted"), home, jobs=1).end()


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_in_trials_and_in_the_second_phase_it_ends_in_the_same(
    home, tmp_path, uninterrupted, jobs
):
    written = {}
    for after in (1, 5, 9):  # the last one in the second phase
        written |= Program(tmp_path, home, jobs).kill(after)
    last = Program(tmp_path, home, jobs)
    assert last.end() == uninterrupted
    assert written.items() <= last.written().items(), "a run that was stored ran again"


@pytest.mark.parametrize("name", ["mmoe", "omoe", "uwl"])
def test_info_shows_the_space(cli, name):
    result = cli("info", name)
    assert "Search space of bench --tune" in result.out
    own = "0.001 to 0.1, logarithmic" if name == "uwl" else "one of 32, 64, 64:32"
    assert own in result.out
    assert ("shared by all" in result.out) == (name != "uwl")
    assert json.loads(cli("info", name, "--json").out)["search_space"]
