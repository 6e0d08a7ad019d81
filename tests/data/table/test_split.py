"""Splits at random, by time, by group and by a column."""

import numpy as np
import pandas as pd
import pytest

from mtlkit import Dataset
from mtlkit.data.splits import SPLITS
from mtlkit.data.table.split import NO_GROUP
from mtlkit.errors import UsageError


def frame(rows=1000):
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "row": np.arange(rows) + 0.5,
            "user_id": rng.integers(0, 100, rows),
            "when": pd.date_range("2024-01-01", periods=rows, freq="h")[rng.permutation(rows)],
            "click": rng.integers(0, 2, rows),
        }
    )


def split(table, how, **options):
    """Split to the frame of its rows, found again by a number that each row has."""
    dataset = Dataset.from_frame(
        table, labels="click", split=how, transform={"row": "none"}, **options
    )
    position = [feature.name for feature in dataset.schema.of_kind("dense")].index("row")
    rows = {name: (dataset.splits[name].dense[:, position] - 0.5).astype(int) for name in SPLITS}
    assert sorted(np.concatenate(list(rows.values()))) == list(range(len(table)))
    return {name: table.iloc[numbers] for name, numbers in rows.items()}


def test_at_random_in_exact_shares():
    parts = split(frame(), {"by": "ratio", "validation": 0.2, "test": 0.3})
    assert [len(parts[name]) for name in SPLITS] == [500, 200, 300]
    other = split(frame(), {"by": "ratio", "validation": 0.2, "test": 0.3, "seed": 1})
    assert len(set(parts["test"].index) & set(other["test"].index)) < 130  # 90 by chance
    again = split(frame(), {"by": "ratio", "validation": 0.2, "test": 0.3})
    assert parts["test"].equals(again["test"])


def test_three_rows_are_one_each():
    dataset = Dataset.from_frame(
        pd.DataFrame({"x": [0.5, 1.5, 2.5, 3.5], "y": [1.5, 2.5, 9.5, 7.5]}), labels="y"
    )
    assert [len(dataset.splits[name]) for name in SPLITS] == [2, 1, 1]


def test_by_time_nothing_is_older_than_what_trains():
    parts = split(frame(), "time")
    assert [len(parts[name]) for name in SPLITS] == [800, 100, 100]
    assert parts["train"].when.max() < parts["validation"].when.min()
    assert parts["validation"].when.max() < parts["test"].when.min()


def test_rows_of_one_time_stay_together():
    table = frame().assign(when=pd.date_range("2024-01-01", periods=1000, freq="h").floor("D"))
    parts = split(table, "time")
    days = [set(parts[name].when) for name in SPLITS]
    assert len(days[0] | days[1] | days[2]) == sum(map(len, days))


@pytest.mark.parametrize("times", [np.arange(1000) * 3, np.arange(1000) / 7, -np.arange(1000)])
def test_times_may_be_numbers(times):
    table = frame().drop(columns="when").assign(stamp=times)
    parts = split(table, "time:stamp")
    assert parts["train"].stamp.max() < parts["test"].stamp.min()


@pytest.mark.parametrize("as_text", [False, True])
def test_by_group_no_user_is_in_two_splits(as_text):
    table = frame()
    if as_text:
        table["user_id"] = "user " + table.user_id.astype(str)
    parts = split(table, "group")
    users = [set(parts[name].user_id) for name in SPLITS]
    assert [len(own) for own in users] == [80, 10, 10]
    assert len(users[0] | users[1] | users[2]) == 100


def test_by_a_column_with_common_values():
    table = frame().assign(part=["Train", "dev", "TEST", "train"] * 250)
    parts = split(table, "column:part")
    assert [set(parts[name].part) for name in SPLITS] == [{"Train", "train"}, {"dev"}, {"TEST"}]


def test_by_a_column_with_values_of_ones_own():
    table = frame().assign(fold=np.arange(1000) % 5)
    values = {"train": [0, 1, 2], "validation": 3, "test": [4]}
    parts = split(table, {"by": "column", "column": "fold", "values": values})
    assert [set(parts[name].fold) for name in SPLITS] == [{0, 1, 2}, {3}, {4}]


def test_by_a_column_without_validation_a_share_of_train_becomes_that():
    table = frame().assign(part=["train", "test"] * 500)
    parts = split(table, {"by": "column", "column": "part", "validation": 0.2})
    assert set(parts["test"].part) == {"test"}
    assert 60 < len(parts["validation"]) < 140
    assert set(parts["validation"].part) == {"train"}


def test_groups_reach_the_splits():
    table = frame().assign(country=["ch", "de", None, "fr"] * 250, session=range(1000))
    dataset = Dataset.from_frame(
        table, labels="click", split="time", groups=["country"], transform={"row": "none"}
    )
    for part in dataset.splits.values():
        rows = (part.dense[:, 0] - 0.5).astype(int)
        own = table.iloc[rows]
        assert part.groups["user"].tolist() == own.user_id.tolist()
        assert part.groups["session"].tolist() == own.session.tolist()
        microseconds = own.when.astype("datetime64[us]").astype(np.int64)
        assert part.groups["time"].tolist() == microseconds.tolist()
        codes = part.groups["country"]
        assert ((codes == NO_GROUP) == own.country.isna().to_numpy()).all()
        for country, group in own.groupby("country"):
            assert len(set(codes[own.index.isin(group.index)])) == 1, country


def test_the_split_at_random_is_that_of_the_file_whatever_its_format(tmp_path):
    from mtlkit import load_dataset

    table = frame()
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    loaded = [
        load_dataset(f"{tmp_path}/{name}[labels=click]", tmp_path / "data")
        for name in ("t.csv", "t.parquet")
    ]
    loaded.append(Dataset.from_frame(table, labels="click"))
    assert len({dataset.fingerprint for dataset in loaded}) == 1


def test_a_common_name_gives_no_role_to_what_cannot_have_it():
    table = frame().drop(columns=["when", "user_id"])
    table["timestamp"] = ["noon", "night"] * 500
    table["uid"] = [[1, 2]] * 1000
    dataset = Dataset.from_frame(table, labels="click")
    assert dataset.details["table"]["roles"] == {}
    assert [feature.kind for feature in dataset.schema.features] == ["dense", "id", "bag"]
    table["timestamp"] = range(1000)
    assert Dataset.from_frame(table, labels="click").details["table"]["roles"] == {
        "time": "timestamp"
    }


def test_shares_that_leave_nothing():
    with pytest.raises(UsageError, match="leave no rows"):
        Dataset.from_frame(frame(), labels="click", split={"validation": 0.5, "test": 0.5})
