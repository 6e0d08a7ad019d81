import numpy as np
import pandas as pd
import pytest

from mtlkit.data.sources import prepare
from mtlkit.data.splits import SPLITS
from tests.data.datasets.tables import check_values, counts, fetch_real, parquet, prepare_sample

SITES = ("CHSI2", "NASI2", "EADM7", "SCLM7", "CLKM7", "VALI2", "NAPM7", "DLDI4")
HOURS_BACK = (0, 6, 12, 18, 24, 36, 48, 60)


def frame(hours, seed):
    """Flows in the raw format: every hour now, before, and in 48 hours."""
    flow = np.random.default_rng(seed).uniform(10, 90, (hours + 48, len(SITES)))
    columns = {}
    for back in HOURS_BACK:
        for s, site in enumerate(SITES):
            name = f"{site}__{-back}" if back else f"{site}__0"
            columns[name] = [flow[h - back, s] if h >= back else None for h in range(hours)]
    for s, site in enumerate(SITES):
        columns[f"{site}_48H__0"] = flow[48:, s]
    return pd.DataFrame(columns).astype(float)


def sample(train, test):
    files = {"rf1_train.parquet.brotli": parquet(train), "rf1_test.parquet.brotli": parquet(test)}
    inputs = [name for name in train if "48H" not in name]
    assert len(inputs) == 64

    # 60 hours of each file have no past.
    rows = [*train.to_dict("records")[60:], *test.to_dict("records")[60:]]
    for row in rows:
        for site in SITES:
            row[site] = row.pop(f"{site}_48H__0")
    return files, rows, dict.fromkeys(inputs, "dense")


def test_values_of_the_official_split(monkeypatch, tmp_path):
    files, rows, kinds = sample(frame(110, 0), frame(90, 1))
    name = "river-flow[split=official]"
    data = prepare_sample(monkeypatch, tmp_path, name, files)

    # 50 rows of train are left, of which 5 are held out.
    splits = ["train"] * 45 + ["validation"] * 5 + ["test"] * 30
    check_values(data, rows, splits, kinds)


def test_values_of_whole_weeks(monkeypatch, tmp_path):
    files, rows, kinds = sample(frame(168 * 7 + 20, 2), frame(168 * 3, 3))
    data = prepare_sample(monkeypatch, tmp_path, "river-flow", files)

    # Which weeks are in which split is told by the values of the rows; a week is in one of them.
    split_of = {}
    for name, split in data.splits.items():
        split_of |= {tuple(row): name for row in split.labels[:, :2].round(3).tolist()}
    mean, std = np.array([data.schema.tasks[t].scale for t in (0, 1)]).T
    keys = [tuple(((row["CHSI2"], row["NASI2"]) - mean) / std) for row in rows]
    keys = [tuple(np.float32(key).round(3).tolist()) for key in keys]
    splits = [split_of[key] for key in keys]
    hours = [*range(60, 168 * 7 + 20), *range(60, 168 * 3)]
    weeks = [(n >= 168 * 7 - 40, hour // 168) for n, hour in enumerate(hours)]
    assert len(set(weeks)) == 11
    assert len(set(zip(weeks, splits, strict=True))) == 11
    assert [
        len({w for w, s in zip(weeks, splits, strict=True) if s == name}) for name in SPLITS
    ] == [7, 2, 2]
    check_values(data, rows, splits, kinds)


@pytest.mark.slow
def test_real_data(tmp_path):
    data = fetch_real("river-flow", tmp_path)
    rows, tasks = counts(data)
    assert sum(rows.values()) == 9_005
    assert tasks == dict.fromkeys(SITES, (9_005, None))
    assert len(data.schema.features) == 64
    official = prepare("river-flow[split=official]", tmp_path)[1]
    assert counts(official)[0] == {"train": 3_643, "validation": 405, "test": 4_957}
    assert official.details["lints"] == []
