"""Each kind of data that cannot be trained on is refused when it is written, and named."""

import re
from dataclasses import replace

import numpy as np
import pytest

from mtlkit.data import checks
from mtlkit.data.splits import Bag, Dataset, SharedColumns, fingerprint
from mtlkit.data.storage import read_dataset, write_dataset
from mtlkit.data.types import Feature, Schema
from mtlkit.errors import MissingError
from tests.toy import toy_schema, toy_split

KINDS = ("binary", "regression", "multiclass")
ROWS = {"train": 50, "validation": 40, "test": 30}


def make_dataset() -> Dataset:
    """Three tasks of a kind each, three ids, two numbers and a bag; one id, a number and a bag more
    that four users share, and a weight a row.
    """
    schema = toy_schema(tasks=3, kinds=KINDS, bags=1)
    user = (
        Feature(name="user-id", vocab=6),
        Feature(name="user-number", kind="dense"),
        Feature(name="user-bag", kind="bag", vocab=5),
    )
    splits = {}
    for seed, (name, rows) in enumerate(ROWS.items()):
        shared = SharedColumns(
            row=np.arange(rows, dtype=np.int32) % 4,
            ids=np.array([[0], [5], [2], [3]], np.int32),
            dense=np.zeros((4, 1), np.float32),
            bags={
                "user-bag": Bag(
                    np.array([0, 1, 1, 3, 3]), np.array([4, 0, 1], np.int32), np.ones(3, np.float32)
                )
            },
        )
        split = toy_split(schema, rows, seed)
        weight = np.ones(rows, np.float32)
        groups = {"user": np.arange(rows) % 4}
        splits[name] = replace(split, weight=weight, groups=groups, shared=shared)
    schema = Schema(features=(*schema.features, *user), tasks=schema.tasks)
    return Dataset("toy", schema, splits, fingerprint(schema, splits))


def arrays_of(dataset, split):
    return dict(dataset.splits[split].arrays())


def with_arrays(dataset, split, arrays):
    changed = type(dataset.splits[split]).from_arrays(arrays)
    return replace(dataset, splits=dataset.splits | {split: changed})


def with_value(dataset, split, key, index, value):
    """The data set with one value of one array replaced."""
    arrays = arrays_of(dataset, split)
    arrays[key] = arrays[key].copy()
    arrays[key][index] = value
    return with_arrays(dataset, split, arrays)


def refused(dataset, tmp_path):
    """The sentence with which a data set is refused; nothing of it is left on the disk."""
    with pytest.raises(MissingError) as caught:
        write_dataset(tmp_path / "toy", dataset, {})
    assert caught.value.exit_code == 3
    assert "data set toy" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    return caught.value.message


def test_good_data_are_written(tmp_path):
    dataset = make_dataset()
    write_dataset(tmp_path / "toy", dataset, {})
    assert read_dataset(tmp_path / "toy").fingerprint == dataset.fingerprint


VALUES = [
    ("train", "ids", (7, 1), 8, "holds the id 8 of 'id2' in row 7, outside its vocabulary of 8"),
    ("test", "ids", (29, 0), -1, "holds the id -1 of 'id1' in row 29, outside its vocabulary of 7"),
    ("train", "side-ids", (2, 0), 6, "the id 6 of 'user-id' in shared row 2"),
    ("validation", "dense", (3, 1), np.nan, "holds nan as 'dense2' in row 3"),
    ("test", "dense", (0, 0), -np.inf, "holds -inf as 'dense1' in row 0"),
    ("test", "side-dense", (1, 0), np.inf, "holds inf as 'user-number' in shared row 1"),
    ("train", "labels", (4, 0), -1, "the label -1 of the task 't1' in row 4, not 0 or 1"),
    ("train", "labels", (4, 0), 2, "the label 2 of the task 't1' in row 4, not 0 or 1"),
    ("test", "labels", (9, 0), 0.25, "the label 0.25 of the task 't1' in row 9, not 0 or 1"),
    ("test", "labels", (9, 0), np.nan, "the label nan of the task 't1' in row 9, not 0 or 1"),
    ("test", "labels", (5, 1), np.nan, "the label nan of the task 't2' in row 5, not a finite"),
    ("train", "labels", (5, 1), np.inf, "the label inf of the task 't2' in row 5, not a finite"),
    (
        "train",
        "labels",
        (6, 2),
        3,
        "the label 3 of the task 't3' in row 6, not a class from 0 to 2",
    ),
    ("test", "labels", (6, 2), 1.5, "the label 1.5 of the task 't3' in row 6, not a class"),
    ("train", "weight", 8, -0.5, "holds the weight -0.5 in row 8, not a finite number"),
    ("train", "weight", 8, np.nan, "holds the weight nan in row 8, not a finite number"),
    ("train", "weight", slice(None), 0, "has row weights that are all 0"),
    ("train", "side-row", 11, 4, "points from row 11 at the shared row 4, and there are 4"),
    ("train", "side-row", 12, -1, "points from row 12 at the shared row -1, and there are 4"),
    (
        "train",
        "side-bag-values-user-bag",
        1,
        5,
        "the id 5 with weight 1.0 of the bag 'user-bag' in",
    ),
    ("train", "side-bag-values-user-bag", 1, -1, "in shared row 2, whose vocabulary has 5 ids"),
    (
        "train",
        "side-bag-weights-user-bag",
        0,
        np.nan,
        "the id 4 with weight nan of the bag 'user-bag'",
    ),
    ("train", "side-bag-offsets-user-bag", 0, 1, "offsets go from 1 to 3, not from 0 to 3"),
    ("train", "side-bag-offsets-user-bag", 2, 9, "offsets fall in shared row 2"),
    ("train", "bag-offsets-bag1", -1, 10**6, "a bag 'bag1' whose offsets go from 0 to 1000000"),
]


