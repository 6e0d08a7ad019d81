"""The preparation of Ali-CCP as one would write it to be believed: dictionaries, one row after the
other, no haste.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np

USER_FIELDS = "101 109_14 110_14 127_14 150_14 121 122 124 125 126 127 128 129".split()
ROW_FIELDS = ["205", "206", "207", "210", "216", "508", "509", "702", "853", "301"]
AITM = [name for name in USER_FIELDS if "_" not in name] + [
    name for name in ROW_FIELDS if name != "210"
]
RECHUB_DENSE = ["109_14", "110_14", "127_14", "150_14", "508", "509", "702", "853"]
BAGS = ["109_14", "110_14", "127_14", "150_14", "210", "853"]
KINDS = {
    "aitm": {"ids": AITM, "bags": [], "dense": []},
    "rechub": {"ids": USER_FIELDS + ROW_FIELDS, "bags": [], "dense": RECHUB_DENSE},
    "full": {
        "ids": [name for name in USER_FIELDS + ROW_FIELDS if name not in BAGS],
        "bags": BAGS,
        "dense": ["508", "509", "702"],
    },
}
MIN_COUNT = {"aitm": 12, "rechub": 10, "full": 10}
NUMBER = re.compile(rb"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")


class Bad(Exception):
    pass


def mix(x):
    full = 2**64 - 1
    x = (x + 0x9E3779B97F4A7C15) & full
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & full
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & full
    return x ^ (x >> 31)


def share(value, salt):
    return (mix(mix(value) ^ salt) >> 11) / 2**53


def texts_of(folder: Path) -> dict[str, bytes]:
    """Name to content of the four texts of two archives."""
    found = {}
    for path in folder.glob("sample_*.tar.gz"):
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                if member.name.endswith(".csv"):
                    found[member.name] = archive.extractfile(member).read()
    return found


def lines_of(text: bytes):
    lines = text.split(b"\n")
    return [line.removesuffix(b"\r") for line in (lines[:-1] if lines[-1] == b"" else lines)]


def features_of(text: bytes):
    """(field, id, value) in order; of fields nobody knows only the shape is looked at."""
    out = []
    for item in text.split(b"\x01") if text else []:
        name, end, rest = item.partition(b"\x02")
        raw, middle, value = rest.partition(b"\x03")
        if not end or not middle:
            raise Bad
        if name.decode("latin1") not in USER_FIELDS + ROW_FIELDS:
            if b"\x02" in raw + value or b"\x03" in name + value:
                raise Bad
            continue
        if (
            not re.fullmatch(rb"\d{1,10}", raw)
            or int(raw) > 2**31 - 1
            or not NUMBER.fullmatch(value)
        ):
            raise Bad
        number = float(value)
        if abs(number) > float(np.finfo(np.float32).max):
            raise Bad
        out.append((name.decode(), int(raw), np.float32(number)))
    return out


def parse(line: bytes, skeleton: bool):
    parts = line.split(b",", 5 if skeleton else 2)
    if len(parts) != (6 if skeleton else 3):
        raise Bad
    key, count, features = parts[-3:]
    if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", key) or not re.fullmatch(rb"\d{1,10}", count):
        raise Bad
    labels = (0, 0)
    if skeleton:
        if any(part not in (b"0", b"1") for part in parts[1:3]):
            raise Bad
        labels = (int(parts[1]), int(parts[2]))
    own = ROW_FIELDS if skeleton else USER_FIELDS
    return labels, int(key, 16), [entry for entry in features_of(features) if entry[0] in own]


def grouped(features):
    """Field to its (id, value) pairs."""
    out = {}
    for field, id, value in features:
        out.setdefault(field, []).append((id, value))
    return out


def joined(texts: dict[str, bytes], split: str, sample: float):
    """Rows of an official split as (line, key, click, purchase, user, features), and counts of what
    was left out.
    """
    out, bad, dirty, orphans = [], [], [], []
    common, by_field = {}, {}
    for line in lines_of(texts[f"common_features_{split}.csv"]):
        try:
            _, key, features = parse(line, skeleton=False)
        except Bad:
            bad.append(line)
            continue
        common[key] = features
        by_field[key] = grouped(features)
    for number, line in enumerate(lines_of(texts[f"sample_skeleton_{split}.csv"]), 1):
        try:
            (click, purchase), key, features = parse(line, skeleton=True)
        except Bad:
            bad.append(number)
            continue
        if purchase > click:
            dirty.append(number)
            continue
        if key not in common:
            orphans.append(number)
            continue
        users = [id for field, id, _ in common[key] if field == "101"]
        user = users[-1] if users else -1
        if sample < 1 and share(user if users else key, 0x5A3D) >= sample:
            continue
        out.append((number, key, click, purchase, user, grouped(features) | by_field[key]))
    return out, {"bad": len(bad), "dirty": dirty, "orphans": orphans}


def prepare(
    texts: dict[str, bytes], protocol: str, min_count: int | None = None, sample: float = 1.0
):
    """Final splits as lists of rows (labels, user, {field: id}, {field: [(id, weight)]}, {field:
    number}).
    """
    kinds = KINDS[protocol]
    least = min_count or MIN_COUNT[protocol]
    train, _ = joined(texts, "train", sample)
    test, _ = joined(texts, "test", sample)
    if protocol == "rechub":
        parts = {"train": train}
        parts["validation"] = [row for row in test if share(row[0], 0x4EC4) < 0.5]
        parts["test"] = [row for row in test if share(row[0], 0x4EC4) >= 0.5]
        counted = train
    else:
        held = [
            share(row[0], 0xA117) if protocol == "aitm" else share(row[1], 0xF011) for row in train
        ]
        parts = {"train": [row for row, h in zip(train, held, strict=True) if h >= 0.1]}
        parts["validation"] = [row for row, h in zip(train, held, strict=True) if h < 0.1]
        parts["test"] = test
        counted = train if protocol == "aitm" else parts["train"]
    counts = {field: Counter() for field in kinds["ids"] + kinds["bags"]}
    for row in counted:
        for field in kinds["ids"]:
            counts[field].update(id for id, _ in row[5].get(field, [])[-1:])
        for field in kinds["bags"]:
            counts[field].update(id for id, _ in row[5].get(field, []))
    numbers = {}
    for field, seen in counts.items():
        kept = [
            id for id, count in seen.items() if count >= least
        ]  # a Counter keeps the order of first sight
        if protocol != "rechub":
            kept.sort()
        numbers[field] = {id: number for number, id in enumerate(kept, 1)}

    def last_value(row, field):
        return row[5][field][-1][1] if field in row[5] else np.float32(0)

    scales = {}
    for field in kinds["dense"]:
        values = [float(last_value(row, field)) for row in parts["train"]]
        scales[field] = (min(values), (max(values) - min(values)) or 1.0)

    def encode(row):
        ids = {}
        for field in kinds["ids"]:
            ids[field] = numbers[field].get(row[5][field][-1][0], 0) if field in row[5] else 0
        bags = {
            field: [(numbers[field].get(id, 0), weight) for id, weight in row[5].get(field, [])]
            for field in kinds["bags"]
        }
        dense = {
            field: np.float32((float(last_value(row, field)) - low) / width)
            for field, (low, width) in scales.items()
        }
        return row[2:4], row[4], ids, bags, dense

    return {name: [encode(row) for row in rows] for name, rows in parts.items()}, numbers
