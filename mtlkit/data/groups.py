"""Groups of rows for metrics: users, sessions and items, and the segments that rows belong to."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mtlkit.data.splits import NO_GROUP, Dataset
from mtlkit.data.types import Schema
from mtlkit.metrics.grouped import MOST_GROUPS

ROLES = ("user", "session", "item", "domain")  # roles of features whose ids group rows
COUNTED = ("user", "item")  # groups whose segments are the cold and the warm ones
COLD_ROWS = 5  # users and items with fewer training rows are cold
MOST_SEGMENTS = 8  # values of a column that are segments of their own: those with the most rows
MOST_VALUES = 1000  # a column of more values is none that divides rows into segments


def group_names(dataset: Dataset) -> tuple[str, ...]:
    """The groups by which metrics of a data set can be measured."""
    named = [name for name in dataset.splits["test"].groups if name != "time"]
    of_roles = [role for role in ROLES if role_column(dataset.schema, role) is not None]
    return tuple(dict.fromkeys([*named, *of_roles]))


def role_column(schema: Schema, role: str) -> int | None:
    """The column of ids that tells who a row is about: of several with the role, the one with the
    most ids; None without any.
    """
    features = schema.of_kind("id")
    columns = [column for column, feature in enumerate(features) if feature.role == role]
    return max(columns, key=lambda column: features[column].vocab, default=None)


class RowGroups:
    """Which groups and segments the rows of a split belong to. Codes are read when asked for.

    Args:
        dataset: Packed splits.
        split: Name of the split.
        rows: (n,) some rows of it, or None for all.
    """

    def __init__(self, dataset: Dataset, split: str, rows: np.ndarray | None = None) -> None:
        self.dataset, self.split, self.rows = dataset, split, rows
        self._codes: dict[str, np.ndarray] = {}
        self._segments: dict[str, dict[str, np.ndarray]] = {}

    def take(self, rows: np.ndarray) -> RowGroups:
        """The groups of some rows of the split."""
        return RowGroups(self.dataset, self.split, rows)

    def codes(self, group: str) -> np.ndarray:
        """(n,) int64 codes from 0 on that tell the groups apart; -1 for rows of no known group."""
        if group not in self._codes:
            values = self._values(group)
            is_missing = values == NO_GROUP
            values = np.where(is_missing, 0, values)
            fits = values.min(initial=0) >= 0 and values.max(initial=0) < MOST_GROUPS
            codes = values if fits else _factorize(values)
            self._codes[group] = np.where(is_missing, -1, codes)
        return self._codes[group]

    def segments(self, column: str) -> dict[str, np.ndarray]:
        """Segment, such as ``user=cold`` or ``country=DE``, to whether each row (n,) is in it.

        Users and items are cold or warm by their training rows; another column divides rows by its
        values. What holds all rows, or none, is no segment.
        """
        if column not in self._segments:
            divide = self._by_training_rows if column in COUNTED else self._by_value
            self._segments[column] = {
                f"{column}={name}": is_in
                for name, is_in in divide(column)
                if is_in.any() and not is_in.all()
            }
        return self._segments[column]

    @property
    def names(self) -> tuple[str, ...]:
        """The groups by which rows can be told apart."""
        return group_names(self.dataset)

    def all_segments(self) -> tuple[str, ...]:
        """The names of all segments of these rows."""
        columns = [name for name in self.names if name != "session"]
        return tuple(segment for column in columns for segment in self.segments(column))

    def segment(self, name: str) -> np.ndarray:
        """(n,) whether each row is in a segment; of one that these rows do not have, none is."""
        is_in = self.segments(name.partition("=")[0]).get(name)
        rows = len(self.dataset.splits[self.split]) if self.rows is None else len(self.rows)
        return np.zeros(rows, bool) if is_in is None else is_in

    def _by_training_rows(self, group: str) -> Iterator[tuple[str, np.ndarray]]:
        """Cold and warm users, or items."""
        values = self._values(group)
        import pandas as pd

        counts = pd.Series(group_values(self.dataset, "train", group)).value_counts()
        training_rows = counts.reindex(values, fill_value=0).to_numpy()

        # An id that is not known was too rare in training to have a number.
        is_cold = (values == NO_GROUP) | (training_rows < COLD_ROWS)
        yield "cold", is_cold
        yield "warm", ~is_cold

    def _by_value(self, column: str) -> Iterator[tuple[str, np.ndarray]]:
        """The values of a column with the most rows."""
        values = self._values(column)
        if len(np.unique(values[: 100 * MOST_VALUES])) > MOST_VALUES:
            return
        distinct, counts = np.unique(values, return_counts=True)
        names = self.dataset.details.get("group names", {}).get(column, {})
        for value in distinct[np.argsort(-counts, kind="stable")][:MOST_SEGMENTS]:
            name = "missing" if value == NO_GROUP else names.get(str(value), str(value))
            yield name, values == value

    def _values(self, group: str) -> np.ndarray:
        """(n,) values of a group."""
        values = group_values(self.dataset, self.split, group)
        return values if self.rows is None else values[self.rows]


def group_values(dataset: Dataset, split: str, group: str) -> np.ndarray:
    """(N,) int64 that tell groups apart in all splits alike; ``NO_GROUP`` where none is known."""
    packed = dataset.splits[split]
    if group in packed.groups:
        return np.asarray(packed.groups[group])
    column = role_column(dataset.schema, group)
    assert column is not None

    # The columns that rows share come after those of a row.
    own = packed.ids.shape[1]
    if column < own:
        ids = packed.ids[:, column]
    else:
        assert packed.shared is not None
        ids = packed.shared.ids[:, column - own][packed.shared.row]
    return np.where(ids == 0, NO_GROUP, ids.astype(np.int64))


def _factorize(values: np.ndarray) -> np.ndarray:
    """(N,) codes from 0 on of any integers."""
    import pandas as pd

    return pd.factorize(values)[0]
