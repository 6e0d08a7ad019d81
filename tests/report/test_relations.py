"""What tasks have to do with each other, from planted gains, labels and scores."""

import csv
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mtlkit.metrics.definitions import METRICS
from mtlkit.records import Cell
from mtlkit.report import write_report
from mtlkit.report.frame import load
from mtlkit.report.references import with_floors
from mtlkit.report.relations import find_relations, suggested_groups
from mtlkit.report.summary import summarise
from mtlkit.store import ResultStore
from tests.fakes import cell, record

TASKS = ("a", "b", "c")
SINGLE = 0.7
SEEDS = 4


def save(store, model, tasks, aucs, seed, scores=None, **settings):
    """A run with planted AUCs."""
    # one data set, whichever of its tasks are trained
    resolved = cell(model, "uniform", seed, dataset="made", tasks=tasks, **settings).resolved
    data = resolved["dataset"] | {"fingerprint": "same"}
    planned = Cell(
        dataset="made",
        model=model,
        balancer="uniform",
        seed=seed,
        resolved=resolved | {"dataset": data},
    )
    made = record(planned)
    metrics = {
        split: {
            task: {"auc": auc, "rows": 400, "positives": 200}
            for task, auc in zip(tasks, aucs, strict=True)
        }
        for split in ("validation", "test")
    }
    made = made.model_copy(update={"metrics": metrics})
    store.save(made, {"scores": scores} if scores else {})


def luck(*parts):
    return np.random.default_rng(sum(map(ord, "".join(map(str, parts))))).normal() * 0.001


def results(tmp_path, gains, labels=None, seeds=SEEDS, **training):
    """Single-task on three tasks, and every pair alone; pair to what both of its tasks gain."""
    store = ResultStore(tmp_path)
    scores = {}
    for task, column in (labels or {}).items():
        scores |= {f"label/{task}": column, f"score/{task}": column.astype(np.float32)}
    for seed in range(seeds):
        noisy = [SINGLE + luck("single", task, seed) for task in TASKS]
        save(store, "single-task", TASKS, noisy, seed, scores, **training)
        save(store, "mmoe", TASKS, noisy, seed, **training)
        for pair in combinations(TASKS, 2):
            shift = gains["".join(pair)]
            aucs = [noisy[TASKS.index(task)] + shift + luck(pair, task, seed) for task in pair]
            save(store, "shared-bottom", pair, aucs, seed, **training)
    return store


def relations(store):
    frames = load(store)
    [block] = frames.blocks
    pairs = find_relations(frames, summarise(frames, block)).pairs
    return pairs.set_index(pairs["task"] + pairs["other"])


def test_verdicts_follow_from_gains(tmp_path):
    pairs = relations(results(tmp_path, {"ab": 0.02, "ac": -0.03, "bc": 0.0}))
    assert pairs["verdict"].to_dict() == {
        "ab": "complementary",
        "ac": "conflicting",
        "bc": "not known",
    }
    # of the distance from a useless model
    assert pairs.loc["ab", "affinity"] == pytest.approx(0.02 / 0.2, rel=0.05)
    assert pairs.loc["ac", "gain_of_other"] == pytest.approx(-0.03 / 0.2, rel=0.05)
    assert "Trained together, a +9.8 ± 0.6 %" in pairs.loc["ab", "evidence"]


def test_opposite_gains_are_both_named(tmp_path):
    store = ResultStore(tmp_path)
    for seed in range(SEEDS):
        save(store, "single-task", TASKS, [SINGLE] * 3, seed)
        aucs = [SINGLE + 0.03 + luck("a", seed), SINGLE - 0.03 + luck("b", seed)]
        save(store, "shared-bottom", ("a", "b"), aucs, seed)
    found = relations(store).loc["ab"]
    assert found["verdict"] == "not known"
    assert found["evidence"].startswith("A and b change clearly, the mean of both tasks does not")


