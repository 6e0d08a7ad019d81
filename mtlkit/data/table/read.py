"""Tables as batches of columns of few types, from Parquet files, staged text, frames or Arrow.

Whatever a table comes from, its batches can be read more than once, in one order, a few columns at
a time, in bounded memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

from mtlkit.errors import MissingError, UsageError

BATCH_VALUES = 1 << 23  # values in a batch, over all of its columns
TIME = pa.timestamp("us")
TEXT_CODES = pa.dictionary(pa.int32(), pa.string())
Columns = dict[str, pa.Array]  # column to its values in the rows of a batch
BatchReader = Callable[[Sequence[str], int], Iterator[pa.RecordBatch]]
"""Yields batches of some columns, of about so many rows."""


@dataclass(frozen=True)
class Table:
    """Rows of a table, which can be read more than once."""

    label: str  # what messages call it: the path as typed
    # Column to its type, one of int64, uint64, float64, bool, string, timestamp, null, or a list of
    # such.
    types: dict[str, pa.DataType]
    rows: int  # how many there are
    read: BatchReader  # yields batches in the order of the rows, in types of their own
    # Whether whole numbers may have become floats, as in a frame with missing values.
    whole_floats: bool = True

    def batches(
        self, columns: Sequence[str], as_codes: Collection[str] = (), rows: int | None = None
    ) -> Iterator[Columns]:
        """Batches of some columns, cast to their types.

        Args:
            columns: Their names.
            as_codes: Columns of text that may come as codes into a dictionary of each batch.
            rows: About how many make a batch; by default, as many as memory allows.

        Raises:
            MissingError: A value is damaged or does not fit the type of its column.
        """
        size = rows or max(1024, BATCH_VALUES // max(1, len(columns)))
        start = 0
        for batch in self.read(columns, size):
            yield {
                name: self._cast(
                    name, batch.column(batch.schema.get_field_index(name)), start, name in as_codes
                )
                for name in columns
            }
            start += batch.num_rows

    def _cast(self, name: str, values: pa.Array, start: int, as_codes: bool) -> pa.Array:
        """Values of a batch whose first row is ``start``, in the type of their column."""
        if as_codes and values.type == TEXT_CODES and not values.dictionary.null_count:
            return values
        try:
            return to_type(values, self.types[name])
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise MissingError(
                f"The column {name!r} of {self.label} cannot be read after "
                f"row {start + 1}: {reason}.",
                f"correct it, or leave the column out: --drop {name}",
            ) from None


# --- types


def canonical_type(dtype: pa.DataType) -> pa.DataType | None:
    """The type in which values of a type are worked on; None for those that cannot be used."""
    if pa.types.is_dictionary(dtype):
        return canonical_type(dtype.value_type)
    if pa.types.is_uint64(dtype) or pa.types.is_boolean(dtype) or pa.types.is_null(dtype):
        return dtype
    if pa.types.is_integer(dtype) or pa.types.is_time(dtype) or pa.types.is_duration(dtype):
        return pa.int64()
    if pa.types.is_floating(dtype) or pa.types.is_decimal(dtype):
        return pa.float64()
    if pa.types.is_timestamp(dtype) or pa.types.is_date(dtype):
        return TIME
    is_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    is_bytes = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    if any(holds(dtype) for holds in (*is_text, *is_bytes)):
        return pa.string()
    if is_list(dtype):
        inner = canonical_type(dtype.value_type)
        return None if inner is None or is_list(inner) else pa.list_(inner)
    return None


def type_named(name: str) -> pa.DataType:
    """The canonical type that ``str`` has given this name."""
    types = (pa.int64(), pa.uint64(), pa.float64(), pa.bool_(), pa.string(), TIME, pa.null())
    by_name = {str(dtype): dtype for dtype in types}
    by_name |= {str(pa.list_(dtype)): pa.list_(dtype) for dtype in types}
    return by_name[name]


def is_list(dtype: pa.DataType) -> bool:
    """Whether values are lists, of one length or of any."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(holds(dtype) for holds in kinds)


