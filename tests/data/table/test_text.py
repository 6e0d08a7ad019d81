"""CSV text: separators, compression, types that widen, and what is never rounded."""

import gzip

import pandas as pd
import pyarrow as pa
import pytest

from mtlkit.data.datasets._source import no_progress
from mtlkit.data.table import stage as stage_module
from mtlkit.data.table import text as text_module
from mtlkit.data.table.files import find_files
from mtlkit.data.table.spec import TableSpec
from mtlkit.data.table.stage import stage_text
from mtlkit.errors import MissingError


def read(folder, contents, name="t.csv", **options):
    """The staged table as a dictionary of lists, and its types."""
    data = contents if isinstance(contents, bytes) else contents.encode()
    (folder / name).write_bytes(data)
    return read_files([folder / name], folder, **options)


def read_files(files, folder, **options):
    table = stage_text(files, "t", TableSpec(**options), folder, no_progress)
    columns = {name: [] for name in table.types}
    for batch in table.batches(list(table.types)):
        for name, values in batch.items():
            columns[name] += values.to_pylist()
    assert all(len(values) == table.rows for values in columns.values())
    return columns, table.types


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_follows_from_the_first_line(tmp_path, separator):
    text = "a,b c,d\n1,x y,2.5\n".replace(",", separator)
    columns, _ = read(tmp_path, text)
    assert columns == {"a": [1], "b c": ["x y"], "d": [2.5]}


def test_a_separator_within_quotes_does_not_count(tmp_path):
    columns, _ = read(tmp_path, '"a;b;c",d\n1,2\n')
    assert columns == {"a;b;c": [1], "d": [2]}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_endings_and_a_byte_order_mark(tmp_path, ending, mark):
    columns, _ = read(tmp_path, mark + f"a,b{ending}1,x{ending}2,y".encode())
    assert columns == {"a": [1, 2], "b": ["x", "y"]}


@pytest.mark.parametrize(
    ("suffix", "compression"), [(".gz", "gzip"), (".zst", "zstd"), (".bz2", "bz2")]
)
def test_compressed_text(tmp_path, suffix, compression):
    with pa.CompressedOutputStream(str(tmp_path / f"t.csv{suffix}"), compression) as file:
        file.write(b"a,b\n1,x\n2,y\n")
    columns, _ = read_files([tmp_path / f"t.csv{suffix}"], tmp_path)
    assert columns == {"a": [1, 2], "b": ["x", "y"]}


def test_gzip_in_several_members(tmp_path):
    data = gzip.compress(b"a,b\n1,x\n") + gzip.compress(b"2,y\n")
    columns, _ = read(tmp_path, data, "t.csv.gz")
    assert columns["a"] == [1, 2]


TYPES = {
    "integers": (["1", "-2", " 3"], pa.int64(), [1, -2, 3]),
    "the largest integer": (["9223372036854775807"], pa.int64(), [2**63 - 1]),
    "a larger integer": (["9223372036854775808", "1"], pa.string(), ["9223372036854775808", "1"]),
    "24 digits": (["123456789012345678901234"] * 2, pa.string(), ["123456789012345678901234"] * 2),
    "numbers": (["1", "2.5", "-1e3"], pa.float64(), [1.0, 2.5, -1000.0]),
    "hexadecimal digits": (["0x10", "0xff"], pa.string(), ["0x10", "0xff"]),
    "truth values": (["True", "False", "true"], pa.bool_(), [True, False, True]),
    "dates": (["2024-01-31", "2023-12-01"], pa.timestamp("us"), list(pd.to_datetime(["2024-01-31", "2023-12-01"]))),
    "times": (["2024-01-31 12:30:00", "2023-12-01 00:00:00.5"], pa.timestamp("us"), list(pd.to_datetime(["2024-01-31 12:30:00", "2023-12-01 00:00:00.5"], format="ISO8601"))),
    "times of a zone": (["2024-01-31T12:30:00Z", "2024-01-31T12:30:00+02:00"], pa.timestamp("us"), list(pd.to_datetime(["2024-01-31 12:30", "2024-01-31 10:30"]))),
    "texts": (["1", "x", "2.5"], pa.string(), ["1", "x", "2.5"]),
    "missing": (["", "NA", "nan"], pa.null(), [None] * 3),
    "quoted and missing": (["1", '""', "3"], pa.int64(), [1, None, 3]),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_the_type_of_a_column_is_the_narrowest_that_holds_it(tmp_path, name):
    texts, dtype, values = TYPES[name]
    columns, types = read(tmp_path, "a,b\n" + "".join(f"{text},0\n" for text in texts))
    assert types["a"] == dtype
    assert columns["a"] == values


LATE = {
    "a number among integers": ("1", "2.5", pa.float64(), 2.5),
    "a word among integers": ("1", "x", pa.string(), "x"),
    "a huge integer among integers": ("1", "12345678901234567890", pa.string(), "12345678901234567890"),
    "a word among numbers": ("1.5", "x", pa.string(), "x"),
    "a word among truth values": ("True", "maybe", pa.string(), "maybe"),
    "a word among dates": ("2024-01-31", "never", pa.string(), "never"),
    "a zone among times": ("2024-01-31 12:00:00", "2024-01-31T12:00:00Z", pa.string(), "2024-01-31T12:00:00Z"),
    "an integer after nothing": ("", "7", pa.int64(), 7),
    "a word after nothing": ("", "x", pa.string(), "x"),
    "a date after nothing": ("", "2024-01-31", pa.timestamp("us"), pd.Timestamp("2024-01-31")),
}  # fmt: skip


@pytest.mark.parametrize("name", LATE)
def test_a_late_value_that_does_not_fit_widens_its_column(tmp_path, name, monkeypatch):
    # Small blocks: the first rows say nothing of the last one.
    monkeypatch.setattr(text_module, "SAMPLE_BYTES", 200)
    monkeypatch.setattr(text_module, "BLOCK_BYTES", 200)
    early, late, dtype, value = LATE[name]
    columns, types = read(tmp_path, "a,b\n" + f"{early},0\n" * 100 + f"{late},0\n")
    assert types["a"] == dtype
    assert columns["a"][-1] == value
    assert len(columns["a"]) == 101


def test_line_breaks_within_quotes_at_the_edge_of_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "SAMPLE_BYTES", 200)
    monkeypatch.setattr(text_module, "BLOCK_BYTES", 200)
    values = [f"line {row}\nand more, of {row}" for row in range(200)]
    rows = "".join(f'"{value}",{row}\n' for row, value in enumerate(values))
    columns, _ = read(tmp_path, "a,b\n" + rows)
    assert columns == {"a": values, "b": list(range(200))}


