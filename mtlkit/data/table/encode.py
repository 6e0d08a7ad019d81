"""Encoders of input columns: each sees the training rows batch by batch, and then encodes all rows.

An id that train does not hold, or too rarely, is 0. A missing value is a level of its own where
train has one; a missing number is the mean, and an indicator says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mtlkit.data.encoders import UNKNOWN, MinMaxScaler, QuantileBins, QuantileRanks, Standardizer
from mtlkit.data.table.plan import ColumnPlan, file_name, split_texts
from mtlkit.data.table.read import TIME, is_list, without_nan
from mtlkit.data.table.split import as_groups, random_numbers
from mtlkit.data.types import Feature

SAMPLE_ROWS = 1_000_000
"""Rows, evenly spread, that quantiles are taken over."""
PENDING_LEVELS = 100_000
"""Levels that are counted batch by batch before they are added up."""
FEW_LEVELS = 5_000
DATE_PARTS: dict[str, Callable[[pa.Array], pa.Array]] = {
    "hour": pc.hour,
    "weekday": pc.day_of_week,
    "day": pc.day,
    "month": pc.month,
    "year": pc.year,
}


class BadValueError(Exception):
    """A value that cannot be encoded.

    Args:
        position: Of the row in the batch.
        what: What is wrong, after "The column 'x' of t.csv".
        mend: What to do about it.
    """

    def __init__(self, position: int, what: str, mend: str) -> None:
        super().__init__(what)
        self.position, self.what, self.mend = position, what, mend


@dataclass(frozen=True)
class Encoded:
    """A column of a batch, encoded.

    Args:
        ids: (n,) int32 arrays, one an id feature.
        dense: (n,) float32 arrays, one a dense feature.
        bag: (n,) lengths and (m,) int32 ids of the one bag feature.
    """

    ids: list[np.ndarray] = field(default_factory=list)
    dense: list[np.ndarray] = field(default_factory=list)
    bag: tuple[np.ndarray, np.ndarray] | None = None


class ColumnEncoder(ABC):
    """One input column: fitted on the training rows, then applied to all.

    Args:
        plan: What becomes of the column.

    Attributes:
        features: What the column becomes; known once it is settled.
    """

    features: list[Feature]

    def __init__(self, plan: ColumnPlan) -> None:
        self.plan = plan

    @abstractmethod
    def see(self, values: pa.Array) -> None:
        """Take in values of training rows."""

    @abstractmethod
    def settle(self) -> None:
        """All training rows were seen."""

    @abstractmethod
    def encode(self, values: pa.Array) -> Encoded:
        """Encode values of any rows.

        Raises:
            BadValueError: One cannot be.
        """

    def _feature(self, suffix: str = "", **facts: Any) -> Feature:
        role = self.plan.role
        return Feature(name=self.plan.name + suffix, role=None if role == "time" else role, **facts)


def make_encoder(plan: ColumnPlan, rows: int) -> ColumnEncoder:
    """The encoder of a column of a table with so many rows."""
    if plan.kind == "id":
        return IdEncoder(plan)
    if plan.kind == "bag":
        return BagEncoder(plan)
    if plan.kind == "date":
        return DateEncoder(plan)
    if plan.kind == "vector":
        return VectorEncoder(plan)
    if plan.transform in ("quantile", "bins"):
        return QuantileEncoder(plan, max(1, -(-rows // SAMPLE_ROWS)))
    return NumberEncoder(plan)


# --- ids


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
        self.levels = kept["level"].combine_chunks()
        self.levels = self.levels.take(pc.array_sort_indices(self.levels))

        # An index builds its hash table once. Arrow builds one for every batch, which costs less
        # where there are few texts.
        is_number = pa.types.is_integer(self.levels.type) or pa.types.is_floating(self.levels.type)
        self._index = None
        if is_number or len(self.levels) > FEW_LEVELS:
            levels = self.levels.to_numpy(zero_copy_only=False)
            self._index = pd.Index(levels, dtype=None if is_number else object)

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
    """Ids without end to one of so many numbers; 0 is a missing value."""

    def __init__(self, buckets: int) -> None:
        self.size = buckets + 1
        self.buckets = np.uint64(buckets)

    def see(self, values: pa.Array) -> None:
        """There is nothing to fit."""

    def settle(self) -> None:
        """There is nothing to fit."""

    def encode(self, values: pa.Array) -> np.ndarray:
        """(n,) values to (n,) int32 ids."""
        numbers = random_numbers(as_groups(values).view(np.uint64), seed=0)
        ids = (numbers % self.buckets).astype(np.int32) + 1
        if values.null_count:
            ids[is_missing(values)] = UNKNOWN
        return ids


def _ids_of(plan: ColumnPlan) -> Vocabulary | HashedIds:
    return HashedIds(plan.buckets) if plan.buckets else Vocabulary(plan.min_count)


class IdEncoder(ColumnEncoder):
    """A column of ids or levels."""

    def __init__(self, plan: ColumnPlan) -> None:
        super().__init__(plan)
        self.ids = _ids_of(plan)

    def see(self, values: pa.Array) -> None:
        """Count levels."""
        self.ids.see(values)

    def settle(self) -> None:
        """Number the levels."""
        self.ids.settle()
        self.features = [self._feature(vocab=self.ids.size)]

    def encode(self, values: pa.Array) -> Encoded:
        """One array of ids."""
        return Encoded(ids=[self.ids.encode(values)])


class BagEncoder(ColumnEncoder):
    """A column of lists of ids, or of text that holds such lists."""

    def __init__(self, plan: ColumnPlan) -> None:
        super().__init__(plan)
        self.ids = _ids_of(plan)

    def see(self, values: pa.Array) -> None:
        """Count levels."""
        self.ids.see(self._lists(values).flatten())

    def settle(self) -> None:
        """Number the levels."""
        self.ids.settle()
        feature = self._feature(kind="bag", vocab=self.ids.size)
        self.features = [feature.model_copy(update={"name": file_name(feature.name)})]

    def encode(self, values: pa.Array) -> Encoded:
        """Lengths and ids; a missing list is empty."""
        lists = self._lists(values)
        lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        return Encoded(bag=(lengths.astype(np.int64), self.ids.encode(lists.flatten())))

    def _lists(self, values: pa.Array) -> pa.ListArray:
        if is_list(values.type):
            return values
        texts = values.cast(pa.string())
        return split_texts(texts, self.plan.separator or "|")


class DateEncoder(ColumnEncoder):
    """A column of dates, whose parts become ids."""

    def __init__(self, plan: ColumnPlan) -> None:
        super().__init__(plan)
        self.parts = {part: Vocabulary(min_count=1) for part in plan.parts}

    def see(self, values: pa.Array) -> None:
        """Count the values of each part."""
        for part, ids in self.parts.items():
            ids.see(DATE_PARTS[part](values.cast(TIME)))

    def settle(self) -> None:
        """Number them."""
        self.features = []
        for part, ids in self.parts.items():
            ids.settle()
            self.features.append(self._feature(f"-{part}", vocab=ids.size))

    def encode(self, values: pa.Array) -> Encoded:
        """An array of ids a part."""
        dates = values.cast(TIME)
        return Encoded(
            ids=[ids.encode(DATE_PARTS[part](dates)) for part, ids in self.parts.items()]
        )


# --- numbers


class Moments:
    """Mean and standard deviation, added up batch by batch (Chan et al., 1983).

    The range is kept as well. NaN does not count.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self.low, self.high = np.inf, -np.inf

    def see(self, values: np.ndarray) -> None:
        """Take in (n,) float64 values."""
        values = values[~np.isnan(values)]
        if not len(values):
            return
        mean = float(values.mean())
        squares = float(np.square(values - mean).sum())
        count = self.count + len(values)
        step = mean - self.mean
        self.squares += squares + step * step * self.count * len(values) / count
        self.mean += step * len(values) / count
        self.count = count
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))

    @property
    def std(self) -> float:
        """The standard deviation; 1 for a constant."""
        if self.count == 0 or self.low == self.high:
            return 1.0
        return float(np.sqrt(self.squares / self.count)) or 1.0


