import mmap
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mtlkit.data.splits import SPLITS, Bag, SharedColumns, Split
from mtlkit.data.storage import read_dataset, write_dataset
from mtlkit.ops._dispatch import plain_operations
from mtlkit.training import batches
from mtlkit.training.batches import DeviceSplit
from tests.toy import toy_dataset, toy_schema, toy_split

CPU = torch.device("cpu")


def test_columns_are_gathered():
    split = toy_split(toy_schema(tasks=2), 50, missing=0.3)
    device = DeviceSplit.load(split, CPU)
    rows = torch.tensor([7, 3, 3, 49, 0])
    batch = device.take(rows)
    assert len(device) == 50
    assert len(batch) == 5
    for name in ("ids", "dense", "labels", "observed"):
        np.testing.assert_array_equal(
            getattr(batch, name).numpy(), getattr(split, name)[rows.numpy()]
        )
    assert batch.weight is None


def test_no_mask_where_every_label_exists():
    assert DeviceSplit.load(toy_split(toy_schema(), 20), CPU).columns.observed is None


def test_weights_multiply():
    split = toy_split(toy_schema(), 4)
    weighted = Split(
        split.ids, split.dense, split.labels, split.observed, weight=np.arange(4, dtype=np.float32)
    )
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


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("rows", [[0, 1, 2], [9, 2, 2, 5], [4], [], list(range(30))], ids=str)
def test_bags_are_gathered(rows, plain):
    split = toy_split(toy_schema(bags=2), 30, seed=3)
    with plain_operations() if plain else nullcontext():
        batch = DeviceSplit.load(split, CPU).take(torch.tensor(rows, dtype=torch.int64))
    for name, bag in split.bags.items():
        assert (np.diff(bag.offsets) == 0).any(), "some bag is empty"
        assert of_each_row(batch.bags[name]) == [of_row(bag, row) for row in rows]
        assert len(batch.bags[name].values) == batch.bags[name].offsets[-1]


