"""CSV files typed once and staged as Arrow files, which are read in no time.

Large files are cut into pieces at the ends of rows, and each is typed in a thread. Where a value
does not fit, its column gets a wider type and the text is read again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from mtlkit.data.datasets._source import Progress
from mtlkit.data.table.read import TEXT_CODES, TIME, Table, open_frame, open_staged
from mtlkit.data.table.spec import TableSpec
from mtlkit.data.table.text import (
    BLOCK_BYTES,
    SAMPLE_BYTES,
    UTC_TIME,
    Dialect,
    DoesNotFitError,
    find_dialect,
    first_types,
    is_packed,
    opened,
    reading,
    type_of,
)
from mtlkit.errors import MissingError, UsageError

PIECE_BYTES = 1 << 25  # text that is worth a thread of its own
CHUNK_BYTES = 1 << 20


def stage_text(
    files: Sequence[Path], label: str, spec: TableSpec, folder: Path, progress: Progress
) -> Table:
    """Type the rows of CSV files and write them into Arrow files.

    Raises:
        MissingError: A file cannot be read: it is no text, or a row has too many or few fields.
        UsageError: A column that is named as numbers holds something else.
    """
    dialect = find_dialect(files[0], spec)
    types = first_types(files[0], dialect)

    # What the user calls numbers is read as such, so that a word among them is told with its row.
    for name in set(spec.dense) & set(types):
        if types[name] == pa.string():
            types[name] = pa.float64()
    pieces = [piece for number, file in enumerate(files) for piece in _pieces(file, number, folder)]
    while True:
        try:
            rows = _stage(pieces, dialect, types, partial(progress, f"preparing {label}"))
        except DoesNotFitError as misfit:
            _check_may_widen(misfit, spec, dialect)
            types[misfit.column] = _wider(types[misfit.column], misfit.value)
            continue
        canonical = {name: TIME if dtype == UTC_TIME else dtype for name, dtype in types.items()}
        return open_staged([piece.staged for piece in pieces], label, canonical, rows)


def peek_text(file: Path, label: str, spec: TableSpec) -> Table:
    """The first rows of a CSV file, in memory.

    Raises:
        MissingError: The file is no text, or a row has too many or few fields.
    """
    dialect = find_dialect(file, spec)
    types = first_types(file, dialect)
    with reading(file, dialect), opened(file) as (text, _):
        batches = [dialect.open(text, types, SAMPLE_BYTES).read_next_batch()]
    return replace(open_frame(pa.Table.from_batches(batches), label, ()), whole_floats=False)


# --- pieces


@dataclass(frozen=True)
class _Piece:
    """Consecutive rows of a file, and where they are staged."""

    file: Path  # the file
    staged: Path  # the Arrow file
    start: int = 0  # the first byte
    stop: int | None = None  # the byte after the last one; None for all of a packed file
    is_last: bool = True  # whether the file ends here


def _pieces(file: Path, number: int, folder: Path) -> list[_Piece]:
    """A file cut into about as many pieces as there are cores; packed files stay whole."""
    size = file.stat().st_size
    count = min(len(os.sched_getaffinity(0)), size // PIECE_BYTES)
    if is_packed(file) or count < 2:
        return [_Piece(file, folder / f"{number}.arrow")]
    cuts = [0, *_row_ends(file, [size * k // count for k in range(1, count)]), size]
    spans = [(start, stop) for start, stop in pairwise(cuts) if start < stop]
    return [
        _Piece(file, folder / f"{number}-{start}.arrow", start, stop, stop == size)
        for start, stop in spans
    ]


def _row_ends(file: Path, targets: Sequence[int]) -> list[int]:
    """The first end of a row at or after each position of a text, outside of quotes."""
    ends: list[int] = []
    position = quotes = 0
    with file.open("rb") as text:
        for target in targets:
            while position < target:
                chunk = text.read(min(CHUNK_BYTES, target - position))
                position += len(chunk)
                quotes += chunk.count(b'"')

            # Within a value the number of quotes so far is odd, for within it they are doubled.
            while line := text.readline():
                position += len(line)
                quotes += line.count(b'"')
                if quotes % 2 == 0:
                    break
            ends.append(position)
    return ends


def _stage(
    pieces: Sequence[_Piece],
    dialect: Dialect,
    types: dict[str, pa.DataType],
    progress: Callable[[int, int], None],
) -> int:
    """Write all rows with these types; returns how many there are."""
    # Texts become codes as they are read; each block has a dictionary of its own.
    codes = {name: TEXT_CODES if dtype == pa.string() else dtype for name, dtype in types.items()}
    total = sum(file.stat().st_size for file in {piece.file for piece in pieces})
    done, one_at_a_time = dict.fromkeys(pieces, 0), threading.Lock()

    def tell(piece: _Piece, position: int) -> None:
        with one_at_a_time:
            done[piece] = position
            progress(min(sum(done.values()), total), total)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        stage = partial(_stage_piece, dialect=dialect, codes=codes, tell=tell)
        return sum(pool.map(stage, pieces))


def _stage_piece(
    piece: _Piece,
    dialect: Dialect,
    codes: dict[str, pa.DataType],
    tell: Callable[[_Piece, int], None],
) -> int:
    """Write the rows of one piece; returns how many there are."""
    schema = pa.schema(list(codes.items()))
    rows, batch = 0, None
    with (
        pa.OSFile(str(piece.staged), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
        reading(piece.file, dialect),
        opened(piece.file) as (text, raw),
    ):
        if piece.stop is not None:
            text = raw.get_stream(piece.start, piece.stop - piece.start)
        # The names stand in the first line of the file, so not in later pieces.
        own = dialect if piece.start == 0 else replace(dialect, header=False)
        for number, batch in enumerate(own.open(text, codes), 1):
            writer.write_batch(_as_schema(batch, schema, piece.file))
            rows += batch.num_rows
            # A piece does not know its position, but a batch is about a block of text.
            tell(piece, raw.tell() if piece.stop is None else number * BLOCK_BYTES)
        if piece.is_last:
            _check_end(piece.file, dialect, batch)
    return rows


def _as_schema(batch: pa.RecordBatch, schema: pa.Schema, file: Path) -> pa.RecordBatch:
    """A batch of a file whose columns must be those of the first one."""
    if batch.schema.names == schema.names:
        return batch
    odd = sorted(set(batch.schema.names) ^ set(schema.names)) or batch.schema.names
    raise MissingError(
        f"The first line of {file} differs from that of the first file, at {odd[0]!r}.",
        "give all files the same columns in the same order, or name fewer files by a glob",
    )


# --- values that do not fit


def _wider(dtype: pa.DataType, value: str) -> pa.DataType:
    """The type of a column after a value that did not fit."""
    own = type_of(pa.array([value]))
    if pa.types.is_null(dtype):
        return own
    if pa.types.is_int64(dtype) and pa.types.is_float64(own):
        return own
    return pa.string()


def _check_may_widen(misfit: DoesNotFitError, spec: TableSpec, dialect: Dialect) -> None:
    """Raise a :class:`UsageError` for a word in a column that the user named as numbers."""
    is_number = pa.types.is_floating(type_of(pa.array([misfit.value])))
    is_list = misfit.value.startswith("[")
    if misfit.column not in spec.dense or is_number or is_list:
        return
    row = _row_of(misfit, dialect)
    raise UsageError(
        f"The dense column {misfit.column!r} of {misfit.file} holds {misfit.value[:60]!r} "
        f"in row {row}, which is no number.",
        f"correct it, name it among the texts that are missing, or --ids {misfit.column}",
    )


def _row_of(misfit: DoesNotFitError, dialect: Dialect) -> int:
    """The first row, counted from 1, that holds the value."""
    row = 0
    texts = dict.fromkeys(dialect.names, pa.string())
    with opened(misfit.file) as (text, _):
        for batch in dialect.open(text, texts):
            position = pc.index(batch.column(misfit.column), misfit.value).as_py()
            if position >= 0:
                return row + position + 1
            row += batch.num_rows
    return row


# --- quotes


def _check_end(file: Path, dialect: Dialect, last: pa.RecordBatch | None) -> None:
    """Raise a :class:`MissingError` for a quote never closed: it swallows all lines after it."""
    if last is None or not last.num_rows:
        return
    value = last.column(last.num_columns - 1)[-1].as_py()
    if not isinstance(value, str) or "\n" not in value:
        return
    with opened(file) as (text, _):
        end = b""
        while chunk := text.read(1 << 20):
            end = (end + chunk)[-64:]
    if not end.rstrip().endswith(b'"'):
        raise MissingError(
            f"A double quote in column {dialect.names[-1]!r} of {file} is never closed.",
            f"close it before the text {value.splitlines()[0][:40]!r}",
        )
