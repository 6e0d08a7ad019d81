"""The vocabulary and the scales of Ali-CCP, fitted on the rows of train in one pass."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mtlkit.data.ali_ccp.join import CHUNK, TRAIN, VALIDATION, Joined
from mtlkit.data.ali_ccp.protocols import FieldPlan, Request
from mtlkit.data.ali_ccp.staging import Chunk, Staged
from mtlkit.data.ali_ccp.vocabulary import Counter, Vocabulary, spread_fields
from mtlkit.data.encoders import MinMaxScaler


def fit(train: Joined, request: Request) -> tuple[Vocabulary, dict[int, MinMaxScaler]]:
    """Vocabulary and scales from the rows of train.

    An id of the user's counts once for every row of the user.
    """
    row_plan, user_plan = train.rows.plan, train.users.plan
    counter = _counter((train.rows, train.users))
    value_ranges = {field: [np.inf, -np.inf] for field in (*row_plan.dense, *user_plan.dense)}

    # Of each common row: how often it counts, whether a row of train has it, and in which order
    # they came.
    users = len(train.users)
    impressions, is_trained = np.zeros(users, np.int64), np.zeros(users, bool)
    came = [np.empty(0, np.int64)]
    for rows, chunk in train.row_chunks():
        split, common_row = train.split[rows], train.common_row[rows]
        is_train = split == TRAIN
        is_counted = is_train
        if request.protocol.counts_held_out:
            is_counted = is_train | (split == VALIDATION)
        times = is_counted.astype(np.int64)
        counter.rows(row_plan.ids, chunk.ids, times)
        _count_bags(counter, row_plan, chunk, times)
        _widen(value_ranges, row_plan, chunk.values[is_train])

        is_trained[common_row[is_train]] = True
        counted_row = common_row[is_counted]
        met = pd.unique(counted_row)
        came.append(met[impressions[met] == 0])
        impressions += np.bincount(counted_row, minlength=users)

    # The common file, each row as often as rows of the skeleton had it.
    user_ids = np.empty((users, len(user_plan.ids)), np.int32)
    for rows, chunk in train.user_chunks():
        user_ids[rows] = chunk.ids
        _count_bags(counter, user_plan, chunk, impressions[rows])
        _widen(value_ranges, user_plan, chunk.values[is_trained[rows]])

    # In the order in which rows of train came to them: ids may be numbered as first seen.
    order = np.concatenate(came)
    counter.rows(user_plan.ids, user_ids[order], impressions[order])

    fields = (*row_plan.ids, *row_plan.bags, *user_plan.ids, *user_plan.bags)
    vocabulary = Vocabulary(counter, fields, request.min_count, request.protocol.order)
    scalers = {
        field: MinMaxScaler(float(low), float(high)) for field, (low, high) in value_ranges.items()
    }
    return vocabulary, scalers


def _counter(texts: tuple[Staged, Staged]) -> Counter:
    """A counter with a cell for every id of two texts."""
    ranges = {}
    for text in texts:
        for field in (*text.plan.ids, *text.plan.bags):
            low, high = text.ranges[field].tolist()
            if high >= 0:
                ranges[field] = (low, high)
    spread = spread_fields(ranges)
    listed: dict[int, np.ndarray] = {}
    for text in texts if spread else ():
        for chunk in text.chunks(CHUNK):
            columns = [*zip(text.plan.ids, chunk.ids.T, strict=True)]
            columns += [
                (field, bag[0]) for field, bag in zip(text.plan.bags, chunk.bags, strict=True)
            ]
            for field, ids in columns:
                if field in spread:
                    listed[field] = np.union1d(listed.get(field, ids[:0]), ids[ids >= 0])
    return Counter(ranges, listed)


def _count_bags(counter: Counter, plan: FieldPlan, chunk: Chunk, times: np.ndarray) -> None:
    for b, field in enumerate(plan.bags):
        counter.bag(field, chunk.bags[b][0], chunk.lengths[:, b], times)


def _widen(value_ranges: dict[int, list[float]], plan: FieldPlan, values: np.ndarray) -> None:
    """Take more (n, D) values into the least and the greatest of each field."""
    for column, field in enumerate(plan.dense if len(values) else ()):
        low, high = value_ranges[field]
        value_ranges[field] = [
            min(low, values[:, column].min()),
            max(high, values[:, column].max()),
        ]
