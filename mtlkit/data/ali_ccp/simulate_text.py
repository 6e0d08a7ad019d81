"""The compiled half of the simulator: the planted model, and its rows as text in the format of
Ali-CCP.

Everything is a function of (seed, what, number), so a piece can be generated again, alone, in any
order.
"""

from __future__ import annotations

import math

import numpy as np

from mtlkit.data.ali_ccp.byte_words import address_of, put_byte, put_word
from mtlkit.data.ali_ccp.fields import FIELD_END, FIELDS, NUMBER, VALUE_BEGIN
from mtlkit.data.ali_ccp.hashing import kernel, mix

STRENGTHS = 64
_NAMES = [field.name.encode() + bytes([FIELD_END]) for field in FIELDS]
_VALUES = [b"1.0", *(f"{math.log(1 + k):.5f}".encode() for k in range(1, STRENGTHS))]
_VALUES = [bytes([VALUE_BEGIN]) + value for value in _VALUES]
NAMES, VALUES = (
    np.array([int.from_bytes(text, "little") for text in of], np.uint64) for of in (_NAMES, _VALUES)
)
NAME_LENGTHS, VALUE_LENGTHS = (np.array([len(text) for text in of]) for of in (_NAMES, _VALUES))
"""What stands before and after the id of a feature: at most eight bytes, so one word."""

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
F109, F110, F127, F150 = (int(number) for number in HISTORY)
SCENARIOS = 3
MOST_FEATURES = 2706
ROW_BYTES = 1200
"""No row of the skeleton is longer."""
SESSION_BYTES = 40 * MOST_FEATURES
"""No row of the common file is longer."""

# what a random number is for
_USER, _ITEM, _PRESENT, _LEVEL, _LABEL, _ORDER, _EFFECT, _COUNT, _KEY, _VALUE = range(1, 11)
_A, _B, _C = (
    np.uint64(0xD1B54A32D192ED03),
    np.uint64(0xABC98388FB8FAC03),
    np.uint64(0x8CB92BA72F3D8DD7),
)
_HALF = np.uint64(11)


@kernel
def _uniform(seed: int, what: int, a: int, b: int) -> float:
    x = mix(np.uint64(seed) * _A + np.uint64(what))
    x = mix(x + np.uint64(a) * _B + np.uint64(b) * _C)
    return float(x >> _HALF) * (1.0 / 9007199254740992.0)


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
    """Write a number at address ``i``; returns where it ends. So do the next two."""
    digits, rest = 1, value
    while rest >= 10:
        rest //= 10
        digits += 1
    for k in range(digits):
        put_byte(i + digits - 1 - k, 48 + value % 10)
        value //= 10
    return i + digits


@kernel
def _hex(i: int, value: np.uint64) -> int:
    for k in range(16):
        nibble = np.int64((value >> np.uint64(60 - 4 * k)) & np.uint64(15))
        put_byte(i + k, 48 + nibble if nibble < 10 else 87 + nibble)
    return i + 16


@kernel
def _feature(i: int, field: int, id: int, strength: int) -> int:
    """With the character after a feature, and up to 7 bytes behind it that the next one overwrites."""
    put_word(i, NAMES[field])
    i = _integer(i + NAME_LENGTHS[field], id)
    put_word(i, VALUES[strength])
    i += VALUE_LENGTHS[strength]
    put_byte(i, 1)
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
def common_text(
    seed: int,
    salt: int,
    first: int,
    last: int,
    sizes: np.ndarray,
    bases: np.ndarray,
    out: np.ndarray,
) -> int:
    """Write the common rows of sessions ``first`` to ``last - 1``; return the number of bytes.

    Args:
        seed: Of the world.
        salt: Of the split.
        first: The first session.
        last: The session to stop before.
        sizes: Number of levels of each field.
        bases: The id of each field's level 0.
        out: Where to write; it must have room.
    """
    begin = address_of(out)
    i = begin
    entries, levels = np.empty(HISTORY.shape[0], np.int64), np.empty(PROFILE.shape[0], np.int64)
    for session in range(first, last):
        user = _user_of(seed, salt, session, sizes[F101])
        known = _uniform(seed, _PRESENT, session, salt) >= 0.01
        count = int(known)
        for h in range(HISTORY.shape[0]):
            u = _uniform(seed, _COUNT, session, 8 * salt + h)
            entries[h] = min(int(-HISTORY_MEAN[h] * math.log(1.0 - u)), HISTORY_MOST)
            count += entries[h]
        for p in range(PROFILE.shape[0]):
            levels[p] = _profile(seed, user, p)
            count += levels[p] >= 0
        i = _hex(i, mix(np.uint64(seed) * _A + np.uint64(2 * session + salt + 1) * _B))
        put_byte(i, 44)
        i = _integer(i + 1, count)
        put_byte(i, 44)
        i += 1
        for h in range(HISTORY.shape[0]):
            field = HISTORY[h]
            place = 64 * (2 * session + salt) + h
            for k in range(entries[h]):
                u = _uniform(seed, _VALUE, place, k)
                strength = int((u * 1e6) % (STRENGTHS - 1)) + 1
                i = _feature(i, field, bases[field] + _zipf(u, sizes[field]), strength)
        for p in range(PROFILE.shape[0]):
            if levels[p] >= 0:
                i = _feature(i, PROFILE[p], bases[PROFILE[p]] + levels[p], 0)
        if known:
            i = _feature(i, F101, bases[F101] + user, 0)
        i -= count > 0  # instead of the last separator
        put_byte(i, 10)
        i += 1
    return i - begin


