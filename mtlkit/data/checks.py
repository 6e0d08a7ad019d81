"""What packed data must be: checked once when they are written, and their layout whenever they are
read.

Arrays are read in blocks, so memory-mapped ones need not fit in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mtlkit.data.splits import SPLITS, Bag, SharedColumns, Split
from mtlkit.data.types import Schema, Task
from mtlkit.errors import MissingError

BLOCK_BYTES = 1 << 20  # of an array, looked at at a time
Shape = tuple[int | None, ...]  # the lengths of the axes of an array, None where any length will do


class _Wrong(Exception):
    """The data of a split are not what they must be; the text follows "The train split"."""


def check_layout(schema: Schema, splits: Mapping[str, Split], hint: str) -> None:
    """Check types, shapes and lengths of all arrays; nothing is read of their contents. The hint
    says what to do about an error.

    Raises:
        MissingError: An array is not what the schema says, or a split is empty.
    """
    _check_each_split(schema, splits, hint, _check_layout)


def check_contents(schema: Schema, splits: Mapping[str, Split], hint: str) -> None:
    """Check every value of all arrays, whose layout is right. Arguments are those of
    :func:`check_layout`.

    Raises:
        MissingError: An id, number, label or weight is none that a model can be trained on, or a
            task has no labels, or of one class only, in train.
    """
    _check_each_split(schema, splits, hint, _check_contents)


def check_ids(schema: Schema, splits: Mapping[str, Split], hint: str) -> None:
    """Check ids alone: one outside its table would end the whole process on a GPU. Arguments are
    those of :func:`check_layout`.

    Raises:
        MissingError: An id is outside its vocabulary, or a row points at a shared row that is not
            there.
    """
    _check_each_split(schema, splits, hint, _check_all_ids)


def _check_each_split(
    schema: Schema,
    splits: Mapping[str, Split],
    hint: str,
    check: Callable[[Schema, str, Split], None],
) -> None:
    for name in SPLITS:
        try:
            if name not in splits:
                raise _Wrong("is missing")
            check(schema, name, splits[name])
        except _Wrong as error:
            raise MissingError(f"The {name} split {error}.", hint) from None


# --- types and shapes


def _check_layout(schema: Schema, name: str, split: Split) -> None:
    del name  # all splits have one layout
    rows, tasks = _length(split.labels, "labels"), len(schema.tasks)
    if not rows:
        raise _Wrong("has no rows")
    _check_array(split.labels, "labels", np.float32, (rows, tasks))
    _check_array(split.observed, "observed", np.bool_, (rows, tasks))
    _check_array(split.ids, "ids", np.int32, (rows, None))
    _check_array(split.dense, "dense", np.float32, (rows, None))
    if split.weight is not None:
        own = getattr(split.weight, "ndim", 1) > 1
        _check_array(split.weight, "weight", np.float32, (rows, tasks) if own else (rows,))
    for group, ids in split.groups.items():
        _check_array(ids, f"groups[{group!r}]", np.integer, (rows,))
    for task, labels in split.hidden.items():
        _check_array(labels, f"hidden[{task!r}]", np.number, (rows,))
    _check_bags(split.bags, rows, "")

    if split.shared is not None:
        shared_rows = _length(split.shared.ids, "shared.ids")
        _check_array(split.shared.row, "shared.row", np.int32, (rows,))
        _check_array(split.shared.ids, "shared.ids", np.int32, (shared_rows, None))
        _check_array(split.shared.dense, "shared.dense", np.float32, (shared_rows, None))
        _check_bags(split.shared.bags, shared_rows, "shared.")
    _check_columns(schema, split)


def _check_columns(schema: Schema, split: Split) -> None:
    """Check that the columns of the rows and the shared ones are those of the schema together."""
    shared = split.shared
    ids, dense, bags = split.ids.shape[1], split.dense.shape[1], list(split.bags)
    if shared is not None:
        ids += shared.ids.shape[1]
        dense += shared.dense.shape[1]
        bags += shared.bags
    for kind, columns in (("id", ids), ("dense", dense)):
        features = len(schema.of_kind(kind))  # type: ignore[arg-type]
        if columns != features:
            raise _Wrong(f"has {columns} {kind} columns for {features} {kind} features")
    bag_features = [feature.name for feature in schema.of_kind("bag")]
    if sorted(bags) != sorted(bag_features):
        raise _Wrong(f"has the bags {sorted(bags)} for the bag features {sorted(bag_features)}")


def _check_bags(bags: Mapping[str, Bag], rows: int, prefix: str) -> None:
    for name, bag in bags.items():
        label = f"{prefix}bags[{name!r}]"
        entries = _length(bag.values, f"{label}.values")
        _check_array(bag.offsets, f"{label}.offsets", np.int64, (rows + 1,))
        _check_array(bag.values, f"{label}.values", np.int32, (entries,))
        _check_array(bag.weights, f"{label}.weights", np.float32, (entries,))


def _length(array: Any, label: str) -> int:
    """The first axis of what should be an array."""
    if not isinstance(array, np.ndarray) or not array.ndim:
        raise _Wrong(f"has a {type(array).__name__} for {label} where an array should be")
    return len(array)


def _check_array(array: Any, label: str, dtype: Any, shape: Shape) -> None:
    """Check type and shape of one array."""
    _length(array, label)
    if not (np.issubdtype(array.dtype, dtype) and array.dtype.isnative):
        raise _Wrong(f"has {label} of type {array.dtype}, not {dtype.__name__}")
    fits = len(array.shape) == len(shape) and all(
        expected in (None, length) for length, expected in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise _Wrong(f"has {label} of shape {array.shape}, not ({wanted})")


# --- values


def _check_all_ids(schema: Schema, name: str, split: Split) -> None:
    del name
    # The columns of the row come first and the shared ones after them.
    names = [feature.name for feature in schema.of_kind("id")]
    vocab = np.array([feature.vocab for feature in schema.of_kind("id")], np.uint32)
    bag_vocab = {feature.name: feature.vocab for feature in schema.of_kind("bag")}
    row_ids = split.ids.shape[1]

    _check_ids(split.ids, names[:row_ids], vocab[:row_ids], "row")
    _check_bag_values(split.bags, bag_vocab, "row")
    if split.shared is not None:
        _check_shared_rows(split.shared)
        _check_ids(split.shared.ids, names[row_ids:], vocab[row_ids:], "shared row")
        _check_bag_values(split.shared.bags, bag_vocab, "shared row")


def _check_contents(schema: Schema, name: str, split: Split) -> None:
    _check_all_ids(schema, name, split)
    dense_names = [feature.name for feature in schema.of_kind("dense")]
    row_dense = split.dense.shape[1]
    _check_dense(split.dense, dense_names[:row_dense], "row")
    if split.shared is not None:
        _check_dense(split.shared.dense, dense_names[row_dense:], "shared row")

    _check_labels(schema.tasks, split, is_train=name == "train")
    _check_hidden(schema.tasks, split.hidden)
    if split.weight is not None:
        _check_weight(split.weight)


def _blocks(array: np.ndarray) -> Iterator[slice]:
    """Consecutive slices of the rows of an array, of about ``BLOCK_BYTES`` each."""
    step = max(1, BLOCK_BYTES // max(1, array[:1].nbytes))
    return (slice(start, start + step) for start in range(0, len(array), step))


def _first(is_wrong: np.ndarray) -> tuple[int, int] | None:
    """Row and column of the first True of (n, C), by row; None if there is none."""
    if not is_wrong.any():
        return None
    row, column = divmod(int(is_wrong.argmax()), is_wrong.shape[1])
    return row, column


def _check_ids(ids: np.ndarray, names: Sequence[str], vocab: np.ndarray, row_name: str) -> None:
    """Check (N, F) ids against the (F,) sizes of their vocabularies."""
    for block in _blocks(ids):
        # As an unsigned number, a negative id is larger than any vocabulary.
        first = _first(ids[block].view(np.uint32) >= vocab)
        if first is not None:
            row, column = block.start + first[0], first[1]
            raise _Wrong(
                f"holds the id {ids[row, column]} of {names[column]!r} in {row_name} {row}, "
                f"outside its vocabulary of {vocab[column]} ids from 0"
            )


def _check_dense(dense: np.ndarray, names: Sequence[str], row_name: str) -> None:
    """Check that (N, D) numbers are finite."""
    for block in _blocks(dense):
        first = _first(~np.isfinite(dense[block]))
        if first is not None:
            row, column = block.start + first[0], first[1]
            raise _Wrong(f"holds {dense[row, column]} as {names[column]!r} in {row_name} {row}")


def _check_bag_values(bags: Mapping[str, Bag], vocab: Mapping[str, int], row_name: str) -> None:
    for name, bag in bags.items():
        # Each block overlaps the next by the offset at which it ends.
        offsets = bag.offsets
        if offsets[0] != 0 or offsets[-1] != len(bag.values):
            raise _Wrong(
                f"has a bag {name!r} whose offsets go from {offsets[0]} to {offsets[-1]}, "
                f"not from 0 to {len(bag.values)}"
            )
        for block in _blocks(offsets):
            falls = np.diff(offsets[block.start : block.stop + 1]) < 0
            if falls.any():
                row = block.start + int(falls.argmax())
                raise _Wrong(f"has a bag {name!r} whose offsets fall in {row_name} {row}")

        for block in _blocks(bag.values):
            is_outside = bag.values[block].view(np.uint32) >= vocab[name]
            is_wrong = is_outside | ~np.isfinite(bag.weights[block])
            if is_wrong.any():
                entry = block.start + int(is_wrong.argmax())
                row = int(np.searchsorted(offsets, entry, "right")) - 1
                raise _Wrong(
                    f"holds the id {bag.values[entry]} with weight {bag.weights[entry]} of the bag "
                    f"{name!r} in {row_name} {row}, whose vocabulary has {vocab[name]} ids from 0"
                )


def _check_shared_rows(shared: SharedColumns) -> None:
    """Check that each row points at a shared row that is there."""
    for block in _blocks(shared.row):
        is_outside = shared.row[block].view(np.uint32) >= len(shared.ids)
        if is_outside.any():
            row = block.start + int(is_outside.argmax())
            raise _Wrong(
                f"points from row {row} at the shared row {shared.row[row]}, "
                f"and there are {len(shared.ids)}"
            )


def _check_labels(tasks: Sequence[Task], split: Split, is_train: bool) -> None:
    """Check the labels that are observed, and on train that each task can be learnt from them."""
    observed_counts, positive_counts = [0] * len(tasks), [0] * len(tasks)
    for block in _blocks(split.labels):
        labels = np.ascontiguousarray(split.labels[block].T)  # (T, n)
        observed = np.ascontiguousarray(split.observed[block].T)
        for t, task in enumerate(tasks):
            is_wrong = observed[t] & _is_no_label(task, labels[t])
            if is_wrong.any():
                row = int(is_wrong.argmax())
                raise _Wrong(_no_label(task, f"the label {labels[t, row]:g}", block.start + row))
            if is_train:
                observed_counts[t] += int(np.count_nonzero(observed[t]))
                positive_counts[t] += int(np.count_nonzero(observed[t] & (labels[t] > 0)))

    if is_train:
        for task, observed_count, positive_count in zip(
            tasks, observed_counts, positive_counts, strict=True
        ):
            _check_learnable(task, observed_count, positive_count)


def _check_learnable(task: Task, observed: int, positive: int) -> None:
    """Check that train has labels of a task, and of a binary one both classes."""
    if not observed:
        raise _Wrong(f"has no label of the task {task.name!r}")
    if task.kind == "binary" and positive in (0, observed):
        only = int(positive > 0)
        raise _Wrong(f"has labels of one class only of the task {task.name!r}: all are {only}")


def _check_hidden(tasks: Sequence[Task], hidden: Mapping[str, np.ndarray]) -> None:
    """Check the labels that only a generator knows."""
    for task in tasks:
        if task.name in hidden:
            for block in _blocks(hidden[task.name]):
                labels = hidden[task.name][block]
                is_wrong = _is_no_label(task, labels)
                if is_wrong.any():
                    row = int(is_wrong.argmax())
                    label = f"the hidden label {labels[row]:g}"
                    raise _Wrong(_no_label(task, label, block.start + row))


def _is_no_label(task: Task, labels: np.ndarray) -> np.ndarray:
    """(n,) whether a value cannot be a label of a task. A NaN differs from itself."""
    if task.kind == "regression":
        return ~np.isfinite(labels)
    if task.kind == "binary":
        return (labels != 0) & (labels != 1)
    return (labels < 0) | (labels >= task.classes) | (labels != np.floor(labels))


def _no_label(task: Task, label: str, row: int) -> str:
    allowed = {
        "binary": "0 or 1",
        "multiclass": f"a class from 0 to {task.classes - 1}",
        "regression": "a finite number",
    }
    return f"holds {label} of the task {task.name!r} in row {row}, not {allowed[task.kind]}"


def _check_weight(weight: np.ndarray) -> None:
    """Check the (N,) weights of the rows, or (N, T) of the rows for each task."""
    is_positive = False
    for block in _blocks(weight):
        weights = weight[block]
        is_wrong = ~((weights >= 0) & np.isfinite(weights))
        if is_wrong.any():
            row = int(is_wrong.reshape(len(weights), -1).any(1).argmax())
            raise _Wrong(
                f"holds the weight {weights[is_wrong][0]} in row {block.start + row}, "
                "not a finite number of 0 or more"
            )
        is_positive = is_positive or bool(weights.any())
    if not is_positive:
        raise _Wrong("has row weights that are all 0")
