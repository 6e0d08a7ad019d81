"""The table that ``benchmarks/boosted_trees.py`` prints: a tree for each task beside networks."""

import re
import subprocess
import sys

import mtlkit
from tests.documents import ROOT

DATASET = "synthetic[rows=2000,d=8]"


def test_a_tree_stands_above_the_networks(tmp_path):
    mtlkit.run_grid(
        dataset=DATASET, models=["mmoe"], balancers=["uniform"], seeds=2, epochs=1,
        out=tmp_path / "results", data_dir=tmp_path,
    )  # fmt: skip
    script = ROOT / "benchmarks" / "boosted_trees.py"
    ended = subprocess.run(
        [sys.executable, str(script), DATASET, "--results", str(tmp_path / "results")],
        env={"MTLKIT_DATA": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "## synthetic" in ended.stdout
    rows = re.findall(r"^\| ([\w+ -]+) \| (.*) \|$", ended.stdout, re.MULTILINE)
    names = [name for name, _ in rows]
    assert names[0] == "boosted tree"
    assert {"single-task", "mmoe + uniform"} <= set(names[1:])

    # The numbers of the networks are those of the results.
    results = mtlkit.read_results(tmp_path / "results")
    rows_of_mmoe = results[
        (results.model == "mmoe") & (results.split == "test") & (results.metric == "r2")
    ]
    for mean in rows_of_mmoe["mean"]:
        assert f"{mean:.4f} ±" in dict(rows)["mmoe + uniform"]
