"""Methods across data sets: ranks as scipy has them, and no test on too few blocks."""

import copy
import re

import numpy as np
import pytest
from scipy import stats

from mtlkit.report import write_report
from mtlkit.report.across import across_table, compare_across
from mtlkit.report.figures.ranks import draw_ranks
from mtlkit.report.frame import load
from mtlkit.report.summary import summarise
from mtlkit.store import ResultStore
from tests.fakes import cell, fill, record

METHODS = {("single-task", "none"): 0.0, ("mmoe", "uniform"): 0.002, ("mmoe", "uwl"): -0.002}
DATASETS = {"adult": 2, "census": 3, "synthetic": 2}
SEEDS = 4


def planted(root, seed=0):
    """Three methods on seven tasks of three data sets; the values of each run."""
    random = np.random.default_rng(seed)
    values = {}
    for dataset, count in DATASETS.items():
        tasks = [f"t{index}" for index in range(count)]
        for (model, balancer), shift in METHODS.items():
            for run in range(SEEDS):
                made = record(cell(model, balancer, run, dataset=dataset, tasks=tasks))
                metrics = copy.deepcopy(made.metrics)
                for task in tasks:
                    value = 0.8 + shift + 0.003 * random.normal()
                    metrics["test"][task]["auc"] = value
                    values.setdefault((dataset, task), {}).setdefault((model, balancer), [])
                    values[dataset, task][model, balancer].append(value)
                ResultStore(root).save(made.model_copy(update={"metrics": metrics}))
    return values


def across(root):
    frames = load(ResultStore(root))
    return compare_across([summarise(frames, block) for block in frames.blocks])


def test_ranks_agree_with_scipy(tmp_path):
    values = planted(tmp_path)
    found = across(tmp_path)
    means = np.array([[np.mean(runs[key]) for key in METHODS] for runs in values.values()])
    ranks = stats.rankdata(-means, axis=1)
    assert found.blocks == len(values) == 7
    for index, (model, balancer) in enumerate(METHODS):
        standing = found.standings.loc[model, balancer if balancer != "none" else "–"]
        assert standing["rank"] == pytest.approx(ranks[:, index].mean())
        assert standing["wins"] == pytest.approx(
            np.mean(means[:, index] > means[:, 0]) if index else 0.5
        )
        won = [
            np.mean([x > y or (x == y) / 2 for x in runs[model, balancer] for y in single])
            for runs in values.values()
            for single in [runs["single-task", "none"]]
        ]
        assert standing["improvement"] == pytest.approx(np.mean(won))
    assert list(found.standings["rank"]) == sorted(found.standings["rank"])
    assert found.p_value == pytest.approx(stats.friedmanchisquare(*ranks.T).pvalue)
    # q of Demsar's table 5 for three methods is 2.343
    assert found.critical == pytest.approx(2.343 * np.sqrt(3 * 4 / (6 * 7)), rel=1e-3)


def test_errors_rank_the_other_way(tmp_path):
    planted(tmp_path)
    frames = load(ResultStore(tmp_path), metric="logloss")
    by_loss = compare_across([summarise(frames, block) for block in frames.blocks])
    # a log loss of the fakes does not follow the planted AUC: the lower, the better
    scores = frames.metrics[
        (frames.metrics["metric"] == "logloss") & (frames.metrics["split"] == "test")
    ]
    labels = {group.id: group.label for block in frames.blocks for group in block.groups}
    scores = scores.assign(method=scores["group"].astype(str).map(labels))
    means = scores.groupby(["block", "task", "method"], observed=True)["value"].mean().unstack()
    ranks = stats.rankdata(means.to_numpy(), axis=1).mean(axis=0)
    assert sorted(by_loss.standings["rank"]) == pytest.approx(sorted(ranks))


