"""Ali-CCP from text to packed splits: stage both texts of both splits, count on train, join, write.

Both splits are read at once, and each is unpacked in a thread of its own; nothing that is written
depends on which thread was faster.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mtlkit.data.ali_ccp import tokenise as t
from mtlkit.data.ali_ccp.archives import RawSource, Reading, read_texts
from mtlkit.data.ali_ccp.fields import COMMON, FIELDS, OFFICIAL_SPLITS, SKELETON
from mtlkit.data.ali_ccp.hashing import kernel, share
from mtlkit.data.ali_ccp.protocols import (
    HELD_OUT,
    SPLIT_SALT,
    Protocol,
    Request,
    features,
    side_plan,
)
from mtlkit.data.ali_ccp.staging import Chunk, Keys, Staged, Stager, too_many
from mtlkit.data.ali_ccp.vocabulary import Counter, Vocabulary
from mtlkit.data.datasets._source import Progress
from mtlkit.data.encoders import MinMaxScaler
from mtlkit.data.planted import ALL_ROWS
from mtlkit.data.splits import SPLITS, Dataset
from mtlkit.data.storage import Column, fingerprint_folder, save_array
from mtlkit.data.types import Schema, Task
from mtlkit.errors import MissingError

TASKS = (
    Task(name="click", description="the item shown was clicked"),
    Task(name="purchase", description="it was clicked and then bought"),
)
FUNNEL = ("click", "purchase")
CHUNK = 1 << 19  # rows at a time after staging
THREADS = 2  # splits at a time; each has a second thread that unpacks
DISK = {"aitm": 0.35, "rechub": 0.45, "full": 1.0}
"""Disk that preparation needs for a byte of text: staged columns and the splits together, with some
to spare.
"""
PLANTED = "planted_auc"
T = TypeVar("T")

_DROPPED, _TRAIN, _VALIDATION, _TEST = range(4)
_BY_ROW, _BY_SESSION, _HALVES, _WHOLE = range(4)


def prepare(
    source: RawSource, folder: Path, name: str, request: Request, progress: Progress, hint: str
) -> tuple[Dataset, dict[str, Any]]:
    """Write the arrays of all splits into a folder.

    Args:
        source: The official files.
        folder: An empty folder; staged columns lie there meanwhile.
        name: Of the data set.
        request: What to prepare.
        progress: Told of bytes read and rows written.
        hint: For errors about the source.

    Returns:
        The data set without its arrays, and the entries of the manifest about the splits.

    Raises:
        MissingError: The disk is too small, or the files are not what they should be.
    """
    check_disk(folder, int(source.unpacked_bytes() * DISK[request.protocol.name]))
    staging = folder / "staging"
    staging.mkdir()
    halves = {split: _Half(source, split) for split in OFFICIAL_SPLITS}
    _together([partial(half.stage, staging, request, hint) for half in halves.values()], progress)
    joined = {
        split: _Joined(
            half.staged[SKELETON], half.staged[COMMON], half.keys, request.protocol, split
        )
        for split, half in halves.items()
    }
    bad = sum(half.bad for half in halves.values()) + sum(part.orphans for part in joined.values())
    if bad > request.max_bad_rows:
        found = [lines for part in joined.values() for lines in part.bad_lines()]
        raise too_many(request.max_bad_rows, *found[0], hint)
    rows = np.sum([part.sizes() for part in joined.values()], axis=0)[1:]
    check_rows(dict(zip(SPLITS, rows.tolist(), strict=True)))
    vocabulary, scalers = _fit(joined["train"], request)
    writer = _Writer(folder, vocabulary, scalers, sum(len(part.part) for part in joined.values()))
    entries: dict[str, Any] = {}
    for written in _together([partial(writer.write, part) for part in joined.values()], progress):
        entries |= written
    shutil.rmtree(staging)
    for field, raw in vocabulary.raw.items():
        save_array(folder / f"vocabulary.{FIELDS[field].name}.npy", raw)
    sizes = {field: len(raw) for field, raw in vocabulary.raw.items()}
    readings = [half.reading for half in halves.values()]
    schema = Schema(features=features(request.protocol, sizes), tasks=TASKS, funnel=FUNNEL)
    entries = {split: entries[split] for split in SPLITS}
    details: dict[str, Any] = {
        "protocol": request.protocol.name,
        "min count": request.min_count,
        "sample": request.sample,
        "vocabulary": {FIELDS[field].name: size for field, size in sizes.items()},
        "texts": {
            text.name: text.report() for half in halves.values() for text in half.staged.values()
        },
        "rows without common features": {
            split: part.orphan_report() for split, part in joined.items() if part.orphans
        },
        "files": [entry for reading in readings for entry in reading.hashes],
        "text bytes": sum(reading.text_bytes for reading in readings),
    }
    simulated = next(
        (reading.simulated for reading in readings if reading.simulated is not None), None
    )
    if simulated is not None:
        details["simulation"] = _of_the_test_split(simulated, request)
    digest = fingerprint_folder(
        folder, schema, {split: entry["arrays"] for split, entry in entries.items()}
    )
    return Dataset(name, schema, {}, digest, simulated is not None, details), entries


def check_rows(rows: dict[str, int]) -> None:
    """Every split needs some.

    Raises:
        MissingError: One is empty.
    """
    empty = [split for split, count in rows.items() if not count]
    if empty:
        message = f"No rows are left for {' and '.join(empty)}: the files are too short, or the sample is too small."
        raise MissingError(message, "leave out --sample, or make it larger")


def check_disk(folder: Path, needed: int) -> None:
    """Say before the work begins that there is no room for it.

    Raises:
        MissingError: The disk is too small.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        message = f"Preparation needs about {needed / 1e9:.0f} GB, but the disk of {folder.parent} has {free / 1e9:.0f}"
        raise MissingError(
            f"{message} GB free.",
            "choose a larger disk with --data-dir DIR, or fewer rows with --sample",
        )


