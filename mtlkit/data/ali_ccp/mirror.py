"""The public mirror of Ali-CCP: both splits joined and numbered by the aitm protocol, as CSV files.

Its header names ``click``, ``purchase`` and 18 fields; 0 is unknown. The mirror lacks the tenth of
train that the protocol holds out for validation, so a tenth of what it has is held out here. Raw
user ids are lost: no groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtlkit.data.ali_ccp.archives import RawSource, Reading, read_whole
from mtlkit.data.ali_ccp.fields import CARRIAGE_RETURN, COMMA, LINE_FEED, NUMBER, OFFICIAL_SPLITS
from mtlkit.data.ali_ccp.hashing import MAX_ID, inlined, kernel, share
from mtlkit.data.ali_ccp.prepare import check_disk, check_rows
from mtlkit.data.ali_ccp.protocols import FUNNEL, HELD_OUT, SPLIT_SALT, TASKS, Request, features
from mtlkit.data.ali_ccp.tokenise import NOTED, SAMPLE_SALT
from mtlkit.data.datasets._source import Progress
from mtlkit.data.download import Downloaded, download
from mtlkit.data.splits import SPLITS, Dataset
from mtlkit.data.storage import Column, fingerprint_folder
from mtlkit.data.types import Schema
from mtlkit.errors import MissingError

URLS = {
    "train": "https://paddlerec.bj.bcebos.com/datasets/aitm/ctr_cvr.train",
    "test": "https://paddlerec.bj.bcebos.com/datasets/aitm/ctr_cvr.test",
}
FILES = {"train": "ctr_cvr.train", "test": "ctr_cvr.test"}
MIN_COUNT = 12
LABELS = ("click", "purchase")
COLUMNS = (
    *LABELS,
    *("101", "121", "122", "124", "125", "126", "127", "128", "129"),
    *("205", "206", "207", "216", "508", "509", "702", "853", "301"),
)
"""The documented order, which holds for a file without a header line."""
ROOM_ROWS = 1 << 16
DISK = 1.5  # bytes of packed columns for a byte of text, with some to spare
MOST_VOCAB = 1 << 24

LINES, ROWS, DIRTY, BAD, LEFT_OUT, UNSEEN = range(6)
TALLIES = (
    "lines",
    "rows",
    "dirty",
    "malformed",
    "rows left out by sampling",
    "test ids that train lacks",
)
BAD_LINES, DIRTY_LINES = range(2)
"""The rows of the array of remembered lines."""
_TRAIN, _VALIDATION, _TEST = range(3)
_DIGIT_0, _DIGIT_9 = ord("0"), ord("9")

ARRAYS: dict[str, tuple[Any, int | None]] = {
    "ids": (np.int32, None),
    "dense": (np.float32, 0),
    "labels": (np.float32, len(TASKS)),
    "observed": (bool, len(TASKS)),
}
"""Type and width of the arrays of a split; there are as many ids as the protocol has."""


class _Layout(NamedTuple):
    """What the columns of a file are, and how its rows are divided."""

    click: int  # column of the label
    purchase: int  # column of the label
    user: int  # column of the user, or -1
    sample: float  # share of users to keep
    held_out: float  # share of rows for validation; negative for a test file
    salt: int  # of the draw of those


class _Rows(NamedTuple):
    """Room for R rows, and what was counted so far."""

    values: np.ndarray  # (R, columns) int32
    split: np.ndarray  # (R,) uint8
    tally: np.ndarray  # (6,) see TALLIES
    noted: np.ndarray  # (2, NOTED) first malformed and dirty lines


def download_mirror(folder: Path, force: bool, progress: Progress) -> list[Downloaded]:
    """Download both files into a folder; what is whole there already is kept, unless ``force``."""
    downloads = []
    for split, url in URLS.items():
        path = folder / FILES[split]
        if force:
            path.unlink(missing_ok=True)
        if not path.exists():
            downloads.append(download(url, path, progress=progress))
    return downloads


@inlined
def _read_line(block: np.ndarray, i: int, values: np.ndarray, row: int) -> tuple[int, bool]:
    """Read a line of integers from byte ``i`` into a row; returns where the next one begins, and
    whether it is well formed.
    """
    columns = values.shape[1]
    column, is_good = 0, True
    while True:
        begin, value = i, 0
        while _DIGIT_0 <= block[i] <= _DIGIT_9:
            value = value * 10 + (int(block[i]) - _DIGIT_0)
            i += 1
        is_good = is_good and begin < i <= begin + 10 and value <= MAX_ID and column < columns
        if is_good:
            values[row, column] = value
        column += 1
        if block[i] != COMMA:
            break
        i += 1
    if block[i] == CARRIAGE_RETURN and block[i + 1] == LINE_FEED:
        i += 1
    is_good = is_good and block[i] == LINE_FEED and column == columns
    while block[i] != LINE_FEED:
        i += 1
    return i + 1, is_good


@inlined
def _note(tally: np.ndarray, noted: np.ndarray, lines: int, kind: int, line: int) -> None:
    """Count a line that is left out, and remember the first of them."""
    if tally[kind] < NOTED:
        noted[lines, tally[kind]] = line
    tally[kind] += 1


@kernel
def _read_rows(block: np.ndarray, i: int, layout: _Layout, rows: _Rows) -> tuple[int, int]:
    """Parse lines of integers from byte ``i`` on until the block ends or there is no room.

    Args:
        block: Whole lines, the last byte a line feed.
        i: Where to begin.
        layout: What the columns are.
        rows: Filled from the first row on.

    Returns:
        Where it stopped, and how many rows there are.
    """
    values, split, tally, noted = rows
    row = 0
    while i < block.shape[0] and row < values.shape[0]:
        i, is_good = _read_line(block, i, values, row)
        tally[LINES] += 1
        line = tally[LINES]

        # Malformed lines are left out, and purchases without a click.
        click, purchase = 0, 0
        if is_good:
            click, purchase = values[row, layout.click], values[row, layout.purchase]
        if not is_good or click > 1 or purchase > 1:
            _note(tally, noted, BAD_LINES, BAD, line)
            continue
        if purchase > click:
            _note(tally, noted, DIRTY_LINES, DIRTY, line)
            continue

        # Sample by the user, or where it is not known by the line.
        if layout.sample < 1.0:
            drawn_by = np.uint64(line) << np.uint64(32)
            if layout.user >= 0 and values[row, layout.user] > 0:
                drawn_by = np.uint64(values[row, layout.user])
            if share(drawn_by, np.uint64(SAMPLE_SALT)) >= layout.sample:
                tally[LEFT_OUT] += 1
                continue

        split[row] = _TRAIN
        if layout.held_out < 0:
            split[row] = _TEST
        elif share(np.uint64(line), np.uint64(layout.salt)) < layout.held_out:
            split[row] = _VALIDATION
        tally[ROWS] += 1
        row += 1
    return i, row


class _File:
    """One file of the mirror while it is read."""

    def __init__(
        self, path: Path, split: str, request: Request, bad_before: int, hint: str
    ) -> None:
        self.path, self.split = path, split
        self.request, self.bad_before, self.hint = request, bad_before, hint
        self.tally = np.zeros(len(TALLIES), np.int64)
        self.noted = np.zeros((2, NOTED), np.int64)
        self.has_header = True

    def rows(
        self, blocks: Iterator[np.ndarray]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Ids in the order of the protocol, labels, and the split of consecutive rows."""
        header: list[str] = []
        for block in blocks:
            i = 0
            if not header:
                first_line = bytes(block[: int(np.argmax(block == LINE_FEED)) + 1])
                header = self._header(first_line)
                layout = self._layout(header)
                id_columns = [header.index(name) for name in self.request.protocol.ids]
                if self.has_header:
                    i, self.tally[LINES] = len(first_line), 1
            while i < len(block):
                values = np.empty((ROOM_ROWS, len(header)), np.int32)
                split = np.empty(ROOM_ROWS, np.uint8)
                i, n = _read_rows(block, i, layout, _Rows(values, split, self.tally, self.noted))
                self._check()
                labels = values[:n, [layout.click, layout.purchase]]
                yield values[:n, id_columns], labels, split[:n]
        if not header:
            raise MissingError(f"{self.path} is empty.", self.hint)

    def _layout(self, header: list[str]) -> _Layout:
        return _Layout(
            click=header.index("click"),
            purchase=header.index("purchase"),
            user=header.index("101") if "101" in header else -1,
            sample=self.request.sample,
            held_out=HELD_OUT if self.split == "train" else -1.0,
            salt=SPLIT_SALT["rows"],
        )

    def _header(self, line: bytes) -> list[str]:
        names = line.decode("utf-8", "replace").strip().split(",")
        if len(names) == len(COLUMNS) and all(name.isdecimal() for name in names[: len(LABELS)]):
            self.has_header = False
            return list(COLUMNS)
        missing = [name for name in (*LABELS, *self.request.protocol.ids) if name not in names]
        if missing or len(names) > 64:
            raise MissingError(
                f"{self.path} is no file of the mirror: its header lacks {', '.join(missing)}.",
                self.hint,
            )
        return names

    def _check(self) -> None:
        if self.bad_before + self.tally[BAD] > self.request.max_bad_rows:
            lines = ", ".join(str(line) for line in self._noted_lines(BAD_LINES)[:3])
            raise MissingError(
                f"More than {self.request.max_bad_rows:,} rows are malformed: "
                f"{self.path.name}, lines {lines}.",
                f"{self.hint} --force; or --max-bad-rows N, if that many are to be left out",
            )

    def _noted_lines(self, lines: int) -> list[int]:
        noted = self.noted[lines]
        return noted[noted > 0].tolist()

    def report(self) -> dict[str, Any]:
        """What was counted."""
        report: dict[str, Any] = {} if self.has_header else {"no header": True}
        for name, count in zip(TALLIES, self.tally, strict=True):
            if count:
                report[name] = int(count)
        for lines, name in enumerate(("first malformed lines", "first dirty lines")):
            if self._noted_lines(lines):
                report[name] = self._noted_lines(lines)
        return report


