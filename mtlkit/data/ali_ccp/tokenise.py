"""The compiled tokeniser: one pass over the bytes of a block of lines, from text to numbers.

A line is parsed whole into a scratch area before anything of it counts, so a malformed line leaves
no trace but its number and what was wrong. Whether a line is well formed does not depend on the
protocol or on the fields chosen. A feature as nearly all are written is read by three words of
eight bytes; anything else goes the plain way, byte by byte, which is right for all and says what is
wrong.
"""

from __future__ import annotations

import math

import numpy as np

from mtlkit.data.ali_ccp.byte_words import address_of, byte_at, digits_of, number_in, word_at
from mtlkit.data.ali_ccp.fields import FIELDS, USER
from mtlkit.data.ali_ccp.hashing import MAX_ID, kernel, number_of, share

DONE, FULL, KEYS_FULL = range(3)
"""Why the tokeniser came back: the block is used up, the output is full, the table of keys is."""

(LINES, ROWS, DIRTY, BAD, MISCOUNTED, UNKNOWN, MISPLACED, LEFT_OUT, DUPLICATES, WITHOUT_USER) = (
    range(10)
)
TALLIES = (
    "lines",
    "rows",
    "dirty",
    "malformed",
    "feature counts that differ from the list",
    "unknown features",
    "features in the wrong file",
    "rows left out by sampling",
    "common indexes that came again",
    "rows without a user id",
)
"""What is counted of each text, in the order of the tally array."""

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
(_COLUMNS, _LABEL, _INDEX, _COUNT, _FEATURE, _ID, _VALUE, ORPHAN) = range(1, 9)
NOTED = 8
"""How many malformed and dirty lines of a text are remembered by their number."""

UNMET, NOT_SAMPLED = -1, -2
"""In place of the row of a common index: not met in the common file yet; left out by sampling."""
SAMPLE_SALT = 0x5A3D
NONE = -1
"""In place of an id that a row lacks."""
OTHER_SIDE, NOT_ASKED = 32, 64
"""Added to the number of a field that belongs to the other file, or that the protocol does not
take.
"""

_PLAIN, _SUFFIX = 1000, "_14"
AHEAD = 32
"""So many bytes from its begin on may be looked at while a feature is read by words."""


def places(side: str, asked: set[int]) -> np.ndarray:
    """What each field name means in a file: the number of the field called n at n, of n_14 at 1000
    + n, else -1.

    Args:
        side: Of the file.
        asked: Numbers of the fields that are wanted.
    """
    out = np.full(2 * _PLAIN, -1, np.int16)
    for number, field in enumerate(FIELDS):
        place = int(field.name.removesuffix(_SUFFIX)) + _PLAIN * field.name.endswith(_SUFFIX)
        out[place] = number + (
            OTHER_SIDE if field.side != side else 0 if number in asked else NOT_ASKED
        )
    return out


_TENS = 10.0 ** np.arange(23)
_LARGEST = 3.4028234663852886e38
_ZERO, _ONE, _THREE, _SEVEN, _EIGHT = (np.uint64(n) for n in (0, 1, 3, 7, 8))
_S8, _S16, _S24 = (np.uint64(n) for n in (8, 16, 24))
_TEN, _HUNDRED, _NIBBLE = np.uint64(10), np.uint64(100), np.uint64(15)
_BYTE, _FOUR_BYTES = np.uint64(0xFF), np.uint64(0xFFFFFFFF)
_NAME_END, _ID_END, _CONTROL, _POINT = (np.uint64(n) for n in (2, 3, 13, 46))
_SUFFIX_END = np.uint64(int.from_bytes(b"_14\x02", "little"))


@kernel
def _digits(i: int) -> tuple[int, int]:
    """A run of digits from ``i``: its value, and where it ends."""
    value = 0
    while True:
        digit = byte_at(i) - 48
        if digit < 0 or digit > 9:
            return value, i
        value = value * 10 + digit
        i += 1


