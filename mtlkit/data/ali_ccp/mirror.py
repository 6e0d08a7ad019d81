"""The public mirror: both splits already joined and numbered by the aitm protocol, as two CSV files
of small integers.

Its header names ``click``, ``purchase`` and 18 fields; 0 is unknown. The mirror lacks the tenth of
train that the protocol holds out for validation, so a tenth of what it has is held out here. Raw
user ids are lost: no groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mtlkit.data.ali_ccp.archives import RawSource, Reading, read_whole
from mtlkit.data.ali_ccp.fields import NUMBER, OFFICIAL_SPLITS
from mtlkit.data.ali_ccp.hashing import MAX_ID, kernel, share
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
_TRAIN, _VALIDATION, _TEST = range(3)


def download_mirror(folder: Path, force: bool, progress: Progress) -> list[Downloaded]:
    """Download both files into a folder; what is whole there already is kept, unless ``force``."""
    found = []
    for split, url in URLS.items():
        path = folder / FILES[split]
        if force:
            path.unlink(missing_ok=True)
        if not path.exists():
            found.append(download(url, path, progress=progress))
    return found


@kernel
def _rows(
    block: np.ndarray,
    i: int,
    labels: tuple[int, int],
    user: int,
    sample: float,
    held_out: float,
    salt: int,
    tally: np.ndarray,
    noted: np.ndarray,
    values: np.ndarray,
    part: np.ndarray,
) -> tuple[int, int]:
    """Parse lines of integers from byte ``i`` on; returns where it stopped and the rows in
    ``values`` and ``part``.

    Args:
        block: Whole lines, the last byte a line feed.
        i: Where to begin.
        labels: Columns of click and purchase.
        user: Column of the user, or -1.
        sample: Share of users to keep.
        held_out: Share of rows for validation; negative for a test file.
        salt: Of that draw.
        tally: Counts.
        noted: (2, NOTED) first malformed and dirty lines.
        values: (R, columns) int32.
        part: (R,) uint8.
    """
    rows, columns = 0, values.shape[1]
    while i < block.shape[0] and rows < values.shape[0]:
        column, good = 0, True
        while True:
            begin, value = i, 0
            while 48 <= block[i] <= 57:
                value = value * 10 + (int(block[i]) - 48)
                i += 1
            good = good and begin < i <= begin + 10 and value <= MAX_ID and column < columns
            if good:
                values[rows, column] = value
            column += 1
            if block[i] != 44:
                break
            i += 1
        if block[i] == 13 and block[i + 1] == 10:
            i += 1
        good = good and block[i] == 10 and column == columns
        while block[i] != 10:
            i += 1
        i += 1
        tally[LINES] += 1
        line = tally[LINES]
        if good:
            click, purchase = values[rows, labels[0]], values[rows, labels[1]]
            good = click <= 1 and purchase <= 1
        if not good:
            if tally[BAD] < NOTED:
                noted[0, tally[BAD]] = line
            tally[BAD] += 1
            continue
        if purchase > click:
            if tally[DIRTY] < NOTED:
                noted[1, tally[DIRTY]] = line
            tally[DIRTY] += 1
            continue
        if sample < 1.0:
            known = user >= 0 and values[rows, user] > 0
            who = np.uint64(values[rows, user]) if known else np.uint64(line) << np.uint64(32)
            if share(who, np.uint64(SAMPLE_SALT)) >= sample:
                tally[LEFT_OUT] += 1
                continue
        if held_out < 0:
            part[rows] = _TEST
        else:
            part[rows] = (
                _VALIDATION if share(np.uint64(line), np.uint64(salt)) < held_out else _TRAIN
            )
        tally[ROWS] += 1
        rows += 1
    return i, rows


class _File:
    """One file of the mirror while it is read."""

    def __init__(
        self, path: Path, split: str, request: Request, bad_before: int, hint: str
    ) -> None:
        self.path, self.split, self.request, self.bad_before, self.hint = (
            path,
            split,
            request,
            bad_before,
            hint,
        )
        self.tally, self.noted = np.zeros(len(TALLIES), np.int64), np.zeros((2, NOTED), np.int64)

    def rows(
        self, blocks: Iterator[np.ndarray]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Ids in the order of the protocol, labels, and the split of consecutive rows."""
        header: list[str] = []
        for block in blocks:
            i = 0
            if not header:
                i = int(np.argmax(block == 10)) + 1
                header = self._header(bytes(block[:i]))
                labels = (header.index("click"), header.index("purchase"))
                wanted = [header.index(name) for name in self.request.protocol.ids]
                user = header.index("101") if "101" in header else -1
                self.tally[LINES] = 1
                held_out = HELD_OUT if self.split == "train" else -1.0
            while i < len(block):
                values, part = (
                    np.empty((ROOM_ROWS, len(header)), np.int32),
                    np.empty(ROOM_ROWS, np.uint8),
                )
                salt = SPLIT_SALT["rows"]
                place = (
                    labels,
                    user,
                    self.request.sample,
                    held_out,
                    salt,
                    self.tally,
                    self.noted,
                    values,
                    part,
                )
                i, rows = _rows(block, i, *place)
                self._check()
                yield values[:rows, wanted], values[:rows, labels], part[:rows]
        if not header:
            raise MissingError(f"{self.path} is empty.", self.hint)

    def _header(self, line: bytes) -> list[str]:
        names = line.decode("utf-8", "replace").strip().split(",")
        missing = [name for name in (*LABELS, *self.request.protocol.ids) if name not in names]
        if missing or len(names) > 64:
            raise MissingError(
                f"{self.path} is no file of the mirror: its header lacks {', '.join(missing)}.",
                self.hint,
            )
        return names

    def _check(self) -> None:
        if self.bad_before + self.tally[BAD] > self.request.max_bad_rows:
            lines = ", ".join(str(line) for line in self.noted[0][self.noted[0] > 0][:3])
            raise MissingError(
                f"More than {self.request.max_bad_rows:,} rows are malformed: {self.path.name}, lines {lines}.",
                f"{self.hint} --force; or --max-bad-rows N, if that many are to be left out",
            )

    def report(self) -> dict[str, Any]:
        """What was counted."""
        found: dict[str, Any] = {
            name: int(count) for name, count in zip(TALLIES, self.tally, strict=True) if count
        }
        for row, name in enumerate(("first malformed lines", "first dirty lines")):
            if self.noted[row].any():
                found[name] = self.noted[row][self.noted[row] > 0].tolist()
        return found