@kernel
def skeleton_text(
    seed: int,
    salt: int,
    first: int,
    last: int,
    starts: np.ndarray,
    sizes: np.ndarray,
    bases: np.ndarray,
    bias: np.ndarray,
    dirty: float,
    out: np.ndarray,
    chances: np.ndarray,
    labels: np.ndarray,
) -> int:
    """Write the skeleton rows of sessions ``first`` to ``last - 1``; return the number of bytes.

    Args:
        seed: Of the world.
        salt: Of the split.
        first: The first session.
        last: The session to stop before.
        starts: (S + 1,) first row of each session.
        sizes: Number of levels of each field.
        bases: The id of each field's level 0.
        bias: (click bias, purchase bias, click scale, purchase scale).
        dirty: Share of rows that show a purchase without a click.
        out: Where to write; it must have room.
        chances: (rows, 2) set to the planted logits of a click and of a purchase given a click.
        labels: (rows, 2) set to what was drawn.
    """
    begin, r = address_of(out), 0
    i = begin
    field, id, strength = np.empty(40, np.int64), np.empty(40, np.int64), np.empty(40, np.int64)
    levels = np.empty(PROFILE.shape[0], np.int64)
    for session in range(first, last):
        user = _user_of(seed, salt, session, sizes[F101])
        session_key = mix(np.uint64(seed) * _A + np.uint64(2 * session + salt + 1) * _B)
        own_click, own_buy = 0.0, 0.0
        for p in range(PROFILE.shape[0]):
            levels[p] = _profile(seed, user, p)
            if levels[p] >= 0:
                own_click += CLICK_WEIGHTS[p] * _effect(seed, p, levels[p])
                own_buy += BUY_WEIGHTS[p] * _effect(seed, 20 + p, levels[p])
        for number in range(starts[session], starts[session + 1]):
            row = 2 * number + salt
            item = _zipf(_uniform(seed, _ITEM, row, 0), sizes[F205])
            category = _zipf(_uniform(seed, _LEVEL, item, 30), sizes[F206])
            shop = _zipf(_uniform(seed, _LEVEL, item, 31), sizes[F207])
            brand = _zipf(_uniform(seed, _LEVEL, item, 32), sizes[F216])
            scenario = int(SCENARIOS * _uniform(seed, _ITEM, row, 1) ** 2)
            n = 0
            field[n], id[n], strength[n] = F205, item, 0
            field[n + 1], id[n + 1], strength[n + 1] = F206, category, 0
            field[n + 2], id[n + 2], strength[n + 2] = F207, shop, 0
            field[n + 3], id[n + 3], strength[n + 3] = F301, scenario, 0
            n = 4
            has_brand = _uniform(seed, _PRESENT, item, 40) >= 0.1
            if has_brand:
                field[n], id[n], strength[n] = F216, brand, 0
                n += 1
            intents = 1 + int(7 * _uniform(seed, _COUNT, item, 41))
            for k in range(intents):
                level = _zipf(_uniform(seed, _LEVEL, item, 50 + k), sizes[F210])
                field[n], id[n], strength[n] = F210, level, 0
                n += 1
                u = _uniform(seed, _PRESENT, row, 60 + k)
                if u < 0.2:
                    field[n], id[n], strength[n] = F853, level, 1 + int(u * 5 * (STRENGTHS - 1))
                    n += 1
            z = own_click + 0.6 * _effect(seed, 40, category) + 0.3 * _effect(seed, 41, item)
            z += 0.3 * _effect(seed, 42, shop) + 0.3 * _effect(seed, 43, scenario)
            y = own_buy + 0.4 * _effect(seed, 50, category) + 0.2 * _effect(seed, 51, item)
            y += 0.3 * _effect(seed, 52, shop) + 0.3 * _effect(seed, 53, scenario)
            if has_brand:
                z += 0.2 * _effect(seed, 44, brand)
                y += 0.3 * _effect(seed, 54, brand)
            if levels[3] >= 0:  # tastes differ by age
                taste = 0.0
                for k in range(3):
                    taste += _effect(seed, 60 + k, levels[3]) * _effect(seed, 70 + k, category)
                z += 0.15 * taste
                y += 0.1 * taste
            for c in range(3):
                u = _uniform(seed, _PRESENT, row, 70 + c)
                cross = F508 if c == 0 else (F509 if c == 1 else F702)
                level = category if c == 0 else (shop if c == 1 else brand)
                if u < 0.3 and (c < 2 or has_brand):
                    k = int(u * 20 * (STRENGTHS - 1)) % (STRENGTHS - 1) + 1
                    field[n], id[n], strength[n] = cross, level, k
                    n += 1
                    z += 0.3
                    y += 0.3 + 0.01 * k
            y += 0.1 * (z - own_click)
            chances[r, 0] = bias[0] + bias[2] * z
            chances[r, 1] = bias[1] + bias[3] * y
            click = _uniform(seed, _LABEL, row, 0) < 1.0 / (1.0 + math.exp(-chances[r, 0]))
            buy = click and _uniform(seed, _LABEL, row, 1) < 1.0 / (1.0 + math.exp(-chances[r, 1]))
            if _uniform(seed, _LABEL, row, 2) < dirty:
                click, buy = False, True
            labels[r, 0], labels[r, 1] = click, buy
            r += 1
            i = _integer(i, number + 1)
            put_byte(i, 44)
            put_byte(i + 1, 48 + click)
            put_byte(i + 2, 44)
            put_byte(i + 3, 48 + buy)
            put_byte(i + 4, 44)
            i = _hex(i + 5, session_key)
            put_byte(i, 44)
            i = _integer(i + 1, n)
            put_byte(i, 44)
            i += 1
            turn = int(_uniform(seed, _ORDER, row, 0) * n)
            for k in range(n):
                f = (k + turn) % n
                i = _feature(i, field[f], bases[field[f]] + id[f], strength[f])
            put_byte(i - 1, 10)
    return i - begin
