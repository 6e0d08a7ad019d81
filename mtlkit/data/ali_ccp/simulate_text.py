"""The compiled half of the simulator: the planted model, and its rows as text of Ali-CCP.

Everything is a function of (seed, what, number), so a piece can be generated again, alone, in any
order.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mtlkit.data.ali_ccp.byte_words import address_of, put_byte, put_word
from mtlkit.data.ali_ccp.fields import (
    COMMA,
    FEATURE_END,
    FIELD_END,
    FIELDS,
    LINE_FEED,
    NUMBER,
    VALUE_BEGIN,
)
from mtlkit.data.ali_ccp.hashing import inlined, kernel, mix

STRENGTHS = 64
_NAMES = [field.name.encode() + bytes([FIELD_END]) for field in FIELDS]
_VALUES = [b"1.0", *(f"{math.log(1 + k):.5f}".encode() for k in range(1, STRENGTHS))]
_VALUES = [bytes([VALUE_BEGIN]) + value for value in _VALUES]
NAMES = np.array([int.from_bytes(text, "little") for text in _NAMES], np.uint64)
VALUES = np.array([int.from_bytes(text, "little") for text in _VALUES], np.uint64)
"""What stands before and after the id of a feature: at most eight bytes, so one word."""
NAME_LENGTHS = np.array([len(text) for text in _NAMES])
VALUE_LENGTHS = np.array([len(text) for text in _VALUES])

PROFILE = np.array(
    [NUMBER[name] for name in ("121", "122", "124", "125", "126", "127", "128", "129")]
)
PROFILE_LEVELS = np.array([97, 13, 2, 7, 3, 3, 2, 4])
PROFILE_MISSING = np.array([0.13, 0.13, 0.13, 0.13, 0.4, 0.59, 0.13, 0.3])
CLICK_WEIGHTS = np.array([0.3, 0.2, 0.1, 0.35, 0.1, 0.1, 0.05, 0.15])
BUY_WEIGHTS = np.array([0.2, 0.1, 0.2, 0.2, 0.3, 0.3, 0.1, 0.1])
"""Standard deviations of the planted effects of the profile on both logits."""
HISTORY = np.array([NUMBER[name] for name in ("109_14", "110_14", "127_14", "150_14")])
HISTORY_MEAN = np.array([70.0, 150.0, 110.0, 184.0])
HISTORY_MOST = 670
F101, F205, F206, F207, F210, F216, F301, F508, F509, F702, F853 = (
    NUMBER[name]
    for name in ("101", "205", "206", "207", "210", "216", "301", "508", "509", "702", "853")
)
SCENARIOS = 3
MOST_FEATURES = 2706
ROW_BYTES = 1200  # no row of the skeleton is longer
SESSION_BYTES = 40 * MOST_FEATURES  # no row of the common file is longer

# what a random number is for
_USER, _ITEM, _PRESENT, _LEVEL, _LABEL, _ORDER, _EFFECT, _COUNT, _KEY, _VALUE = range(1, 11)
_A, _B, _C = (
    np.uint64(0xD1B54A32D192ED03),
    np.uint64(0xABC98388FB8FAC03),
    np.uint64(0x8CB92BA72F3D8DD7),
)
_DROPPED_BITS = np.uint64(11)
_DIGIT_0, _HEX_A = ord("0"), ord("a")
_USER_MISSING = 0.01
_AGE = 3  # the position of the age in the profile
_ITEM_CLICK_WEIGHTS, _ITEM_BUY_WEIGHTS = (0.6, 0.3, 0.3, 0.3, 0.2), (0.4, 0.2, 0.3, 0.3, 0.3)
"""Strengths of the effects of an item's category, itself, its shop, the scenario and its brand."""
_CLICK_KINDS, _BUY_KINDS = 40, 50
"""Numbers of the random effects of those on a click and on a purchase."""


class World(NamedTuple):
    """What is planted."""

    seed: int  # of everything
    sizes: np.ndarray  # (fields,) number of levels of each field
    bases: np.ndarray  # (fields,) the id of each field's level 0
    bias: np.ndarray  # (click bias, purchase bias, click scale, purchase scale)
    dirty: float  # share of rows that show a purchase without a click


class Piece(NamedTuple):
    """Consecutive sessions of a split."""

    salt: int  # of the split
    first: int  # the first session
    last: int  # the session to stop before


