"""Which ids are kept, and their numbers: counted on train only, one count a row, in a deterministic
order.

Every id of every field has a cell. The ids of a field that lie close together, as those of the real
data do, have cells side by side, found without a search; those of a field whose ids are spread are
listed, and found by a binary search.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mtlkit.data.ali_ccp.byte_words import borrowed
from mtlkit.data.ali_ccp.fields import FIELDS
from mtlkit.data.ali_ccp.hashing import inlined, kernel

DIRECT_CELLS = 1 << 26  # of all fields together; only those that are touched take memory
CACHED_ROWS = 256


class Cells(NamedTuple):
    """Where the cells of ids are. Cell 0 is that of no id."""

    begin: np.ndarray  # (fields,) the first cell of each field
    end: np.ndarray  # (fields,) the cell after its last
    least: np.ndarray  # (fields,) its least id
    # (fields,) where its ids begin in ``spread_ids``; -1 if they have cells side by side.
    listed: np.ndarray
    spread_ids: np.ndarray  # the ids of fields whose ids are spread, of each field in rising order


@inlined
def _cell(begin: int, end: int, least: int, listed: int, spread_ids: np.ndarray, id: int) -> int:
    """The cell of an id of a field, of which :class:`Cells` tells the rest; 0 if it has none."""
    cell = begin + (id - least)
    if listed >= 0:
        place = int(np.searchsorted(spread_ids[listed : listed + end - begin], id))
        cell = begin + place
        if cell < end and spread_ids[listed + place] != id:
            cell = 0
    return cell if begin <= cell < end else 0


# In the loops below a few rows at a time stay in the cache, while one column after the other is
# read with all that is known of its field in registers.


@kernel
def _count(
    cells: Cells,
    counts: np.ndarray,
    turn: np.ndarray,
    fields: np.ndarray,
    ids: np.ndarray,
    times: np.ndarray,
) -> None:
    """Count (n, F) ids of F fields, each of the n rows ``times`` as often, and note whose turn it
    was to be met first: ``turn[0]`` is the last turn so far.
    """
    begins, ends, leasts, listeds, spread_ids = borrowed(cells)
    for first in range(0, ids.shape[0], CACHED_ROWS):
        for j in range(ids.shape[1]):
            field = fields[j]
            begin, end, least, listed = begins[field], ends[field], leasts[field], listeds[field]
            for r in range(first, min(first + CACHED_ROWS, ids.shape[0])):
                if times[r] > 0:
                    cell = _cell(begin, end, least, listed, spread_ids, ids[r, j])
                    if cell > 0:
                        if counts[cell] == 0:
                            turn[0] += 1
                            turn[cell] = turn[0]
                        counts[cell] += times[r]


@kernel
def _number(cells: Cells, numbers: np.ndarray, fields: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(n, F) the numbers of (n, F) ids."""
    row_numbers = np.empty(ids.shape, np.int32)
    begins, ends, leasts, listeds, spread_ids = borrowed(cells)
    for first in range(0, ids.shape[0], CACHED_ROWS):
        for j in range(ids.shape[1]):
            field = fields[j]
            begin, end, least, listed = begins[field], ends[field], leasts[field], listeds[field]
            for r in range(first, min(first + CACHED_ROWS, ids.shape[0])):
                cell = _cell(begin, end, least, listed, spread_ids, ids[r, j])
                row_numbers[r, j] = numbers[cell]
    return row_numbers


def spread_fields(ranges: Mapping[int, tuple[int, int]]) -> list[int]:
    """The fields whose ids must be listed: those with the widest ranges, if not all of them can
    have cells side by side.
    """
    by_width = sorted(ranges, key=lambda field: ranges[field][1] - ranges[field][0])
    widths = [ranges[field][1] - ranges[field][0] + 1 for field in by_width]
    fitting = int(np.searchsorted(np.cumsum(widths), DIRECT_CELLS, "right"))
    return by_width[fitting:]


class Counter:
    """Counts the ids of fields.

    Args:
        ranges: Least and greatest id of each field to be counted.
        listed: The different ids, in rising order, of each field of :func:`spread_fields`.
    """

    def __init__(
        self, ranges: Mapping[int, tuple[int, int]], listed: Mapping[int, np.ndarray]
    ) -> None:
        sizes, least, begin_listed = np.zeros((3, len(FIELDS)), np.int64)
        begin_listed -= 1
        for field, (low, high) in ranges.items():
            least[field], sizes[field] = low, high - low + 1
        ids_listed = [np.empty(0, np.int32)]
        for field, ids in listed.items():
            begin_listed[field], sizes[field] = sum(map(len, ids_listed)), len(ids)
            ids_listed.append(ids)
        end = 1 + np.cumsum(sizes)
        self.cells = Cells(end - sizes, end, least, begin_listed, np.concatenate(ids_listed))
        self.counts = np.zeros(end[-1], np.int64)
        self.turn = np.zeros(end[-1], np.int32)

    def rows(self, fields: tuple[int, ...], ids: np.ndarray, times: np.ndarray) -> None:
        """Count (n, F) ids, each of the n rows ``times`` as often; negative where missing."""
        _count(self.cells, self.counts, self.turn, np.array(fields, np.int64), ids, times)

    def bag(self, field: int, ids: np.ndarray, lengths: np.ndarray, times: np.ndarray) -> None:
        """Count all entries of (n,) bags."""
        self.rows((field,), ids[:, None], np.repeat(times, lengths))


class Vocabulary:
    """The ids that are kept of each field, and their numbers.

    Args:
        min_count: How often an id must have been met.
        order: Whether they are numbered by raw id, or in the order in which they were met.
    """

    def __init__(
        self, counter: Counter, fields: tuple[int, ...], min_count: int, order: str
    ) -> None:
        self.cells = cells = counter.cells
        self.numbers = np.zeros(len(counter.counts), np.int32)
        self.raw: dict[int, np.ndarray] = {}
        for field in fields:
            begin, end, listed = cells.begin[field], cells.end[field], cells.listed[field]
            kept = np.flatnonzero(counter.counts[begin:end] >= min_count)
            if order == "seen":
                kept = kept[np.argsort(counter.turn[begin:end][kept])]
            self.numbers[begin + kept] = np.arange(1, len(kept) + 1)
            ids = cells.least[field] + kept if listed < 0 else cells.spread_ids[listed + kept]
            self.raw[field] = np.concatenate([[-1], ids]).astype(np.int32)

    def rows(self, fields: tuple[int, ...], ids: np.ndarray) -> np.ndarray:
        """(n, F) int32 numbers of (n, F) ids; 0 where an id is missing or not kept."""
        return _number(self.cells, self.numbers, np.array(fields, np.int64), ids)

    def bag(self, field: int, ids: np.ndarray) -> np.ndarray:
        """(m,) int32 numbers of (m,) ids of a field; 0 where an id is not kept."""
        return self.rows((field,), ids[:, None])[:, 0]
