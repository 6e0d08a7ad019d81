"""Encoders of raw columns. Each is fitted on the training split and then only applied."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

UNKNOWN = 0
"""The id of a missing value and of a level that the training split does not hold."""


@dataclass(frozen=True)
class CategoryEncoder:
    """A categorical column to ids ``1..len(levels)``, in sorted order; any other value to
    :data:`UNKNOWN`.

    Args:
        levels: The levels seen on train, sorted.
    """

    levels: tuple[str, ...]

    @classmethod
    def fit(cls, train: pd.Series, missing: Collection[str] = ()) -> CategoryEncoder:
        """Collect the levels of a column; those in ``missing`` count as unknown."""
        column = _categorical(train)
        codes = column.codes[column.codes >= 0]
        counts = np.bincount(codes, minlength=len(column.categories))
        seen = set(column.categories[counts > 0])
        return cls(tuple(sorted(seen - set(missing))))

    @property
    def vocab(self) -> int:
        """Number of ids, the unknown one included."""
        return len(self.levels) + 1

    def transform(self, values: pd.Series) -> np.ndarray:
        """(N,) values to (N,) int32 ids."""
        column = _categorical(values)
        levels = pd.Index(self.levels, dtype=object)
        ids_of_categories = levels.get_indexer(column.categories.astype(object)) + 1
        ids = np.append(ids_of_categories, UNKNOWN).astype(np.int32)
        return ids[column.codes]  # a missing value has code -1, the last


@dataclass(frozen=True)
class Standardizer:
    """A numeric column to mean 0 and standard deviation 1 on train; NaN becomes 0, the mean.

    Args:
        mean: Mean on train, after the logarithm if there is one.
        std: Standard deviation on train; 1 for a constant column.
        log: Whether ``log(1 + x)`` comes first, for skewed columns that are never negative.
    """

    mean: float
    std: float
    log: bool = False

    @classmethod
    def fit(cls, train: np.ndarray, log: bool = False) -> Standardizer:
        """Measure mean and deviation of (N,) values."""
        values = np.log1p(train) if log else np.asarray(train, np.float64)
        return cls(float(np.nanmean(values)), float(np.nanstd(values)) or 1.0, log)

    def transform(self, values: np.ndarray) -> np.ndarray:
        """(N,) values to (N,) float32. Under ``log``, negative values count as 0."""
        values = np.log1p(np.maximum(values, 0)) if self.log else np.asarray(values, np.float64)
        return np.nan_to_num((values - self.mean) / self.std).astype(np.float32)


@dataclass(frozen=True)
class MinMaxScaler:
    """A numeric column to [0, 1] on train; values beyond train's range are not clipped, NaN becomes
    0.

    Args:
        low: Least value on train.
        high: Greatest value on train.
    """

    low: float
    high: float

    @classmethod
    def fit(cls, train: np.ndarray) -> MinMaxScaler:
        """Measure the range of (N,) values."""
        return cls(float(np.nanmin(train)), float(np.nanmax(train)))

    def transform(self, values: np.ndarray) -> np.ndarray:
        """(N,) values to (N,) float32."""
        width = (self.high - self.low) or 1.0
        return np.nan_to_num((np.asarray(values, np.float64) - self.low) / width).astype(np.float32)


@dataclass(frozen=True)
class QuantileBins:
    """A numeric column to ids of bins with about equal numbers of training rows; NaN to
    :data:`UNKNOWN`.

    Args:
        edges: Increasing; bin ``i + 1`` holds ``edges[i - 1] <= x < edges[i]``.
    """

    edges: tuple[float, ...]

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

        # Every value a bin.
        if len(distinct) <= bins:
            return cls(tuple(float(value) for value in distinct[1:]))

        # A value that fills a bin has one of its own.
        fills_bin = counts * bins > len(values)
        heavy = distinct[fills_bin]
        edges = [heavy, np.nextafter(heavy, np.inf)]

        # Quantiles of the other values share the bins that are left.
        rest = np.repeat(distinct[~fills_bin], counts[~fills_bin])
        bins_left = bins - len(heavy)
        if len(rest) and bins_left > 1:
            shares = np.arange(1, bins_left) / bins_left
            edges.append(np.quantile(rest, shares, method="higher"))

        # Of edges between the same two neighbouring values, one is enough.
        inner = np.unique(np.concatenate(edges))
        _, first = np.unique(np.searchsorted(distinct, inner), return_index=True)
        is_inside = (inner[first] > distinct[0]) & (inner[first] <= distinct[-1])
        return cls(tuple(float(edge) for edge in inner[first][is_inside]))

    @property
    def vocab(self) -> int:
        """Number of ids, the unknown one included."""
        return len(self.edges) + 2

    def transform(self, values: np.ndarray) -> np.ndarray:
        """(N,) values to (N,) int32 ids."""
        values = np.asarray(values, np.float64)
        ids = np.searchsorted(np.asarray(self.edges), values, side="right") + 1
        return np.where(np.isnan(values), UNKNOWN, ids).astype(np.int32)


def _categorical(values: pd.Series) -> pd.Categorical:
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.array
    return pd.Categorical(values)
