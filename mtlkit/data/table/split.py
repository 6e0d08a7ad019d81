"""Which split each row goes to: at random, by time, whole groups at random, or as a column says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mtlkit.data.splits import NO_GROUP, SPLITS
from mtlkit.data.table.plan import TablePlan
from mtlkit.data.table.read import TIME, Columns, Table
from mtlkit.data.table.spec import Role, SplitSpec
from mtlkit.errors import UsageError

TRAIN, VALIDATION, TEST = range(3)
SAMPLE_ROWS = 1_000_000  # rows whose random numbers decide where a split at random is cut
COMMON_VALUES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training", "tr"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "te"),
}
"""Values of a column that tell the split."""


class Splitter(ABC):
    """Tells the split of each row.

    Attributes:
        columns: Columns that it reads.
    """

    columns: tuple[str, ...] = ()

    @abstractmethod
    def assign(self, batch: Columns, start: int, rows: int) -> np.ndarray:
        """(n,) uint8 positions in :data:`SPLITS` of the rows of a batch.

        Args:
            start: The number of its first row.
        """


class _CutSplit(Splitter):
    """Rows by a number of each: the lowest train, the highest test.

    Attributes:
        cuts: The numbers from which on rows are validation, and test.
    """

    cuts: tuple[int, int]

    @abstractmethod
    def numbers(self, batch: Columns, start: int, rows: int) -> np.ndarray:
        """(n,) integers of the rows of a batch; arguments as of :meth:`assign`."""

    def assign(self, batch: Columns, start: int, rows: int) -> np.ndarray:
        numbers = self.numbers(batch, start, rows)
        first, second = (numbers.dtype.type(cut) for cut in self.cuts)
        return (numbers >= first).astype(np.uint8) + (numbers >= second)


def make_splitter(table: Table, plan: TablePlan) -> Splitter:
    """The splitter that the spec asks for; where cuts depend on all rows, these are read.

    Raises:
        UsageError: The column of the split is not known, or holds what does not fit.
    """
    split = plan.spec.split
    shares = (split.validation, split.test)
    if split.by == "ratio":
        return RatioSplit(table.rows, split.seed, shares)
    if split.by == "time":
        return TimeSplit(table, _role_column(table, plan, "time"), shares)
    if split.by == "group":
        return GroupSplit(table, _role_column(table, plan, "user"), split.seed, shares)
    return ColumnSplit(table, split)


def _role_column(table: Table, plan: TablePlan, role: Role) -> str:
    """The column that the split names, or that has a role."""
    column = plan.spec.split.column or plan.roles.get(role)
    if column is None:
        by = plan.spec.split.by
        raise UsageError(
            f"The split by {by} needs to know the column of the {role} of a row in {table.label}.",
            f"--split-by {by}:COLUMN, with one of {', '.join(list(table.types)[:12])}",
        )
    return column


class RatioSplit(_CutSplit):
    """Rows at random, by a hash of their number."""

    def __init__(self, rows: int, seed: int, shares: tuple[float, float]) -> None:
        self.seed = seed
        self.cuts = cuts_of(self.numbers({}, 0, min(rows, SAMPLE_ROWS)), shares)

    def numbers(self, batch: Columns, start: int, rows: int) -> np.ndarray:
        return random_numbers(np.arange(start, start + rows, dtype=np.uint64), self.seed)


class TimeSplit(_CutSplit):
    """The earliest rows train, the latest test; rows of one time stay together."""

    def __init__(self, table: Table, column: str, shares: tuple[float, float]) -> None:
        self.columns, self.table = (column,), table
        times, start = [np.zeros(0, np.int64)], 0
        for batch in table.batches([column]):
            times.append(self.numbers(batch, start, len(batch[column])))
            start += len(times[-1])
        self.cuts = cuts_of(np.concatenate(times), shares)

    def numbers(self, batch: Columns, start: int, rows: int) -> np.ndarray:
        values = batch[self.columns[0]]
        if values.null_count:
            row = start + int(np.flatnonzero(values.is_null())[0]) + 1
            raise UsageError(
                f"The column {self.columns[0]!r} of {self.table.label} has no time in row {row}.",
                "fill it in or take the row out, or split in another way: --split-by ratio",
            )
        return as_times(values, self.columns[0], self.table.label)


class GroupSplit(_CutSplit):
    """Whole groups at random, such as users: no group is in two splits."""

    def __init__(self, table: Table, column: str, seed: int, shares: tuple[float, float]) -> None:
        self.columns, self.seed = (column,), seed
        distinct = np.zeros(0, np.uint64)
        for batch in table.batches([column]):
            distinct = np.union1d(distinct, self.numbers(batch, 0, 0))
        self.cuts = cuts_of(distinct, shares)

    def numbers(self, batch: Columns, start: int, rows: int) -> np.ndarray:
        return random_numbers(as_groups(batch[self.columns[0]]).view(np.uint64), self.seed)


class ColumnSplit(Splitter):
    """As a column says; where it names no validation, a share of train becomes that."""

    def __init__(self, table: Table, split: SplitSpec) -> None:
        assert split.column is not None
        column = split.column
        self.columns, self.seed, self.table = (column,), split.seed, table
        values = COMMON_VALUES | split.values
        self.split_of = {
            text.lower(): number for number, name in enumerate(SPLITS) for text in values[name]
        }
        seen = set()
        for batch in table.batches([column]):
            seen |= set(np.unique(self.assign(batch, 0, len(batch[column]), cut=0)).tolist())
        self.cut = 0 if VALIDATION in seen else int(split.validation * 2**64)

    def assign(self, batch: Columns, start: int, rows: int, cut: int | None = None) -> np.ndarray:
        encoded = pc.dictionary_encode(batch[self.columns[0]].cast(pa.string()))
        codes = [self._split(text) for text in encoded.dictionary.to_pylist()]
        if encoded.null_count:
            raise self._unknown(None)
        splits = np.array(codes, np.uint8)[encoded.indices.to_numpy()]

        # A share of the rows of train becomes validation.
        cut = self.cut if cut is None else cut
        if cut:
            numbers = random_numbers(np.arange(start, start + rows, dtype=np.uint64), self.seed)
            splits[(splits == TRAIN) & (numbers < np.uint64(cut))] = VALIDATION
        return splits

    def _split(self, text: str) -> int:
        split = self.split_of.get(text.lower())
        if split is None:
            raise self._unknown(text)
        return split

    def _unknown(self, text: str | None) -> UsageError:
        column = self.columns[0]
        value = "an empty value" if text is None else repr(text[:60])
        return UsageError(
            f"The column {column!r} of {self.table.label} holds {value}, "
            "and nothing says which split that is.",
            "in YAML, split: {by: column, column: "
            f"{column}, values: {{train: [...], validation: [...], test: [...]}}}}",
        )


# --- numbers


def cuts_of(values: np.ndarray, shares: Sequence[float]) -> tuple[int, int]:
    """The values from which on rows are validation, and test.

    Args:
        values: (n,) integers by which rows are ordered.
        shares: Of validation and of test.
    """
    count = len(values)
    if not count:
        return 0, 0
    # At least one row for each where there are three.
    test = min(max(1, round(shares[1] * count)), max(count - 2, 1))
    validation = min(max(1, round(shares[0] * count)), max(count - test - 1, 0))
    positions = sorted({max(count - test - validation, 0), count - test})
    ordered = np.partition(values, positions)
    return int(ordered[positions[0]]), int(ordered[positions[-1]])


def random_numbers(values: np.ndarray, seed: int) -> np.ndarray:
    """(n,) uint64 values to random numbers that depend on value and seed alone (splitmix64)."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def as_groups(values: pa.Array) -> np.ndarray:
    """(n,) int64 that tell groups apart: integers are themselves, all else is a 64-bit hash."""
    dtype = values.type
    if pa.types.is_integer(dtype) or dtype == TIME:
        # The bits of a uint64 stay what they are.
        integers = values.view(pa.int64())
        return integers.fill_null(NO_GROUP).to_numpy(zero_copy_only=False)
    encoded = pc.dictionary_encode(values)
    texts = encoded.dictionary.cast(pa.string()).to_numpy(zero_copy_only=False)
    hashes = pd.util.hash_array(texts.astype(object), categorize=False).view(np.int64)
    hashes = np.append(hashes, NO_GROUP)
    return hashes[encoded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)]


def as_times(values: pa.Array, column: str, label: str) -> np.ndarray:
    """(n,) int64 times: microseconds of dates, whole numbers as they are, millionths of others.

    Raises:
        UsageError: The column holds no times.
    """
    dtype = values.type
    if pa.types.is_floating(dtype):
        values = pc.multiply(values, 1e6)
        whole = pc.cast(pc.round(values), pa.int64(), safe=False)
        return whole.fill_null(NO_GROUP).to_numpy(zero_copy_only=False)
    if not (pa.types.is_integer(dtype) or dtype == TIME):
        raise UsageError(
            f"The column {column!r} of {label} holds values of type {dtype}, which are no times.",
            "write times as numbers or as 2024-05-31 12:00:00",
        )
    return as_groups(values)
