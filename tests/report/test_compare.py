"""Two folders of results, and two rows of one: only what they share is compared."""

import copy
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from mtlkit.errors import UsageError
from mtlkit.report.compare import compare_folders, compare_rows
from mtlkit.report.frame import load
from mtlkit.report.statistics import MARGIN
from mtlkit.store import ResultStore
from tests.documents import ROOT
from tests.fakes import cell, failure, record

LUCK = np.array([0.0010, -0.0008, 0.0002, -0.0006])
JITTER = np.array([0.0002, -0.0001, -0.0003, 0.0001])
OPPOSITE = JITTER[::-1]


def save(root, model="mmoe", balancer="uniform", gain=(0.0, 0.0), seeds=range(4), **how):
    for seed in seeds:
        made = record(cell(model, balancer, seed, **how))
        metrics = copy.deepcopy(made.metrics)
        for split in metrics.values():
            for task, shift, noise in zip(split.values(), gain, (JITTER, OPPOSITE), strict=True):
                task["auc"] = 0.9 + shift + LUCK[seed] + (noise[seed] if any(gain) else 0.0)
        ResultStore(root).save(made.model_copy(update={"metrics": metrics}))


def folders(first, second):
    return compare_folders(load(ResultStore(first)), load(ResultStore(second)), MARGIN)


@pytest.fixture
def two(tmp_path):
    return tmp_path / "a", tmp_path / "b"


def by_score(compared):
    return {(one.row, one.score): one for one in compared.differences}


def test_the_same_rows_of_two_folders(two):
    save(two[0])
    save(two[1], gain=(0.01, -0.02))
    compared = folders(*two)
    found = by_score(compared)
    assert {score for _, score in found} == {"income AUC", "marital AUC", "Δm, %"}

    # By hand: a paired t-interval, and its p-value by scipy.
    income, marital = (found["mmoe + uniform", f"{task} AUC"] for task in ("income", "marital"))
    differences = 0.01 + JITTER
    half = stats.t.ppf(0.975, 3) * stats.sem(differences)
    assert income.a == pytest.approx(0.9 + LUCK.mean())
    assert income.b - income.a == pytest.approx(differences.mean())
    assert income.found.interval.mean == pytest.approx(differences.mean())
    assert income.found.interval.half == pytest.approx(half)
    assert income.found.p_value == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert (income.found.word, marital.found.word) == ("better", "worse")
    gains = [
        ((0.01 + JITTER[seed]) + (-0.02 + OPPOSITE[seed])) / 2 / (0.4 + LUCK[seed])
        for seed in range(4)
    ]
    gain = found["mmoe + uniform", "Δm, %"]
    assert gain.found.interval.mean == pytest.approx(100 * np.mean(gains))
    assert gain.found.word == "worse"
    assert all(one.after_holm for one in found.values())
    assert compared.is_worse
    assert compared.left_out == compared.notes == ()


def test_the_same_folder_is_equivalent(two):
    save(two[0])
    shutil.copytree(*two)
    compared = folders(*two)
    assert {one.found.word for one in compared.differences} == {"equivalent"}
    assert {one.found.interval.mean for one in compared.differences} == {0.0}
    assert not compared.is_worse


def test_what_is_not_shared_is_listed_with_why(two):
    save(two[0], seeds=(0, 1, 2))
    save(two[1], seeds=(1, 2, 3))
    save(two[0], "ple")
    save(two[1], "cgc")
    save(two[0], "mmoe", dataset="adult")
    save(two[0], tasks=("marital", "income"))
    save(two[0], "omoe", seeds=(0, 1))
    save(two[1], "omoe", seeds=(2, 3))
    compared = folders(*two)
    assert {one.row for one in compared.differences} == {"mmoe + uniform"}
    assert {one.found.interval.n for one in compared.differences} == {2}
    said = "\n".join(compared.left_out)
    for part in (
        "adult, protocol mmoe: only in A.",
        "tasks marital, income: only in A; the other has other contents, tasks or options of it.",
        "ple + uniform: only in A.",
        "cgc + uniform: only in B.",
        "mmoe + uniform: seeds 0, 3 finished in one of the two.",
        "omoe + uniform: seeds 0-3 finished in one of the two.",
    ):
        assert part in said
    assert len(compared.left_out) == 6


def test_rows_of_one_name_and_other_settings_are_compared_and_noted(two):
    save(two[0])
    save(two[1], gain=(0.01, 0.01), training={"lr": 0.01})
    compared = folders(*two)
    assert len(compared.differences) == 3
    [note] = compared.notes
    assert note.endswith("mmoe + uniform: settings differ in training.lr.")


def test_a_run_that_failed_in_b_is_worse(two):
    save(two[0])
    save(two[1], seeds=(0, 1, 2))
    ResultStore(two[1]).save(failure(cell(seed=3)))
    compared = folders(*two)
    assert compared.is_worse
    assert compared.lost == compared.left_out
    assert compared.lost[0].endswith("seeds 3 finished in A, failed in B.")


