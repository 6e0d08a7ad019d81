"""A report's numbers, computed again from stored scores by scikit-learn and scipy alone."""

import csv
import json
from collections import defaultdict

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

TASKS = ("task-1", "task-2")
SEEDS = {"single-task": {0, 1, 2}, "shared-bottom": {0, 1, 2}, "mmoe": {0, 1, 3}}


@pytest.fixture(scope="module")
def root(cli, tmp_path_factory):
    """A real grid in which one model has a seed that the reference lacks."""
    root = tmp_path_factory.mktemp("recomputed")
    home = ("--data-dir", root / "data")
    assert cli("fetch", "synthetic[rows=600,d=4]", *home).code == 0
    grid = ("bench", *home, "--out", root, "-j", 1, "--quiet", "--set", "evaluations=1")
    few = (*grid, "--balancers", "uniform", "--batch-size", 100, "--epochs", 2)
    assert cli(*few, "--models", "shared-bottom", "--seeds", 3).code == 0
    assert cli(*few, "--models", "mmoe", "--seeds", "0,1,3", "--references", "none").code == 0
    assert cli("report", root).code == 0
    return root


@pytest.fixture(scope="module")
def auc(root):
    """Model to task to seed to AUC on the test split."""
    found = defaultdict(lambda: defaultdict(dict))
    for file in root.glob("synthetic*/**/record.json"):
        cell = json.loads(file.read_text(encoding="utf-8"))["cell"]
        scores = np.load(file.with_name("scores.npz"))
        for task in TASKS:
            value = roc_auc_score(scores[f"label/{task}"] > 0, scores[f"score/{task}"])
            found[cell["model"]][task][cell["seed"]] = value
    assert {model: set(tasks["task-1"]) for model, tasks in found.items()} == SEEDS
    return found


@pytest.fixture(scope="module")
def rows(root):
    """The rows of the table's CSV, by model."""
    text = (root / "report/tables/synthetic-task-1-task-2.csv").read_text(encoding="utf-8")
    return {row["model"]: row for row in csv.DictReader(text.splitlines())}


def mean_and_half(values):
    values = np.array(values)
    count = len(values)
    half = stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count)
    return values.mean(), half


def changes(auc, model, task):
    """Differences from single-task, seed by seed where both have it."""
    own, reference = auc[model][task], auc["single-task"][task]
    return {seed: own[seed] - reference[seed] for seed in sorted(own.keys() & reference)}


def test_means_and_intervals(auc, rows):
    assert set(rows) == set(SEEDS)
    for model, row in rows.items():
        for task in TASKS:
            mean, half = mean_and_half(list(auc[model][task].values()))
            printed = [float(row[f"{task}_auc_{part}"]) for part in ("mean", "low", "high")]
            assert printed == pytest.approx([mean, mean - half, mean + half], abs=1e-7)


@pytest.mark.parametrize("model", ["shared-bottom", "mmoe"])
def test_differences_from_single_task(auc, rows, model):
    gains = []
    for task in TASKS:
        by_seed = changes(auc, model, task)
        assert float(rows[model][f"{task}_delta"]) == pytest.approx(
            np.mean(list(by_seed.values())), abs=1e-7
        )
        assert int(rows[model][f"{task}_delta_seeds"]) == len(by_seed)
        reference = auc["single-task"][task]
        gains.append([change / (reference[seed] - 0.5) for seed, change in by_seed.items()])
    assert float(rows[model]["delta_m"]) == pytest.approx(np.mean(gains), abs=1e-7)


def text_of(mean, half, sign=""):
    """Four digits, five where the width would be printed as 0."""
    digits = 5 if half < 0.00005 else 4
    return f"{mean:{sign}.{digits}f} ± {half:.{digits}f}".replace("-", "−")


def test_printed_digits(root, auc, rows):
    text = (root / "report/tables/synthetic-task-1-task-2.md").read_text(encoding="utf-8")
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:2] == "| "]
    heads, *cells = lines
    printed = {row[0]: dict(zip(heads, row, strict=False)) for row in cells}
    for model, row in rows.items():
        for task in TASKS:
            metric = printed[model][f"{task} AUC"].strip("*†")
            assert metric == text_of(*mean_and_half(list(auc[model][task].values())))

            # the width of a difference holds the noise of the test rows, too: it is the CSV's
            difference = printed[model][f"Δ {task}"]
            if model == "single-task":
                assert difference == "ref."
                continue
            by_seed = changes(auc, model, task)
            width = float(row[f"{task}_delta_high"]) - float(row[f"{task}_delta_low"])
            expected = text_of(np.mean(list(by_seed.values())), width / 2, "+")
            few = f" (n={len(by_seed)})" if model == "mmoe" else ""
            assert difference.removesuffix("\\*") == expected + few
