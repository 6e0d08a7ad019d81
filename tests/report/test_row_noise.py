"""The noise of the test rows: influences, both noises together, and how often verdicts are right."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from mtlkit.metrics.definitions import METRICS
from mtlkit.report.frame import load
from mtlkit.report.row_noise import INFLUENCE, RowNoise, auc_influence, load_row_noise
from mtlkit.report.statistics import (
    compare,
    gain_slopes,
    is_equivalent,
    relative_gain,
    seeds_to_tell,
    t_interval,
    t_test,
)
from mtlkit.report.summary import summarise
from mtlkit.store import ResultStore
from tests.fakes import cell, record

# Albumin, total protein, K-G score and whether surgery helped, of 43 patients: the example of
# DeLong et al. (1988) as the manual of SAS's PROC LOGISTIC prints it.
PATIENTS = np.array(
    """
    3.0 5.8 10 0   3.2 6.3 5 1   3.9 6.8 3 1   2.8 4.8 6 0   3.2 5.8 3 1   0.9 4.0 5 0
    2.5 5.7 8 0   1.6 5.6 5 1   3.8 5.7 5 1   3.7 6.7 6 1   3.2 5.4 4 1   3.8 6.6 6 1
    4.1 6.6 5 1   3.6 5.7 5 1   4.3 7.0 4 1   3.6 6.7 4 0   2.3 4.4 6 1   4.2 7.6 4 0
    4.0 6.6 6 0   3.5 5.8 6 1   3.8 6.8 7 1   3.0 4.7 8 0   4.5 7.4 5 1   3.7 7.4 5 1
    3.1 6.6 6 1   4.1 8.2 6 1   4.3 7.0 5 1   4.3 6.5 4 1   3.2 5.1 5 1   2.6 4.7 6 1
    3.3 6.8 6 0   1.7 4.0 7 0   3.7 6.1 5 1   3.3 6.3 7 1   4.2 7.7 6 1   3.5 6.2 5 1
    2.9 5.7 9 0   2.1 4.8 7 1   2.8 6.2 8 0   4.0 7.0 7 1   3.3 5.7 6 1   3.7 6.9 5 1
    3.6 6.6 5 1
    """.split(),
    dtype=float,
).reshape(-1, 4)


def test_delong_on_a_published_example():
    labels = PATIENTS[:, 3]
    auc, kg_score = auc_influence(10 - PATIENTS[:, 2], labels)
    _, protein = auc_influence(PATIENTS[:, 1], labels)
    noise = RowNoise({("kg", "surgery"): {0: kg_score}, ("tp", "surgery"): {0: protein}})
    assert auc == pytest.approx(0.7258, abs=5e-5)
    assert noise.error([("kg", "surgery", 1)]) == pytest.approx(0.1028, abs=5e-5)
    difference = noise.error([("tp", "surgery", 1), ("kg", "surgery", -1)])
    assert difference == pytest.approx(0.1046, abs=5e-5)


REFERENCE = {
    "auc": lambda labels, scores: sklearn_metrics.roc_auc_score(labels, scores),
    "logloss": lambda labels, scores: sklearn_metrics.log_loss(labels, 1 / (1 + np.exp(-scores))),
    "mse": sklearn_metrics.mean_squared_error,
    "rmse": lambda labels, values: sklearn_metrics.mean_squared_error(labels, values) ** 0.5,
    "mae": sklearn_metrics.mean_absolute_error,
    "r2": sklearn_metrics.r2_score,
}


@pytest.mark.parametrize("metric", INFLUENCE)
def test_an_influence_is_what_the_bootstrap_finds(metric):
    """The metric is scikit-learn's, and its error that of 1,000 drawings of the rows."""
    random = np.random.default_rng(3)
    rows = 400
    scores = random.normal(size=rows).round(1)  # with ties
    if "binary" in METRICS[metric].kinds:
        labels = (random.random(rows) < 1 / (1 + np.exp(-scores))).astype(float)
    else:
        labels = scores + random.standard_t(5, size=rows)

    value, influence = INFLUENCE[metric](scores, labels)
    assert value == pytest.approx(REFERENCE[metric](labels, scores))
    assert influence.sum() == pytest.approx(0, abs=1e-9)

    draws = random.integers(0, rows, (1000, rows))
    spread = np.std([INFLUENCE[metric](scores[draw], labels[draw])[0] for draw in draws])
    assert np.sqrt(np.square(influence).sum()) == pytest.approx(spread, rel=0.1)


def test_rows_of_one_user_come_together():
    """Each row four times over says no more than each row once."""
    random = np.random.default_rng(0)
    scores = random.normal(size=100)
    labels = (random.random(100) < 0.4).astype(float)
    once = RowNoise({("row", "click"): {0: auc_influence(scores, labels)[1]}})
    influence = {0: auc_influence(np.repeat(scores, 4), np.repeat(labels, 4))[1]}
    users = np.repeat(np.arange(100), 4)
    clustered = RowNoise({("row", "click"): influence}, users)
    alone = RowNoise({("row", "click"): influence})
    term = [("row", "click", 1.0)]
    assert clustered.error(term) == pytest.approx(once.error(term), rel=0.02)
    assert alone.error(term) == pytest.approx(once.error(term) / 2, rel=0.02)