def _of_the_test_split(simulated: dict[str, Any], request: Request) -> dict[str, Any]:
    """What the simulator noted. Its ceiling is that of all its test rows: set aside where the split
    holds only some.
    """
    if request.sample == 1 and request.protocol.held_out != "test":
        return simulated
    return {name: fact for name, fact in simulated.items() if name != PLANTED} | {
        ALL_ROWS: {PLANTED: simulated.get(PLANTED)}
    }


class _Stopped(Exception):
    """Another thread failed, or the user wants it to end."""


def _together(works: list[Callable[[Progress], T]], progress: Progress) -> list[T]:
    """Run pieces of work in threads. When one fails, or the user interrupts, the others end where
    they tell progress.

    Args:
        works: Each is called with a progress callback that may raise.
        progress: Told by one of them at a time.

    Returns:
        What each returned.
    """
    stop, one_at_a_time = threading.Event(), threading.Lock()

    def told(what: str, done: int, total: int | None) -> None:
        if stop.is_set():
            raise _Stopped
        with one_at_a_time:
            progress(what, done, total)

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            futures = [pool.submit(work, told) for work in works]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()  # when all went well, nobody is there to hear it
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, _Stopped)):
        raise error
    return [future.result() for future in futures]


class _Half:
    """One official split while it is staged: the keys of its common indexes, and its two texts."""

    def __init__(self, source: RawSource, split: str) -> None:
        self.source, self.split = source, split
        self.keys, self.reading, self.staged = Keys(), Reading(), dict[str, Staged]()
        self.bad = 0

    def stage(self, folder: Path, request: Request, hint: str, progress: Progress) -> None:
        """Both texts of the split from text to columns on disk."""
        stager = Stager(folder, request.sample, request.max_bad_rows, hint)
        for text in read_texts(self.source, self.split, self.reading, progress, hint):
            plan = side_plan(request.protocol, "row" if text.kind == SKELETON else "user")
            self.staged[text.kind] = stager.stage(text, self.keys, plan)
        self.bad = stager.bad