class _Item(NamedTuple):
    """Levels of what a row shows."""

    item: int
    category: int
    shop: int
    brand: int
    scenario: int
    has_brand: bool


class _Features(NamedTuple):
    """Room for the features of a row: (40,) field, level and strength of each."""

    field: np.ndarray
    level: np.ndarray
    strength: np.ndarray


@kernel
def _uniform(seed: int, what: int, a: int, b: int) -> float:
    """A number in [0, 1) that depends on the arguments only."""
    x = mix(np.uint64(seed) * _A + np.uint64(what))
    x = mix(x + np.uint64(a) * _B + np.uint64(b) * _C)
    return float(x >> _DROPPED_BITS) * (1.0 / 9007199254740992.0)


@kernel
def _zipf(u: float, n: int) -> int:
    """A level of 0..n-1 with chance about proportional to 1 / (level + 1)."""
    return min(int(math.exp(u * math.log(n + 1.0))) - 1, n - 1)


@kernel
def _effect(seed: int, kind: int, level: int) -> float:
    """The effect of a level: mean 0, deviation 1, near normal."""
    total = 0.0
    for k in range(4):
        total += _uniform(seed, _EFFECT, kind * 8 + k, level)
    return (total - 2.0) * 1.7320508075688772


@kernel
def _integer(i: int, value: int) -> int:
    """Write a number at address ``i``; returns where it ends."""
    digits, rest = 1, value
    while rest >= 10:
        rest //= 10
        digits += 1
    for k in range(digits):
        put_byte(i + digits - 1 - k, _DIGIT_0 + value % 10)
        value //= 10
    return i + digits


@kernel
def _hex(i: int, value: np.uint64) -> int:
    """Write 16 hexadecimal digits; returns where they end."""
    for k in range(16):
        nibble = np.int64((value >> np.uint64(60 - 4 * k)) & np.uint64(15))
        put_byte(i + k, _DIGIT_0 + nibble if nibble < 10 else _HEX_A + nibble - 10)
    return i + 16


@kernel
def _comma(i: int) -> int:
    put_byte(i, COMMA)
    return i + 1


@kernel
def _feature(i: int, field: int, id: int, strength: int) -> int:
    """Write a feature and the character after it; returns where that ends.

    Up to 7 bytes behind it are written, too: what comes next overwrites them.
    """
    put_word(i, NAMES[field])
    i = _integer(i + NAME_LENGTHS[field], id)
    put_word(i, VALUES[strength])
    i += VALUE_LENGTHS[strength]
    put_byte(i, FEATURE_END)
    return i + 1


@kernel
def _user_of(seed: int, salt: int, session: int, n_users: int) -> int:
    return _zipf(_uniform(seed, _USER, session, salt), n_users)


@kernel
def _profile(seed: int, user: int, p: int) -> int:
    """A user's level in a profile field, -1 if missing."""
    if _uniform(seed, _PRESENT, user, 100 + p) < PROFILE_MISSING[p]:
        return -1
    u = _uniform(seed, _LEVEL, user, p)
    return int(PROFILE_LEVELS[p] * u * math.sqrt(u))


@kernel
def _session_key(seed: int, salt: int, session: int) -> np.uint64:
    """The common index of a session."""
    return mix(np.uint64(seed) * _A + np.uint64(2 * session + salt + 1) * _B)


@kernel
def common_text(world: World, piece: Piece, out: np.ndarray) -> int:
    """Write the common rows of some sessions; returns the number of bytes."""
    seed, sizes, bases = world.seed, world.sizes, world.bases
    salt = piece.salt
    begin = address_of(out)
    i = begin
    entries, levels = np.empty(HISTORY.shape[0], np.int64), np.empty(PROFILE.shape[0], np.int64)
    for session in range(piece.first, piece.last):
        # What the row holds: a past, a profile with gaps, and nearly always the user.
        user = _user_of(seed, salt, session, sizes[F101])
        has_user = _uniform(seed, _PRESENT, session, salt) >= _USER_MISSING
        count = int(has_user)
        for h in range(HISTORY.shape[0]):
            u = _uniform(seed, _COUNT, session, 8 * salt + h)
            entries[h] = min(int(-HISTORY_MEAN[h] * math.log(1.0 - u)), HISTORY_MOST)
            count += entries[h]
        for p in range(PROFILE.shape[0]):
            levels[p] = _profile(seed, user, p)
            count += levels[p] >= 0

        # Write the columns before the features, then the features.
        i = _comma(_hex(i, _session_key(seed, salt, session)))
        i = _comma(_integer(i, count))
        for h in range(HISTORY.shape[0]):
            field = HISTORY[h]
            bag = 64 * (2 * session + salt) + h
            for k in range(entries[h]):
                u = _uniform(seed, _VALUE, bag, k)
                strength = int((u * 1e6) % (STRENGTHS - 1)) + 1
                i = _feature(i, field, bases[field] + _zipf(u, sizes[field]), strength)
        for p in range(PROFILE.shape[0]):
            if levels[p] >= 0:
                i = _feature(i, PROFILE[p], bases[PROFILE[p]] + levels[p], 0)
        if has_user:
            i = _feature(i, F101, bases[F101] + user, 0)
        i -= count > 0  # the line feed overwrites the last separator
        put_byte(i, LINE_FEED)
        i += 1
    return i - begin


