"""Groups and segments of rows: where they come from, and who is cold."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mtlkit.data.groups import COLD_ROWS, RowGroups, group_names
from mtlkit.data.splits import NO_GROUP, SPLITS, Dataset, SharedColumns
from mtlkit.data.types import Feature, Schema
from tests.toy import toy_dataset, toy_schema

BIG = 2**40


@pytest.fixture
def dataset():
    """Rows of users of large numbers, of two countries and of times."""
    data = toy_dataset(toy_schema(tasks=1, ids=3), rows=200)
    rng = np.random.default_rng(0)
    splits = {}
    for name in SPLITS:
        rows = len(data.splits[name])
        groups = {
            "user": rng.integers(0, 40, rows) * BIG - 7,
            "country": rng.choice([11, 12, NO_GROUP], rows),
            "time": np.arange(rows),
        }
        splits[name] = replace(data.splits[name], groups=groups)
    details = {"group names": {"country": {"11": "DE"}}}
    return replace(data, splits=splits, details=details)


def test_groups_are_named_columns_and_roles(dataset):
    assert group_names(dataset) == ("user", "country", "item", "domain")


def test_codes_tell_groups_apart_and_missing_ones_have_none(dataset):
    values = dataset.splits["test"].groups
    groups = RowGroups(dataset, "test")
    codes = groups.codes("user")
    assert codes.min() == 0
    assert (pd.Series(codes).groupby(values["user"]).nunique() == 1).all()
    assert len(np.unique(codes)) == len(np.unique(values["user"]))
    assert ((groups.codes("country") < 0) == (values["country"] == NO_GROUP)).all()

    # ids of a feature, whose 0 is unknown
    ids = dataset.splits["test"].ids[:, 1]
    assert ((groups.codes("item") < 0) == (ids == 0)).all()
    assert (groups.codes("item")[ids > 0] == ids[ids > 0]).all()


def test_users_with_few_training_rows_are_cold(dataset):
    train, test = (dataset.splits[name].groups["user"] for name in ("train", "test"))
    expected = np.array([(train == user).sum() < COLD_ROWS for user in test])
    segments = RowGroups(dataset, "test").segments("user")
    assert 0 < expected.sum() < len(expected)
    np.testing.assert_array_equal(segments["user=cold"], expected)
    np.testing.assert_array_equal(segments["user=warm"], ~expected)


def test_unknown_ids_are_cold(dataset):
    ids = dataset.splits["test"].ids[:, 1]
    assert (ids == 0).any()
    train = dataset.splits["train"].ids[:, 1]
    cold = RowGroups(dataset, "test").segment("item=cold")
    expected = [item == 0 or (train == item).sum() < COLD_ROWS for item in ids]
    np.testing.assert_array_equal(cold, expected)


def test_a_column_divides_rows_by_its_values(dataset):
    values = dataset.splits["test"].groups["country"]
    segments = RowGroups(dataset, "test").segments("country")
    assert set(segments) == {"country=DE", "country=12", "country=missing"}
    np.testing.assert_array_equal(segments["country=DE"], values == 11)
    np.testing.assert_array_equal(segments["country=missing"], values == NO_GROUP)


def test_some_rows_have_the_groups_of_those_rows(dataset):
    rows = np.array([3, 5, 90])
    whole, some = RowGroups(dataset, "test"), RowGroups(dataset, "test").take(rows)
    assert len(some.codes("user")) == len(some.segment("user=none")) == 3
    np.testing.assert_array_equal(some.codes("domain"), whole.codes("domain")[rows])
    cold = whole.segment("user=cold")[rows]
    assert some.segments("user") == {} or (some.segment("user=cold") == cold).all()


def test_of_several_columns_with_a_role_the_one_with_the_most_ids_counts():
    features = [Feature(name=name, vocab=n, role="user") for name, n in (("age", 9), ("id", 50))]
    schema = Schema(features=tuple(features), tasks=toy_schema(tasks=1).tasks)
    data = toy_dataset(toy_schema(tasks=1, ids=2), rows=60)
    data = Dataset("toy", schema, data.splits, "0")
    ids = data.splits["test"].ids[:, 1]
    np.testing.assert_array_equal(RowGroups(data, "test").codes("user"), np.where(ids, ids, -1))

    # the same, stored once for many rows
    splits = {
        name: replace(
            split,
            ids=split.ids[:, :1],
            shared=SharedColumns(
                np.arange(len(split), dtype=np.int32)[::-1],
                split.ids[::-1, 1:],
                np.zeros((len(split), 0), np.float32),
            ),
        )
        for name, split in data.splits.items()
    }
    shared = RowGroups(replace(data, splits=splits), "test")
    np.testing.assert_array_equal(shared.codes("user"), np.where(ids, ids, -1))


def test_a_table_names_its_groups():
    frame = pd.DataFrame(
        {
            "visitor": np.arange(90) % 9,
            "land": np.array(["Österreich", "DE", None])[np.arange(90) % 3],
            "x": np.linspace(0, 1, 90),
            "click": np.arange(90) % 2,
        }
    )
    data = Dataset.from_frame(
        frame, labels=["click"], roles={"user": "visitor"}, groups=["land"], drop=["land"]
    )
    groups = RowGroups(data, "test")
    assert set(groups.names) == {"user", "land"}
    assert {"land=Österreich", "land=DE", "land=missing"} >= set(groups.segments("land"))
    assert len(groups.segments("land")) >= 2
