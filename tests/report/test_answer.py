"""The answer: each of its sentences on a folder where it must come, and where it must not."""

import copy
import io
import shlex

import numpy as np
import pytest
from scipy import stats

from mtlkit.cli.results import results_table
from mtlkit.report import write_report
from mtlkit.report.answer import answer
from mtlkit.report.findings import gather
from mtlkit.report.frame import load
from mtlkit.report.summary import summarise
from mtlkit.report.verdicts import judge
from mtlkit.store import ResultStore
from tests.fakes import cell, failure, record

LUCK = np.array([0.0010, -0.0008, 0.0002, -0.0006, 0.0004])
JITTER = np.array([0.0002, -0.0001, -0.0003, 0.0001, 0.0003])
SINGLE = 0.9


class Grid:
    """Rows of two tasks with planted metrics, on a single-task of 0.9 with 60,000 parameters."""

    def __init__(self, root):
        self.store = ResultStore(root)

    def add(self, model, balancer="uniform", gains=(0.0, 0.0), jitter=1.0, validation=None, **how):
        seeds, parameters = how.get("seeds", 5), how.get("parameters", 30_000)
        for seed in range(seeds):
            one = cell(model, balancer, seed)
            made = record(one)
            metrics = copy.deepcopy(made.metrics)
            for task, gain, sign in zip(("income", "marital"), gains, (1, -1), strict=True):
                value = SINGLE + gain + LUCK[seed] + sign * jitter * JITTER[seed]
                metrics["test"][task]["auc"] = value
                shift = gain if validation is None else validation
                metrics["validation"][task]["auc"] = SINGLE + shift + LUCK[seed]
            cost = made.cost | {"parameters": parameters}
            timing = made.timing | {"train_seconds": parameters / 1000}
            changed = {"metrics": metrics, "cost": cost, "timing": timing}
            self.store.save(made.model_copy(update=changed | how.get("more", {})))
        return self

    def single(self, **how):
        return self.add("single-task", "none", jitter=0, **{"parameters": 60_000} | how)

    def sentences(self):
        frames = load(self.store)
        [block] = frames.blocks
        summary = summarise(frames, block)
        seen = gather(frames, summary, {}, self.store.root)
        said = answer(seen, judge(frames, summary))
        for sentence in said:
            assert not sentence.row or summary.row(sentence.row).group.seeds
        return said

    def answer(self):
        said = self.sentences()
        rules = [sentence.rule for sentence in said]
        assert len(rules) == len(set(rules))
        return {sentence.rule: sentence for sentence in said}


@pytest.fixture
def grid(tmp_path):
    return Grid(tmp_path / "results")


def test_a_better_row(grid):
    said = grid.single().add("mmoe", gains=(0.01, 0.02)).add("ple", gains=(-0.01, -0.02)).answer()
    assert said["use"].text.startswith(
        "Use mmoe + uniform, the best of 2 multi-task rows on validation: it is better than "
        "single-task over all tasks (Δm +3.75 ± 0."
    )
    # A paired t-interval by hand; AUCs of 0.9 lie 0.4 from a useless model.
    half = stats.t.ppf(0.975, 4) * JITTER.std(ddof=1) / np.sqrt(5)
    mean = JITTER.mean()
    assert f"better on income (+{0.01 + mean:.4f} ± {half:.4f} AUC)" in said["tasks"].text
    assert f"marital (+{0.02 - mean:.4f} ± {half:.4f} AUC)" in said["tasks"].text
    assert "30\u202f000 parameters, 50 % of single-task's 60\u202f000" in said["cost"].text
    assert "30.0 s of training a run, single-task 60.0 s" in said["cost"].text
    assert "Of 1 other row beside" in said["others"].text
    assert "1 is worse" in said["others"].text
    assert "caveat" not in said


