"""Compiled hashing: one mixing function, and two open-addressing tables.

``codes`` numbers the ids of all fields from 1 as they are met, in a table of 64-bit words: a field
(5 bits), an id (31 bits) and its code (28 bits). Eight ids in a row have slots in a row, so ids
that lie together share a cache line. ``keys`` numbers the 64-bit keys of common features from 0.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from mtlkit.ops._numba import njit

kernel = njit(error_model="numpy")
inlined: Any = numba.njit(inline="always", error_model="numpy")
"""For a piece of a kernel that must become lines of its caller, whatever the optimiser decides."""

CODE_BITS = 28
MAX_CODE = (1 << CODE_BITS) - 1
ID_BITS = 31
MAX_ID = (1 << ID_BITS) - 1
_CODE_BITS = np.uint64(CODE_BITS)
_CODE_MASK = np.uint64(MAX_CODE)
_ID_BITS = np.uint64(ID_BITS)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S1, _S2, _S3 = np.uint64(30), np.uint64(27), np.uint64(31)
_ONE, _ZERO = np.uint64(1), np.uint64(0)
_GROUP_BITS, _IN_GROUP = np.uint64(3), np.uint64(7)
_STEP = np.uint64(9)  # one group on; odd, so that it comes to every slot of the table
_TWO_TO_MINUS_53 = 1.0 / 9007199254740992.0


@kernel
def mix(x: np.uint64) -> np.uint64:
    """The finaliser of splitmix64: every bit of the result depends on every bit of ``x``."""
    x = np.uint64(x) + _GOLDEN
    x = (x ^ (x >> _S1)) * _M1
    x = (x ^ (x >> _S2)) * _M2
    return x ^ (x >> _S3)


@kernel
def _word(field: int, id: int) -> np.uint64:
    """A field and an id as one number, never 0."""
    return ((np.uint64(field) << _ID_BITS) | np.uint64(id)) + _ONE


@kernel
def _home(word: np.uint64, mask: np.uint64) -> np.uint64:
    """The slot where the search for a word begins."""
    return ((mix(word >> _GROUP_BITS) << _GROUP_BITS) | (word & _IN_GROUP)) & mask


@kernel
def _slot_of(table: np.ndarray, word: np.uint64) -> np.uint64:
    """The slot of a word, or the empty one where it would stand. The table must not be full."""
    mask = np.uint64(table.shape[0] - 1)
    slot = _home(word, mask)
    while table[slot] != _ZERO and table[slot] >> _CODE_BITS != word:
        slot = (slot + _STEP) & mask
    return slot


@kernel
def code_of(table: np.ndarray, count: np.ndarray, field: int, id: int) -> np.uint64:
    """The code of an id of a field; a new one, one more than ``count``, if it was never met. There
    must be room.
    """
    word = _word(field, id)
    slot = _slot_of(table, word)
    if table[slot] == _ZERO:
        count[0] += 1
        table[slot] = (word << _CODE_BITS) | np.uint64(count[0])
    return table[slot] & _CODE_MASK


@kernel
def known_code(table: np.ndarray, field: int, id: int) -> np.uint64:
    """The code of an id of a field; 0 if it was never met."""
    return table[_slot_of(table, _word(field, id))] & _CODE_MASK


@kernel
def grown(table: np.ndarray) -> np.ndarray:
    """A table of codes twice as large with the same contents."""
    larger = np.zeros(2 * table.shape[0], np.uint64)
    for i in range(table.shape[0]):
        if table[i] != _ZERO:
            larger[_slot_of(larger, table[i] >> _CODE_BITS)] = table[i]
    return larger


@kernel
def number_of(slots: np.ndarray, keys: np.ndarray, count: np.ndarray, key: np.uint64) -> int:
    """The number of a key; a new one if it was never met.

    Args:
        slots: Open-addressing table of numbers, -1 where empty; it must have room.
        keys: The key of each number.
        count: (1,) how many there are.
        key: What to look for.
    """
    mask = np.uint64(slots.shape[0] - 1)
    slot = mix(key) & mask
    while True:
        number = slots[slot]
        if number < 0:
            number = count[0]
            slots[slot] = number
            keys[number] = key
            count[0] += 1
            return number
        if keys[number] == key:
            return number
        slot = (slot + _ONE) & mask


@kernel
def slots_of(keys: np.ndarray, count: int, size: int) -> np.ndarray:
    """A table of ``size`` slots for the first ``count`` keys."""
    slots = np.full(size, -1, np.int32)
    mask = np.uint64(size - 1)
    for number in range(count):
        slot = mix(keys[number]) & mask
        while slots[slot] >= 0:
            slot = (slot + _ONE) & mask
        slots[slot] = number
    return slots


@kernel
def share(value: np.uint64, salt: np.uint64) -> float:
    """A number in [0, 1) that depends on ``value`` and ``salt`` only."""
    bits = mix(mix(np.uint64(value)) ^ np.uint64(salt)) >> np.uint64(11)
    return float(bits) * _TWO_TO_MINUS_53
