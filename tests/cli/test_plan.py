import os
import subprocess
import sys
from pathlib import Path

import pytest

import mtlkit
from mtlkit.store import ResultStore
from tests.conftest import DATA

ROOT = Path(mtlkit.__file__).parents[1]


@pytest.fixture
def grid(home, tmp_path):
    words = ["-d", DATA, "--models", "shared-bottom,mmoe", "--balancers", "uniform,uwl,dwa"]
    words += ["--references", "none", "--epochs", "1", "--device", "cpu", "--jobs", "1"]
    return [*words, "--data-dir", str(home), "--out", str(tmp_path / "out put")]


def keys(told):
    return {line.split()[-1] for line in told.out.splitlines() if "to run" in line}


def test_a_plan_is_a_dry_run(cli, grid):
    told = cli("plan", *grid)
    assert told.code == 0
    assert len(keys(told)) == 18
    assert told.out == cli("bench", *grid, "--dry-run").out


def test_shards_are_a_partition_and_stable(cli, grid):
    """Every cell is in one of them, which does not depend on the rest of the grid."""
    shards = [keys(cli("plan", *grid, "--shard", f"{number}/4")) for number in range(1, 5)]
    assert set.union(*shards) == keys(cli("plan", *grid))
    assert sum(map(len, shards)) == 18
    smaller = [*grid, "--models", "mmoe", "--seeds", "0,2"]
    for number, shard in enumerate(shards, 1):
        fewer = keys(cli("plan", *smaller, "--shard", f"{number}/4"))
        assert fewer == shard & keys(cli("plan", *smaller))


@pytest.mark.parametrize("shard", ["0/4", "5/4", "4", "1/0", "a/b", "-1/3", "1/2/3"])
def test_shards_that_cannot_be(cli, grid, shard):
    told = cli("bench", *grid, f"--shard={shard}")
    assert told.code == 2
    assert "\n\nhint: mtlkit bench --shard 3/16" in told.err


@pytest.mark.slow
def test_the_slurm_script_runs_the_grid(cli, grid, tmp_path):
    """Under bash, as the jobs of an array would: together they are the grid."""
    told = cli("plan", *grid, "--models", "mmoe", "--seeds", "2", "--slurm", "3")
    assert told.code == 0
    assert "6 cells on synthetic" in told.err
    assert told.out.startswith("#!/bin/bash\n#SBATCH ")
    assert "#SBATCH --array=1-3\n" in told.out
    script = tmp_path / "grid.sh"
    script.write_text(told.out)
    for number in range(1, 4):
        job = {"SLURM_ARRAY_TASK_ID": str(number), "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(
            ["bash", str(script)], env=os.environ | job, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
    assert len(list(ResultStore(tmp_path / "out put").scan())) == 6
    assert sys.executable in told.out


def test_a_script_for_a_wrong_grid_is_not_printed(cli, grid):
    told = cli("plan", *grid, "--models", "mmo", "--slurm", "3")
    assert (told.code, told.out) == (2, "")
    assert "mmoe" in told.err
    told = cli("plan", *grid, "--slurm", "3", "--shard", "1/2")
    assert (told.code, told.out) == (2, "")
