"""The encoders of a data set, to be kept with a run: raw rows become what its model reads.

Raw rows are a table: a column of ids or numbers an input. Of data whose rows are not encoded here,
such as generated ones, a column of ids or numbers as the model reads them a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mtlkit.data.encoders import CategoryEncoder, MinMaxScaler, QuantileBins, Standardizer, as_json
from mtlkit.data.splits import Bag, Split, stack_columns
from mtlkit.data.table.column import BadValueError, ColumnEncoder, Encoded
from mtlkit.data.table.files import find_files, kind_of
from mtlkit.data.table.id_columns import BagEncoder, DateEncoder, IdEncoder
from mtlkit.data.table.number_columns import NumberEncoder, VectorEncoder
from mtlkit.data.table.plan import SEPARATORS, ColumnPlan, find_separator, split_texts
from mtlkit.data.table.read import (
    Columns,
    Table,
    is_list,
    open_frame,
    open_parquet,
    to_type,
    type_named,
)
from mtlkit.data.table.spec import TableSpec, Transform
from mtlkit.data.table.text import find_dialect, opened, reading
from mtlkit.data.types import Schema
from mtlkit.errors import MissingError

Fitted = CategoryEncoder | QuantileBins | Standardizer | MinMaxScaler
FORMAT = 1
TEXT_OPTIONS = ("separator", "header", "columns", "missing")
"""The fields of a ``TableSpec`` that say how a CSV file is written."""
HINT = "give the columns of the table that the run was trained on; labels are not needed"


@dataclass(frozen=True)
class RowEncoders:
    """The encoders of all inputs, settled."""

    # One an input column; the order of what they make of each kind is that of the packed columns. A
    # raw column may have several.
    columns: tuple[ColumnEncoder, ...]
    text: TableSpec = field(default_factory=TableSpec)  # how CSV files of such rows are written

    @classmethod
    def of_schema(cls, schema: Schema) -> RowEncoders:
        """Those of rows that are encoded already, with a column a feature. The weights of a bag
        stand in the column ``<bag>-weights``, or are 1.
        """
        columns: list[ColumnEncoder] = []
        for feature in schema.features:
            if feature.kind == "dense":
                columns.append(numbers(feature.name, Standardizer(0.0, 1.0)))
                continue
            dtype = pa.list_(pa.int64()) if feature.kind == "bag" else pa.int64()
            weights = f"{feature.name}-weights" if feature.kind == "bag" else None
            plan = ColumnPlan(
                feature.name, feature.kind, dtype, known=feature.vocab, weights=weights
            )
            columns.append(_settled(plan, {}))
        return cls(tuple(columns))

    @classmethod
    def of_fitted(cls, fitted: Sequence[tuple[str, Fitted]]) -> RowEncoders:
        """Those of columns of text and numbers, whose fitted encoders take any text for a level."""
        columns = (
            levels(column, encoder.levels)
            if isinstance(encoder, CategoryEncoder)
            else numbers(column, encoder)
            for column, encoder in fitted
        )
        return cls(tuple(columns), TableSpec(missing=()))

    @property
    def names(self) -> list[str]:
        """The columns that rows must have."""
        return list(dict.fromkeys(encoder.plan.name for encoder in self.columns))

    @property
    def _all_names(self) -> list[str]:
        """The same, and those that they may have."""
        weights = [encoder.plan.weights for encoder in self.columns]
        return [*self.names, *(name for name in weights if name is not None)]

    # --- as JSON

    def as_json(self) -> dict[str, Any]:
        """Plain values of JSON."""
        columns = [
            {"plan": _plan_as_json(encoder.plan), "state": encoder.state_dict()}
            for encoder in self.columns
        ]
        text = self.text.model_dump(mode="json", include=set(TEXT_OPTIONS))
        return {"format": FORMAT, "text": text, "columns": columns}

    @classmethod
    def from_json(cls, values: dict[str, Any], schema: Schema) -> RowEncoders:
        """The inverse of :meth:`as_json`.

        Raises:
            ValueError: These are no encoders, or not those of the schema.
        """
        try:
            if values["format"] != FORMAT:
                raise ValueError("they are of another format")
            columns = [
                _settled(_plan_from_json(column["plan"]), column["state"])
                for column in values["columns"]
            ]
            encoders = cls(tuple(columns), TableSpec.model_validate(values["text"]))
        except (KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            raise ValueError(f"they are damaged: {type(error).__name__} {error}") from error

        made = [feature for encoder in columns for feature in encoder.features]
        for kind in ("id", "bag", "dense"):
            sizes = [feature.vocab for feature in made if feature.kind == kind]
            if sizes != [feature.vocab for feature in schema.of_kind(kind)]:
                raise ValueError(f"they make other {kind} features than the model reads")
        return encoders

    # --- rows

    def open(self, rows: Any) -> Table:
        """A table of rows, whose columns are looked for.

        Raises:
            MtlkitError: It cannot be read, or lacks a column.
        """
        if not isinstance(rows, (str, Path)):
            table = open_frame(rows, "the frame", wanted=self._all_names)
        else:
            table = self._open_files(find_files(str(rows)), str(rows))
        for name in self.names:
            if name not in table.types:
                raise MissingError(f"{table.label} has no column {name!r}.", HINT)
        return table

    def batches(self, table: Table, size: int) -> Iterator[Split]:
        """The rows as packed splits of at most so many rows, without labels.

        Raises:
            MissingError: A value cannot be encoded.
        """
        wanted = [name for name in self._all_names if name in table.types]
        start = 0
        for batch in table.batches(wanted, rows=size):
            rows = len(next(iter(batch.values())))
            for first in range(0, rows, size):
                part = {name: values.slice(first, size) for name, values in batch.items()}
                yield self._pack(part, table.label, start + first)
            start += rows

    def _pack(self, batch: Columns, label: str, start: int) -> Split:
        """The arrays of a batch whose first row is ``start``."""
        rows = len(next(iter(batch.values())))
        ids, dense, bags = [], [], {}
        for encoder in self.columns:
            encoded = _encode(encoder, batch[encoder.plan.name], label, start)
            ids += encoded.ids
            dense += encoded.dense
            if encoded.bag is not None:
                bags[encoder.features[0].name] = _bag(encoder.plan, encoded.bag, batch, label)
        return Split(
            ids=stack_columns(ids, rows, np.int32),
            dense=stack_columns(dense, rows, np.float32),
            labels=np.zeros((rows, 0), np.float32),
            observed=np.zeros((rows, 0), bool),
            bags=bags,
        )

    def _open_files(self, files: Sequence[Path], label: str) -> Table:
        if kind_of(files[0]) == "parquet":
            return open_parquet(files, label, wanted=self._all_names)

        # Values stay text until their encoder has a look: 007 is a word where others are.
        dialect = find_dialect(files[0], self.text)
        texts = dict.fromkeys(dialect.names, pa.string())

        def read(columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
            for file in files:
                with reading(file, dialect), opened(file) as (text, _):
                    for batch in dialect.open(text, texts):
                        if missing := set(columns) - set(batch.schema.names):
                            message = f"{file} has no column {min(missing)!r}."
                            raise MissingError(message, HINT)
                        yield batch

        return Table(label, texts, 0, read)


def make_encoder(plan: ColumnPlan, rows: int) -> ColumnEncoder:
    """The encoder of a column of a table with so many rows."""
    if plan.kind == "dense":
        return NumberEncoder(plan, rows)
    kinds: dict[str, Callable[[ColumnPlan], ColumnEncoder]] = {
        "id": IdEncoder,
        "bag": BagEncoder,
        "date": DateEncoder,
        "vector": VectorEncoder,
    }
    return kinds[plan.kind](plan)


# --- encoders from what other preparations have fitted


def levels(column: str, names: Sequence[Any]) -> ColumnEncoder:
    """A column of levels, texts or whole numbers, numbered from 1 in this order."""
    plain = [name if isinstance(name, str) else int(name) for name in names]
    dtype = pa.int64() if plain and isinstance(plain[0], int) else pa.string()
    state = {"type": str(dtype), "levels": plain, "missing": False}
    return _settled(ColumnPlan(column, "id", dtype), state)


def numbers(column: str, scaler: Standardizer | MinMaxScaler | QuantileBins) -> ColumnEncoder:
    """A column of numbers, as numbers or as ids of bins."""
    is_binned = isinstance(scaler, QuantileBins)
    transform: Transform = "bins" if is_binned else "standard"
    plan = ColumnPlan(column, "dense", pa.float64(), transform=transform)
    return _settled(plan, {"scaler": as_json(scaler), "has_missing": False})


def bag(column: str, names: Sequence[int]) -> ColumnEncoder:
    """A column of lists of ids, whose weights stand in the column ``<column>-weights``."""
    plan = ColumnPlan(column, "bag", pa.list_(pa.int64()), weights=f"{column}-weights")
    return _settled(plan, {"type": "int64", "levels": list(names), "missing": False})


def _settled(plan: ColumnPlan, state: dict[str, Any]) -> ColumnEncoder:
    encoder = make_encoder(plan, rows=1)
    encoder.load_state_dict(state)
    return encoder


def _plan_as_json(plan: ColumnPlan) -> dict[str, Any]:
    """The fields of a plan that are not the default."""
    defaults = {field.name: field.default for field in fields(plan)}
    values = {name: value for name, value in vars(plan).items() if value != defaults[name]}
    return values | {"dtype": str(plan.dtype)}


def _plan_from_json(values: dict[str, Any]) -> ColumnPlan:
    """The inverse of :func:`_plan_as_json`."""
    tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return ColumnPlan(**values | tuples | {"dtype": type_named(values["dtype"])})


# --- values of rows that training never saw


def _encode(encoder: ColumnEncoder, values: pa.Array, label: str, start: int) -> Encoded:
    """Encode values of any type that stands for those of training."""
    plan = encoder.plan
    column = f"The column {plan.name!r} of {label}"
    try:
        return encoder.encode(_as_trained(values, plan))
    except BadValueError as error:
        message = f"{column} {error.what} in row {start + error.position + 1}."
        raise MissingError(message, error.mend) from None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        message = f"{column} cannot be read as {plan.kind} after row {start + 1}: {reason}."
        raise MissingError(message, "correct it, or leave such rows out") from None


def _as_trained(values: pa.Array, plan: ColumnPlan) -> pa.Array:
    """Values in the type that the encoder has seen, where it does not look for it itself."""
    if plan.kind == "dense":
        is_bool = pa.types.is_boolean(plan.dtype)
        return to_type(values, plan.dtype if is_bool else pa.float64())
    if plan.kind == "date" or plan.buckets:
        return to_type(values, plan.dtype)
    return values


def _bag(
    plan: ColumnPlan, encoded: tuple[np.ndarray, np.ndarray], batch: Columns, label: str
) -> Bag:
    """The bags of a batch with their weights."""
    lengths, ids = encoded
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if plan.weights is None:
        # Each row of a bag weighs 1 in all.
        return Bag(offsets, ids, np.repeat(1 / np.maximum(lengths, 1), lengths).astype(np.float32))
    if plan.weights not in batch:
        return Bag(offsets, ids, np.ones(len(ids), np.float32))
    lists = batch[plan.weights]
    if not is_list(lists.type):
        lists = split_texts(lists, find_separator(lists, SEPARATORS) or "|")
    weights = to_type(lists.flatten(), pa.float64()).to_numpy(zero_copy_only=False)
    if not np.array_equal(lists.value_lengths().fill_null(0).to_numpy(), lengths):
        message = f"The lists in {plan.weights!r} and {plan.name!r} of {label} differ in length."
        raise MissingError(message, "give each id of a row one weight")
    return Bag(offsets, ids, weights.astype(np.float32))
