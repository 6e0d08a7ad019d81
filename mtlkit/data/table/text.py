"""CSV text, plain or compressed: typed once and staged as an Arrow file, which is read in no time.

Types follow from the first rows. Where a later value does not fit, the column gets a wider type and
the text is read again. Nothing is rounded on the way: integers beyond 64 bits stay text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.ipc

from mtlkit.data.datasets._source import Progress
from mtlkit.data.table.read import TEXT_CODES, TIME, Table, open_frame, open_staged
from mtlkit.data.table.spec import TableSpec
from mtlkit.errors import MissingError, UsageError

BLOCK_BYTES = 1 << 22  # of text, parsed at a time: what the cache of a core holds
SAMPLE_BYTES = 1 << 20  # of text, whose rows decide on types
SEPARATORS = (",", "\t", ";", "|")
MAGIC = {b"PAR1": ".parquet", b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
"""How files begin that are no text, and how their names should end."""
BOOLEANS = ("true", "True", "TRUE", "false", "False", "FALSE")
UTC_TIME = pa.timestamp("us", "UTC")
HUGE_INTEGER = r"^[+-]?[0-9]{16,}$"
"""More digits than a float holds."""
CONVERSION_ERROR = re.compile(
    r"In CSV column #(\d+): (?:Row #\d+: )?CSV conversion error to .*?: (.*)", re.DOTALL
)
ROW_ERROR = re.compile(r"Expected (\d+) columns, got (\d+)")


@dataclass(frozen=True)
class Dialect:
    """How the text is written.

    Args:
        separator: Between fields.
        header: Whether the first line of each file names the columns.
        names: Of the columns.
        missing: Texts that stand for a missing value.
    """

    separator: str
    header: bool
    names: tuple[str, ...]
    missing: tuple[str, ...]

    def open(
        self, source: Any, types: dict[str, pa.DataType], block_bytes: int | None = None
    ) -> pa.csv.CSVStreamingReader:
        """A reader of one text, with these types."""
        return pa.csv.open_csv(
            source,
            read_options=pa.csv.ReadOptions(
                block_size=block_bytes or BLOCK_BYTES,
                column_names=None if self.header else list(self.names),
            ),
            parse_options=pa.csv.ParseOptions(delimiter=self.separator, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types=types,
                null_values=list(self.missing),
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
                true_values=[text for text in BOOLEANS if text.lower() == "true"],
                false_values=[text for text in BOOLEANS if text.lower() == "false"],
            ),
        )


def stage_text(
    files: Sequence[Path], label: str, spec: TableSpec, folder: Path, progress: Progress
) -> Table:
    """Type the rows of CSV files and write them into one Arrow file.

    Args:
        files: One or more, with the same columns.
        label: What to call the table.
        spec: How the text is written, and which columns must be numbers.
        folder: Where the staged file goes.
        progress: Told of bytes read.

    Raises:
        MissingError: A file cannot be read: it is no text, or a row has too many or few fields.
        UsageError: A column that is named as numbers holds something else.
    """
    dialect = find_dialect(files[0], spec)
    types = _first_types(files[0], dialect)

    # What the user calls numbers is read as such, so that a word among them is told with its row.
    for name in set(spec.dense) & set(types):
        if types[name] == pa.string():
            types[name] = pa.float64()
    staged = folder / "staged.arrow"
    while True:
        try:
            rows = _stage(files, dialect, types, staged, label, progress)
        except _DoesNotFit as misfit:
            _check_may_widen(misfit, spec, dialect)
            types[misfit.column] = _wider(types[misfit.column], misfit.value)
            continue
        canonical = {name: TIME if dtype == UTC_TIME else dtype for name, dtype in types.items()}
        return open_staged(staged, label, canonical, rows)


def peek_text(file: Path, label: str, spec: TableSpec) -> Table:
    """The first rows of a CSV file, in memory.

    Raises:
        MissingError: The file is no text, or a row has too many or few fields.
    """
    dialect = find_dialect(file, spec)
    types = _first_types(file, dialect)
    with _reading(file, dialect), _opened(file) as (text, _):
        batches = [dialect.open(text, types, SAMPLE_BYTES).read_next_batch()]
    return replace(open_frame(pa.Table.from_batches(batches), label, ()), whole_floats=False)


class _DoesNotFit(Exception):
    """A value does not fit the type of its column."""

    def __init__(self, file: Path, column: str, value: str) -> None:
        super().__init__(column, value)
        self.file, self.column, self.value = file, column, value


def _stage(
    files: Sequence[Path],
    dialect: Dialect,
    types: dict[str, pa.DataType],
    staged: Path,
    label: str,
    progress: Progress,
) -> int:
    """Write all rows with these types; returns how many there are."""
    rows, done = 0, 0
    total = sum(file.stat().st_size for file in files)
    # Texts become codes as they are read; each block has a dictionary of its own.
    codes = {name: TEXT_CODES if dtype == pa.string() else dtype for name, dtype in types.items()}
    schema = pa.schema(list(codes.items()))
    with (
        pa.OSFile(str(staged), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        for file in files:
            with _reading(file, dialect), _opened(file) as (text, raw):
                batch = None
                for batch in dialect.open(text, codes):
                    writer.write_batch(_as_schema(batch, schema, file))
                    rows += batch.num_rows
                    progress(f"preparing {label}", done + raw.tell(), total)
                _check_end(file, dialect, batch)
            done += file.stat().st_size
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


# --- separator and names


def find_dialect(file: Path, spec: TableSpec) -> Dialect:
    """How a text is written: as the spec says, the rest by its first line.

    Raises:
        MissingError: The file is no text, is empty, or its columns have no names of their own.
    """
    first_line = _first_line(file)
    separator = spec.separator or max(SEPARATORS, key=_unquoted(first_line).count)
    unnamed = Dialect(separator, True, (), spec.missing)
    with _reading(file, unnamed), _opened(file) as (text, _):
        names = tuple(unnamed.open(text, {}).schema.names)
    if spec.header:
        _check_header(file, names)
    else:
        names = _given_names(file, spec, len(names))
    return Dialect(separator, spec.header, names, spec.missing)


def _first_line(file: Path) -> str:
    """The first line of a text.

    Raises:
        MissingError: It is none, or empty.
    """
    unnamed = Dialect(",", True, (), ())
    with _reading(file, unnamed), _opened(file) as (text, _):
        start = text.read(1 << 16)
    for magic, suffix in MAGIC.items():
        if start.startswith(magic):
            raise MissingError(
                f"{file} is no CSV text, but what {suffix} files hold.",
                f"rename it to end in {suffix}",
            )
    if b"\0" in start:
        raise MissingError(f"{file} is no CSV text: it has a zero byte.", "write it as UTF-8 text")
    if not start.strip():
        raise MissingError(f"{file} is empty.", "write the table again")
    return start.decode("utf-8", "replace").lstrip("\ufeff").lstrip().partition("\n")[0]


def _unquoted(line: str) -> str:
    """A line without what stands in quotes."""
    return re.sub(r'"[^"]*"', "", line)


def _check_header(file: Path, names: Sequence[str]) -> None:
    """Raise a :class:`MissingError` for a first line that does not name the columns."""
    if all(re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", name) for name in names):
        raise MissingError(
            f"The first line of {file} holds numbers, no names of columns.",
            f"say so: -d '{file}[header=false]', where columns are called f0, f1 and so on",
        )
    for position, name in enumerate(names, 1):
        if not name.strip():
            raise MissingError(
                f"Column {position} of {file} has no name in the first line.", "give it one"
            )
        if names.count(name) > 1:
            raise MissingError(
                f"The first line of {file} has two columns called {name!r}.",
                "give each a name of its own",
            )


def _given_names(file: Path, spec: TableSpec, count: int) -> tuple[str, ...]:
    """The names of the columns of a text without a header."""
    names = spec.columns or tuple(f"f{position}" for position in range(count))
    if len(names) != count:
        raise UsageError(
            f"{len(names)} columns are named, but the first line of {file} has {count} fields.",
            "name each of them in columns",
        )
    return names


# --- types


def _first_types(file: Path, dialect: Dialect) -> dict[str, pa.DataType]:
    """Column to its type, by the first rows of a text."""
    texts = dict.fromkeys(dialect.names, pa.string())
    with _reading(file, dialect), _opened(file) as (text, _):
        try:
            batch = dialect.open(text, texts, SAMPLE_BYTES).read_next_batch()
        except StopIteration:  # a header and nothing else
            return dict.fromkeys(dialect.names, pa.null())
    return {name: _type_of(batch.column(name)) for name in dialect.names}


def _type_of(values: pa.Array) -> pa.DataType:
    """The narrowest type that holds all of some texts."""
    values = pc.utf8_trim_whitespace(pc.drop_null(values))
    if not len(values):
        return pa.null()
    if _holds(values, pa.int64()):
        return pa.int64()
    if pc.any(pc.match_substring_regex(values, HUGE_INTEGER)).as_py():
        return pa.string()
    if _holds(values, pa.float64()):
        return pa.float64()
    if pc.all(pc.is_in(values, pa.array(BOOLEANS))).as_py():
        return pa.bool_()
    return next((dtype for dtype in (TIME, UTC_TIME) if _holds(values, dtype)), pa.string())


def _holds(values: pa.Array, dtype: pa.DataType) -> bool:
    """Whether all texts are values of a type, as the reader of CSV sees it."""
    # A cast takes 0x10 for 16, and what is no number in decimal digits is an id.
    if pa.types.is_integer(dtype) and pc.any(pc.match_substring(values, "x")).as_py():
        return False
    try:
        pc.cast(values, dtype)
    except pa.ArrowInvalid:
        return False
    return True


def _wider(dtype: pa.DataType, value: str) -> pa.DataType:
    """The type of a column after a value that did not fit."""
    own = _type_of(pa.array([value]))
    if pa.types.is_null(dtype):
        return own
    if pa.types.is_int64(dtype) and pa.types.is_float64(own):
        return own
    return pa.string()


def _check_may_widen(misfit: _DoesNotFit, spec: TableSpec, dialect: Dialect) -> None:
    """Raise a :class:`UsageError` for a word in a column that the user named as numbers."""
    is_number = pa.types.is_floating(_type_of(pa.array([misfit.value])))
    is_list = misfit.value.startswith("[")
    if misfit.column not in spec.dense or is_number or is_list:
        return
    row = _row_of(misfit, dialect)
    raise UsageError(
        f"The dense column {misfit.column!r} of {misfit.file} holds {misfit.value[:60]!r} "
        f"in row {row}, which is no number.",
        f"correct it, name it among the texts that are missing, or --ids {misfit.column}",
    )


def _row_of(misfit: _DoesNotFit, dialect: Dialect) -> int:
    """The first row, counted from 1, that holds the value."""
    row = 0
    texts = dict.fromkeys(dialect.names, pa.string())
    with _opened(misfit.file) as (text, _):
        for batch in dialect.open(text, texts):
            position = pc.index(batch.column(misfit.column), misfit.value).as_py()
            if position >= 0:
                return row + position + 1
            row += batch.num_rows
    return row


# --- opening, and errors


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, Any]]:
    """The text of a file, unpacked, and the file itself, whose position is known."""
    compression = pa.Codec.detect(str(file)).name if _is_packed(file) else None
    with pa.OSFile(str(file)) as raw:
        if compression is None:
            yield raw, raw
            return
        with pa.CompressedInputStream(raw, compression) as text:
            yield text, raw


def _is_packed(file: Path) -> bool:
    return file.suffix.lower() in (".gz", ".zst", ".bz2")


@contextmanager
def _reading(file: Path, dialect: Dialect) -> Iterator[None]:
    """Turn what the reader of CSV raises into one sentence."""
    try:
        yield
    except UnicodeDecodeError:
        raise _as_misfit(file, dialect, "invalid UTF8") from None
    except pa.ArrowInvalid as error:
        raise _as_misfit(file, dialect, str(error)) from None
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0].rstrip(".")
        raise MissingError(f"{file} cannot be read: {reason}.", "bring the file again") from None


def _as_misfit(file: Path, dialect: Dialect, message: str) -> Exception:
    """The error for what Arrow says of a text."""
    if "invalid UTF8" in message:
        return MissingError(
            f"Line {_line_of_bad_bytes(file)} of {file} is not UTF-8 text.",
            f"iconv -f latin1 -t utf-8 {file} > utf8.csv",
        )
    if match := CONVERSION_ERROR.search(message):
        column = dialect.names[int(match[1])]
        _, _, value = match[2].partition("'")
        return _DoesNotFit(file, column, value.rpartition("'")[0])
    if match := ROW_ERROR.search(message):
        line = _line_of_odd_row(file, dialect)
        return MissingError(
            f"Row {line} of {file} has {match[2]} fields where {match[1]} are expected.",
            "put values that hold separators or line breaks into double quotes",
        )
    if "Empty CSV" in message:
        return MissingError(f"{file} is empty.", "write the table again")
    if "straddling" in message:
        return MissingError(
            f"{file} has a row of more than {BLOCK_BYTES >> 20} MB.",
            "close the double quotes of its values",
        )
    reason = message.splitlines()[0].rstrip(".")
    return MissingError(f"{file} cannot be read as CSV: {reason}.", "write the table again")


def _line_of_bad_bytes(file: Path) -> int:
    """The first line that is no UTF-8."""
    number, rest = 0, b""
    with _opened(file) as (text, _):
        while chunk := text.read(1 << 20):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in [*lines, rest] if len(chunk) < 1 << 20 else lines:
                number += 1
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    return number
    return number


def _line_of_odd_row(file: Path, dialect: Dialect) -> int:
    """The first row with too many or too few fields, counted from 1 with the header."""
    numbers = []

    def note(row: Any) -> str:
        numbers.append(row.number)
        return "error"

    with _opened(file) as (text, _), suppress(pa.ArrowInvalid):
        pa.csv.read_csv(
            text,
            read_options=pa.csv.ReadOptions(use_threads=False),
            parse_options=pa.csv.ParseOptions(
                delimiter=dialect.separator,
                newlines_in_values=True,
                invalid_row_handler=note,
            ),
        )
    return numbers[0] if numbers and numbers[0] else 1


def _check_end(file: Path, dialect: Dialect, last: pa.RecordBatch | None) -> None:
    """Raise a :class:`MissingError` for a double quote that is never closed: it swallows all lines
    after it.
    """
    if last is None or not last.num_rows:
        return
    value = last.column(last.num_columns - 1)[-1].as_py()
    if not isinstance(value, str) or "\n" not in value:
        return
    with _opened(file) as (text, _):
        end = b""
        while chunk := text.read(1 << 20):
            end = (end + chunk)[-64:]
    if not end.rstrip().endswith(b'"'):
        raise MissingError(
            f"A double quote in column {dialect.names[-1]!r} of {file} is never closed.",
            f"close it before the text {value.splitlines()[0][:40]!r}",
        )
