"""Encoders that were kept, as JSON, make of raw rows what preparation made of them."""

import datetime
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mtlkit.data.splits import Dataset
from mtlkit.data.table.row_encoders import RowEncoders
from mtlkit.errors import MissingError
from tests.toy import toy_dataset, toy_schema

ROWS = 60
OPTIONS = {
    "labels": ["click"],
    "split": ["column", "part"],
    "ids": ["word", "flag", "ratio"],
    "dense": ["amount", "whole", "yes"],
    "bags": ["tags", "numbers"],
    "hash": {"endless": 50},
    "dates": {"when": ["weekday", "hour"]},
    "transform": {"binned": "bins", "ranked": "quantile", "skewed": "log", "whole": "minmax"},
    "project": {"long": 2},
    "separators": {"tags": "|"},
    "min_counts": {"word": 2},
}


def table(seed=0):
    """A column of every kind, with missing values in most."""
    rng = np.random.default_rng(seed)
    days = pd.to_datetime("2020-01-01") + pd.to_timedelta(rng.integers(0, 10**6, ROWS), unit="min")
    vectors = rng.normal(size=(ROWS, 3)).round(3)
    frame = {
        "word": rng.choice(["tea", "naïve", "007", "rare words", None], ROWS),
        "flag": rng.random(ROWS) < 0.5,
        "ratio": rng.choice([0.5, 1.0, 2.25], ROWS),
        "endless": rng.integers(0, 10**12, ROWS),
        "amount": np.where(rng.random(ROWS) < 0.2, np.nan, rng.normal(size=ROWS)),
        "whole": rng.integers(0, 9, ROWS),
        "yes": rng.random(ROWS) < 0.5,
        "binned": rng.normal(size=ROWS),
        "ranked": np.where(rng.random(ROWS) < 0.2, np.nan, rng.normal(size=ROWS)),
        "skewed": rng.exponential(size=ROWS),
        "when": days,
        "tags": ["|".join(rng.choice(["a", "b", "ü"], rng.integers(1, 4))) for _ in range(ROWS)],
        "numbers": [rng.integers(0, 5, rng.integers(0, 4)).tolist() for _ in range(ROWS)],
        "vector": vectors.tolist(),
        "long": (vectors * 2 + 1).tolist(),
        "click": rng.integers(0, 2, ROWS),
        "part": np.resize(["train", "train", "validation", "test"], ROWS),
    }
    return pd.DataFrame(frame)


@pytest.fixture(scope="module")
def data():
    return Dataset.from_frame(table(), **OPTIONS)


@pytest.fixture(scope="module")
def encoders(data):
    """Those of the data, after a way through text."""
    return RowEncoders.from_json(json.loads(json.dumps(data.encoders)), data.schema)


def encoded(encoders, rows, size=7):
    """All rows, encoded in small batches, as flat arrays."""
    parts = [split.arrays() for split in encoders.batches(encoders.open(rows), size)]
    joined = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if "offsets" in name:
            arrays = [np.diff(array) for array in arrays]
        joined[name] = np.concatenate(arrays)
    return joined


def assert_equals_test_split(found, data):
    for name, expected in data.splits["test"].arrays().items():
        if name in ("labels", "observed") or name.startswith("group-"):
            continue
        if "offsets" in name:
            expected = np.diff(expected)
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


def write(frame, path):
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        lists = {name: frame[name].map(str) for name in ("numbers", "vector", "long")}
        frame.assign(**lists).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv"])
def test_new_rows_are_encoded_as_those_of_training(tmp_path, data, encoders, name):
    rows = new_rows()
    assert_equals_test_split(encoded(encoders, write(rows, tmp_path / name)), data)


def new_rows():
    frame = table()
    return frame[frame.part == "test"].drop(columns=["click", "part"])


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_a_frame_in_batches_of_any_size(data, encoders, size):
    shuffled = new_rows()[sorted(new_rows().columns)]  # the order of columns does not count
    assert_equals_test_split(
        encoded(encoders, shuffled.assign(more=[{"a": 1}] * len(shuffled)), size), data
    )