@pytest.mark.parametrize(("split", "key", "index", "value", "text"), VALUES)
@pytest.mark.parametrize("block_bytes", [checks.BLOCK_BYTES, 40])
def test_values(tmp_path, monkeypatch, split, key, index, value, text, block_bytes):
    monkeypatch.setattr(checks, "BLOCK_BYTES", block_bytes)
    message = refused(with_value(make_dataset(), split, key, index, value), tmp_path)
    assert message.startswith(f"The {split} split ")
    assert text in message


def test_the_first_of_several_is_named(tmp_path):
    dataset = make_dataset()
    for row, column in ((40, 0), (13, 2), (13, 1), (20, 0)):
        dataset = with_value(dataset, "train", "ids", (row, column), 99)
    assert "the id 99 of 'id2' in row 13" in refused(dataset, tmp_path)


def test_labels_that_are_not_observed_may_be_anything(tmp_path):
    dataset = with_value(make_dataset(), "train", "labels", (4, 0), 7)
    dataset = with_value(dataset, "train", "observed", (4, 0), False)
    write_dataset(tmp_path / "toy", dataset, {})


@pytest.mark.parametrize("column", [0, 1, 2])
def test_task_without_labels(tmp_path, column):
    dataset = with_value(make_dataset(), "train", "observed", (slice(None), column), False)
    message = refused(dataset, tmp_path)
    assert message == f"The train split has no label of the task 't{column + 1}'."


@pytest.mark.parametrize("label", [0, 1])
def test_task_of_one_class(tmp_path, label):
    dataset = with_value(make_dataset(), "train", "labels", (slice(None), 0), label)
    message = refused(dataset, tmp_path)
    assert message == (
        f"The train split has labels of one class only of the task 't1': all are {label}."
    )


def test_one_class_outside_train_is_taken(tmp_path):
    dataset = with_value(make_dataset(), "test", "labels", (slice(None), 0), 0)
    write_dataset(tmp_path / "toy", dataset, {})


def test_hidden_labels(tmp_path):
    dataset = make_dataset()
    arrays = arrays_of(dataset, "test")
    arrays["hidden-t1"] = np.array([0, 1, 6] * 10, np.float32)
    message = refused(with_arrays(dataset, "test", arrays), tmp_path)
    assert "the hidden label 6 of the task 't1' in row 2, not 0 or 1" in message


LAYOUTS = [
    ("ids", lambda a: a.astype(np.int64), "has ids of type int64, not int32"),
    ("dense", lambda a: a.astype(np.float64), "has dense of type float64, not float32"),
    ("dense", lambda a: a.astype(">f4"), "has dense of type >f4, not float32"),
    ("labels", lambda a: a.astype(object), "has labels of type object, not float32"),
    ("labels", lambda a: a.astype(np.int32), "has labels of type int32, not float32"),
    ("labels", lambda a: a.tolist(), "has a list for labels where an array should be"),
    ("labels", lambda a: a[:, :2], "has labels of shape (50, 2), not (50, 3)"),
    ("labels", lambda a: a[:, 0], "has labels of shape (50,), not (50, 3)"),
    ("labels", lambda a: a[:0], "has no rows"),
    ("observed", lambda a: a.astype(np.float32), "has observed of type float32, not bool"),
    ("observed", lambda a: a[:, :1], "has observed of shape (50, 1), not (50, 3)"),
    ("ids", lambda a: a[:-1], "has ids of shape (49, 3), not (50, any)"),
    ("ids", lambda a: a[:, :2], "has 3 id columns for 4 id features"),
    ("dense", lambda a: np.hstack([a, a]), "has 5 dense columns for 3 dense features"),
    ("weight", lambda a: a[:, None], "has weight of shape (50, 1), not (50, 3)"),
    ("group-user", lambda a: a[:3], "has groups['user'] of shape (3,), not (50)"),
    ("group-user", lambda a: a.astype(str), "has groups['user'] of type <U21, not integer"),
    ("side-row", lambda a: a[1:], "has shared.row of shape (49,), not (50)"),
    ("side-dense", lambda a: a[1:], "has shared.dense of shape (3, 1), not (4, any)"),
    ("bag-offsets-bag1", lambda a: a[1:], "has bags['bag1'].offsets of shape (50,), not (51)"),
    ("bag-weights-bag1", lambda a: a[1:], "has bags['bag1'].weights of shape "),
]


@pytest.mark.parametrize(("key", "change", "text"), LAYOUTS)
def test_types_shapes_and_lengths(tmp_path, key, change, text):
    dataset = make_dataset()
    arrays = arrays_of(dataset, "train")
    arrays[key] = change(arrays[key])
    message = refused(with_arrays(dataset, "train", arrays), tmp_path)
    assert message.startswith(f"The train split {text}")


def test_bags_are_those_of_the_schema(tmp_path):
    dataset = make_dataset()
    train = replace(dataset.splits["train"], bags={})
    message = refused(replace(dataset, splits=dataset.splits | {"train": train}), tmp_path)
    assert re.search(
        r"the bags \['user-bag'\] for the bag features \['bag1', 'user-bag'\]", message
    )


def test_splits_are_all_there(tmp_path):
    dataset = make_dataset()
    splits = {name: split for name, split in dataset.splits.items() if name != "test"}
    assert refused(replace(dataset, splits=splits), tmp_path) == "The test split is missing."
