"""Crops around bright voxels of the target: the share asked for, the right places, and the same for all."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.data.patches.foreground import bright_voxels
from repmode_cl.data.sample import Sample

SHAPE = (8, 40, 40)
PATCH = (4, 8, 8)
BRIGHT = (5, 30, 12)

#: Of the crops of a version without foreground.
PINNED = "8cc3bd8eae1b4dc0a208100464027dbd1667660f6ebd14946c858eeda068f8d6"


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    """Make a sample whose signal counts its voxels and whose target has one bright voxel."""
    signal = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    target = np.zeros(SHAPE, np.float16)
    target[BRIGHT] = 9
    np.save(tmp_path / "signal.npy", signal)
    np.save(tmp_path / "target.npy", target)
    return Sample(
        structure="dna", split="train", row=2, image_id="a", signal=tmp_path / "signal.npy",
        target=tmp_path / "target.npy", mask=None, shape=SHAPE, group="a",
    )  # fmt: skip


def cut(sample: Sample, foreground: float, length: int = 200, **options) -> PatchDataset:
    return PatchDataset([sample], patch=PATCH, seed=5, length=length, foreground=foreground, **options)


def test_without_it_crops_have_the_bits_they_always_had(sample):
    found = hashlib.sha256()
    for signal, target in (cut(sample, 0.0)[k] for k in range(40)):
        found.update(signal.numpy().tobytes() + target.numpy().tobytes())
    assert found.hexdigest() == PINNED


def test_a_share_of_the_crops_is_centred_and_the_others_stay(sample):
    plain, mixed = cut(sample, 0.0, flips=False), cut(sample, 0.25, flips=False)
    centred = 0
    for k in range(200):
        (signal, target), (usual, _) = mixed[k], plain[k]
        if (signal == usual).all():
            continue
        centred += 1
        assert target[0, 2, 4, 4] == 9, "the bright voxel is in the middle"
        start = np.unravel_index(int(signal[0, 0, 0, 0]), SHAPE)
        assert tuple(start) == (BRIGHT[0] - 2, BRIGHT[1] - 4, BRIGHT[2] - 4)
    assert 30 <= centred <= 70
    again = pickle.loads(pickle.dumps(mixed))
    assert all((again[k][0] == mixed[k][0]).all() for k in (3, 50, 199)), "a function of only the item"


@pytest.mark.parametrize(("place", "start"), [((0, 0, 39), (0, 0, 32)), ((7, 39, 1), (4, 32, 0))])
def test_a_crop_stays_inside_the_volume(sample, place, start):
    target = np.zeros(SHAPE, np.float16)
    target[place] = 9
    np.save(sample.target, target)
    signal, bright = cut(sample, 1.0, flips=False)[0]
    assert np.unravel_index(int(signal[0, 0, 0, 0]), SHAPE) == start
    assert bright.max() == 9


def test_nothing_bright_leaves_the_usual_crops_and_a_mask_counts(sample, tmp_path):
    mask = np.ones(SHAPE, bool)
    mask[BRIGHT] = False
    np.save(tmp_path / "mask.npy", mask)
    masked = Sample(**{**vars(sample), "mask": tmp_path / "mask.npy"})
    for k in range(10):
        assert (cut(masked, 1.0)[k][0] == cut(sample, 0.0)[k][0]).all()


def test_a_patch_larger_than_the_volume_is_padded_as_ever(sample):
    large = {"patch": (12, 8, 8), "seed": 5, "length": 4, "flips": False}
    found = PatchDataset([sample], foreground=1.0, **large)[0]
    assert found[0].shape == (1, 12, 8, 8)
    assert found[1][0].max() == 9


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_a_share(sample, share):
    with pytest.raises(ValueError, match="share of the crops"):
        cut(sample, share)


@pytest.mark.parametrize("most", [1, 7, 100, 5000])
def test_places_are_spread_over_all_that_is_bright(most):
    volume = np.random.default_rng(0).normal(size=(9, 20, 20)).astype(np.float16)
    every = np.argwhere(volume > 1)
    step = -(-len(every) // most)
    assert np.array_equal(bright_voxels(volume, limit=most), every[::step])
    assert len(bright_voxels(volume, limit=most)) <= most
    mask = np.random.default_rng(1).random(volume.shape) < 0.5
    assert np.array_equal(bright_voxels(volume, mask, 10**6), np.argwhere((volume > 1) & mask))
    assert bright_voxels(np.zeros((3, 4, 5), np.float16)).shape == (0, 3)
