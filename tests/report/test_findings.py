"""Every rule of the findings, on records that provoke it and on others that do not."""

import json
import shlex
from types import SimpleNamespace

import numpy as np
import pytest

from mtlkit.grid.grid_settings import TuningSettings, read_budget
from mtlkit.registry import MODELS
from mtlkit.report import write_report
from mtlkit.report.findings import BLOCK_RULES, ROW_RULES, _wider, find, with_fewer_experts
from mtlkit.report.frame import load
from mtlkit.report.probe_frames import load_probes
from mtlkit.report.summary import summarise
from mtlkit.spec import parse_spec
from mtlkit.store import ResultStore
from mtlkit.studies import Study, Trial, write_study
from tests.conftest import DATA
from tests.fakes import cell, failure, probes, record

GAINS = {"single-task": 0.0, "mmoe": 0.004, "ple": 0.003}
EPOCHS = (1, 2, 3, 4, 5, 6, 7, 8)


def curve(train, loss, auc):
    """Evaluation points with the same numbers for both tasks."""
    tasks = ("income", "marital")
    return [
        {
            "epoch": epoch,
            "train_loss": dict.fromkeys(tasks, train[i]),
            "validation": {name: {"logloss": loss[i], "auc": auc[i]} for name in tasks},
        }
        for i, epoch in enumerate(EPOCHS)
    ]


CALM = curve(np.linspace(0.5, 0.3, 8), np.linspace(0.5, 0.4, 8), [0.7, 0.8, 0.85] + [0.9] * 5)


class Grid:
    """Runs in which no rule finds anything, with changes to those of mmoe."""

    def __init__(self, root):
        self.store = ResultStore(root)
        self.training = {}
        self.change = lambda run: run
        self.change_probes = lambda arrays: arrays
        self.balancers = {"single-task": "none", "mmoe": "uwl", "ple": "uwl"}
        self.fail = ()
        self.positives = 3060

    def find(self):
        for model, balancer in self.balancers.items():
            for seed in range(3):
                self.save(model, balancer, seed)
        frames = load(self.store)
        [block] = frames.blocks
        read = load_probes(frames, block).by_group
        found = find(frames, summarise(frames, block), read, self.store.root)
        return {finding.rule: finding for finding in found}

    def save(self, model, balancer, seed):
        one = cell(model, balancer, seed, training={"batch_size": 1024} | self.training)
        if (model, seed) in self.fail:
            self.store.save(failure(one, timeout=seed == 1))
            return
        run = scores(positives=self.positives)(record(one))
        for split in run.metrics.values():
            for task in split.values():
                task["auc"] = 0.9 + GAINS[model] + 1e-4 * seed + 1e-5 * seed * len(model)
        run = run.model_copy(update={"curve": CALM})
        arrays = probes(one)
        arrays["weights"] = np.ones_like(arrays["weights"])
        arrays["gradient_cosine"] = np.abs(arrays["gradient_cosine"])
        for name, values in arrays.items():
            if name.startswith("gate/") and name.endswith("/mean"):
                arrays[name] = np.full_like(values, 1 / values.shape[-1])
        if model == "mmoe":
            run, arrays = self.change(run), self.change_probes(arrays)
        self.store.save(run, {"probes": arrays})


@pytest.fixture
def grid(tmp_path):
    return Grid(tmp_path)


def scores(**numbers):
    """A change of all scores of a run, on both splits."""

    def change(run):
        for split in run.metrics.values():
            for task in split.values():
                task.update({name: v(task) if callable(v) else v for name, v in numbers.items()})
        return run

    return change


def points(*numbers):
    return lambda run: run.model_copy(update={"curve": curve(*numbers)})


def test_sound_runs_have_no_findings(grid):
    assert grid.find() == {}


def baseline(grid, gap):
    """Runs of a tree that is a gap above the best network, mmoe."""
    for seed in range(3):
        one = cell("tree", "none", seed, training={"batch_size": 1024})
        run = scores(positives=3060)(record(one))
        for split in run.metrics.values():
            for task in split.values():
                task["auc"] = 0.9 + GAINS["mmoe"] + 1e-4 * seed + 4e-5 * seed + gap
        grid.store.save(run.model_copy(update={"curve": []}))