def is_missing(values: pa.Array) -> np.ndarray:
    """(n,) bool."""
    return values.is_null().to_numpy(zero_copy_only=False)


def as_numbers(values: pa.Array) -> np.ndarray:
    """(n,) float64, NaN where missing.

    Raises:
        BadValueError: One is infinite.
    """
    numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    is_infinite = np.isinf(numbers)
    if is_infinite.any():
        raise BadValueError(
            int(is_infinite.argmax()), "holds an infinite number", "replace it by an empty value"
        )
    return numbers


class NumberEncoder(ColumnEncoder):
    """A column of numbers, scaled; with an indicator where train has missing ones."""

    def __init__(self, plan: ColumnPlan) -> None:
        super().__init__(plan)
        self.moments = Moments()
        self.has_missing = False

    def see(self, values: pa.Array) -> None:
        """Take in numbers."""
        numbers = as_numbers(values)
        self.has_missing |= values.null_count > 0
        if self.plan.transform == "log":
            numbers = np.log1p(np.maximum(numbers, 0))
        self.moments.see(numbers)

    def settle(self) -> None:
        """Fix the scale."""
        moments = self.moments
        self.scaler: Standardizer | MinMaxScaler
        if self.plan.transform == "none":
            self.scaler = Standardizer(0.0, 1.0)
        elif self.plan.transform == "minmax":
            low, high = (moments.low, moments.high) if moments.count else (0.0, 1.0)
            self.scaler = MinMaxScaler(low, high)
        else:
            is_log = self.plan.transform == "log"
            self.scaler = Standardizer(moments.mean, moments.std, log=is_log)
        self.features = [self._feature(kind="dense")]
        if self.has_missing:
            self.features.append(self._feature("-missing", kind="dense"))

    def encode(self, values: pa.Array) -> Encoded:
        """Scaled numbers, and whether they are missing."""
        dense = [self.scaler.transform(as_numbers(values))]
        if self.has_missing:
            dense.append(is_missing(values).astype(np.float32))
        return Encoded(dense=dense)


