"""The compiled tokeniser: one pass over the bytes of a block of lines, from text to numbers.

A line is parsed whole into a scratch area before anything of it counts, so a malformed line leaves
no trace but its number and what was wrong. Whether a line is well formed does not depend on the
protocol or on the fields chosen. A feature as nearly all are written is read by three words of
eight bytes; anything else is read byte by byte, which is right for all and says what is wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mtlkit.data.ali_ccp.byte_words import address_of, borrowed, byte_at
from mtlkit.data.ali_ccp.fields import FEATURE_END, FIELDS, USER
from mtlkit.data.ali_ccp.hashing import inlined, kernel, number_of, share
from mtlkit.data.ali_ccp.parse import (
    AHEAD,
    BAD_FEATURE,
    BAD_VALUE,
    NO_INDEX,
    SUFFIXED,
    UNREAD,
    WELL_FORMED,
    CommonIndex,
    Feature,
    at_line_end,
    id_and_value_by_bytes,
    id_and_value_by_words,
    name_by_bytes,
    name_by_word,
    next_line_feed,
    read_head,
    unknown_feature,
)

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

NOTED = 8  # how many malformed and dirty lines of a text are remembered by their number
BAD_LINES, DIRTY_LINES = range(2)  # the rows of the array of remembered lines

UNMET, NOT_SAMPLED = -1, -2
"""In place of the row of a common index: not met in the common file yet; left out by sampling."""
SAMPLE_SALT = 0x5A3D
NONE = -1  # in place of an id that a row lacks
OTHER_FILE, NOT_ASKED = 32, 64
"""Added to the code of a field that belongs to the other file, or that the protocol does not take.
"""
_SUFFIX = "_14"


class Layout(NamedTuple):
    """What a text is, and where its features go."""

    is_skeleton: bool  # whether its lines have labels, and their features belong to rows
    sample: float  # share of users to keep
    codes: np.ndarray  # (2 SUFFIXED,) code of each field name; see :func:`field_codes`
    id_column: np.ndarray  # (fields,) column of a field's last id, or -1
    value_column: np.ndarray  # (fields,) column of a field's last value, or -1
    bag: np.ndarray  # (fields,) number of the bag that a field fills, or -1


class KeyTable(NamedTuple):
    """The common indexes of one split."""

    slots: np.ndarray  # open-addressing table of numbers of keys
    keys: np.ndarray  # key of each number
    size: np.ndarray  # (1,) how many numbers there are
    common_row: np.ndarray  # row of each number in the common file, or UNMET or NOT_SAMPLED


class Counts(NamedTuple):
    """What is counted of a text."""

    tally: np.ndarray  # (10,) see :data:`TALLIES`
    # (2, NOTED, 2) line and reason of the first malformed lines, line of the first dirty ones.
    noted: np.ndarray
    ranges: np.ndarray  # (fields, 2) least and greatest id of each field so far


class Scratch(NamedTuple):
    """The features of one line."""

    fields: np.ndarray  # as long as a line has features at most
    ids: np.ndarray  # as long
    values: np.ndarray  # as long
    last: np.ndarray  # (fields,) position of the last feature of each field


class Output(NamedTuple):
    """Room for R rows and, in each of B bags, for E entries."""

    line: np.ndarray  # (R,) line numbers
    number: np.ndarray  # (R,) numbers of common indexes
    user: np.ndarray  # (R,) user ids, NONE where missing
    labels: np.ndarray  # (R, 2) click, purchase
    ids: np.ndarray  # (R, S) ids as written, NONE where missing
    values: np.ndarray  # (R, V)
    lengths: np.ndarray  # (R, B) entries of each bag
    bag_ids: np.ndarray  # (B, E)
    bag_weights: np.ndarray  # (B, E)
    bag_fill: np.ndarray  # (B,) entries of each bag so far


def field_codes(side: str, asked: set[int]) -> np.ndarray:
    """What each field name means in a file: the number of the field called n at n, of n_14 at
    SUFFIXED + n, else -1.

    Args:
        side: Of the file.
        asked: Numbers of the fields that are wanted.
    """
    codes = np.full(2 * SUFFIXED, -1, np.int16)
    for number, field in enumerate(FIELDS):
        name = int(field.name.removesuffix(_SUFFIX))
        if field.name.endswith(_SUFFIX):
            name += SUFFIXED
        codes[name] = number
        if field.side != side:
            codes[name] += OTHER_FILE
        elif number not in asked:
            codes[name] += NOT_ASKED
    return codes


@kernel
def _feature_by_bytes(i: int, codes: np.ndarray) -> Feature:
    """The feature that begins at ``i``, byte by byte."""
    name, id_begin = name_by_bytes(i)
    field = int(codes[name]) if name >= 0 else -1
    return id_and_value_by_bytes(id_begin, field) if field >= 0 else unknown_feature(i)


@inlined
def _read_features(
    i: int, safe: int, codes: np.ndarray, scratch: Scratch
) -> tuple[int, int, int, int, int, int]:
    """Read the feature list of a line into the scratch area.

    Args:
        safe: From here on the block is too near its end for words.
        codes: Code of each field name.
        scratch: Filled with the features that are wanted.

    Returns:
        How many were wanted, were there, are of no field that is known, and belong to the other
        file; where reading stopped, and the reason.
    """
    kept, count, unknown, misplaced, reason = 0, 0, 0, 0, WELL_FORMED
    is_more = not at_line_end(i)
    while is_more:
        # Nearly all features are written in a way that words can be used for.
        field, id, value, end = -1, 0, 0.0, UNREAD
        if i < safe:
            name, id_begin = name_by_word(i)
            if name >= 0:
                field = int(codes[name])
                if field >= 0:
                    id, value, end = id_and_value_by_words(id_begin, field < OTHER_FILE)
        if end == UNREAD:
            field, id, value, end, reason = _feature_by_bytes(i, codes)
        i = end

        # A feature is followed by another, or by the end of the line.
        count += 1
        is_more = reason == WELL_FORMED and byte_at(i) == FEATURE_END
        if is_more:
            i += 1
        elif reason == WELL_FORMED and not at_line_end(i):
            reason = BAD_FEATURE if field < 0 else BAD_VALUE

        if field < 0:
            unknown += 1
        elif field < OTHER_FILE:
            scratch.fields[kept], scratch.ids[kept], scratch.values[kept] = field, id, value
            kept += 1
        elif field < NOT_ASKED:
            misplaced += 1
    return kept, count, unknown, misplaced, i, reason


@inlined
def _sample_user(
    number: int, kept: int, layout: Layout, table: KeyTable, tally: np.ndarray, scratch: Scratch
) -> tuple[int, bool]:
    """The user of a line of the common file, or NONE, and whether sampling keeps the user.

    The draw is by the user id, or where it is missing by the common index.
    """
    user = NONE
    for k in range(kept):
        if scratch.fields[k] == USER:
            user = int(scratch.ids[k])
    tally[DUPLICATES] += table.common_row[number] != UNMET
    tally[WITHOUT_USER] += user < 0
    if layout.sample >= 1.0:
        return user, True
    drawn_by = np.uint64(user) if user >= 0 else table.keys[number]
    return user, share(drawn_by, np.uint64(SAMPLE_SALT)) < layout.sample


@inlined
def _note(counts: Counts, lines: int, tally: int, line: int, reason: int) -> None:
    """Count a line that is left out, and remember the first of them."""
    if counts.tally[tally] < NOTED:
        counts.noted[lines, counts.tally[tally], 0] = line
        counts.noted[lines, counts.tally[tally], 1] = reason
    counts.tally[tally] += 1


@inlined
def _keep_features(
    row: int, kept: int, scratch: Scratch, layout: Layout, ranges: np.ndarray, out: Output
) -> None:
    """Put the features of a line into row ``row`` of the output."""
    for column in range(out.ids.shape[1]):
        out.ids[row, column] = NONE
    for column in range(out.values.shape[1]):
        out.values[row, column] = 0.0
    for b in range(out.lengths.shape[1]):
        out.lengths[row, b] = 0

    # Every feature counts for the range of its field, and is an entry of its bag.
    for k in range(kept):
        field, id = int(scratch.fields[k]), scratch.ids[k]
        scratch.last[field] = k
        ranges[field, 0] = min(ranges[field, 0], id)
        ranges[field, 1] = max(ranges[field, 1], id)
        b = layout.bag[field]
        if b >= 0:
            entry = out.bag_fill[b]
            out.bag_ids[b, entry], out.bag_weights[b, entry] = id, scratch.values[k]
            out.bag_fill[b] += 1
            out.lengths[row, b] += 1

    # In a column, the last of its field wins.
    for k in range(kept):
        field = int(scratch.fields[k])
        if scratch.last[field] == k:
            if layout.id_column[field] >= 0:
                out.ids[row, layout.id_column[field]] = scratch.ids[k]
            if layout.value_column[field] >= 0:
                out.values[row, layout.value_column[field]] = scratch.values[k]


@kernel
def tokenise(
    block: np.ndarray,
    begin: int,
    layout: Layout,
    table: KeyTable,
    counts: Counts,
    scratch: Scratch,
    out: Output,
) -> tuple[int, int, int]:
    """Parse lines from byte ``begin`` on until the block ends or there is no room.

    Args:
        block: Whole lines, the last byte a line feed.
        out: Filled from its first row on.

    Returns:
        Where it stopped, rows in the output, and why it stopped.
    """
    # The caller owns all arrays: what is passed on from here needs no count of references.
    layout, table, counts = borrowed(layout), borrowed(table), borrowed(counts)
    scratch, out = borrowed(scratch), borrowed(out)

    tally = counts.tally
    row, bags = 0, out.bag_fill.shape[0]
    out.bag_fill[:] = 0
    text = address_of(block)
    i = text + begin
    end_of_block = text + block.shape[0]
    safe = end_of_block - AHEAD
    previous = NO_INDEX
    while i < end_of_block:
        if row == out.line.shape[0]:
            return i - text, row, FULL
        are_slots_full = 2 * table.size[0] >= table.slots.shape[0] - 2
        if are_slots_full or table.size[0] >= table.keys.shape[0]:
            return i - text, row, KEYS_FULL

        # Read the line into the scratch area.
        line_begin = i
        kept, count, unknown, misplaced = 0, 0, 0, 0
        head = read_head(i, safe, layout.is_skeleton, previous)
        i, reason = head.end, head.reason
        if reason == WELL_FORMED:
            kept, count, unknown, misplaced, i, reason = _read_features(
                i, safe, layout.codes, scratch
            )

        # Come back before anything of this line is kept, if it might not fit.
        if reason == WELL_FORMED:
            for b in range(bags):
                if out.bag_fill[b] + kept > out.bag_ids.shape[1]:
                    return line_begin - text, row, FULL

        # A malformed line is left out, and so is a purchase without a click.
        i = next_line_feed(i) + 1
        tally[LINES] += 1
        line = tally[LINES]
        if reason != WELL_FORMED:
            _note(counts, BAD_LINES, BAD, line, reason)
            continue
        tally[UNKNOWN] += unknown
        tally[MISPLACED] += misplaced
        tally[MISCOUNTED] += count != head.stated
        if head.purchase > head.click:
            _note(counts, DIRTY_LINES, DIRTY, line, WELL_FORMED)
            continue

        # Number the common index.
        low, high, key, number = head.common_index
        if number < 0:
            number = number_of(table.slots, table.keys, table.size, key)
            if low != 0:
                previous = CommonIndex(low, high, key, number)

        # Users are sampled where the common file says who they are; rows follow their user.
        user = NONE
        if layout.is_skeleton:
            is_kept = table.common_row[number] != NOT_SAMPLED
        else:
            user, is_kept = _sample_user(number, kept, layout, table, tally, scratch)
            table.common_row[number] = tally[ROWS] if is_kept else NOT_SAMPLED
        if not is_kept:
            tally[LEFT_OUT] += 1
            continue

        # Keep the line as a row.
        tally[ROWS] += 1
        out.line[row], out.number[row], out.user[row] = line, number, user
        out.labels[row, 0], out.labels[row, 1] = head.click, head.purchase
        _keep_features(row, kept, scratch, layout, counts.ranges, out)
        row += 1
    return i - text, row, DONE
