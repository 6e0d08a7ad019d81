"""What rows are compared with: for each score, a model that was trained for it."""

import numpy as np
import pytest
from scipy import stats

from mtlkit.report.frame import load
from mtlkit.report.summary import summarise
from mtlkit.report.tables import build_table
from mtlkit.report.verdicts import judge
from mtlkit.store import ResultStore
from tests.fakes import cell, record

SEEDS = 3
TASKS = ("click", "purchase")
ROWS, CLICKS, PURCHASES = 200_000, 10_000, 1_000
SCORES = {
    "click": ("click", "all rows", False, ROWS, CLICKS),
    "purchase": ("purchase", "all rows", False, ROWS, PURCHASES),
    "purchase-given-click": ("purchase", "clicked rows", False, CLICKS, PURCHASES),
    "purchase-if-click": ("purchase", "all rows, as if clicked", True, ROWS, 20_000),
}
LABELS = ("CTR", "CTCVR", "CVR", "all-rows CVR")
LUCK = np.array([0.002, -0.001, 0.0005])


def save(store, model, aucs, balancer="uniform", derived=(), capped=None, jitter=0.0):
    """The records of a row: AUCs in the order of the scores, which differ a little by seed."""
    for seed in range(SEEDS):
        made = record(cell(model, balancer, seed, dataset="funnel", tasks=TASKS, protocol=None))
        measured = {}
        for name, auc in zip(SCORES, aucs, strict=True):
            _, space, hidden, rows, positives = SCORES[name]
            # each score has its own luck, each model its own part of it
            luck = LUCK[(seed + len(name)) % 3] * (1 + jitter)
            numbers = {"auc": auc + luck, "space": space, "rows": rows, "positives": positives}
            measured[name] = numbers | {"derived": name in derived}
            if capped and name in derived and not hidden:
                measured[name]["capped"] = capped
        tasks = [
            {
                "name": name,
                "task": task,
                "label": label,
                "kind": "binary",
                "space": space,
                "hidden": hidden,
                "derived": name in derived,
                "metric": "auc",
                "description": "",
            }
            for (name, (task, space, hidden, *_)), label in zip(SCORES.items(), LABELS, strict=True)
        ]
        on_validation = {name: value for name, value in measured.items() if "-if-" not in name}
        metrics = {"validation": on_validation, "test": measured}
        store.save(made.model_copy(update={"metrics": metrics, "tasks": tasks}))


def save_sweep(store, aucs):
    """Fixed weights of mmoe, of which uniform is the best."""
    save(store, "mmoe", aucs)
    for weights in ("0.5:1.5", "1.5:0.5"):
        save(store, "mmoe", (aucs[0] - 0.05, *aucs[1:]), f"static[w={weights}]")


def values(row, score):
    return np.array([row.values[score][seed] for seed in range(SEEDS)])


def summary_of(store):
    frames = load(store)
    [block] = frames.blocks
    summary = summarise(frames, block)
    return summary, {row.group.label: row for row in summary.rows}


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path / "results")


def test_each_score_is_compared_with_a_model_trained_for_it(store):
    save(store, "single-task", (0.70, 0.75, 0.68, 0.66))
    save(store, "mmoe", (0.71, 0.74, 0.69, 0.80), derived=("purchase-given-click",), jitter=0.5)
    summary, rows = summary_of(store)
    mmoe, single = rows["mmoe + uniform"], rows["single-task + uniform"]
    assert single.reference_of == {"click", "purchase", "purchase-given-click"}
    assert mmoe.delta.keys() == single.reference_of  # the hidden score has no reference

    # by hand: the two scores of purchase count half each, the hidden one not at all
    gain = {
        score: (values(mmoe, score) - values(single, score)) / (values(single, score) - 0.5)
        for score in single.reference_of
    }
    by_seed = (gain["click"] + (gain["purchase"] + gain["purchase-given-click"]) / 2) / 2
    assert mmoe.gain.mean == pytest.approx(by_seed.mean())
    half = stats.t.ppf(0.975, SEEDS - 1) * by_seed.std(ddof=1) / np.sqrt(SEEDS)
    assert mmoe.gain.half == pytest.approx(half)
    for score in single.reference_of:
        assert mmoe.delta[score].mean == pytest.approx(
            (values(mmoe, score) - values(single, score)).mean()
        )
    assert "needs labels that only the simulator knows" in " ".join(summary.warnings)


