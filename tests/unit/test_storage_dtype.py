"""In which number format a prepared volume is kept, and what that costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from repmode_cl.data.preprocessing.normalisation import normalise
from repmode_cl.data.preprocessing.storage_dtype import LARGEST_ERROR, to_storage_dtype

volumes = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def error_of(volume: np.ndarray, stored: np.ndarray) -> float:
    """Return the root mean square of what storing changed."""
    return float(np.sqrt(np.square(stored.astype(np.float64) - volume.astype(np.float64)).mean()))


@settings(deadline=None, max_examples=200)
@given(volumes, st.floats(0, 100))
def test_what_is_kept_in_half_precision_is_as_near_as_promised(volume: np.ndarray, offset: float) -> None:
    for tried in (volume, volume / 2.0**88, (volume / 2.0**100 + offset).astype(np.float32)):
        stored = to_storage_dtype(tried)
        assert stored.shape == tried.shape
        if stored.dtype == np.float16:
            assert np.isfinite(stored).all()
            deviation = float(tried.astype(np.float64).std())
            assert error_of(tried, stored) <= LARGEST_ERROR * deviation * (1 + 1e-9)
        else:
            assert stored.dtype == np.float32
            assert np.array_equal(stored, tried)


@settings(deadline=None, max_examples=200)
@given(volumes)
def test_every_z_score_is_kept_in_half_precision(volume: np.ndarray) -> None:
    scaled = volume.astype(np.float64) / max(1e-30, float(np.abs(volume).max()))
    if float(scaled.std()) < 1e-3:
        return
    assert to_storage_dtype(normalise(scaled)).dtype == np.float16


def test_one_bright_voxel_is_kept_to_its_own_precision() -> None:
    volume = np.random.default_rng(0).normal(100, 1, (16, 64, 64))
    volume[3, 4, 5] = 1e6
    score = normalise(volume)
    assert score.max() > 200
    stored = to_storage_dtype(score)
    assert stored.dtype == np.float16
    np.testing.assert_allclose(stored, score, rtol=2**-11, atol=2**-25)


@pytest.mark.parametrize(
    "volume", [np.full((2, 3, 4), 70000.0), 3000 + np.arange(24.0).reshape(2, 3, 4) / 24]
)
def test_what_half_precision_would_spoil_is_not_kept_in_it(volume: np.ndarray) -> None:
    stored = to_storage_dtype(volume.astype(np.float32))
    assert stored.dtype == np.float32
    assert np.array_equal(stored, volume.astype(np.float32))


def test_masks_stay_masks() -> None:
    mask = np.zeros((2, 3, 4), bool)
    assert to_storage_dtype(mask) is mask


def test_metrics_on_what_is_stored_are_those_of_the_volume() -> None:
    random = np.random.default_rng(0)
    volume = normalise(random.gamma(0.3, size=(16, 64, 64)))
    prediction = (0.8 * volume + 0.4 * random.standard_normal(volume.shape)).astype(np.float32)
    exact = np.square(prediction.astype(np.float64) - volume).mean()
    stored = np.square(prediction.astype(np.float64) - to_storage_dtype(volume)).mean()
    assert abs(stored - exact) < 2e-6