def test_a_gain_over_a_useless_model_is_none(tmp_path):
    store = ResultStore(tmp_path)
    for seed in range(SEEDS):
        save(store, "single-task", TASKS, [0.51] * 3, seed)  # of 400 rows
        save(store, "shared-bottom", ("a", "b"), [0.53 + luck(seed)] * 2, seed)
    [block] = load(store).blocks
    assert find_relations(load(store), summarise(load(store), block)).pairs.empty


def test_a_gain_within_the_margin_is_none(tmp_path):
    frames = load(results(tmp_path, {"ab": 0.02, "ac": 0.0, "bc": 0.0}))
    [block] = frames.blocks
    assert (
        find_relations(frames, summarise(frames, block, margin=0.2)).pairs["verdict"][0]
        == "not known"
    )


def test_a_gain_is_the_paired_t_interval(tmp_path):
    store = results(tmp_path, {"ab": 0.02, "ac": 0.0, "bc": 0.0})
    found = relations(store).loc["ab"]
    single = np.array([SINGLE + luck("single", "a", seed) for seed in range(SEEDS)])
    paired = np.array([single[s] + 0.02 + luck(("a", "b"), "a", s) for s in range(SEEDS)])
    gains = (paired - single) / (single.mean() - 0.5)
    low, high = stats.t.interval(0.95, SEEDS - 1, gains.mean(), stats.sem(gains))
    assert (found["gain"], found["gain_low"], found["gain_high"]) == pytest.approx(
        (gains.mean(), low, high)
    )


def test_labels_tell_funnels_and_independence(tmp_path):
    rng = np.random.default_rng(0)
    a = (rng.random(4000) < 0.3).astype(np.float32)
    b = a * (rng.random(4000) < 0.2)
    c = (rng.random(4000) < 0.5).astype(np.float32)
    labels = {"a": a, "b": b, "c": c}
    pairs = relations(results(tmp_path, {"ab": 0.02, "ac": 0.0, "bc": 0.0}, labels))
    assert list(pairs["verdict"]) == ["hierarchical", "independent", "independent"]
    assert f"All {int(b.sum())} test rows with b are among" in pairs.loc["ab", "evidence"]
    assert pairs.loc["ac", "labels"] == pytest.approx(np.corrcoef(a, c)[0, 1])
    assert pairs.loc["ac", "predictions"] == pytest.approx(stats.spearmanr(a, c).statistic)


def test_wide_intervals_show_no_independence(tmp_path):
    rng = np.random.default_rng(0)
    store = ResultStore(tmp_path)
    labels = {f"label/{task}": rng.integers(0, 2, 4000).astype(np.float32) for task in TASKS}
    for seed, shift in enumerate((0.1, -0.1, 0.02)):
        save(store, "single-task", TASKS, [SINGLE] * 3, seed, labels)
        save(store, "shared-bottom", ("a", "b"), [SINGLE + shift] * 2, seed)
    pairs = relations(store)
    assert pairs.loc["ab", "verdict"] == "not known"
    assert pairs.loc["ac", "verdict"] == "independent"


def test_few_rare_positives_are_no_funnel(tmp_path):
    a = np.r_[np.ones(90), np.zeros(10)].astype(np.float32)
    b = np.r_[1, np.zeros(99)].astype(np.float32)
    c = np.tile([0.0, 1.0], 50).astype(np.float32)
    pairs = relations(
        results(tmp_path, dict.fromkeys(("ab", "ac", "bc"), 0.0), {"a": a, "b": b, "c": c})
    )
    assert pairs.loc["ab", "verdict"] != "hierarchical"


def test_one_seed_is_not_known(tmp_path):
    pairs = relations(results(tmp_path, {"ab": 0.02, "ac": -0.03, "bc": 0.0}, seeds=1))
    assert set(pairs["verdict"]) == {"not known"}
    assert "one common seed" in pairs.loc["ab", "evidence"].lower()