def to_type(values: pa.Array | pa.ChunkedArray, dtype: pa.DataType) -> pa.Array:
    """Values in a canonical type; a NaN is a missing value.

    Raises:
        pyarrow.ArrowInvalid: A value does not fit.
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if values.type != dtype:
        if pa.types.is_string(values.type):
            values = pc.utf8_trim_whitespace(values)
        # Times and durations are numbers of their own unit.
        is_span = pa.types.is_time(values.type) or pa.types.is_duration(values.type)
        if is_span:
            values = values.view(pa.int32() if values.type.bit_width == 32 else pa.int64())
        values = pc.cast(values, dtype, safe=not pa.types.is_timestamp(dtype))
    if pa.types.is_floating(dtype):
        values = without_nan(values)
    return values


def without_nan(values: pa.Array) -> pa.Array:
    """Floats with null for NaN."""
    is_nan = pc.is_nan(values)
    if not pc.any(is_nan, min_count=0).as_py():
        return values
    return pc.if_else(is_nan, pa.scalar(None, values.type), values)


def read_types(
    schema: pa.Schema, label: str, dropped: Sequence[str], wanted: Collection[str] | None = None
) -> dict[str, pa.DataType]:
    """Column to the type in which it is worked on.

    Args:
        schema: Names and types as they are in the table.
        dropped: Columns that need no type.
        wanted: The only columns that need one, if there are others.

    Raises:
        MissingError: A name stands twice, or a column holds what is no value.
    """
    types = {}
    for field in schema:
        if field.name in types:
            raise MissingError(
                f"{label} has two columns called {field.name!r}.", "give each a name of its own"
            )
        dtype = canonical_type(field.type)
        is_needed = field.name not in dropped and (wanted is None or field.name in wanted)
        if dtype is None and is_needed:
            raise MissingError(
                f"The column {field.name!r} of {label} holds values of type {field.type}, "
                "which are no ids and no numbers.",
                f"leave it out: --drop {field.name}",
            )
        types[field.name] = dtype or pa.null()
    return types


# --- Parquet


def open_parquet(
    files: Sequence[Path],
    label: str,
    dropped: Sequence[str] = (),
    wanted: Collection[str] | None = None,
) -> Table:
    """The rows of Parquet files, one after another; of ``dropped`` columns, and of those that are
    not ``wanted``, any type will do.

    Raises:
        MissingError: A file cannot be read, or has other columns than the first.
    """
    rows = 0
    types: dict[str, pa.DataType] = {}
    for file in files:
        try:
            with pq.ParquetFile(file) as opened:
                rows += opened.metadata.num_rows
                schema = opened.schema_arrow
        except (pa.ArrowException, OSError, EOFError) as error:
            raise _unreadable(file, error) from None
        own = read_types(schema, str(file), dropped, wanted)
        types = common_types(types, own, str(file)) if types else own
    _check_columns(types, label)
    texts = [name for name, dtype in types.items() if pa.types.is_string(dtype)]
    return Table(label, types, rows, _parquet_reader(files, texts))


def peek_parquet(file: Path, label: str, rows: int) -> Table:
    """The first rows of a Parquet file, in memory.

    Raises:
        MissingError: The file cannot be read.
    """
    try:
        with pq.ParquetFile(file) as opened:
            batches = list(itertools.islice(opened.iter_batches(rows), 1))
            table = pa.Table.from_batches(batches, opened.schema_arrow)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise _unreadable(file, error) from None
    return open_frame(table, label, table.column_names)


def common_types(
    types: dict[str, pa.DataType], own: dict[str, pa.DataType], file: str
) -> dict[str, pa.DataType]:
    """The types of earlier shards and one more; a column empty in one has that of the others."""
    if set(types) != set(own):
        odd = sorted(set(types) ^ set(own))[0]
        has = "lacks" if odd in types else "has"
        raise MissingError(
            f"{file} {has} the column {odd!r}, unlike the files before it.",
            "name files with one set of columns, by a glob for instance",
        )
    common = {}
    for name, dtype in types.items():
        pair = {dtype, own[name]} - {pa.null()}
        if pair == {pa.int64(), pa.float64()}:
            pair = {pa.float64()}
        if len(pair) > 1:
            raise MissingError(
                f"The column {name!r} is {own[name]} in {file} and {dtype} in the files before it.",
                f"write it in one type, or leave it out: --drop {name}",
            )
        common[name] = pair.pop() if pair else pa.null()
    return common


def _parquet_reader(files: Sequence[Path], texts: Sequence[str]) -> BatchReader:
    """Reads the files in turn; columns of text come as codes."""

    def read(columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        for file in files:
            try:
                with pq.ParquetFile(file, read_dictionary=list(texts)) as opened:
                    yield from opened.iter_batches(size, columns=list(columns))
            except (pa.ArrowException, OSError, EOFError) as error:
                raise _unreadable(file, error) from None

    return read


def _unreadable(file: Path, error: Exception) -> MissingError:
    reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    return MissingError(f"{file} cannot be read as Parquet: {reason}.", "write the file again")


# --- in memory


def open_frame(
    frame: Any, label: str, dropped: Sequence[str] = (), wanted: Collection[str] | None = None
) -> Table:
    """The rows of a pandas frame or an Arrow table; columns as of :func:`open_parquet`.

    Raises:
        UsageError: It is neither, or a column mixes types.
    """
    table = _as_arrow(frame)
    types = read_types(table.schema, label, dropped, wanted)
    _check_columns(types, label)

    def read(columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        yield from table.select(list(columns)).to_batches(max_chunksize=size)

    return Table(label, types, table.num_rows, read)


def _as_arrow(frame: Any) -> pa.Table:
    if isinstance(frame, pa.Table):
        return frame
    if isinstance(frame, pa.RecordBatch):
        return pa.Table.from_batches([frame])
    if not isinstance(frame, pd.DataFrame):
        raise UsageError(
            f"A {type(frame).__name__} is no table.", "give a pandas frame or a pyarrow Table"
        )
    frame = frame.rename(columns=str)
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError) as error:
        reason = " ".join(str(part) for part in error.args).splitlines()[0].rstrip(".")
        raise UsageError(
            f"The frame cannot be read as a table: {reason}.",
            "give each column one type, such as frame[c] = frame[c].astype(str)",
        ) from None


def _check_columns(types: dict[str, pa.DataType], label: str) -> None:
    """Raise a :class:`MissingError` for a table without columns, or one of them without a name."""
    if not types:
        raise MissingError(f"{label} has no columns.", "write the table again")
    if any(not name.strip() for name in types):
        raise MissingError(f"{label} has a column without a name.", "give each column a name")


# --- staged


def open_staged(
    files: Sequence[Path], label: str, types: dict[str, pa.DataType], rows: int
) -> Table:
    """The rows of staged text, of Arrow files that :mod:`mtlkit.data.table.stage` wrote."""

    def read(columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        positions = [list(types).index(name) for name in columns]
        options = pa.ipc.IpcReadOptions(included_fields=sorted(positions))
        for file in files:
            with (
                pa.OSFile(str(file)) as source,
                pa.ipc.open_stream(source, options=options) as reader,
            ):
                yield from reader

    return Table(label, types, rows, read, whole_floats=False)
