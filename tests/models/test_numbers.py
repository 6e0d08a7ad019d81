"""Encoded numbers against the formulas of the paper in plain NumPy, and what becomes of the bins in
a training.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mtlkit.data.splits import SharedColumns
from mtlkit.grid.build import make_model
from mtlkit.grid.methods import resolve
from mtlkit.models import _numbers
from mtlkit.models._numbers import Periodic, PiecewiseLinear, bin_edges
from mtlkit.registry import MODELS
from mtlkit.spec import parse_spec
from mtlkit.training import trainer as trainer_module
from tests.models.build import load
from tests.toy import toy_dataset, toy_schema

CHOICES = ["piecewise", "periodic"]


def piecewise(x, edges):
    """Equation 1 of arXiv:2203.05556 for one number; T bins between T + 1 edges."""
    bins = len(edges) - 1
    encoded = []
    for t in range(1, bins + 1):
        if x < edges[t - 1] and t > 1:
            encoded.append(0.0)
        elif x >= edges[t] and t < bins:
            encoded.append(1.0)
        else:
            encoded.append((x - edges[t - 1]) / (edges[t] - edges[t - 1]))
    return encoded


def layer(encoded, weight, bias):
    return np.maximum(weight @ np.array(encoded) + bias, 0)


@pytest.mark.parametrize("copies", [0, 3])
def test_piecewise_linear_numbers_are_those_of_the_paper(copies):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    train = np.stack([rng.normal(size=200), rng.integers(0, 3, 200), np.full(200, 7.0)], 1)
    module = PiecewiseLinear(3, width=4, bins=5, copies=copies)
    module.fit(torch.tensor(train, dtype=torch.float32))
    dense = np.array([[-9, -1, 7], [9, 5, 8], [0.1, 1, 7], [0.3, 0.5, 7]], np.float32)
    vectors = module(torch.from_numpy(dense)).detach().numpy()
    assert vectors.shape == ((4, 3, 12) if copies else (4, 12))

    # five bins, two bins of 0, 1 and 2, and none of a constant
    bins = [5, 2, 0]
    weight, bias = module.weight.detach().numpy(), module.bias.detach().numpy()
    for row, numbers in enumerate(dense):
        for copy in range(max(1, copies)):
            expected = []
            for d, x in enumerate(numbers):
                encoded = piecewise(x, module.edges[d, : bins[d] + 1].numpy())
                expected.append(layer(encoded, weight[d, copy, :, : bins[d]], bias[d, copy]))
            found = vectors[row, copy] if copies else vectors[row]
            np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("copies", [0, 3])
def test_periodic_numbers_are_those_of_the_paper(copies):
    torch.manual_seed(0)
    module = Periodic(2, width=4, count=6, std=0.5, copies=copies)
    dense = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    vectors = module(torch.from_numpy(dense)).detach().numpy()
    frequencies = module.frequencies.detach().numpy()
    weight, bias = module.weight.detach().numpy(), module.bias.detach().numpy()
    for row, numbers in enumerate(dense):
        for copy in range(max(1, copies)):
            expected = []
            for d, x in enumerate(numbers):
                angles = 2 * np.pi * frequencies[d, copy] * x
                encoded = [*np.sin(angles), *np.cos(angles)]
                expected.append(layer(encoded, weight[d, copy], bias[d, copy]))
            found = vectors[row, copy] if copies else vectors[row]
            np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-5, atol=1e-6)


def test_frequencies_start_with_their_deviation():
    torch.manual_seed(0)
    frequencies = Periodic(50, width=1, count=200, std=0.3, copies=0).frequencies.detach()
    assert float(frequencies.std()) == pytest.approx(0.3, rel=0.03)


@pytest.mark.parametrize(
    ("column", "bins", "edges"),
    [
        # quantiles, and the greatest value
        (range(9), 4, [0, 2, 4, 6, 8]),
        (range(101), 4, [0, 25, 50, 75, 100]),
        # as few values as edges
        ([3, 1, 1, 2], 3, [1, 2, 3]),
        ([5, 5], 3, [5]),
        # zero alone would fill most quantiles; all bins but one are left for the rest
        ([0] * 900 + list(range(1, 101)), 5, [0, 1, 26, 51, 76, 100]),
        # two frequent values, within the rest
        ([-1, 0, 1, 2, 3, 4] + [2.5] * 20 + [0.5] * 20, 4, [-1, 0.5, 2, 2.5, 4]),
    ],
)
def test_edges_are_frequent_values_and_quantiles_of_the_rest(column, bins, edges):
    column = np.random.default_rng(0).permutation(np.array(column, np.float32))
    found = bin_edges(column, bins)
    assert found.dtype == np.float32
    assert found.tolist() == edges


@pytest.mark.parametrize("bins", [1, 2, 7, 64])
def test_edges_rise_span_all_values_and_are_no_more_than_asked_for(bins):
    rng = np.random.default_rng(bins)
    for column in (rng.normal(size=500), rng.zipf(1.5, 500), rng.integers(0, bins + 1, 500)):
        edges = bin_edges(column.astype(np.float32), bins)
        assert len(edges) <= bins + 1
        assert (np.diff(edges) > 0).all()
        assert set(edges) <= set(column.astype(np.float32))
        assert (edges[0], edges[-1]) == (np.float32(column.min()), np.float32(column.max()))


# --- in models and trainings


@pytest.mark.parametrize("choice", CHOICES)
def test_a_vector_follows_the_columns_of_ids(choice):
    schema = toy_schema(2, bags=1)
    options = load("mmoe").Options(numbers=choice, embedding=3)
    embedding = load("mmoe").build(schema, options).embedding
    assert [len(embedding.feature_columns[name]) for name in ("dense1", "dense2")] == [3, 3]
    assert embedding.feature_columns["dense2"].stop == embedding.width


@pytest.mark.parametrize("choice", CHOICES)
def test_without_dense_features_nothing_is_encoded(choice):
    model = load("mmoe").build(toy_schema(2, dense=0), load("mmoe").Options(numbers=choice))
    assert model.number_embedding is None


def test_a_record_holds_what_the_choice_reads_and_earlier_keys_stay():
    later = {"number_bins", "frequencies", "frequency_std"}
    held = {"value": set(), "vector": set(), "piecewise": {"number_bins"}}
    held["periodic"] = {"frequencies", "frequency_std"}
    for name in MODELS.names():
        options_class = load(name).Options
        for choice, expected in held.items():
            options = options_class(numbers=choice)
            resolved = resolve(parse_spec(name), options, MODELS).resolved["options"]
            assert later & resolved.keys() == expected
            # what is set stays, so that two specs are never one row without a word
            options = options_class(numbers=choice, number_bins=8, frequency_std=2)
            resolved = resolve(parse_spec(name), options, MODELS).resolved["options"]
            assert later & resolved.keys() == expected | {"number_bins", "frequency_std"}
            assert resolved.keys() | later == options_class.model_fields.keys()
            read = options_class.model_validate(resolved)
            assert read.model_dump() == options.model_dump()


def test_bins_are_those_of_the_training_rows(trainer):
    data = toy_dataset(toy_schema(2, dense=3), rows=300)
    run = trainer(data, "mmoe[numbers=piecewise,number_bins=6]", "uniform")
    for d, column in enumerate(data.splits["train"].dense.T):
        expected = bin_edges(column, 6)
        assert len(expected) == 7
        np.testing.assert_array_equal(run.model.embedding.number_embedding.edges[d], expected)

    # They stay as they are, and belong to the weights.
    result = run.fit()
    name = "embedding.number_embedding.edges"
    np.testing.assert_array_equal(result.weights[name][2], expected)


def test_bins_are_those_of_every_nth_row_of_many_and_of_shared_columns(trainer, monkeypatch):
    monkeypatch.setattr(trainer_module, "FITTED_ROWS", 100)
    data = toy_dataset(toy_schema(2, dense=2), rows=300)
    users = np.arange(10, dtype=np.float32)[:, None] ** 2

    def with_shared(split):
        row = (np.arange(len(split)) // 7 % 10).astype(np.int32)
        shared = SharedColumns(row, np.zeros((10, 0), np.int32), users)
        return replace(split, dense=split.dense[:, :1], shared=shared)

    splits = {name: with_shared(split) for name, split in data.splits.items()}
    run = trainer(replace(data, splits=splits), "mmoe[numbers=piecewise,number_bins=4]", "uniform")
    train = splits["train"]
    own, of_users = run.model.embedding.number_embedding.edges.numpy()
    np.testing.assert_array_equal(own, bin_edges(train.dense[::3, 0], 4))
    np.testing.assert_array_equal(of_users, bin_edges(users[train.shared.row[::3], 0], 4))


@pytest.mark.parametrize("choice", CHOICES)
def test_encoded_numbers_learn_what_a_line_cannot(trainer, choice):
    """Whether a number is near 0, by a network that is monotone in what it appends."""
    data = toy_dataset(toy_schema(1, ids=0, dense=1), rows=2000)
    splits = {
        name: replace(split, labels=(np.abs(split.dense) < 0.6).astype(np.float32))
        for name, split in data.splits.items()
    }
    data = replace(data, splits=splits)
    aucs = {}
    for numbers in ("value", choice):
        model = (
            f"shared-bottom[bottom=1,tower=none,activation=tanh,numbers={numbers},frequency_std=1]"
        )
        result = trainer(data, model, "uniform", epochs=4, lr=0.02, batch_size=50).fit()
        aucs[numbers] = result.metrics["test"]["t1"]["auc"]
    assert aucs["value"] < 0.7
    assert aucs[choice] > 0.97


def test_the_choice_moves_no_other_initial_weight():
    data = toy_dataset(toy_schema(2), rows=50)
    plain = make_model("mmoe", data, seed=3).state_dict()
    tables = make_model("mmoe[numbers=piecewise]", data, seed=3).state_dict()
    assert torch.equal(plain["embedding.width_8"], tables["embedding.width_8"])
    assert _numbers.number_embedding(load("mmoe").Options(), 2, 0) is None
