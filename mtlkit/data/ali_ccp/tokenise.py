"""The compiled tokeniser: one pass over the bytes of a block of lines, from text to codes.

A line is parsed whole into a scratch area before anything of it counts, so a malformed line leaves no trace but its
number and what was wrong. Whether a line is well formed does not depend on the protocol or on the fields chosen.
"""

from __future__ import annotations

import math

import numpy as np

from mtlkit.data.ali_ccp.fields import FIELDS, USER
from mtlkit.data.ali_ccp.hashing import MAX_ID, code_of, lean, number_of, share

DONE, FULL, CODES_FULL, KEYS_FULL = range(4)
"""Why the tokeniser came back: the block is used up, the output is full, a table is."""

(LINES, ROWS, DIRTY, BAD, MISCOUNTED, UNKNOWN, MISPLACED, LEFT_OUT, DUPLICATES, WITHOUT_USER) = range(10)
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
OTHER_SIDE = 64
"""Added to the place of a field that belongs to the other file."""

_PLAIN, _SUFFIX = 1000, "_14"
PLACES = np.full(2 * _PLAIN, -1, np.int64)
"""The number of the field called n at n, of the field called n_14 at 1000 + n, -1 elsewhere."""
for _place, _field in enumerate(FIELDS):
    _plain = int(_field.name.removesuffix(_SUFFIX))
    PLACES[_plain + _PLAIN * _field.name.endswith(_SUFFIX)] = _place
SKELETON_PLACES, COMMON_PLACES = (
    np.array([-1 if n < 0 else n + OTHER_SIDE * (FIELDS[n].side != side) for n in PLACES]) for side in ("row", "user")
)
_TENS = 10.0 ** np.arange(23)
_LARGEST = 3.4028234663852886e38


@lean
def _at(block: np.ndarray, i: int) -> int:
    """``block[i]`` for an ``i`` that is known not to be negative, without the test for that."""
    return int(block[np.uintp(i)])


@lean
def _digits(block: np.ndarray, i: int) -> tuple[int, int]:
    """A run of digits from ``i``: its value, and where it ends."""
    value = 0
    while True:
        digit = _at(block, i) - 48
        if digit < 0 or digit > 9:
            return value, i
        value = value * 10 + digit
        i += 1


@lean
def _any_number(block: np.ndarray, i: int) -> tuple[float, int]:
    """A decimal number from ``i`` and where it ends; NaN if there is none or it is beyond float32."""
    sign = 1.0
    if _at(block, i) == 45:
        sign = -1.0
        i += 1
    mantissa, power, digits, seen = np.int64(0), 0, 0, 0
    point = False
    while True:
        c = _at(block, i)
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
    if _at(block, i) == 101 or _at(block, i) == 69:
        i += 1
        negative = _at(block, i) == 45
        if negative or _at(block, i) == 43:
            i += 1
        exponent, end = _digits(block, i)
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


@lean
def _number(block: np.ndarray, i: int) -> tuple[float, int]:
    """A decimal number from ``i`` and where it ends; NaN if there is none or it is beyond float32."""
    mantissa, point = _digits(block, i)
    if point > i and _at(block, point) == 46:  # as nearly all are written: 1.0, 3.17805
        begin, end = point + 1, point + 1
        while True:
            digit = _at(block, end) - 48
            if digit < 0 or digit > 9:
                break
            mantissa = mantissa * 10 + digit
            end += 1
        if end - i <= 18 and _at(block, end) != 101 and _at(block, end) != 69:
            return float(mantissa) / _TENS[end - begin], end
    return _any_number(block, i)


@lean
def _word_end(block: np.ndarray, i: int) -> int:
    """The next control character of a feature list, or line feed, from ``i``."""
    while True:
        c = _at(block, i)
        if 1 <= c <= 3 or c == 10:
            return i
        i += 1