def test_what_is_unknown_has_no_error():
    noise = RowNoise({("a", "click"): {0: np.ones(3)}, ("c", "click"): {1: np.ones(3)}})
    assert math.isnan(noise.error([("a", "click", 1.0), ("b", "click", -1.0)]))
    assert math.isnan(noise.error([("a", "click", math.nan)]))
    assert math.isnan(noise.error([("a", "click", 1.0), ("c", "click", -1.0)]))  # no common seed
    assert math.isnan(noise.error([]))


@pytest.mark.parametrize("metric", ["auc", "logloss", "r2"])
def test_slopes_of_the_gain_are_its_derivatives(metric):
    reading = METRICS[metric]
    value, reference, step = 0.71, 0.66, 1e-6
    by_value, by_reference = gain_slopes(value, reference, reading)
    moved = relative_gain(value + step, reference, reading)
    moved_reference = relative_gain(value, reference + step, reading)
    base = relative_gain(value, reference, reading)
    assert by_value == pytest.approx((moved - base) / step, rel=1e-4)
    assert by_reference == pytest.approx((moved_reference - base) / step, rel=1e-4)
    assert all(map(math.isnan, gain_slopes(value, 0.5, METRICS["auc"])))


# --- both noises together -------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_cover_with_both_noises(seeds):
    """Two methods whose scores separate the classes by a known distance, which seeds move; both see
    the same rows. The interval must hold the difference of their expected AUCs in 95 % of repeats.
    """
    random = np.random.default_rng(seeds)
    rows, repeats = 400, 500
    distances, seed_spread, own_noise = np.array([1.0, 1.1]), 0.06, 0.5

    # The distance of a seed is normal, so the expected AUC is that of a wider normal.
    variance = 2 * (1 + own_noise**2)
    truth = stats.norm.cdf(distances / np.sqrt(variance + seed_spread**2))
    covered = 0
    for _ in range(repeats):
        labels = np.arange(rows) % 2 == 0
        of_row = random.normal(size=rows)
        aucs = np.zeros((2, seeds))
        influences = {("a", "y"): {}, ("b", "y"): {}}
        for method, name in enumerate("ba"):
            for seed in range(seeds):
                distance = random.normal(distances[method], seed_spread)
                noise = own_noise * random.normal(size=rows)
                auc, influence = auc_influence(of_row + noise + distance * labels, labels * 1.0)
                aucs[method, seed] = auc
                influences[name, "y"][seed] = influence
        row_error = RowNoise(influences).error([("a", "y", 1.0), ("b", "y", -1.0)])
        interval = t_interval(aucs[1] - aucs[0], row_error=row_error)
        covered += interval.low <= truth[1] - truth[0] <= interval.high
    assert 0.93 <= covered / repeats <= 0.97


def draws(repeats, seeds, mean, seed_spread, row_error, seed=0):
    random = np.random.default_rng(seed)
    shared = row_error * random.normal(size=(repeats, 1))
    return mean + shared + seed_spread * random.normal(size=(repeats, seeds))


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("row_error", [0.0, 0.2])
def test_a_difference_as_large_as_the_margin_is_rarely_equivalent(seeds, row_error):
    differences = draws(2000, seeds, 1.0, 0.4, row_error)
    wrong = np.mean([is_equivalent(row, 1.0, row_error) for row in differences])
    assert wrong <= 0.06


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_no_difference_is_rarely_better_or_worse(seeds):
    differences = draws(2000, seeds, 0.0, 0.4, 0.2)
    words = [compare(row, 1e-9, 0.2).word for row in differences]
    assert np.mean([word in ("better", "worse") for word in words]) <= 0.06
    p_values = [t_test(row, 0.2) for row in differences]
    assert np.mean(np.array(p_values) < 0.05) <= 0.06


def test_without_row_noise_nothing_changes():
    values = [0.3, -0.1, 0.4, 0.2]
    assert t_test(values, 0.0) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert t_interval(values, row_error=0.0).half == pytest.approx(t_interval(values).half)


def test_words():
    assert compare([0.010, 0.011, 0.012], 0.002).word == "better"
    assert compare([-0.010, -0.011, -0.012], 0.002).word == "worse"
    assert compare([0.0010, 0.0011, 0.0012], 0.002).word == "equivalent"  # though clear of 0
    assert compare([0.010, -0.011, 0.012], 0.002).word == "not told apart"
    assert compare([0.010, 0.011, 0.012], 0.002, row_error=0.02).word == "not told apart"
    assert compare([0.010], 0.002).word == compare([], 0.002).word == "unknown"


