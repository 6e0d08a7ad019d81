"""The public mirror of Ali-CCP: both splits joined and numbered by the aitm protocol, as CSV files.

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
from mtlkit.data.ali_ccp.fields import CARRIAGE_RETURN, COMMA, LINE_FEED, NUMBER, OFFICIAL_SPLITS
from mtlkit.data.ali_ccp.hashing import MAX_ID, kernel, share
from mtlkit.data.ali_ccp.prepare import check_disk, check_rows
from mtlkit.data.ali_ccp.protocols import FUNNEL, HELD_OUT, SPLIT_SALT, TASKS, Request, features
from mtlkit.data.ali_ccp.tokenise import NOTED, SAMPLE_SALT
from mtlkit.data.datasets._source import Progress
from mtlkit.data.download import Downloaded, download
from mtlkit.data.splits import SPLITS, Dataset
from mtlkit.data.storage import SplitFiles, fingerprint_folder
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
DISK = 1.5  # bytes of packed columns for a byte of text, with some to spare
MOST_VOCAB = 1 << 24

LEFT_OUT, UNSEEN = "rows left out by sampling", "test ids that train lacks"
COUNTS = ("lines", "rows", "dirty", "malformed", LEFT_OUT, UNSEEN)
"""What is counted of a file, in the order of its report."""
NO_NUMBER = -1
_DIGIT_0, _DIGIT_9 = ord("0"), ord("9")
_TRAIN, _VALIDATION, _TEST = range(3)


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


@kernel
def _shares(values: np.ndarray, salt: int) -> np.ndarray:
    """(n,) numbers in [0, 1) that depend on (n,) values and the salt only."""
    drawn = np.empty(values.shape[0])
    for n in range(values.shape[0]):
        drawn[n] = share(np.uint64(values[n]), np.uint64(salt))
    return drawn


@kernel
def _numbers(block: np.ndarray, columns: int) -> np.ndarray:
    """(lines, columns) int32 of a block of lines; NO_NUMBER all along a line that is malformed."""
    numbers = np.empty((np.sum(block == LINE_FEED), columns), np.int32)
    i = 0
    for line in range(numbers.shape[0]):
        # a number has one to ten digits
        column, is_good, is_more = 0, True, True
        while is_more:
            begin, value = i, 0
            while _DIGIT_0 <= block[i] <= _DIGIT_9:
                value = value * 10 + int(block[i]) - _DIGIT_0
                i += 1
            is_good &= begin < i <= begin + 10 and value <= MAX_ID and column < columns
            if is_good:
                numbers[line, column] = value
            column += 1
            is_more = block[i] == COMMA
            i += is_more

        # a carriage return may come before the end of the line
        if block[i] == CARRIAGE_RETURN and block[i + 1] == LINE_FEED:
            i += 1
        if not is_good or column < columns or block[i] != LINE_FEED:
            numbers[line, :] = NO_NUMBER
        while block[i] != LINE_FEED:
            i += 1
        i += 1
    return numbers


class _File:
    """One file of the mirror while it is read."""

    def __init__(
        self, path: Path, split: str, request: Request, bad_before: int, hint: str
    ) -> None:
        self.path, self.split = path, split
        self.request, self.bad_before, self.hint = request, bad_before, hint
        self.counts = dict.fromkeys(COUNTS, 0)
        self.noted: dict[str, list[int]] = {"malformed": [], "dirty": []}
        self.has_header = True

    def rows(
        self, blocks: Iterator[np.ndarray]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Ids in the order of the protocol, labels, and the split of consecutive rows."""
        header: list[str] = []
        for block in blocks:
            if not header:
                first_line = bytes(block[: int(np.argmax(block == LINE_FEED)) + 1])
                header = self._header(first_line)
                id_columns = [header.index(name) for name in self.request.protocol.ids]
                if self.has_header:
                    block, self.counts["lines"] = block[len(first_line) :], 1
            if len(block):
                numbers = _numbers(block, len(header))
                labels = numbers[:, [header.index(label) for label in LABELS]]
                users = numbers[:, header.index("101")] if "101" in header else None
                split = self._split(labels, users)
                kept = split >= 0
                yield numbers[kept][:, id_columns], labels[kept], split[kept]
        if not header:
            raise MissingError(f"{self.path} is empty.", self.hint)

    def _split(self, labels: np.ndarray, users: np.ndarray | None) -> np.ndarray:
        """The split of the next n lines, negative for those that are left out, which are counted.

        Args:
            labels: (n, 2) click and purchase.
            users: (n,), or None where they are not known.
        """
        lines = self.counts["lines"] + 1 + np.arange(len(labels))
        self.counts["lines"] += len(lines)
        split = np.full(len(lines), _TEST)
        if self.split == "train":
            is_held_out = _shares(lines, SPLIT_SALT["rows"]) < HELD_OUT
            split = np.where(is_held_out, _VALIDATION, _TRAIN)

        # Malformed lines are left out, and purchases without a click.
        is_malformed = ((labels < 0) | (labels > 1)).any(1)
        is_dirty = ~is_malformed & (labels[:, 1] > labels[:, 0])
        for kind, is_odd in (("malformed", is_malformed), ("dirty", is_dirty)):
            self.counts[kind] += int(is_odd.sum())
            self.noted[kind] = [*self.noted[kind], *lines[is_odd].tolist()][:NOTED]
            split[is_odd] = -1
        self._check()

        # Sample by the user, or where it is not known by the line.
        if self.request.sample < 1:
            drawn_by = lines << 32
            if users is not None:
                drawn_by = np.where(users > 0, users, drawn_by)
            is_out = (split >= 0) & (_shares(drawn_by, SAMPLE_SALT) >= self.request.sample)
            self.counts[LEFT_OUT] += int(is_out.sum())
            split[is_out] = -1
        self.counts["rows"] += int((split >= 0).sum())
        return split

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
        if self.bad_before + self.counts["malformed"] > self.request.max_bad_rows:
            lines = ", ".join(str(line) for line in self.noted["malformed"][:3])
            raise MissingError(
                f"More than {self.request.max_bad_rows:,} rows are malformed: "
                f"{self.path.name}, lines {lines}.",
                f"{self.hint} --force; or --max-bad-rows N, if that many are to be left out",
            )

    def report(self) -> dict[str, Any]:
        """What was counted."""
        report: dict[str, Any] = {} if self.has_header else {"no header": True}
        report |= {name: count for name, count in self.counts.items() if count}
        return report | {
            f"first {kind} lines": lines for kind, lines in self.noted.items() if lines
        }