@lean
def _features(
    block: np.ndarray,
    i: int,
    places: np.ndarray,
    fields: np.ndarray,
    ids: np.ndarray,
    values: np.ndarray,
    tally: np.ndarray,
) -> tuple[int, int, int, int]:
    """Read the features of a line from ``i``: (how many, how many were kept in scratch, where it stopped, reason)."""
    count, kept, misplaced, unknown = 0, 0, 0, 0
    if _at(block, i) == 10 or (_at(block, i) == 13 and _at(block, i + 1) == 10):
        return 0, 0, i, 0
    while True:
        name, end = _digits(block, i)
        field = -1
        if i < end < i + 4:
            if _at(block, end) == 2:
                field = places[name]
            elif (
                _at(block, end) == 95
                and _at(block, end + 1) == 49
                and _at(block, end + 2) == 52
                and _at(block, end + 3) == 2
            ):
                field = places[_PLAIN + name]
                end += 3
        count += 1
        if field >= 0:
            i = end + 1
            id, end = _digits(block, i)
            if end == i or _at(block, end) != 3:
                return count, kept, end, _FEATURE
            if end - i > 10 or id > MAX_ID:
                return count, kept, end, _ID
            value, i = _number(block, end + 1)
            if math.isnan(value):
                return count, kept, i, _VALUE
            if field >= OTHER_SIDE:
                misplaced += 1
            else:
                fields[kept], ids[kept], values[kept] = field, id, value
                kept += 1
        else:  # of no field that is known: it must only have the shape of a feature
            i = _word_end(block, i)
            if _at(block, i) != 2:
                return count, kept, i, _FEATURE
            i += 1
            i = _word_end(block, i)
            if _at(block, i) != 3:
                return count, kept, i, _FEATURE
            i += 1
            i = _word_end(block, i)
            unknown += 1
        c = _at(block, i)
        if c == 1:
            i += 1
        elif c == 10 or (c == 13 and _at(block, i + 1) == 10):
            tally[UNKNOWN] += unknown
            tally[MISPLACED] += misplaced
            return count, kept, i, 0
        else:
            return count, kept, i, _FEATURE if field < 0 else _VALUE


@lean
def _key(block: np.ndarray, i: int) -> tuple[np.uint64, int]:
    """A hexadecimal number from ``i``, and where it ends."""
    key = np.uint64(0)
    while True:
        c = _at(block, i)
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


