from itertools import islice

import numpy as np
import pytest
import torch

from mtlkit.data.splits import Split
from mtlkit.training import sampling as module
from mtlkit.training.sampling import pools, probe_rows, row_stream, sample_rows
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
    small, large = (
        torch.cat(list(islice(stream(30, 4), 10))),
        torch.cat(list(islice(stream(30, 8), 5))),
    )
    assert torch.equal(small, large)


@pytest.fixture
def small_pools(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", 8)
    monkeypatch.setattr(module, "POOL_ROWS", 64)


@pytest.mark.parametrize("rows", [65, 200, 256, 1001])
def test_pools_are_all_rows_in_blocks_of_neighbours(small_pools, rows):
    all_pools = list(pools(rows, torch.Generator().manual_seed(0)))
    assert torch.cat(all_pools).sort().values.tolist() == list(range(rows))
    assert len(all_pools) == -(-rows // 64)
    for pool in all_pools:
        assert len(pool) <= 72, "no pool is larger than its share, by more than a block"
        assert len(pool.div(8, rounding_mode="floor").unique()) == -(-len(pool) // 8), (
            "of whole blocks"
        )
        assert not torch.equal(pool, pool.sort().values)
    assert not torch.equal(all_pools[0].sort().values, torch.arange(len(all_pools[0]))), (
        "blocks come from all over the split"
    )


def test_rows_of_small_splits_are_one_permutation(small_pools):
    (pool,) = pools(64, torch.Generator().manual_seed(3))
    assert torch.equal(pool, torch.randperm(64, generator=torch.Generator().manual_seed(3)))


def test_streams_over_pools_hold_every_row_once_and_full_batches(small_pools):
    batches = list(islice(stream(150, 7), 150))
    assert {len(batch) for batch in batches} == {7}
    for epoch in torch.cat(batches).view(7, 150):
        assert epoch.sort().values.tolist() == list(range(150))
    large = list(islice(stream(150, 100), 3))  # more than a pool
    assert torch.equal(torch.cat(large), torch.cat(batches)[:300])


def test_neighbours_rarely_share_a_batch(small_pools):
    together = [
        (batch[:, None] - batch[None]).abs().eq(1).any(1).float().mean().item()
        for batch in islice(stream(4096, 8), 512)
    ]
    assert np.mean(together) < 0.3, "a block of 8 would give 1, all of a pool of 64 about 0.2"


def test_samples_are_fixed_and_in_order():
    assert sample_rows(10, 10, 0) is None
    one = sample_rows(1000, 50, 0)
    assert len(set(one.tolist())) == 50
    assert (np.diff(one) > 0).all()
    np.testing.assert_array_equal(one, sample_rows(1000, 50, 0))
    assert not np.array_equal(one, sample_rows(1000, 50, 1))


def rare(rows=6000, missing=0.0):
    """Three tasks: one common, one with 1 % and one with 20 positives, which are positives of the
    first, too.
    """
    rng = np.random.default_rng(0)
    labels = np.zeros((rows, 3), np.float32)
    labels[:, 0] = rng.random(rows) < 0.3
    labels[:, 1] = rng.random(rows) < 0.01
    labels[rng.choice(np.flatnonzero(labels[:, 0]), 20, replace=False), 2] = 1
    observed = rng.random(labels.shape) >= missing
    dense = (rng.standard_normal((rows, 1)) + 2 * labels[:, 1:2]).astype(np.float32)
    return Split(np.zeros((rows, 0), np.int32), dense, labels, observed), toy_schema(
        tasks=3, ids=0, dense=1
    )


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_a_probe_batch_has_positives_of_every_task(missing):
    split, schema = rare(missing=missing)
    there = split.positives()
    plain = np.random.default_rng(0).choice(len(split), 256, replace=False)
    assert (split.labels[plain, 1]).sum() < 32, "a plain sample has few"
    rows, weights = probe_rows(split, schema, 256, 64, seed=1)
    assert len(set(rows.tolist())) == len(rows) == len(weights)
    assert 256 <= len(rows) < 600
    positives = ((split.labels > 0) & split.observed)[rows].sum(0)
    for t in range(3):
        assert positives[t] >= min(64, there[t])
    assert weights.dtype == np.float32
    assert weights.mean() == pytest.approx(1, abs=1e-5)


def test_weighted_means_are_unbiased():
    split, schema = rare()
    draws = [probe_rows(split, schema, 200, 64, seed) for seed in range(80)]
    labels = [np.average(split.labels[rows], axis=0, weights=weights) for rows, weights in draws]
    np.testing.assert_allclose(
        labels, np.tile(split.labels.mean(0), (80, 1)), rtol=1e-4
    )  # exact in every draw
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


def test_patterns_of_many_tasks(monkeypatch):
    schema = toy_schema(tasks=6)
    split = toy_split(schema, 400, missing=0.3)
    positive = (split.labels > 0) & split.observed
    expected, member, counts = np.unique(positive, axis=0, return_inverse=True, return_counts=True)
    for limit in (1 << 20, 4):
        monkeypatch.setattr(module, "MAX_PATTERN_CODES", limit)
        patterns, row_counts, pattern_of_row = module._label_patterns(split, list(range(6)))
        np.testing.assert_array_equal(patterns, expected)
        np.testing.assert_array_equal(row_counts, counts)
        np.testing.assert_array_equal(pattern_of_row, member.reshape(-1))
