from itertools import islice

import numpy as np
import pytest
import torch

from mtlkit.data.schema import Split
from mtlkit.training.batches import DeviceSplit, probe_rows, row_stream
from tests.toy import toy_dataset, toy_schema, toy_split

CPU = torch.device("cpu")


def stream(rows, size, seed=0):
    return row_stream(rows, size, torch.Generator().manual_seed(seed), CPU)


@pytest.mark.parametrize(("rows", "size"), [(12, 4), (10, 4), (10, 25), (7, 7), (1, 3), (100, 1)])
def test_every_row_once_an_epoch_and_every_batch_full(rows, size):
    epochs = 3 * size  # in 3 * size epochs there is a whole number of batches
    batches = list(islice(stream(rows, size), epochs * rows // size))
    assert {len(batch) for batch in batches} == {size}
    for epoch in torch.cat(batches).view(epochs, rows):
        assert epoch.sort().values.tolist() == list(range(rows))


def test_epochs_differ_and_seeds_decide():
    def first(seed, count=4):
        return torch.stack(list(islice(stream(20, 10, seed), count)))

    one = first(0)
    assert not torch.equal(one[:2], one[2:])
    assert torch.equal(one, first(0))
    assert not torch.equal(one, first(1))


def test_batches_of_twice_the_size_hold_the_same_rows():
    small, large = torch.cat(list(islice(stream(30, 4), 10))), torch.cat(list(islice(stream(30, 8), 5)))
    assert torch.equal(small, large)


def test_columns_are_gathered():
    split = toy_split(toy_schema(tasks=2), 50, missing=0.3)
    device = DeviceSplit.load(split, CPU)
    rows = torch.tensor([7, 3, 3, 49, 0])
    batch = device.take(rows)
    assert len(device) == 50
    assert len(batch) == 5
    for name in ("ids", "dense", "labels", "observed"):
        np.testing.assert_array_equal(getattr(batch, name).numpy(), getattr(split, name)[rows.numpy()])
    assert batch.weight is None


def test_no_mask_where_every_label_exists():
    assert DeviceSplit.load(toy_split(toy_schema(), 20), CPU).all.observed is None


def test_weights_multiply():
    split = toy_split(toy_schema(), 4)
    weighted = Split(split.ids, split.dense, split.labels, split.observed, weight=np.arange(4, dtype=np.float32))
    rows, extra = torch.tensor([1, 3]), torch.tensor([2.0, 0.5])
    assert DeviceSplit.load(weighted, CPU).take(rows).weight.tolist() == [1, 3]
    assert DeviceSplit.load(weighted, CPU).take(rows, extra).weight.tolist() == [2, 1.5]
    assert DeviceSplit.load(split, CPU).take(rows, extra).weight.tolist() == [2, 0.5]


def test_chunks_are_all_rows_in_order():
    split = toy_split(toy_schema(bags=1), 25)
    chunks = list(DeviceSplit.load(split, CPU).chunks(10))
    assert [len(chunk) for chunk in chunks] == [10, 10, 5]
    np.testing.assert_array_equal(torch.cat([chunk.dense for chunk in chunks]).numpy(), split.dense)
    values = torch.cat([chunk.bags["bag1"][1] for chunk in chunks])
    np.testing.assert_array_equal(values.numpy(), split.bags["bag1"].values)


@pytest.mark.parametrize("rows", [[0, 1, 2], [9, 2, 2, 5], [4], list(range(30))], ids=str)
def test_bags_are_gathered(rows):
    split = toy_split(toy_schema(bags=2), 30, seed=3)
    batch = DeviceSplit.load(split, CPU).take(torch.tensor(rows))
    for name, bag in split.bags.items():
        assert any(bag.offsets[row] == bag.offsets[row + 1] for row in range(30)), "some bag is empty"
        offsets, values, weights = (tensor.numpy() for tensor in batch.bags[name])
        assert len(offsets) == len(rows) + 1
        for place, row in enumerate(rows):
            here, there = slice(offsets[place], offsets[place + 1]), slice(bag.offsets[row], bag.offsets[row + 1])
            np.testing.assert_array_equal(values[here], bag.values[there])
            np.testing.assert_array_equal(weights[here], bag.weights[there])
        assert len(values) == offsets[-1]


def rare(rows=6000, missing=0.0):
    """Three tasks: one common, one with 1 % and one with 20 positives, which are positives of the first, too."""
    rng = np.random.default_rng(0)
    labels = np.zeros((rows, 3), np.float32)
    labels[:, 0] = rng.random(rows) < 0.3
    labels[:, 1] = rng.random(rows) < 0.01
    labels[rng.choice(np.flatnonzero(labels[:, 0]), 20, replace=False), 2] = 1
    observed = rng.random(labels.shape) >= missing
    dense = (rng.standard_normal((rows, 1)) + 2 * labels[:, 1:2]).astype(np.float32)
    return Split(np.zeros((rows, 0), np.int32), dense, labels, observed), toy_schema(tasks=3, ids=0, dense=1)


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_a_probe_batch_has_positives_of_every_task(missing):
    split, schema = rare(missing=missing)
    there = split.positives()
    plain = np.random.default_rng(0).choice(len(split), 256, replace=False)
    assert (split.labels[plain, 1]).sum() < 32, "a plain sample has few"
    rows, weights = probe_rows(split, schema, 256, 64, seed=1)
    assert len(set(rows.tolist())) == len(rows) == len(weights)
    assert 256 <= len(rows) < 600
    found = ((split.labels > 0) & split.observed)[rows].sum(0)
    for t in range(3):
        assert found[t] >= min(64, there[t])
    assert weights.dtype == np.float32
    assert weights.mean() == pytest.approx(1, abs=1e-5)


def test_weighted_means_are_unbiased():
    split, schema = rare()
    draws = [probe_rows(split, schema, 200, 64, seed) for seed in range(80)]
    labels = [np.average(split.labels[rows], axis=0, weights=weights) for rows, weights in draws]
    np.testing.assert_allclose(labels, np.tile(split.labels.mean(0), (80, 1)), rtol=1e-4)  # exact in every draw
    means = np.array([np.average(split.dense[rows, 0], weights=weights) for rows, weights in draws])
    error = means.std() / np.sqrt(len(means))
    assert abs(means.mean() - split.dense.mean()) < 4 * error
    unweighted = np.mean([split.dense[rows, 0].mean() for rows, _ in draws])
    assert abs(unweighted - split.dense.mean()) > 20 * error, "weights are needed"


def test_probe_rows_are_fixed():
    split, schema = rare()
    one, same, other = (probe_rows(split, schema, 100, 16, seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert set(one.tolist()) != set(other.tolist())


def test_a_probe_batch_of_a_small_split_is_all_of_it():
    schema = toy_schema(tasks=2, kinds=("binary", "regression"))
    rows, weights = probe_rows(toy_dataset(schema, rows=60).splits["train"], schema, 512, 64, 0)
    assert sorted(rows.tolist()) == list(range(60))
    np.testing.assert_allclose(weights, 1)


def test_a_probe_batch_without_binary_tasks():
    schema = toy_schema(tasks=2, kinds=("regression",))
    rows, weights = probe_rows(toy_split(schema, 300), schema, 128, 64, 0)
    assert len(set(rows.tolist())) == 128
    np.testing.assert_allclose(weights, 1)