def test_a_derived_score_is_no_reference(store):
    """A quotient of two networks that know nothing of each other: .318 would make anyone win."""
    derived = ("purchase-given-click", "purchase-if-click")
    save(store, "single-task", (0.70, 0.75, 0.55, 0.318), derived=derived)
    save(store, "mmoe", (0.71, 0.74, 0.69, 0.80), derived=derived, jitter=0.5)
    summary, rows = summary_of(store)
    mmoe, single = rows["mmoe + uniform"], rows["single-task + uniform"]
    assert mmoe.delta.keys() == {"click", "purchase"}
    gains = [
        (values(mmoe, score) - values(single, score)) / (values(single, score) - 0.5)
        for score in ("click", "purchase")
    ]
    assert mmoe.gain.mean == pytest.approx(np.mean(gains))
    assert "No single-task model was trained for CVR" in " ".join(summary.warnings)


def test_references_that_were_trained_for_other_scores_complete_each_other(store):
    save(store, "single-task", (0.70, 0.75, 0.55, 0.3), derived=("purchase-given-click",))
    save(store, "single-task[cvr=clicked]", (0.70, 0.72, 0.68, 0.6), derived=("purchase",))
    save(store, "mmoe", (0.71, 0.74, 0.69, 0.8), derived=("purchase-given-click",))
    summary, rows = summary_of(store)
    assert rows["single-task + uniform"].reference_of == {"click", "purchase"}
    assert rows["single-task[cvr=clicked] + uniform"].reference_of == {"purchase-given-click"}
    delta = rows["mmoe + uniform"].delta["purchase-given-click"]
    assert delta.mean == pytest.approx(0.01)
    assert rows["mmoe + uniform"].gain.known
    shown = {row[0].text: [cell.text for cell in row] for row in build_table(summary).rows}
    assert shown["single-task[cvr=clicked]"].count("ref.") == 2  # its CVR, and no gain


def test_without_a_reference_of_a_whole_task_there_is_no_gain(store):
    save(store, "single-task", (0.70, 0.75, 0.55, 0.3), derived=tuple(SCORES)[1:])
    save(store, "mmoe", (0.71, 0.74, 0.69, 0.8))
    _, rows = summary_of(store)
    assert rows["mmoe + uniform"].delta.keys() == {"click"}
    assert not rows["mmoe + uniform"].gain.known


def test_no_gain_is_relative_to_a_useless_reference(store):
    """+389 % of a distance of .003 is no number to sort by."""
    save(store, "single-task", (0.70, 0.503, 0.68, 0.66))
    save(store, "mmoe", (0.71, 0.52, 0.69, 0.80))
    save(store, "ple", (0.72, 0.51, 0.70, 0.80))
    summary, rows = summary_of(store)
    assert not rows["mmoe + uniform"].gain.known
    assert rows["mmoe + uniform"].delta["purchase"].mean == pytest.approx(0.017)
    [warning] = [text for text in summary.warnings if text.startswith("Δm is not given")]
    assert "a useless model on CTCVR (AUC 0.5035 ± 0.0037), so" in warning
    # sorted by the mean over tasks instead
    assert [row.group.model for row in summary.rows] == ["ple", "mmoe", "single-task"]


def test_fixed_weights_that_are_useless_give_no_verdict(store):
    save_sweep(store, (0.70, 0.501, 0.68, 0.66))
    save(store, "mmoe", (0.70, 0.53, 0.68, 0.66), "pcgrad")
    frames = load(store)
    [block] = frames.blocks
    [verdicts] = judge(frames, summarise(frames, block))
    assert [verdict.word for verdict in verdicts.verdicts] == ["unknown"]
    assert "mmoe + uniform is not clearly better" in verdicts.useless


def test_verdicts_leave_hidden_labels_out_and_count_a_task_once(store):
    save_sweep(store, (0.70, 0.75, 0.68, 0.66))
    save(store, "mmoe", (0.70, 0.77, 0.68, 0.99), "pcgrad")
    frames = load(store)
    [block] = frames.blocks
    [verdicts] = judge(frames, summarise(frames, block))
    [pcgrad] = verdicts.verdicts
    by_seed = 0.02 / (values(verdicts.best, "purchase") - 0.5) / 4
    assert pcgrad.gain.interval.mean == pytest.approx(by_seed.mean())


def test_the_front_is_of_scores_that_models_are_trained_for(store):
    save(store, "mmoe", (0.70, 0.75, 0.68, 0.90))
    save(store, "ple", (0.71, 0.76, 0.69, 0.60))
    _, rows = summary_of(store)
    assert rows["ple + uniform"].on_front
    assert not rows["mmoe + uniform"].on_front


def test_it_is_said_which_probabilities_exceed_one(store):
    save(store, "single-task", (0.70, 0.75, 0.68, 0.66))
    save(store, "mmoe", (0.71, 0.74, 0.69, 0.8), derived=("purchase-given-click",), capped=0.46)
    summary, _ = summary_of(store)
    assert "Share of the test rows: CVR of mmoe + uniform 46 %." in " ".join(summary.warnings)
