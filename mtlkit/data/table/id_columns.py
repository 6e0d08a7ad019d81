"""Encoders of columns of ids: levels, bags of them, and parts of dates.

An id that train does not hold, or too rarely, is 0. A missing value is a level of its own where
train has one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mtlkit.data.encoders import UNKNOWN
from mtlkit.data.table.column import ColumnEncoder, Encoded, is_missing
from mtlkit.data.table.plan import SEPARATORS, ColumnPlan, file_name, find_separator, split_texts
from mtlkit.data.table.read import TIME, is_list, to_type, type_named
from mtlkit.data.table.split import as_groups, random_numbers
from mtlkit.data.types import Feature

PENDING_LEVELS = 100_000  # levels that are counted batch by batch before they are added up
FEW_LEVELS = 5_000  # texts up to which a hash table a batch costs less than an index
DATE_PARTS: dict[str, Callable[[pa.Array], pa.Array]] = {
    "hour": pc.hour,
    "weekday": pc.day_of_week,
    "day": pc.day,
    "month": pc.month,
    "year": pc.year,
}


class Vocabulary:
    """Levels to ids: 1, 2, ... in rising order, then that of missing values.

    Args:
        min_count: Levels seen less often are unknown.
    """

    def __init__(self, min_count: int) -> None:
        self.min_count = min_count
        self.missing = 0
        self._counts: list[pa.Table] = []
        self._pending = 0  # levels that are counted, some of them in several tables

    def see(self, values: pa.Array) -> None:
        """Count levels."""
        self.missing += values.null_count
        level, count = _counts(values)
        self._counts.append(pa.table({"level": level, "count": count}))
        self._pending += len(level)

        # Added up now and then, so that memory grows with the levels and not with the rows.
        if self._pending > 2 * len(self._counts[0]) + PENDING_LEVELS:
            self._add_up()

    def settle(self) -> None:
        """Number the levels that are kept."""
        self._add_up()
        counts = self._counts.pop()
        kept = counts.filter(pc.greater_equal(counts["count"], self.min_count))
        levels = kept["level"].combine_chunks()
        self._set_levels(levels.take(pc.array_sort_indices(levels)))

    def _set_levels(self, levels: pa.Array) -> None:
        """Number the levels in their order."""
        self.levels = levels

        # An index builds its hash table once. Arrow builds one for every batch, which costs less
        # where there are few texts.
        is_number = pa.types.is_integer(self.levels.type) or pa.types.is_floating(self.levels.type)
        self._index = None
        if is_number or len(self.levels) > FEW_LEVELS:
            levels = self.levels.to_numpy(zero_copy_only=False)
            self._index = pd.Index(levels, dtype=None if is_number else object)

    def state_dict(self) -> dict[str, Any]:
        """The levels, and whether missing values are one."""
        is_time = pa.types.is_timestamp(self.levels.type)
        levels = self.levels.cast(pa.int64()) if is_time else self.levels
        return {
            "type": str(self.levels.type),
            "levels": levels.to_pylist(),
            "missing": self.missing > 0,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        dtype = type_named(state["type"])
        plain = pa.int64() if pa.types.is_timestamp(dtype) else dtype
        self.missing = int(state["missing"])
        self._set_levels(pa.array(state["levels"], plain).cast(dtype))

    @property
    def size(self) -> int:
        """Number of ids, the unknown one included."""
        return 1 + len(self.levels) + (self.missing > 0)

    def encode(self, values: pa.Array) -> np.ndarray:
        """(n,) values to (n,) int32 ids."""
        if pa.types.is_dictionary(values.type):
            # Each level is looked up once; the last entry is that of missing values.
            ids = np.append(self.encode(values.dictionary), self._missing_id).astype(np.int32)
            codes = values.indices
            return ids[codes.fill_null(len(ids) - 1).to_numpy(zero_copy_only=False)]
        if values.type != self.levels.type:
            return self._encode_other_type(values)
        if self._index is None:
            positions = pc.index_in(values, self.levels).fill_null(-1).to_numpy()
        else:
            is_text = self._index.dtype == object
            filled = values.fill_null("" if is_text else 0) if values.null_count else values
            positions = self._index.get_indexer(filled.to_numpy(zero_copy_only=False))
        ids = (positions + 1).astype(np.int32)
        if values.null_count:
            ids[is_missing(values)] = self._missing_id
        return ids

    def _encode_other_type(self, values: pa.Array) -> np.ndarray:
        """Values of rows that training never saw, such as a word among numbers: it is unknown."""
        try:
            return self.encode(to_type(values, self.levels.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            # 2.5 among whole numbers, or a word
            is_number = pa.types.is_floating(values.type) and pa.types.is_integer(self.levels.type)
            common = pa.float64() if is_number else pa.string()
            levels = self.levels.cast(common, safe=False)
            positions = pc.index_in(values.cast(common), levels).fill_null(-1).to_numpy()
        ids = (positions + 1).astype(np.int32)
        ids[is_missing(values)] = self._missing_id
        return ids

    @property
    def _missing_id(self) -> int:
        return len(self.levels) + 1 if self.missing else UNKNOWN

    def _add_up(self) -> None:
        counts = pa.concat_tables(self._counts)
        summed = counts.group_by("level").aggregate([("count", "sum")])
        self._counts = [summed.select(["level", "count_sum"]).rename_columns(["level", "count"])]
        self._pending = len(summed)


def _counts(values: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Levels and how often each stands there; a level may come more than once."""
    if not pa.types.is_dictionary(values.type):
        counts = pc.value_counts(values.drop_null())
        return counts.field(0), counts.field(1)
    codes = values.indices.drop_null().to_numpy()
    rows = np.bincount(codes, minlength=len(values.dictionary))
    levels = np.flatnonzero(rows)
    return values.dictionary.take(pa.array(levels)), pa.array(rows[levels])


