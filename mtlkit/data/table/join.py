"""Tables made of tables, batch by batch: rows below each other, columns looked up or computed.

All are read as the tables that they are made of: more than once, in one order, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa

from mtlkit.data.table.read import Columns, Table, common_types
from mtlkit.errors import MissingError

FIRST_WEEKDAY = 3  # 1970-01-01 was a Thursday


def check_columns(table: Table, columns: Iterable[str]) -> None:
    """Raise a :class:`MissingError` where a table of a known format lacks a column."""
    for name in columns:
        if name not in table.types:
            message = f"{table.label} has no column {name!r}."
            raise MissingError(message, "bring the file as it was published")


def stack_tables(tables: Sequence[Table]) -> Table:
    """The rows of tables with the same columns, one table after another.

    Raises:
        MissingError: They have other columns, or types that no type holds.
    """
    types = tables[0].types
    for table in tables[1:]:
        types = common_types(types, table.types, table.label)

    def read(columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        for table in tables:
            for batch in table.batches(columns, rows=size):
                yield _as_batch(batch, columns)

    return replace(tables[0], types=types, rows=sum(table.rows for table in tables), read=read)


def with_columns(
    table: Table,
    needs: Sequence[str],
    types: Mapping[str, pa.DataType],
    make: Callable[[Columns], Columns],
) -> Table:
    """A table with columns more, which are made of some of its columns.

    Args:
        needs: Names of at least one column that ``make`` reads.
        types: New column to its type.
        make: From columns of a batch to the new ones.
    """

    def read(columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        given = [name for name in columns if name not in types]
        is_asked = len(given) < len(columns)
        for batch in table.batches(_once(given, needs if is_asked else ()), rows=size):
            yield _as_batch(batch | make(batch) if is_asked else batch, columns)

    return replace(table, types={**table.types, **types}, read=read)


def with_constant(table: Table, name: str, value: str) -> Table:
    """A table with a column more, whose value is the same in all rows."""
    first = next(iter(table.types))

    def repeat(batch: Columns) -> Columns:
        return {name: pa.repeat(value, len(batch[first]))}

    return with_columns(table, [first], {name: pa.string()}, repeat)


def with_clock(table: Table, column: str, second: int = 1, utc_hours: int = 0) -> Table:
    """A table with columns more: ``hour``, and ``weekday`` from Monday, which is 0.

    Args:
        column: Of the time since 1970; a missing one has neither.
        second: How many of its units are a second.
        utc_hours: By how much clocks are ahead of Greenwich.
    """

    def clock(batch: Columns) -> Columns:
        is_missing = batch[column].is_null().to_numpy(zero_copy_only=False)
        times = batch[column].fill_null(0).to_numpy(zero_copy_only=False)
        hours = (times // (second * 3600)).astype(np.int64) + utc_hours
        weekdays = (hours // 24 + FIRST_WEEKDAY) % 7
        return {
            "hour": pa.array(hours % 24, mask=is_missing),
            "weekday": pa.array(weekdays, mask=is_missing),
        }

    return with_columns(table, [column], {"hour": pa.int64(), "weekday": pa.int64()}, clock)


def look_up(
    table: Table, key: str, side: Table, columns: Sequence[str], side_key: str | None = None
) -> Table:
    """A table with columns more, taken from the row of another table that has the same key.

    Args:
        key: Its column of integers.
        side: What is looked up, small enough for memory; of several rows of a key, the first.
        columns: What is taken; missing where the key is not there.
        side_key: What the key is called there, if not the same.

    Raises:
        MissingError: The other table lacks a column.
    """
    side_key = side_key or key
    check_columns(side, [side_key, *columns])
    batches = list(side.batches(_once([side_key], columns)))
    known = {
        name: pa.chunked_array([batch[name] for batch in batches], side.types[name])
        for name in batches[0]
    }
    keys = known[side_key].to_numpy()
    is_first = ~pd.Index(keys).duplicated()
    index = pd.Index(keys[is_first])
    values = {name: known[name].filter(pa.array(is_first)).combine_chunks() for name in columns}

    def make(batch: Columns) -> Columns:
        positions = index.get_indexer(batch[key].to_numpy(zero_copy_only=False))
        rows = pa.array(positions, mask=positions < 0)
        return {name: values[name].take(rows) for name in columns}

    return with_columns(table, [key], {name: side.types[name] for name in columns}, make)


def keep_rows(
    table: Table, needs: Sequence[str], is_kept: Callable[[Columns], np.ndarray]
) -> Table:
    """Some rows of a table, which is read once to count them."""
    rows = sum(int(is_kept(batch).sum()) for batch in table.batches(needs))

    def read(columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        for batch in table.batches(_once(columns, needs), rows=size):
            mask = pa.array(is_kept(batch))
            kept = {name: batch[name].filter(mask) for name in columns}
            if len(kept[columns[0]]):
                yield _as_batch(kept, columns)

    return replace(table, rows=rows, read=read)


def _as_batch(columns: Columns, names: Sequence[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([columns[name] for name in names], names=list(names))


def _once(*names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name for group in names for name in group))