def test_behind_a_baseline(grid):
    baseline(grid, gap=0.01)
    finding = grid.find()["behind a baseline"]
    assert finding.sentence.startswith(
        "No network reaches the tree baseline on income: AUC 0.9141 against 0.9041 of mmoe + uwl, "
        "worse by 0.0100"
    )
    assert finding.sentence.count("No network") == 2
    assert "--models mmoe" in finding.command
    assert "--tune 16 " in finding.command


def test_a_baseline_that_networks_reach_is_no_finding(grid):
    baseline(grid, gap=-0.01)
    assert grid.find() == {}


def test_divergence(grid):
    grid.fail = [("mmoe", 2), ("ple", 0)]
    finding = grid.find()["divergence"]
    assert "in 2 of 3 rows: mmoe + uwl (1 of 3 runs, seed 2, by step 412)" in finding.sentence
    assert "--set clip_norm=1" in finding.command
    assert "--tasks income,marital --models mmoe " in finding.command
    assert "--seeds 3 " in finding.command


def test_a_timeout_is_no_divergence(grid):
    grid.fail = [("mmoe", 1)]
    assert "divergence" not in grid.find()


def test_weight_collapse(grid):
    def change(arrays):
        arrays["weights"][-1] = [1.96, 0.04]
        return arrays

    grid.change_probes = change
    finding = grid.find()["weight collapse"]
    assert "mmoe + uwl (marital 2.00 %, an equal share is 50 %)" in finding.sentence
    # constant weights are as they were typed
    grid.balancers = {"single-task": "none", "mmoe": "static[w=49:1]"}
    grid.store = ResultStore(grid.store.root / "constant")
    assert "weight collapse" not in grid.find()


def test_starving_task(grid):
    grid.change = scores(auc=0.501)
    finding = grid.find()["starving task"]
    assert "mmoe + uwl (income AUC 0.5010 ± 0.0000, the best row 0.9031)" in finding.sentence


def test_few_positives_tell_nothing_of_a_task(grid):
    grid.change = scores(auc=0.501, calibration=2.0)
    grid.positives = 50
    assert not {"starving task", "calibration drift"} & grid.find().keys()


def test_where_nobody_learns_a_task_nobody_starves(grid):
    grid.change = scores(auc=0.501)
    grid.balancers = {"mmoe": "uwl"}
    assert "starving task" not in grid.find()


def test_idle_experts(grid):
    def change(arrays):
        for name, values in arrays.items():
            if name.endswith("/mean"):
                values[-1] = [0.97] + [0.03 / 7] * 7
        return arrays

    grid.change_probes = change
    finding = grid.find()["idle experts"]
    assert "level 1: 88 % idle, gates use 1.2 of 8 experts" in finding.sentence
    assert "--models 'mmoe[experts=4]'" in finding.command


@pytest.mark.parametrize(
    ("typed", "fewer"),
    [
        ("mmoe[experts=5,hidden=8]", "mmoe[experts=2,hidden=8]"),
        ("ple", "ple[specific=1,shared=1]"),
        ("cgc[shared=1]", "cgc[shared=1,specific=1]"),
        ("dbmtl[experts=8]", "dbmtl[experts=4]"),
        ("adatt", "adatt[specific=1]"),
        ("stem", "shared-bottom"),
    ],
)
def test_fewer_experts_are_options_that_the_model_has(typed, fewer):
    def options_of(text):
        spec = parse_spec(text)
        return MODELS.load(spec.name).Options.model_validate(spec.options).model_dump()

    row = SimpleNamespace(
        group=SimpleNamespace(typed=(typed,), resolved={"model": {"options": options_of(typed)}})
    )
    assert with_fewer_experts(row) == fewer
    assert options_of(fewer)


