"""Labels: what kind of task a column is, which value is positive, and which rows have a label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtlkit.data.encoders import QuantileRanks
from mtlkit.data.table.number_columns import Moments, Sample
from mtlkit.data.table.plan import file_name
from mtlkit.data.table.read import TIME, Columns, Table, is_list
from mtlkit.data.table.spec import TableSpec, TaskSpec
from mtlkit.data.targets import to_normal_ranks
from mtlkit.data.types import Task, check_losses
from mtlkit.errors import MissingError, UsageError

MAX_CLASSES = 1000
YES = {"yes", "y", "true", "t", "1", "positive", "pos", "on", "success"}
NO = {"no", "n", "false", "f", "0", "negative", "neg", "off", "failure"}


@dataclass(frozen=True)
class Label:
    """A label column."""

    column: str  # its name in the table
    task: Task  # what it becomes; the scale of a regression is filled in when train was seen
    # The classes in order, of a binary label (negative, positive); None for numbers. The negative
    # level is None where all other values are negative.
    levels: tuple[Any, ...] | None
    given: str | None = None  # the label without whose positive this one does not exist

    def encode(self, values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """(n,) values to (n,) float64 labels, not yet standardised, and (n,) whether they exist."""
        exists = values.is_valid().to_numpy(zero_copy_only=False)
        if self.levels is None:
            labels = values.cast(pa.float64()).fill_null(0).to_numpy(zero_copy_only=False)
            return labels, exists
        if self.task.kind == "binary":
            positive = pa.scalar(self.levels[1], values.type)
            is_positive = pc.fill_null(pc.equal(values, positive), False)
            return is_positive.to_numpy(zero_copy_only=False).astype(np.float64), exists
        classes = pc.index_in(values, pa.array(self.levels, values.type)).fill_null(0)
        return classes.to_numpy(zero_copy_only=False).astype(np.float64), exists


def find_labels(table: Table, spec: TableSpec) -> list[Label]:
    """Read all label columns once, and decide what each of them is.

    Raises:
        UsageError: A column holds no labels, or not the positive value that was named.
    """
    counts = _count_values(table, list(spec.labels))
    names = [file_name(column) for column in spec.labels]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"Two labels of {table.label} would be tasks called {name!r}.", "rename a column"
            )
    labels = [_label(table, column, task, counts[column]) for column, task in spec.labels.items()]
    _check_steps(table, spec, labels)
    return labels


def _count_values(table: Table, columns: Sequence[str]) -> dict[str, Counter[Any] | None]:
    """Column to how often each of its values stands there; None where these are too many."""
    counts: dict[str, Counter[Any] | None] = {column: Counter() for column in columns}
    for batch in table.batches(columns):
        for column in columns:
            found = counts[column]
            if found is None or is_list(table.types[column]):
                continue
            levels, rows = pc.value_counts(batch[column].drop_null()).flatten()
            is_few = len(levels) <= MAX_CLASSES
            if is_few:
                found.update(dict(zip(levels.to_pylist(), rows.to_pylist(), strict=True)))
            if not is_few or len(found) > MAX_CLASSES:
                counts[column] = None
    return counts


def _label(table: Table, column: str, spec: TaskSpec, counts: Counter[Any] | None) -> Label:
    """What a column with these values is."""
    dtype = table.types[column]
    if is_list(dtype) or dtype == TIME:
        hint = "a label is 0 or 1, two texts, a class or a number"
        raise _wrong(table, column, f"holds values of type {dtype}", hint)
    if counts is not None and not counts:
        raise _wrong(table, column, "has no value in any row")
    values = sorted(counts) if counts is not None else None
    is_number = pa.types.is_integer(dtype) or pa.types.is_floating(dtype)
    kind = spec.kind or _kind(values, is_number, spec)

    # A positive value splits any column in two.
    if kind == "binary":
        levels = _binary_levels(table, column, spec, counts)
        return _made(table, column, spec, levels, _what_is_positive(column, *levels), {})
    if kind == "regression":
        if not (is_number or pa.types.is_boolean(dtype)):
            raise _wrong(
                table, column, "holds texts, so it is no regression", say="kind: multiclass"
            )
        facts = {"kind": kind, "losses": ("mse",)}
        facts |= {"target": spec.target} if spec.target is not None else {}
        return _made(table, column, spec, None, column, facts)
    if values is None:
        hint = "name the positive one in YAML, or take it out of --labels"
        raise _wrong(table, column, f"has more than {MAX_CLASSES} classes", hint)
    if len(values) < 2:
        raise _wrong(table, column, f"is {values[0]!r} in all rows")
    shown = ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
    facts = {"kind": kind, "classes": len(values), "losses": ("cross_entropy",)}
    return _made(table, column, spec, tuple(values), f"one of {shown}", facts)


def _kind(values: list[Any] | None, is_number: bool, spec: TaskSpec) -> Any:
    """The kind of a label of which the user says nothing."""
    if spec.positive is not None or (values is not None and len(values) <= 2):
        is_measure = is_number and values is not None and any(value % 1 for value in values)
        return "regression" if is_measure and spec.positive is None else "binary"
    return "regression" if is_number else "multiclass"


def _binary_levels(
    table: Table, column: str, spec: TaskSpec, counts: Counter[Any] | None
) -> tuple[Any, Any]:
    """The negative and the positive value; the negative is None where there are several."""
    values = sorted(counts) if counts is not None else []
    if spec.positive is not None:
        positive = _named_value(table, column, spec.positive, values)
        others = [value for value in values if value != positive]
        return (others[0] if len(others) == 1 else None), positive
    if counts is None or len(values) > 2:
        what = "has more than two values, so which one is positive must be said"
        raise _wrong(table, column, what, say="positive: ...")

    # Numbers and truth values have an order; 0 or 1 alone is the same label.
    if not isinstance(values[0], str):
        if set(values) <= {0, 1}:
            return type(values[0])(0), type(values[0])(1)
        if len(values) == 2:
            return values[0], values[1]
    words = {value: str(value).strip().lower() for value in values}
    positives = [value for value in values if words[value] in YES]
    negatives = [value for value in values if words[value] in NO]
    if len(values) == 2 and (len(positives) == 1 or len(negatives) == 1):
        positive = positives[0] if positives else next(v for v in values if v not in negatives)
        return next(value for value in values if value != positive), positive
    if len(values) == 2:
        negative, positive = sorted(values, key=lambda value: (-counts[value], value))
        return negative, positive
    raise _wrong(table, column, f"is {values[0]!r} in all rows")


def _named_value(table: Table, column: str, named: Any, values: list[Any]) -> Any:
    """The value of a column that the user named as positive; YAML reads yes as true."""
    if isinstance(named, bool) and named not in values:
        words = [value for value in values if str(value).lower() in (YES if named else NO)]
        named = words[0] if len(words) == 1 else named
    for value in values:
        same_text = str(value).strip() == str(named).strip()
        if same_text or (not isinstance(value, str) and value == named):
            return value
    dtype = table.types[column]
    if not values and not pa.types.is_string(dtype):
        # Too many values to list: a number is taken by its word.
        return named
    shown = ", ".join(repr(value) for value in values[:8])
    raise _wrong(table, column, f"has no value {named!r} to be positive", f"its values are {shown}")


def _what_is_positive(column: str, negative: Any, positive: Any) -> str:
    """The description of a binary label, which says what is positive unless that is 1."""
    if positive in (1, True) and negative in (0, False):
        return column
    return f"{column} is {positive}" + (f", not {negative}" if negative is not None else "")


def _made(
    table: Table,
    column: str,
    spec: TaskSpec,
    levels: tuple[Any, ...] | None,
    description: str,
    facts: dict[str, Any],
) -> Label:
    """The label of what the user said of it, and what was found out."""
    facts |= {"weight": spec.weight, "report": spec.report}
    if spec.losses:
        facts["losses"] = spec.losses
    if spec.given is not None:
        facts["given"] = file_name(spec.given)
    if spec.row_weights is not None:
        indicator = file_name(spec.row_weights.indicator)
        facts["row_weights"] = spec.row_weights.model_copy(update={"indicator": indicator})
    task = Task(name=file_name(column), description=spec.description or description, **facts)
    if spec.target is not None and task.kind != "regression":
        what = f"is {task.kind}, and target is for regressions"
        raise _wrong(table, column, what, say="kind: regression")
    try:
        check_losses(task)
    except ValueError as error:
        problem = f"{str(error)[:1].upper()}{str(error)[1:]}"
        raise UsageError(f"{problem}, of {table.label}.", "mtlkit list losses") from None
    return Label(column, task, levels, spec.given)


def _check_steps(table: Table, spec: TableSpec, labels: Sequence[Label]) -> None:
    """Raise a :class:`UsageError` where a step of the funnel, or what is given, is not binary."""
    kinds = {label.column: label.task.kind for label in labels}
    steps = [*spec.funnel, *(label.given for label in labels if label.given is not None)]
    for step in steps:
        if kinds[step] != "binary":
            what = f"is {kinds[step]}, but others depend on its positives"
            raise _wrong(table, step, what, say="positive: ...")


def _wrong(
    table: Table, column: str, what: str, hint: str = "take it out of --labels", say: str = ""
) -> UsageError:
    """The error for a label. What the user should ``say`` of it in YAML replaces the hint."""
    hint = f"in YAML, labels: {{{column}: {{{say}}}}}" if say else hint
    return UsageError(f"The label {column!r} of {table.label} {what}.", hint)


class LabelEncoder:
    """All labels of a table: numbers seen on train are standardised."""

    def __init__(self, labels: Sequence[Label], rows: int) -> None:
        self.labels = list(labels)
        self.moments = [Moments() for _ in labels]
        self.samples = [Sample(rows) for _ in labels]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(label.column for label in self.labels)

    def see(self, batch: Columns, is_train: np.ndarray) -> None:
        """Take in the regression labels of train."""
        labels, observed = self._raw(batch, len(is_train))
        for t, label in enumerate(self.labels):
            if label.task.kind == "regression":
                values = labels[observed[:, t] & is_train, t]
                self.moments[t].see(np.log1p(values) if label.task.target == "log1p" else values)
                if label.task.target == "quantile":
                    self.samples[t].see(values)

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, with the scales of train, which was seen by now."""
        return tuple(self._scaled(t) for t in range(len(self.labels)))

    def _scaled(self, t: int) -> Task:
        """A task with what is known of its labels on train."""
        task, moments = self.labels[t].task, self.moments[t]
        if task.kind != "regression" or task.target == "none":
            return task
        facts: dict[str, Any] = {"scale": (moments.mean, moments.std)}
        if task.target == "quantile":
            facts["quantiles"] = QuantileRanks.fit(self.samples[t].values()).values
        return task.model_copy(update=facts)

    def encode(self, batch: Columns, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """(n, T) float32 labels, 0 where there is none, and (n, T) whether there is one."""
        labels, observed = self._raw(batch, rows)
        for t, label in enumerate(self.labels):
            if label.task.kind == "regression":
                labels[:, t] = _on_scale(self.tasks[t], labels[:, t])
        return np.where(observed, labels, 0).astype(np.float32), observed

    def _raw(self, batch: Columns, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """(n, T) float64 labels and (n, T) whether they exist."""
        labels = np.zeros((rows, len(self.labels)))
        observed = np.zeros((rows, len(self.labels)), bool)
        for t, label in enumerate(self.labels):
            labels[:, t], observed[:, t] = label.encode(batch[label.column])

        # A label that is given another one exists where that one is positive.
        positions = {label.column: t for t, label in enumerate(self.labels)}
        for t, label in enumerate(self.labels):
            if label.given is not None:
                before = positions[label.given]
                observed[:, t] &= observed[:, before] & (labels[:, before] > 0)
        return labels, observed


def _on_scale(task: Task, labels: np.ndarray) -> np.ndarray:
    """(n,) labels of a regression on the scale that is trained on; see :meth:`Task.original`."""
    mean, std = task.scale or (0.0, 1.0)
    if task.target == "quantile":
        return to_normal_ranks(labels, task.quantiles or (0.0,), std)
    return ((np.log1p(labels) if task.target == "log1p" else labels) - mean) / std


def check_numbers(table: Table, label: Label, values: pa.Array, start: int) -> None:
    """Raise a :class:`MissingError` for a label that is infinite, or has no logarithm."""
    if label.task.kind != "regression" or pa.types.is_boolean(values.type):
        return
    numbers = values.cast(pa.float64()).fill_null(0).to_numpy(zero_copy_only=False)
    is_wrong, what = np.isinf(numbers), "infinite"
    if label.task.target == "log1p" and not is_wrong.any():
        is_wrong, what = numbers <= -1, "-1 or less, which log1p cannot take,"
    if is_wrong.any():
        row = start + int(is_wrong.argmax()) + 1
        raise MissingError(
            f"The label {label.column!r} of {table.label} is {what} in row {row}.",
            "replace it by an empty value",
        )