def test_another_training_is_no_reference(tmp_path):
    store = results(tmp_path, {"ab": 0.02, "ac": 0.0, "bc": 0.0})
    for seed in range(SEEDS):
        save(store, "shared-bottom", ("b", "c"), (0.9, 0.9), seed, training={"lr": 0.1})
    assert relations(store).loc["bc", "affinity"] == pytest.approx(0, abs=0.01)


def test_settings_of_other_tasks_do_not_count(tmp_path):
    store = ResultStore(tmp_path)
    for seed in range(SEEDS):
        weights = {"task_weights": {"a": 2.0, "c": 3.0}}
        save(store, "single-task", TASKS, [SINGLE] * 3, seed, training=weights)
        mine = {"task_weights": {"a": 2.0}}
        save(store, "shared-bottom", ("a", "b"), [0.72 + luck(seed)] * 2, seed, training=mine)
    assert relations(store).loc["ab", "verdict"] == "complementary"


def test_pairs_are_no_sections_of_their_own(tmp_path):
    store = results(tmp_path, {"ab": 0.02, "ac": -0.03, "bc": 0.0})
    page = write_report(store.root).page.read_text()
    assert page.count("<section id=") == 2  # the data set, and how to read the page
    assert "of 3 pairs of tasks, 1 complementary, 1 conflicting, 1 not known" in page
    [file] = (store.root / "report" / "tables").glob("*-relations.csv")
    lines = list(csv.DictReader(file.open()))
    assert [line["verdict"] for line in lines] == ["complementary", "conflicting", "not known"]


def test_a_damaged_file_of_scores_is_named(tmp_path):
    labels = {task: np.tile([0.0, 1.0], 20).astype(np.float32) for task in TASKS}
    store = results(tmp_path, {"ab": 0.02, "ac": -0.03, "bc": 0.0}, labels)
    file = next(store.root.rglob("scores.npz"))
    file.write_bytes(b"PK\x03\x04 broken")
    report = write_report(store.root)
    assert [left_out.path for left_out in report.unreadable] == [file]


def test_groups_join_what_gains():
    affinity = {"ab": 0.1, "ac": -0.1, "ad": -0.1, "bc": -0.1, "bd": -0.1, "cd": 0.2}
    pairs = pd.DataFrame(
        {"task": k[0], "other": k[1], "affinity": v, "affinity_low": v, "affinity_high": v}
        for k, v in affinity.items()
    )
    assert suggested_groups(pairs) == (("a", "b"), ("c", "d"))

    # what its interval leaves open joins nothing
    pairs["affinity_low"], pairs["affinity_high"] = -1.0, 1.0
    assert suggested_groups(pairs) == (("a",), ("b",), ("c",), ("d",))
    # one seed has no interval, and says nothing of groups
    pairs["affinity_low"] = pairs["affinity_high"] = np.nan
    assert suggested_groups(pairs) == ()


def test_floors_are_those_of_a_random_order(tmp_path):
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(50), rng.integers(1, 9, 50)).astype(np.int32)
    label = (rng.random(len(groups)) < 0.3).astype(np.float32)
    scores = {"label/a": label, "score/a": label, "group/session": groups}
    store = ResultStore(tmp_path)
    save(store, "mmoe", ("a",), (0.7,), 0, scores)
    frames = load(store)
    folders = list(frames.runs["folder"])
    for metric, expected in (("recall@3@session", 0.0), ("average_precision", 0.25)):
        task = frames.blocks[0].tasks[0]
        block = replace(frames.blocks[0], tasks=(replace(task, metric=metric),))
        [found] = with_floors(block, {"a": (100, 400)}, folders).tasks
        if metric == "average_precision":
            assert found.reading.floor == expected
            continue
        sizes = np.bincount(groups)
        positive = np.bincount(groups, label) > 0
        assert found.reading.floor == pytest.approx(np.minimum(3 / sizes, 1)[positive].mean())
    assert METRICS["ndcg"].floor == 0