def test_gradient_conflict(grid):
    def change(arrays):
        cosine = arrays["gradient_cosine"]
        cosine[:] = 0.2
        cosine[:7, :, 0, 1] = cosine[:7, :, 1, 0] = -0.3
        cosine[:9, 2, 0, 1] = cosine[:9, 2, 1, 0] = -0.3
        return arrays

    grid.change_probes = change
    finding = grid.find()["gradient conflict"]
    numbers = "(income and marital 70 %, mean cosine −0.150, most in experts 90 %)"
    assert f"in 1 of 3 rows: mmoe + uwl {numbers}" in finding.sentence
    assert "--balancers pcgrad,cagrad,upgrad" in finding.command


def test_a_few_opposed_gradients_are_no_conflict(grid):
    def change(arrays):
        arrays["gradient_cosine"][:5, :, 0, 1] = -0.3
        return arrays

    grid.change_probes = change
    assert "gradient conflict" not in grid.find()


def test_negative_transfer(grid):
    grid.change = scores(auc=lambda task: task["auc"] - 0.02)
    finding = grid.find()["negative transfer"]
    assert "in 1 of 3 rows: mmoe + uwl (income −0.0161" in finding.sentence
    assert "--models stem,home" in finding.command  # the grid has ple


def test_overfitting(grid):
    falling = np.linspace(0.5, 0.1, 8)
    grid.change = points(falling, [0.5, 0.4, 0.42, 0.44, 0.45, 0.46, 0.47, 0.48], [0.9] * 8)
    assert "mmoe + uwl (income 20 %)" in grid.find()["overfitting"].sentence


def test_without_a_validation_loss_nothing_overfits(grid):
    grid.change = points(np.linspace(0.5, 0.1, 8), [None] * 8, [0.9] * 8)
    assert "overfitting" not in grid.find()


def test_a_task_without_its_metric_is_left_alone(grid):
    def change(run):
        for split in run.metrics.values():
            del split["marital"]["auc"]
        return run

    grid.balancers = {"mmoe": "uwl"}
    grid.change = change
    assert grid.find() == {}


def test_a_run_that_gets_worse_on_both_does_not_overfit(grid):
    rising = [0.5, 0.4, 0.42, 0.44, 0.45, 0.46, 0.47, 0.48]
    grid.change = points(rising, rising, [0.9] * 8)
    assert "overfitting" not in grid.find()


def test_still_rising(grid):
    grid.change = points([0.5] * 8, [0.4] * 8, np.linspace(0.6, 0.88, 8))
    finding = grid.find()["still rising"]
    assert "mmoe + uwl (income 29 %)" in finding.sentence
    assert "--set epochs=12" in finding.command


def test_calibration_drift(grid):
    grid.change = scores(calibration=1.2)
    finding = grid.find()["calibration drift"]
    assert "mmoe + uwl (income 1.20 on validation, 1.20 on test)" in finding.sentence


def test_idle_task(grid):
    grid.change = points([0.5, 0.4, 0.0, 0.3, 0.3, 0.3, 0.3, 0.3], [0.4] * 8, [0.9] * 8)
    finding = grid.find()["idle task"]
    assert "had no label between two evaluation points 3 of 72 times" in finding.sentence
    assert "--set batches=covering" in finding.command


def test_few_positives_in_a_batch(grid):
    grid.training = {"batch_size": 64}
    finding = grid.find()["few positives in a batch"]
    assert "A batch of 64 rows has 3.9 labels of the rarer class of" in finding.sentence


def test_too_few_seeds(grid):
    grid.change = scores(auc=lambda task: 0.9 + 0.01 * (task["auc"] - 0.904 > 1e-4))
    grid.balancers.pop("ple")
    finding = grid.find()["too few seeds"]
    assert (
        "1 of 1 rows cannot be told from single-task with 3 seeds; about 6 would tell for 1"
        in finding.sentence
    )
    assert "--seeds 6 " in finding.command


def test_one_seed(grid):
    save = grid.save
    grid.save = lambda model, balancer, seed: save(model, balancer, 7)
    finding = grid.find()["too few seeds"]
    assert finding.sentence.startswith("One seed gives no interval")
    assert "--seeds 5 " in finding.command