@pytest.mark.parametrize("quoted", [False, True])
def test_a_file_in_pieces_is_the_file(tmp_path, monkeypatch, quoted):
    monkeypatch.setattr(stage_module, "PIECE_BYTES", 100)
    monkeypatch.setattr(stage_module, "CHUNK_BYTES", 7)
    monkeypatch.setattr(stage_module.os, "sched_getaffinity", lambda _: range(9))
    values = [f'"{row}"\n' * (row % 5) if quoted else f"{row}" for row in range(500)]
    rows = [f'"{value.replace(chr(34), chr(34) * 2)}",{row}\n' for row, value in enumerate(values)]
    columns, _ = read(tmp_path, "a,b\n" + "".join(rows), missing=["NA"])
    assert len(list(tmp_path.glob("*.arrow"))) > 4
    assert columns["b"] == list(range(500))
    assert columns["a"] == (values if quoted else list(range(500)))


def test_files_without_a_header(tmp_path):
    columns, _ = read(tmp_path, "1,x\n2,y\n", header=False)
    assert columns == {"f0": [1, 2], "f1": ["x", "y"]}
    columns, _ = read(tmp_path, "1,x\n2,y\n", header=False, columns=["n", "w"])
    assert columns == {"n": [1, 2], "w": ["x", "y"]}


def test_other_texts_may_stand_for_missing_values(tmp_path):
    columns, _ = read(tmp_path, "a,b\n?,NA\n2,x\n", missing=["?"])
    assert columns == {"a": [None, 2], "b": ["NA", "x"]}


def test_shards_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 2, 1):
        (tmp_path / f"part-{number}.csv").write_text(f"a\n{number}\n")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / ".part-3.csv").write_text("a\n3\n")
    files = find_files(str(tmp_path))
    assert [file.stem for file in files] == ["part-1", "part-2", "part-10"]
    assert read_files(files, tmp_path)[0] == {"a": [1, 2, 10]}
    assert [file.stem for file in find_files(str(tmp_path / "part-1*.csv"))] == [
        "part-1",
        "part-10",
    ]


def test_a_word_in_a_later_shard_widens_the_column_of_all(tmp_path):
    (tmp_path / "1.csv").write_text("a,b\n1,2\n")
    (tmp_path / "2.csv").write_text("a,b\nx,3\n")
    columns, _ = read_files(find_files(str(tmp_path)), tmp_path)
    assert columns == {"a": ["1", "x"], "b": [2, 3]}


def test_two_kinds_of_files_are_no_table(tmp_path):
    (tmp_path / "1.csv").write_text("a\n1\n")
    (tmp_path / "2.parquet").write_text("")
    with pytest.raises(MissingError, match="both CSV and Parquet"):
        find_files(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="no table in the folder"):
        find_files(str(tmp_path / "empty"))
    with pytest.raises(MissingError, match="There is no file"):
        find_files(str(tmp_path / "3.csv"))
    (tmp_path / "4.xlsx").write_text("")
    with pytest.raises(MissingError, match="neither a CSV nor a Parquet"):
        find_files(str(tmp_path / "4.xlsx"))
