"""Ranks within groups: by hand, and against slow loops and scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score

from mtlkit.metrics.grouped import RankedRows

ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([-2.5, -0.0, 0.0, 0.5, 3.0]), st.booleans()),
    max_size=30,
)


def ranked(groups, scores, labels):
    return RankedRows(np.array(scores, np.float32), np.array(labels, bool), np.array(groups))


def columns(rows):
    groups, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return np.array(groups, int), np.array(scores, np.float32), np.array(labels, bool)


def slow_auc(scores, labels):
    """The share of pairs in order; None where there is none."""
    above, below = scores[labels], scores[~labels]
    if not len(above) or not len(below):
        return None
    return float(((above[:, None] > below) + 0.5 * (above[:, None] == below)).mean())


def by_group(rows):
    groups, scores, labels = columns(rows)
    for group in np.unique(groups):
        yield scores[groups == group], labels[groups == group]


def test_gauc_by_hand():
    # group 0: AUC 1 of 2 rows; group 1: 0 of 3 rows; group 2: one class; group 3: a tie
    rows = ranked([0, 0, 1, 1, 1, 2, 3, 3], [2, 1, 1, 2, 3, 9, 5, 5], [1, 0, 1, 0, 0, 1, 1, 0])
    np.testing.assert_array_equal(rows.aucs(), [1, 0, np.nan, 0.5])
    assert rows.gauc() == (2 * 1 + 3 * 0 + 2 * 0.5) / 7
    assert rows.gauc(weighted=False) == 0.5


def test_ndcg_and_recall_by_hand():
    # positives at the ranks 1 and 3 of the first group, none in the second, rank 2 in the third
    rows = ranked([7, 7, 7, 7, 8, 8, 9, 9], [4, 3, 2, 1, 1, 2, 6, 5], [1, 0, 1, 0, 0, 0, 0, 1])
    best = 1 + 1 / math.log2(3)
    assert rows.ndcg(3) == pytest.approx(((1 + 1 / 2) / best + 1 / math.log2(3)) / 2, abs=1e-12)
    assert rows.ndcg(1) == pytest.approx((1 + 0) / 2, abs=1e-12)
    assert rows.recall(1) == (0.5 + 0) / 2
    assert rows.recall(2) == (0.5 + 1) / 2
    assert rows.recall(10) == 1


def test_ties_count_as_the_mean_over_their_orders():
    rows = ranked([0, 0, 0], [1, 1, 1], [1, 0, 0])
    assert rows.recall(1) == pytest.approx(1 / 3)
    assert rows.recall(2) == pytest.approx(2 / 3)
    assert rows.ndcg(2) == pytest.approx((1 + 1 / math.log2(3)) / 3)


@settings(deadline=None)
@given(ROWS)
def test_gauc_is_the_mean_over_groups_with_both_classes(rows):
    values = [(slow_auc(*group), len(group[0])) for group in by_group(rows)]
    defined = [(value, size) for value, size in values if value is not None]
    found = ranked(*columns(rows))
    if not defined:
        assert found.gauc() is None
        assert found.gauc(weighted=False) is None
        return
    aucs, sizes = zip(*defined, strict=True)
    assert found.gauc() == pytest.approx(np.average(aucs, weights=sizes), abs=1e-12)
    assert found.gauc(weighted=False) == pytest.approx(np.mean(aucs), abs=1e-12)


@settings(deadline=None)
@given(ROWS, st.integers(1, 6))
def test_ndcg_is_that_of_scikit_learn_in_each_group(rows, cut):
    values = []
    for scores, labels in by_group(rows):
        if not labels.any():
            continue
        # scikit-learn takes no list of one
        one = len(labels) == 1
        values.append(1.0 if one else ndcg_score([labels], [scores], k=cut))
    found = ranked(*columns(rows)).ndcg(cut)
    assert found is None if not values else found == pytest.approx(np.mean(values), abs=1e-10)


@settings(deadline=None)
@given(ROWS, st.integers(1, 6), st.randoms(use_true_random=False))
def test_recall_is_the_share_of_positives_on_top(rows, cut, random):
    # without ties, so that there is one order
    order = list(range(len(rows)))
    random.shuffle(order)
    rows = [(group, rank, label) for (group, _, label), rank in zip(rows, order, strict=True)]
    values = []
    for scores, labels in by_group(rows):
        top = np.argsort(-scores)[:cut]
        if labels.any():
            values.append(labels[top].sum() / labels.sum())
    found = ranked(*columns(rows)).recall(cut)
    assert found is None if not values else found == pytest.approx(np.mean(values), abs=1e-12)


@settings(deadline=None)
@given(ROWS)
def test_average_precision_and_auc_without_groups_are_those_of_scikit_learn(rows):
    _, scores, labels = columns(rows)
    found = RankedRows(scores, labels)
    if not labels.any():
        assert found.average_precision() is None
        return
    expected = average_precision_score(labels, scores)
    assert found.average_precision() == pytest.approx(expected, abs=1e-10)
    if not labels.all():
        assert found.aucs()[0] == pytest.approx(roc_auc_score(labels, scores), abs=1e-10)


def test_a_million_rows_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.random(1_000_000) < 0.03
    scores = (rng.standard_normal(1_000_000) + 0.4 * labels).astype(np.float32).round(3)
    groups = np.where(rng.random(1_000_000) < 0.5, 2**31 - 1, 5)
    rows = RankedRows(scores, labels, groups)
    for auc, group in zip(rows.aucs(), (5, 2**31 - 1), strict=True):
        is_in = groups == group
        assert auc == pytest.approx(roc_auc_score(labels[is_in], scores[is_in]), abs=1e-10)
    expected = average_precision_score(labels, scores)
    assert RankedRows(scores, labels).average_precision() == pytest.approx(expected, abs=1e-10)


def test_infinite_scores_have_their_ranks():
    rows = ranked([0, 0, 0], [-math.inf, 1e38, math.inf], [0, 0, 1])
    assert rows.gauc() == 1