class _Mirror:
    """The splits while they are written.

    Args:
        folder: Where their files go.
        request: What to prepare.
        hint: For errors.
    """

    def __init__(self, folder: Path, request: Request, hint: str) -> None:
        self.folder, self.request, self.hint = folder, request, hint
        self.reading = Reading()
        self.files: list[_File] = []
        self.largest = np.zeros(len(request.protocol.ids), np.int64)
        self.counts = {split: np.zeros(1 + len(TASKS), np.int64) for split in SPLITS}

    def read(self, split: str, path: Path, progress: Progress) -> None:
        """Read one file, and write the splits that come from it."""
        bad_before = sum(int(file.tally[BAD]) for file in self.files)
        file = _File(path, split, self.request, bad_before, self.hint)
        self.files.append(file)
        final_splits = ("train", "validation") if split == "train" else ("test",)
        with ExitStack() as stack:
            columns = {final: self._columns(stack, final) for final in final_splits}
            blocks = stack.enter_context(read_whole(path, self.reading, progress, self.hint))
            for ids, labels, row_split in file.rows(blocks):
                known_ids = self._known_ids(file, ids)
                for final in final_splits:
                    rows = row_split == SPLITS.index(final)
                    self._write(columns[final], known_ids[rows], labels[rows])
                    positives = labels[rows].sum(0, dtype=np.int64)
                    self.counts[final] += [int(rows.sum()), *positives]

    def _columns(self, stack: ExitStack, final: str) -> dict[str, Column]:
        columns = {}
        for array, (dtype, width) in ARRAYS.items():
            shape = (len(self.largest) if width is None else width,)
            path = self.folder / f"{final}.{array}.npy"
            columns[array] = stack.enter_context(Column(path, dtype, shape))
        return columns

    def _known_ids(self, file: _File, ids: np.ndarray) -> np.ndarray:
        """The ids, with 0 in place of those that train lacks; of train, the largest are noted."""
        if not len(ids):
            return ids
        if file.split == "train":
            self.largest = np.maximum(self.largest, ids.max(0))
            if self.largest.max() >= MOST_VOCAB:
                raise MissingError(
                    f"{file.path} holds the id {self.largest.max():,}: "
                    "it is no file of the mirror.",
                    self.hint,
                )
            return ids
        is_unseen = ids > self.largest
        file.tally[UNSEEN] += int(is_unseen.sum())
        return np.where(is_unseen, 0, ids)

    def _write(self, columns: dict[str, Column], ids: np.ndarray, labels: np.ndarray) -> None:
        columns["ids"].write(ids)
        columns["dense"].write(np.zeros((len(ids), 0), np.float32))
        columns["labels"].write(labels)
        columns["observed"].write(np.ones((len(ids), len(TASKS)), bool))