@kernel
def _any_number(i: int) -> tuple[float, int]:
    """A decimal number from ``i`` and where it ends; NaN if there is none or it is beyond float32."""
    sign = 1.0
    if byte_at(i) == 45:
        sign = -1.0
        i += 1
    mantissa, power, digits, seen = np.int64(0), 0, 0, 0
    point = False
    while True:
        c = byte_at(i)
        if 48 <= c <= 57:
            seen += 1
            if digits < 18:
                mantissa = mantissa * 10 + (c - 48)
                digits += mantissa > 0
                power -= point
            else:
                power += not point
        elif c == 46 and not point:
            point = True
        else:
            break
        i += 1
    if seen == 0:
        return math.nan, i
    if byte_at(i) == 101 or byte_at(i) == 69:
        i += 1
        negative = byte_at(i) == 45
        if negative or byte_at(i) == 43:
            i += 1
        exponent, end = _digits(i)
        if end == i or end - i > 3:
            return math.nan, end
        i = end
        power += -exponent if negative else exponent
    value = float(mantissa)
    if -22 <= power < 0:
        value /= _TENS[-power]
    elif 0 < power <= 22:
        value *= _TENS[power]
    elif power != 0 and mantissa != 0:
        value = value * 10.0**power if power > -300 else value * 10.0**-300 * 10.0 ** (power + 300)
    return (sign * value if value <= _LARGEST else math.nan), i


@kernel
def _number(i: int) -> tuple[float, int]:
    """A decimal number from ``i`` and where it ends; NaN if there is none or it is beyond float32."""
    mantissa, point = _digits(i)
    if point > i and byte_at(point) == 46:  # as nearly all are written: 1.0, 3.17805
        begin, end = point + 1, point + 1
        while True:
            digit = byte_at(end) - 48
            if digit < 0 or digit > 9:
                break
            mantissa = mantissa * 10 + digit
            end += 1
        if end - i <= 18 and byte_at(end) != 101 and byte_at(end) != 69:
            return float(mantissa) / _TENS[end - begin], end
    return _any_number(i)


@kernel
def _word_end(i: int) -> int:
    """The next control character of a feature list, or line feed, from ``i``."""
    while True:
        c = byte_at(i)
        if 1 <= c <= 3 or c == 10:
            return i
        i += 1


@kernel
def _feature(i: int, places: np.ndarray) -> tuple[int, int, float, int, int]:
    """Read one feature byte by byte: (field or -1, id, value, where it stopped, reason)."""
    name, end = _digits(i)
    field = -1
    if i < end < i + 4:
        if byte_at(end) == 2:
            field = int(places[name])
        elif (
            byte_at(end) == 95
            and byte_at(end + 1) == 49
            and byte_at(end + 2) == 52
            and byte_at(end + 3) == 2
        ):
            field = int(places[_PLAIN + name])
            end += 3
    if field >= 0:
        i = end + 1
        id, end = _digits(i)
        if end == i or byte_at(end) != 3:
            return field, 0, 0.0, end, _FEATURE
        if end - i > 10 or id > MAX_ID:
            return field, 0, 0.0, end, _ID
        value, i = _number(end + 1)
        return field, id, value, i, _VALUE if math.isnan(value) else 0
    # of no field that is known: it must only have the shape of a feature
    i = _word_end(i)
    if byte_at(i) != 2:
        return -1, 0, 0.0, i, _FEATURE
    i = _word_end(i + 1)
    if byte_at(i) != 3:
        return -1, 0, 0.0, i, _FEATURE
    return -1, 0, 0.0, _word_end(i + 1), 0


@kernel
def _key(i: int) -> tuple[np.uint64, int]:
    """A hexadecimal number from ``i``, and where it ends."""
    key = np.uint64(0)
    while True:
        c = byte_at(i)
        if 48 <= c <= 57:
            nibble = c - 48
        elif 97 <= c <= 102:
            nibble = c - 87
        elif 65 <= c <= 70:
            nibble = c - 55
        else:
            return key, i
        key = (key << np.uint64(4)) | np.uint64(nibble)
        i += 1


