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
from mtlkit.data.ali_ccp.hashing import MAX_ID, code_of, grown, kernel, known_code
from mtlkit.errors import MissingError

DIRECT_CELLS = 1 << 26  # of all fields together; only those that are touched take memory
MOST_IDS = 100_000_000
_ID_BITS, _ID_MASK = 32, (1 << 32) - 1


class Cells(NamedTuple):
    """Where the cells of ids are.

    Args:
        begin: (fields,) the cell of each field's least id; -1 where ids are hashed.
        least: (fields,) each field's least id.
        most: (fields,) its greatest.
        hashed: (1,) where the cells of hashed ids begin.
        table: Codes of hashed ids.
        codes: (1,) how many there are.
        room: How many there may be; without end where none is hashed.
    """

    begin: np.ndarray
    least: np.ndarray
    most: np.ndarray
    hashed: np.ndarray
    table: np.ndarray
    codes: np.ndarray
    room: int


class Counts(NamedTuple):
    """What was counted.

    Args:
        cells: Where the cells of ids are.
        counts: (cells,) how often each id was met.
        met: (1,) how many different ids were met.
        sequence: (room,) their fields and ids, in the order in which they were met first.
    """

    cells: Cells
    counts: np.ndarray
    met: np.ndarray
    sequence: np.ndarray


# In the loops below no array goes to a function but in the rare branch: numba counts references to
# it, atomically, at every such call, which makes them five to ten times slower.


@kernel
def _count_rows(
    r: int, ids: np.ndarray, fields: np.ndarray, times: np.ndarray, state: Counts
) -> int:
    """Count the ids of rows from ``r`` on, each row ``times`` as often.

    Args:
        r: The first row.
        ids: (n, F), negative where missing.
        fields: (F,) the field of each column.
        times: (n,) how often each row counts.
        state: Counted so far.

    Returns:
        The row for which there is no room, else n.
    """
    cells, counts, met, sequence = state
    begin, least, table, codes = cells.begin, cells.least, cells.table, cells.codes
    hashed = cells.hashed[0]
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
    start: tuple[int, int],
    field: int,
    ids: np.ndarray,
    lengths: np.ndarray,
    times: np.ndarray,
    state: Counts,
) -> tuple[int, int]:
    """Count the bags of rows, each row ``times`` as often.

    Args:
        start: The first row, and its first entry.
        field: Of the bag.
        ids: (m,) ids of all entries.
        lengths: (n,) entries of each row.
        times: (n,) how often each row counts.
        state: Counted so far.

    Returns:
        The row for which there is no room, else n, and its first entry.
    """
    cells, counts, met, sequence = state
    begin, least, table, codes = cells.begin[field], cells.least[field], cells.table, cells.codes
    hashed = cells.hashed[0]
    r, entry = start
    while r < lengths.shape[0]:
        end = entry + lengths[r]
        if met[0] + lengths[r] > sequence.shape[0] or codes[0] + lengths[r] > cells.room:
            break
        if times[r] > 0:
            for k in range(entry, end):
                cell = begin + (ids[k] - least)
                if begin < 0:
                    cell = hashed + np.int64(code_of(table, codes, field, ids[k]))
                if counts[cell] == 0:
                    sequence[met[0]] = (field << _ID_BITS) | ids[k]
                    met[0] += 1
                counts[cell] += times[r]
        entry = end
        r += 1
    return r, entry


@kernel
def _cells_of(cells: Cells, field: int, ids: np.ndarray) -> np.ndarray:
    """(n,) the cell of each id; that of code 0, which no id has, for ids that were never met."""
    begin, least, most = cells.begin[field], cells.least[field], cells.most[field]
    hashed = cells.hashed[0]
    found_cells = np.empty(ids.shape[0], np.int64)
    for k in range(ids.shape[0]):
        cell = hashed
        if begin < 0:
            cell += np.int64(known_code(cells.table, field, ids[k]))
        elif least <= ids[k] <= most:
            cell = begin + (ids[k] - least)
        found_cells[k] = cell
    return found_cells


