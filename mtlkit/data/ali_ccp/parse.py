"""Compiled readers of one column or feature of a line, from bytes to numbers.

Positions are addresses. All functions take and give numbers only: a function that is given arrays
makes numba count references to them with atomic operations, which is dear where it runs for every
feature. The end of a line stops every reader, so none runs beyond its block.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mtlkit.data.ali_ccp.byte_words import byte_at, digits_of, number_in, word_at
from mtlkit.data.ali_ccp.fields import (
    CARRIAGE_RETURN,
    COMMA,
    FEATURE_END,
    FIELD_END,
    LINE_FEED,
    VALUE_BEGIN,
)
from mtlkit.data.ali_ccp.hashing import MAX_ID, inlined, kernel

REASONS = (
    "",
    "too few columns",
    "click or purchase is not 0 or 1",
    "the common index is not hexadecimal",
    "the number of features is no number",
    "a feature cannot be read",
    "an id is over 2,147,483,647",
    "a value is no number",
    "its common index is not in the common file",
)
(
    WELL_FORMED,
    BAD_COLUMNS,
    BAD_LABEL,
    BAD_INDEX,
    BAD_COUNT,
    BAD_FEATURE,
    BAD_ID,
    BAD_VALUE,
    ORPHAN,
) = range(9)
"""What is wrong with a line, as a position in :data:`REASONS`."""

AHEAD = 32  # how many bytes from its begin on may be looked at while a feature is read by words
UNREAD = 0  # in place of the address of an end: what stands there is not written as nearly all are
SUFFIXED = 1000  # added to the number in the name of a field that ends in _14: 109_14 is 1109
LARGEST_FLOAT = 3.4028234663852886e38
MOST_EXACT_DIGITS = 18  # a number of this many digits fits in an int64
_TENS = 10.0 ** np.arange(23)  # the powers of ten that a double holds exactly
_DIGIT_0, _DIGIT_1, _DIGIT_4, _DIGIT_9 = ord("0"), ord("1"), ord("4"), ord("9")
_LOWER_A, _LOWER_E, _LOWER_F = ord("a"), ord("e"), ord("f")
_UPPER_A, _UPPER_E, _UPPER_F = ord("A"), ord("E"), ord("F")
_MINUS, _PLUS, _POINT, _UNDERSCORE = ord("-"), ord("+"), ord("."), ord("_")

# numbers of eight bytes; numba makes a float of an uint64 and an int64
_0, _1, _3, _7, _8 = (np.uint64(n) for n in (0, 1, 3, 7, 8))
_10, _16, _24, _100 = (np.uint64(n) for n in (10, 16, 24, 100))
_NIBBLE, _BYTE, _FOUR_BYTES = np.uint64(0xF), np.uint64(0xFF), np.uint64(0xFFFFFFFF)
_FIELD_END_BYTE, _ID_END_BYTE = np.uint64(FIELD_END), np.uint64(VALUE_BEGIN)
_POINT_BYTE, _LAST_CONTROL_BYTE = np.uint64(_POINT), np.uint64(CARRIAGE_RETURN)
_SUFFIX_AND_END = np.uint64(int.from_bytes(b"_14" + bytes([FIELD_END]), "little"))


class CommonIndex(NamedTuple):
    """The index that joins a row with its common features."""

    low: np.uint64  # its first eight bytes as a word, or 0, which no digits are, unless it has 16
    high: np.uint64  # the eight bytes after those
    key: np.uint64  # its value
    number: int  # its number in the table of keys, or -1


NO_INDEX = CommonIndex(_0, _0, _0, -1)


class Head(NamedTuple):
    """What stands before the features of a line."""

    click: int  # 0 or 1
    purchase: int  # 0 or 1
    common_index: CommonIndex  # what joins it with its common features
    stated: int  # how many features the line says it has
    end: int  # where reading stopped
    reason: int  # what is wrong, or WELL_FORMED


class Feature(NamedTuple):
    """One feature of a line."""

    field: int  # code of its field, or -1
    id: int  # what stands behind the name
    value: float  # what stands behind the id
    end: int  # where reading stopped
    reason: int  # what is wrong, or WELL_FORMED


@kernel
def at_line_end(i: int) -> bool:
    """Whether a line feed stands at ``i``, alone or behind a carriage return."""
    byte = byte_at(i)
    return byte == LINE_FEED or (byte == CARRIAGE_RETURN and byte_at(i + 1) == LINE_FEED)


@kernel
def next_line_feed(i: int) -> int:
    """The first line feed from ``i`` on."""
    while byte_at(i) != LINE_FEED:
        i += 1
    return i


@kernel
def _digits(i: int) -> tuple[int, int]:
    """A run of digits from ``i``: its value, and where it ends."""
    value = 0
    while True:
        digit = byte_at(i) - _DIGIT_0
        if digit < 0 or digit > 9:
            return value, i
        value = value * 10 + digit
        i += 1


@kernel
def _hexadecimal(i: int) -> tuple[np.uint64, int]:
    """A hexadecimal number from ``i``, and where it ends."""
    value = np.uint64(0)
    while True:
        byte = byte_at(i)
        if _DIGIT_0 <= byte <= _DIGIT_9:
            nibble = byte - _DIGIT_0
        elif _LOWER_A <= byte <= _LOWER_F:
            nibble = byte - _LOWER_A + 10
        elif _UPPER_A <= byte <= _UPPER_F:
            nibble = byte - _UPPER_A + 10
        else:
            return value, i
        value = (value << np.uint64(4)) | np.uint64(nibble)
        i += 1


@kernel
def _scaled(mantissa: int, power: int) -> float:
    """``mantissa * 10**power``, correctly rounded where a power of ten is exact."""
    value = float(mantissa)
    if power == 0 or mantissa == 0:
        return value
    if -22 <= power < 0:
        return value / _TENS[-power]
    if 0 < power <= 22:
        return value * _TENS[power]
    if power > -300:
        return value * 10.0**power
    return value * 10.0**-300 * 10.0 ** (power + 300)


@kernel
def _number(i: int) -> tuple[float, int]:
    """A decimal number from ``i`` and its end; NaN if there is none or float32 cannot hold it."""
    sign = 1.0
    if byte_at(i) == _MINUS:
        sign = -1.0
        i += 1

    # Digits beyond those that an int64 holds only move the point.
    mantissa, power = np.int64(0), 0
    digits_kept, digits_seen = 0, 0
    is_fraction = False
    while True:
        byte = byte_at(i)
        if _DIGIT_0 <= byte <= _DIGIT_9:
            digits_seen += 1
            if digits_kept < MOST_EXACT_DIGITS:
                mantissa = mantissa * 10 + (byte - _DIGIT_0)
                digits_kept += mantissa > 0
                power -= is_fraction
            else:
                power += not is_fraction
        elif byte == _POINT and not is_fraction:
            is_fraction = True
        else:
            break
        i += 1
    if digits_seen == 0:
        return math.nan, i

    # An exponent has one to three digits.
    if byte_at(i) == _LOWER_E or byte_at(i) == _UPPER_E:
        i += 1
        is_negative = byte_at(i) == _MINUS
        if is_negative or byte_at(i) == _PLUS:
            i += 1
        exponent, end = _digits(i)
        if end == i or end - i > 3:
            return math.nan, end
        i = end
        power += -exponent if is_negative else exponent

    value = _scaled(mantissa, power)
    return (sign * value if value <= LARGEST_FLOAT else math.nan), i


@kernel
def _labels(i: int) -> tuple[int, int, int, int]:
    """The columns ``number,click,purchase,`` from ``i``: click, purchase, end and reason.

    What the first column says is skipped: rows are known by the numbers of their lines.
    """
    while byte_at(i) != COMMA and byte_at(i) != LINE_FEED:
        i += 1
    if byte_at(i) == LINE_FEED:
        return 0, 0, i, BAD_COLUMNS
    i += 1
    click = byte_at(i) - _DIGIT_0
    if click < 0 or click > 1 or byte_at(i + 1) != COMMA:
        return 0, 0, i, BAD_LABEL
    purchase = byte_at(i + 2) - _DIGIT_0
    if purchase < 0 or purchase > 1 or byte_at(i + 3) != COMMA:
        return 0, 0, i, BAD_LABEL
    return click, purchase, i + 4, WELL_FORMED


@kernel
def _common_index(i: int, safe: int, previous: CommonIndex) -> tuple[CommonIndex, int]:
    """The common index from ``i``, and where it ends.

    Nearly all have 16 digits, and the rows of one index stand together: two words tell whether it
    is the one before, whose number is known.
    """
    low, high = _0, _0
    if i < safe and byte_at(i + 16) == COMMA:
        low, high = word_at(i), word_at(i + 8)
        if previous.number >= 0 and low == previous.low and high == previous.high:
            return previous, i + 16
    key, end = _hexadecimal(i)
    if end != i + 16:
        low = _0
    return CommonIndex(low, high, key, -1), end


@kernel
def read_head(i: int, safe: int, is_skeleton: bool, previous: CommonIndex) -> Head:
    """What stands before the features of a line.

    Args:
        safe: From here on the block is too near its end for words.
        previous: The common index of the line before.
    """
    click, purchase = 0, 0
    if is_skeleton:
        click, purchase, i, reason = _labels(i)
        if reason != WELL_FORMED:
            return Head(click, purchase, previous, 0, i, reason)

    index, end = _common_index(i, safe, previous)
    if end == i or end > i + 16 or byte_at(end) != COMMA:
        return Head(click, purchase, index, 0, end, BAD_INDEX)

    i = end + 1
    stated, end = _digits(i)
    if end == i or end > i + 10 or byte_at(end) != COMMA:
        return Head(click, purchase, index, stated, end, BAD_COUNT)
    return Head(click, purchase, index, stated, end + 1, WELL_FORMED)


@kernel
def name_by_word(i: int) -> tuple[int, int]:
    """The field name of three digits from ``i``, and where the id begins.

    Returns:
        The number in the name, SUFFIXED added where ``_14`` follows, or -1 if it is no such name.
    """
    word = word_at(i)
    after_digits = (word >> _24) & _FOUR_BYTES
    has_suffix = after_digits == _SUFFIX_AND_END
    ends_here = after_digits & _BYTE == _FIELD_END_BYTE
    if not (ends_here or has_suffix) or digits_of(word) < _3:
        return -1, i
    name = (word & _NIBBLE) * _100
    name += ((word >> _8) & _NIBBLE) * _10
    name += (word >> _16) & _NIBBLE
    return int(np.int64(name)) + SUFFIXED * has_suffix, i + 4 + 3 * has_suffix


@inlined
def id_and_value_by_words(i: int, is_wanted: bool) -> tuple[int, float, int]:
    """An id of up to 7 digits from ``i``, then as value one digit, a point, and up to 5 digits.

    Returns:
        The id and the value, both 0 unless ``is_wanted``, and where the value ends; UNREAD if they
        are not so written.
    """
    id_word = word_at(i)
    id_digits = digits_of(id_word)
    begin = i + int(np.int64(id_digits)) + 1
    value_word = word_at(begin)

    # With the point taken out, the digits of the value stand together.
    value_without_point = ((value_word >> _8) & ~_BYTE) | (value_word & _BYTE)
    value_digits = digits_of(value_without_point)
    if not (
        _0 < id_digits < _8
        and (id_word >> (id_digits << _3)) & _BYTE == _ID_END_BYTE
        and (value_word >> _8) & _BYTE == _POINT_BYTE
        and _1 < value_digits < _7
        and (value_word >> ((value_digits + _1) << _3)) & _BYTE <= _LAST_CONTROL_BYTE
    ):
        return 0, 0.0, UNREAD

    end = begin + int(np.int64(value_digits)) + 1
    if not is_wanted:
        return 0, 0.0, end
    id = int(np.int64(number_in(id_word, id_digits)))
    mantissa = np.int64(number_in(value_without_point, value_digits))
    return id, float(mantissa) / _TENS[np.int64(value_digits) - 1], end


@kernel
def name_by_bytes(i: int) -> tuple[int, int]:
    """As :func:`name_by_word`, byte by byte, for names of one to three digits."""
    name, end = _digits(i)
    if end == i or end > i + 3:
        return -1, i
    if byte_at(end) == FIELD_END:
        return name, end + 1
    has_suffix = (
        byte_at(end) == _UNDERSCORE
        and byte_at(end + 1) == _DIGIT_1
        and byte_at(end + 2) == _DIGIT_4
        and byte_at(end + 3) == FIELD_END
    )
    return (name + SUFFIXED, end + 4) if has_suffix else (-1, i)


@kernel
def id_and_value_by_bytes(i: int, field: int) -> Feature:
    """The id and the value of a feature, byte by byte."""
    id, end = _digits(i)
    if end == i or byte_at(end) != VALUE_BEGIN:
        return Feature(field, 0, 0.0, end, BAD_FEATURE)
    if end - i > 10 or id > MAX_ID:
        return Feature(field, 0, 0.0, end, BAD_ID)
    value, end = _number(end + 1)
    return Feature(field, id, value, end, BAD_VALUE if math.isnan(value) else WELL_FORMED)


@kernel
def _word_end(i: int) -> int:
    """The next control character of a feature list, or line feed, from ``i``."""
    while True:
        byte = byte_at(i)
        if FEATURE_END <= byte <= VALUE_BEGIN or byte == LINE_FEED:
            return i
        i += 1


@kernel
def unknown_feature(i: int) -> Feature:
    """A feature of a field that is not known: it must only have the shape of a feature."""
    i = _word_end(i)
    if byte_at(i) != FIELD_END:
        return Feature(-1, 0, 0.0, i, BAD_FEATURE)
    i = _word_end(i + 1)
    if byte_at(i) != VALUE_BEGIN:
        return Feature(-1, 0, 0.0, i, BAD_FEATURE)
    return Feature(-1, 0, 0.0, _word_end(i + 1), WELL_FORMED)
