"""Words of eight bytes against the bytes themselves."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from mtlkit.data.ali_ccp.byte_words import (
    byte_at,
    digits_of,
    number_in,
    put_byte,
    put_word,
    trailing_zeros,
    word_at,
)


@njit
def read(array, i):
    address = np.int64(array.ctypes.data) + i
    return word_at(address), byte_at(address)


@njit
def write(array, i, word, byte):
    address = np.int64(array.ctypes.data) + i
    put_word(address, word)
    put_byte(address + 8, byte)


@njit
def zeros(word):
    return trailing_zeros(word)


@settings(deadline=None)
@given(st.binary(min_size=20, max_size=20), st.integers(0, 11), st.integers(0, 2**64 - 1))
def test_loads_and_stores_at_any_address(content, i, word):
    array = np.frombuffer(content, np.uint8).copy()
    assert read(array, i) == (int.from_bytes(content[i : i + 8], "little"), content[i])
    write(array, i, np.uint64(word), 7)
    assert array.tobytes() == content[:i] + word.to_bytes(8, "little") + b"\x07" + content[i + 9 :]


@settings(deadline=None)
@given(st.integers(0, 63), st.integers(0, 2**64 - 1))
def test_trailing_zeros(n, word):
    assert zeros(np.uint64((word << n | 1 << n) % 2**64)) == n
    assert zeros(np.uint64(0)) == 64


@settings(deadline=None)
@given(st.lists(st.sampled_from(b"0123456789"), max_size=8), st.binary(max_size=8))
def test_digits_of_any_eight_bytes(digits, rest):
    text = (bytes(digits) + rest + b"x" * 8)[:8]
    expected = next((k for k, byte in enumerate(text) if byte not in b"0123456789"), 8)
    word = np.uint64(int.from_bytes(text, "little"))
    assert digits_of(word) == expected
    if expected:
        assert number_in(word, np.uint64(expected)) == int(text[:expected])
