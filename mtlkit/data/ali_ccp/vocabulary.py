"""Which ids are kept, and their numbers: counted on train only, one count a row, in a deterministic
order.

Every id of every field has a cell. The ids of a field that lie close together, as those of the real
data do, have cells side by side, found without a search; the ids of any other field find theirs by
a hash table.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mtlkit.data.ali_ccp.fields import FIELDS
from mtlkit.data.ali_ccp.hashing import MAX_ID, code_of, found, grown, kernel
from mtlkit.errors import MissingError

DIRECT_CELLS = 1 << 26  # of all fields together; only those that are touched take memory
MOST_IDS = 100_000_000
_ID_BITS, _ID_MASK = 32, (1 << 32) - 1


class Cells(NamedTuple):
    """Where cells are.

    Args:
        begin: (fields,) the cell of each field's least id; -1 where ids are hashed.
        least: (fields,) each field's least id.
        most: (fields,) its greatest.
        hashed: (1,) where the cells of hashed ids begin.
        table: Their codes.
        codes: (1,) how many they are.
        room: How many there may be; without end where none is hashed.
    """

    begin: np.ndarray
    least: np.ndarray
    most: np.ndarray
    hashed: np.ndarray
    table: np.ndarray
    codes: np.ndarray
    room: int


# In the loops below no array goes to a function but in the rare branch: numba counts references to
# it, atomically, at every such call, which makes them five to ten times slower.


@kernel
def _count_rows(
    r: int,
    ids: np.ndarray,
    fields: np.ndarray,
    times: np.ndarray,
    cells: Cells,
    counts: np.ndarray,
    met: np.ndarray,
    sequence: np.ndarray,
) -> int:
    """Count the ids of rows from ``r`` on, each row ``times`` as often; returns the row for which
    there is no room.
    """
    begin, least, table, codes, hashed = (
        cells.begin,
        cells.least,
        cells.table,
        cells.codes,
        cells.hashed[0],
    )
    n = ids.shape[1]
    while r < ids.shape[0] and met[0] + n <= sequence.shape[0] and codes[0] + n <= cells.room:
        if times[r] > 0:
            for j in range(n):
                field, id = fields[j], ids[r, j]
                if id >= 0:
                    cell = begin[field] + (id - least[field])
                    if begin[field] < 0:
                        cell = hashed + np.int64(code_of(table, codes, field, id))
                    if counts[cell] == 0:
                        sequence[met[0]] = (field << _ID_BITS) | id
                        met[0] += 1
                    counts[cell] += times[r]
        r += 1
    return r


@kernel
def _count_bag(
    r: int,
    place: int,
    ids: np.ndarray,
    lengths: np.ndarray,
    field: int,
    times: np.ndarray,
    cells: Cells,
    counts: np.ndarray,
    met: np.ndarray,
    sequence: np.ndarray,
) -> tuple[int, int]:
    """Count the bags of rows from ``r`` on, whose entries begin at ``place``; as
    :func:`_count_rows`.
    """
    begin, least, table, codes, hashed = (
        cells.begin,
        cells.least,
        cells.table,
        cells.codes,
        cells.hashed[0],
    )
    while r < lengths.shape[0]:
        end = place + lengths[r]
        if met[0] + end - place > sequence.shape[0] or codes[0] + end - place > cells.room:
            break
        if times[r] > 0:
            for k in range(place, end):
                cell = begin[field] + (ids[k] - least[field])
                if begin[field] < 0:
                    cell = hashed + np.int64(code_of(table, codes, field, ids[k]))
                if counts[cell] == 0:
                    sequence[met[0]] = (field << _ID_BITS) | ids[k]
                    met[0] += 1
                counts[cell] += times[r]
        place = end
        r += 1
    return r, place


@kernel
def _cells_of(cells: Cells, field: int, ids: np.ndarray, out: np.ndarray) -> None:
    """(n,) the cell of each id; that of code 0, which no id has, for ids that were never met."""
    begin, least, most, hashed = (
        cells.begin[field],
        cells.least[field],
        cells.most[field],
        cells.hashed[0],
    )
    for k in range(ids.shape[0]):
        out[k] = hashed
        if begin < 0:
            out[k] += np.int64(found(cells.table, field, ids[k]))
        elif least <= ids[k] <= most:
            out[k] = begin + (ids[k] - least)


@kernel
def _number_rows(
    cells: Cells,
    numbers: np.ndarray,
    fields: np.ndarray,
    ids: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
) -> None:
    begin, least, most, table, hashed = (
        cells.begin,
        cells.least,
        cells.most,
        cells.table,
        cells.hashed[0],
    )
    for m in range(rows.shape[0]):
        for j in range(ids.shape[1]):
            field, id = fields[j], ids[rows[m], j]
            cell = hashed
            if begin[field] < 0:
                cell += np.int64(found(table, field, id)) if id >= 0 else 0
            elif least[field] <= id <= most[field]:
                cell = begin[field] + (id - least[field])
            out[m, j] = numbers[cell]


@kernel
def _number_bag(
    cells: Cells, numbers: np.ndarray, field: int, ids: np.ndarray, out: np.ndarray
) -> None:
    begin, least, most, hashed = (
        cells.begin[field],
        cells.least[field],
        cells.most[field],
        cells.hashed[0],
    )
    for k in range(ids.shape[0]):
        cell = hashed
        if begin < 0:
            cell += np.int64(found(cells.table, field, ids[k]))
        elif least <= ids[k] <= most:
            cell = begin + (ids[k] - least)
        out[k] = numbers[cell]


class Counter:
    """Counts the ids of fields.

    Args:
        ranges: Least and greatest id of each field to be counted.
    """

    def __init__(self, ranges: dict[int, tuple[int, int]]) -> None:
        begin = np.full(len(FIELDS), -1, np.int64)
        least, most = np.zeros(len(FIELDS), np.int64), np.full(len(FIELDS), -1, np.int64)
        taken = 0
        for field, (low, high) in sorted(ranges.items(), key=lambda item: item[1][1] - item[1][0]):
            least[field], most[field] = low, high
            if taken + high - low + 1 <= DIRECT_CELLS:
                begin[field] = taken
                taken += high - low + 1
        table = np.zeros(1 << 12, np.uint64)
        room = len(table) // 2 if any(begin[field] < 0 for field in ranges) else MAX_ID
        self.cells = Cells(
            begin, least, most, np.array([taken]), table, np.zeros(1, np.int64), room
        )
        self.counts = np.zeros(taken + len(table) // 2 + 1, np.int64)
        self.met, self.sequence = np.zeros(1, np.int64), np.zeros(1 << 16, np.int64)

    def rows(self, fields: np.ndarray, ids: np.ndarray, times: np.ndarray) -> None:
        """Count (n, F) ids, each of the n rows ``times`` as often."""
        r = 0
        while (r := _count_rows(r, ids, fields, times, *self._state())) < len(ids):
            self._grow()

    def bag(self, field: int, ids: np.ndarray, lengths: np.ndarray, times: np.ndarray) -> None:
        """Count all entries of (n,) bags."""
        r, place = 0, 0
        while (reached := _count_bag(r, place, ids, lengths, field, times, *self._state()))[
            0
        ] < len(lengths):
            r, place = reached
            self._grow()

    def _state(self) -> tuple[Cells, np.ndarray, np.ndarray, np.ndarray]:
        return self.cells, self.counts, self.met, self.sequence

    def _grow(self) -> None:
        """Twice the room for ids that were met, and for hashed ones if there are any.

        Raises:
            MissingError: There are more different ids than any real data set has.
        """
        if len(self.sequence) > MOST_IDS:
            raise MissingError(
                "The data has more than a hundred million different ids: it is not Ali-CCP."
            )
        self.sequence = np.concatenate([self.sequence, np.zeros_like(self.sequence)])
        table = self.cells.table
        if self.cells.room < MAX_ID:
            self.cells = self.cells._replace(table=grown(table), room=len(table))
            self.counts = np.concatenate([self.counts, np.zeros(len(table) // 2, np.int64)])


class Vocabulary:
    """The ids that are kept of each field, and their numbers.

    Args:
        counter: Which has counted.
        fields: All fields that were counted.
        min_count: How often an id must have been met.
        order: Whether they are numbered by raw id, or in the order in which they were met.
    """

    def __init__(
        self, counter: Counter, fields: tuple[int, ...], min_count: int, order: str
    ) -> None:
        self.cells = counter.cells
        self.numbers = np.zeros(len(counter.counts), np.int32)
        self.raw: dict[int, np.ndarray] = {}
        met = counter.sequence[: int(counter.met[0])]
        for field in fields:
            ids = met[met >> _ID_BITS == field] & _ID_MASK
            cells = np.empty(len(ids), np.int64)
            _cells_of(self.cells, field, ids, cells)
            kept = np.flatnonzero(counter.counts[cells] >= min_count)
            if order == "raw":
                kept = kept[np.argsort(ids[kept])]
            self.numbers[cells[kept]] = np.arange(1, len(kept) + 1, dtype=np.int32)
            self.raw[field] = np.concatenate([np.array([-1]), ids[kept]]).astype(np.int32)

    def rows(self, fields: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(m, F) int32 numbers of m rows of (n, F) ids; 0 where an id is missing or not kept."""
        out = np.empty((len(rows), ids.shape[1]), np.int32)
        _number_rows(self.cells, self.numbers, fields, ids, rows, out)
        return out

    def bag(self, field: int, ids: np.ndarray) -> np.ndarray:
        """(m,) int32 numbers of (m,) ids of a field; 0 where an id is not kept."""
        out = np.empty(len(ids), np.int32)
        _number_bag(self.cells, self.numbers, field, ids, out)
        return out