def shared(rows=40, users=7):
    """A split of which half of the columns of each kind are stored once a user."""
    split, rng = (
        toy_split(toy_schema(ids=4, dense=2, bags=2), rows, seed=5),
        np.random.default_rng(1),
    )
    lengths = rng.integers(0, 4, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = rng.integers(0, 5, offsets[-1]).astype(np.int32)
    history = Bag(offsets, values, rng.random(offsets[-1]).astype(np.float32))
    shared = SharedColumns(
        rng.integers(0, users, rows).astype(np.int32),
        rng.integers(0, 5, (users, 2)).astype(np.int32),
        rng.random((users, 1)).astype(np.float32),
        {"bag2": history},
    )
    return replace(
        split,
        ids=split.ids[:, :2],
        dense=split.dense[:, :1],
        bags={"bag1": split.bags["bag1"]},
        shared=shared,
    )


def test_shared_columns_are_joined():
    split = shared()
    rows = np.array([5, 0, 39, 5])
    batch = DeviceSplit.load(split, CPU).take(torch.from_numpy(rows))
    users = split.shared.row[rows]
    np.testing.assert_array_equal(
        batch.ids.numpy(), np.hstack([split.ids[rows], split.shared.ids[users]])
    )
    np.testing.assert_array_equal(
        batch.dense.numpy(), np.hstack([split.dense[rows], split.shared.dense[users]])
    )
    assert list(batch.bags) == ["bag1", "bag2"]
    for name, bag, owners in (
        ("bag1", split.bags["bag1"], rows),
        ("bag2", split.shared.bags["bag2"], users),
    ):
        assert of_each_row(batch.bags[name]) == [of_row(bag, owner) for owner in owners]


def of_row(bag, row):
    """The ids and weights of a row."""
    own = slice(bag.offsets[row], bag.offsets[row + 1])
    return list(zip(bag.values[own].tolist(), bag.weights[own].tolist(), strict=True))


def of_each_row(bags):
    """The ids and weights of each row of a batch."""
    count = len(bags.offsets) - 1
    rows = range(count) if bags.row is None else bags.row.tolist()
    return [of_row(bags, row) for row in rows]


def test_bags_that_rows_share_are_gathered_once():
    split = shared()
    rows = torch.tensor([5, 0, 39, 5, 7, 8, 9, 10])
    users = split.shared.row[rows.numpy()]
    bags = DeviceSplit.load(split, CPU).take(rows).bags
    assert bags["bag1"].row is None
    assert len(bags["bag2"].offsets) - 1 == len(set(users.tolist()))
    with plain_operations():
        plain = DeviceSplit.load(split, CPU).take(rows).bags
    assert of_each_row(bags["bag2"]) == of_each_row(plain["bag2"])


def test_ids_are_counted_where_the_offsets_are():
    """Of the largest of some batches; nothing as long as the split is made for it."""
    split = shared()
    device = DeviceSplit.load(split, CPU)
    lengths = {
        "bag1": np.diff(split.bags["bag1"].offsets),
        "bag2": np.diff(split.shared.bags["bag2"].offsets)[split.shared.row],
    }
    rows = torch.tensor([5, 0, 39, 5, 7, 8])
    by_batch = {name: each[rows.numpy()].reshape(3, 2).sum(1) for name, each in lengths.items()}
    assert device.count_ids(rows, 3) == {name: sums.max() for name, sums in by_batch.items()}
    assert device.count_ids(rows) == {name: sums.sum() for name, sums in by_batch.items()}
    shared_columns = device.shared_columns
    own, owners = device.columns.bags["bag1"].offsets, shared_columns.bags["bag2"].offsets
    held = [tensor for bags in device._host_bags.values() for tensor in bags]
    of_split = [own, None, owners, shared_columns.row]
    assert all(tensor is other for tensor, other in zip(held, of_split, strict=True))


def same(one, other):
    for name in ("ids", "dense", "labels", "observed"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in one.bags | other.bags:
        assert of_each_row(one.bags[name]) == of_each_row(other.bags[name])


def test_mapped_files_give_the_same_rows_and_their_pages_back(tmp_path, monkeypatch):
    data = toy_dataset(toy_schema(bags=1), rows=60, missing=0.2)
    write_dataset(tmp_path / "data", data, {})
    monkeypatch.setattr(batches, "RELEASED_ROWS", 30)
    read = read_dataset(tmp_path / "data").splits["train"]
    mapped, loaded = DeviceSplit.load(read, CPU), DeviceSplit.load(data.splits["train"], CPU)
    assert len(mapped.files) >= 4
    assert not loaded.files
    assert mapped.columns.ids.data_ptr() == read.ids.ctypes.data, "nothing is copied"
    released = []
    mapped.files.append(SimpleNamespace(madvise=released.append))
    for rows in torch.randint(60, (9, 20)):
        same(mapped.take(rows), loaded.take(rows))
    assert released == [mmap.MADV_DONTNEED] * 4, "every 40 rows, which is when 30 are passed"


def test_columns_that_do_not_fit_on_the_device_stay_where_they_are():
    split = DeviceSplit.load(shared(), CPU)
    split.device = torch.device("meta")
    batch = split.take(torch.tensor([1, 2]))
    assert {batch.ids.device.type, batch.labels.device.type, batch.bags["bag2"][1].device.type} == {
        "meta"
    }
    assert split.storage_device == CPU
    assert DeviceSplit.load(shared(), CPU).device is None, (
        "columns that are there need no second way"
    )


def test_a_subset_is_its_rows():
    split = replace(shared(), hidden={"t1": np.arange(40, dtype=np.float32)})
    whole, rows = DeviceSplit.load(split, CPU), torch.tensor([3, 17, 30])
    subset = whole.subset(rows)
    assert len(subset) == 3
    assert subset.hidden["t1"].tolist() == [3, 17, 30]
    assert subset.columns.labels.tolist() == split.labels[[3, 17, 30]].tolist()
    same(next(subset.chunks(2)), whole.take(rows[:2]))
    same(subset.take(torch.tensor([2, 0])), whole.take(torch.tensor([30, 3])))


def test_selected_tasks_are_no_copies_if_evenly_spaced():
    split = toy_split(toy_schema(tasks=4), 10)
    for columns in ([0, 1, 2, 3], [1], [1, 3], [2, 3]):
        chosen = split.select(columns)
        np.testing.assert_array_equal(chosen.labels, split.labels[:, columns])
        assert np.shares_memory(chosen.labels, split.labels)
    for columns in ([2, 1], [0, 1, 3]):
        np.testing.assert_array_equal(split.select(columns).observed, split.observed[:, columns])


@pytest.mark.parametrize("sparse_rows", [1, 10**9])
@pytest.mark.parametrize("model", ["mmoe", "stem"])
def test_shared_bags_train_as_bags_of_each_row(trainer, monkeypatch, model, sparse_rows):
    """With kernels, in plain operations, and with a bag a row, as on a GPU."""
    schema = toy_schema(ids=4, dense=2, bags=2)
    data = replace(toy_dataset(schema, rows=40), splits=dict.fromkeys(SPLITS, shared()))
    settings = {"optimizer": "sgd", "lr": 0.3, "epochs": 4, "batch_size": 16}

    def trained():
        run = trainer(data, model, sparse_rows=sparse_rows, **settings)
        run.fit()
        return {name: value.detach() for name, value in run.model.named_parameters()}

    by_kernels = trained()
    with plain_operations():
        in_plain_operations = trained()

    def a_bag_a_row(rows, size):
        return SimpleNamespace(rows=rows.long(), group=None)

    monkeypatch.setattr(batches, "CompiledGroups", a_bag_a_row)
    torch.testing.assert_close(in_plain_operations, by_kernels, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(trained(), by_kernels, rtol=1e-3, atol=1e-5)