@kernel
def _assign(
    number: np.ndarray,
    line: np.ndarray,
    common_row: np.ndarray,
    keys: np.ndarray,
    how: int,
    salt: int,
    part: np.ndarray,
    user: np.ndarray,
    counted: np.ndarray,
    orphan_lines: np.ndarray,
) -> None:
    """Find the common row of each row, and the split to which it goes; ``counted`` holds orphans
    and unsampled rows.
    """
    for r in range(number.shape[0]):
        row = common_row[number[r]]
        user[r] = row
        if row == t.UNMET:
            if counted[0] < orphan_lines.shape[0]:
                orphan_lines[counted[0]] = line[r]
            counted[0] += 1
            part[r] = _DROPPED
        elif row == t.NOT_SAMPLED:
            counted[1] += 1
            part[r] = _DROPPED
        elif how == _HALVES:
            part[r] = _VALIDATION if share(np.uint64(line[r]), np.uint64(salt)) < 0.5 else _TEST
        elif how == _WHOLE:
            part[r] = _TEST
        else:
            what = np.uint64(line[r]) if how == _BY_ROW else keys[number[r]]
            part[r] = _VALIDATION if share(what, np.uint64(salt)) < HELD_OUT else _TRAIN


class _Joined:
    """Both texts of an official split, with the common row and the final split of each row of the
    skeleton.
    """

    def __init__(
        self, rows: Staged, users: Staged, keys: Keys, protocol: Protocol, split: str
    ) -> None:
        self.rows, self.users, self.split, self.protocol = rows, users, split, protocol
        if protocol.held_out == "test":
            how = _HALVES if split == "test" else _WHOLE
        else:
            how = (
                _WHOLE
                if split == "test"
                else (_BY_ROW if protocol.held_out == "rows" else _BY_SESSION)
            )
        number = np.fromfile(rows.files["number"], np.int32)
        line = np.fromfile(rows.files["line"], np.int32)
        self.part, self.user = np.empty(len(number), np.uint8), np.empty(len(number), np.int32)
        counted, self.orphan_lines = np.zeros(2, np.int64), np.zeros(t.NOTED, np.int64)
        salt = SPLIT_SALT[protocol.held_out]
        _assign(
            number,
            line,
            keys.common_row,
            keys.keys,
            how,
            salt,
            self.part,
            self.user,
            counted,
            self.orphan_lines,
        )
        if split == "train" and how == _WHOLE:
            self.part[self.part == _TEST] = _TRAIN
        self.orphans = int(counted[0])
        rows.tally[t.LEFT_OUT] += counted[1]

    def sizes(self) -> list[int]:
        """Rows of each part."""
        return np.bincount(self.part, minlength=4).tolist()

    def orphan_report(self) -> dict[str, Any]:
        """How many rows have an index that the common file lacks, and the first of them."""
        return {
            "rows": self.orphans,
            "first lines": self.orphan_lines[: min(self.orphans, t.NOTED)].tolist(),
        }

    def bad_lines(self) -> Iterator[tuple[str, list[list[int]]]]:
        """Of each text with malformed lines or orphans: its name, and the first of them with their
        reasons.
        """
        orphans = [[line, t.ORPHAN] for line in self.orphan_lines.tolist() if line]
        for text, more in ((self.rows, orphans), (self.users, [])):
            lines = [*text.noted[0, : int(text.tally[t.BAD])].tolist(), *more]
            if lines:
                yield text.name, lines[:3]

    def chunks(self) -> Iterator[tuple[slice, Chunk]]:
        """The rows with their place in ``part`` and ``user``."""
        begin = 0
        for chunk in self.rows.chunks(CHUNK):
            yield slice(begin, begin + len(chunk)), chunk
            begin += len(chunk)


