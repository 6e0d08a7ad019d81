"""Scales of regression targets, and the way back."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

import mtlkit
from mtlkit.data.encoders import QuantileRanks
from mtlkit.data.targets import from_normal_ranks, to_normal_ranks
from mtlkit.data.types import Task
from mtlkit.errors import MtlkitError
from mtlkit.grid.build import make_model
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.scoring import probabilities


def frame_of(values, seed=0):
    rng = np.random.default_rng(seed)
    part = np.array(["train"] * (len(values) - 4) + ["validation"] * 2 + ["test"] * 2)
    return pd.DataFrame({"x": rng.normal(size=len(values)), "y": values, "part": part})


def prepare(values, **label):
    return mtlkit.Dataset.from_frame(
        frame_of(values), {"y": {"kind": "regression", **label}}, split="column:part"
    )


def test_the_default_is_standardised_on_train():
    values = np.r_[1.0, 2.0, 3.0, 4.0, 10.0, -5.0, 7.0, 8.0]
    task = prepare(values).schema.tasks[0]
    assert (task.target, task.quantiles) == ("standardize", None)
    assert task.original(torch.tensor([0.0, 2.0])).tolist() == pytest.approx(
        [2.5, 2.5 + 2 * np.std([1, 2, 3, 4])]
    )


def test_log1p_by_hand():
    values = np.r_[0.0, np.e - 1, np.e**2 - 1, np.e**3 - 1, 5.0, 6.0, 7.0, 8.0]
    data = prepare(values, target="log1p")
    task, labels = data.schema.tasks[0], data.splits["train"].labels[:, 0]
    assert task.scale == pytest.approx((1.5, np.std([0, 1, 2, 3])))
    assert labels == pytest.approx((np.arange(4) - 1.5) / np.std([0, 1, 2, 3]), abs=1e-6)
    test = data.splits["test"].labels[:, 0]
    assert task.original(torch.tensor(test)).tolist() == pytest.approx([7.0, 8.0], rel=1e-5)


def test_none_leaves_labels_alone():
    values = np.r_[0.0, 3.0, 4.5, 1.0, 5.0, 6.0, 7.0, 8.0]
    data = prepare(values, target="none")
    assert data.splits["train"].labels[:, 0].tolist() == [0.0, 3.0, 4.5, 1.0]
    assert data.schema.tasks[0].original(torch.tensor([1.5])).tolist() == [1.5]


@pytest.mark.parametrize("target", ["standardize", "log1p", "quantile", "none"])
def test_predictions_are_on_the_scale_of_the_data(target):
    data = prepare(np.arange(40.0) ** 2, target=target)
    task, model = data.schema.tasks[0], make_model("shared-bottom[tower=4]", data, 0).eval()
    with torch.no_grad():
        output = model(DeviceSplit.load(data.splits["test"], torch.device("cpu")).columns)
        found = probabilities(model, output)["y"]
    logits = output.predictions[0].logits.numpy()
    mean, std = task.scale or (0, 1)
    expected = logits * std + mean
    if target == "log1p":
        expected = np.expm1(expected)
    elif target == "quantile":
        expected = from_normal_ranks(logits.astype(float), task.quantiles, std)
    assert found.numpy() == pytest.approx(expected, rel=1e-5)


def test_quantile_by_hand():
    values = np.r_[np.arange(5.0) ** 2, 100.0, -3.0, 4.0, 9.0]
    data = prepare(values, target="quantile")
    labels = data.splits["train"].labels[:, 0]
    ranks = [1e-7, 0.25, 0.5, 0.75, 1 - 1e-7]
    assert labels == pytest.approx(norm.ppf(ranks), abs=1e-4)
    # beyond the range of train it goes on in steps of the deviation there
    std = np.std(np.arange(5.0) ** 2)
    outside = data.splits["validation"].labels[:, 0]
    end = norm.ppf(1 - 1e-7)
    assert outside == pytest.approx([end + (100 - 16) / std, -end - 3 / std], abs=1e-4)
    back = data.schema.tasks[0].original(torch.tensor(outside))
    assert back.tolist() == pytest.approx([100, -3], abs=1e-3)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40),
    st.lists(st.floats(-2e6, 2e6), min_size=1, max_size=10),
)
def test_the_way_back_is_the_inverse(train, others):
    train = np.array(train)
    quantiles, std = QuantileRanks.fit(train).values, float(np.std(train)) or 1.0
    values = np.r_[train, others]
    normal = to_normal_ranks(values, quantiles, std)
    assert np.isfinite(normal).all()
    back = from_normal_ranks(normal, quantiles, std)
    span = max(np.ptp(train), std)
    assert np.abs(back - values).max() <= 1e-5 * span + 1e-9 * np.abs(values).max()


def test_labels_without_a_logarithm_are_refused():
    values = np.r_[0.0, 1.0, -1.0, 3.0, 5.0, 6.0, 7.0, 8.5]
    with pytest.raises(MtlkitError) as caught:
        prepare(values, target="log1p")
    assert "is -1 or less, which log1p cannot take, in row 3." in caught.value.message


def test_a_plain_task_is_written_as_it_always_was():
    assert list(Task(name="a").model_dump()) == [
        "name", "kind", "classes", "losses", "weight", "given", "scale", "description",
    ]  # fmt: skip
    assert (
        Task(name="a", kind="regression", losses=("mse",), target="none").model_dump()["target"]
        == "none"
    )
