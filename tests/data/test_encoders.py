import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlkit.data.encoders import UNKNOWN, CategoryEncoder, MinMaxScaler, QuantileBins, Standardizer

numbers = st.lists(st.integers(-50, 50).map(float), min_size=1, max_size=80).map(np.array)


@pytest.mark.parametrize("dtype", ["category", "object", "str"])
def test_levels(dtype):
    train = pd.Series(["b", "a", "?", "b", "NA"], dtype=dtype)
    levels = CategoryEncoder.fit(train, missing={"?"})
    assert levels.levels == ("NA", "a", "b")
    assert levels.vocab == 4
    ids = levels.transform(pd.Series(["a", "zzz", "?", "b", "NA", None], dtype=dtype))
    assert ids.dtype == np.int32
    assert ids.tolist() == [2, UNKNOWN, UNKNOWN, 3, 1, UNKNOWN]


def test_levels_ignore_categories_without_rows():
    column = pd.Series(pd.Categorical(["a", "a"], categories=["b", "a", "c"]))
    assert CategoryEncoder.fit(column).levels == ("a",)


def test_zscore():
    train = np.array([0.0, 3.0, 100.0, 5.0])
    scaled = Standardizer.fit(train, log=True).transform(train)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose([scaled.mean(), scaled.std()], [0, 1], atol=1e-6)
    assert np.isfinite(Standardizer.fit(train, log=True).transform(np.array([-7.0, np.nan]))).all()
    assert (Standardizer.fit(np.ones(3)).transform(np.ones(3)) == 0).all()


def test_minmax():
    scaler = MinMaxScaler.fit(np.array([2.0, 4.0, np.nan]))
    np.testing.assert_allclose(scaler.transform(np.array([2, 3, 4, 6, np.nan])), [0, 0.5, 1, 2, 0])
    assert MinMaxScaler.fit(np.full(3, 5.0)).transform(np.full(3, 5.0)).tolist() == [0, 0, 0]


@given(numbers, st.integers(2, 20))
def test_bins_are_ordered_and_none_is_empty_on_train(values, bins):
    encoder = QuantileBins.fit(values, bins)
    ids = encoder.transform(values)
    assert np.all(np.diff(encoder.edges) > 0)
    assert sorted(set(ids.tolist())) == list(range(1, encoder.vocab))
    order = np.argsort(values, kind="stable")
    assert np.all(np.diff(ids[order]) >= 0)
    assert all(len(set(ids[values == value])) == 1 for value in values)


def test_bins_follow_the_quantiles():
    counts = np.bincount(QuantileBins.fit(np.arange(1000.0), 10).transform(np.arange(1000.0)))[1:]
    assert len(counts) == 10
    assert np.abs(counts - 100).max() <= 1


def test_bins_keep_resolution_beside_a_heavy_value():
    values = np.concatenate([np.zeros(9700), np.arange(1.0, 301.0)])
    encoder = QuantileBins.fit(values, 16)
    assert encoder.vocab > 14
    assert (encoder.transform(values) == encoder.transform(np.zeros(1))).sum() == 9700


def test_bins_of_few_values_are_the_values_and_nan_is_unknown():
    encoder = QuantileBins.fit(np.array([3.0, 1.0, 1.0, 7.0, np.nan]), 64)
    assert encoder.transform(np.array([0, 1, 3, 5, 7, 9, np.nan])).tolist() == [
        1,
        1,
        2,
        2,
        3,
        3,
        UNKNOWN,
    ]