def _fit(train: _Joined, request: Request) -> tuple[Vocabulary, dict[int, MinMaxScaler]]:
    """Vocabulary and scales, from the rows of train: one count a row, for the user's fields too."""
    rows, users = train.rows.plan, train.users.plan
    ids_of = {text: (*text.plan.ids, *text.plan.bags) for text in (train.rows, train.users)}
    found = {
        f: tuple(text.ranges[f].tolist())
        for text, own in ids_of.items()
        for f in own
        if text.ranges[f, 1] >= 0
    }
    counter = Counter(found)
    ranges = {field: [np.inf, -np.inf] for field in (*rows.dense, *users.dense)}
    impressions = np.zeros(len(train.users), np.int64)
    trained = np.zeros(len(train.users), bool)
    order, known = np.empty(len(train.users), np.int64), 0
    for place, chunk in train.chunks():
        part, user = train.part[place], train.user[place]
        on_train = part == _TRAIN
        times = (on_train | (request.protocol.counts_held_out & (part == _VALIDATION))).astype(
            np.int64
        )
        counter.rows(np.array(rows.ids, np.int64), chunk.ids, times)
        for b, field in enumerate(rows.bags):
            counter.bag(field, chunk.bags[b][0], chunk.lengths[:, b], times)
        for j, field in enumerate(rows.dense):
            _widen(ranges[field], chunk.values[on_train, j])
        known = _meet(user, times, impressions, order, known)
        trained[user[on_train]] = True
    begin = 0
    ids = np.empty((len(train.users), len(users.ids)), np.int32)
    for chunk in train.users.chunks(CHUNK):
        own = slice(begin, begin + len(chunk))
        ids[own] = chunk.ids
        for b, field in enumerate(users.bags):
            counter.bag(field, chunk.bags[b][0], chunk.lengths[:, b], impressions[own])
        for j, field in enumerate(users.dense):
            _widen(ranges[field], chunk.values[trained[own], j])
        begin += len(chunk)
    order = order[:known]
    counter.rows(np.array(users.ids, np.int64), ids[order], impressions[order])
    fields = tuple(dict.fromkeys(field for own in ids_of.values() for field in own))
    vocabulary = Vocabulary(counter, fields, request.min_count, request.protocol.order)
    return vocabulary, {field: MinMaxScaler(*map(float, ends)) for field, ends in ranges.items()}


@kernel
def _meet(
    user: np.ndarray, times: np.ndarray, impressions: np.ndarray, order: np.ndarray, known: int
) -> int:
    """Count the rows of each common row, and list those rows as they are met; returns how many are
    in the list.
    """
    for r in range(user.shape[0]):
        if times[r] > 0:
            if impressions[user[r]] == 0:
                order[known] = user[r]
                known += 1
            impressions[user[r]] += times[r]
    return known


def _widen(found: list[float], values: np.ndarray) -> None:
    if len(values):
        found[0], found[1] = min(found[0], values.min()), max(found[1], values.max())


