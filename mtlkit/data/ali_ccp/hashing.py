"""Compiled hashing: a mixing function, draws from it, and a table that numbers 64-bit keys."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from mtlkit.ops._numba import njit

kernel = njit(error_model="numpy")
inlined: Any = numba.njit(inline="always", error_model="numpy")
"""For a piece of a kernel that must become lines of its caller, whatever the optimiser decides."""

MAX_ID = (1 << 31) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S1, _S2, _S3 = np.uint64(30), np.uint64(27), np.uint64(31)
_ONE = np.uint64(1)
_TWO_TO_MINUS_53 = 1.0 / 9007199254740992.0


@kernel
def mix(x: np.uint64) -> np.uint64:
    """The finaliser of splitmix64: every bit of the result depends on every bit of ``x``."""
    x = np.uint64(x) + _GOLDEN
    x = (x ^ (x >> _S1)) * _M1
    x = (x ^ (x >> _S2)) * _M2
    return x ^ (x >> _S3)


@kernel
def number_of(slots: np.ndarray, keys: np.ndarray, count: np.ndarray, key: np.uint64) -> int:
    """The number of a key; a new one if it was never met.

    Args:
        slots: Open-addressing table of numbers, -1 where empty; it must have room.
        keys: The key of each number.
        count: (1,) how many there are.
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
