import gzip

import pytest

from tests.data.datasets.tables import check_values, counts, fetch_real, prepare_sample
from tests.data.datasets.test_pip_table import yeast_csv


def split_at_random(rows, seed=0, share=0.2):
    """The table core's split at random, written down once more: a hash of the number of the row."""
    numbers = [hashed(row, seed) for row in range(rows)]
    ordered, size = sorted(numbers), round(share * rows)
    first, second = ordered[rows - 2 * size], ordered[rows - size]
    return [
        "test" if number >= second else "validation" if number >= first else "train"
        for number in numbers
    ]


def hashed(row, seed):
    mask = 2**64 - 1
    mixed = (row + (seed + 1) * 0x9E3779B97F4A7C15) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return mixed ^ (mixed >> 31)


def test_values(monkeypatch, tmp_path):
    csv = yeast_csv(200)
    data = prepare_sample(monkeypatch, tmp_path, "yeast", {"yeast.csv.gz": gzip.compress(csv)})
    header, *lines = [line.split(",") for line in csv.decode().splitlines()]
    rows = [dict(zip(header, map(float, line), strict=True)) for line in lines]
    inputs = [name for name in header if name.startswith("Att")]
    check_values(data, rows, split_at_random(200), dict.fromkeys(inputs, "dense"))
    assert data.schema.task_names == tuple(name for name in header if name.startswith("Class"))


@pytest.mark.slow
def test_real_data(tmp_path):
    data = fetch_real("yeast", tmp_path)
    rows, tasks = counts(data)
    assert rows == {"train": 1451, "validation": 483, "test": 483}
    assert [positives for _, positives in tasks.values()] == [
        762, 1038, 983, 862, 722, 597, 428, 480, 178, 253, 289, 1816, 1799, 34,
    ]  # fmt: skip
    assert len(data.schema.features) == 103