class QuantileEncoder(ColumnEncoder):
    """A column of numbers as ranks, or as ids of bins of about equally many rows.

    Args:
        plan: What becomes of the column.
        stride: Every so many rows, one counts.
    """

    def __init__(self, plan: ColumnPlan, stride: int) -> None:
        super().__init__(plan)
        self.stride, self.seen = stride, 0
        self.sample: list[np.ndarray] = []
        self.has_missing = False

    def see(self, values: pa.Array) -> None:
        """Keep some of the numbers."""
        numbers = as_numbers(values)
        self.has_missing |= values.null_count > 0
        self.sample.append(numbers[-self.seen % self.stride :: self.stride])
        self.seen += len(numbers)

    def settle(self) -> None:
        """Find the quantiles."""
        sample = np.concatenate(self.sample or [np.zeros(0)])
        sample = sample[~np.isnan(sample)]
        self.sample = []
        self.quantiles: QuantileRanks | QuantileBins
        if self.plan.transform == "bins":
            self.quantiles = (
                QuantileBins.fit(sample, self.plan.bins) if len(sample) else (QuantileBins(()))
            )
            self.features = [self._feature(vocab=self.quantiles.vocab)]
            return
        self.quantiles = QuantileRanks.fit(sample)
        self.features = [self._feature(kind="dense")]
        if self.has_missing:
            self.features.append(self._feature("-missing", kind="dense"))

    def encode(self, values: pa.Array) -> Encoded:
        """Ids of bins; or ranks, and whether they are missing."""
        encoded = self.quantiles.transform(as_numbers(values))
        if self.plan.transform == "bins":
            return Encoded(ids=[encoded])
        dense = [encoded]
        if self.has_missing:
            dense.append(is_missing(values).astype(np.float32))
        return Encoded(dense=dense)


class Projection:
    """Vectors on their principal axes, each scaled to deviation 1 on train.

    Mean and scatter are added up batch by batch; rows with a missing number do not count.

    Args:
        length: Numbers in a vector.
        axes: How many axes are kept, those of the largest variance.
    """

    def __init__(self, length: int, axes: int) -> None:
        self.axes, self.count = axes, 0
        self.mean = np.zeros(length)
        self.scatter = np.zeros((length, length))

    def see(self, vectors: np.ndarray) -> None:
        """Take in (n, k) vectors."""
        vectors = vectors[~np.isnan(vectors).any(1)]
        if not len(vectors):
            return
        mean = vectors.mean(0)
        centred = vectors - mean
        count = self.count + len(vectors)
        step = mean - self.mean
        shift = self.count * len(vectors) / count
        self.scatter += centred.T @ centred + shift * np.outer(step, step)
        self.mean += step * len(vectors) / count
        self.count = count

    def settle(self) -> None:
        """Find the axes; the largest entry of each is positive, so that its sign is one's own."""
        variances, axes = np.linalg.eigh(self.scatter / max(1, self.count))  # in rising order
        axes, variances = axes[:, ::-1][:, : self.axes], variances[::-1][: self.axes]
        largest = np.abs(axes).argmax(0)
        axes = axes * np.sign(axes[largest, np.arange(self.axes)])
        deviations = np.sqrt(np.maximum(variances, 0))
        self.matrix = axes / np.where(deviations > 0, deviations, 1)  # (k, axes)

    def transform(self, vectors: np.ndarray) -> np.ndarray:
        """(n, k) vectors to (n, axes) float32; a missing number is the mean."""
        return (np.nan_to_num(vectors - self.mean) @ self.matrix).astype(np.float32)


