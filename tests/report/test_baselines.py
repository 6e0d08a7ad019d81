"""Baselines in a report: rows of their own, dashed lines, and no part in what compares methods."""

import math

import pytest

from mtlkit.report import write_report
from mtlkit.report.frame import load
from mtlkit.report.summary import summarise
from mtlkit.report.tables import build_table, to_csv
from mtlkit.report.verdicts import judge
from mtlkit.store import ResultStore
from tests.fakes import cell, failure, fill, record

SWEEP = [f"static[w={a}:{10 - a}]" for a in (2, 5, 8)]


def tree(auc, seed=0, **cost):
    """A run of a tree: no network's training, no curve, no parameters."""
    one = cell("tree", "none", seed)
    one = one.model_copy(update={"resolved": one.resolved | {"training": {}}})
    run = record(one)
    for split in run.metrics.values():
        for task in split.values():
            task["auc"] = auc + 1e-5 * seed
    return run.model_copy(update={"curve": [], "cost": cost, "best": {}})


def store_of(folder, runs, **grid):
    store = fill(folder, ["mmoe", "ple"], ["uniform", *SWEEP, "uwl"], **grid)
    for run in runs:
        store.save(run)
    return store


def summary_of(folder):
    frames = load(ResultStore(folder))
    [block] = frames.blocks
    return frames, summarise(frames, block)


def texts(summary):
    """What is said of every row but baselines, and the notes on them."""
    names = {row.group.model for row in summary.baselines}
    table = build_table(summary)
    return [cells for cells in table.rows if cells[0].text not in names]


def test_methods_are_judged_as_if_there_were_none(tmp_path):
    without = fill(tmp_path / "without", ["mmoe", "ple"], ["uniform", *SWEEP, "uwl"])
    store_of(tmp_path / "beside", [tree(0.999, seed) for seed in range(3)])
    frames, plain = summary_of(without.root)
    more, beside = summary_of(tmp_path / "beside")
    assert texts(beside) == texts(plain)
    assert beside.best == plain.best
    assert [row.on_front for row in beside.rows] == [row.on_front for row in plain.rows]
    verdicts, others = judge(frames, plain), judge(more, beside)
    assert [v.outcome for v in others] == [v.outcome for v in verdicts]
    assert verdicts

    [row] = beside.baselines
    assert row.metric["income"].mean == pytest.approx(0.99901)
    single = next(row for row in beside.rows if row.reference_of)
    gap = row.metric["income"].mean - single.metric["income"].mean
    assert row.delta["income"].mean == pytest.approx(gap)
    assert beside.row(row.group.id) is row
    assert to_csv(beside).splitlines()[-1].split(",")[3] == "tree"


def test_its_label_says_how_much_it_saw(tmp_path):
    store_of(tmp_path, [tree(0.9, fitted_rows=1_000_000, labelled_rows=42_300_135)])
    _, summary = summary_of(tmp_path)
    assert summary.baselines[0].group.label == "tree (1,000,000 of 42,300,135 rows)"
    assert "No network" not in " ".join(summary.warnings)


def test_a_store_of_baselines_alone_is_a_report(tmp_path):
    store = ResultStore(tmp_path)
    store.save(tree(0.95))
    _, summary = summary_of(tmp_path)
    assert [row.group.model for row in summary.rows] == ["tree"]
    assert summary.baselines == ()
    assert write_report(tmp_path).page.exists()


def test_a_failed_baseline_is_a_row(tmp_path):
    store_of(tmp_path, [failure(tree(0.95).cell)])
    _, summary = summary_of(tmp_path)
    assert math.isnan(summary.baselines[0].metric["income"].mean)
    assert build_table(summary).rows[-1][0].text == "tree"
    assert "tree" in write_report(tmp_path).page.read_text(encoding="utf-8")


def test_figures_show_dashed_lines(tmp_path):
    store_of(tmp_path, [tree(0.9490, seed) for seed in range(3)])
    written = write_report(tmp_path)
    for name in ("metrics", "pareto"):
        [svg] = [file for file in written.figures if file.name.endswith(f"-{name}.svg")]
        drawn = svg.read_text(encoding="utf-8")
        assert drawn.count(">tree<") == 1  # on marital it lies far outside
    page = written.page.read_text(encoding="utf-8")
    sentence = "No network reaches the tree baseline on income: AUC 0.9490 against"
    assert page.count(sentence) == 1
    _, summary = summary_of(tmp_path)
    for row in summary.all_rows:
        assert page.count(f'<tr id="row-{row.group.id[:12]}"') == 1


def test_a_network_that_is_better_on_common_seeds_is_not_worse(tmp_path):
    fill(tmp_path, ["mmoe"], ["uniform"])
    _, alone = summary_of(tmp_path)
    [mmoe] = [row for row in alone.rows if row.group.model == "mmoe"]
    best = max(mmoe.values["income"], key=mmoe.values["income"].get)
    height = mmoe.values["income"][best] - 1e-5
    assert height > mmoe.metric["income"].mean
    ResultStore(tmp_path).save(tree(height - 1e-5 * best, best))
    _, summary = summary_of(tmp_path)
    [warning] = [text for text in summary.warnings if "tree baseline on income" in text]
    sentence = warning.partition("No network reaches the tree baseline on income")[2]
    assert "worse by" not in sentence.partition("No network")[0]


def test_baselines_alone_have_no_answer(tmp_path):
    for seed in range(2):
        ResultStore(tmp_path).save(tree(0.9, seed))
    page = write_report(tmp_path).page.read_text(encoding="utf-8")
    assert "No row of a model that shares anything has finished." in page
