"""What is prepared equals, value by value, what the slow, obvious way gives; from a CSV, a Parquet
file and a frame alike.
"""

import csv
import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlkit.data.sources import prepare
from mtlkit.data.splits import SPLITS, Dataset
from mtlkit.data.table.spec import MISSING_TEXTS
from mtlkit.errors import UsageError
from tests.data.table import reference

KINDS = {
    "word": "id",
    "number": "id",
    "huge": "id",
    "flag": "id",
    "amount": "dense",
    "when": "date",
    "tags": "bag",
}
OPTIONS = {
    "labels": ["click", "price", "grade"],
    "split": ["column", "part"],
    "ids": ["word", "huge"],
    "bags": ["tags"],
    "dates": {"when": ["weekday", "hour"]},
    "separators": {"tags": "|"},
}
words = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Nd"]) | st.sampled_from('",\n;| '), max_size=8
).filter(lambda text: text.strip() and text not in MISSING_TEXTS)
pieces = st.sampled_from(["a", "b", "é", "日本", "x y"])
rows = st.fixed_dictionaries(
    {
        "word": st.none() | st.sampled_from(["tea", "naïve", 'say "no"', "日本"]) | words,
        "number": st.sampled_from([0, -1, 7, 2**62, -(2**63) + 1]) | st.integers(-50, 50),
        "huge": st.integers(10**18, 10**24).map(str),
        "flag": st.booleans(),
        "amount": st.none() | st.floats(-1e6, 1e6, width=32),
        "when": st.none()
        | st.datetimes(datetime.datetime(1950, 1, 1), datetime.datetime(2100, 1, 1)),
        "tags": st.none() | st.lists(pieces, min_size=1, max_size=4),
        "empty": st.none(),
        "click": st.none() | st.integers(0, 1),
        "price": st.none() | st.floats(0, 1e4, width=32).map(lambda value: value + 0.5),
        "grade": st.sampled_from(["low", "middle", "high"]),
        "part": st.sampled_from(SPLITS),
    }
)
certain = [
    # Whatever is drawn, each split has a row, and each label both classes in train.
    {"part": part, "click": click, "grade": grade, "price": price, "tags": ["a"]}
    for part, click, grade, price in [
        ("train", 0, "low", 1.25),
        ("train", 1, "middle", 2.25),
        ("validation", 0, "high", 0.75),
        ("test", 1, "low", 0.5),
    ]
]
tables = st.builds(
    lambda drawn, fixed: [row | change for row, change in zip(fixed, certain, strict=True)] + drawn,
    st.lists(rows, min_size=6, max_size=40),
    st.lists(rows, min_size=4, max_size=4),
)


def as_columns(table):
    names = [*KINDS, "empty", *OPTIONS["labels"], "part"]
    return {name: [row[name] for row in table] for name in names}


def write_csv(columns, file):
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow("|".join(v) if isinstance(v, list) else v for v in row)


def as_arrow(columns):
    types = {"number": pa.int64(), "amount": pa.float64(), "when": pa.timestamp("us")}
    types |= {"tags": pa.list_(pa.string()), "empty": pa.string()}
    return pa.table({name: pa.array(v, types.get(name)) for name, v in columns.items()})


def spec_text(file, options):
    from mtlkit.spec import Spec

    return str(Spec(str(file), options))


def from_csv(columns, folder):
    write_csv(columns, folder / "t.csv")
    return prepare(spec_text(folder / "t.csv", OPTIONS), folder / "data")[1]


def from_parquet(columns, folder):
    import pyarrow.parquet as pq

    # Row groups of their own, so that columns come in several pieces.
    pq.write_table(as_arrow(columns), folder / "t.parquet", row_group_size=5)
    return prepare(spec_text(folder / "t.parquet", OPTIONS), folder / "data")[1]


def from_arrow(columns, folder):
    return Dataset.from_frame(as_arrow(columns), **OPTIONS)


def from_pandas(columns, folder):
    return Dataset.from_frame(as_arrow(columns).to_pandas(), **OPTIONS)


def values_of(dataset, name, split):
    """The encoded values of a feature in a split, as a list."""
    features = {feature.name: feature for feature in dataset.schema.features}
    kind = features[name].kind
    if kind == "bag":
        bag = split.bags[name]
        return [list(part) for part in np.split(bag.values, bag.offsets[1:-1])]
    column = [feature.name for feature in dataset.schema.of_kind(kind)].index(name)
    return (split.ids if kind == "id" else split.dense)[:, column].tolist()