def prepare_mirror(
    raw: Path, folder: Path, name: str, request: Request, progress: Progress, hint: str
) -> tuple[Dataset, dict[str, Any]]:
    """Write the arrays of all splits into a folder, in one pass over each file; arguments as in
    ``prepare.prepare``.
    """
    source = RawSource(tuple(raw / FILES[split] for split in OFFICIAL_SPLITS))
    check_disk(folder, int(source.unpacked_bytes() * DISK))
    ids = request.protocol.ids
    most = np.zeros(len(ids), np.int64)
    reading = Reading()
    files: list[_File] = []
    counts = {split: np.zeros(1 + len(TASKS), np.int64) for split in SPLITS}
    shapes: dict[str, tuple[Any, int]] = {
        "ids": (np.int32, len(ids)),
        "dense": (np.float32, 0),
        "labels": (np.float32, len(TASKS)),
        "observed": (bool, len(TASKS)),
    }
    for split, path in zip(OFFICIAL_SPLITS, source.files, strict=True):
        file = _File(path, split, request, sum(int(other.tally[BAD]) for other in files), hint)
        files.append(file)
        with ExitStack() as stack:
            columns = {
                final: {
                    key: stack.enter_context(Column(folder / f"{final}.{key}.npy", dtype, (width,)))
                    for key, (dtype, width) in shapes.items()
                }
                for final in (("train", "validation") if split == "train" else ("test",))
            }
            blocks = stack.enter_context(read_whole(path, reading, progress, hint))
            for values, labels, part in file.rows(blocks):
                if split == "train" and len(values):
                    most = np.maximum(most, values.max(0))
                    if most.max() >= MOST_VOCAB:
                        raise MissingError(
                            f"{path} holds the id {most.max():,}: it is no file of the mirror.",
                            hint,
                        )
                elif len(values):
                    unseen = values > most
                    file.tally[UNSEEN] += int(unseen.sum())
                    values = np.where(unseen, 0, values)
                for final, written in columns.items():
                    own = part == SPLITS.index(final)
                    n = int(own.sum())
                    written["ids"].write(values[own])
                    written["dense"].write(np.zeros((n, 0), np.float32))
                    written["labels"].write(labels[own])
                    written["observed"].write(np.ones((n, len(TASKS)), bool))
                    counts[final] += [n, *labels[own].sum(0, dtype=np.int64)]
    check_rows({split: int(count[0]) for split, count in counts.items()})
    vocab = {NUMBER[name]: int(size) + 1 for name, size in zip(ids, most, strict=True)}
    schema = Schema(features=features(request.protocol, vocab), tasks=TASKS, funnel=FUNNEL)
    entries: dict[str, Any] = {
        split: {
            "rows": int(count[0]),
            "positives": dict(zip(schema.task_names, count[1:].tolist(), strict=True)),
            "arrays": sorted(shapes),
        }
        for split, count in counts.items()
    }
    details = {
        "protocol": "aitm, as the public mirror has it",
        "min count": MIN_COUNT,
        "sample": request.sample,
        "vocabulary": {name: int(size) + 1 for name, size in zip(ids, most, strict=True)},
        "texts": {file.path.name: file.report() for file in files},
        "files": reading.hashes,
        "text bytes": reading.text_bytes,
    }
    digest = fingerprint_folder(
        folder, schema, {split: entry["arrays"] for split, entry in entries.items()}
    )
    return Dataset(name, schema, {}, digest, False, details), entries
