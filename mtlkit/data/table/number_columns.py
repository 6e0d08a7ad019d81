"""Encoders of columns of numbers and of vectors.

A missing number is the mean, and a feature says so where train has missing ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtlkit.data.encoders import (
    MinMaxScaler,
    QuantileBins,
    QuantileRanks,
    Standardizer,
    as_json,
    from_json,
)
from mtlkit.data.table.column import BadValueError, ColumnEncoder, Encoded, is_missing
from mtlkit.data.table.plan import SEPARATORS, ColumnPlan, find_separator, split_texts
from mtlkit.data.table.read import is_list, without_nan
from mtlkit.data.types import Feature

SAMPLE_ROWS = 1_000_000  # rows, evenly spread, that quantiles are taken over


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


class Sample:
    """Evenly spaced rows of a column, of which quantiles are taken.

    Args:
        rows: Of the table; at most about :data:`SAMPLE_ROWS` of them are kept.
    """

    def __init__(self, rows: int) -> None:
        self.stride, self.seen = max(1, -(-rows // SAMPLE_ROWS)), 0
        self.kept: list[np.ndarray] = []

    def see(self, values: np.ndarray) -> None:
        """Keep some of (n,) values."""
        self.kept.append(values[-self.seen % self.stride :: self.stride])
        self.seen += len(values)

    def values(self) -> np.ndarray:
        """What was kept, without NaN."""
        values = np.concatenate(self.kept or [np.zeros(0)])
        return values[~np.isnan(values)]


class _NumbersEncoder(ColumnEncoder):
    """A column that becomes numbers, and an indicator where train has missing values."""

    has_missing = False

    def _dense_features(self, *suffixes: str) -> list[Feature]:
        suffixes = (*suffixes, "-missing") if self.has_missing else suffixes
        return [self._feature(suffix, kind="dense") for suffix in suffixes]

    def _dense(self, columns: Iterable[np.ndarray], values: pa.Array) -> Encoded:
        missing = [is_missing(values).astype(np.float32)] if self.has_missing else []
        return Encoded(dense=[*columns, *missing])


class NumberEncoder(_NumbersEncoder):
    """A column of numbers: scaled, as ranks, or as ids of bins of about equally many rows."""

    scaler: Standardizer | MinMaxScaler | QuantileRanks | QuantileBins

    def __init__(self, plan: ColumnPlan, rows: int) -> None:
        super().__init__(plan)
        has_quantiles = plan.transform in ("quantile", "bins")
        self.seen: Sample | Moments = Sample(rows) if has_quantiles else Moments()

    def see(self, values: pa.Array) -> None:
        numbers = as_numbers(values)
        self.has_missing |= values.null_count > 0
        if self.plan.transform == "log":
            numbers = np.log1p(np.maximum(numbers, 0))
        self.seen.see(numbers)

    def settle(self) -> None:
        seen, transform = self.seen, self.plan.transform
        if isinstance(seen, Sample):
            sample = seen.values()
            self.seen = Sample(0)
            if transform == "bins":
                self.scaler = QuantileBins.fit(sample, self.plan.bins)
            else:
                self.scaler = QuantileRanks.fit(sample)
        elif transform == "none":
            self.scaler = Standardizer(0.0, 1.0)
        elif transform == "minmax":
            low, high = (seen.low, seen.high) if seen.count else (0.0, 1.0)
            self.scaler = MinMaxScaler(low, high)
        else:
            self.scaler = Standardizer(seen.mean, seen.std, log=transform == "log")

    def state_dict(self) -> dict[str, Any]:
        return {"scaler": as_json(self.scaler), "has_missing": self.has_missing}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scaler = from_json(state["scaler"])
        self.has_missing = state["has_missing"]

    @property
    def features(self) -> list[Feature]:
        if isinstance(self.scaler, QuantileBins):
            return [self._feature(vocab=self.scaler.vocab)]
        return self._dense_features("")

    def encode(self, values: pa.Array) -> Encoded:
        """Ids of bins; or numbers, and whether they are missing."""
        encoded = self.scaler.transform(as_numbers(values))
        if isinstance(self.scaler, QuantileBins):
            return Encoded(ids=[encoded])
        return self._dense([encoded], values)


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

    def state_dict(self) -> dict[str, Any]:
        """Where the vectors are centred, and the axes."""
        return {"mean": self.mean.tolist(), "matrix": self.matrix.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.matrix = np.array(state["mean"]), np.array(state["matrix"])

    def transform(self, vectors: np.ndarray) -> np.ndarray:
        """(n, k) vectors to (n, axes) float32; a missing number is the mean."""
        return (np.nan_to_num(vectors - self.mean) @ self.matrix).astype(np.float32)


class Scales:
    """Vectors whose every number is standardised on train; used like a :class:`Projection`."""

    def __init__(self, length: int) -> None:
        self.axes = length
        self.moments = [Moments() for _ in range(length)]

    def see(self, vectors: np.ndarray) -> None:
        for moments, column in zip(self.moments, vectors.T, strict=True):
            moments.see(column)

    def settle(self) -> None:
        self.scalers = [Standardizer(moments.mean, moments.std) for moments in self.moments]

    def state_dict(self) -> dict[str, Any]:
        return {"scalers": [as_json(scaler) for scaler in self.scalers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scalers = [from_json(scaler) for scaler in state["scalers"]]

    def transform(self, vectors: np.ndarray) -> np.ndarray:
        """(n, k) vectors to (n, k) float32; a missing number is the mean."""
        columns = zip(self.scalers, vectors.T, strict=True)
        return np.column_stack([scaler.transform(column) for scaler, column in columns])


class VectorEncoder(_NumbersEncoder):
    """A column of lists of numbers of one length: a dense feature each, and one for a missing list.

    A missing list is that of the means.
    """

    def __init__(self, plan: ColumnPlan) -> None:
        super().__init__(plan)
        self.scales: Scales | Projection = (
            Projection(plan.length, plan.axes) if plan.axes else Scales(plan.length)
        )

    def see(self, values: pa.Array) -> None:
        self.has_missing |= values.null_count > 0
        self.scales.see(self._vectors(values))

    def settle(self) -> None:
        self.scales.settle()

    def state_dict(self) -> dict[str, Any]:
        return {"scales": self.scales.state_dict(), "has_missing": self.has_missing}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scales.load_state_dict(state["scales"])
        self.has_missing = state["has_missing"]

    @property
    def features(self) -> list[Feature]:
        return self._dense_features(*(f"-{position}" for position in range(self.scales.axes)))

    def encode(self, values: pa.Array) -> Encoded:
        """Scaled numbers, and whether the list is missing."""
        return self._dense(self.scales.transform(self._vectors(values)).T, values)

    def _vectors(self, values: pa.Array) -> np.ndarray:
        """(n, k) float64, NaN where a list or a number is missing."""
        lists = values
        if not is_list(values.type):
            separator = self.plan.separator or find_separator(values, SEPARATORS) or ","
            texts = split_texts(values, separator)
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