class HashedIds:
    """Ids without end to one of so many numbers; 0 is a missing value. There is nothing to fit."""

    def __init__(self, buckets: int) -> None:
        self.size = buckets + 1

    def see(self, values: pa.Array) -> None: ...

    def settle(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def encode(self, values: pa.Array) -> np.ndarray:
        """(n,) values to (n,) int32 ids."""
        numbers = random_numbers(as_groups(values).view(np.uint64), seed=0)
        ids = (numbers % np.uint64(self.size - 1)).astype(np.int32) + 1
        if values.null_count:
            ids[is_missing(values)] = UNKNOWN
        return ids


class KnownIds(HashedIds):
    """Values that are ids already, from 0 to ``size - 1``; others are unknown."""

    def __init__(self, size: int) -> None:
        self.size = size

    def encode(self, values: pa.Array) -> np.ndarray:
        numbers = to_type(values, pa.int64()).fill_null(UNKNOWN).to_numpy()
        is_known = (numbers >= 0) & (numbers < self.size)
        return np.where(is_known, numbers, UNKNOWN).astype(np.int32)


def _ids_of(plan: ColumnPlan) -> Vocabulary | HashedIds:
    if plan.known:
        return KnownIds(plan.known)
    return HashedIds(plan.buckets) if plan.buckets else Vocabulary(plan.min_count)


class IdEncoder(ColumnEncoder):
    """A column of ids or levels."""

    def __init__(self, plan: ColumnPlan) -> None:
        super().__init__(plan)
        self.ids = _ids_of(plan)

    def see(self, values: pa.Array) -> None:
        self.ids.see(values)

    def settle(self) -> None:
        self.ids.settle()

    def state_dict(self) -> dict[str, Any]:
        return self.ids.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ids.load_state_dict(state)

    @property
    def features(self) -> list[Feature]:
        return [self._feature(vocab=self.ids.size)]

    def encode(self, values: pa.Array) -> Encoded:
        return Encoded(ids=[self.ids.encode(values)])


class BagEncoder(IdEncoder):
    """A column of lists of ids, or of text that holds such lists."""

    def see(self, values: pa.Array) -> None:
        self.ids.see(self._lists(values).flatten())

    @property
    def features(self) -> list[Feature]:
        feature = self._feature(kind="bag", vocab=self.ids.size)
        return [feature.model_copy(update={"name": file_name(feature.name)})]

    def encode(self, values: pa.Array) -> Encoded:
        """Lengths and ids; a missing list is empty."""
        lists = self._lists(values)
        lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        return Encoded(bag=(lengths.astype(np.int64), self.ids.encode(lists.flatten())))

    def _lists(self, values: pa.Array) -> pa.ListArray:
        if is_list(values.type):
            return values
        texts = values.cast(pa.string())
        separator = self.plan.separator or find_separator(texts, SEPARATORS) or "|"
        return split_texts(texts, separator)


class DateEncoder(ColumnEncoder):
    """A column of dates, whose parts become ids."""

    def __init__(self, plan: ColumnPlan) -> None:
        super().__init__(plan)
        self.parts = {part: Vocabulary(min_count=1) for part in plan.parts}

    def see(self, values: pa.Array) -> None:
        for part, ids in self.parts.items():
            ids.see(DATE_PARTS[part](values.cast(TIME)))

    def settle(self) -> None:
        for ids in self.parts.values():
            ids.settle()

    def state_dict(self) -> dict[str, Any]:
        return {part: ids.state_dict() for part, ids in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, ids in self.parts.items():
            ids.load_state_dict(state[part])

    @property
    def features(self) -> list[Feature]:
        return [self._feature(f"-{part}", vocab=ids.size) for part, ids in self.parts.items()]

    def encode(self, values: pa.Array) -> Encoded:
        dates = values.cast(TIME)
        return Encoded(
            ids=[ids.encode(DATE_PARTS[part](dates)) for part, ids in self.parts.items()]
        )
