"""Raw rows of the test split of some data sets, put together without the package's readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tests.data.ali_ccp import reference

CENSUS_OPTIONS = {"header": None, "skipinitialspace": True, "na_filter": False}


def ali_ccp(archives: Path) -> pd.DataFrame:
    """The rows of the test file with the fields of ``full``: raw ids, lists of them, values."""
    texts = reference.texts_of(archives)
    lines = {name: reference.lines_of(text) for name, text in texts.items()}
    users = {}
    for line in lines["common_features_test.csv"]:
        _, key, features = reference.parse(line, skeleton=False)
        users[key] = features
    rows = []
    for line in lines["sample_skeleton_test.csv"]:
        labels, key, features = reference.parse(line, skeleton=True)
        if labels == (0, 1):
            continue  # bought without a click: such rows are left out
        rows.append(_row([*features, *users[key]]))
    return pd.DataFrame(rows)


def _row(features: list[tuple[str, int, np.float32]]) -> dict[str, object]:
    kinds = reference.KINDS["full"]
    row: dict[str, object] = dict.fromkeys(kinds["ids"])
    row |= {f"D{name}": 0.0 for name in kinds["dense"]}
    for name in kinds["bags"]:
        row[name], row[f"{name}-weights"] = [], []
    for name, raw, value in features:
        if name in kinds["bags"]:
            row[name].append(raw)
            row[f"{name}-weights"].append(float(value))
            continue
        row[name] = raw
        if name in kinds["dense"]:
            row[f"D{name}"] = float(value)
    return row