@lean
def tokenise(
    block: np.ndarray,
    i: int,
    skeleton: bool,
    places: np.ndarray,
    single: np.ndarray,
    valued: np.ndarray,
    bag: np.ndarray,
    sample: float,
    table: np.ndarray,
    sizes: np.ndarray,
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
    out_codes: np.ndarray,
    out_values: np.ndarray,
    out_lengths: np.ndarray,
    bag_codes: np.ndarray,
    bag_weights: np.ndarray,
    bag_fill: np.ndarray,
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
        table: Codes of ids.
        sizes: (fields,) how many codes each field has.
        key_places: Numbers of keys.
        keys: Key of each number.
        key_count: (1,) how many numbers there are.
        common_row: Row of each number in the common file, or UNMET or NOT_SAMPLED.
        tally: Counts of this text.
        noted: (2, NOTED, 2) line and reason of the first malformed lines, line of the first dirty ones.
        fields: Scratch, as long as a line has features at most.
        ids: Scratch.
        values: Scratch.
        last: Scratch, one a field.
        out_line: (R,) line numbers.
        out_number: (R,) numbers of common indexes.
        out_user: (R,) user ids, -1 where missing.
        out_labels: (R, 2) click, purchase.
        out_codes: (R, S).
        out_values: (R, V).
        out_lengths: (R, B) entries of each bag.
        bag_codes: (B, E).
        bag_weights: (B, E).
        bag_fill: (B,) set to the entries of each bag.

    Returns:
        Where it stopped, rows in the output, and why it stopped.
    """
    rows, end_of_block = 0, block.shape[0]
    bags = bag_fill.shape[0]
    bag_fill[:] = 0
    last_key, last_number = np.uint64(0), -1
    total = sizes.sum()
    while i < end_of_block:
        if rows == out_line.shape[0]:
            return i, rows, FULL
        if 2 * key_count[0] >= key_places.shape[0] - 2 or key_count[0] >= keys.shape[0]:
            return i, rows, KEYS_FULL
        start, reason, click, purchase, kept = i, 0, 0, 0, 0
        key = np.uint64(0)
        if skeleton:
            while _at(block, i) != 44 and _at(block, i) != 10:
                i += 1
            if _at(block, i) == 10:
                reason = _COLUMNS
            else:
                i += 1
                click = _at(block, i) - 48
                if click < 0 or click > 1 or _at(block, i + 1) != 44:
                    reason = _LABEL
                else:
                    purchase = int(_at(block, i + 2)) - 48
                    if purchase < 0 or purchase > 1 or _at(block, i + 3) != 44:
                        reason = _LABEL
                    else:
                        i += 4
        count, stated = 0, 0
        if reason == 0:
            key, end = _key(block, i)
            if end == i or end > i + 16 or _at(block, end) != 44:
                i, reason = end, _INDEX
            else:
                i = end + 1
                stated, end = _digits(block, i)
                if end == i or end > i + 10 or _at(block, end) != 44:
                    i, reason = end, _COUNT
                else:
                    unknown, misplaced = tally[UNKNOWN], tally[MISPLACED]
                    count, kept, i, reason = _features(block, end + 1, places, fields, ids, values, tally)
                    if reason == 0:
                        # come back before anything of this line is kept, if it might not fit
                        full = DONE
                        if 2 * (total + kept) >= table.shape[0]:
                            full = CODES_FULL
                        for b in range(bags):
                            if bag_fill[b] + kept > bag_codes.shape[1]:
                                full = FULL
                        if full != DONE:
                            tally[UNKNOWN], tally[MISPLACED] = unknown, misplaced
                            return start, rows, full
        while _at(block, i) != 10:
            i += 1
        i += 1
        line = tally[LINES]
        tally[LINES] += 1
        if reason != 0:
            if tally[BAD] < NOTED:
                noted[0, tally[BAD], 0], noted[0, tally[BAD], 1] = line + 1, reason
            tally[BAD] += 1
            continue
        tally[MISCOUNTED] += count != stated
        if purchase > click:
            if tally[DIRTY] < NOTED:
                noted[1, tally[DIRTY], 0] = line + 1
            tally[DIRTY] += 1
            continue
        if last_number < 0 or key != last_key:
            last_key, last_number = key, number_of(key_places, keys, key_count, key)
        number = last_number
        user = -1
        if skeleton:
            if common_row[number] == NOT_SAMPLED:
                tally[LEFT_OUT] += 1
                continue
        else:
            for k in range(kept):
                if fields[k] == USER:
                    user = ids[k]
            tally[DUPLICATES] += common_row[number] != UNMET
            tally[WITHOUT_USER] += user < 0
            if sample < 1.0:
                who = np.uint64(user) if user >= 0 else key
                if share(who, np.uint64(SAMPLE_SALT)) >= sample:
                    common_row[number] = NOT_SAMPLED
                    tally[LEFT_OUT] += 1
                    continue
            common_row[number] = tally[ROWS]
        tally[ROWS] += 1
        out_line[rows], out_number[rows], out_user[rows] = line + 1, number, user
        out_labels[rows, 0], out_labels[rows, 1] = click, purchase
        for c in range(out_codes.shape[1]):
            out_codes[rows, c] = 0
        for c in range(out_values.shape[1]):
            out_values[rows, c] = 0.0
        for b in range(bags):
            out_lengths[rows, b] = 0
        for k in range(kept):
            field = int(fields[k])
            last[field] = k
            b = bag[field]
            if b >= 0:
                place = bag_fill[b]
                bag_codes[b, place] = code_of(table, sizes, field, ids[k])
                bag_weights[b, place] = values[k]
                bag_fill[b] += 1
                out_lengths[rows, b] += 1
        for k in range(kept):
            field = int(fields[k])
            if last[field] == k:  # the last of its field wins
                if single[field] >= 0:
                    out_codes[rows, single[field]] = code_of(table, sizes, field, ids[k])
                if valued[field] >= 0:
                    out_values[rows, valued[field]] = values[k]
        total += kept  # more than there are, at worst: the table grows a little early
        rows += 1
    return i, rows, DONE
