"""Names of metrics: how they are written, read and found."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlkit.errors import UsageError
from mtlkit.metrics.definitions import (
    METRICS,
    PRIMARY_METRIC,
    MetricName,
    default_metrics,
    find_metric,
    read_metric,
    reading,
)


@pytest.mark.parametrize(
    ("text", "name", "label"),
    [
        ("auc", MetricName("auc"), "AUC"),
        ("gauc@user", MetricName("gauc", group="user"), "GAUC by user"),
        ("ndcg@10", MetricName("ndcg", 10), "NDCG@10"),
        ("ndcg@5@session", MetricName("ndcg", 5, "session"), "NDCG@5 by session"),
        ("f1@0.3", MetricName("f1", 0.3), "F1 at 0.3"),
        ("auc@user=cold", MetricName("auc", segment="user=cold"), "AUC, cold users"),
        ("auc@country=a@b=c", MetricName("auc", segment="country=a@b=c"), "AUC, country a@b=c"),
        (
            "recall@3@shop@item=warm",
            MetricName("recall", 3, "shop", "item=warm"),
            "recall@3 by shop, warm items",
        ),
    ],
)
def test_a_name_is_read_and_written(text, name, label):
    assert read_metric(text) == name
    assert str(name) == text
    assert name.label == label
    assert reading(text).label == label


@pytest.mark.parametrize(
    "text",
    [
        "",
        "auk",
        "auc@user",
        "auc@3",
        "ndcg@0",
        "ndcg@2.5",
        "gauc@",
        "gauc@user@item",
        "gauc@user@3",
        "f1@1",
        "f1@0",
        "f1@nan",
        "f1@inf",
        "NDCG",
    ],
)
def test_what_is_no_metric_is_refused(text):
    with pytest.raises(UsageError) as error:
        read_metric(text)
    assert error.value.hint


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text):
    for whole in (text, f"ndcg@{text}", f"auc@{text}"):
        with suppress(UsageError):
            assert read_metric(whole).name in METRICS
        assert reading(whole).label is not None


def test_the_group_of_a_metric_is_that_of_the_data():
    both, users = ("session", "user"), ("user",)
    assert str(read_metric("gauc").resolve(both, "toy")) == "gauc@user"
    assert str(read_metric("ndcg").resolve(both, "toy")) == "ndcg@10@session"
    assert str(read_metric("ndcg@3").resolve(users, "toy")) == "ndcg@3@user"
    assert str(read_metric("auc").resolve((), "toy")) == "auc"
    with pytest.raises(UsageError, match="gauc needs rows grouped by user or session, which toy"):
        read_metric("gauc").resolve(("item",), "toy")
    with pytest.raises(UsageError, match="needs rows grouped by shop, which toy does not have"):
        read_metric("gauc@shop").resolve(both, "toy")


def test_final_scores_are_ranked_by_the_groups_that_there_are():
    grouped = [str(name) for name in default_metrics(("session", "user")) if name.group]
    assert grouped == [
        "gauc@user",
        "gauc@session",
        "gauc_unweighted@user",
        "gauc_unweighted@session",
        "ndcg@10@session",
        "recall@10@session",
    ]
    assert not [name for name in default_metrics(()) if name.group]


def test_a_recorded_metric_is_found_by_a_shorter_name():
    recorded = ["rows@user=cold", "auc@user=cold", "auc", "gauc@user", "gauc@item", "ndcg@10@user"]
    assert find_metric("auc", recorded) == "auc"
    assert find_metric("gauc", recorded) == "gauc@user"
    assert find_metric("gauc@item", recorded) == "gauc@item"
    assert find_metric("ndcg", recorded) == "ndcg@10@user"
    assert find_metric("ndcg@user", recorded) == "ndcg@10@user"
    assert find_metric("ndcg@5", recorded) is None
    assert find_metric("auc@user=warm", recorded) is None


def test_better_is_higher_on_the_scale_of_goodness():
    assert METRICS["auc"].goodness(0.7) > METRICS["auc"].goodness(0.6)
    assert METRICS["logloss"].goodness(0.1) > METRICS["logloss"].goodness(0.2)
    calibration = METRICS["calibration"]
    assert calibration.goodness(0.9) > calibration.goodness(1.2) > calibration.goodness(0.7)
    assert calibration.direction == "nearest to 1 is best"
    assert set(PRIMARY_METRIC.values()) <= set(METRICS)
