"""What picks the best point: how it is written, what it refuses, and what it comes to."""

import math
from dataclasses import replace

import numpy as np
import pytest

from mtlkit.data.types import Task
from mtlkit.errors import UsageError
from mtlkit.metrics.definitions import MetricName, read_metric
from mtlkit.settings import TrainingSettings
from mtlkit.training.sampling import sample_rows
from mtlkit.training.selection import SelectionRule, requested_metrics, selection_value
from tests.toy import toy_dataset, toy_schema

KINDS = ("binary", "regression", "multiclass")


@pytest.fixture(scope="module")
def data():
    """Three tasks of three kinds; rows have users, items and domains."""
    return toy_dataset(toy_schema(tasks=3, kinds=KINDS), rows=200)


def rule(data, select, **weights):
    return SelectionRule.read(TrainingSettings(select=select, select_weights=weights), data)


@pytest.mark.parametrize(
    ("select", "which", "metric"),
    [
        ("mean", "mean", None),
        ("loss", "loss", None),
        ("t1", "t1", None),
        ("logloss", "mean", "logloss"),
        ("gauc", "mean", "gauc@user"),
        ("weighted:gauc@item", "weighted", "gauc@item"),
        ("t1:ndcg@5", "t1", "ndcg@5@user"),
        ("t2:mae", "t2", "mae"),
        ("f1@0.2", "mean", "f1@0.2"),
        ("auc@user=cold", "mean", "auc@user=cold"),
    ],
)
def test_a_rule_is_read(data, select, which, metric):
    found = rule(data, select)
    assert found.which == which
    assert (None if found.metric is None else str(found.metric)) == metric


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("zz", "There is no task 'zz' in this data set."),
        ("zz:auc", "There is no task 'zz' in this data set."),
        ("loss:auc", "There is no task 'loss' in this data set."),
        ("t1:auk", "There is no metric 'auk'. Did you mean auc?"),
        ("ndcg@0", "The metric 'ndcg@0' cannot be read"),
        ("gauc@session", "gauc@session needs rows grouped by session, which toy does not have."),
        ("t2:auc", "No binary or multiclass task is there to select by auc."),
        ("auc@user=tepid", "toy has no segment 'user=tepid' of validation rows."),
        ("auc@shop=1", "toy has no segment 'shop=1' of validation rows."),
    ],
)
def test_what_the_data_cannot_give_is_refused(data, select, message):
    with pytest.raises(UsageError) as caught:
        rule(data, select)
    assert caught.value.message.startswith(message)
    assert caught.value.hint


def test_a_task_named_like_a_metric_is_a_task(data):
    tasks = (Task(name="gauc"), Task(name="a:auc"))
    named = replace(data, schema=data.schema.model_copy(update={"tasks": tasks}))
    assert rule(named, "gauc").metric is None
    assert rule(named, "a:auc").metric is None
    assert str(rule(named, "a:auc:logloss").metric) == "logloss"


TASKS = {"a": Task(name="a"), "b": Task(name="b"), "n": Task(name="n", kind="regression")}
VALUES = {
    "a": {"auc": 0.9, "logloss": 0.2, "calibration": 1.5},
    "b": {"auc": 0.7, "logloss": 0.6, "calibration": 0.9},
    "n": {"r2": 0.5, "mse": 4.0},
}


@pytest.mark.parametrize(
    ("found", "value"),
    [
        (SelectionRule("mean", None, {}), (0.9 + 0.7 + 0.5) / 3),
        (SelectionRule("mean", MetricName("logloss"), {}), -(0.2 + 0.6) / 2),
        (SelectionRule("mean", MetricName("calibration"), {}), -(0.5 + 0.1) / 2),
        (SelectionRule("b", MetricName("logloss"), {}), -0.6),
        (SelectionRule("weighted", MetricName("auc"), {"a": 3}), (3 * 0.9 + 0.7) / 4),
        (SelectionRule("mean", MetricName("mse"), {}), -4.0),
        (SelectionRule("loss", None, {}), -7.0),
        (SelectionRule("mean", MetricName("ece"), {}), -7.0),
    ],
    ids=str,
)
def test_the_value_is_a_mean_over_tasks_that_have_the_metric(found, value):
    assert selection_value(found, TASKS, VALUES, loss=7.0) == pytest.approx(value)


