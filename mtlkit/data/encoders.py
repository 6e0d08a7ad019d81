"""Encoders of raw columns. Each is fitted on the training split and then only applied."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from mtlkit.data.targets import middle_ranks

UNKNOWN = 0  # the id of a missing value and of a level that the training split does not hold


@dataclass(frozen=True)
class CategoryEncoder:
    """A categorical column to ids ``1..len(levels)``; anything else to :data:`UNKNOWN`."""

    levels: tuple[str, ...]  # the levels seen on train, sorted

    @classmethod
    def fit(cls, train: pd.Series, missing: Collection[str] = ()) -> CategoryEncoder:
        """Collect the levels of a column; those in ``missing`` count as unknown."""
        column = _categorical(train)
        present = column.codes[column.codes >= 0]  # a missing value has code -1

        # A categorical may list levels that none of its rows has.
        counts = np.bincount(present, minlength=len(column.categories))
        levels = set(column.categories[counts > 0]) - set(missing)
        return cls(tuple(sorted(levels)))

    @property
    def vocab(self) -> int:
        """Number of ids, the unknown one included."""
        return len(self.levels) + 1

    def transform(self, values: pd.Series) -> np.ndarray:
        """(N,) values to (N,) int32 ids."""
        column = _categorical(values)

        # Each category is looked up once; one that is no level has position -1, so id 0.
        levels = pd.Index(self.levels, dtype=object)
        positions = levels.get_indexer(column.categories.astype(object))
        ids = positions + 1

        # The last entry is that of missing values, whose code is -1.
        ids = np.append(ids, UNKNOWN).astype(np.int32)
        return ids[column.codes]


@dataclass(frozen=True)
class Standardizer:
    """A numeric column to mean 0 and standard deviation 1 on train; NaN becomes 0, the mean."""

    mean: float  # mean on train, after the logarithm if there is one
    std: float  # standard deviation on train; 1 for a constant column
    # Whether ``log(1 + x)`` comes first, for skewed columns that are never negative.
    log: bool = False

    @classmethod
    def fit(cls, train: np.ndarray, log: bool = False) -> Standardizer:
        """Measure mean and deviation of (N,) values."""
        values = np.log1p(train) if log else np.asarray(train, np.float64)
        return cls(float(np.nanmean(values)), float(np.nanstd(values)) or 1.0, log)

    def transform(self, values: np.ndarray) -> np.ndarray:
        """(N,) values to (N,) float32. Under ``log``, negative values count as 0."""
        values = np.log1p(np.maximum(values, 0)) if self.log else np.asarray(values, np.float64)
        standardized = (values - self.mean) / self.std
        return np.nan_to_num(standardized).astype(np.float32)


@dataclass(frozen=True)
class MinMaxScaler:
    """A numeric column to [0, 1] on train; NaN becomes 0.

    Values beyond the range on train are not clipped.
    """

    low: float  # least value on train
    high: float  # greatest value on train

    @classmethod
    def fit(cls, train: np.ndarray) -> MinMaxScaler:
        """Measure the range of (N,) values."""
        return cls(float(np.nanmin(train)), float(np.nanmax(train)))

    def transform(self, values: np.ndarray) -> np.ndarray:
        """(N,) values to (N,) float32."""
        width = (self.high - self.low) or 1.0  # 1 for a constant column
        scaled = (np.asarray(values, np.float64) - self.low) / width
        return np.nan_to_num(scaled).astype(np.float32)


@dataclass(frozen=True)
class QuantileBins:
    """A numeric column to ids of bins with about equally many training rows each.

    NaN becomes :data:`UNKNOWN`.
    """

    edges: tuple[float, ...]  # increasing; bin ``i + 1`` holds ``edges[i - 1] <= x < edges[i]``

    @classmethod
    def fit(cls, train: np.ndarray, bins: int) -> QuantileBins:
        """Find the edges of about ``bins`` bins over (N,) values.

        With no more values than bins, each value is a bin. Else a value that alone fills a bin gets
        one of its own, and the quantiles are taken over the rest: a column that is zero for nearly
        every row keeps its resolution where it is not zero.
        """
        values = np.asarray(train, np.float64)
        values = values[~np.isnan(values)]
        distinct, counts = np.unique(values, return_counts=True)
        if len(distinct) <= bins:
            return cls(tuple(float(value) for value in distinct[1:]))

        # A frequent value is a bin of its own: from itself up to the next number there is.
        is_frequent = counts * bins > len(values)
        frequent = distinct[is_frequent]
        edges = [frequent, np.nextafter(frequent, np.inf)]

        # The bins that are left are quantiles of the rest.
        rest = np.repeat(distinct[~is_frequent], counts[~is_frequent])
        bins_left = bins - len(frequent)
        if len(rest) and bins_left > 1:
            shares = np.arange(1, bins_left) / bins_left
            edges.append(np.quantile(rest, shares, method="higher"))
        candidates = np.unique(np.concatenate(edges))

        # Of edges between the same two neighbouring values one is enough, and an edge below or
        # above all values separates nothing.
        positions = np.searchsorted(distinct, candidates)
        _, first = np.unique(positions, return_index=True)
        lowest, highest = distinct[0], distinct[-1]
        return cls(tuple(float(edge) for edge in candidates[first] if lowest < edge <= highest))

    @property
    def vocab(self) -> int:
        """Number of ids, the unknown one included."""
        return len(self.edges) + 2

    def transform(self, values: np.ndarray) -> np.ndarray:
        """(N,) values to (N,) int32 ids."""
        values = np.asarray(values, np.float64)
        ids = np.searchsorted(np.asarray(self.edges), values, side="right") + 1
        return np.where(np.isnan(values), UNKNOWN, ids).astype(np.int32)


@dataclass(frozen=True)
class QuantileRanks:
    """A numeric column to its rank on train, scaled to mean 0 and deviation 1; NaN becomes 0."""

    values: tuple[float, ...]  # rising values on train at evenly spaced ranks

    @classmethod
    def fit(cls, train: np.ndarray, points: int = 1001) -> QuantileRanks:
        """Find the values at so many ranks or fewer, of (N,) values without NaN."""
        if not len(train):
            return cls((0.0,))
        ranks = np.linspace(0, 1, min(points, len(train)))
        return cls(tuple(np.quantile(train, ranks).tolist()))

    def transform(self, values: np.ndarray) -> np.ndarray:
        """(N,) values to (N,) float32; equal values on train share the middle of their ranks."""
        middle = middle_ranks(np.asarray(values, np.float64), np.asarray(self.values))
        return np.nan_to_num((middle - 0.5) * np.sqrt(12)).astype(np.float32)


_SCALERS: dict[str, Any] = {
    kind.__name__: kind for kind in (Standardizer, MinMaxScaler, QuantileBins, QuantileRanks)
}


def as_json(scaler: Standardizer | MinMaxScaler | QuantileBins | QuantileRanks) -> dict[str, Any]:
    """The name and the numbers of an encoder of numbers, as plain values of JSON."""
    return {"name": type(scaler).__name__, **asdict(scaler)}


def from_json(values: dict[str, Any]) -> Any:
    """The inverse of :func:`as_json`."""
    numbers = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
        if key != "name"
    }
    return _SCALERS[values["name"]](**numbers)


def _categorical(values: pd.Series) -> pd.Categorical:
    """The column as codes and categories, without a copy if it is one already."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.array
    return pd.Categorical(values)