def test_seeds_to_tell():
    differences = [0.1, 0.3, 0.2, -0.1]
    seeds = int(seeds_to_tell(differences))
    ratio = np.mean(differences) / np.std(differences, ddof=1)
    assert ratio * np.sqrt(seeds) > stats.t.ppf(0.975, seeds - 1)
    assert ratio * np.sqrt(seeds - 1) <= stats.t.ppf(0.975, seeds - 2)
    assert seeds_to_tell(differences, row_error=1.0) == math.inf


# --- from stored scores ---------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    """Two rows of two seeds with stored scores, and their AUCs."""
    store = ResultStore(tmp_path / "results")
    random = np.random.default_rng(1)
    labels = {task: random.random(300) < 0.3 for task in ("income", "marital")}
    for model in ("mmoe", "single-task"):
        of_model = random.normal(size=300)
        for seed in range(2):
            save(store, model, seed, labels, of_model + 0.1 * random.normal(size=300))
    return store


def save(store, model, seed, labels, noise, rows=slice(None)):
    balancer = "none" if model == "single-task" else "uniform"
    made = record(cell(model, balancer, seed))
    arrays = {"group/user": np.arange(300)[rows] // 3}
    for task, label in labels.items():
        scores = label + noise
        made.metrics["test"][task]["auc"] = sklearn_metrics.roc_auc_score(label, scores)
        made.metrics["test"][task]["rows"] = 300
        arrays |= {f"score/{task}": scores[rows], f"label/{task}": label.astype(np.float32)[rows]}
    store.save(made, {"scores": arrays})


def noise_of(store):
    frames = load(store)
    [block] = frames.blocks
    return frames, block, load_row_noise(frames, block)


def test_stored_scores_give_the_error_of_a_difference(store):
    frames, block, noise = noise_of(store)
    assert len(noise.influence) == 4
    assert noise.clusters.max() == 99
    summary = summarise(frames, block)
    mmoe = next(row for row in summary.rows if row.group.model == "mmoe")
    assert mmoe.delta["income"].row_error > 0.01
    assert mmoe.gain.row_error > 0.01
    references = summary.references.values["income"]
    differences = [mmoe.values["income"][seed] - references[seed] for seed in range(2)]
    seeds_alone = t_interval(differences)
    assert mmoe.delta["income"].mean == pytest.approx(seeds_alone.mean)
    assert mmoe.delta["income"].half != pytest.approx(seeds_alone.half)


def test_rows_of_no_known_user_stand_alone(store):
    for _, folder in list(store.scan()):
        arrays = dict(np.load(folder / "scores.npz"))
        arrays["group/user"][:30] = -1  # of ten users
        np.savez(folder / "scores.npz", **arrays)
    _, _, noise = noise_of(store)
    sizes = np.bincount(noise.clusters)
    assert sorted(sizes) == [1] * 30 + [3] * 90


def test_scores_that_do_not_give_the_recorded_number_are_left_out(store):
    """As those of another run would."""
    for made, folder in list(store.scan()):
        arrays = dict(np.load(folder / "scores.npz"))
        arrays["score/income"] = -arrays["score/income"]
        np.savez(folder / "scores.npz", **arrays)
        assert made.ok
    assert {score for _, score in noise_of(store)[2].influence} == {"marital"}


def test_damaged_scores_cost_one_run(store):
    [first, *_] = [folder for _, folder in store.scan()]
    (first / "scores.npz").write_bytes(b"PK nothing")
    _, _, noise = noise_of(store)
    assert [left_out.path for left_out in noise.unreadable] == [first / "scores.npz"]
    assert len(noise.influence) == 4


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("label/income", np.full(300, "yes")),
        ("label/income", np.zeros(299)),
        ("score/income", np.array(0.5)),
        ("score/income", np.zeros((300, 2))),
        ("observed/income", np.ones(300)),
        ("group/user", np.arange(299)),
    ],
)
def test_arrays_that_do_not_fit_together_cost_one_run(store, name, array):
    [first, *_] = [folder for _, folder in store.scan()]
    arrays = dict(np.load(first / "scores.npz"))
    np.savez(first / "scores.npz", **arrays | {name: array})
    _, _, noise = noise_of(store)
    assert [left_out.path for left_out in noise.unreadable] == [first / "scores.npz"]


def test_scores_of_other_rows_are_refused(store):
    random = np.random.default_rng(2)
    labels = {"income": random.random(300) < 0.3, "marital": random.random(300) < 0.3}
    save(store, "mmoe", 2, labels, random.normal(size=300), rows=slice(0, 200))
    _, _, noise = noise_of(store)
    assert ["not of the rows" in left_out.reason for left_out in noise.unreadable] == [True]


def test_too_many_scores_are_not_read(store, monkeypatch):
    monkeypatch.setattr("mtlkit.report.row_noise.ROW_LIMIT", 1000)
    frames, block, noise = noise_of(store)
    assert noise.too_many
    assert not noise.influence
    assert isinstance(frames.runs, pd.DataFrame)
    assert math.isnan(summarise(frames, block).rows[0].gain.row_error)