class _Mirror:
    """The splits while they are written."""

    def __init__(self, folder: Path, request: Request, hint: str) -> None:
        self.folder, self.request, self.hint = folder, request, hint
        self.reading = Reading()
        self.files: list[_File] = []
        self.largest = np.zeros(len(request.protocol.ids), np.int64)
        self.entries: dict[str, Any] = {}

    def read(self, split: str, path: Path, progress: Progress) -> None:
        """Read one file, and write the splits that come from it."""
        bad_before = sum(file.counts["malformed"] for file in self.files)
        file = _File(path, split, self.request, bad_before, self.hint)
        self.files.append(file)
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "ids": (np.int32, (len(self.largest),)),
            "dense": (np.float32, (0,)),
            "labels": (np.float32, (len(TASKS),)),
            "observed": (bool, (len(TASKS),)),
        }
        final_splits = ("train", "validation") if split == "train" else ("test",)
        with ExitStack() as stack:
            files = {final: SplitFiles(stack, self.folder, final, shapes) for final in final_splits}
            blocks = stack.enter_context(read_whole(path, self.reading, progress, self.hint))
            for ids, labels, row_split in file.rows(blocks):
                arrays = {
                    "ids": self._known_ids(file, ids),
                    "dense": np.zeros((len(ids), 0), np.float32),
                    "labels": labels,
                    "observed": np.ones(labels.shape, bool),
                }
                for final, split_files in files.items():
                    split_files.write(arrays, (), row_split == SPLITS.index(final))
        names = [task.name for task in TASKS]
        self.entries |= {final: split_files.entry(names) for final, split_files in files.items()}

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
        file.counts[UNSEEN] += int(is_unseen.sum())
        return np.where(is_unseen, 0, ids)


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
    check_rows({split: entry["rows"] for split, entry in mirror.entries.items()})

    ids = request.protocol.ids
    vocabulary = {name: int(id) + 1 for name, id in zip(ids, mirror.largest, strict=True)}
    vocab = {NUMBER[name]: size for name, size in vocabulary.items()}
    schema = Schema(features=features(request.protocol, vocab), tasks=TASKS, funnel=FUNNEL)
    details = {
        "protocol": "aitm, as the public mirror has it",
        "min count": MIN_COUNT,
        "sample": request.sample,
        "vocabulary": vocabulary,
        "texts": {file.path.name: file.report() for file in mirror.files},
        "files": mirror.reading.hashes,
        "text bytes": mirror.reading.text_bytes,
    }
    digest = fingerprint_folder(folder, schema, mirror.entries)
    return Dataset(name, schema, {}, digest, False, details), mirror.entries
