"""Calibration: curves as direct sums over rows have them, and a figure where scores were kept."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn import metrics as sklearn_metrics

from mtlkit.report import write_report
from mtlkit.report.calibration import calibration_counts, calibration_curve
from mtlkit.report.figures.calibration import MOST
from mtlkit.store import ResultStore
from tests.fakes import cell, record

ROWS = 40_000


def drawn(rate=-2.0, factor=1.0, seed=0, rows=ROWS):
    """Log-odds, and labels whose odds are some factor times as high."""
    random = np.random.default_rng(seed)
    logits = rate + 1.2 * random.normal(size=rows)
    return logits, random.random(rows) < expit(logits + np.log(factor))


def directly(logits, labels, step=0.5):
    """The curve from the rows of each bin, one bin at a time."""
    curve = []
    for low in np.arange(-12, 12, step):
        inside = (logits >= low) & (logits < low + step)
        p, observed = expit(logits[inside]), labels[inside]
        if min(p.sum(), (1 - p).sum()) >= 20 and 0 < observed.mean() < 1:
            ratio = np.exp(logit(observed.mean()) - logit(p.mean()))
            curve.append((p.mean(), ratio, (p * (1 - p)).sum() ** -0.5))
    return np.array(curve).T


@pytest.mark.parametrize("factor", [1.0, 2.0])
@pytest.mark.parametrize("rate", [-4.0, 0.0, 3.0])
def test_a_curve_is_what_the_rows_say(rate, factor):
    logits, labels = drawn(rate, factor)
    found = calibration_curve(calibration_counts(logits.astype(np.float32), labels))
    expected = directly(logits, labels)
    assert len(found[0]) == expected.shape[1] > 8
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0.02)


def test_a_calibrated_model_lies_in_its_band():
    outside, bins = 0, 0
    for seed in range(40):
        _, ratios, errors = calibration_curve(calibration_counts(*drawn(seed=seed)))
        outside += (np.abs(np.log(ratios)) > 1.96 * errors).sum()
        bins += len(ratios)
    assert 0.03 < outside / bins < 0.07


def test_whatever_a_file_holds_is_counted():
    logits = np.array([np.nan, np.inf, -np.inf, 1e30, 0.01], np.float32)
    counts = calibration_counts(logits, np.array([0, 1, 0, 1, 1]))
    assert counts.sum() == 5
    assert (counts[0, 0], counts[1, -1], counts[1].sum()) == (2, 2, 3)
    assert all(len(part) == 0 for part in calibration_curve(counts))


def fill(root, models, tasks=("income", "marital"), kinds=None, with_scores=True):
    for model in models:
        for seed in range(2):
            balancer = "none" if model == "single-task" else "uniform"
            made = record(cell(model, balancer, seed, tasks=tasks), kinds)
            arrays = {}
            for index, task in enumerate(tasks):
                logits, labels = drawn(seed=index, rows=4000)
                logits += 0.1 * np.random.default_rng(seed).normal(size=4000)
                if not kinds:
                    made.metrics["test"][task]["auc"] = sklearn_metrics.roc_auc_score(
                        labels, logits
                    )
                arrays |= {f"score/{task}": logits, f"label/{task}": labels * 1.0}
            ResultStore(root).save(made, {"scores": arrays} if with_scores else None)


def drawings(root, out, **how):
    files = write_report(root, out, formats=(), **how)
    return [file for file in files.figures if "calibration" in file.name], files.page.read_text()


def test_the_report_has_a_panel_a_binary_score(tmp_path):
    models = ["single-task", *[f"mmoe[experts={number}]" for number in range(2, 12)]]
    fill(tmp_path / "results", models)
    files, page = drawings(tmp_path / "results", tmp_path / "out")
    [file] = files
    text = file.read_text()
    assert "income" in text
    assert "marital" in text
    assert "observed / predicted odds" in text
    assert f"Shown are {MOST} of 11 rows" in page
    # by log loss there is another influence, which these records contradict
    assert drawings(tmp_path / "results", tmp_path / "loss", metric="logloss")[0] == []


def test_without_scores_or_binary_tasks_there_is_none(tmp_path):
    fill(tmp_path / "bare", ["mmoe"], with_scores=False)
    assert drawings(tmp_path / "bare", tmp_path / "out")[0] == []
    fill(tmp_path / "level", ["mmoe"], ["level"], {"level": "regression"})
    assert drawings(tmp_path / "level", tmp_path / "out2")[0] == []


def test_a_metric_without_influence_has_curves_all_the_same(tmp_path):
    fill(tmp_path / "results", ["mmoe"])
    store = ResultStore(tmp_path / "results")
    for made, folder in list(store.scan()):
        for task in made.metrics["test"].values():
            task["gauc@user"] = 0.7
        (folder / "record.json").write_text(made.model_dump_json())
    assert drawings(tmp_path / "results", tmp_path / "out", metric="gauc")[0]