def test_a_group_of_tasks_without_the_metric_goes_by_its_own(data):
    found = SelectionRule("mean", MetricName("logloss"), {})
    assert selection_value(found, {"n": TASKS["n"]}, VALUES, loss=7.0) == 0.5
    found = SelectionRule("a", MetricName("logloss"), {})
    assert selection_value(found, {"b": TASKS["b"]}, VALUES, loss=7.0) == -0.6


def test_requested_metrics_are_checked(data):
    found = requested_metrics(["ndcg@5", "rmse", "auc@item=cold"], data)
    assert [str(name) for name in found] == ["ndcg@5@user", "rmse", "auc@item=cold"]
    one = replace(data, schema=data.schema.model_copy(update={"tasks": (Task(name="a"),)}))
    with pytest.raises(UsageError, match="rmse needs a regression task; toy has none"):
        requested_metrics(["rmse"], one)


def test_whole_groups_are_drawn_where_rows_are_ranked_within_them():
    codes = np.random.default_rng(0).integers(-1, 30, 1000)
    rows = sample_rows(1000, 300, 0, codes)
    assert 200 < len(rows) <= 300
    chosen = set(codes[rows])
    assert min(chosen) >= 0
    assert np.array_equal(rows, np.flatnonzero(np.isin(codes, list(chosen))))
    assert np.array_equal(rows, sample_rows(1000, 300, 0, codes))
    assert sample_rows(1000, 1000, 0, codes) is None
    assert len(sample_rows(1000, 3, 0, np.zeros(1000, int))) == 1000  # one group at least


def test_a_run_selects_by_a_metric_within_groups(trainer, data):
    run = trainer(data, select="gauc", epochs=2, evaluations=3)
    run.execution = run.execution.model_copy(update={"metrics": ()})
    result = run.fit()
    points = [point["validation"]["t1"]["gauc@user"] for point in result.curve]
    assert result.best["t1"]["value"] == max(points)
    assert result.best["t1"]["point"] == points.index(max(points))
    assert "average_precision" not in result.curve[0]["validation"]["t1"]

    # the final scores have everything, both on validation and on test
    at_best = result.curve[result.best["t1"]["point"]]["validation"]["t1"]
    assert at_best.items() <= result.metrics["validation"]["t1"].items()
    for split in ("validation", "test"):
        measured = result.metrics[split]["t1"]
        assert {"gauc@user", "gauc_unweighted@user", "average_precision", "ece", "f1"} <= set(
            measured
        )
        assert "rmse" in result.metrics[split]["t2"]
    assert not any("cold" in name for name in result.metrics["validation"]["t1"])


def test_a_segment_is_measured_on_its_rows_alone(trainer, data):
    run = trainer(data, select="t1:auc@domain=1", epochs=1, evaluations=1)
    result = run.fit()
    is_in = data.splits["test"].ids[:, 2] == 1
    labels, logits = result.scores["label/t1"][is_in], result.scores["score/t1"][is_in]
    above, below = logits[labels > 0], logits[labels == 0]
    auc = ((above[:, None] > below) + 0.5 * (above[:, None] == below)).mean()
    measured = result.metrics["test"]["t1"]
    assert measured["auc@domain=1"] == pytest.approx(auc, abs=1e-12)
    assert measured["rows@domain=1"] == is_in.sum()
    assert measured["positives@domain=1"] == (labels > 0).sum()
    assert math.isfinite(result.metrics["test"]["t3"]["accuracy@domain=1"])
    assert result.best["t1"]["value"] == result.metrics["validation"]["t1"]["auc@domain=1"]


def test_the_metrics_of_a_sample_are_those_of_whole_groups(trainer, data):
    run = trainer(data, select="gauc", epochs=1, evaluations=1, validation_rows=60)
    users = run.measures.validation.codes("user")
    chosen = run.evaluator.further.groups.codes("user")
    assert len(chosen) == len(run.evaluator.eval_split) <= 60
    for user in set(chosen):
        assert (chosen == user).sum() == (users == user).sum()
    assert read_metric("gauc@user") == run.evaluator.rule.metric
