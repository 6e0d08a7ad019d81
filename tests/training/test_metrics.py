import math
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import log_loss, r2_score, roc_auc_score

from mtlkit.data.auc import wins
from mtlkit.data.types import Task
from mtlkit.training import metrics
from mtlkit.training.metrics import _wins_on_device, auc, task_metrics

BINARY = Task(name="a")


def numbers(*values):
    return torch.tensor(values, dtype=torch.float32)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_auc_is_the_share_of_pairs_in_order(rows):
    scores, labels = numbers(*(score for score, _ in rows)), numbers(*(label for _, label in rows))
    above, below = scores[labels > 0], scores[labels == 0]
    if not len(above) or not len(below):
        assert auc(scores, labels) is None
        return
    difference = above[:, None] - below
    assert auc(scores, labels) == float(
        ((difference > 0) + 0.5 * (difference == 0)).double().mean()
    )
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_auc_of_a_million_rows_is_exact(ties):
    rng = np.random.default_rng(0)
    labels = (rng.random(1_000_000) < 0.03).astype(np.float32)
    scores = rng.standard_normal(1_000_000).astype(np.float32) + 0.4 * labels
    scores = scores.round(1) if ties else scores
    assert auc(torch.from_numpy(scores), torch.from_numpy(labels)) == pytest.approx(
        roc_auc_score(labels, scores), abs=1e-12
    )


def test_auc_at_the_edges():
    labels = numbers(0, 0, 1, 1)
    assert auc(numbers(1, 2, 3, 4), labels) == 1
    assert auc(numbers(4, 3, 2, 1), labels) == 0
    assert auc(numbers(5, 5, 5, 5), labels) == 0.5
    assert auc(numbers(1, 2), numbers(1, 1)) is None
    assert auc(numbers(1, 2), numbers(0, 0)) is None
    assert auc(numbers(), numbers()) is None
    assert auc(numbers(-math.inf, math.inf), numbers(0, 1)) == 1


def test_binary_by_hand():
    result = task_metrics(BINARY, numbers(0, 0, 0, 0), numbers(1, 0, 0, 0), None)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert result == {
        "rows": 4,
        "positives": 1,
        "auc": 0.5,
        "logloss": pytest.approx(math.log(2)),
        "normalized_entropy": pytest.approx(math.log(2) / entropy),
        "calibration": pytest.approx(2.0),
    }


def test_a_perfectly_calibrated_constant():
    logit = math.log(0.2 / 0.8)
    result = task_metrics(BINARY, torch.full((10,), logit), numbers(1, 1, *[0] * 8), None)
    assert result["normalized_entropy"] == pytest.approx(1, abs=1e-6)
    assert result["calibration"] == pytest.approx(1, abs=1e-6)