@kernel
def _number_rows(
    cells: Cells, numbers: np.ndarray, fields: np.ndarray, ids: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """(m, F) numbers of the ids (n, F) of some rows (m,)."""
    begin, least, most, table = cells.begin, cells.least, cells.most, cells.table
    hashed = cells.hashed[0]
    row_numbers = np.empty((rows.shape[0], ids.shape[1]), np.int32)
    for m in range(rows.shape[0]):
        for j in range(ids.shape[1]):
            field, id = fields[j], ids[rows[m], j]
            cell = hashed
            if begin[field] < 0:
                cell += np.int64(known_code(table, field, id)) if id >= 0 else 0
            elif least[field] <= id <= most[field]:
                cell = begin[field] + (id - least[field])
            row_numbers[m, j] = numbers[cell]
    return row_numbers


@kernel
def _number_bag(cells: Cells, numbers: np.ndarray, field: int, ids: np.ndarray) -> np.ndarray:
    """(m,) numbers of the ids (m,) of a field."""
    begin, least, most = cells.begin[field], cells.least[field], cells.most[field]
    hashed = cells.hashed[0]
    bag_numbers = np.empty(ids.shape[0], np.int32)
    for k in range(ids.shape[0]):
        cell = hashed
        if begin < 0:
            cell += np.int64(known_code(cells.table, field, ids[k]))
        elif least <= ids[k] <= most:
            cell = begin + (ids[k] - least)
        bag_numbers[k] = numbers[cell]
    return bag_numbers


class Counter:
    """Counts the ids of fields.

    Args:
        ranges: Least and greatest id of each field to be counted.
    """

    def __init__(self, ranges: dict[int, tuple[int, int]]) -> None:
        begin = np.full(len(FIELDS), -1, np.int64)
        least = np.zeros(len(FIELDS), np.int64)
        most = np.full(len(FIELDS), -1, np.int64)

        # The fields with the closest ids get cells side by side, as long as there are any.
        cells_taken = 0
        by_width = sorted(ranges.items(), key=lambda entry: entry[1][1] - entry[1][0])
        for field, (low, high) in by_width:
            least[field], most[field] = low, high
            width = high - low + 1
            if cells_taken + width <= DIRECT_CELLS:
                begin[field] = cells_taken
                cells_taken += width

        # Half of the table stays empty, so that searches are short.
        table = np.zeros(1 << 12, np.uint64)
        any_hashed = any(begin[field] < 0 for field in ranges)
        room = len(table) // 2 if any_hashed else MAX_ID
        hashed, codes = np.array([cells_taken]), np.zeros(1, np.int64)
        self.state = Counts(
            cells=Cells(begin, least, most, hashed, table, codes, room),
            counts=np.zeros(cells_taken + len(table) // 2 + 1, np.int64),
            met=np.zeros(1, np.int64),
            sequence=np.zeros(1 << 16, np.int64),
        )

    def rows(self, fields: np.ndarray, ids: np.ndarray, times: np.ndarray) -> None:
        """Count (n, F) ids, each of the n rows ``times`` as often."""
        r = _count_rows(0, ids, fields, times, self.state)
        while r < len(ids):
            self._grow()
            r = _count_rows(r, ids, fields, times, self.state)

    def bag(self, field: int, ids: np.ndarray, lengths: np.ndarray, times: np.ndarray) -> None:
        """Count all entries of (n,) bags."""
        r, entry = _count_bag((0, 0), field, ids, lengths, times, self.state)
        while r < len(lengths):
            self._grow()
            r, entry = _count_bag((r, entry), field, ids, lengths, times, self.state)

    def _grow(self) -> None:
        """Twice the room for ids that were met, and for hashed ones if there are any.

        Raises:
            MissingError: There are more different ids than any real data set has.
        """
        cells, counts, met, sequence = self.state
        if len(sequence) > MOST_IDS:
            raise MissingError(
                "The data has more than a hundred million different ids: it is not Ali-CCP."
            )
        sequence = np.concatenate([sequence, np.zeros_like(sequence)])
        if cells.room < MAX_ID:
            room = len(cells.table)
            counts = np.concatenate([counts, np.zeros(room // 2, np.int64)])
            cells = cells._replace(table=grown(cells.table), room=room)
        self.state = Counts(cells, counts, met, sequence)


class Vocabulary:
    """The ids that are kept of each field, and their numbers.

    Args:
        counter: What was counted.
        fields: All fields that were counted.
        min_count: How often an id must have been met.
        order: Whether they are numbered by raw id, or in the order in which they were met.
    """

    def __init__(
        self, counter: Counter, fields: tuple[int, ...], min_count: int, order: str
    ) -> None:
        self.cells, counts, met, sequence = counter.state
        self.numbers = np.zeros(len(counts), np.int32)
        self.raw: dict[int, np.ndarray] = {}
        words = sequence[: int(met[0])]
        for field in fields:
            ids = words[words >> _ID_BITS == field] & _ID_MASK
            cells = _cells_of(self.cells, field, ids)
            kept = np.flatnonzero(counts[cells] >= min_count)
            if order == "raw":
                kept = kept[np.argsort(ids[kept])]
            self.numbers[cells[kept]] = np.arange(1, len(kept) + 1, dtype=np.int32)
            self.raw[field] = np.concatenate([np.array([-1]), ids[kept]]).astype(np.int32)

    def rows(self, fields: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(m, F) int32 numbers of m rows of (n, F) ids; 0 where an id is missing or not kept."""
        return _number_rows(self.cells, self.numbers, fields, ids, rows)

    def bag(self, field: int, ids: np.ndarray) -> np.ndarray:
        """(m,) int32 numbers of (m,) ids of a field; 0 where an id is not kept."""
        return _number_bag(self.cells, self.numbers, field, ids)
