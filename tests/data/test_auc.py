"""Ranking: one count of pairs, whoever asks and however many rows there are."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mtlkit.data import auc as auc_module
from mtlkit.data.auc import auc, expected_auc, wins
from mtlkit.training import metrics

FAMILIES = {
    "ties": lambda rng, n: rng.integers(0, 3, n),
    "plain": lambda rng, n: rng.standard_normal(n),
    "infinite": lambda rng, n: np.where(
        rng.random(n) < 0.2, np.inf, rng.standard_normal(n).round(1)
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_counts_are_the_definition(family, dtype, monkeypatch):
    rng = np.random.default_rng(0)
    for n, rate in ((2, 0.5), (3, 0.5), (60, 0.9), (700, 0.03), (700, 0.5)):
        scores = FAMILIES[family](rng, n).astype(dtype)
        labels = rng.random(n) < rate
        labels[:2] = False, True
        above, below = scores[labels], scores[~labels]
        wanted = int(2 * (above[:, None] > below).sum() + (above[:, None] == below).sum())
        with monkeypatch.context() as patch:
            for rows in (1, 1 << 30):
                patch.setattr(auc_module, "WALKED_ROWS", rows)
                assert wins(above, below) == wanted
        assert auc_module._walk(np.sort(above), np.sort(below)) == wanted
        assert metrics._wins_on_device(torch.from_numpy(above), torch.from_numpy(below)) == wanted
        value = wanted / (2 * len(above) * len(below))
        assert (
            auc(scores, labels)
            == metrics.auc(torch.from_numpy(scores), torch.from_numpy(labels))
            == value
        )
        assert expected_auc(scores, labels, ~labels) == pytest.approx(value, abs=1e-12)
        if np.isfinite(scores).all():
            assert roc_auc_score(labels, scores) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("rows", [1, 1 << 30])
@pytest.mark.parametrize("row", [0, 1])
def test_no_ranks_where_a_score_is_no_number(rows, row, monkeypatch):
    monkeypatch.setattr(auc_module, "WALKED_ROWS", rows)
    scores = np.array([1.0, 2.0, 3.0])
    scores[row] = np.nan
    assert auc(scores, np.array([False, True, True])) is None


def test_one_class_has_no_auc():
    assert auc(np.arange(3.0), np.ones(3, bool)) is None
    assert auc(np.arange(3.0), np.zeros(3, bool)) is None
    assert auc(np.empty(0), np.empty(0, bool)) is None


def test_few_rows_need_nothing_heavy():
    code = (
        "import sys, numpy as np; from mtlkit.data.auc import auc\n"
        "assert auc(np.arange(9.0), np.arange(9) > 4) == 1\n"
        "print(sorted({'torch', 'numba', 'pandas'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "[]\n"
    )