def test_binary_equals_sklearn():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(500, generator=generator) < 0.3).float()
    logits = torch.randn(500, generator=generator) + labels
    result = task_metrics(BINARY, logits, labels, None)
    chances = logits.double().sigmoid()
    assert result["logloss"] == pytest.approx(log_loss(labels, chances), abs=1e-9)
    assert result["auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert result["calibration"] == pytest.approx(float(chances.sum() / labels.sum()), abs=1e-9)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only(label):
    result = task_metrics(BINARY, numbers(1, -1), numbers(label, label), None)
    assert result["auc"] is None
    assert result["normalized_entropy"] is None
    assert (result["calibration"] is None) == (label == 0)
    assert result["logloss"] == pytest.approx(
        (math.log1p(math.exp(-1)) + math.log1p(math.exp(1))) / 2
    )


def test_extreme_logits_give_finite_losses():
    result = task_metrics(BINARY, numbers(300, -300), numbers(0, 1), None)
    assert result["logloss"] == pytest.approx(300)


def test_regression_is_scored_on_the_original_scale():
    task = Task(name="a", kind="regression", losses=("mse",), scale=(10.0, 3.0))
    labels, predicted = numbers(-1, 0, 1, 2), numbers(-1, 0.5, 1, 1)
    result = task_metrics(task, predicted, labels, None)
    true, guess = labels.numpy() * 3 + 10, predicted.numpy() * 3 + 10
    assert result["mse"] == pytest.approx(((true - guess) ** 2).mean(), rel=1e-6)
    assert result["mae"] == pytest.approx(np.abs(true - guess).mean(), rel=1e-6)
    assert result["r2"] == pytest.approx(r2_score(true, guess), rel=1e-6)
    assert result["positives"] is None
    assert task_metrics(task, labels, labels, None)["r2"] == 1


def test_regression_without_scale_or_spread():
    task = Task(name="a", kind="regression", losses=("mse",))
    assert task_metrics(task, numbers(1, 2), numbers(1, 4), None)["mse"] == 2
    assert task_metrics(task, numbers(1, 2), numbers(3, 3), None)["r2"] is None


def test_multiclass():
    task = Task(name="a", kind="multiclass", classes=3, losses=("cross_entropy",))
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (200,), generator=generator).float()
    logits = torch.randn(200, 3, generator=generator)
    result = task_metrics(task, logits, labels, None)
    chances = logits.double().softmax(-1)
    assert result["accuracy"] == float((logits.argmax(1) == labels).double().mean())
    assert result["logloss"] == pytest.approx(log_loss(labels, chances, labels=[0, 1, 2]), abs=1e-9)
    each = [roc_auc_score(labels == c, chances[:, c].float()) for c in range(3)]
    assert result["auc"] == pytest.approx(np.mean(each), abs=1e-12)
    assert result["positives"] is None


def test_multiclass_with_a_class_that_is_missing():
    task = Task(name="a", kind="multiclass", classes=3, losses=("cross_entropy",))
    logits = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 2, 0]])
    assert task_metrics(task, logits, numbers(0, 1, 1), None)["auc"] == 1


@pytest.mark.parametrize("kind", ["binary", "regression", "multiclass"])
def test_missing_labels_are_left_out(kind):
    task = Task(name="a", kind=kind, classes=3, scale=(1.0, 2.0))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, *([3] if kind == "multiclass" else []), generator=generator)
    labels = torch.randint(0, 2, (60,), generator=generator).float()
    observed = torch.rand(60, generator=generator) < 0.5
    spoilt = torch.where(observed, labels, torch.nan)
    assert task_metrics(task, logits, spoilt, observed) == task_metrics(
        task, logits[observed], labels[observed], None
    )
    none = task_metrics(task, logits, spoilt, torch.zeros(60, dtype=torch.bool))
    assert none == {"rows": 0, "positives": 0 if kind == "binary" else None}


def plain_auc(scores, labels):
    """By ranks, ties in the middle."""
    ranks, positive = rankdata(scores), labels > 0
    n, m = positive.sum(), (~positive).sum()
    return (ranks[positive].sum() - n * (n + 1) / 2) / (n * m)


FAMILIES = {
    "continuous": lambda rng, n: rng.standard_normal(n),
    "few values": lambda rng, n: rng.integers(-2, 3, n),
    "signed zeros": lambda rng, n: rng.choice([0.0, -0.0, 1e-45, -1e-45], n),
    "infinite": lambda rng, n: rng.choice([-np.inf, np.inf, 0.0, 3.0], n),
    "sorted": lambda rng, n: np.arange(n),
    "reversed": lambda rng, n: np.arange(n)[::-1].copy(),
    "constant": lambda rng, n: np.full(n, 0.3),
    "huge": lambda rng, n: rng.choice([3e38, -3e38, 1e-38], n) * rng.random(n),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["float32", "float64", "strided"])