def test_one_method(grid):
    grid.balancers = {"single-task": "none", "mmoe": "static[w=1:1]", "ple": "uniform"}
    finding = grid.find()["one method"]
    assert "static[w=1:1] and uniform are one method" in finding.sentence
    assert finding.command == "mtlkit info static"


@pytest.mark.parametrize(
    ("chosen", "rate", "says", "wider"),
    [
        (2, 0.01, "highest", "tune.space.lr.log=0.001:0.03"),
        (1, 0.001, "lowest", "tune.space.lr.log=0.000333:0.01"),
        (3, 0.003, "", ""),
    ],
)
def test_edge_of_the_space(grid, chosen, rate, says, wider):
    grid.training = {"lr": rate}
    for model in ("mmoe", "ple"):
        one = cell(model, "uwl", training={"batch_size": 1024, "lr": rate})
        lrs = [None, 0.001, 0.01, 0.003]
        trials = [Trial(settings={"lr": lr} if lr else {}, keys=[], group="") for lr in lrs]
        trials[chosen] = trials[chosen].model_copy(update={"group": one.group})
        space = {"lr": {"log": [0.001, 0.01]}, "dropout": {"choice": [0.1, 0.2]}}
        study = Study(
            id=one.key, model=model, balancer="uwl", training="", sampler="sobol", seed=0,
            seeds=(1000,), select="mean", space=space, budget=4, trials=trials, choice=chosen,
        )  # fmt: skip
        write_study(grid.store.root, study)
    finding = grid.find().get("edge of the space")
    assert (finding is not None) == bool(says)
    if finding:
        assert f"The best lr is the {says} that was tried, from 0.001 to 0.01, in 2 of 2" in (
            finding.sentence
        )
        assert wider in finding.command
        assert "--tune 4" in finding.command


@pytest.mark.parametrize(
    ("kind", "low", "high", "edge", "expected"),
    [
        ("log", 5e-4, 1e-2, "highest", "0.0005:0.03"),
        ("log", 0.01, 0.5, "highest", "0.01:0.75"),  # not 1.5
        ("float", 0.0, 0.5, "highest", "0:0.75"),
        ("float", 0.5, 0.99, "highest", "0.5:0.995"),
        ("float", 0.9, 0.999, "highest", "0.9:0.9995"),  # not 1
        ("float", 0.0, 3.0, "highest", "0:4.5"),
        ("float", 0.1, 1.0, "lowest", "0:1"),
        ("int", 2, 8, "highest", "2:11"),
        ("int", 2, 8, "lowest", "1:8"),
        ("int", 256, 1024, "highest", "256:1410"),
        ("int", 4000, 5000, "lowest", "3500:5000"),
    ],
)
def test_ranges_go_on_by_little_and_within_what_is_allowed(kind, low, high, edge, expected):
    assert _wider(kind, low, high, edge) == expected


@pytest.mark.parametrize(
    ("limit", "halving", "typed"),
    [
        ("600 s", None, "600s"),
        ("2.5 s", None, "2.5s"),
        ("20,000,000 training rows", None, "20000000rows"),
        ("", 3, "4"),
    ],
)
def test_commands_have_the_budget_of_the_row(grid, limit, halving, typed):
    one = cell("mmoe", "uwl", training={"batch_size": 1024})
    trials = [Trial(settings={}, keys=[], group=one.group)] * 4
    study = Study(
        id=one.key, model="mmoe", balancer="uwl", training="", sampler="sobol", seed=0, limit=limit,
        seeds=(1000,), select="mean", space={}, budget=4, halving=halving, trials=trials, choice=0,
    )  # fmt: skip
    write_study(grid.store.root, study)
    grid.change = scores(calibration=1.2)
    words = shlex.split(grid.find()["calibration drift"].command)
    assert words[words.index("--tune") + 1] == typed
    tune = TuningSettings.model_validate(read_budget(typed) | {"halving": halving})
    assert tune.budget is not None
    assert (f"tune.halving={halving}" in words) == bool(halving)


