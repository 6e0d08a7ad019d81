"""The two texts of an official split, joined row by row, and the final split of each row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mtlkit.data.ali_ccp import tokenise as t
from mtlkit.data.ali_ccp.hashing import kernel, share
from mtlkit.data.ali_ccp.parse import ORPHAN
from mtlkit.data.ali_ccp.protocols import HELD_OUT, SPLIT_SALT, Protocol
from mtlkit.data.ali_ccp.staging import Chunk, Keys, Staged

CHUNK = 1 << 19  # rows at a time after staging
DROPPED, TRAIN, VALIDATION, TEST = range(4)  # the codes of final splits
_BY_ROW, _BY_SESSION, _IN_HALVES, _ALL_TEST = range(4)
"""How rows are divided: by a draw for each row or each common index, or all rows go to test."""
_ORPHANS, _NOT_SAMPLED = range(2)


class _Assignment(NamedTuple):
    """What is found for the n rows of a skeleton."""

    split: np.ndarray  # (n,) uint8 code of the final split
    common_row: np.ndarray  # (n,) int32 row of the common features
    counts: np.ndarray  # (2,) orphans, and rows that sampling leaves out
    orphan_lines: np.ndarray  # (NOTED,) lines of the first orphans


@kernel
def _assign(
    number: np.ndarray,
    line: np.ndarray,
    table: t.KeyTable,
    how: int,
    salt: int,
    assignment: _Assignment,
) -> None:
    """Find the common row of each row, and the split to which it goes.

    Args:
        number: (n,) number of the common index of each row.
        line: (n,) its line in the text.
        assignment: Filled.
    """
    keys, rows_of_numbers = table.keys, table.common_row
    split, common_row, counts, orphan_lines = assignment
    for r in range(number.shape[0]):
        row = rows_of_numbers[number[r]]
        common_row[r] = row
        if row == t.UNMET:
            if counts[_ORPHANS] < orphan_lines.shape[0]:
                orphan_lines[counts[_ORPHANS]] = line[r]
            counts[_ORPHANS] += 1
            split[r] = DROPPED
        elif row == t.NOT_SAMPLED:
            counts[_NOT_SAMPLED] += 1
            split[r] = DROPPED
        elif how == _IN_HALVES:
            split[r] = VALIDATION if share(np.uint64(line[r]), np.uint64(salt)) < 0.5 else TEST
        elif how == _ALL_TEST:
            split[r] = TEST
        else:
            drawn_by = np.uint64(line[r]) if how == _BY_ROW else keys[number[r]]
            split[r] = VALIDATION if share(drawn_by, np.uint64(salt)) < HELD_OUT else TRAIN


def _way_to_divide(protocol: Protocol, split: str) -> int:
    if protocol.held_out == "test":
        return _IN_HALVES if split == "test" else _ALL_TEST
    if split == "test":
        return _ALL_TEST
    return _BY_ROW if protocol.held_out == "rows" else _BY_SESSION


class Joined:
    """Both texts of an official split, with the common row and final split of each skeleton row."""

    def __init__(
        self, rows: Staged, users: Staged, keys: Keys, protocol: Protocol, split: str
    ) -> None:
        self.rows, self.users = rows, users
        number, line = rows.column("number"), rows.column("line")
        assignment = _Assignment(
            split=np.empty(len(number), np.uint8),
            common_row=np.empty(len(number), np.int32),
            counts=np.zeros(2, np.int64),
            orphan_lines=np.zeros(t.NOTED, np.int64),
        )
        how = _way_to_divide(protocol, split)
        _assign(number, line, keys.table, how, SPLIT_SALT[protocol.held_out], assignment)

        # Where validation comes from the test file, all of the train file is train.
        self.split, self.common_row = assignment.split, assignment.common_row
        if split == "train" and how == _ALL_TEST:
            self.split[self.split == TEST] = TRAIN

        self.orphans = int(assignment.counts[_ORPHANS])
        self.orphan_lines = assignment.orphan_lines
        rows.tally[t.LEFT_OUT] += assignment.counts[_NOT_SAMPLED]

    def sizes(self) -> list[int]:
        """Rows of each final split, in the order of their codes; dropped ones first."""
        return np.bincount(self.split, minlength=4).tolist()

    def orphan_report(self) -> dict[str, Any]:
        """How many rows have an index that the common file lacks, and the first of them."""
        first_lines = self.orphan_lines[: min(self.orphans, t.NOTED)]
        return {"rows": self.orphans, "first lines": first_lines.tolist()}

    def bad_lines(self) -> Iterator[tuple[str, list[list[int]]]]:
        """Of each text with malformed lines or orphans: its name, and the first with reasons."""
        orphans = [[line, ORPHAN] for line in self.orphan_lines.tolist() if line]
        for text, more_lines in ((self.rows, orphans), (self.users, [])):
            lines = [*text.first_bad_lines(), *more_lines]
            if lines:
                yield text.name, lines[:3]

    def row_chunks(self) -> Iterator[tuple[slice, Chunk]]:
        """The rows of the skeleton with their positions."""
        return _with_positions(self.rows.chunks(CHUNK))

    def user_chunks(self) -> Iterator[tuple[slice, Chunk]]:
        """The rows of the common file with their positions."""
        return _with_positions(self.users.chunks(CHUNK))


def _with_positions(chunks: Iterator[Chunk]) -> Iterator[tuple[slice, Chunk]]:
    begin = 0
    for chunk in chunks:
        yield slice(begin, begin + len(chunk)), chunk
        begin += len(chunk)
