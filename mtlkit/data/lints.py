"""Lints: what about a prepared data set is likely a mistake, each with what to do about it.

They read the packed splits, so they hold for any data set. Large splits are sampled, evenly spread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mtlkit.data.auc import auc
from mtlkit.data.splits import Bag, Dataset, Split
from mtlkit.data.types import Feature, Task

SAMPLE_ROWS = 100_000
LEAK_ROWS = 8_000  # of validation and of test, that an AUC is taken over
BLOCK_ROWS = 1 << 18
MIN_ROWS = 100  # of train, from which on shares mean something
MIN_CLASS_ROWS = 10  # of each class, from which on an AUC means something
LEAK_AUC = 0.999
UNSEEN_SHARE = 0.05
UNIQUE_SHARE = 0.95
TWIN_SHARE = 0.01
GROUP_SHARE = 0.01
OLDER_SHARE = 0.5
RARE_SHARE = 0.001
"""A row with a value that fewer rows of train have tells itself from others by more than chance."""
MOST_WORDS = 1 << 12  # factors of a hash of rows; wider rows use them again
DRIFT_DEVIATIONS = 5.0
DRIFT_CHANGE = 0.25
NUMBER_LEVELS = 50
ID_WORDS = re.compile(
    r"(^|[_\W\d])(id|ids|code|zip|key|user|item|shop|brand|cat|category|type|class|hash|no)"
    r"($|[_\W\d])|id$",
    re.IGNORECASE,
)
"""Names of columns whose integers are no amounts."""


@dataclass(frozen=True)
class Lint:
    """Something that is likely a mistake."""

    name: str  # of the kind of mistake
    message: str  # one sentence
    mend: str  # what to do about it

    def __str__(self) -> str:
        return f"{self.name}: {self.message} ({self.mend})"


def find_lints(dataset: Dataset) -> list[Lint]:
    """All lints of a prepared data set."""
    checks = (
        *(_labels, _funnel, _drift, _columns, _leaks, _bag_leaks),
        *(_unseen, _groups, _time, _twins, _numbers),
    )
    return [lint for check in checks for lint in check(dataset)]


# --- labels


def _labels(dataset: Dataset) -> Iterator[Lint]:
    """A task of which validation or test has one class."""
    for t, task in enumerate(dataset.schema.tasks):
        for name in ("validation", "test"):
            observed, positive = _counts(dataset.splits[name], t)
            if task.kind == "binary" and positive in (0, observed):
                what = "no label" if not observed else f"only labels {int(positive > 0)}"
                yield Lint(
                    "one class",
                    f"{name} has {what} of {task.name}, so it has no AUC there",
                    "split in another way, or make that split larger",
                )


def _funnel(dataset: Dataset) -> Iterator[Lint]:
    """Steps of the funnel in the wrong order, or a later one without the earlier one."""
    names = dataset.schema.task_names
    for earlier, later in pairwise(dataset.schema.funnel or ()):
        first, second = names.index(earlier), names.index(later)
        counts = np.sum([_counts(split, first) for split in dataset.splits.values()], axis=0)
        later_counts = np.sum([_counts(split, second) for split in dataset.splits.values()], axis=0)
        if later_counts[1] > counts[1]:
            yield Lint(
                "order of the funnel",
                f"{later} is more frequent than {earlier}, which should come before it",
                f"--funnel {later},{earlier}",
            )
            continue
        rows = sum(_rows_without(split, first, second) for split in dataset.splits.values())
        if rows:
            yield Lint(
                "step left out",
                f"{rows:,} rows have {later} without {earlier}",
                f"correct these rows, or leave out --funnel and train {later} as a task of its own",
            )


def _counts(split: Split, task: int) -> tuple[int, int]:
    """How many labels of a task there are, and how many of them are above 0."""
    observed = positive = 0
    for block in _blocks(len(split)):
        exists = split.observed[block, task]
        observed += int(exists.sum())
        positive += int((exists & (split.labels[block, task] > 0)).sum())
    return observed, positive


def _rows_without(split: Split, earlier: int, later: int) -> int:
    """How many rows have the later step and not the earlier one."""
    rows = 0
    for block in _blocks(len(split)):
        labels = split.labels[block] > 0
        both = split.observed[block, earlier] & split.observed[block, later]
        rows += int((labels[:, later] & ~labels[:, earlier] & both).sum())
    return rows


def _drift(dataset: Dataset) -> Iterator[Lint]:
    """A rate that differs between train and test by more than chance, and by a quarter."""
    for t, task in enumerate(dataset.schema.tasks):
        if task.kind != "binary":
            continue
        train_rows, train_positives = _counts(dataset.splits["train"], t)
        test_rows, test_positives = _counts(dataset.splits["test"], t)
        if not train_rows or not test_rows:
            continue
        train, test = train_positives / train_rows, test_positives / test_rows
        pooled = (train_positives + test_positives) / (train_rows + test_rows)
        deviation = np.sqrt(pooled * (1 - pooled) * (1 / train_rows + 1 / test_rows))
        is_chance = abs(train - test) <= DRIFT_DEVIATIONS * deviation
        if not is_chance and abs(train - test) > DRIFT_CHANGE * min(train, test):
            yield Lint(
                "drift",
                f"{task.name} is positive in {train:.2%} of train and in {test:.2%} of test",
                "see whether the label means the same everywhere, or choose splits closer in time",
            )


# --- features


def _columns(dataset: Dataset) -> Iterator[Lint]:
    """Features that are constant, and ids that nearly every row has of its own."""
    train = dataset.splits["train"]
    for feature, column in _row_columns(dataset, train):
        if _is_constant(column):
            yield Lint(
                "constant", f"{feature.name} is the same in all rows of train", _drop(feature)
            )
        is_unique = feature.kind == "id" and feature.vocab - 1 >= UNIQUE_SHARE * len(train)
        if is_unique and len(train) >= MIN_ROWS:
            yield Lint(
                "all unique",
                f"{feature.name} has {feature.vocab - 1:,} ids in {len(train):,} rows of train",
                f"{_drop(feature)}, or hash it, or raise min_count",
            )


def _is_constant(column: np.ndarray) -> bool:
    sample = _sampled(column)
    if len(column) < 2 or (sample != sample[0]).any():
        return False
    return all(bool((column[block] == column[0]).all()) for block in _blocks(len(column)))


def _leaks(dataset: Dataset) -> Iterator[Lint]:
    """Features that tell a label all by themselves."""
    train = dataset.splits["train"]
    held_out = [dataset.splits["validation"], dataset.splits["test"]]
    for t, task in enumerate(dataset.schema.tasks):
        target = _Target(task, t, train)
        truth = np.concatenate([target.positives(split, LEAK_ROWS) for split in held_out])
        exists = np.concatenate([_sampled(split.observed[:, t], LEAK_ROWS) for split in held_out])
        smaller = min(int(truth[exists].sum()), int((~truth[exists]).sum()))
        if smaller < MIN_CLASS_ROWS:
            continue
        columns = [_row_columns(dataset, split) for split in (train, *held_out)]
        for (feature, known), *others in zip(*columns, strict=True):
            values = np.concatenate([_sampled(column, LEAK_ROWS) for _, column in others])
            scores = values
            if feature.kind == "id":
                scores = target.means(_sampled(known), feature.vocab)[values]
            area = auc(scores[exists], truth[exists])
            if area is not None and max(area, 1 - area) > LEAK_AUC:
                yield Lint(
                    "leak",
                    f"{feature.name} alone tells {task.name} (AUC {max(area, 1 - area):.4f})",
                    f"{_drop(feature)}, unless it is known before the label is",
                )


def _bag_leaks(dataset: Dataset) -> Iterator[Lint]:
    """Bags of which one id tells a label all by itself: rows have it, or else the other label."""
    held_out = (dataset.splits["validation"], dataset.splits["test"])
    for t, task in enumerate(dataset.schema.tasks):
        target = _Target(task, t, dataset.splits["train"])
        for feature in dataset.schema.of_kind("bag"):
            if feature.name not in held_out[0].bags:
                continue
            # Rows with each id, and without and with the label, (vocab, 2).
            counts, rows = np.zeros((feature.vocab, 2), np.int64), np.zeros(2, np.int64)
            for split in held_out:
                some = slice(0, LEAK_ROWS)
                exists = split.observed[some, t]
                truth = (split.labels[some, t] > target.threshold)[exists].astype(np.int64)
                rows += np.bincount(truth, minlength=2)
                pairs = _pairs_of_bag(split.bags[feature.name], some, exists)
                np.add.at(counts, (pairs[1], truth[pairs[0]]), 1)
            if rows.min() < MIN_CLASS_ROWS:
                continue
            shares = counts / rows
            areas = 0.5 + np.abs(shares[:, 1] - shares[:, 0]) / 2
            if areas.max() > LEAK_AUC:
                yield Lint(
                    "leak",
                    f"id {areas.argmax()} in {feature.name} alone tells {task.name} "
                    f"(AUC {areas.max():.4f})",
                    f"{_drop(feature)}, unless it is known before the label is",
                )


def _pairs_of_bag(bag: Bag, some: slice, exists: np.ndarray) -> np.ndarray:
    """(2, m) number among the rows that exist, and id, of each different id of a row."""
    offsets = np.asarray(bag.offsets[some.start : some.stop + 1])
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    pairs = np.unique(np.stack([rows, bag.values[offsets[0] : offsets[-1]]]), axis=1)
    pairs = pairs[:, exists[pairs[0]]]
    return np.stack([(np.cumsum(exists) - 1)[pairs[0]], pairs[1]])


class _Target:
    """What a feature should not tell alone: the label, or for numbers whether it is high."""

    def __init__(self, task: Task, column: int, train: Split) -> None:
        self.column = column
        self.observed = _sampled(train.observed[:, column])
        labels = _sampled(train.labels[:, column])[self.observed]
        self.threshold = 0.0
        if task.kind == "regression" and len(labels):
            self.threshold = float(np.median(labels))
        self.labels = self.positives(train)

    def positives(self, split: Split, rows: int = SAMPLE_ROWS) -> np.ndarray:
        """(n,) bool of about so many rows of a split."""
        return _sampled(split.labels[:, self.column], rows) > self.threshold

    def means(self, ids: np.ndarray, vocab: int) -> np.ndarray:
        """(vocab,) share of positives among the training rows with each id; the mean where none."""
        ids, labels = ids[self.observed], self.labels[self.observed]
        mean = labels.mean() if len(labels) else 0.0
        rows = np.bincount(ids, minlength=vocab)
        positives = np.bincount(ids, weights=labels, minlength=vocab)
        return (positives + mean) / (rows + 1)


def _unseen(dataset: Dataset) -> Iterator[Lint]:
    """Ids of test that train does not hold."""
    train, test = dataset.splits["train"], dataset.splits["test"]
    if len(train) < MIN_ROWS or len(test) < MIN_CLASS_ROWS:
        return
    known = dict(_row_columns(dataset, train))
    for feature, column in _row_columns(dataset, test):
        if feature.kind != "id":
            continue
        in_test = float((_sampled(column) == 0).mean())
        in_train = float((_sampled(known[feature]) == 0).mean())
        if in_test - in_train > UNSEEN_SHARE:
            yield Lint(
                "unseen ids",
                f"{in_test:.0%} of test have an id of {feature.name} that train does not hold",
                f"a model cannot learn them: describe them by other columns, or {_drop(feature)}",
            )


def _numbers(dataset: Dataset) -> Iterator[Lint]:
    """Integers taken as ids that look like amounts."""
    table = dataset.details.get("table", {})
    for feature in dataset.schema.of_kind("id"):
        guessed = feature.name in table.get("guessed", ())
        integers = feature.name in table.get("integers", ())
        has_id_name = feature.role is not None or ID_WORDS.search(feature.name)
        if guessed and integers and not has_id_name and feature.vocab > NUMBER_LEVELS:
            yield Lint(
                "ids that are numbers",
                f"{feature.name} holds {feature.vocab - 1:,} different integers, taken as ids",
                f"--dense {feature.name} if they are amounts, --ids {feature.name} if not",
            )


# --- rows


def _groups(dataset: Dataset) -> Iterator[Lint]:
    """Users or sessions on both sides of a split at random."""
    if _split_by(dataset) != "ratio":
        return
    for group in ("user", "session"):
        if group not in dataset.splits["train"].groups:
            continue
        train, test = (dataset.splits[name].groups[group] for name in ("train", "test"))
        share = float(np.isin(_sampled(test), np.asarray(train)).mean())
        if share > GROUP_SHARE:
            yield Lint(
                f"{group} in two splits",
                f"{share:.0%} of test are of a {group} that train holds, for rows are split "
                "at random",
                f"--split-by time, or group:COLUMN to keep each {group} together",
            )


def _time(dataset: Dataset) -> Iterator[Lint]:
    """Test rows that are older than rows of train."""
    train, test = (dataset.splits[name].groups.get("time") for name in ("train", "test"))
    if train is None or test is None or _split_by(dataset) == "group":
        return
    latest = max(int(train[block].max()) for block in _blocks(len(train)))
    share = float((_sampled(test) < latest).mean())
    if share > OLDER_SHARE:
        yield Lint(
            "time runs backwards",
            f"{share:.0%} of test are older than the newest row of train",
            "--split-by time",
        )


def _twins(dataset: Dataset) -> Iterator[Lint]:
    """Rows of test that train holds as well, and not by chance."""
    import pandas as pd  # here: prepared data were looked at, and need it no more

    train, test = dataset.splits["train"], dataset.splits["test"]
    if len(train) < MIN_ROWS or len(test) < MIN_CLASS_ROWS:
        return
    # Of large splits, rows whose hash is divisible: the same ones on both sides.
    stride = -(-len(train) // (10 * SAMPLE_ROWS))
    known = _hashes(train, stride)[0]
    hashes, rows = _hashes(test, stride)
    twins = rows[pd.Index(hashes).isin(known)]  # a hash table: no sort
    if len(twins) <= TWIN_SHARE * len(rows):
        return
    share = _is_rare(dataset, twins).sum() / max(1, len(rows))
    if share > TWIN_SHARE:
        yield Lint(
            "duplicated rows",
            f"{share:.1%} of test stand in train as well, with all inputs and labels",
            "remove the copies, or --split-by time or group:COLUMN",
        )


def _hashes(split: Split, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """(m,) uint64 hashes of rows, of about one in so many, and (m,) their numbers."""
    hashes, numbers = [], []
    for block in _blocks(len(split)):
        rows = np.arange(block.start, block.stop)
        if stride > 1:
            # Equal rows are chosen in both splits: by their own columns, which are read quickly.
            own = split.ids[block] if split.ids.shape[1] else split.dense[block]
            rows = rows[_hash(_as_words(own)) % np.uint64(stride) == 0]
        hashes.append(_hash(_words(split, rows)))
        numbers.append(rows)
    return np.concatenate(hashes), np.concatenate(numbers)


def _hash(words: Iterator[np.ndarray]) -> np.ndarray:
    """(n,) uint64 of columns of (n,) integers."""
    factors = np.random.PCG64(0).random_raw(MOST_WORDS) | np.uint64(1)
    total = np.uint64(0)
    for position, word in enumerate(words):
        total = total + (word.astype(np.uint64) + np.uint64(1)) * factors[position % MOST_WORDS]
        total ^= total >> np.uint64(29)
    return np.asarray(total)


def _words(split: Split, rows: np.ndarray) -> Iterator[np.ndarray]:
    """(n,) integers that make up some rows in rising order, with what they share with others."""
    for array in (split.ids, split.dense, split.labels):
        yield from _as_words(array[rows])
    yield from (_bag_sums(bag, rows) for bag in split.bags.values())
    if split.shared is not None:
        shared_rows = split.shared.row[rows]
        for array in (split.shared.ids, split.shared.dense):
            yield from _as_words(array[shared_rows])


def _as_words(array: np.ndarray) -> Iterator[np.ndarray]:
    """The columns of (n, C) numbers of 32 bits, as integers."""
    return iter(np.ascontiguousarray(array).view(np.uint32).T)


def _bag_sums(bag: Bag, rows: np.ndarray) -> np.ndarray:
    """(n,) uint64 that tell bags of different ids apart, whatever their order."""
    if not len(rows):
        return np.zeros(0, np.uint64)
    starts, ends = bag.offsets[rows], bag.offsets[rows + 1]
    values = np.asarray(bag.values[starts[0] : ends[-1]]).astype(np.uint64) + np.uint64(1)
    sums = np.append(np.uint64(0), np.cumsum(values * values * np.uint64(0x9E3779B97F4A7C15)))
    return sums[ends - starts[0]] - sums[starts - starts[0]]


def _is_rare(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """(m,) whether rows of test have a value that hardly any row of train has."""
    train, test = dataset.splits["train"], dataset.splits["test"]
    known = dict(_row_columns(dataset, train))
    is_rare = np.zeros(len(rows), bool)
    for feature, column in _row_columns(dataset, test):
        sample = _sampled(known[feature])
        levels, counts = np.unique(sample, return_counts=True)
        positions = np.searchsorted(levels, column[rows]).clip(max=len(levels) - 1)
        frequency = np.where(levels[positions] == column[rows], counts[positions], 0)
        is_rare |= frequency < max(2, RARE_SHARE * len(sample))
    return is_rare


# --- what they have in common


def _split_by(dataset: Dataset) -> str | None:
    table: dict[str, Any] = dataset.details.get("table", {})
    return table.get("split", {}).get("by")


def _drop(feature: Feature) -> str:
    return f"--drop {feature.name}"


def _row_columns(dataset: Dataset, split: Split) -> Iterator[tuple[Feature, np.ndarray]]:
    """The id and dense features with their columns (n,); those that rows share are left out."""
    for kind, array in (("id", split.ids), ("dense", split.dense)):
        features = dataset.schema.of_kind(kind)  # type: ignore[arg-type]
        yield from zip(features[: array.shape[1]], array.T, strict=True)


def _sampled(column: np.ndarray, rows: int = SAMPLE_ROWS) -> np.ndarray:
    """At most so many values of a column, evenly spread."""
    stride = max(1, -(-len(column) // rows))
    return np.asarray(column[::stride])


def _blocks(rows: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK_ROWS, rows)) for start in range(0, rows, BLOCK_ROWS))
