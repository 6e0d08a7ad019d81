"""Covering batches: what they hold, and that weighted means stay what they were."""

from itertools import islice

import numpy as np
import pytest
import torch

from mtlkit.data.splits import Split
from mtlkit.data.types import Schema, Task
from mtlkit.errors import UsageError
from mtlkit.training.stratified import stratified_sampler
from tests.toy import toy_dataset, toy_schema
from tests.training.runs import watch_steps

CPU = torch.device("cpu")
ROWS = 4000


@pytest.fixture(scope="module")
def rare():
    """Clicks are common; purchases are 1 in 1000 rows; the third task has a label on 1 in 500 rows."""
    rng = np.random.default_rng(0)
    labels = np.stack(
        [rng.random(ROWS) < 0.6, np.arange(ROWS) % 1000 == 7, rng.random(ROWS) < 0.5], 1
    )
    observed = np.ones((ROWS, 3), bool)
    observed[:, 2] = np.arange(ROWS) % 500 == 3
    split = Split(
        np.zeros((ROWS, 0), np.int32),
        np.zeros((ROWS, 1), np.float32),
        labels.astype(np.float32),
        observed,
    )
    tasks = (
        Task(name="click"),
        Task(name="purchase"),
        Task(name="rating", kind="regression", losses=("mse",)),
    )
    return split, Schema(features=(), tasks=tasks)


def batches(plan, count, seed=0):
    return list(islice(plan.stream(torch.Generator().manual_seed(seed), CPU), count))


def test_every_batch_holds_rows_and_positives_of_every_task(rare):
    split, schema = rare
    plan = stratified_sampler(split, schema, 64, 2)
    assert {stratum.name: stratum.count for stratum in plan.rare} == {"purchase=1": 2, "rating": 2}
    assert plan.shuffled_count == 60
    for rows in batches(plan, 50):
        assert len(rows) == 64
        labels, observed = split.labels[rows.numpy()], split.observed[rows.numpy()]
        assert (observed.sum(0) >= 2).all()
        assert ((labels > 0) & observed)[:, :2].sum(0).min() >= 2


def test_nothing_is_drawn_on_purpose_where_plain_batches_cover(rare):
    split, schema = rare
    plan = stratified_sampler(split, schema.select(["click"]), 256, 4)
    assert plan.rare == ()
    assert (plan.weights == 1).all()


def test_weights_are_inverse_chances(rare):
    split, schema = rare
    plan = stratified_sampler(split, schema, 64, 3)
    passes = 8000  # four of them visit every purchase as often as any other
    counts = np.bincount(torch.cat(batches(plan, passes)).numpy(), minlength=ROWS)
    expected = passes * 64 / ROWS / plan.weights
    np.testing.assert_allclose(counts, expected, rtol=0.03)
    summary = plan.summary()
    assert summary["drawn"] == {"purchase=1": 3, "rating": 3}
    assert summary["lowest_weight"] == pytest.approx(plan.weights.min())


def test_weighted_means_are_those_of_the_split(rare):
    split, schema = rare
    plan = stratified_sampler(split, schema, 64, 3)
    value = np.random.default_rng(1).random(ROWS) + 5 * split.labels[:, 1]
    seen = torch.cat(batches(plan, 8000)).numpy()
    assert np.mean(plan.weights[seen] * value[seen]) == pytest.approx(value.mean(), rel=2e-3)
    assert np.mean(value[seen]) > value.mean() * 1.02  # and would not be without the weights


def test_too_much_to_cover_is_refused(rare):
    split, schema = rare
    with pytest.raises(UsageError, match="more than half"):
        stratified_sampler(split, schema, 16, 5)


def test_training_with_covering_batches(trainer):
    data = toy_dataset(
        toy_schema(tasks=3, kinds=("binary", "regression", "multiclass")), rows=400, missing=0.95
    )
    plain = trainer(data, batch_size=16, epochs=1)
    plain_steps = watch_steps(plain)
    plain.fit()
    assert not all(step.active.all() for step in plain_steps)

    run = trainer(data, batch_size=16, epochs=1, batches="covering")
    steps = watch_steps(run)
    weights = []
    train = run.splits["train"]
    take = train.take

    def watched_take(rows, weight=None):
        weights.append(weight)
        return take(rows, weight)

    train.take = watched_take
    result = run.fit()
    assert all(step.active.all() for step in steps)
    assert sum(weight is not None for weight in weights) == result.cost["steps"]
    covering = result.cost["covering"]
    assert covering["drawn"]
    assert 0 < covering["lowest_weight"] < 1 <= covering["highest_weight"]