@inlined
def _add(features: _Features, n: int, field: int, level: int, strength: int) -> int:
    """Add a feature to ``n`` others; returns how many there are."""
    features.field[n], features.level[n], features.strength[n] = field, level, strength
    return n + 1


@kernel
def _shown(seed: int, sizes: np.ndarray, row: int) -> _Item:
    """What a row shows."""
    item = _zipf(_uniform(seed, _ITEM, row, 0), sizes[F205])
    return _Item(
        item,
        _zipf(_uniform(seed, _LEVEL, item, 30), sizes[F206]),
        _zipf(_uniform(seed, _LEVEL, item, 31), sizes[F207]),
        _zipf(_uniform(seed, _LEVEL, item, 32), sizes[F216]),
        int(SCENARIOS * _uniform(seed, _ITEM, row, 1) ** 2),
        _uniform(seed, _PRESENT, item, 40) >= 0.1,
    )


@inlined
def _item_features(seed: int, sizes: np.ndarray, row: int, shown: _Item, out: _Features) -> int:
    """The number of features: of the item, and matches of its intentions with the user's past."""
    n = _add(out, 0, F205, shown.item, 0)
    n = _add(out, n, F206, shown.category, 0)
    n = _add(out, n, F207, shown.shop, 0)
    n = _add(out, n, F301, shown.scenario, 0)
    if shown.has_brand:
        n = _add(out, n, F216, shown.brand, 0)
    for k in range(1 + int(7 * _uniform(seed, _COUNT, shown.item, 41))):
        level = _zipf(_uniform(seed, _LEVEL, shown.item, 50 + k), sizes[F210])
        n = _add(out, n, F210, level, 0)
        u = _uniform(seed, _PRESENT, row, 60 + k)
        if u < 0.2:
            n = _add(out, n, F853, level, 1 + int(u * 5 * (STRENGTHS - 1)))
    return n


@kernel
def _plus_item(
    logit: float, seed: int, shown: _Item, kind: int, weights: tuple[float, ...]
) -> float:
    """A logit with the effects of what a row shows."""
    logit = (
        logit
        + weights[0] * _effect(seed, kind, shown.category)
        + weights[1] * _effect(seed, kind + 1, shown.item)
    )
    logit += weights[2] * _effect(seed, kind + 2, shown.shop) + weights[3] * _effect(
        seed, kind + 3, shown.scenario
    )
    if shown.has_brand:
        logit += weights[4] * _effect(seed, kind + 4, shown.brand)
    return logit


@inlined
def _user_logits(seed: int, user: int, levels: np.ndarray) -> tuple[float, float]:
    """The effects of a user's profile on both logits; its levels are filled in."""
    click, buy = 0.0, 0.0
    for p in range(PROFILE.shape[0]):
        levels[p] = _profile(seed, user, p)
        if levels[p] >= 0:
            click += CLICK_WEIGHTS[p] * _effect(seed, p, levels[p])
            buy += BUY_WEIGHTS[p] * _effect(seed, 20 + p, levels[p])
    return click, buy