@kernel
def tokenise(
    block: np.ndarray,
    i: int,
    skeleton: bool,
    places: np.ndarray,
    single: np.ndarray,
    valued: np.ndarray,
    bag: np.ndarray,
    sample: float,
    key_places: np.ndarray,
    keys: np.ndarray,
    key_count: np.ndarray,
    common_row: np.ndarray,
    tally: np.ndarray,
    noted: np.ndarray,
    fields: np.ndarray,
    ids: np.ndarray,
    values: np.ndarray,
    last: np.ndarray,
    out_line: np.ndarray,
    out_number: np.ndarray,
    out_user: np.ndarray,
    out_labels: np.ndarray,
    out_ids: np.ndarray,
    out_values: np.ndarray,
    out_lengths: np.ndarray,
    bag_ids: np.ndarray,
    bag_weights: np.ndarray,
    bag_fill: np.ndarray,
    ranges: np.ndarray,
) -> tuple[int, int, int]:
    """Parse lines from byte ``i`` on until the block ends or there is no room.

    Args:
        block: Whole lines, the last byte a line feed.
        i: Where to begin.
        skeleton: Which of the two kinds of text it is.
        places: What each field name means in this kind of text.
        single: (fields,) column of a field's last id, or -1.
        valued: (fields,) column of a field's last value, or -1.
        bag: (fields,) number of the bag that a field fills, or -1.
        sample: Share of users to keep.
        key_places: Numbers of keys.
        keys: Key of each number.
        key_count: (1,) how many numbers there are.
        common_row: Row of each number in the common file, or UNMET or NOT_SAMPLED.
        tally: Counts of this text.
        noted: (2, NOTED, 2) line and reason of the first malformed lines, line of the first dirty
            ones.
        fields: Scratch, as long as a line has features at most.
        ids: Scratch.
        values: Scratch.
        last: Scratch, one a field.
        out_line: (R,) line numbers.
        out_number: (R,) numbers of common indexes.
        out_user: (R,) user ids, NONE where missing.
        out_labels: (R, 2) click, purchase.
        out_ids: (R, S) ids as written, NONE where missing.
        out_values: (R, V).
        out_lengths: (R, B) entries of each bag.
        bag_ids: (B, E).
        bag_weights: (B, E).
        bag_fill: (B,) set to the entries of each bag.
        ranges: (fields, 2) least and greatest id of each field so far.

    Returns:
        Where it stopped, rows in the output, and why it stopped.
    """
    rows, bags = 0, bag_fill.shape[0]
    bag_fill[:] = 0
    text = address_of(block)
    i += text
    end_of_block = text + block.shape[0]
    safe = end_of_block - AHEAD
    last_low, last_high, last_number = _ZERO, _ZERO, -1
    while i < end_of_block:
        if rows == out_line.shape[0]:
            return i - text, rows, FULL
        if 2 * key_count[0] >= key_places.shape[0] - 2 or key_count[0] >= keys.shape[0]:
            return i - text, rows, KEYS_FULL
        start, reason, click, purchase, kept = i, 0, 0, 0, 0
        if skeleton:
            while byte_at(i) != 44 and byte_at(i) != 10:
                i += 1
            if byte_at(i) == 10:
                reason = _COLUMNS
            else:
                i += 1
                click = byte_at(i) - 48
                if click < 0 or click > 1 or byte_at(i + 1) != 44:
                    reason = _LABEL
                else:
                    purchase = byte_at(i + 2) - 48
                    if purchase < 0 or purchase > 1 or byte_at(i + 3) != 44:
                        reason = _LABEL
                    else:
                        i += 4
        count, stated, unknown, misplaced = 0, 0, 0, 0
        key, number = _ZERO, -1
        low, high, whole = _ZERO, _ZERO, False
        if reason == 0:
            if (
                i < safe and byte_at(i + 16) == 44
            ):  # nearly all have 16 digits, and rows of one index stand together
                low, high, whole = word_at(i), word_at(i + 8), True
            if whole and last_number >= 0 and low == last_low and high == last_high:
                number, end = last_number, i + 16
            else:
                key, end = _key(i)
                whole = whole and end == i + 16
            if end == i or end > i + 16 or byte_at(end) != 44:
                i, reason = end, _INDEX
            else:
                i = end + 1
                stated, end = _digits(i)
                if end == i or end > i + 10 or byte_at(end) != 44:
                    i, reason = end, _COUNT
                else:
                    i = end + 1
                    # the loop over features stands here: as a function it would be given five
                    # arrays a line, and counting the references to those took 15 to 30 % of the
                    # time
                    more = byte_at(i) != 10 and (byte_at(i) != 13 or byte_at(i + 1) != 10)
                    while more:
                        field, id, value, read = -1, 0, 0.0, False
                        if i < safe:
                            word = word_at(i)
                            after = (word >> _S24) & _FOUR_BYTES
                            suffixed = after == _SUFFIX_END
                            if (after & _BYTE == _NAME_END or suffixed) and digits_of(
                                word
                            ) >= _THREE:
                                name = (word & _NIBBLE) * _HUNDRED
                                name += ((word >> _S8) & _NIBBLE) * _TEN + (
                                    (word >> _S16) & _NIBBLE
                                )
                                field = int(places[np.int64(name) + _PLAIN * suffixed])
                                # an id of up to 7 digits, then one digit, a point, and up to 5
                                # digits
                                begin = i + 4 + 3 * suffixed
                                word = word_at(begin)
                                digits = digits_of(word)
                                begin += np.int64(digits) + 1
                                decimal = word_at(begin)
                                joined = ((decimal >> _S8) & ~_BYTE) | (decimal & _BYTE)
                                figures = digits_of(joined)
                                if (
                                    field >= 0
                                    and _ZERO < digits < _EIGHT
                                    and (word >> (digits << _THREE)) & _BYTE == _ID_END
                                    and (decimal >> _S8) & _BYTE == _POINT
                                    and _ONE < figures < _SEVEN
                                    and (decimal >> ((figures + _ONE) << _THREE)) & _BYTE
                                    <= _CONTROL
                                ):
                                    read = True
                                    i = begin + np.int64(figures) + 1
                                    if field < OTHER_SIDE:
                                        id = int(np.int64(number_in(word, digits)))
                                        value = (
                                            float(np.int64(number_in(joined, figures)))
                                            / _TENS[np.int64(figures) - 1]
                                        )
                        if not read:
                            field, id, value, i, reason = _feature(i, places)
                        count += 1
                        c = byte_at(i)
                        more = reason == 0 and c == 1
                        if reason != 0:
                            pass
                        elif more:
                            i += 1
                        elif c != 10 and (c != 13 or byte_at(i + 1) != 10):
                            reason = _FEATURE if field < 0 else _VALUE
                        if field < 0:
                            unknown += 1
                        elif field < OTHER_SIDE:
                            fields[kept], ids[kept], values[kept] = field, id, value
                            kept += 1
                        elif field < NOT_ASKED:
                            misplaced += 1
                    for b in range(
                        bags
                    ):  # come back before anything of this line is kept, if it might not fit
                        if reason == 0 and bag_fill[b] + kept > bag_ids.shape[1]:
                            return start - text, rows, FULL
        while byte_at(i) != 10:
            i += 1
        i += 1
        line = tally[LINES]
        tally[LINES] += 1
        if reason != 0:
            if tally[BAD] < NOTED:
                noted[0, tally[BAD], 0], noted[0, tally[BAD], 1] = line + 1, reason
            tally[BAD] += 1
            continue
        tally[UNKNOWN] += unknown
        tally[MISPLACED] += misplaced
        tally[MISCOUNTED] += count != stated
        if purchase > click:
            if tally[DIRTY] < NOTED:
                noted[1, tally[DIRTY], 0] = line + 1
            tally[DIRTY] += 1
            continue
        if number < 0:
            number = number_of(key_places, keys, key_count, key)
            if whole:
                last_low, last_high, last_number = low, high, number
        user = NONE
        if skeleton:
            if common_row[number] == NOT_SAMPLED:
                tally[LEFT_OUT] += 1
                continue
        else:
            for k in range(kept):
                if fields[k] == USER:
                    user = int(ids[k])
            tally[DUPLICATES] += common_row[number] != UNMET
            tally[WITHOUT_USER] += user < 0
            if sample < 1.0:
                who = np.uint64(user) if user >= 0 else keys[number]
                if share(who, np.uint64(SAMPLE_SALT)) >= sample:
                    common_row[number] = NOT_SAMPLED
                    tally[LEFT_OUT] += 1
                    continue
            common_row[number] = tally[ROWS]
        tally[ROWS] += 1
        out_line[rows], out_number[rows], out_user[rows] = line + 1, number, user
        out_labels[rows, 0], out_labels[rows, 1] = click, purchase
        for c in range(out_ids.shape[1]):
            out_ids[rows, c] = NONE
        for c in range(out_values.shape[1]):
            out_values[rows, c] = 0.0
        for b in range(bags):
            out_lengths[rows, b] = 0
        for k in range(kept):
            field = int(fields[k])
            last[field] = k
            ranges[field, 0] = min(ranges[field, 0], ids[k])
            ranges[field, 1] = max(ranges[field, 1], ids[k])
            b = bag[field]
            if b >= 0:
                place = bag_fill[b]
                bag_ids[b, place], bag_weights[b, place] = ids[k], values[k]
                bag_fill[b] += 1
                out_lengths[rows, b] += 1
        for k in range(kept):
            field = int(fields[k])
            if last[field] == k:  # the last of its field wins
                if single[field] >= 0:
                    out_ids[rows, single[field]] = ids[k]
                if valued[field] >= 0:
                    out_values[rows, valued[field]] = values[k]
        rows += 1
    return i - text, rows, DONE
