"""``mtlkit init``: a YAML file that says what a table means, proposed by a look at it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from mtlkit.data.table.files import find_files, kind_of
from mtlkit.data.table.plan import ColumnPlan, TablePlan, make_plan
from mtlkit.data.table.read import TIME, Columns, Table, is_list, peek_parquet
from mtlkit.data.table.spec import TableSpec
from mtlkit.data.table.stage import peek_text
from mtlkit.errors import UsageError

PEEK_ROWS = 50_000
LABEL_WORDS = re.compile(
    r"click|buy|bought|purchase|conver|order|paid|pay|cart|like|follow|comment|share|forward|"
    r"long_?view|finish|install|redeem|churn|label|target|outcome|^y$|^y_?\d+$",
    re.IGNORECASE,
)
"""Names of columns that are likely labels."""
UNIQUE_SHARE = 0.95
MANY_LEVELS = 10_000


def propose(pattern: str, labels: Sequence[str] = ()) -> str:
    """The text of a YAML file for a table.

    Raises:
        MtlkitError: The table cannot be read, or no column is a likely label.
    """
    files = find_files(pattern)
    table = _peek(files[0], pattern)
    sample = next(table.batches(list(table.types)), {})
    spec = TableSpec.model_validate({"labels": labels or _likely_labels(table, sample)})
    plan = make_plan(table, spec)
    return "\n".join(_lines(pattern, table, sample, plan)) + "\n"


def _peek(file: Path, label: str) -> Table:
    """The first rows of a table."""
    if kind_of(file) == "parquet":
        return peek_parquet(file, label, PEEK_ROWS)
    return peek_text(file, label, TableSpec())


def _likely_labels(table: Table, sample: Columns) -> list[str]:
    """Columns of two values whose names say that they are labels, else all columns of 0 and 1."""
    binary = [name for name in table.types if _is_binary(sample[name])]
    likely = [name for name in binary if LABEL_WORDS.search(name)]
    if not (likely or binary):
        raise UsageError(
            f"No column of {table.label} is a likely label.",
            f"mtlkit init {table.label} --labels A,B, of {', '.join(list(table.types)[:12])}",
        )
    return likely or binary[-2:]


def _is_binary(values: pa.Array) -> bool:
    """Whether a column holds two values: 0 and 1, truth values, or such words."""
    if is_list(values.type) or pa.types.is_null(values.type):
        return False
    levels = pc.unique(values.drop_null())
    return len(levels) == 2 and {str(level).lower() for level in levels.to_pylist()} <= {
        *("0", "1", "0.0", "1.0", "true", "false", "yes", "no", "y", "n", "t", "f")
    }


# --- the text


def _lines(pattern: str, table: Table, sample: Columns, plan: TablePlan) -> Iterator[str]:
    """The lines of the file."""
    yield f"# What mtlkit makes of {pattern}, by its first {table.rows:,} rows. Correct it, then:"
    yield "#   mtlkit fetch FILE.yaml      the card, with what looks like a mistake"
    yield "#   mtlkit bench -d FILE.yaml   a grid of models and balancers"
    yield f"files: {_word(pattern)}"
    yield from _label_lines(sample, plan)

    kinds = {
        "ids": ("id", "ids or levels"),
        "dense": ("dense", "numbers"),
        "bags": ("bag", "lists of ids, or text with a separator"),
    }
    unique = [column.name for column in plan.inputs if _is_unique(column, sample)]
    for key, (kind, meaning) in kinds.items():
        columns = [
            column
            for column in plan.inputs
            if column.name not in unique
            and (column.kind == kind or (key == "dense" and column.kind == "vector"))
        ]
        yield from _column_lines(key, meaning, [column.name for column in columns], sample)
    yield from _column_lines("drop", "no inputs: every row has another value", unique, sample)
    yield from _role_lines(plan)
    yield from _split_lines(plan)
    yield from _more_lines(sample, plan)


def _label_lines(sample: Columns, plan: TablePlan) -> Iterator[str]:
    yield ""
    yield "# What is predicted. To say more: {kind: regression}, {kind: multiclass},"
    yield "# {positive: yes}, {given: click} where a label exists only after a click."
    yield "labels:"
    for name in plan.spec.labels:
        yield f"  {_word(name)}: {{}}  # {_look(sample[name])}"
    steps = _nested_steps(sample, list(plan.spec.labels))
    yield ""
    yield "# The order in which a user comes to them: each step only after the one before."
    yield f"funnel: [{', '.join(map(_word, steps))}]" if steps else "# funnel: [click, buy]"


def _nested_steps(sample: Columns, labels: list[str]) -> list[str]:
    """The labels, the most frequent first, if each is positive only where the one before is."""
    if len(labels) < 2 or not all(_is_binary(sample[name]) for name in labels):
        return []
    positive = {}
    for name in labels:
        levels = sorted(pc.unique(sample[name].drop_null()).to_pylist(), key=str)
        is_positive = pc.fill_null(pc.equal(sample[name], levels[1]), False)
        positive[name] = is_positive.to_numpy(zero_copy_only=False)
    steps = sorted(labels, key=lambda name: -int(positive[name].sum()))
    is_nested = all(not (positive[b] & ~positive[a]).any() for a, b in pairwise(steps))
    return steps if is_nested else []


def _column_lines(key: str, meaning: str, names: Sequence[str], sample: Columns) -> Iterator[str]:
    """A list of columns, each with what it holds."""
    yield ""
    yield f"# Columns of {meaning}." if key != "drop" else f"# Columns that are {meaning}."
    if not names:
        yield f"{key}: []"
        return
    yield f"{key}:"
    for name in names:
        yield f"  - {_word(name)}  # {_look(sample[name])}"


def _role_lines(plan: TablePlan) -> Iterator[str]:
    yield ""
    yield "# What some columns describe: user, item, domain, session, time. Metrics within users"
    yield "# need the user; the time is no input unless it stands among the dates."
    if not plan.roles:
        yield "# roles: {user: user_id}"
        return
    yield "roles:"
    for role, name in plan.roles.items():
        yield f"  {role}: {_word(name)}"


def _split_lines(plan: TablePlan) -> Iterator[str]:
    yield ""
    yield "# How rows are dealt out: by ratio (at random), time, group (no user in two splits), or"
    yield "# column, with values: {train: [...], validation: [...], test: [...]}."
    yield "split:"
    yield f"  by: {'time' if 'time' in plan.roles else 'ratio'}"
    yield "  validation: 0.1"
    yield "  test: 0.1"


def _more_lines(sample: Columns, plan: TablePlan) -> Iterator[str]:
    """What else can be said, as comments with columns of this table where there are such."""
    dates = [name for name, values in sample.items() if values.type == TIME]
    numbers = [column.name for column in plan.inputs if column.kind == "dense"]
    ids = [column.name for column in plan.inputs if column.kind == "id"]
    many = [name for name in ids if len(pc.unique(sample[name])) > MANY_LEVELS] or ids
    yield ""
    yield "# More that can be said:"
    yield "# min_count: 5                 # ids seen less often on train count as unknown"
    if many:
        yield f"# hash: {{{_word(many[0])}: 100000}}  # numbers for ids without end"
    if dates:
        yield f"# dates: {{{_word(dates[0])}: [weekday, hour]}}  # parts that become ids"
    if numbers:
        choices = "standard, log, minmax, quantile, bins or none"
        yield f"# transform: {{{_word(numbers[0])}: log}}  # {choices}"
    yield "# groups: [segment]            # columns to report metrics by"
    yield "# weight: row_weight           # a column that is no input"


def _is_unique(column: ColumnPlan, sample: Columns) -> bool:
    """Whether a column of ids tells every row apart, and is no user or item."""
    values = sample[column.name].drop_null()
    if column.kind != "id" or column.role is not None or len(values) < 100:
        return False
    return len(pc.unique(values)) > UNIQUE_SHARE * len(values)


def _word(name: str) -> str:
    """A name as YAML writes it."""
    text = yaml.safe_dump([name], default_flow_style=True, allow_unicode=True, width=10**6)
    return text.strip()[1:-1]


def _look(values: pa.Array) -> str:
    """What a column holds, in a few words on one line."""
    known = values.drop_null()
    share = f", {values.null_count / len(values):.0%} missing" if values.null_count else ""
    if not len(known):
        return "empty"
    if is_list(values.type):
        text = str(known[0].as_py())
    elif _is_binary(values):
        levels = sorted(pc.unique(known).to_pylist(), key=str)
        rate = pc.mean(pc.equal(known, levels[1])).as_py()
        return f"{levels[0]} or {levels[1]}, {rate:.1%} are {levels[1]}{share}"
    elif pa.types.is_floating(values.type):
        low, high = np.min(known.to_numpy()), np.max(known.to_numpy())
        return f"{low:g} to {high:g}{share}"
    else:
        text = str(known[0].as_py())
        share = f", {len(pc.unique(known)):,} levels{share}"
    shown = re.sub(r"\s+", " ", text)[:40]
    return f"such as {shown}{share}"
