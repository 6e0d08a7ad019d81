"""Counting and numbering against a dictionary, for ids that lie together and ids that do not."""

from collections import Counter as Dictionary

import numpy as np
import pytest

from mtlkit.data.ali_ccp import vocabulary as module
from mtlkit.data.ali_ccp.hashing import MAX_ID
from mtlkit.data.ali_ccp.vocabulary import Counter, Vocabulary, spread_fields

FIELDS = (3, 13, 22)


def drawn(spread: int, rows: int = 4000):
    rng = np.random.default_rng(spread)
    ids = rng.integers(-1, 300, (rows, len(FIELDS))) * np.array([1, spread, 7])
    return np.where(ids < 0, -1, ids + 5).astype(np.int32), rng.integers(0, 3, rows)


def ranges_of(ids):
    return {
        field: (int(ids[:, j][ids[:, j] >= 0].min()), int(ids[:, j].max()))
        for j, field in enumerate(FIELDS)
    }


@pytest.mark.parametrize("direct", [0, 10_000, 1 << 26])
@pytest.mark.parametrize("order", ["raw", "seen"])
@pytest.mark.parametrize("min_count", [1, 12])
def test_as_a_dictionary_counts_and_numbers(monkeypatch, direct, order, min_count):
    """With no room for direct cells, with room for some fields, with room for all."""
    monkeypatch.setattr(module, "DIRECT_CELLS", direct)
    ids, times = drawn(4_000_000)
    ranges = ranges_of(ids)
    listed = {field: np.unique(ids[:, FIELDS.index(field)]) for field in spread_fields(ranges)}
    listed = {field: values[values >= 0] for field, values in listed.items()}
    counter = Counter(ranges, listed)
    for piece in np.array_split(np.arange(len(ids)), 7):
        counter.rows(FIELDS, ids[piece], times[piece])
    vocabulary = Vocabulary(counter, (*FIELDS, 9), min_count, order)
    assert vocabulary.raw[9].tolist() == [-1]
    expected = np.zeros_like(ids)
    for j, field in enumerate(FIELDS):
        counts = Dictionary()
        for id, n in zip(ids[:, j].tolist(), times.tolist(), strict=True):
            if id >= 0 and n:
                counts[id] += n
        kept = [id for id, n in counts.items() if n >= min_count]
        kept = sorted(kept) if order == "raw" else kept
        assert vocabulary.raw[field].tolist() == [-1, *kept]
        numbers = {id: number for number, id in enumerate(kept, 1)}
        expected[:, j] = [numbers.get(id, 0) for id in ids[:, j].tolist()]
        np.testing.assert_array_equal(
            vocabulary.bag(field, ids[:, j].clip(0)) * (ids[:, j] >= 0), expected[:, j]
        )
    np.testing.assert_array_equal(vocabulary.rows(FIELDS, ids), expected)
    beyond = np.array([[0, MAX_ID, 4], [1, 2, MAX_ID]], np.int32)
    assert not vocabulary.rows(FIELDS, beyond).any(), "ids that train lacks are unknown"


def test_bags_count_as_often_as_their_rows():
    ids = np.arange(150, dtype=np.int32)
    counter = Counter({2: (0, 149)}, {})
    counter.bag(2, ids[::-1].copy(), np.array([70, 0, 80]), np.array([2, 5, 1]))
    assert Vocabulary(counter, (2,), 2, "seen").raw[2][1:].tolist() == ids[::-1][:70].tolist()