def test_one_lucky_difference_of_many_is_not_worse(two):
    random = np.random.default_rng(5)
    for model in ("mmoe", "ple", "cgc", "omoe", "shared-bottom"):
        for balancer in ("uniform", "uwl", "dwa", "mgda"):
            save(two[0], model, balancer)
            for seed in range(4):
                made = record(cell(model, balancer, seed))
                metrics = copy.deepcopy(made.metrics)
                for split in metrics.values():
                    for task in split.values():
                        task["auc"] = 0.9 + LUCK[seed] + 0.003 * random.normal()
                ResultStore(two[1]).save(made.model_copy(update={"metrics": metrics}))
    compared = folders(*two)
    assert any(one.found.word == "worse" for one in compared.differences)
    assert not compared.is_worse


def test_two_rows_of_one_folder(tmp_path):
    save(tmp_path)
    save(tmp_path, "ple", "uwl", gain=(0.01, 0.01))
    save(tmp_path, "mmoe", dataset="adult")
    compared = compare_rows(load(ResultStore(tmp_path)), ("mmoe+uniform", "ple +uwl"), MARGIN)
    assert {one.row for one in compared.differences} == {"mmoe + uniform → ple + uwl"}
    assert {one.found.word for one in compared.differences} == {"better"}
    assert compared.left_out == ("adult, protocol mmoe: it does not have both rows.",)
    with pytest.raises(UsageError, match=r"no row 'ple\+uw'. Did you mean ple \+ uwl"):
        compare_rows(load(ResultStore(tmp_path)), ("mmoe+uniform", "ple+uw"), MARGIN)


def test_baselines_are_rows_like_any_other(two):
    for folder, gain in zip(two, ((0.0, 0.0), (0.01, 0.01)), strict=True):
        save(folder, "tree", "none", gain=gain)
        save(folder, gain=gain)
    for seed in range(2):  # useless, and the same in both
        made = record(cell("base-rate", "none", seed))
        for task in made.metrics["test"].values():
            task["auc"] = 0.5
        for folder in two:
            ResultStore(folder).save(made)
    compared = folders(*two)
    found = {key: one.found.word for key, one in by_score(compared).items()}
    assert found["tree", "income AUC"] == "better"
    assert found["base-rate", "income AUC"] == "equivalent"
    assert ("base-rate", "Δm, %") not in found
    assert compared.left_out == ()
    frames = load(ResultStore(two[0]))
    rows = compare_rows(frames, ("tree", "mmoe+uniform"), MARGIN)
    assert {one.row for one in rows.differences} == {"tree → mmoe + uniform"}


def mtlkit(*words):
    command = [sys.executable, "-m", "mtlkit", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_command(two):
    save(two[0])
    save(two[1], gain=(-0.01, 0.02))
    ended = mtlkit("compare", *two)
    assert ended.returncode == 0, ended.stderr
    assert "worse¶" in ended.stdout
    assert "\ncensus, protocol mmoe: mmoe + uniform (4 common seeds)\n" in ended.stdout

    ended = mtlkit("compare", *two, "--fail-if-worse", "--json")
    assert ended.returncode == 1
    found = json.loads(ended.stdout)
    verdicts = {one["score"]: one["verdict"] for one in found["differences"]}
    assert verdicts == {"income AUC": "worse", "marital AUC": "better", "Δm, %": "better"}
    assert mtlkit("compare", *reversed(two), "--fail-if-worse").returncode == 1
    assert mtlkit("compare", two[0], two[0], "--fail-if-worse").returncode == 0


def test_bad_input(two):
    save(two[0], seeds=(0,))
    save(two[1], "ple", seeds=(0,))
    for words, code, text in (
        ((two[0],), 2, "two folders, or one folder and --rows"),
        ((*two, "--rows", "mmoe", "ple"), 2, "two folders, or one folder and --rows"),
        (two, 3, "The two share no finished run."),
        ((two[0], two[0] / "nowhere"), 3, "There are no run records"),
        ((two[0], "--rows", "mmoe+uniform", "uwl"), 2, "There is no row 'uwl'."),
        ((two[0], two[0], "--margin", "0"), 2, "--margin is 0"),
        ((two[0], two[0], "--fail-if-worse"), 2, "no two rows share two seeds"),
    ):
        ended = mtlkit("compare", *words)
        assert ended.returncode == code, ended.stderr
        assert text in ended.stderr
        assert "\nhint: " in ended.stderr
        assert "Traceback" not in ended.stderr


def test_one_common_seed_gives_no_verdict(two):
    for folder in two:
        save(folder, seeds=[0])
    command = [sys.executable, "-m", "mtlkit", "compare", *map(str, two)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert "(1 common seed)" in said
    assert said.count("  unknown") == 3


def test_it_imports_no_torch(two):
    save(two[0])
    code = (
        "import sys; from mtlkit.cli.app import main; "
        f"sys.argv = ['mtlkit', 'compare', {str(two[0])!r}, {str(two[0])!r}]\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "assert 'torch' not in sys.modules"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_other_metrics_are_not_compared(two):
    for folder, tasks in zip(two, (["income", "marital"], ["marital"]), strict=True):
        for seed in range(3):
            made = record(cell(seed=seed))
            metrics = copy.deepcopy(made.metrics)
            for task in tasks:
                metrics["test"][task]["gauc"] = 0.7
            ResultStore(folder).save(made.model_copy(update={"metrics": metrics}))
    loaded = [load(ResultStore(folder), metric="gauc") for folder in two]
    compared = compare_folders(*loaded, MARGIN)
    assert [one.score for one in compared.differences] == ["marital GAUC"]
    [left_out] = compared.left_out
    assert left_out.endswith("not all scores were measured by the same metric in both.")