class _Writer:
    """Writes the arrays of the final splits."""

    def __init__(
        self,
        folder: Path,
        vocabulary: Vocabulary,
        scalers: dict[int, MinMaxScaler],
        total: int,
    ) -> None:
        self.folder, self.vocabulary, self.scalers = folder, vocabulary, scalers
        self.total, self.done, self.adding = total, 0, threading.Lock()

    def _tell(self, progress: Progress, rows: int) -> None:
        """Say that so many more rows are written; they are added up over all threads."""
        with self.adding:
            self.done += rows
            progress("writing splits", self.done, self.total)

    def write(self, joined: _Joined, progress: Progress) -> dict[str, Any]:
        """The final splits that come from one official split; returns their entries in the
        manifest.
        """
        counts = joined.sizes()
        names = {code: SPLITS[code - 1] for code in (_TRAIN, _VALIDATION, _TEST) if counts[code]}
        side = self._write_side(joined, list(names.values()), progress)
        users = np.fromfile(joined.users.files["user"], np.int32)
        plan = joined.rows.plan
        positives = {name: np.zeros(len(TASKS), np.int64) for name in names.values()}
        with ExitStack() as stack:
            files = {code: self._columns(stack, name, joined) for code, name in names.items()}
            bags = {
                code: [
                    _BagColumns(stack, self.folder, f"{name}.bag", FIELDS[field].name)
                    for field in plan.bags
                ]
                for code, name in names.items()
            }
            for place, chunk in joined.chunks():
                part, user = joined.part[place], joined.user[place]
                dense = self._dense(chunk.values, plan.dense)
                for code, name in names.items():
                    rows = np.flatnonzero(part == code)
                    labels = chunk.labels[rows]
                    files[code]["ids"].write(
                        self.vocabulary.rows(np.array(plan.ids, np.int64), chunk.ids, rows)
                    )
                    files[code]["dense"].write(dense[rows])
                    files[code]["labels"].write(labels)
                    files[code]["observed"].write(np.ones((len(rows), len(TASKS)), bool))
                    files[code]["group-user"].write(users[user[rows]])
                    files[code]["side-row"].write(user[rows])
                    positives[name] += labels.sum(0, dtype=np.int64)
                    for b, bag in enumerate(bags[code]):
                        lengths, (ids, weights) = chunk.lengths[:, b], chunk.bags[b]
                        entries = np.flatnonzero(np.repeat(part == code, lengths))
                        bag.write(
                            lengths[rows],
                            self.vocabulary.bag(plan.bags[b], ids[entries]),
                            weights[entries],
                        )
                self._tell(progress, len(chunk))
            arrays = {
                name: [*files[code], *side, *(key for bag in bags[code] for key in bag.keys)]
                for code, name in names.items()
            }
        tasks = [task.name for task in TASKS]
        return {
            name: {
                "rows": counts[code],
                "positives": dict(zip(tasks, positives[name].tolist(), strict=True)),
                "arrays": sorted(arrays[name]),
            }
            for code, name in names.items()
        }

    def _columns(self, stack: ExitStack, name: str, joined: _Joined) -> dict[str, Column]:
        plan = joined.rows.plan
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "ids": (np.int32, (len(plan.ids),)),
            "dense": (np.float32, (len(plan.dense),)),
            "labels": (np.float32, (len(TASKS),)),
            "observed": (bool, (len(TASKS),)),
            "group-user": (np.int32, ()),
            "side-row": (np.int32, ()),
        }
        return {
            key: stack.enter_context(Column(self.folder / f"{name}.{key}.npy", dtype, shape))
            for key, (dtype, shape) in shapes.items()
        }

    def _write_side(self, joined: _Joined, names: list[str], progress: Progress) -> list[str]:
        """The users' columns, written once and given a second name for a second split of the same
        users.
        """
        plan, first = joined.users.plan, names[0]
        with ExitStack() as stack:
            ids = stack.enter_context(
                Column(self.folder / f"{first}.side-ids.npy", np.int32, (len(plan.ids),))
            )
            dense = stack.enter_context(
                Column(self.folder / f"{first}.side-dense.npy", np.float32, (len(plan.dense),))
            )
            bags = [
                _BagColumns(stack, self.folder, f"{first}.side-bag", FIELDS[field].name)
                for field in plan.bags
            ]
            for chunk in joined.users.chunks(CHUNK):
                fields, rows = np.array(plan.ids, np.int64), np.arange(len(chunk))
                ids.write(self.vocabulary.rows(fields, chunk.ids, rows))
                dense.write(self._dense(chunk.values, plan.dense))
                for b, bag in enumerate(bags):
                    entries, weights = chunk.bags[b]
                    bag.write(
                        chunk.lengths[:, b], self.vocabulary.bag(plan.bags[b], entries), weights
                    )
                self._tell(progress, 0)
        keys = ["side-ids", "side-dense", *(key for bag in bags for key in bag.keys)]
        for name in names[1:]:
            for key in keys:
                link_or_copy(self.folder / f"{first}.{key}.npy", self.folder / f"{name}.{key}.npy")
        return keys

    def _dense(self, values: np.ndarray, fields: tuple[int, ...]) -> np.ndarray:
        out = np.empty(values.shape, np.float32)
        for j, field in enumerate(fields):
            out[:, j] = self.scalers[field].transform(values[:, j])
        return out


class _BagColumns:
    """The three files of a bag."""

    def __init__(self, stack: ExitStack, folder: Path, prefix: str, name: str) -> None:
        parts = {"offsets": np.int64, "values": np.int32, "weights": np.float32}
        self.files = {
            part: stack.enter_context(Column(folder / f"{prefix}-{part}-{name}.npy", dtype))
            for part, dtype in parts.items()
        }
        kind = prefix.partition(".")[2]
        self.keys = [f"{kind}-{part}-{name}" for part in parts]
        self.end = 0
        self.files["offsets"].write(np.zeros(1, np.int64))

    def write(self, lengths: np.ndarray, values: np.ndarray, weights: np.ndarray) -> None:
        offsets = self.end + np.cumsum(lengths, dtype=np.int64)
        self.files["offsets"].write(offsets)
        self.files["values"].write(values)
        self.files["weights"].write(weights)
        self.end = int(offsets[-1]) if len(offsets) else self.end


def link_or_copy(path: Path, other: Path) -> None:
    """Give a file a second name; a copy where the file system has no links."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)