def prepare_mirror(
    raw: Path, folder: Path, name: str, request: Request, progress: Progress, hint: str
) -> tuple[Dataset, dict[str, Any]]:
    """Write the arrays of all splits into a folder, in one pass over each file.

    Arguments and results are those of :func:`prepare.prepare_archives`, but for ``raw``, the folder
    of the two files.
    """
    source = RawSource(tuple(raw / FILES[split] for split in OFFICIAL_SPLITS))
    check_disk(folder, int(source.unpacked_bytes() * DISK))
    mirror = _Mirror(folder, request, hint)
    for split, path in zip(OFFICIAL_SPLITS, source.files, strict=True):
        mirror.read(split, path, progress)
    check_rows({split: int(count[0]) for split, count in mirror.counts.items()})

    ids = request.protocol.ids
    vocabulary = {name: int(id) + 1 for name, id in zip(ids, mirror.largest, strict=True)}
    vocab = {NUMBER[name]: size for name, size in vocabulary.items()}
    schema = Schema(features=features(request.protocol, vocab), tasks=TASKS, funnel=FUNNEL)
    entries: dict[str, Any] = {}
    for split, (rows, *positives) in mirror.counts.items():
        entries[split] = {
            "rows": int(rows),
            "positives": dict(zip(schema.task_names, map(int, positives), strict=True)),
            "arrays": sorted(ARRAYS),
        }
    details = {
        "protocol": "aitm, as the public mirror has it",
        "min count": MIN_COUNT,
        "sample": request.sample,
        "vocabulary": vocabulary,
        "texts": {file.path.name: file.report() for file in mirror.files},
        "files": mirror.reading.hashes,
        "text bytes": mirror.reading.text_bytes,
    }
    digest = fingerprint_folder(
        folder, schema, {split: entry["arrays"] for split, entry in entries.items()}
    )
    return Dataset(name, schema, {}, digest, False, details), entries
