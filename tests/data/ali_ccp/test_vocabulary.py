"""Counting and numbering against a dictionary, for ids that lie together and ids that do not."""

from collections import Counter as Dictionary

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlkit.data.ali_ccp import vocabulary as module
from mtlkit.data.ali_ccp.hashing import MAX_ID, code_of, grown, known_code
from mtlkit.data.ali_ccp.vocabulary import Counter, Vocabulary

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
    counter = Counter(ranges_of(ids))
    fields = np.array(FIELDS)
    for piece in np.array_split(np.arange(len(ids)), 7):
        counter.rows(fields, ids[piece], times[piece])
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
    chosen = np.arange(0, len(ids), 3)
    np.testing.assert_array_equal(vocabulary.rows(fields, ids, chosen), expected[chosen])
    beyond = np.array([[0, MAX_ID, 4], [1, 2, MAX_ID]], np.int32)
    assert not vocabulary.rows(fields, beyond, np.arange(2)).any(), (
        "ids that train lacks are unknown"
    )


@pytest.mark.parametrize("direct", [0, 1 << 26])
def test_tables_grow_as_needed(monkeypatch, direct):
    monkeypatch.setattr(module, "DIRECT_CELLS", direct)
    ids = np.arange(150_000, dtype=np.int32)[:, None] * 3
    counter = Counter({1: (0, int(ids.max())), 2: (0, int(ids.max()))})
    counter.rows(np.array([1]), ids, np.ones(len(ids), np.int64))
    lengths = np.array([70_000, 0, 80_000], np.int32)
    counter.bag(2, ids[::-1, 0].copy(), lengths, np.array([2, 5, 1]))
    vocabulary = Vocabulary(counter, (1, 2), 2, "seen")
    assert len(vocabulary.raw[1]) == 1
    assert vocabulary.raw[2][1:].tolist() == ids[::-1, 0][:70_000].tolist()


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 2**28 - 1), max_size=120), st.sampled_from([1, 8, 9, 2**20]))
def test_table_of_codes_holds_what_was_put_in(ids, step):
    """Ids of one place in their group, of one group, and far apart; the table is twice as large as
    it must be.
    """
    table, count = np.zeros(256, np.uint64), np.zeros(1, np.int64)
    ids = [id * step % (MAX_ID + 1) for id in ids]
    codes = {id: int(code_of(table, count, 7, id)) for id in ids}
    assert sorted(codes.values()) == list(range(1, len(codes) + 1))
    for either in (table, grown(table)):
        assert {id: int(known_code(either, 7, id)) for id in ids} == codes
        assert not any(known_code(either, 8, id) for id in ids)