@pytest.mark.parametrize("route", [from_csv, from_parquet, from_arrow, from_pandas])
def test_every_value_is_that_of_the_obvious_way(route, tmp_path_factory):
    @settings(max_examples=30, deadline=None, database=None, derandomize=True)
    @given(tables)
    def compare(table):
        columns = as_columns(table)
        dataset = route(columns, tmp_path_factory.mktemp("table"))
        kinds = dict(KINDS)
        if all(value is None for value in columns["amount"]):
            del kinds["amount"]  # an empty column is no input, unless it is named as one
        elif route is not from_csv and look_like_integers(columns["amount"]):
            kinds["amount"] = "id"
        expected = reference.encode(columns, kinds, columns["part"])
        assert [feature.name for feature in dataset.schema.features] == list(expected)
        for name, values in expected.items():
            for part in SPLITS:
                wanted = [v for v, p in zip(values, columns["part"], strict=True) if p == part]
                got = values_of(dataset, name, dataset.splits[part])
                if isinstance(wanted[0], float):
                    assert got == pytest.approx(wanted, rel=1e-5, abs=1e-6), name
                else:
                    assert got == wanted, name
        check_labels(dataset, columns)

    compare()


def look_like_integers(values):
    """Whether all floats are whole, and some are missing: what makes floats of a frame's integers."""
    return None in values and all(value is None or value.is_integer() for value in values)


def check_labels(dataset, columns):
    train = [row for row, part in enumerate(columns["part"]) if part == "train"]
    prices = [columns["price"][row] for row in train if columns["price"][row] is not None]
    mean, std = np.mean(prices), np.std(prices) or 1.0
    grades = ["high", "low", "middle"]
    assert [task.kind for task in dataset.schema.tasks] == ["binary", "regression", "multiclass"]
    for part in SPLITS:
        rows = [row for row, own in enumerate(columns["part"]) if own == part]
        split = dataset.splits[part]
        wanted = []
        for row in rows:
            click, price, grade = (columns[name][row] for name in ("click", "price", "grade"))
            scaled = 0 if price is None else (price - mean) / std
            wanted.append([click or 0, scaled, grades.index(grade)])
        seen = [
            [columns[name][row] is not None for name in ("click", "price", "grade")] for row in rows
        ]
        assert split.labels == pytest.approx(np.array(wanted, np.float32), rel=1e-4, abs=1e-5)
        assert split.observed.tolist() == seen


def test_ids_seen_too_rarely_are_unknown():
    frame = pd.DataFrame(
        {
            "shop": ["a", "a", "b", "c", "c", None, "a", "c"],
            "x": [1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5],
            "click": [0, 1, 0, 1, 0, 1, 0, 1],
            "part": ["train"] * 6 + ["val", "test"],
        }
    )
    dataset = Dataset.from_frame(frame, labels="click", split="column:part", min_count=2)
    assert dataset.splits["train"].ids[:, 0].tolist() == [1, 1, 0, 2, 2, 3]
    assert dataset.splits["validation"].ids[:, 0].tolist() == [1]
    assert dataset.splits["test"].ids[:, 0].tolist() == [2]


def test_hashed_ids_need_no_vocabulary():
    frame = pd.DataFrame({"user": [*range(1000)], "click": [0, 1] * 500})
    dataset = Dataset.from_frame(frame, labels="click", hash={"user": 16})
    (feature,) = dataset.schema.features
    ids = np.concatenate([split.ids[:, 0] for split in dataset.splits.values()])
    assert feature.vocab == 17
    assert set(ids.tolist()) == set(range(1, 17))
    assert np.bincount(ids)[1:].min() > 30


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        ("none", [0.0, 1.0, 3.0, 7.0]),
        ("minmax", [0.0, 1 / 7, 3 / 7, 1.0]),
        ("standard", (np.array([0, 1, 3, 7]) - 2.75) / np.std([0, 1, 3, 7])),
        ("log", (np.log2([1, 2, 4, 8]) - 1.5) / np.std([0, 1, 2, 3])),
        ("quantile", np.sqrt(12) * (np.array([0, 1, 2, 3]) / 3 - 0.5)),
    ],
)
def test_numbers_are_scaled_as_asked(transform, expected):
    frame = pd.DataFrame(
        {
            "x": [0, 1, 3, 7, 1, 3],
            "click": [0, 1, 0, 1, 0, 1],
            "part": ["train"] * 4 + ["dev", "test"],
        }
    )
    dataset = Dataset.from_frame(
        frame, labels="click", split="column:part", transform={"x": transform}
    )
    assert dataset.splits["train"].dense[:, 0] == pytest.approx(expected, abs=1e-6)


