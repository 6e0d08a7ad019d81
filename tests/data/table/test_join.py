"""Tables made of tables hold what pandas makes of them, read in batches of any size."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mtlkit.data.table.join import (
    keep_rows,
    look_up,
    stack_tables,
    with_clock,
    with_columns,
    with_constant,
)
from mtlkit.data.table.read import open_frame
from mtlkit.errors import MissingError

LOG = pd.DataFrame({"user": [3, 1, 9, 3, 2], "price": [1, 2, 3, 4, 5], "text": list("abcde")})
USERS = pd.DataFrame(
    {"id": [1, 2, 3, 3], "age": [10.5, None, 30.0, 99.0], "tag": ["x", "y", None, "z"]}
)


def table(frame):
    return open_frame(frame, "t.csv", ())


def rows(made, columns, size):
    batches = list(made.batches(columns, rows=size))
    return [
        tuple(batch[name][n].as_py() for name in columns)
        for batch in batches
        for n in range(len(batch[columns[0]]))
    ]


@pytest.mark.parametrize("size", [1, 2, 100])
def test_looked_up_columns_are_those_of_the_first_row_with_the_key(size):
    made = look_up(table(LOG), "user", table(USERS), ("age", "tag"), "id")
    assert rows(made, ["tag", "user", "age"], size) == [
        (None, 3, 30.0),
        ("x", 1, 10.5),
        (None, 9, None),
        (None, 3, 30.0),
        ("y", 2, None),
    ]
    assert rows(made, ["age"], size) == [(30.0,), (10.5,), (None,), (30.0,), (None,)]
    assert rows(made, ["text"], size) == [(letter,) for letter in "abcde"]
    assert made.rows == 5


def test_a_column_that_is_not_there_is_told():
    with pytest.raises(MissingError, match=r"t.csv has no column 'colour'"):
        look_up(table(LOG), "user", table(USERS), ("colour",), "id")


@pytest.mark.parametrize("size", [1, 3, 100])
def test_stacked_rows_come_one_table_after_the_other(size):
    more = LOG.assign(price=[0.5] * 5)[["text", "price", "user"]]
    parts = [with_constant(table(LOG), "part", "a"), with_constant(table(more), "part", "b")]
    made = stack_tables(parts)
    assert made.rows == 10
    assert made.types["price"] == pa.float64()
    prices = [1.0, 2.0, 3.0, 4.0, 5.0, *[0.5] * 5]
    assert rows(made, ["part", "price"], size) == list(zip("aaaaabbbbb", prices, strict=True))
    with pytest.raises(MissingError, match=r"lacks the column 'price'"):
        stack_tables([table(LOG), table(LOG.drop(columns="price"))])


@pytest.mark.parametrize("size", [1, 2, 100])
def test_some_rows_are_kept(size):
    made = keep_rows(table(LOG), ["user"], lambda batch: batch["user"].to_numpy() == 3)
    assert made.rows == 2
    assert rows(made, ["text"], size) == [("a",), ("d",)]
    assert rows(made, ["user", "text"], size) == [(3, "a"), (3, "d")]


def test_computed_columns_replace_those_of_their_name():
    def double(batch):
        return {"price": pa.array(batch["price"].to_numpy() * 2)}

    made = with_columns(table(LOG), ["price"], {"price": pa.int64()}, double)
    assert rows(made, ["price", "user"], 2) == [(2, 3), (4, 1), (6, 9), (8, 3), (10, 2)]


def test_the_clock_is_that_of_pandas():
    moments = np.random.default_rng(0).integers(10**9, 2**31, 500)
    local = pd.to_datetime(moments, unit="s", utc=True).tz_convert("Asia/Shanghai")
    frame = pd.DataFrame({"ms": [*(moments * 1000), None]}, dtype="Int64")
    made = with_clock(table(frame), "ms", 1000, 8)
    expected = [*zip(local.hour, local.day_of_week, strict=True), (None, None)]
    assert rows(made, ["hour", "weekday"], 64) == expected