def test_an_equivalent_row_that_is_smaller(grid):
    said = grid.single().add("mmoe", jitter=0.5).answer()
    assert said["use"].text.startswith("Use mmoe + uniform")
    assert "is equivalent to single-task" in said["use"].text
    assert "margin 0.25 %" in said["use"].text
    # the margin by task: 0.0025 of 0.9 - 0.5
    assert "equivalent on income" in said["tasks"].text
    assert "margin 0.0010" in said["tasks"].text
    assert "others" not in said


@pytest.mark.parametrize("gain", [0.0, -0.05])
def test_neither_larger_nor_worse_rows_are_recommended(grid, gain):
    size = 30_000 if gain else 70_000
    said = grid.single().add("mmoe", gains=(gain, gain), parameters=size).answer()
    assert said["use"].text.startswith("Use single-task: mmoe + uniform, the best of 1 multi-task")
    assert ("is worse than" if gain else "is equivalent to") in said["use"].text


def test_a_smaller_row_stands_in_for_a_larger_one(grid):
    grid.single().add("ple", validation=0.01, parameters=90_000)
    said = grid.add("mmoe").add("shared-bottom", validation=-0.01).answer()
    assert said["use"].text.startswith(
        "Use mmoe + uniform, the best on validation of 2 rows that are smaller than single-task"
    )


def test_the_row_is_chosen_on_validation(grid):
    grid.single().add("mmoe", gains=(0.02, 0.02), validation=0.001)
    said = grid.add("ple", gains=(0.01, 0.01), validation=0.002).answer()
    assert said["use"].text.startswith("Use ple + uniform")
    assert "1 is better" in said["others"].text


def test_the_smallest_that_does_as_well(grid):
    grid.single().add("mmoe", gains=(0.01, 0.01)).add("ple", parameters=10)
    said = grid.add("shared-bottom", gains=(0.01, 0.01), validation=0, parameters=20_000).answer()
    assert "1 is equivalent, 1 is worse" in said["others"].text
    assert "shared-bottom + uniform, with 20\u202f000 parameters" in said["others"].text


def test_balancers(grid):
    grid.single()
    for weights, gain in (("uniform", 0.01), ("static[w=1:3]", 0.0), ("static[w=3:1]", 0.005)):
        grid.add("mmoe", weights, (gain, gain))
    said = grid.add("mmoe", "uwl", (0.01, 0.01)).answer()
    assert said["balancers"].text.startswith(
        "mmoe, balancers against fixed weights: beside uniform, the best of 3 weightings on "
        "validation, of 1 balancers none is better, 1 is equivalent; none of the differences"
    )
    assert "beat them" not in said["balancers"].text
    assert "missing" not in said
    said = grid.add("mmoe", "pcgrad", (0.02, 0.02)).answer()
    assert "of 2 balancers 1 is better" in said["balancers"].text
    assert said["balancers"].text.endswith("those that beat them: pcgrad.")


def test_models_of_which_the_same_is_said_share_a_sentence(grid):
    grid.single()
    for model, best in (("mmoe", 0.01), ("ple", 0.01), ("cgc", 0.02)):
        for weights, gain in (("uniform", best), ("static[w=1:3]", 0.0), ("static[w=3:1]", 0.005)):
            grid.add(model, weights, (gain, gain))
        grid.add(model, "uwl", (0.01, 0.01))
    texts = [sentence.text for sentence in grid.sentences() if sentence.rule == "balancers"]
    assert [text.partition(", balancers")[0] for text in texts] == [
        "cgc",
        "Under each of mmoe and ple",
    ]
    assert "1 is worse" in texts[0]
    assert "1 is equivalent" in texts[1]


def test_without_a_sweep_no_balancer_is_judged(grid):
    said = grid.single().add("mmoe").add("mmoe", "uwl").answer()
    assert "balancers" not in said
    assert "is open" in said["missing"].text
    assert "--models mmoe --balancers scalarization" in said["missing"].command
    # nobody asks where there is no balancer
    other = Grid(grid.store.root.parent / "other").single().add("mmoe")
    assert "missing" not in other.answer()


