"""Between text and splits: what the tokeniser found, as plain columns on disk, and the tables that
give it meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtlkit.data.ali_ccp import tokenise as t
from mtlkit.data.ali_ccp.archives import BLOCK, Text
from mtlkit.data.ali_ccp.fields import FIELDS, MEMBERS, SKELETON, USER
from mtlkit.data.ali_ccp.hashing import MAX_ID, replaced
from mtlkit.data.ali_ccp.protocols import SidePlan
from mtlkit.errors import MissingError

ROOM_ROWS = 1 << 15
MOST_FEATURES = BLOCK // 6 + 1  # the shortest feature has six bytes, and a line fits in a block
IN_CHUNKS = ("labels", "ids", "values", "lengths")
MOST_KEYS = 100_000_000
MEMBER_OF = {f"{split}-{kind}": member for member, (split, kind) in MEMBERS.items()}
"""Name of a staged text to that of the file it comes from."""


class Keys:
    """Numbers of the common indexes of one split, and where the common file has them."""

    def __init__(self) -> None:
        self.places = np.full(1 << 12, -1, np.int32)
        self.keys = np.zeros(1 << 11, np.uint64)
        self.common_row = np.full(1 << 11, t.UNMET, np.int32)
        self.count = np.zeros(1, np.int64)

    def __len__(self) -> int:
        return int(self.count[0])

    def grow(self) -> None:
        """Make room.

        Raises:
            MissingError: There are more than any real data set has.
        """
        more = len(self.keys)
        if more > MOST_KEYS:
            raise MissingError(
                "The data has more than a hundred million different common indexes: it is not Ali-CCP."
            )
        self.keys = np.concatenate([self.keys, np.zeros(more, np.uint64)])
        self.common_row = np.concatenate([self.common_row, np.full(more, t.UNMET, np.int32)])
        self.places = replaced(self.keys, len(self), 2 * len(self.places))


@dataclass
class Chunk:
    """Consecutive rows of a staged text.

    Args:
        labels: (n, 2) uint8.
        ids: (n, ids) int32 as written in the text, NONE where missing.
        values: (n, dense) float32.
        lengths: (n, bags) int32.
        bags: Ids (m,) and weights (m,) of each bag.
    """

    labels: np.ndarray
    ids: np.ndarray
    values: np.ndarray
    lengths: np.ndarray
    bags: list[tuple[np.ndarray, np.ndarray]]

    def __len__(self) -> int:
        return len(self.labels)


class Staged:
    """One text after tokenising.

    Beside what chunks hold, its files have the line numbers (from 1), the numbers of common indexes
    and the user ids (NONE where missing) of all rows, int32 each, which are read whole.

    Args:
        folder: Where its columns lie.
        name: Of the text, e.g. ``train-skeleton``.
        plan: Which columns there are.
    """

    def __init__(self, folder: Path, name: str, plan: SidePlan) -> None:
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
        self.tally = np.zeros(len(t.TALLIES), np.int64)
        self.noted = np.zeros((2, t.NOTED, 2), np.int64)
        self.ranges = np.tile(np.array([MAX_ID + 1, -1]), (len(FIELDS), 1))

    def __len__(self) -> int:
        return int(self.tally[t.ROWS])

    def chunks(self, rows: int, entries: int = 1 << 23) -> Iterator[Chunk]:
        """All rows in order, at most so many at a time, and about so many entries of bags."""
        with ExitStack() as stack:
            files = {name: stack.enter_context(self.files[name].open("rb")) for name in IN_CHUNKS}
            pairs = [
                tuple(stack.enter_context(path.open("rb")) for path in pair)
                for pair in self.bag_files
            ]
            left = len(self)
            while left:
                n = min(rows, left)
                if pairs:  # a look ahead, so that no chunk of long bags is too large
                    place = files["lengths"].tell()
                    ahead = np.fromfile(files["lengths"], np.int32, n * len(pairs)).reshape(n, -1)
                    files["lengths"].seek(place)
                    n = max(1, min(n, int(np.searchsorted(ahead.sum(1).cumsum(), entries))))
                read: dict[str, Any] = {}
                for name in IN_CHUNKS:
                    dtype, shape = self.columns[name]
                    size = n * int(np.prod(shape, dtype=np.int64))
                    read[name] = np.fromfile(files[name], dtype, size).reshape(n, *shape)
                sizes = read["lengths"].sum(0, dtype=np.int64)
                bags = [
                    (
                        np.fromfile(ids, np.int32, sizes[b]),
                        np.fromfile(weights, np.float32, sizes[b]),
                    )
                    for b, (ids, weights) in enumerate(pairs)
                ]
                yield Chunk(**read, bags=bags)
                left -= n

    def report(self) -> dict[str, Any]:
        """What was counted, with the first lines of those left out."""
        found: dict[str, Any] = {
            name: int(count) for name, count in zip(t.TALLIES, self.tally, strict=True) if count
        }
        bad = min(int(self.tally[t.BAD]), t.NOTED)
        dirty = min(int(self.tally[t.DIRTY]), t.NOTED)
        if bad:
            found["first malformed lines"] = [
                {"line": int(line), "reason": t.REASONS[reason]}
                for line, reason in self.noted[0, :bad]
            ]
        if dirty:
            found["first dirty lines"] = self.noted[1, :dirty, 0].tolist()
        return found


class Stager:
    """Tokenises the texts of one split to disk; its scratch areas are made once.

    Args:
        folder: Where columns go.
        sample: Share of users to keep.
        max_bad_rows: Malformed rows that are put up with.
        hint: For errors.
    """

    def __init__(self, folder: Path, sample: float, max_bad_rows: int, hint: str) -> None:
        self.folder, self.sample, self.max_bad_rows, self.hint = folder, sample, max_bad_rows, hint
        self.bad = 0
        self.scratch = (
            np.empty(MOST_FEATURES, np.int8),
            np.empty(MOST_FEATURES, np.int32),
            np.empty(MOST_FEATURES, np.float32),
            np.empty(len(FIELDS), np.int64),
        )

    def stage(self, text: Text, keys: Keys, plan: SidePlan) -> Staged:
        """Read one text to its end.

        Raises:
            MissingError: Too many of its rows are malformed.
        """
        staged = Staged(self.folder, f"{text.split}-{text.kind}", plan)
        skeleton = text.kind == SKELETON
        asked = {*plan.ids, *plan.dense, *plan.bags, *(() if skeleton else (USER,))}
        places = t.places("row" if skeleton else "user", asked)
        out = {
            name: np.empty((ROOM_ROWS, *shape), dtype)
            for name, (dtype, shape) in staged.columns.items()
        }
        bags = len(plan.bags)
        entries = MOST_FEATURES if bags else 0
        bag_ids, bag_weights = (
            np.empty((bags, entries), np.int32),
            np.empty((bags, entries), np.float32),
        )
        fill = np.zeros(bags, np.int64)
        columns = tuple(_columns(chosen) for chosen in (plan.ids, plan.dense, plan.bags))
        with ExitStack() as stack:
            files = {
                name: stack.enter_context(path.open("wb")) for name, path in staged.files.items()
            }
            pairs = [
                tuple(stack.enter_context(path.open("wb")) for path in pair)
                for pair in staged.bag_files
            ]
            for block in text.blocks:
                i, why = 0, t.FULL
                while why != t.DONE:
                    i, rows, why = t.tokenise(
                        block,
                        i,
                        skeleton,
                        places,
                        *columns,
                        self.sample,
                        keys.places,
                        keys.keys,
                        keys.count,
                        keys.common_row,
                        staged.tally,
                        staged.noted,
                        *self.scratch,
                        *out.values(),
                        bag_ids,
                        bag_weights,
                        fill,
                        staged.ranges,
                    )
                    for name, file in files.items():
                        file.write(out[name][:rows].data)  # tofile does not say why it cannot write
                    for b, (ids, weights) in enumerate(pairs):
                        ids.write(bag_ids[b, : fill[b]].data)
                        weights.write(bag_weights[b, : fill[b]].data)
                    if why == t.KEYS_FULL:
                        keys.grow()
                bad = int(staged.tally[t.BAD])
                if self.bad + bad > self.max_bad_rows:
                    raise too_many(
                        self.max_bad_rows,
                        staged.name,
                        staged.noted[0, : min(bad, 3)].tolist(),
                        self.hint,
                    )
        self.bad += int(staged.tally[t.BAD])
        return staged


def too_many(most: int, name: str, lines: list[list[int]], hint: str) -> MissingError:
    """The error for more malformed rows than are put up with.

    Args:
        most: How many are.
        name: Of the text.
        lines: Some of them: line number and reason.
        hint: Begins the hint.
    """
    said = "; ".join(f"line {line}: {t.REASONS[reason]}" for line, reason in lines)
    message = f"More than {most:,} rows are malformed, so this may not be Ali-CCP: {MEMBER_OF[name]}, {said}."
    return MissingError(message, f"{hint} --max-bad-rows N, if that many are to be left out")


def _columns(chosen: tuple[int, ...]) -> np.ndarray:
    """(fields,) the place of each field among the chosen ones, or -1."""
    places = np.full(len(FIELDS), -1, np.int64)
    places[list(chosen)] = np.arange(len(chosen))
    return places