def test_binned_numbers_are_ids():
    frame = pd.DataFrame({"x": np.arange(1000) / 7, "click": [0, 1] * 500})
    dataset = Dataset.from_frame(frame, labels="click", transform={"x": "bins"}, bins=8)
    counts = np.bincount(dataset.splits["train"].ids[:, 0])
    assert counts[0] == 0
    assert counts[1:].tolist() == [100] * 8


def test_lists_of_numbers_of_one_length_are_dense_vectors():
    vectors = [[float(row), 1.5, -row / 2] for row in range(20)]
    frame = pd.DataFrame({"v": vectors, "click": [0, 1] * 10})
    as_list = Dataset.from_frame(frame, labels="click")
    assert [feature.name for feature in as_list.schema.features] == ["v-0", "v-1", "v-2"]

    # The same written as text, as pandas does in a CSV.
    as_text = Dataset.from_frame(frame.assign(v=frame.v.astype(str)), labels="click")
    for part in SPLITS:
        assert np.array_equal(as_text.splits[part].dense, as_list.splits[part].dense)


def test_texts_of_vectors_may_be_missing():
    vectors = [None if row == 3 else [float(row), 1.5, -row / 2] for row in range(20)]
    texts = [None if vector is None else str(vector) for vector in vectors]
    both = [
        Dataset.from_frame(pd.DataFrame({"v": values, "click": [0, 1] * 10}), labels="click")
        for values in (vectors, texts)
    ]
    names = [[feature.name for feature in dataset.schema.features] for dataset in both]
    assert names == [["v-0", "v-1", "v-2", "v-missing"]] * 2
    for part in SPLITS:
        assert np.array_equal(both[0].splits[part].dense, both[1].splits[part].dense)


def test_vectors_are_projected_on_principal_axes():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(2, 6))
    vectors = rng.normal(size=(500, 2)) * [3, 1] @ plane + 5
    frame = pd.DataFrame({"v": list(vectors), "click": rng.integers(0, 2, 500)})
    frame.loc[7, "v"] = None
    frame["part"] = ["train"] * 400 + ["val"] * 50 + ["test"] * 50
    options = {"labels": "click", "split": "column:part", "project": {"v": 2}}
    dataset = Dataset.from_frame(frame, **options)
    train, test = dataset.splits["train"].dense, dataset.splits["test"].dense
    assert [feature.name for feature in dataset.schema.features] == ["v-0", "v-1", "v-missing"]
    assert train[7].tolist() == [0, 0, 1]

    # The same axes, up to a sign, by a singular value decomposition of the rows in memory.
    known = np.delete(vectors[:400], 7, 0)
    _, deviations, axes = np.linalg.svd(known - known.mean(0), full_matrices=False)
    expected = (vectors - known.mean(0)) @ axes[:2].T / (deviations[:2] / np.sqrt(399))
    for position in range(2):
        sign = np.sign(train[0, position] * expected[0, position])
        assert test[:, position] == pytest.approx(sign * expected[450:, position], abs=1e-4)
    with pytest.raises(UsageError, match="vectors of 6 numbers"):
        Dataset.from_frame(frame, **options | {"project": {"v": 7}})


def test_many_texts_are_numbered_as_few_are(monkeypatch):
    from mtlkit.data.table import id_columns

    words = pd.Series([f"word {row % 7}" if row % 11 else None for row in range(100)])
    frame = pd.DataFrame({"word": words, "click": [0, 1] * 50})
    few = Dataset.from_frame(frame, labels="click")
    monkeypatch.setattr(id_columns, "FEW_LEVELS", 1)
    monkeypatch.setattr(id_columns, "PENDING_LEVELS", 1)
    assert Dataset.from_frame(frame, labels="click").fingerprint == few.fingerprint


def test_a_bag_weighs_one_in_all():
    frame = pd.DataFrame({"tags": ["a|b", "c", None, "a|b|c"] * 5, "click": [0, 1] * 10})
    bag = Dataset.from_frame(frame, labels="click", bags="tags").splits["train"].bags["tags"]
    sums = np.add.reduceat(np.append(bag.weights, 0), bag.offsets[:-1])
    lengths = np.diff(bag.offsets)
    assert sums[lengths > 0] == pytest.approx(1)
    assert (lengths == 0).any()