@inlined
def _plus_matches(
    seed: int, row: int, shown: _Item, out: _Features, n: int, click: float, buy: float
) -> tuple[int, float, float]:
    """With the matches of what a row shows with the user's past, which are features as well: how
    many features there are, and both logits.
    """
    for c in range(3):
        u = _uniform(seed, _PRESENT, row, 70 + c)
        if u < 0.3 and (c < 2 or shown.has_brand):
            strength = int(u * 20 * (STRENGTHS - 1)) % (STRENGTHS - 1) + 1
            field = F508 if c == 0 else (F509 if c == 1 else F702)
            level = shown.brand
            if c < 2:
                level = shown.category if c == 0 else shown.shop
            n = _add(out, n, field, level, strength)
            click += 0.3
            buy += 0.3 + 0.01 * strength
    return n, click, buy


@kernel
def _taste(seed: int, age: int, category: int) -> float:
    """What an age likes of a category more than others do."""
    taste = 0.0
    for k in range(3):
        taste += _effect(seed, 60 + k, age) * _effect(seed, 70 + k, category)
    return taste


@kernel
def _chance(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit))


@inlined
def _write_row(
    i: int,
    columns: tuple[int, bool, bool, np.uint64],
    n: int,
    turn: int,
    features: _Features,
    bases: np.ndarray,
) -> int:
    """Write a row of the skeleton at address ``i``; returns where it ends.

    Args:
        columns: Number, click, purchase and common index.
        turn: The feature to begin with.
        features: The features, which are written in a circle.
        bases: The id of each field's level 0.
    """
    number, click, buy, session_key = columns
    i = _comma(_integer(i, number))
    put_byte(i, _DIGIT_0 + click)
    i = _comma(i + 1)
    put_byte(i, _DIGIT_0 + buy)
    i = _comma(i + 1)
    i = _comma(_hex(i, session_key))
    i = _comma(_integer(i, n))
    for k in range(n):
        f = (k + turn) % n
        field = features.field[f]
        i = _feature(i, field, bases[field] + features.level[f], features.strength[f])
    put_byte(i - 1, LINE_FEED)  # over the last separator
    return i


@kernel
def skeleton_text(
    world: World,
    piece: Piece,
    starts: np.ndarray,
    out: np.ndarray,
    chances: np.ndarray,
    labels: np.ndarray,
) -> int:
    """Write the skeleton rows of some sessions; returns the number of bytes.

    Args:
        starts: (S + 1,) first row of each session.
        out: Where to write; it must have room.
        chances: (rows, 2) set to the planted logits of a click and of a purchase given a click.
        labels: (rows, 2) set to what was drawn.
    """
    seed, sizes, bases, bias, dirty = world
    salt = piece.salt
    begin, r = address_of(out), 0
    i = begin
    features = _Features(np.empty(40, np.int64), np.empty(40, np.int64), np.empty(40, np.int64))
    levels = np.empty(PROFILE.shape[0], np.int64)
    for session in range(piece.first, piece.last):
        # The effects of the user's profile are those of all rows of the session.
        user = _user_of(seed, salt, session, sizes[F101])
        session_key = _session_key(seed, salt, session)
        user_click, user_buy = _user_logits(seed, user, levels)
        for number in range(starts[session], starts[session + 1]):
            row = 2 * number + salt
            shown = _shown(seed, sizes, row)
            n = _item_features(seed, sizes, row, shown, features)

            # The planted model.
            click_logit = _plus_item(user_click, seed, shown, _CLICK_KINDS, _ITEM_CLICK_WEIGHTS)
            buy_logit = _plus_item(user_buy, seed, shown, _BUY_KINDS, _ITEM_BUY_WEIGHTS)
            if levels[_AGE] >= 0:
                taste = _taste(seed, levels[_AGE], shown.category)
                click_logit += 0.15 * taste
                buy_logit += 0.1 * taste
            n, click_logit, buy_logit = _plus_matches(
                seed, row, shown, features, n, click_logit, buy_logit
            )
            buy_logit += 0.1 * (click_logit - user_click)
            chances[r, 0] = bias[0] + bias[2] * click_logit
            chances[r, 1] = bias[1] + bias[3] * buy_logit

            # The draw.
            click = _uniform(seed, _LABEL, row, 0) < _chance(chances[r, 0])
            buy = click and _uniform(seed, _LABEL, row, 1) < _chance(chances[r, 1])
            if _uniform(seed, _LABEL, row, 2) < dirty:
                click, buy = False, True
            labels[r, 0], labels[r, 1] = click, buy
            r += 1

            turn = int(_uniform(seed, _ORDER, row, 0) * n)
            i = _write_row(i, (number + 1, click, buy, session_key), n, turn, features, bases)
    return i - begin
