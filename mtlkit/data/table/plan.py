"""What becomes of each column of a table: as the spec says, and else by its type and first rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtlkit.data.table.read import TIME, Columns, Table, is_list
from mtlkit.data.table.spec import DatePart, Role, TableSpec, Transform
from mtlkit.errors import UsageError, did_you_mean, nearest_names

Kind = Literal["id", "dense", "vector", "bag", "date"]
COMMON_NAMES: dict[Role, tuple[str, ...]] = {
    "user": ("user", "user_id", "userid", "uid"),
    "item": ("item", "item_id", "itemid", "iid", "video_id", "product_id"),
    "session": ("session", "session_id", "sessionid"),
    "time": ("timestamp", "time_ms", "datetime"),
}
"""Names that tell the role of a column."""
DATE_PARTS: tuple[DatePart, ...] = ("weekday", "hour")
BRACKETS = "[]"  # the separator of lists that were written as text: [1, 2]
LIKELY_SEPARATORS = ("|", ";")
SEPARATORS = ("|", ";", ",", " ")
SAMPLE_ROWS = 10_000  # rows that decide on the kinds of columns
BAG_SHARE = 0.3  # of the texts, that must hold a separator for a column to be bags


@dataclass(frozen=True)
class ColumnPlan:
    """What becomes of an input column."""

    name: str  # of the column
    kind: Kind  # how it is encoded
    dtype: pa.DataType  # its type in the table
    is_given: bool = False  # whether the user chose the kind
    role: Role | None = None  # what it describes
    min_count: int = 1  # ids seen less often on train count as unknown
    buckets: int | None = None  # into how many numbers ids are hashed; None for a vocabulary
    transform: Transform = "standard"  # how numbers are scaled
    bins: int = 64  # about how many ids a binned column gets
    separator: str | None = None  # between the ids of a bag of text; ``[]`` for a list in brackets
    parts: tuple[DatePart, ...] = DATE_PARTS  # parts of a date that become ids
    length: int = 0  # numbers in a vector
    axes: int = 0  # on how many principal axes a vector is projected; 0 for none
    known: int = 0  # number of the ids, where values are ids already; 0 where they are encoded
    # The column of the weights of a bag's ids; None where all ids of a row share 1.
    weights: str | None = None


@dataclass(frozen=True)
class TablePlan:
    """What becomes of a table."""

    spec: TableSpec  # what the user said
    inputs: tuple[ColumnPlan, ...]  # columns that become features, in their order in the table
    left_out: dict[str, str]  # column to the reason why it is no feature, for the card
    roles: dict[Role, str]  # role to its column; given, or told by a common name

    @property
    def groups(self) -> dict[str, str]:
        """Name of a group array of the splits to the column that it is made of."""
        names = {file_name(column): column for column in self.spec.groups}
        return names | {
            role: self.roles[role] for role in ("user", "session", "time") if role in self.roles
        }


def file_name(column: str) -> str:
    """The name of a column as it can stand in names of files and parameters."""
    return re.sub(r"[^\w-]+", "-", column) or "-"


def make_plan(table: Table, spec: TableSpec) -> TablePlan:
    """Decide what becomes of each column.

    Raises:
        UsageError: A column is named that does not exist, or for a use that its type does not
            allow; or no label is named, or no input is left.
    """
    _check_names(table, spec)
    roles = _roles(table, spec)
    left_out = _left_out(spec, roles)
    sample = _sample(table, [name for name in table.types if name not in left_out])

    inputs = []
    for name in table.types:
        if name in left_out:
            continue
        kind, reason = _kind(table, name, sample[name], spec)
        if kind is None:
            left_out[name] = reason
        else:
            inputs.append(_column_plan(table, name, kind, sample[name], spec, roles))
    if not inputs:
        raise UsageError(
            f"No column of {table.label} is left as an input.",
            f"name some: --ids or --dense, of {_listed(table.types)}",
        )
    return TablePlan(spec, tuple(inputs), left_out, roles)


# --- names


def _check_names(table: Table, spec: TableSpec) -> None:
    """Raise a :class:`UsageError` for a column that is named, but does not exist."""
    if not spec.labels:
        raise UsageError(
            f"No label of {table.label} is named.",
            f"--labels A,B, of its columns {_listed(table.types)}",
        )
    named = {
        **spec.uses(),
        "roles": tuple(spec.roles.values()),
        "groups": spec.groups,
        "split": (spec.split.column,) if spec.split.column is not None else (),
        "min_counts": tuple(spec.min_counts),
        "hash": tuple(spec.hash),
        "dates": tuple(spec.dates),
        "transform": tuple(spec.transform),
        "project": tuple(spec.project),
        "separators": tuple(spec.separators),
    }
    for use, names in named.items():
        for name in names:
            if name not in table.types:
                guess = did_you_mean(nearest_names(name, table.types))
                raise UsageError(
                    f"{table.label} has no column {name!r}, named in {use}.{guess}",
                    f"its columns are {_listed(table.types)}",
                )


def _listed(names: Sequence[str] | dict[str, pa.DataType]) -> str:
    """Some names, in a sentence."""
    shown = list(names)[:12]
    more = ", ..." if len(names) > len(shown) else ""
    return ", ".join(shown) + more


def _roles(table: Table, spec: TableSpec) -> dict[Role, str]:
    """Role to its column: given, else told by a common name, or by being the only time."""
    roles = dict(spec.roles)

    # Whatever the rows are split by in time is their time.
    if spec.split.by == "time" and spec.split.column is not None:
        roles.setdefault("time", spec.split.column)
    spoken_for = {*spec.labels, *spec.drop, *roles.values(), *spec.weights}
    for role, names in COMMON_NAMES.items():
        for name in table.types:
            is_named = name.lower() in names and name not in spoken_for
            if is_named and _may_be(role, table.types[name]):
                roles.setdefault(role, name)

    times = [name for name, dtype in table.types.items() if dtype == TIME]
    if len(times) == 1 and times[0] not in spoken_for and times[0] not in spec.dates:
        roles.setdefault("time", times[0])
    return roles


def _may_be(role: Role, dtype: pa.DataType) -> bool:
    """Whether values of a type can have a role that the user did not give."""
    if role == "time":
        return dtype == TIME or _is_number(dtype)
    return not (is_list(dtype) or pa.types.is_null(dtype))


def _left_out(spec: TableSpec, roles: dict[Role, str]) -> dict[str, str]:
    """Column to the reason why it is no feature, whatever its type."""
    left_out = dict.fromkeys(spec.labels, "a label")
    left_out |= dict.fromkeys(spec.drop, "dropped")
    left_out |= dict.fromkeys(spec.weights, "a row weight")
    if spec.split.by == "column" and spec.split.column is not None:
        left_out[spec.split.column] = "says which split a row is in"

    # The time of a row is an input only where the user names it as one.
    named = {*spec.ids, *spec.dense, *spec.bags, *spec.dates}
    time = roles.get("time")
    if time is not None and time not in named:
        left_out[time] = "the time of the row"
    return left_out


# --- kinds


def _sample(table: Table, columns: list[str]) -> Columns:
    """The first rows of some columns; of one that is empty there, the first rows that are not."""
    sample = _first_rows(table, columns)
    for name in columns:
        if sample[name].null_count == len(sample[name]):
            later = (batch for batch in table.batches([name]) if len(batch[name].drop_null()))
            sample |= next(later, {})
    return sample


def _first_rows(table: Table, columns: list[str]) -> Columns:
    batches, rows = [], 0
    for batch in table.batches(columns, rows=SAMPLE_ROWS) if columns else ():
        batches.append(batch)
        rows += len(batch[columns[0]])
        if rows >= SAMPLE_ROWS:
            break
    return {name: pa.concat_arrays([batch[name] for batch in batches]) for name in columns}


def _kind(table: Table, name: str, sample: pa.Array, spec: TableSpec) -> tuple[Kind | None, str]:
    """The kind of a column, or None and the reason why it is no feature."""
    dtype = table.types[name]
    length = _vector_length(sample)
    if name in spec.dates:
        return _checked(table, name, "date", dtype in (TIME, pa.null()), "dates")
    if name in spec.ids or name in spec.hash:
        return _checked(table, name, "id", not is_list(dtype), "ids")
    if name in spec.bags or name in spec.separators:
        can_be = is_list(dtype) or pa.types.is_string(dtype) or pa.types.is_null(dtype)
        return _checked(table, name, "bag", can_be, "bags")
    if name in spec.dense or name in spec.transform or name in spec.project:
        if length:
            return "vector", ""
        is_number = _is_number(dtype) or pa.types.is_null(dtype) or pa.types.is_boolean(dtype)
        return _checked(table, name, "dense", is_number, "dense")

    # Not named: by type and first rows.
    if pa.types.is_null(dtype) or not len(pc.drop_null(sample)):
        return None, "empty"
    if dtype == TIME:
        return "date", ""
    if is_list(dtype):
        if pa.types.is_floating(dtype.value_type):
            return ("vector", "") if length else (None, "lists of numbers of several lengths")
        return "bag", ""
    if pa.types.is_floating(dtype):
        holds_ids = table.whole_floats and sample.null_count > 0 and _is_whole(sample)
        return ("id" if holds_ids else "dense"), ""
    if pa.types.is_string(dtype):
        if length:
            return "vector", ""
        return ("bag" if find_separator(sample, LIKELY_SEPARATORS) else "id"), ""
    return "id", ""


def _checked(table: Table, name: str, kind: Kind, can_be: bool, use: str) -> tuple[Kind, str]:
    """A kind that the user chose, if the type of the column allows it."""
    if not can_be:
        raise UsageError(
            f"The column {name!r} of {table.label} holds values of type {table.types[name]}, "
            f"which cannot be {use}.",
            f"take it out of {use}, or --drop {name}",
        )
    return kind, ""


def _is_number(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_integer(dtype) or pa.types.is_floating(dtype))


def _is_whole(values: pa.Array) -> bool:
    """Whether floats hold whole numbers only."""
    return bool(pc.all(pc.equal(values, pc.round(values))).as_py())


def _vector_length(sample: pa.Array) -> int:
    """The one length of lists of numbers, which may be text in brackets; 0 where there is none."""
    sample = pc.drop_null(sample)
    if pa.types.is_string(sample.type):
        if find_separator(sample, ()) != BRACKETS:
            return 0
        pieces = split_texts(sample, BRACKETS)
        has_point = pc.any(pc.match_substring(pieces.flatten(), ".")).as_py()
        if not has_point:
            return 0
        sample = pieces
    elif not is_list(sample.type) or not _is_number(sample.type.value_type):
        return 0
    lengths = pc.unique(pc.list_value_length(sample))
    return int(lengths[0].as_py()) if len(lengths) == 1 else 0


def find_separator(sample: pa.Array, candidates: Sequence[str]) -> str | None:
    """What stands between the ids of texts, if they are bags: ``[]`` for lists in brackets."""
    texts = pc.drop_null(sample)
    if not len(texts):
        return None
    is_bracketed = pc.match_substring_regex(texts, r"^\[.*\]$")
    if pc.all(is_bracketed).as_py():
        return BRACKETS
    for separator in candidates:
        share = pc.mean(pc.match_substring(texts, separator)).as_py()
        if share >= BAG_SHARE:
            return separator
    return None


def split_texts(texts: pa.Array, separator: str) -> pa.ListArray:
    """Texts as lists of texts; an empty text is an empty list."""
    if separator == BRACKETS:
        texts = pc.utf8_trim(texts, "[] ")
        separator = ","
    pieces = pc.split_pattern(texts, separator)
    flat = pc.utf8_trim(pieces.flatten(), " '\"")

    # Nothing between two separators is no id.
    is_some = pc.fill_null(pc.not_equal(flat, ""), False)
    lengths = pc.list_value_length(pieces).fill_null(0)
    return _without(flat, is_some, lengths)


def _without(flat: pa.Array, is_kept: pa.Array, lengths: pa.Array) -> pa.ListArray:
    """Lists of these lengths over ``flat``, with the elements that are kept."""
    ends = np.concatenate([[0], np.cumsum(lengths.to_numpy(zero_copy_only=False))])
    kept_before = np.concatenate([[0], np.cumsum(is_kept.to_numpy(zero_copy_only=False))])
    offsets = pa.array(kept_before[ends].astype(np.int32))
    return pa.ListArray.from_arrays(offsets, flat.filter(is_kept))


def _column_plan(
    table: Table, name: str, kind: Kind, sample: pa.Array, spec: TableSpec, roles: dict[Role, str]
) -> ColumnPlan:
    """The plan of one input."""
    separator = spec.separators.get(name)
    if pa.types.is_string(table.types[name]) and kind in ("bag", "vector"):
        separator = separator or find_separator(sample, SEPARATORS) or "|"
    named = (*spec.ids, *spec.dense, *spec.bags, *spec.hash, *spec.transform, *spec.dates)
    length = _vector_length(sample) if kind == "vector" else 0
    return ColumnPlan(
        name=name,
        kind=kind,
        dtype=table.types[name],
        is_given=name in named,
        role=next((role for role, column in roles.items() if column == name), None),
        min_count=spec.min_counts.get(name, spec.min_count),
        buckets=spec.hash.get(name),
        transform=spec.transform.get(name, "standard"),
        bins=spec.bins,
        separator=separator,
        parts=spec.dates.get(name, DATE_PARTS),
        length=length,
        axes=_axes(table, name, length, spec),
    )


def _axes(table: Table, name: str, length: int, spec: TableSpec) -> int:
    """On how many axes the vectors of a column are projected."""
    axes = spec.project.get(name, 0)
    if axes > length:
        what = f"vectors of {length} numbers" if length else "no vectors"
        raise UsageError(
            f"The column {name!r} of {table.label} holds {what}, to be projected on {axes} axes.",
            "choose fewer axes, or take the column out of project",
        )
    return axes
