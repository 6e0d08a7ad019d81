"""From a table to packed splits, in two passes: encoders see the training rows, then all rows are
encoded and written. Memory holds a batch, the vocabularies, and a number a row where the split asks
for one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from mtlkit.data.datasets._source import Progress, no_progress
from mtlkit.data.splits import SPLITS, Dataset, Split, stack_columns
from mtlkit.data.storage import SplitFiles, fingerprint_folder, read_dataset, write_manifest
from mtlkit.data.table.column import BadValueError, ColumnEncoder, Encoded
from mtlkit.data.table.labels import LabelEncoder, check_numbers, find_labels
from mtlkit.data.table.plan import TablePlan, file_name, make_plan
from mtlkit.data.table.read import Columns, Table, open_frame
from mtlkit.data.table.row_encoders import RowEncoders, make_encoder
from mtlkit.data.table.spec import TableSpec
from mtlkit.data.table.split import (
    TEST,
    TRAIN,
    VALIDATION,
    Splitter,
    as_groups,
    as_times,
    make_splitter,
)
from mtlkit.data.types import Feature, Schema
from mtlkit.errors import MissingError, UsageError

MIN_ROWS = 3  # one for each split
NAMED_VALUES = 1000  # values of a group whose names are noted
T = TypeVar("T")


def encode_frame(frame: Any, spec: TableSpec, name: str = "frame") -> Dataset:
    """Prepare a pandas frame or an Arrow table, in memory.

    Raises:
        MtlkitError: A column or a value is not what the spec says.
    """
    table = open_frame(frame, name, spec.drop)
    with tempfile.TemporaryDirectory(prefix="mtlkit-") as folder:
        prepare_table(table, spec, Path(folder), name)
        mapped = read_dataset(Path(folder))
        splits = {
            split: Split.from_arrays({key: np.array(a) for key, a in arrays.arrays().items()})
            for split, arrays in mapped.splits.items()
        }
        row_encoders = mapped.encoders_as_json()
    return replace(mapped, splits=splits, encoders=row_encoders)


def prepare_table(
    table: Table,
    spec: TableSpec,
    folder: Path,
    name: str,
    options: dict[str, Any] | None = None,
    progress: Progress = no_progress,
) -> Dataset:
    """Write the splits of a table into an empty folder, the manifest last; returns the data set
    without its arrays.

    Raises:
        MtlkitError: A column or a value is not what the spec says.
    """
    if table.rows < MIN_ROWS:
        raise MissingError(
            f"{table.label} has {table.rows} rows, and a split needs one each for "
            "train, validation and test.",
            "give it more rows",
        )
    plan = make_plan(table, spec)
    labels = LabelEncoder(find_labels(table, spec), table.rows)
    splitter = make_splitter(table, plan)
    encoders = [make_encoder(column, table.rows) for column in plan.inputs]
    passes = _Passes(table, plan, splitter, encoders, labels, progress)
    rows = passes.fit()

    # What the encoders have seen decides on the schema.
    features = _features(encoders, table)
    funnel = tuple(file_name(step) for step in spec.funnel) or None
    schema = Schema(features=features, tasks=labels.tasks, funnel=funnel)
    entries = passes.write(folder, schema)
    digest = fingerprint_folder(folder, schema, entries)
    details = _details(plan, rows) | {"group names": passes.group_names}
    row_encoders = RowEncoders(tuple(encoders), spec).as_json()
    dataset = Dataset(name, schema, {}, digest, details=details, encoders=row_encoders)
    write_manifest(folder, dataset, options or {}, entries)
    return dataset


def _features(encoders: Sequence[ColumnEncoder], table: Table) -> tuple[Feature, ...]:
    """The features of all columns, whose names must differ."""
    features = [feature for encoder in encoders for feature in encoder.features]
    names = [feature.name for feature in features]
    for feature in features:
        if names.count(feature.name) > 1:
            raise UsageError(
                f"Two inputs of {table.label} would be called {feature.name!r}.",
                "rename a column, or leave one out: --drop",
            )
    return tuple(features)


def _details(plan: TablePlan, rows: np.ndarray) -> dict[str, Any]:
    """What the manifest says about the preparation, for the card and the lints."""
    split = plan.spec.split
    return {
        "table": {
            "rows": int(rows.sum()),
            "columns": {column.name: column.kind for column in plan.inputs},
            "guessed": [column.name for column in plan.inputs if not column.is_given],
            "integers": [
                column.name for column in plan.inputs if pa.types.is_integer(column.dtype)
            ],
            "left out": plan.left_out,
            "roles": plan.roles,
            "split": {"by": split.by, "column": split.column},
        }
    }


class _Passes:
    """The two passes over the rows of a table, the columns of each batch in threads."""

    def __init__(
        self,
        table: Table,
        plan: TablePlan,
        splitter: Splitter,
        encoders: Sequence[ColumnEncoder],
        labels: LabelEncoder,
        progress: Progress,
    ) -> None:
        self.table, self.plan, self.splitter = table, plan, splitter
        self.encoders, self.labels, self.progress = encoders, labels, progress
        self.group_names: dict[str, dict[str, str]] = {}
        inputs = [encoder.plan.name for encoder in encoders]
        other = {*labels.columns, *splitter.columns, *plan.groups.values()}
        self.as_codes = {
            encoder.plan.name
            for encoder in encoders
            if encoder.plan.kind == "id" and encoder.plan.name not in other
        }
        self.seen_columns = _once([*inputs, *labels.columns, *splitter.columns])
        self.columns = _once([*self.seen_columns, *plan.spec.weights, *plan.groups.values()])

    def fit(self) -> np.ndarray:
        """Show the training rows to the encoders; returns the number of rows of each split.

        Raises:
            MtlkitError: A value does not fit, or a split has no rows.
        """
        rows = np.zeros(len(SPLITS), np.int64)
        with _threads() as run:
            for start, batch, splits in self._batches(self.seen_columns, "counting"):
                rows += np.bincount(splits, minlength=len(SPLITS))
                is_train = splits == TRAIN
                run(partial(self._see, batch, start, is_train), self.encoders)
                for label in self.labels.labels:
                    check_numbers(self.table, label, batch[label.column], start)
                self.labels.see(batch, is_train)
        for encoder in self.encoders:
            encoder.settle()
        self._check_rows(rows)
        return rows

    def write(self, folder: Path, schema: Schema) -> dict[str, Any]:
        """Encode all rows into the files of their splits; returns the entries of the manifest."""
        with ExitStack() as stack:
            run = stack.enter_context(_threads())
            files = self._files(stack, folder, schema)
            for start, batch, splits in self._batches(self.columns, "writing"):
                encoded = run(partial(self._encode, batch, start), self.encoders)
                arrays = self._pack(batch, encoded, start)
                # Each row of a bag weighs 1 in all: its embedding is a mean.
                bags = [(*part.bag, _shares(part.bag[0])) for part in encoded if part.bag]
                for position, split in enumerate(files.values()):
                    split.write(arrays, bags, splits == position)
        return {name: split.entry(schema.task_names) for name, split in files.items()}

    def _files(self, stack: ExitStack, folder: Path, schema: Schema) -> dict[str, SplitFiles]:
        """The growing files of each split."""
        tasks = len(schema.tasks)
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "ids": (np.int32, (len(schema.of_kind("id")),)),
            "dense": (np.float32, (len(schema.of_kind("dense")),)),
            "labels": (np.float32, (tasks,)),
            "observed": (bool, (tasks,)),
        }
        if self.plan.spec.weights:
            has_own = any(label.row_weight for label in self.plan.spec.labels.values())
            shapes["weight"] = (np.float32, (tasks,) if has_own else ())
        for group in self.plan.groups:
            shapes[f"group-{group}"] = (np.int64, ())
        bags = [feature.name for feature in schema.of_kind("bag")]
        return {name: SplitFiles(stack, folder, name, shapes, bags) for name in SPLITS}

    def _batches(
        self, columns: Sequence[str], activity: str
    ) -> Iterator[tuple[int, Columns, np.ndarray]]:
        """The number of the first row, the columns, and the split of each row, batch by batch."""
        start = 0
        for batch in self.table.batches(columns, self.as_codes):
            rows = len(next(iter(batch.values())))
            yield start, batch, self.splitter.assign(batch, start, rows)
            start += rows
            self.progress(f"{activity} rows of {self.table.label}", start, self.table.rows)

    def _see(
        self, batch: Columns, start: int, is_train: np.ndarray, encoder: ColumnEncoder
    ) -> None:
        values = batch[encoder.plan.name]
        if not is_train.all():
            values = values.filter(pa.array(is_train))
        try:
            encoder.see(values)
        except BadValueError as error:
            row = start + int(np.flatnonzero(is_train)[error.position])
            raise self._bad_value(encoder, error, row) from None

    def _encode(self, batch: Columns, start: int, encoder: ColumnEncoder) -> Encoded:
        try:
            return encoder.encode(batch[encoder.plan.name])
        except BadValueError as error:
            raise self._bad_value(encoder, error, start + error.position) from None

    def _bad_value(self, encoder: ColumnEncoder, error: BadValueError, row: int) -> MissingError:
        column = f"The column {encoder.plan.name!r} of {self.table.label}"
        return MissingError(f"{column} {error.what} in row {row + 1}.", error.mend)

    def _pack(
        self, batch: Columns, encoded: Sequence[Encoded], start: int
    ) -> dict[str, np.ndarray]:
        """The arrays of a batch, all but its bags."""
        labels, observed = self.labels.encode(batch, len(next(iter(batch.values()))))
        rows = len(labels)
        ids = [column for part in encoded for column in part.ids]
        dense = [column for part in encoded for column in part.dense]
        arrays = {
            "ids": stack_columns(ids, rows, np.int32),
            "dense": stack_columns(dense, rows, np.float32),
            "labels": labels,
            "observed": observed,
        }
        if self.plan.spec.weights:
            arrays["weight"] = self._weights(batch, start)
        for name, column in self.plan.groups.items():
            arrays[f"group-{name}"] = self._group(name, batch[column], column)
        return arrays

    def _group(self, name: str, values: pa.Array, column: str) -> np.ndarray:
        if name == "time" and self.plan.roles.get("time") == column:
            return as_times(values, column, self.table.label)
        if column in self.plan.spec.groups and not pa.types.is_integer(values.type):
            self._note_names(name, values.drop_null().unique())
        return as_groups(values)

    def _note_names(self, group: str, distinct: pa.Array) -> None:
        """Note what the codes of a group stand for, as long as they are few: for reports."""
        names = self.group_names.setdefault(group, {})
        if len(names) < NAMED_VALUES and len(distinct) < NAMED_VALUES:
            codes = map(str, as_groups(distinct).tolist())
            names.update(zip(codes, map(str, distinct.to_pylist()), strict=True))

    def _weights(self, batch: Columns, start: int) -> np.ndarray:
        """Float32 row weights (n,), or (n, T) where a label has a column of its own."""
        spec = self.plan.spec
        columns = {name: self._weight(name, batch[name], start) for name in spec.weights}
        common = columns[spec.weight] if spec.weight is not None else np.float32(1)
        own = [label.row_weight for label in spec.labels.values()]
        if not any(own):
            return columns[str(spec.weight)]
        rows = len(next(iter(columns.values())))
        of_labels = [np.ones(rows, np.float32) if name is None else columns[name] for name in own]
        return np.column_stack(of_labels) * np.reshape(common, (-1, 1))

    def _weight(self, name: str, values: pa.Array, start: int) -> np.ndarray:
        """(n,) float32 row weights of a column."""
        is_number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
        weights = values.cast(pa.float64()).to_numpy(zero_copy_only=False) if is_number else None
        is_wrong = np.ones(1, bool) if weights is None else ~(np.isfinite(weights) & (weights >= 0))
        if weights is None or is_wrong.any():
            row = start + int(is_wrong.argmax())
            raise MissingError(
                f"The weight {name!r} of {self.table.label} is no number of 0 or "
                f"more in row {row + 1}.",
                "correct it, or do without weights",
            )
        return weights.astype(np.float32)

    def _check_rows(self, rows: np.ndarray) -> None:
        """Raise a :class:`UsageError` for a split without rows."""
        for position in (TRAIN, VALIDATION, TEST):
            if not rows[position]:
                split = self.plan.spec.split
                by = f"{split.by}:{split.column}" if split.column else split.by
                raise UsageError(
                    f"The split by {by} leaves no rows of {self.table.label} for "
                    f"{SPLITS[position]}.",
                    "--split-by ratio, or larger shares of validation and test",
                )


def _shares(lengths: np.ndarray) -> np.ndarray:
    """(m,) float32 weights of the entries of bags of (n,) lengths, which sum to 1 in each."""
    return np.repeat(1 / np.maximum(lengths, 1), lengths).astype(np.float32)


def _once(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))


@contextmanager
def _threads() -> Iterator[Callable[[Callable[[T], Any], Sequence[T]], list[Any]]]:
    """A function like ``map`` that works in as many threads as there are cores."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield lambda function, values: list(pool.map(function, values))
