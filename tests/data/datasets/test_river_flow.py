import numpy as np
import pandas as pd
import pytest

from tests.data.datasets.tables import (
    check_values,
    counts,
    fetch_real,
    parquet,
    prepare_sample,
)

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


def test_values(monkeypatch, tmp_path):
    train, test = frame(110, 0), frame(90, 1)
    files = {"rf1_train.parquet.brotli": parquet(train), "rf1_test.parquet.brotli": parquet(test)}
    data = prepare_sample(monkeypatch, tmp_path, "river-flow", files)

    # 60 hours of each file have no past; 50 rows of train are left, of which 5 are held out.
    rows = [*train.to_dict("records")[60:], *test.to_dict("records")[60:]]
    for row in rows:
        for site in SITES:
            row[site] = row.pop(f"{site}_48H__0")
    splits = ["train"] * 45 + ["validation"] * 5 + ["test"] * 30
    inputs = [name for name in train if "48H" not in name]
    assert len(inputs) == 64
    check_values(data, rows, splits, dict.fromkeys(inputs, "dense"))


@pytest.mark.slow
def test_real_data(tmp_path):
    data = fetch_real("river-flow", tmp_path)
    rows, tasks = counts(data)
    assert rows == {"train": 3_643, "validation": 405, "test": 4_957}
    assert tasks == dict.fromkeys(SITES, (9_005, None))
    assert len(data.schema.features) == 64