def test_what_is_open_says_how_many_seeds(grid):
    grid.single()
    for seed in range(3):
        made = record(cell("mmoe", "uniform", seed))
        metrics = copy.deepcopy(made.metrics)
        for split in metrics.values():
            for task in split.values():
                task["auc"] = SINGLE + LUCK[seed] + (0.004, 0.020, 0.002)[seed]
        grid.store.save(made.model_copy(update={"metrics": metrics}))
    said = grid.answer()
    gains = np.array([0.004, 0.020, 0.002])
    ratio = gains.mean() / gains.std(ddof=1)
    needed = next(n for n in range(2, 99) if ratio * np.sqrt(n) > stats.t.ppf(0.975, n - 1))
    assert f"about {needed} would" in said["caveat"].text
    assert f"--seeds {needed}" in said["caveat"].command


def test_two_seeds_are_few(grid):
    said = grid.single(seeds=2).add("mmoe", gains=(0.1, 0.1), seeds=2, jitter=0).answer()
    assert "rests on 2 seeds" in said["caveat"].text


def test_a_curve_that_rises(grid):
    rising = [
        {"epoch": epoch, "step": epoch, "validation": {"income": {"auc": 0.8 + 0.02 * epoch}}}
        for epoch in range(1, 7)
    ]
    said = grid.single().add("mmoe", gains=(0.02, 0.02), more={"curve": rising}).answer()
    assert said["caveat"].text.startswith("The last quarter of training still brings")
    assert "mmoe + uniform, income" in said["caveat"].text
    assert "epochs=12" in said["caveat"].command


@pytest.mark.parametrize(
    ("fill", "why", "command"),
    [
        (lambda g: g.add("mmoe"), "No single-task row has finished", "--references single-task"),
        (lambda g: g.single(), "No row of a model that shares", "--models shared-bottom,mmoe"),
        (lambda g: g.single(seeds=1).add("mmoe", seeds=1), "one gives no interval", "--seeds 5"),
    ],
)
def test_what_is_missing(grid, fill, why, command):
    fill(grid)
    said = grid.answer()
    assert list(said) == ["missing"]
    assert why in said["missing"].text
    assert command in said["missing"].command
    assert shlex.split(said["missing"].command)[:2] == ["mtlkit", "bench"]


def test_nothing_has_finished(grid):
    grid.store.save(failure(cell("mmoe")))
    said = grid.answer()
    assert "No run has finished" in said["missing"].text
    assert said["missing"].command.endswith("--retry-failed")


def test_a_useless_reference(grid):
    for model, balancer in (("single-task", "none"), ("mmoe", "uwl")):
        grid.add(model, balancer, gains=(-0.4, 0.0))
    said = grid.answer()
    assert list(said) == ["missing"]
    assert "not clearly better than a useless model on income" in said["missing"].text
    assert "epochs=12" in said["missing"].command


def test_the_same_text_everywhere(grid, tmp_path):
    from rich.console import Console

    grid.single().add("mmoe", gains=(0.01, 0.02)).add("mmoe", "uwl")
    said = grid.answer()
    files = write_report(grid.store.root, tmp_path / "out")
    page = files.page.read_text().replace("\u00a0", " ")
    markdown = next(path for path in files.tables if path.suffix == ".md").read_text()
    console = Console(width=100, record=True, file=io.StringIO())
    groups = {old.group for old, _ in grid.store.scan()}
    console.print(results_table(grid.store.root, groups, 100), crop=False)
    console_text = " ".join(console.export_text().split())
    for sentence in said.values():
        text = " ".join(sentence.text.split())
        assert sentence.text.replace("'", "&#39;") in page
        assert sentence.text.replace("*", r"\*").split(" (")[0] in markdown
        assert text in console_text
        if sentence.row:
            assert f'<a href="#row-{sentence.row[:12]}">' in page
            assert page.count(f'id="row-{sentence.row[:12]}"') == 1
        assert sentence.command in console_text
    # above all others
    assert page.index(said["use"].text) < page.index("Results on the test split")
