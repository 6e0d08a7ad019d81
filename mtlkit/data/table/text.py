"""CSV text, plain or compressed: how it is written, the types of its columns, and its errors.

Types follow from the first rows. Nothing is rounded: integers beyond 64 bits stay text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.ipc

from mtlkit.data.table.read import TIME
from mtlkit.data.table.spec import TableSpec
from mtlkit.errors import MissingError, UsageError

BLOCK_BYTES = 1 << 23  # of text, parsed at a time
SAMPLE_BYTES = 1 << 20  # of text, whose rows decide on types
SEPARATORS = (",", "\t", ";", "|")
MAGIC = {b"PAR1": ".parquet", b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
"""How files begin that are no text, and how their names should end."""
BOOLEANS = ("true", "True", "TRUE", "false", "False", "FALSE")
UTC_TIME = pa.timestamp("us", "UTC")
HUGE_INTEGER = r"^[+-]?[0-9]{16,}$"  # more digits than a float holds
CONVERSION_ERROR = re.compile(
    r"In CSV column #(\d+): (?:Row #\d+: )?CSV conversion error to .*?: (.*)", re.DOTALL
)
ROW_ERROR = re.compile(r"Expected (\d+) columns, got (\d+)")


@dataclass(frozen=True)
class Dialect:
    """How the text is written."""

    separator: str  # between fields
    header: bool  # whether the first line of each file names the columns
    names: tuple[str, ...]  # of the columns
    missing: tuple[str, ...]  # texts that stand for a missing value

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


# --- separator and names


def find_dialect(file: Path, spec: TableSpec) -> Dialect:
    """How a text is written: as the spec says, the rest by its first line.

    Raises:
        MissingError: The file is no text, is empty, or its columns have no names of their own.
    """
    first_line = _first_line(file)
    separator = spec.separator or max(SEPARATORS, key=_unquoted(first_line).count)
    unnamed = Dialect(separator, True, (), spec.missing)
    with reading(file, unnamed), opened(file) as (text, _):
        names = tuple(unnamed.open(text, {}).schema.names)
    if spec.header:
        _check_header(file, names)
    else:
        names = _given_names(file, spec, len(names))
    return Dialect(separator, spec.header, names, spec.missing)


def _first_line(file: Path) -> str:
    """The first line of a text; a :class:`MissingError` if it is none, or empty."""
    unnamed = Dialect(",", True, (), ())
    with reading(file, unnamed), opened(file) as (text, _):
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


def first_types(file: Path, dialect: Dialect) -> dict[str, pa.DataType]:
    """Column to its type, by the first rows of a text."""
    texts = dict.fromkeys(dialect.names, pa.string())
    with reading(file, dialect), opened(file) as (text, _):
        try:
            batch = dialect.open(text, texts, SAMPLE_BYTES).read_next_batch()
        except StopIteration:  # a header and nothing else
            return dict.fromkeys(dialect.names, pa.null())
    return {name: type_of(batch.column(name)) for name in dialect.names}


def type_of(values: pa.Array) -> pa.DataType:
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


# --- opening, and errors


class DoesNotFitError(Exception):
    """A value does not fit the type of its column."""

    def __init__(self, file: Path, column: str, value: str) -> None:
        super().__init__(column, value)
        self.file, self.column, self.value = file, column, value


@contextmanager
def opened(file: Path) -> Iterator[tuple[Any, Any]]:
    """The text of a file, unpacked, and the file itself, whose position is known."""
    compression = pa.Codec.detect(str(file)).name if is_packed(file) else None
    with pa.OSFile(str(file)) as raw:
        if compression is None:
            yield raw, raw
            return
        with pa.CompressedInputStream(raw, compression) as text:
            yield text, raw


def is_packed(file: Path) -> bool:
    """Whether a file is compressed, by its name."""
    return file.suffix.lower() in (".gz", ".zst", ".bz2")


@contextmanager
def reading(file: Path, dialect: Dialect) -> Iterator[None]:
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
        return DoesNotFitError(file, column, value.rpartition("'")[0])
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
    with opened(file) as (text, _):
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

    with opened(file) as (text, _), suppress(pa.ArrowInvalid):
        pa.csv.read_csv(
            text,
            read_options=pa.csv.ReadOptions(use_threads=False),
            parse_options=pa.csv.ParseOptions(
                delimiter=dialect.separator, newlines_in_values=True, invalid_row_handler=note
            ),
        )
    return numbers[0] if numbers and numbers[0] else 1