class Scales:
    """Vectors whose every number is standardised on train; the interface is that of
    :class:`Projection`.

    Args:
        length: Numbers in a vector.
    """

    def __init__(self, length: int) -> None:
        self.axes = length
        self.moments = [Moments() for _ in range(length)]

    def see(self, vectors: np.ndarray) -> None:
        """Take in (n, k) vectors."""
        for position, moments in enumerate(self.moments):
            moments.see(vectors[:, position])

    def settle(self) -> None:
        """Fix the scale of each number."""
        self.scalers = [Standardizer(moments.mean, moments.std) for moments in self.moments]

    def transform(self, vectors: np.ndarray) -> np.ndarray:
        """(n, k) vectors to (n, k) float32; a missing number is the mean."""
        columns = [
            scaler.transform(vectors[:, position]) for position, scaler in enumerate(self.scalers)
        ]
        return np.column_stack(columns)


class VectorEncoder(ColumnEncoder):
    """A column of lists of numbers of one length: a dense feature each, and one for a missing list.

    A missing list is that of the means.
    """

    def __init__(self, plan: ColumnPlan) -> None:
        super().__init__(plan)
        self.scales: Scales | Projection = (
            Projection(plan.length, plan.axes) if plan.axes else Scales(plan.length)
        )
        self.has_missing = False

    def see(self, values: pa.Array) -> None:
        """Take in vectors."""
        self.has_missing |= values.null_count > 0
        self.scales.see(self._vectors(values))

    def settle(self) -> None:
        """Fix the scales, or the axes."""
        self.scales.settle()
        self.features = [
            self._feature(f"-{position}", kind="dense") for position in range(self.scales.axes)
        ]
        if self.has_missing:
            self.features.append(self._feature("-missing", kind="dense"))

    def encode(self, values: pa.Array) -> Encoded:
        """Scaled numbers, and whether the list is missing."""
        dense = list(self.scales.transform(self._vectors(values)).T)
        if self.has_missing:
            dense.append(is_missing(values).astype(np.float32))
        return Encoded(dense=dense)

    def _vectors(self, values: pa.Array) -> np.ndarray:
        """(n, k) float64, NaN where a list or a number is missing."""
        lists = values
        if not is_list(values.type):
            texts = split_texts(values, self.plan.separator or ",")
            lists = pa.ListArray.from_arrays(texts.offsets, self._parsed(texts))
        lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        is_there = ~is_missing(values)
        is_wrong = is_there & (lengths != self.plan.length)
        if is_wrong.any():
            position = int(is_wrong.argmax())
            raise BadValueError(
                position,
                f"holds a list of {lengths[position]} numbers where others have {self.plan.length}",
                "give all lists one length, or --drop the column",
            )
        vectors = np.full((len(values), self.plan.length), np.nan)
        numbers = as_numbers(without_nan(lists.flatten().cast(pa.float64())))
        vectors[is_there] = numbers.reshape(-1, self.plan.length)
        return vectors

    def _parsed(self, texts: pa.ListArray) -> pa.Array:
        """The pieces of lists that were written as text, as numbers."""
        try:
            return pc.cast(texts.flatten(), pa.float64())
        except pa.ArrowInvalid as error:
            reason = str(error).partition("'")[2].partition("'")[0]
            is_bad = [text is not None and reason in text for text in texts.to_pylist()]
            what = f"holds {reason[:40]!r} in a list of numbers"
            raise BadValueError(is_bad.index(True), what, "--bags for lists of ids") from None
