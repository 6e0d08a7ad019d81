import numpy as np
import pandas as pd
import pytest

from mtlkit.data.datasets import adult
from tests.data.datasets.tables import check_values, counts, fetch_real, parquet, prepare_sample
from tests.data.datasets.test_yeast import hashed

LEVELS = {
    "workclass": ["Private", "State-gov", "?"],
    "education": ["HS-grad", "Bachelors"],
    "marital-status": ["Never-married", "Divorced", "Married-civ-spouse"],
    "occupation": ["Sales", "Tech-support", "?"],
    "relationship": ["Husband", "Own-child"],
    "race": ["White", "Black"],
    "gender": ["Male", "Female"],
    "native-country": ["United-States", "?"],
    "income": ["<=50K", ">50K"],
}
NUMBERS = ("age", "fnlwgt", "educational-num", "capital-gain", "capital-loss", "hours-per-week")


def frame(rows=120):
    rng = np.random.default_rng(1)
    texts = {name: rng.choice(levels, rows) for name, levels in LEVELS.items()}
    return pd.DataFrame(texts | {name: rng.integers(0, 90, rows) for name in NUMBERS})


def test_values(monkeypatch, tmp_path):
    monkeypatch.setattr(adult, "TEST_ROWS", 30)
    people = frame()
    files = {"adult.parquet.brotli": parquet(people)}
    data = prepare_sample(monkeypatch, tmp_path, "adult", files)

    # The first rows are the official test file; of the others, a tenth is held out by a hash.
    splits = ["test"] * 30
    for row in range(30, 120):
        splits.append("validation" if hashed(row, 0) < 0.1 * 2**64 else "train")
    rows = people.to_dict("records")
    for row in rows:
        row["income"] = int(row["income"] == ">50K")
        row["marital"] = int(row.pop("marital-status") == "Never-married")

    kinds = dict.fromkeys(NUMBERS, "dense") | dict.fromkeys(LEVELS, "id")
    for name in ("fnlwgt", "relationship", "income", "marital-status"):
        del kinds[name]
    kinds |= dict.fromkeys(("capital-gain", "capital-loss"), "id")
    check_values(data, rows, splits, kinds)


@pytest.mark.slow
def test_real_data(tmp_path):
    data = fetch_real("adult", tmp_path)
    rows, tasks = counts(data)
    assert rows == {"train": 29_278, "validation": 3_283, "test": 16_281}
    assert tasks == {"income": (48_842, 11_687), "marital": (48_842, 16_117)}

    # The official test file has 3,846 people of that income.
    assert data.splits["test"].positives()[0] == 3_846
