"""Which ids are kept, and their numbers: counted on train only, one count a row, in a deterministic order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtlkit.data.ali_ccp.hashing import kernel, raw_ids
from mtlkit.data.ali_ccp.staging import Codes


@kernel
def count_column(codes: np.ndarray, times: np.ndarray, counts: np.ndarray, first: np.ndarray, clock: int) -> int:
    """Count the codes of a column, each row ``times`` as often; 0 is no code.

    Args:
        codes: (n,) int32.
        times: (n,) how often each row counts.
        counts: Raised in place.
        first: When each code was first met; 0 for never.
        clock: How many codes were met before.

    Returns:
        How many were met now.
    """
    for r in range(codes.shape[0]):
        code = codes[r]
        if code > 0 and times[r] > 0:
            counts[code] += times[r]
            if first[code] == 0:
                clock += 1
                first[code] = clock
    return clock


@kernel
def count_bag(codes: np.ndarray, lengths: np.ndarray, times: np.ndarray, counts: np.ndarray) -> None:
    """Count every entry of a bag as often as its row counts."""
    place = 0
    for r in range(lengths.shape[0]):
        for k in range(place, place + lengths[r]):
            counts[codes[k]] += times[r]
        place += lengths[r]


class Counter:
    """Counts of the codes of some fields.

    Args:
        codes: All codes, complete.
        fields: Numbers of the fields to count.
    """

    def __init__(self, codes: Codes, fields: tuple[int, ...]) -> None:
        self.codes = codes
        self.counts = {field: np.zeros(int(codes.sizes[field]) + 1, np.int64) for field in fields}
        self.first = {field: np.zeros(len(counts), np.int32) for field, counts in self.counts.items()}
        self.clock = dict.fromkeys(fields, 0)

    def column(self, field: int, codes: np.ndarray, times: np.ndarray) -> None:
        """Count a field's codes of consecutive rows."""
        self.clock[field] = count_column(codes, times, self.counts[field], self.first[field], self.clock[field])

    def bag(self, field: int, codes: np.ndarray, lengths: np.ndarray, times: np.ndarray) -> None:
        """Count all entries of consecutive rows."""
        count_bag(codes, lengths, times, self.counts[field])


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a field that are kept.

    Args:
        number: Code to id; 0, unknown, for code 0 and for what is not kept.
        raw: (vocab,) int32: the raw id behind each id; -1 for unknown.
    """

    number: np.ndarray
    raw: np.ndarray

    @property
    def size(self) -> int:
        """Number of ids, the unknown one included."""
        return len(self.raw)


def choose(counter: Counter, field: int, min_count: int, order: str) -> Vocabulary:
    """Keep what was counted often enough, numbered by raw id or in the order in which it was met."""
    counts = counter.counts[field]
    raw = raw_ids(counter.codes.table, field, len(counts) - 1)
    kept = np.flatnonzero(counts >= max(min_count, 1))
    kept = kept[kept > 0]
    kept = kept[np.argsort(raw[kept] if order == "raw" else counter.first[field][kept], kind="stable")]
    number = np.zeros(len(counts), np.int32)
    number[kept] = np.arange(1, len(kept) + 1, dtype=np.int32)
    return Vocabulary(number, np.concatenate([np.array([-1], np.int32), raw[kept]]))
