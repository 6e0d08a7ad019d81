"""Between text and splits: what the tokeniser read, as plain columns on disk, and the table of keys
that joins the two texts of a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from mtlkit.data.ali_ccp import tokenise as t
from mtlkit.data.ali_ccp.archives import BLOCK, Text
from mtlkit.data.ali_ccp.fields import FIELDS, MEMBERS, SKELETON, USER
from mtlkit.data.ali_ccp.hashing import MAX_ID, slots_of
from mtlkit.data.ali_ccp.parse import REASONS
from mtlkit.data.ali_ccp.protocols import FieldPlan
from mtlkit.errors import MissingError

ROOM_ROWS = 1 << 15
MOST_FEATURES = BLOCK // 6 + 1  # the shortest feature has six bytes, and a line fits in a block
CHUNK_COLUMNS = ("labels", "ids", "values", "lengths")
CHUNK_ENTRIES = 1 << 23
MOST_KEYS = 100_000_000
MEMBER_OF = {f"{split}-{kind}": member for member, (split, kind) in MEMBERS.items()}
"""Name of a staged text to that of the file it comes from."""

BagFiles = tuple[IO[bytes], IO[bytes]]  # the open files of the ids and of the weights of a bag


class Keys:
    """Numbers of the common indexes of one split, and where the common file has them."""

    def __init__(self) -> None:
        self.table = t.KeyTable(
            slots=np.full(1 << 12, -1, np.int32),
            keys=np.zeros(1 << 11, np.uint64),
            size=np.zeros(1, np.int64),
            common_row=np.full(1 << 11, t.UNMET, np.int32),
        )

    def __len__(self) -> int:
        return int(self.table.size[0])

    def grow(self) -> None:
        """Make room.

        Raises:
            MissingError: There are more than any real data set has.
        """
        slots, keys, size, common_row = self.table
        room = len(keys)
        if room > MOST_KEYS:
            raise MissingError(
                "The data has more than a hundred million different common indexes: "
                "it is not Ali-CCP."
            )
        keys = np.concatenate([keys, np.zeros(room, np.uint64)])
        common_row = np.concatenate([common_row, np.full(room, t.UNMET, np.int32)])
        slots = slots_of(keys, len(self), 2 * len(slots))
        self.table = t.KeyTable(slots, keys, size, common_row)


@dataclass
class Chunk:
    """Consecutive rows of a staged text."""

    labels: np.ndarray  # (n, 2) uint8
    ids: np.ndarray  # (n, ids) int32 as written in the text, NONE where missing
    values: np.ndarray  # (n, dense) float32
    lengths: np.ndarray  # (n, bags) int32
    bags: list[tuple[np.ndarray, np.ndarray]]  # ids (m,) and weights (m,) of each bag

    def __len__(self) -> int:
        return len(self.labels)


class Staged:
    """One text after tokenising.

    Beside what chunks hold, its files have the line numbers (from 1), the numbers of common indexes
    and the user ids (NONE where missing) of all rows, int32 each, which are read whole.
    """

    def __init__(self, folder: Path, name: str, plan: FieldPlan) -> None:
        self.name, self.plan = name, plan
        self.columns = {
            "line": (np.int32, ()),
            "number": (np.int32, ()),
            "user": (np.int32, ()),
            "labels": (np.uint8, (2,)),
            "ids": (np.int32, (len(plan.ids),)),
            "values": (np.float32, (len(plan.dense),)),
            "lengths": (np.int32, (len(plan.bags),)),
        }
        self.files = {column: folder / f"{name}.{column}" for column in self.columns}
        self.bag_files = [
            (folder / f"{name}.bag-{b}-ids", folder / f"{name}.bag-{b}-weights")
            for b in range(len(plan.bags))
        ]
        self.counts = t.Counts(
            tally=np.zeros(len(t.TALLIES), np.int64),
            noted=np.zeros((2, t.NOTED, 2), np.int64),
            ranges=np.tile(np.array([MAX_ID + 1, -1]), (len(FIELDS), 1)),
        )

    @property
    def tally(self) -> np.ndarray:
        """(10,) what was counted, in the order of TALLIES."""
        return self.counts.tally

    @property
    def ranges(self) -> np.ndarray:
        """(fields, 2) least and greatest id of each field."""
        return self.counts.ranges

    def __len__(self) -> int:
        return int(self.tally[t.ROWS])

    def column(self, name: str) -> np.ndarray:
        """A column of one number a row, read whole."""
        return np.fromfile(self.files[name], np.int32)

    def open_bags(self, stack: ExitStack, mode: str) -> list[BagFiles]:
        """The files of all bags; they are closed with the stack."""
        return [
            (stack.enter_context(ids.open(mode)), stack.enter_context(weights.open(mode)))
            for ids, weights in self.bag_files
        ]

    def chunks(self, rows: int, entries: int = CHUNK_ENTRIES) -> Iterator[Chunk]:
        """All rows in order, ``rows`` at a time at most, with about ``entries`` entries of bags."""
        with ExitStack() as stack:
            files = {
                name: stack.enter_context(self.files[name].open("rb")) for name in CHUNK_COLUMNS
            }
            bag_files = self.open_bags(stack, "rb")
            rows_left = len(self)
            while rows_left:
                n = min(rows, rows_left)
                if bag_files:
                    n = self._rows_of_entries(files["lengths"], n, entries)
                yield self._read_chunk(files, bag_files, n)
                rows_left -= n

    def _rows_of_entries(self, lengths: IO[bytes], rows: int, entries: int) -> int:
        """How many of the next rows hold about this many entries of bags, found by a look ahead."""
        position = lengths.tell()
        ahead = np.fromfile(lengths, np.int32, rows * len(self.bag_files)).reshape(rows, -1)
        lengths.seek(position)
        fitting = int(np.searchsorted(ahead.sum(1).cumsum(), entries))
        return max(1, min(rows, fitting))

    def _read_chunk(
        self, files: Mapping[str, IO[bytes]], bag_files: list[BagFiles], rows: int
    ) -> Chunk:
        columns: dict[str, np.ndarray] = {}
        for name, file in files.items():
            dtype, shape = self.columns[name]
            size = rows * int(np.prod(shape, dtype=np.int64))
            columns[name] = np.fromfile(file, dtype, size).reshape(rows, *shape)

        bags = []
        bag_sizes = columns["lengths"].sum(0, dtype=np.int64)
        for size, (ids, weights) in zip(bag_sizes, bag_files, strict=True):
            bags.append((np.fromfile(ids, np.int32, size), np.fromfile(weights, np.float32, size)))
        return Chunk(**columns, bags=bags)

    def first_bad_lines(self) -> list[list[int]]:
        """Line and reason of the first malformed lines."""
        return self.counts.noted[t.BAD_LINES, : int(self.tally[t.BAD])].tolist()

    def report(self) -> dict[str, Any]:
        """What was counted, with the first lines of those left out."""
        report: dict[str, Any] = {}
        for name, count in zip(t.TALLIES, self.tally, strict=True):
            if count:
                report[name] = int(count)
        if self.tally[t.BAD]:
            report["first malformed lines"] = [
                {"line": line, "reason": REASONS[reason]} for line, reason in self.first_bad_lines()
            ]
        if self.tally[t.DIRTY]:
            dirty = self.counts.noted[t.DIRTY_LINES, : int(self.tally[t.DIRTY]), 0]
            report["first dirty lines"] = dirty.tolist()
        return report


class Stager:
    """Tokenises the texts of one split to disk; its scratch areas are made once."""

    def __init__(self, folder: Path, sample: float, max_bad_rows: int, hint: str) -> None:
        self.folder, self.sample = folder, sample
        self.max_bad_rows, self.hint = max_bad_rows, hint
        self.bad = 0
        self.scratch = t.Scratch(
            fields=np.empty(MOST_FEATURES, np.int8),
            ids=np.empty(MOST_FEATURES, np.int32),
            values=np.empty(MOST_FEATURES, np.float32),
            last=np.empty(len(FIELDS), np.int64),
        )

    def stage(self, text: Text, keys: Keys, plan: FieldPlan) -> Staged:
        """Read one text to its end.

        Raises:
            MissingError: Too many of its rows are malformed.
        """
        staged = Staged(self.folder, f"{text.split}-{text.kind}", plan)
        layout = self._layout(text, plan)
        out = _output(staged)
        with ExitStack() as stack:
            files = {
                name: stack.enter_context(path.open("wb")) for name, path in staged.files.items()
            }
            bag_files = staged.open_bags(stack, "wb")
            for block in text.blocks:
                position, why = 0, t.FULL
                while why != t.DONE:
                    position, rows, why = t.tokenise(
                        block, position, layout, keys.table, staged.counts, self.scratch, out
                    )
                    _write(out, rows, files, bag_files)
                    if why == t.KEYS_FULL:
                        keys.grow()
                if self.bad + staged.tally[t.BAD] > self.max_bad_rows:
                    lines = staged.first_bad_lines()[:3]
                    raise too_many(self.max_bad_rows, staged.name, lines, self.hint)
        self.bad += int(staged.tally[t.BAD])
        return staged

    def _layout(self, text: Text, plan: FieldPlan) -> t.Layout:
        is_skeleton = text.kind == SKELETON
        asked = {*plan.ids, *plan.dense, *plan.bags}
        if not is_skeleton:
            asked.add(USER)
        return t.Layout(
            is_skeleton=is_skeleton,
            sample=self.sample,
            codes=t.field_codes("row" if is_skeleton else "user", asked),
            id_column=_positions(plan.ids),
            value_column=_positions(plan.dense),
            bag=_positions(plan.bags),
        )


def _output(staged: Staged) -> t.Output:
    """Room for what is read between two writes."""
    columns = {
        name: np.empty((ROOM_ROWS, *shape), dtype)
        for name, (dtype, shape) in staged.columns.items()
    }
    bags = len(staged.plan.bags)
    entries = MOST_FEATURES if bags else 0
    return t.Output(
        **columns,
        bag_ids=np.empty((bags, entries), np.int32),
        bag_weights=np.empty((bags, entries), np.float32),
        bag_fill=np.zeros(bags, np.int64),
    )


def _write(
    out: t.Output, rows: int, files: Mapping[str, IO[bytes]], bag_files: list[BagFiles]
) -> None:
    """Add rows to the files of a text. ``tofile`` would not say why it cannot write."""
    for name, file in files.items():
        file.write(getattr(out, name)[:rows].data)
    for b, (ids, weights) in enumerate(bag_files):
        ids.write(out.bag_ids[b, : out.bag_fill[b]].data)
        weights.write(out.bag_weights[b, : out.bag_fill[b]].data)


def too_many(most: int, name: str, lines: list[list[int]], hint: str) -> MissingError:
    """The error for more malformed rows than are left out."""
    reasons = "; ".join(f"line {line}: {REASONS[reason]}" for line, reason in lines)
    message = (
        f"More than {most:,} rows are malformed, so this may not be Ali-CCP: "
        f"{MEMBER_OF[name]}, {reasons}."
    )
    return MissingError(message, f"{hint} --max-bad-rows N, if that many are to be left out")


def _positions(chosen: tuple[int, ...]) -> np.ndarray:
    """(fields,) the position of each field among the chosen ones, or -1."""
    positions = np.full(len(FIELDS), -1, np.int64)
    positions[list(chosen)] = np.arange(len(chosen))
    return positions
