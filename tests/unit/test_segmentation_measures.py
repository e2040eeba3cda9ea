"""Overlap, objects and cells against scikit-image and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu
from skimage.measure import label, regionprops

from repmode_cl.errors import ImageError
from repmode_cl.evaluation.segmentation import (
    cell_features,
    feature_correlations,
    foreground,
    object_measures,
)


def blobs(seed: int) -> np.ndarray:
    return gaussian_filter(np.random.default_rng(seed).normal(size=(8, 24, 24)), 2)


def test_boxes_by_hand() -> None:
    truth, prediction = np.zeros((4, 10, 10)), np.zeros((4, 10, 10))
    truth[:2, 0:4, 0:4] = 1  # 32 voxels
    truth[3, 8:10, 8:10] = 1  # 4 voxels, apart
    prediction[:2, 2:6, 0:4] = 5  # 32 voxels, 16 of them shared
    found = object_measures(prediction, truth, threshold=0.5)
    assert found == {
        "dice": 2 * 16 / (36 + 32),
        "iou": 16 / (36 + 32 - 16),
        "objects_truth": 2,
        "objects_prediction": 1,
        "size_truth": 18,
        "size_prediction": 32,
    }
    assert object_measures(prediction, truth, threshold=0.5, min_size=5)["objects_truth"] == 1
    # Otsu's threshold of each finds the same, whatever their scales.
    assert object_measures(prediction, truth) == found
    assert object_measures(prediction, truth, threshold=2.0)["dice"] == 0


def test_objects_are_those_of_scikit_image() -> None:
    truth, prediction = blobs(0), blobs(0) + 0.3 * blobs(1)
    limit = 1.5 * truth.std()
    found = object_measures(prediction, truth, threshold=limit, min_size=3)
    for name, volume in (("truth", truth), ("prediction", prediction)):
        regions = regionprops(label(volume > limit, connectivity=1))
        sizes = [region.area for region in regions if region.area >= 3]
        assert found[f"objects_{name}"] == len(sizes) > 1
        assert found[f"size_{name}"] == pytest.approx(np.mean(sizes))
    dice = found["dice"]
    assert found["iou"] == pytest.approx(dice / (2 - dice))


def test_empty_segmentations() -> None:
    empty, some = np.zeros((2, 4, 4)), np.zeros((2, 4, 4))
    some[0, 0, 0] = 1
    assert not foreground(empty).any()
    both = object_measures(empty, empty)
    assert math.isnan(both["dice"])
    assert math.isnan(both["iou"])
    assert math.isnan(both["size_truth"])
    assert object_measures(empty, some)["dice"] == 0


def test_voxels_outside_the_mask_are_background() -> None:
    volume = blobs(2)
    mask = np.zeros(volume.shape, bool)
    mask[:, :12] = True
    found = foreground(volume, mask)
    assert not found[:, 12:].any()
    assert np.array_equal(found[:, :12], volume[:, :12] > threshold_otsu(volume[:, :12]))


def test_features_of_cells_are_those_of_scikit_image() -> None:
    volume = blobs(3)
    labels = np.zeros(volume.shape, np.int64)
    labels[1:4, 2:9, 2:9], labels[2:7, 12:20, 5:15] = 7, 3
    segmented = foreground(volume)
    found = cell_features(volume, segmented, labels)
    slopes = np.sqrt(sum(g * g for g in np.gradient(volume)))
    for place, number in enumerate((3, 7)):
        inside = labels == number
        assert found["area"][place] == segmented[inside].sum()
        assert found["mean"][place] == pytest.approx(volume[inside].mean())
        assert found["deviation"][place] == pytest.approx(volume[inside].std())
        assert found["texture"][place] == pytest.approx(slopes[inside].mean())
    [region] = [one for one in regionprops(labels, intensity_image=volume) if one.label == 3]
    assert found["mean"][0] == pytest.approx(region.intensity_mean)
    assert cell_features(volume[:1], segmented[:1], labels[:1])["area"] == []
    with pytest.raises(ImageError, match="labels have shape"):
        cell_features(volume, segmented, labels[:4])


def test_correlations_over_cells() -> None:
    truth = {"area": [1.0, 2.0, 4.0], "mean": [1.0, 1.0, 1.0]}
    prediction = {"area": [2.0, 3.0, 9.0], "mean": [1.0, 2.0, 3.0]}
    expected = np.corrcoef([1, 2, 4], [2, 3, 9])[0, 1]
    assert feature_correlations(truth, prediction) == {"area": pytest.approx(expected)}  # mean is constant
    two = {"area": [1.0, 2.0]}
    assert feature_correlations(two, two) == {}