def test_auc_of_random_families(family, kind):
    rng = np.random.default_rng(3)
    for n, rate in [(2, 0.5), (3, 0.5), (50, 0.02), (51, 0.98), (2000, 0.4), (20_001, 0.003)]:
        scores = FAMILIES[family](rng, n).astype("float64" if kind == "float64" else "float32")
        labels = (rng.random(n) < rate).astype(np.float32)
        labels[:2] = 0, 1
        given = torch.from_numpy(scores), torch.from_numpy(labels)
        if kind == "strided":
            given = tuple(torch.stack([x, 1 - x], 1)[:, 0] for x in given)
        wanted = plain_auc(scores, labels)
        assert auc(*given) == pytest.approx(wanted, abs=1e-12)
        positive = given[1] > 0
        pairs = _wins_on_device(given[0][positive], given[0][~positive])
        assert pairs == wins(scores[labels > 0], scores[labels == 0]), (
            "devices count the same pairs"
        )
        assert auc(*given) == pairs / (2 * int(positive.sum()) * int((~positive).sum()))


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_no_ranks_where_a_score_is_no_number(position):
    scores, labels = numbers(1, 2, 3, 4), numbers(0, 1, 0, 1)
    scores[position] = math.nan
    assert auc(scores, labels) is None
    assert _wins_on_device(scores[labels > 0], scores[labels == 0]) is None
    result = task_metrics(BINARY, scores, labels, None)
    assert {name for name, value in result.items() if value is not None} == {"rows", "positives"}
    assert task_metrics(BINARY, scores, labels, ~scores.isnan())["auc"] is not None, (
        "the rows left out do not count"
    )
    chances = torch.stack([scores, -scores], 1)
    result = task_metrics(
        Task(name="a", kind="multiclass", losses=("cross_entropy",)), chances, labels, None
    )
    assert set(result.values()) == {4, None}
    result = task_metrics(Task(name="a", kind="regression", losses=("mse",)), scores, labels, None)
    assert set(result.values()) == {4, None}


def test_infinite_logits():
    sure = task_metrics(BINARY, numbers(-math.inf, math.inf, 0), numbers(0, 1, 1), None)
    assert sure["logloss"] == pytest.approx(math.log(2) / 3)
    assert sure["auc"] == 1
    assert sure["calibration"] == pytest.approx(1.5 / 2)
    wrong = task_metrics(BINARY, numbers(math.inf, 0), numbers(0, 1), None)
    assert (wrong["logloss"], wrong["auc"], wrong["normalized_entropy"]) == (None, 0, None)


def test_float64_scores_are_ranked_as_such():
    close = torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64)
    assert auc(close, numbers(0, 1)) == 1
    assert task_metrics(BINARY, close, numbers(0, 1), None)["auc"] == 1


def test_half_precision_scores():
    scores, labels = torch.tensor([0.5, 1.0, 2.0]).bfloat16(), numbers(0, 1, 0)
    assert auc(scores, labels) == 0.5
    assert task_metrics(BINARY, scores, labels, None) == task_metrics(
        BINARY, scores.float(), labels, None
    )


def test_sums_in_blocks_are_those_of_the_whole(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(1000, generator=generator)
    labels = (torch.rand(1000, generator=generator) < 0.2).float()
    result = task_metrics(BINARY, logits, labels, None)
    whole = F.binary_cross_entropy_with_logits(logits.double(), labels.double())
    assert result["logloss"] == pytest.approx(float(whole), rel=1e-13)
    monkeypatch.setattr(metrics, "BLOCK_ROWS", 64)
    again = task_metrics(BINARY, logits, labels, None)
    assert again == {name: pytest.approx(value, rel=1e-13) for name, value in result.items()}


@pytest.mark.slow
def test_auc_of_ten_million_rows_is_several_times_faster_than_sklearn():
    rng = np.random.default_rng(0)
    labels = (rng.random(10_000_000) < 0.04).astype(np.float32)
    scores = (rng.standard_normal(10_000_000) + 0.4 * labels).astype(np.float32)
    given = torch.from_numpy(scores), torch.from_numpy(labels)
    auc(*given)  # the compiled walk out of its cache
    times, areas = [], []
    for function, arguments in ((auc, given), (roc_auc_score, (labels, scores))):
        began = time.process_time()
        areas.append(function(*arguments))
        times.append(time.process_time() - began)
    assert areas[0] == pytest.approx(areas[1], abs=1e-12)
    assert times[1] > 4 * times[0]
