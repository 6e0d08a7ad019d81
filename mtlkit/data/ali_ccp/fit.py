"""The vocabulary and the scales of Ali-CCP, fitted on the rows of train in one pass."""

from __future__ import annotations

import numpy as np

from mtlkit.data.ali_ccp.hashing import kernel
from mtlkit.data.ali_ccp.join import TRAIN, VALIDATION, Joined
from mtlkit.data.ali_ccp.protocols import Request
from mtlkit.data.ali_ccp.staging import Chunk, Staged
from mtlkit.data.ali_ccp.vocabulary import Counter, Vocabulary
from mtlkit.data.encoders import MinMaxScaler


def fit(train: Joined, request: Request) -> tuple[Vocabulary, dict[int, MinMaxScaler]]:
    """Vocabulary and scales from the rows of train.

    An id of the user's counts once for every row of the user.
    """
    fitting = _Fitting(train, request)
    for rows, chunk in train.row_chunks():
        fitting.count_rows(rows, chunk)
    fitting.count_users()

    fields = (*_id_fields(train.rows), *_id_fields(train.users))
    vocabulary = Vocabulary(
        fitting.counter, tuple(dict.fromkeys(fields)), request.min_count, request.protocol.order
    )
    scalers = {
        field: MinMaxScaler(float(low), float(high))
        for field, (low, high) in fitting.value_ranges.items()
    }
    return vocabulary, scalers


class _Fitting:
    """What is counted while the rows of train are read."""

    def __init__(self, train: Joined, request: Request) -> None:
        self.train, self.protocol = train, request.protocol
        id_ranges = {}
        for text in (train.rows, train.users):
            for field in _id_fields(text):
                low, high = text.ranges[field].tolist()
                if high >= 0:
                    id_ranges[field] = (low, high)
        self.counter = Counter(id_ranges)
        dense_fields = (*train.rows.plan.dense, *train.users.plan.dense)
        self.value_ranges = {field: [np.inf, -np.inf] for field in dense_fields}

        # Of each common row: how often it counts, whether a row of train has it, and in which
        # order they came.
        users = len(train.users)
        self.impressions = np.zeros(users, np.int64)
        self.is_trained = np.zeros(users, bool)
        self.order = np.empty(users, np.int64)
        self.users_met = 0

    def count_rows(self, rows: slice, chunk: Chunk) -> None:
        """Count the ids of some rows of the skeleton, and their users."""
        plan = self.train.rows.plan
        split, common_row = self.train.split[rows], self.train.common_row[rows]
        is_train = split == TRAIN
        is_counted = is_train
        if self.protocol.counts_held_out:
            is_counted = is_train | (split == VALIDATION)
        times = is_counted.astype(np.int64)

        self.counter.rows(np.array(plan.ids, np.int64), chunk.ids, times)
        for b, field in enumerate(plan.bags):
            self.counter.bag(field, chunk.bags[b][0], chunk.lengths[:, b], times)
        for column, field in enumerate(plan.dense):
            _widen(self.value_ranges[field], chunk.values[is_train, column])

        self.users_met = _count_users(
            common_row, times, self.impressions, self.order, self.users_met
        )
        self.is_trained[common_row[is_train]] = True

    def count_users(self) -> None:
        """Count the ids of the common file, each row as often as rows of the skeleton had it."""
        plan = self.train.users.plan
        ids = np.empty((len(self.train.users), len(plan.ids)), np.int32)
        for users, chunk in self.train.user_chunks():
            ids[users] = chunk.ids
            for b, field in enumerate(plan.bags):
                entries, lengths = chunk.bags[b][0], chunk.lengths[:, b]
                self.counter.bag(field, entries, lengths, self.impressions[users])
            for column, field in enumerate(plan.dense):
                _widen(self.value_ranges[field], chunk.values[self.is_trained[users], column])

        # In the order in which rows of train came to them: ids may be numbered as first seen.
        order = self.order[: self.users_met]
        self.counter.rows(np.array(plan.ids, np.int64), ids[order], self.impressions[order])


def _id_fields(text: Staged) -> tuple[int, ...]:
    return (*text.plan.ids, *text.plan.bags)


@kernel
def _count_users(
    common_row: np.ndarray,
    times: np.ndarray,
    impressions: np.ndarray,
    order: np.ndarray,
    users_met: int,
) -> int:
    """Count the rows of each common row, and list common rows in the order in which they come.

    Returns:
        How many are in the list.
    """
    for r in range(common_row.shape[0]):
        if times[r] > 0:
            if impressions[common_row[r]] == 0:
                order[users_met] = common_row[r]
                users_met += 1
            impressions[common_row[r]] += times[r]
    return users_met


def _widen(value_range: list[float], values: np.ndarray) -> None:
    if len(values):
        value_range[0] = min(value_range[0], values.min())
        value_range[1] = max(value_range[1], values.max())
