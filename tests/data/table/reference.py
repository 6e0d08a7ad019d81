"""The slow, obvious way from a table to its encoded columns, in plain Python over lists of values.

It shares nothing with the package: no batches, no Arrow, no encoders.
"""

import datetime
import math


def encode(columns, kinds, split, min_count=1):
    """Feature to its encoded values, row by row: an id, a number, or a list of ids.

    Args:
        columns: Name to a list of values, None where missing.
        kinds: Name to id, dense, bag or date.
        split: train, validation or test of each row.
        min_count: Ids seen less often on train count as unknown.
    """
    is_train = [part == "train" for part in split]
    features = {}
    for name, kind in kinds.items():
        values = columns[name]
        if kind == "id":
            features[name] = ids(values, is_train, min_count)
        elif kind == "bag":
            features[name] = bags(values, is_train, min_count)
        elif kind == "dense":
            features |= numbers(name, values, is_train)
        else:
            for part, read in DATE_PARTS.items():
                parts = [None if value is None else read(value) for value in values]
                features[f"{name}-{part}"] = ids(parts, is_train, 1)
    return features


DATE_PARTS = {"weekday": datetime.datetime.weekday, "hour": lambda value: value.hour}


def ids(values, is_train, min_count):
    number_of = numbering([v for v, t in zip(values, is_train, strict=True) if t], min_count)
    return [number_of.get(value, 0) for value in values]


def bags(values, is_train, min_count):
    train = [piece for bag, t in zip(values, is_train, strict=True) if t for piece in bag or []]
    number_of = numbering(train, min_count)
    return [[number_of.get(piece, 0) for piece in bag or []] for bag in values]


def numbering(train, min_count):
    """Level to its id: 1, 2, ... in rising order, and the last one for what is missing."""
    counts = {}
    for value in train:
        counts[value] = counts.get(value, 0) + 1
    has_missing = counts.pop(None, 0) > 0
    kept = sorted(value for value, count in counts.items() if count >= min_count)
    number_of = {value: number for number, value in enumerate(kept, 1)}
    if has_missing:
        number_of[None] = len(kept) + 1
    return number_of


def numbers(name, values, is_train):
    train = [v for v, t in zip(values, is_train, strict=True) if t]
    known = [value for value in train if value is not None]
    mean = math.fsum(known) / len(known) if known else 0.0
    variance = math.fsum((value - mean) ** 2 for value in known) / len(known) if known else 0.0
    std = math.sqrt(variance) if len(set(known)) > 1 else 1.0
    scaled = [0.0 if value is None else (value - mean) / (std or 1.0) for value in values]
    features = {name: scaled}
    if len(known) < len(train):
        features[f"{name}-missing"] = [float(value is None) for value in values]
    return features
