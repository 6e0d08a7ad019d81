"""Metrics of stored scores: those of the run that stored them, and those of other packages."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from mtlkit.data.sources import open_source
from mtlkit.grid.run_cell import success
from mtlkit.training.recompute import wrong_numbers
from tests.fakes import cell
from tests.toy import toy_dataset, toy_schema


def record_of(data, result):
    return success(cell(tasks=data.schema.task_names), data, result, {}).record


@pytest.fixture(scope="module")
def funnel(tmp_path_factory):
    spec = "funnel[rows=1200,click_rate=.3,buy_rate=.4,bias=1,users=40,items=20]"
    return open_source(spec).prepare(tmp_path_factory.mktemp("funnel"))


@pytest.fixture(scope="module")
def runs(trainer, mixed, funnel):
    """(record, scores) of runs with all kinds of tasks, and of all scores of a funnel, of which
    some are quotients, some hidden.
    """
    found = {}
    for name, data in {"mixed": mixed, "funnel": funnel}.items():
        result = trainer(data).fit()
        found[name] = record_of(data, result), result.scores
    return found


@pytest.mark.parametrize("name", ["mixed", "funnel"])
def test_a_run_gives_its_numbers_again(runs, name):
    record, scores = runs[name]
    assert list(wrong_numbers(record, scores)) == []


@pytest.mark.parametrize("name", ["mixed", "funnel"])
def test_every_metric_is_looked_at(runs, name):
    record, scores = runs[name]
    recorded = record.metrics["test"]
    looked_at = 0
    for score, values in recorded.items():
        for metric, value in values.items():
            if metric in ("space", "derived", "capped") or "=" in metric:
                continue
            other = 0.5 if value is None else value + 2e-5 * max(1, abs(value))
            changed = {**recorded, score: {**values, metric: other}}
            lie = record.model_copy(update={"metrics": {"test": changed}})
            (sentence,) = wrong_numbers(lie, scores)
            assert sentence.startswith(f"{metric} of {score} is {other} in the record, and ")
            looked_at += 1
    assert looked_at > 20


@pytest.mark.parametrize("target", ["standardize", "log1p"])
def test_regressions_are_stored_on_the_scale_on_which_they_are_measured(trainer, target):
    schema = toy_schema(tasks=2, kinds=("binary", "regression"))
    tasks = (schema.tasks[0], schema.tasks[1].model_copy(update={"target": target}))
    data = toy_dataset(schema, rows=320)
    data = replace(data, schema=schema.model_copy(update={"tasks": tasks}))
    result = trainer(data).fit()
    labels, predicted = (result.scores[f"{what}/t2"].astype(float) for what in ("label", "score"))
    expected = data.splits["test"].labels[:, 1].astype(float) * 3 + 2
    expected = np.expm1(expected) if target == "log1p" else expected
    np.testing.assert_allclose(labels, expected, rtol=1e-6)
    measured = result.metrics["test"]["t2"]
    assert measured["mse"] == pytest.approx(mean_squared_error(labels, predicted), rel=1e-5)
    assert measured["mae"] == pytest.approx(mean_absolute_error(labels, predicted), rel=1e-5)
    assert measured["r2"] == pytest.approx(r2_score(labels, predicted), rel=1e-5)
    assert list(wrong_numbers(record_of(data, result), result.scores)) == []