def test_text_of_a_table_that_was_prepared_from_text(tmp_path):
    lines = ["code,n,click"] + [f"{i % 3:03d},{i},{i % 2}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    frame = pd.DataFrame({"code": [f"{i % 3:03d}" for i in range(40)], "n": range(40)})
    data = Dataset.from_frame(frame.assign(click=[0, 1] * 20), ["click"], ids=["code"])
    encoders = RowEncoders.from_json(data.encoders, data.schema)
    found = encoded(encoders, tmp_path / "t.csv")
    np.testing.assert_array_equal(found["ids"][:3, 0], [1, 2, 3])


def test_what_training_never_saw_is_unknown(encoders):
    rows = new_rows().iloc[:4].reset_index(drop=True)
    column = [feature.name for encoder in encoders.columns for feature in encoder.features]
    ids = [name for name in column if name in ("word", "flag", "ratio")]
    odd = rows.assign(word=["new", "tea", "new", "naïve"], ratio=[0.5, 7.0, 0.5, 1.0])
    found = encoded(encoders, odd)["ids"]
    assert (found[:, ids.index("word")] == 0).tolist() == [True, False, True, False]
    assert (found[:, ids.index("ratio")] == 0).tolist() == [False, True, False, False]


def test_types_that_stand_for_those_of_training():
    frame = pd.DataFrame({"n": [1, 2, 3, 4] * 10, "x": range(40), "click": [0, 1] * 20})
    data = Dataset.from_frame(frame, ["click"], ids=["n"], dense=["x"])
    encoders = RowEncoders.from_json(data.encoders, data.schema)
    expected = encoded(encoders, pd.DataFrame({"n": [1, 4, 3], "x": [1, 2, 3]}))
    for n in (["1", " 4", "3 "], [1.0, 4.0, 3.0], pa.array([1, 4, 3], pa.int16())):
        found = encoded(encoders, pa.table({"n": n, "x": [1.0, 2.0, 3.0]}))
        np.testing.assert_array_equal(found["ids"], expected["ids"])
        np.testing.assert_array_equal(found["dense"], expected["dense"])
    for n in (["1", "four", "3"], [1.0, 4.5, 3.0]):
        found = encoded(encoders, pa.table({"n": n, "x": [1.0, 2.0, 3.0]}))
        assert found["ids"][:, 0].tolist() == [1, 0, 3]


def test_a_column_that_is_missing_or_odd_is_said(encoders):
    with pytest.raises(MissingError, match="has no column 'amount'"):
        encoders.open(new_rows().drop(columns="amount"))
    odd = new_rows().astype({"amount": object}).assign(amount="much")
    with pytest.raises(MissingError, match="'amount' of the frame cannot be read as dense"):
        encoded(encoders, odd)
    rows = new_rows()
    rows["vector"] = [[1.0, 2.0]] * len(rows)
    with pytest.raises(MissingError, match="in row 1"):
        encoded(encoders, rows)


def test_rows_that_are_encoded_already():
    schema = toy_schema(bags=1)
    split = toy_dataset(schema).splits["test"]
    bag = split.bags["bag1"]
    frame = {f"id{i + 1}": split.ids[:, i] for i in range(3)}
    frame |= {f"dense{i + 1}": split.dense[:, i] for i in range(2)}
    frame["bag1"] = [part.tolist() for part in np.split(bag.values, bag.offsets[1:-1])]
    frame["bag1-weights"] = [part.tolist() for part in np.split(bag.weights, bag.offsets[1:-1])]
    encoders = RowEncoders.of_schema(schema)
    found = encoded(encoders, pd.DataFrame(frame))
    for name, expected in split.arrays().items():
        if name not in ("labels", "observed"):
            expected = np.diff(expected) if "offsets" in name else expected
            np.testing.assert_array_equal(found[name], expected)

    # ids that there are not are unknown, and a bag without weights weighs 1 an id
    frame["id1"] = frame["id1"] + 1000
    del frame["bag1-weights"]
    found = encoded(encoders, pd.DataFrame(frame))
    assert not found["ids"][:, 0].any()
    assert set(found["bag-weights-bag1"]) == {1.0}
    again = RowEncoders.from_json(json.loads(json.dumps(encoders.as_json())), schema)
    np.testing.assert_array_equal(encoded(again, pd.DataFrame(frame))["ids"], found["ids"])


def test_damaged_encoders_are_refused(data):
    whole = data.encoders
    other = toy_schema()
    with pytest.raises(ValueError, match="other id features"):
        RowEncoders.from_json(whole, other)
    for damaged in ({}, {"format": 2}, whole | {"columns": [{}]}, whole | {"columns": 3}):
        with pytest.raises(ValueError, match="they are"):
            RowEncoders.from_json(damaged, data.schema)


def test_a_time_among_the_ids_keeps_its_levels():
    days = [datetime.datetime(2020, 1, 1 + i % 3, 5) for i in range(40)]
    frame = pd.DataFrame({"day": days, "click": [0, 1] * 20})
    data = Dataset.from_frame(frame, ["click"], ids=["day"])
    encoders = RowEncoders.from_json(json.loads(json.dumps(data.encoders)), data.schema)
    assert encoded(encoders, frame)["ids"][:3, 0].tolist() == [1, 2, 3]