def test_a_study_of_a_stranger_writes_no_control_characters(grid, cli):
    one = cell("mmoe", "uwl", training={"batch_size": 1024})
    trials = [Trial(settings={}, keys=[], group=one.group)]
    odd = "\x1b[31m"
    study = Study(
        id=one.key, model=f"mmoe{odd}", balancer=f"uwl{odd}", training="", sampler="sobol", seed=0,
        seeds=(1000,), select=odd, space={}, budget=1, limit=odd, trials=trials, choice=0,
    )  # fmt: skip
    write_study(grid.store.root, study)
    grid.change = scores(calibration=1.2)
    finding = grid.find()["calibration drift"]
    assert odd not in cli("diagnose", grid.store.root).out
    files = write_report(grid.store.root)
    assert all(odd not in file.read_text("utf-8") for file in (files.page, *files.tables))
    assert "x1b" in finding.command


def test_every_rule_is_tested():
    rules = [*(rule.look for rule in ROW_RULES), *BLOCK_RULES]
    assert all(f"test_{rule.__name__}" in globals() for rule in rules)


# --- where they are shown


def test_a_report_has_them(grid):
    grid.change = scores(calibration=1.2)
    sentence = grid.find()["calibration drift"].sentence
    files = write_report(grid.store.root)
    assert f"<strong>calibration drift:</strong> {sentence}" in files.page.read_text("utf-8")
    [markdown] = [path for path in files.tables if path.name.endswith("-findings.md")]
    assert sentence in markdown.read_text("utf-8")
    command = grid.find()["calibration drift"].command
    assert f"| `{command}` |" in markdown.read_text("utf-8")


def test_what_is_a_warning_is_said_once(grid):
    grid.balancers = {"single-task": "none", "mmoe": "static[w=1:1]", "ple": "uniform"}
    sentence = grid.find()["one method"].sentence
    page = write_report(grid.store.root).page.read_text("utf-8")
    assert page.count(f"{sentence}</p>") == 1
    assert f"</strong> {sentence}" not in page


def test_the_command_says_them(grid, cli):
    grid.change = scores(calibration=1.2)
    [finding] = grid.find().values()
    said = cli("diagnose", grid.store.root)
    assert said.code == 0
    assert f"calibration drift: {finding.sentence}\n  {finding.command}\n" in said.out
    [row] = json.loads(cli("diagnose", grid.store.root, "--json").out)
    assert row == {
        "dataset": "census, protocol mmoe",
        "rule": "calibration drift",
        "sentence": finding.sentence,
        "command": finding.command,
    }


def test_nothing_there(tmp_path, cli):
    said = cli("diagnose", tmp_path)
    assert (said.code, "There are no run records" in said.err) == (3, True)


def test_one_run_is_no_results_folder(grid, cli):
    grid.find()
    run = next(grid.store.root.glob("*/*/*/seed-*"))
    said = cli("diagnose", run)
    assert (said.code, f"{run} is one run, not a results folder." in said.err) == (2, True)


def test_real_runs_and_their_commands(home, tmp_path, cli):
    """A grid that is trained for a moment, one that diverges, and one that is tuned."""
    out = ("--out", tmp_path, "--data-dir", home, "--quiet", "-j", 1, "--set", "evaluations=4")
    grid = ("bench", "-d", DATA, "--models", "mmoe[experts=4]", *out, "--batch-size", 50)
    cli(*grid, "--balancers", "uniform,uwl", "--epochs", 2, "--seeds", 2)
    cli(*grid, "--balancers", "uniform", "--lr", 1e12, "--seeds", 1, "--references", "none")
    cli(*grid, "--balancers", "uniform", "--epochs", 1, "--seeds", 1, "--tune", 4)
    found = json.loads(cli("diagnose", tmp_path, "--json").out)
    rules = {finding["rule"] for finding in found}
    assert "still rising" in rules
    for finding in found:
        words = shlex.split(finding["command"])[1:]
        if words[0] == "bench":
            words += ["--dry-run", "--data-dir", home]
        said = cli(*words)
        assert said.code == 0, (finding, said.err)
        assert words[0] == "info" or "batch_size=50" in words
