"""Further metrics of one task: by hand, and against scikit-learn and SciPy."""

import math
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, f1_score, root_mean_squared_error

from mtlkit.metrics.definitions import default_metrics, read_metric
from mtlkit.metrics.values import TaskRows
from tests.documents import ROOT

NUMBERS = st.floats(-20, 20, width=32)
ROWS = st.lists(st.tuples(NUMBERS, st.booleans()), min_size=1, max_size=40)


def no_groups(name):
    raise AssertionError("no group was asked for")


def rows_of(scores, labels, known=None, bound=math.inf, groups=no_groups):
    scores, labels = np.array(scores, np.float32), np.array(labels, np.float32)
    return TaskRows(scores, labels, groups, known or {}, bound)


def value(rows, text):
    return rows.metrics([read_metric(text)])[text]


def test_calibration_error_by_hand():
    # two rows in the bin of .1, of which one is positive; one in that of .9, positive
    rows = rows_of(np.log([0.1 / 0.9, 0.1 / 0.9, 0.9 / 0.1]), [1, 0, 1])
    assert value(rows, "ece") == pytest.approx((abs(0.2 - 1) + abs(0.9 - 1)) / 3, abs=1e-6)
    assert value(rows_of([math.inf, -math.inf], [1, 0]), "ece") == 0
    assert value(rows_of([math.inf], [1], bound=0.0), "ece") == 0.5


@settings(deadline=None)
@given(ROWS, st.floats(0.01, 0.99))
def test_f1_and_accuracy_are_those_of_scikit_learn(data, threshold):
    scores, labels = map(np.array, zip(*data, strict=True))
    rows = rows_of(scores, labels)
    is_yes = expit(scores.astype(np.float32).astype(float)) >= float(f"{threshold:g}")
    text = f"accuracy@{threshold:g}"
    assert value(rows, text) == pytest.approx(accuracy_score(labels, is_yes), abs=1e-12)
    f1 = value(rows, f"f1@{threshold:g}")
    if not labels.any():
        assert f1 is None
    else:
        assert f1 == pytest.approx(f1_score(labels, is_yes, zero_division=0), abs=1e-12)


@settings(deadline=None)
@given(ROWS)
def test_the_calibration_error_is_that_of_a_loop(data):
    scores, labels = map(np.array, zip(*data, strict=True))
    probabilities = expit(scores.astype(np.float32).astype(float))
    error = 0.0
    for lower in range(15):
        in_bin = np.minimum(np.floor(probabilities * 15), 14) == lower
        if in_bin.any():
            distance = abs(probabilities[in_bin].mean() - labels[in_bin].mean())
            error += in_bin.mean() * distance
    assert value(rows_of(scores, labels), "ece") == pytest.approx(error, abs=1e-10)


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=30))
def test_errors_and_ranks_of_numbers(data):
    predicted, labels = (np.array(column, np.float32) for column in zip(*data, strict=True))
    mse = float(((predicted - labels).astype(float) ** 2).mean())
    rows = rows_of(predicted, labels, {"mse": mse})
    expected = root_mean_squared_error(labels.astype(float), predicted.astype(float))
    assert value(rows, "rmse") == pytest.approx(expected, abs=1e-4, rel=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rho = spearmanr(predicted, labels).statistic if len(data) > 1 else math.nan
    found = value(rows, "spearman")
    assert found is None if math.isnan(rho) else found == pytest.approx(rho, abs=1e-10)


def test_rows_of_no_group_are_left_out():
    codes = np.array([0, 0, -1, 1, 1])
    rows = rows_of([2, 1, 9, 1, 2], [1, 0, 0, 1, 0], groups=lambda name: codes)
    assert value(rows, "gauc@user") == 0.5
    nobody = rows_of([2, 1], [1, 0], groups=lambda name: np.array([-1, -1]))
    assert value(nobody, "gauc@user") is None
    assert value(nobody, "ndcg@3@user") is None


@pytest.mark.parametrize(("scores", "labels"), [([], []), ([math.nan, 1], [0, 1])])
def test_what_is_not_defined_is_none(scores, labels):
    rows = rows_of(scores, labels, groups=lambda name: np.zeros(len(labels), int))
    names = [name for name in default_metrics(("user",)) if name.applies_to("binary")]
    assert set(rows.metrics(names).values()) == {None}


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_none_where_a_metric_needs_two(label):
    rows = rows_of([0.3, -2], [label, label], groups=lambda name: np.zeros(2, int))
    assert value(rows, "gauc@user") is None
    assert value(rows, "gauc_unweighted@user") is None
    assert (value(rows, "average_precision") is None) == (label == 0)
    assert (value(rows, "ndcg@10@user") is None) == (label == 0)
    assert value(rows, "ece") is not None


def test_the_benchmark_compares_with_scikit_learn():
    script = ROOT / "benchmarks" / "metrics.py"
    command = [sys.executable, str(script), "--rows", "3000", "--rounds", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "3,000 rows" in ended.stdout
    assert "| gauc@user |" in ended.stdout