def test_only_what_is_everywhere_is_ranked(tmp_path):
    planted(tmp_path)
    ResultStore(tmp_path).save(record(cell("ple", dataset="adult", tasks=["t0", "t1"])))
    found = across(tmp_path)
    assert len(found.standings) == 3
    assert found.elsewhere == ("ple + uniform",)
    assert found.sentences[-1] == "Not on all data sets: ple + uniform."


def test_a_data_set_without_common_seeds_is_named(tmp_path):
    planted(tmp_path)
    store = ResultStore(tmp_path)
    for made, folder in list(store.scan()):
        of_adult = made.cell.dataset == "adult" and made.cell.model == "mmoe"
        if of_adult and made.cell.seed != (made.cell.balancer == "uwl"):
            (folder / "record.json").unlink()
    found = across(tmp_path)
    assert found.blocks == 5
    left_out = "t0 of adult, protocol mmoe; t1 of adult, protocol mmoe."
    assert found.sentences[-1] == f"Left out, as no seed finished under all methods: {left_out}"


def test_nothing_but_such_data_sets_is_said(tmp_path):
    for dataset in ("adult", "census"):
        for seed, balancer in enumerate(("uniform", "uwl")):
            ResultStore(tmp_path).save(record(cell("mmoe", balancer, seed, dataset=dataset)))
    found = across(tmp_path)
    [sentence] = found.sentences
    assert sentence.startswith("No ranks across data sets. Left out, as no seed finished under")
    files = write_report(tmp_path, tmp_path / "out")
    assert sentence in files.page.read_text()
    assert not any("across" in path.name for path in (*files.tables, *files.figures))


def test_too_few_blocks_have_no_test_and_no_figure(tmp_path):
    for dataset in ("adult", "census"):
        fill(tmp_path, ("mmoe",), ("uniform", "uwl"), dataset=dataset, with_probes=False)
    found = across(tmp_path)
    assert found.blocks == 4
    assert np.isnan(found.critical)
    assert "fewer than 6 blocks" in found.sentences[1]
    files = write_report(tmp_path, tmp_path / "out")
    names = {path.name for path in (*files.tables, *files.figures)}
    assert "across-data-sets.csv" in names
    assert not any("ranks" in name for name in names)


def test_one_data_set_is_not_across_any(tmp_path):
    fill(tmp_path, ("mmoe",), ("uniform",), with_probes=False)
    assert across(tmp_path) is None


def test_the_report_has_table_and_figure(tmp_path):
    planted(tmp_path / "results")
    files = write_report(tmp_path / "results", tmp_path / "out")
    names = {path.name for path in (*files.tables, *files.figures)}
    assert {"across-data-sets.md", "across-data-sets-ranks.svg"} <= names
    page = files.page.read_text()
    assert page.index('id="across"') < page.index("Results on the test split")
    first = across(tmp_path / "results").sentences[0]
    assert first in page
    assert first in (tmp_path / "out" / "tables" / "across-data-sets.md").read_text()


@pytest.mark.parametrize(
    ("simulated", "title"),
    [
        ([], "Across data sets"),
        (["a"], "Across data sets (some of them simulated)"),
        (["a", "b"], "Across data sets (simulated data)"),
    ],
)
def test_simulated_data_are_named(tmp_path, simulated, title):
    for dataset in ("a", "b"):
        is_simulated = dataset in simulated
        fill(tmp_path, ["mmoe"], ["uniform"], dataset=dataset, simulated=is_simulated)
    found = across(tmp_path)
    assert across_table(found).title == title
    assert draw_ranks(found).title == f"Mean ranks a{title[1:]}"


def test_without_an_answer_the_overview_names_no_best_row(tmp_path):
    """The first row of a table is the best on test, which nobody may choose by."""
    for dataset in ("a", "b"):
        fill(tmp_path, ["mmoe", "ple"], ["uniform"], dataset=dataset, reference=False)
    page = write_report(tmp_path).page.read_text()
    overview = page[page.index('class="overview"') : page.index("</nav>")]
    assert overview.count("–") == 2
    assert not re.search(r">(mmoe|ple)\b", overview)
    assert "ple" not in overview
