"""Ali-CCP from text to packed splits: stage both texts of both splits, count on train, join, write.

Both splits are read at once, and each is unpacked in a thread of its own; nothing that is written
depends on which thread was faster.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mtlkit.data.ali_ccp.archives import RawSource, Reading, read_texts
from mtlkit.data.ali_ccp.fields import COMMON, FIELDS, OFFICIAL_SPLITS, SKELETON
from mtlkit.data.ali_ccp.fit import fit
from mtlkit.data.ali_ccp.join import Joined
from mtlkit.data.ali_ccp.protocols import FUNNEL, TASKS, Request, features, field_plan
from mtlkit.data.ali_ccp.staging import Keys, Staged, Stager, too_many
from mtlkit.data.ali_ccp.vocabulary import Vocabulary
from mtlkit.data.ali_ccp.write import Encoders, SplitWriter
from mtlkit.data.datasets._source import Progress
from mtlkit.data.encoders import MinMaxScaler
from mtlkit.data.planted import ALL_SIMULATED_ROWS
from mtlkit.data.splits import SPLITS, Dataset
from mtlkit.data.storage import fingerprint_folder, save_array
from mtlkit.data.table import row_encoders
from mtlkit.data.table.row_encoders import RowEncoders
from mtlkit.data.types import Schema
from mtlkit.errors import MissingError

THREADS = 2  # splits at a time; each has a second thread that unpacks
DISK = {"aitm": 0.35, "rechub": 0.45, "full": 1.0}
"""Disk that preparation needs for a byte of text: staged columns and the splits together, with some
to spare.
"""
PLANTED = "planted_auc"
T = TypeVar("T")


def prepare_archives(
    source: RawSource, folder: Path, name: str, request: Request, progress: Progress, hint: str
) -> tuple[Dataset, dict[str, Any]]:
    """Write the arrays of all splits into a folder.

    Returns:
        The data set without its arrays, and the entries of the manifest about the splits.

    Raises:
        MissingError: The disk is too small, or the files are not what they should be.
    """
    check_disk(folder, int(source.unpacked_bytes() * DISK[request.protocol.name]))

    # Text becomes columns on disk, each split in a thread.
    staging = folder / "staging"
    staging.mkdir()
    raw = {split: _RawSplit(source, split) for split in OFFICIAL_SPLITS}
    _together([partial(split.stage, staging, request, hint) for split in raw.values()], progress)

    # Rows find their common features and their final split.
    joined = {split: raw[split].join(request) for split in OFFICIAL_SPLITS}
    _check_joined(raw, joined, request, hint)

    # Encoders see train only.
    vocabulary, scalers = fit(joined["train"], request)
    total = sum(len(part.split) for part in joined.values())
    writer = SplitWriter(folder, Encoders(vocabulary, scalers), total)
    written: dict[str, Any] = {}
    for entries in _together([partial(writer.write, part) for part in joined.values()], progress):
        written |= entries
    shutil.rmtree(staging)

    # Raw ids are kept beside the splits, so that numbers can be read back.
    for field, ids in vocabulary.raw.items():
        save_array(folder / f"vocabulary.{FIELDS[field].name}.npy", ids)

    sizes = {field: len(ids) for field, ids in vocabulary.raw.items()}
    schema = Schema(features=features(request.protocol, sizes), tasks=TASKS, funnel=FUNNEL)
    splits = {split: written[split] for split in SPLITS}
    details = _details(raw, joined, vocabulary, request)
    digest = fingerprint_folder(folder, schema, splits)
    encoders = _row_encoders(request, vocabulary, scalers).as_json()
    is_simulated = "simulation" in details
    return Dataset(name, schema, {}, digest, is_simulated, details, encoders), splits


def _row_encoders(
    request: Request, vocabulary: Vocabulary, scalers: dict[int, MinMaxScaler]
) -> RowEncoders:
    """Those of rows with a column a feature that holds raw ids, lists of them, or raw values."""
    kept = {field: ids[1:].tolist() for field, ids in vocabulary.raw.items()}
    plans = (field_plan(request.protocol, "row"), field_plan(request.protocol, "user"))
    columns = []
    for plan in plans:
        for number in plan.ids:
            columns.append(row_encoders.levels(FIELDS[number].name, kept[number]))
        for number in plan.bags:
            columns.append(row_encoders.bag(FIELDS[number].name, kept[number]))
        for number in plan.dense:
            columns.append(row_encoders.numbers(f"D{FIELDS[number].name}", scalers[number]))
    return RowEncoders(tuple(columns))


def check_rows(rows: dict[str, int]) -> None:
    """Every split needs some.

    Raises:
        MissingError: One is empty.
    """
    empty = [split for split, count in rows.items() if not count]
    if empty:
        message = (
            f"No rows are left for {' and '.join(empty)}: the files are too short, "
            "or the sample is too small."
        )
        raise MissingError(message, "leave out --sample, or make it larger")


def check_disk(folder: Path, needed: int) -> None:
    """Say before the work begins that there is no room for it.

    Raises:
        MissingError: The disk is too small.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        message = (
            f"Preparation needs about {needed / 1e9:.0f} GB, "
            f"but the disk of {folder.parent} has {free / 1e9:.0f} GB free."
        )
        hint = "choose a larger disk with --data-dir DIR, or fewer rows with --sample"
        raise MissingError(message, hint)


