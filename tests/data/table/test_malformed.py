"""Eighty malformed tables and YAML files: each is told in one sentence that names file, column and
row as far as there are such, with a hint; nothing half-made is left behind.
"""

import gzip
import io

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtlkit.data.sources import prepare
from mtlkit.errors import MissingError, MtlkitError, UsageError
from mtlkit.spec import Spec

GOOD = "a,b,click\n" + "".join(f"{row % 7},{row / 2},{row % 2}\n" for row in range(60))
LABELS = {"labels": ["click"]}


def changed(line, text):
    """The good table with one line replaced; the header is line 0."""
    lines = GOOD.splitlines()
    lines[line] = text
    return "\n".join(lines) + "\n"


# name: (file, contents, options, error, what the message says)
TABLES = {
    # no table at all
    "empty": ("t.csv", "", LABELS, MissingError, ["t.csv", "empty"]),
    "blank": ("t.csv", "\n\n  \n", LABELS, MissingError, ["t.csv", "empty"]),
    "header only": ("t.csv", "a,b,click\n", LABELS, MissingError, ["t.csv", "0 rows"]),
    "two rows": ("t.csv", "a,click\n1,0\n2,1\n", LABELS, MissingError, ["t.csv", "2 rows"]),
    "zero bytes": ("t.csv", b"a,b\0\n1,2\n", LABELS, MissingError, ["t.csv", "zero byte"]),
    "parquet named csv": ("t.csv", b"PAR1" + b"\1" * 90, LABELS, MissingError, ["t.csv", ".parquet"]),
    "gzip named csv": ("t.csv", gzip.compress(b"a\n1\n"), LABELS, MissingError, ["t.csv", ".gz"]),
    "csv named gzip": ("t.csv.gz", GOOD, LABELS, MissingError, ["t.csv.gz"]),
    "csv named zst": ("t.csv.zst", GOOD, LABELS, MissingError, ["t.csv.zst"]),
    "cut gzip": ("t.csv.gz", gzip.compress(GOOD.encode() * 50)[:150], LABELS, MissingError, ["t.csv.gz"]),
    "csv named parquet": ("t.parquet", GOOD, LABELS, MissingError, ["t.parquet"]),
    "empty parquet": ("t.parquet", b"", LABELS, MissingError, ["t.parquet"]),
    "latin-1": ("t.csv", changed(30, "1,é,0").encode("latin-1"), LABELS, MissingError, ["31", "t.csv", "UTF-8"]),
    "latin-1 header": ("t.csv", changed(0, "a,é,click").encode("latin-1"), LABELS, MissingError, ["t.csv", "UTF-8"]),
    "utf-16": ("t.csv", GOOD.encode("utf-16"), LABELS, MissingError, ["t.csv"]),
    # rows
    "short row": ("t.csv", changed(7, "1,2"), LABELS, MissingError, ["Row 8", "t.csv", "2 fields", "3"]),
    "long row": ("t.csv", changed(7, "1,2,0,4"), LABELS, MissingError, ["Row 8", "t.csv", "4 fields", "3"]),
    "late short row": ("t.csv", GOOD * 1 + "9\n", LABELS, MissingError, ["Row 62", "1 fields"]),
    "open quote": ("t.csv", changed(50, '1,2,"0'), LABELS, MissingError, ["click", "t.csv", "quote"]),
    # header
    "no header": ("t.csv", GOOD.partition("\n")[2], LABELS, MissingError, ["t.csv", "names"]),
    "name twice": ("t.csv", changed(0, "a,a,click"), LABELS, MissingError, ["t.csv", "'a'"]),
    "no name": ("t.csv", changed(0, "a,,click"), LABELS, MissingError, ["Column 2", "t.csv"]),
    "too few names": ("t.csv", GOOD, LABELS | {"header": False, "columns": ["a", "b"]}, UsageError, ["t.csv", "3 fields"]),
    "wrong separator": ("t.csv", GOOD, LABELS | {"separator": ";"}, UsageError, ["t.csv", "click"]),
    # labels
    "no labels": ("t.csv", GOOD, {}, UsageError, ["t.csv", "label"]),
    "unknown label": ("t.csv", GOOD, {"labels": ["clik"]}, UsageError, ["t.csv", "'clik'", "Did you mean click"]),
    "empty label": ("t.csv", GOOD.replace(",0\n", ",\n").replace(",1\n", ",\n"), LABELS, UsageError, ["click", "t.csv", "no value"]),
    "one class": ("t.csv", GOOD.replace(",1\n", ",0\n"), LABELS, MtlkitError, ["click"]),
    "one text": ("t.csv", GOOD.replace(",1\n", ",x\n").replace(",0\n", ",x\n"), LABELS, UsageError, ["click", "'x'"]),
    "date as label": ("t.csv", changed(0, "a,b,click").replace(",0\n", ",2020-01-01\n").replace(",1\n", ",2020-01-02\n"), LABELS, UsageError, ["click", "timestamp"]),
    "infinite label": ("t.csv", changed(9, "1,inf,0"), {"labels": ["b"]}, MissingError, ["'b'", "t.csv", "row 9"]),
    "text as regression": ("t.csv", GOOD.replace(",1\n", ",x\n"), {"labels": {"click": {"kind": "regression"}}}, UsageError, ["click", "text"]),
    "positive that is not there": ("t.csv", GOOD, {"labels": {"click": {"positive": 7}}}, UsageError, ["click", "7"]),
    "binary of many": ("t.csv", GOOD, {"labels": {"a": {"kind": "binary"}}}, UsageError, ["'a'", "positive"]),
    "multiclass of one": ("t.csv", GOOD.replace(",1\n", ",0\n"), {"labels": {"click": {"kind": "multiclass"}}}, UsageError, ["click", "all rows"]),
    "funnel of a regression": ("t.csv", GOOD, {"labels": ["b", "click"], "funnel": ["b", "click"]}, UsageError, ["'b'", "regression"]),
    "funnel of one": ("t.csv", GOOD, {"labels": ["click"], "funnel": ["click"]}, UsageError, ["funnel"]),
    "funnel of no label": ("t.csv", GOOD, {"labels": ["click"], "funnel": ["click", "a"]}, UsageError, ["'a'", "funnel"]),
    "given no label": ("t.csv", GOOD, {"labels": {"click": {"given": "a"}}}, UsageError, ["'a'", "label"]),
    "given a regression": ("t.csv", GOOD, {"labels": {"b": {}, "click": {"given": "b"}}}, UsageError, ["'b'", "regression"]),
    "label twice": ("t.csv", GOOD, {"labels": ["click", "click"]}, UsageError, ["click", "twice"]),
    # kinds
    "label as input": ("t.csv", GOOD, LABELS | {"ids": ["click"]}, UsageError, ["click", "labels and ids"]),
    "two kinds": ("t.csv", GOOD, LABELS | {"ids": ["a"], "dense": ["a"]}, UsageError, ["'a'", "ids and dense"]),
    "unknown column": ("t.csv", GOOD, LABELS | {"dense": ["bb"]}, UsageError, ["t.csv", "'bb'", "dense", "Did you mean b"]),
    "unknown role": ("t.csv", GOOD, LABELS | {"roles": {"usr": "a"}}, UsageError, ["roles"]),
    "role of nobody": ("t.csv", GOOD, LABELS | {"roles": {"user": "u"}}, UsageError, ["t.csv", "'u'", "roles"]),
    "word among numbers": ("t.csv", changed(40, "1,oops,0"), LABELS | {"dense": ["b"]}, UsageError, ["'b'", "t.csv", "'oops'", "row 40"]),
    "infinite number": ("t.csv", changed(40, "1,inf,0"), LABELS, MissingError, ["'b'", "t.csv", "row 40"]),
    "text as dense": ("t.csv", changed(0, "b,a,click").replace("0.0", "x"), LABELS | {"dense": ["a"]}, UsageError, ["'a'", "'x'"]),
    "number as bag": ("t.csv", GOOD, LABELS | {"bags": ["b"]}, UsageError, ["'b'", "bags"]),
    "number as date": ("t.csv", GOOD, LABELS | {"dates": {"b": ["hour"]}}, UsageError, ["'b'", "dates"]),
    "no inputs": ("t.csv", GOOD, LABELS | {"drop": ["a", "b"]}, UsageError, ["t.csv", "input"]),
    "zero buckets": ("t.csv", GOOD, LABELS | {"hash": {"a": 0}}, UsageError, ["hash"]),
    "no minimum": ("t.csv", GOOD, LABELS | {"min_count": 0}, UsageError, ["min_count"]),
    "odd transform": ("t.csv", GOOD, LABELS | {"transform": {"b": "cube"}}, UsageError, ["transform", "cube"]),
    "odd option": ("t.csv", GOOD, LABELS | {"lable": "a"}, UsageError, ["lable", "Did you mean labels"]),
    # splits
    "time without time": ("t.csv", GOOD, LABELS | {"split": "time"}, UsageError, ["t.csv", "time"]),
    "group without user": ("t.csv", GOOD, LABELS | {"split": "group"}, UsageError, ["t.csv", "user"]),
    "column without name": ("t.csv", GOOD, LABELS | {"split": "column"}, UsageError, ["split", "column"]),
    "ratio of a column": ("t.csv", GOOD, LABELS | {"split": ["ratio", "a"]}, UsageError, ["split", "ratio"]),
    "unknown split": ("t.csv", GOOD, LABELS | {"split": "luck"}, UsageError, ["split", "luck"]),
    "split by nothing": ("t.csv", GOOD, LABELS | {"split": ["time", "when"]}, UsageError, ["t.csv", "'when'"]),
    "value of no split": ("t.csv", GOOD, LABELS | {"split": ["column", "a"]}, UsageError, ["'a'", "t.csv", "split"]),
    "no time in a row": ("t.csv", changed(5, ",2.0,0"), LABELS | {"split": ["time", "a"]}, UsageError, ["'a'", "t.csv", "row 5"]),
    "one time": ("t.csv", "".join("a,b,click\n" if i == 0 else f"5,{i},{i % 2}\n" for i in range(40)), LABELS | {"split": ["time", "a"]}, UsageError, ["time:a", "t.csv", "train"]),
    "time in words": ("t.csv", GOOD.replace("0.0", "x"), LABELS | {"split": ["time", "b"]}, UsageError, ["'b'", "t.csv", "times"]),
    "all rows test": ("t.csv", GOOD, LABELS | {"split": {"by": "ratio", "validation": 0.6, "test": 0.6}}, UsageError, ["split"]),
    "one user": ("t.csv", "".join("u,b,click\n" if i == 0 else f"5,{i},{i % 2}\n" for i in range(40)), LABELS | {"split": ["group", "u"]}, UsageError, ["group:u", "t.csv"]),
    # weights
    "weight of words": ("t.csv", GOOD.replace("0.0", "x"), LABELS | {"weight": "b"}, MissingError, ["'b'", "t.csv"]),
    "negative weight": ("t.csv", changed(12, "1,-2.5,0"), LABELS | {"weight": "b"}, MissingError, ["'b'", "t.csv", "row 12"]),
    "missing weight": ("t.csv", changed(12, "1,,0"), LABELS | {"weight": "b"}, MissingError, ["'b'", "t.csv", "row 12"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_malformed_table_is_told_in_a_sentence(name, tmp_path):
    file, contents, options, error_type, parts = TABLES[name]
    data = contents.encode() if isinstance(contents, str) else contents
    (tmp_path / file).write_bytes(data)
    check(tmp_path, spec_of(tmp_path / file, options), error_type, parts)


def spec_of(file, options):
    """The table with options that brackets cannot hold written into a YAML file beside it."""
    import yaml

    text = yaml.safe_dump({"files": file.name, **options})
    (file.parent / "table.yaml").write_text(text, encoding="utf-8")
    return str(file.parent / "table.yaml")


def check(folder, text, error_type, parts):
    with pytest.raises(MtlkitError) as caught:
        prepare(text, folder / "data")
    error = caught.value
    assert isinstance(error, error_type)
    assert error.exit_code in (2, 3)
    assert "\n" not in error.message
    assert error.message.endswith((".", "?")), error.message
    assert error.hint
    for part in parts:
        assert part in error.message, error.message

    # The only thing that may be there is the note of what the file holds.
    left = [path for path in (folder / "data").rglob("*") if path.is_file()]
    assert [path for path in left if path.parent.name != "files"] == []


def parquet_bytes(table):
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


CLICK = pa.array([0, 1] * 10)
PARQUETS = {
    "structs": (pa.table({"s": [{"x": 1}] * 20, "click": CLICK}), ["'s'", "struct"]),
    "lists of lists": (pa.table({"s": [[[1]]] * 20, "click": CLICK}), ["'s'", "list"]),
    "bytes": (pa.table({"s": [b"\xff\xfe"] * 20, "click": CLICK}), ["'s'"]),
    "lists as labels": (pa.table({"a": [1] * 20, "click": [[1]] * 20}), ["'click'", "list"]),
}  # fmt: skip


@pytest.mark.parametrize("name", PARQUETS)
def test_columns_that_are_no_ids_and_no_numbers(name, tmp_path):
    table, parts = PARQUETS[name]
    (tmp_path / "t.parquet").write_bytes(parquet_bytes(table))
    check(tmp_path, f"{tmp_path}/t.parquet[labels=click]", MtlkitError, [*parts, "t.parquet"])


def test_a_cut_parquet_file(tmp_path):
    whole = parquet_bytes(pa.table({"a": list(range(1000)), "click": [0, 1] * 500}))
    (tmp_path / "t.parquet").write_bytes(whole[: len(whole) // 2])
    check(tmp_path, f"{tmp_path}/t.parquet[labels=click]", MissingError, ["t.parquet"])


def test_vectors_of_another_length_are_told_with_their_row(tmp_path):
    rows = [[0.5, 1.5]] * 30_000
    rows[25_000] = [0.5]
    table = pa.table({"v": rows, "click": [0, 1] * 15_000})
    (tmp_path / "t.parquet").write_bytes(parquet_bytes(table))
    text = f"{tmp_path}/t.parquet[labels=click,dense=v]"
    check(tmp_path, text, MtlkitError, ["'v'", "t.parquet"])


SHARDS = {
    "other columns": ("b,a,click\n1,2,0\n", ["2.csv", "first line"]),
    "more columns": ("a,b,click,d\n1,2,0,4\n", ["2.csv", "first line"]),
    "no UTF-8": ("a,b,click\n\xe9,2,0\n".encode("latin-1"), ["2.csv", "UTF-8"]),
    "empty": ("", ["2.csv", "empty"]),
}


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_that_does_not_fit(name, tmp_path):
    contents, parts = SHARDS[name]
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "1.csv").write_text(GOOD, encoding="utf-8")
    data = contents if isinstance(contents, bytes) else contents.encode()
    (folder / "2.csv").write_bytes(data)
    check(tmp_path, str(Spec(str(folder), LABELS)), MissingError, parts)


YAMLS = {
    "no YAML": ("files: [t.csv", ["table.yaml", "YAML"]),
    "a list": ("- t.csv", ["table.yaml", "key: value"]),
    "a key twice": ("files: t.csv\nfiles: t.csv", ["table.yaml", "twice", "line 2"]),
    "an odd key": ("files: t.csv\nlabel: click", ["table.yaml", "label", "Did you mean labels"]),
    "no files": ("labels: [click]", ["table.yaml", "where the table lies"]),
    "files that are not there": ("files: u.csv\nlabels: [click]", ["u.csv"]),
    "an odd key of a label": ("files: t.csv\nlabels: {click: {sign: 1}}", ["table.yaml", "sign"]),
    "an odd split": ("files: t.csv\nlabels: [click]\nsplit: {by: ratio, share: 1}", ["share"]),
    "a number of files": ("files: 7\nlabels: [click]", ["7"]),
    "a map of ids": ("files: t.csv\nlabels: [click]\nids: {a: 1}", ["ids"]),
    "not UTF-8": (b"files: \xe9.csv", ["table.yaml", "UTF-8"]),
    "an endless date": ("files: 2020-02-31", ["table.yaml", "date"]),
}


@pytest.mark.parametrize("name", YAMLS)
def test_a_malformed_yaml_file_is_told_in_a_sentence(name, tmp_path):
    text, parts = YAMLS[name]
    (tmp_path / "t.csv").write_text(GOOD, encoding="utf-8")
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "table.yaml").write_bytes(data)
    check(tmp_path, str(tmp_path / "table.yaml"), MtlkitError, parts)


def test_there_are_eighty():
    assert len(TABLES) + len(PARQUETS) + len(SHARDS) + len(YAMLS) >= 80


FRAMES = {
    "no frame": ([1, 2, 3], ["list"]),
    "mixed types": (pd.DataFrame({"a": [1, "x", 2.5] * 10, "click": [0, 1] * 15}), ["a"]),
    "two columns of one name": (
        pd.DataFrame([[1, 2, 0], [3, 4, 1]] * 9, columns=["a", "a", "click"]),
        ["'a'"],
    ),
    "no rows": (pd.DataFrame({"a": [], "click": []}), ["0 rows"]),
    "no columns": (pd.DataFrame(), ["no columns"]),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_that_is_none(name):
    from mtlkit import Dataset

    frame, parts = FRAMES[name]
    with pytest.raises(MtlkitError) as caught:
        Dataset.from_frame(frame, labels="click")
    assert caught.value.hint
    for part in parts:
        assert part in caught.value.message


def test_the_good_table_is_good(tmp_path):
    (tmp_path / "t.csv").write_text(GOOD, encoding="utf-8")
    prepare(spec_of(tmp_path / "t.csv", LABELS), tmp_path / "data")