def _check_joined(
    raw: dict[str, _RawSplit], joined: dict[str, Joined], request: Request, hint: str
) -> None:
    """Refuse too many malformed rows, orphans among them, and empty splits."""
    malformed = sum(split.bad for split in raw.values())
    orphans = sum(part.orphans for part in joined.values())
    if malformed + orphans > request.max_bad_rows:
        texts = [text for part in joined.values() for text in part.bad_lines()]
        name, lines = texts[0]
        raise too_many(request.max_bad_rows, name, lines, hint)
    _, *rows = np.sum([part.sizes() for part in joined.values()], axis=0).tolist()
    check_rows(dict(zip(SPLITS, rows, strict=True)))


def _details(
    raw: dict[str, _RawSplit], joined: dict[str, Joined], vocabulary: Vocabulary, request: Request
) -> dict[str, Any]:
    """What the manifest says about the preparation."""
    texts = [text for split in raw.values() for text in split.staged.values()]
    readings = [split.reading for split in raw.values()]
    details: dict[str, Any] = {
        "protocol": request.protocol.name,
        "min count": request.min_count,
        "sample": request.sample,
        "vocabulary": {FIELDS[field].name: len(ids) for field, ids in vocabulary.raw.items()},
        "texts": {text.name: text.report() for text in texts},
        "rows without common features": {
            split: part.orphan_report() for split, part in joined.items() if part.orphans
        },
        "files": [entry for reading in readings for entry in reading.hashes],
        "text bytes": sum(reading.text_bytes for reading in readings),
    }
    simulations = [reading.simulated for reading in readings if reading.simulated is not None]
    if simulations:
        details["simulation"] = _of_the_test_split(simulations[0], request)
    return details


def _of_the_test_split(simulated: dict[str, Any], request: Request) -> dict[str, Any]:
    """What the simulator noted; the ceiling of all its test rows only where the split holds all."""
    if request.sample == 1 and request.protocol.held_out != "test":
        return simulated
    facts = {name: fact for name, fact in simulated.items() if name != PLANTED}
    return facts | {ALL_SIMULATED_ROWS: {PLANTED: simulated.get(PLANTED)}}


class _Stopped(Exception):
    """Another thread failed, or the user wants it to end."""


def _together(works: list[Callable[[Progress], T]], progress: Progress) -> list[T]:
    """What each of some pieces of work returns, which run in threads. When one fails, or the user
    interrupts, the others end where they tell progress.

    Args:
        works: Each is called with a progress callback that may raise.
        progress: Told by one of them at a time.
    """
    stop, one_at_a_time = threading.Event(), threading.Lock()

    def tell(what: str, done: int, total: int | None) -> None:
        if stop.is_set():
            raise _Stopped
        with one_at_a_time:
            progress(what, done, total)

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            futures = [pool.submit(work, tell) for work in works]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()  # when all went well, nobody is left to see it

    # The error that made the others stop comes first.
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, _Stopped)):
        raise error
    return [future.result() for future in futures]


class _RawSplit:
    """One official split while it is staged: the keys of its common indexes, and its two texts."""

    def __init__(self, source: RawSource, split: str) -> None:
        self.source, self.split = source, split
        self.keys, self.reading = Keys(), Reading()
        self.staged: dict[str, Staged] = {}
        self.bad = 0

    def stage(self, folder: Path, request: Request, hint: str, progress: Progress) -> None:
        """Both texts of the split from text to columns on disk."""
        stager = Stager(folder, request.sample, request.max_bad_rows, hint)
        for text in read_texts(self.source, self.split, self.reading, progress, hint):
            plan = field_plan(request.protocol, "row" if text.kind == SKELETON else "user")
            self.staged[text.kind] = stager.stage(text, self.keys, plan)
        self.bad = stager.bad

    def join(self, request: Request) -> Joined:
        """Both staged texts joined."""
        rows, users = self.staged[SKELETON], self.staged[COMMON]
        return Joined(rows, users, self.keys, request.protocol, self.split)
