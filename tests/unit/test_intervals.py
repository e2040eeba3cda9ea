"""Calibrated intervals: the conformal factor, its coverage, and the spread of flipped predictions."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repmode_cl.data.sample import Sample
from repmode_cl.inference.flips import flip_axes, flip_mean_and_spread, with_spread
from repmode_cl.inference.intervals import (
    LEVELS,
    calibrate,
    conformal_factor,
    coverage_band,
    image_coverage,
    voxel_scores,
)
from repmode_cl.inference.sliding_window import sliding_window, sliding_windows
from repmode_cl.nn import Architecture, RepModeUNet, fold_norms
from repmode_cl.nn.plain_unet import PlainUNet
from repmode_cl.store.reliability import Calibration
from repmode_cl.workflows.reliability import measure_reliability


def naive_factor(images: list[list[float]], level: Fraction) -> float:
    """The definition, by exact fractions and a search through all scores."""
    wanted = level + (level - Fraction(1, 2)) / len(images)
    for score in sorted(one for image in images for one in image):
        share = sum(Fraction(sum(v <= score for v in image), len(image)) for image in images) / len(images)
        if share >= wanted:
            return score
    return max(one for image in images for one in image)


@given(
    st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=7), min_size=1, max_size=12),
    st.sampled_from(["0.5", "0.8", "0.9", "0.95"]),
)
@settings(max_examples=40, deadline=None)
def test_the_factor_is_that_of_its_definition(images: list[list[int]], level: str) -> None:
    scores = [np.sort(np.array(image, np.float64)) for image in images]
    expected = naive_factor([[float(v) for v in image] for image in images], Fraction(level))
    assert conformal_factor(scores, float(level)) == expected


@pytest.mark.parametrize("between", [0.0, 0.5, 3.0])
def test_exchangeable_images_are_covered_as_stated(between: float) -> None:
    """However much images differ from each other, the expected coverage of the next is within the stated bounds."""
    random = np.random.default_rng(1)
    count, voxels, trials = 19, 20, 400
    coverage = []
    for _ in range(trials):
        scale = np.exp(between * random.normal(size=(count + 1, 1)))
        scores = np.abs(random.normal(size=(count + 1, voxels))) * scale
        factor = conformal_factor(list(np.sort(scores[:count], axis=1)), 0.9)
        coverage.append(np.mean(scores[count] <= factor))
    low, high = coverage_band(count, 0.9)
    assert (low, high) == (0.875, 0.925)
    error = 3 * np.std(coverage) / np.sqrt(trials)
    # A step of the scores' distribution is one voxel of one image.
    assert low - error <= np.mean(coverage) <= high + error + 1 / voxels / (count + 1)


def test_flips_are_averaged_as_a_plain_loop_does_bit_for_bit() -> None:
    network = fold_norms(PlainUNet(2, 1, 3, seed=1).eval())
    x = torch.randn((2, 1, 4, 6, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, spread = flip_mean_and_spread(network, x, ("z", "y", "x"))
        predictions = []
        for axes in [(), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)]:
            flipped = torch.from_numpy(np.flip(x.numpy(), axes).copy())
            predictions.append(np.flip(network(flipped).numpy(), axes))
    total = np.zeros_like(predictions[0])
    for prediction in predictions:
        total = total + prediction
    naive = total / np.float32(8)
    squares = np.zeros_like(naive)
    for prediction in predictions:
        squares = squares + (prediction - naive) ** 2
    np.testing.assert_array_equal(mean.numpy(), naive)
    # The root is torch's: those of vectorised code differ by a last bit.
    assert torch.equal(spread, torch.from_numpy(squares / np.float32(8)).sqrt())
    assert spread.min() > 0
    assert [len(flip_axes(flips)) for flips in ((), ("y",), ("y", "x"), tuple("zyx"))] == [1, 2, 4, 8]


def test_the_spread_costs_no_second_prediction_and_changes_no_bit() -> None:
    network = fold_norms(PlainUNet(2, 1, 3, seed=1).eval())
    calls = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return network(x)

    volume = np.random.default_rng(0).normal(size=(6, 12, 10)).astype(np.float32)
    how = {"window": (4, 8, 8), "batch_size": 4}
    plain = sliding_window(network, volume, **how)
    prediction, spread = sliding_windows(with_spread(counted, ("y", "x")), volume, **how)
    np.testing.assert_array_equal(prediction, plain)
    # 2 x 2 x 2 windows in batches of 4, each flipped in 4 ways.
    assert calls == [4] * 2 * 4
    assert spread.shape == volume.shape
    assert spread.min() > 0
    [_, none] = sliding_windows(with_spread(network, ()), volume, **how)
    assert not none.any()


def test_calibrated_intervals_cover_the_images_that_they_were_calibrated_on() -> None:
    random = np.random.default_rng(2)
    shape = (4, 10, 10)
    images = []
    for _ in range(30):
        spread = random.uniform(0.1, 1, shape).astype(np.float32)
        prediction = random.normal(size=shape).astype(np.float32)
        images.append((prediction, spread, prediction + spread * random.normal(size=shape)))
    calibration = calibrate(
        (voxel_scores(*image) for image in images), split="test", flips=("y", "x"), floor=0.1
    )
    assert calibration is not None
    assert calibration.claims
    assert [level for level, _ in calibration.factors] == list(LEVELS)
    covered = [image_coverage(*image, calibration) for image in images]
    assert np.mean([one.coverage for one in covered]) == pytest.approx(0.9 + 0.4 / 30, abs=1e-3)
    assert covered[0].width == pytest.approx(
        2 * calibration.factor(0.9) * (images[0][1].mean(dtype=np.float64) + 0.1), rel=1e-5
    )
    # Half of the image is masked: only the other half counts.
    mask = np.zeros(shape, bool)
    mask[:2] = True
    half = image_coverage(*images[0], calibration, mask=mask)
    assert half == image_coverage(*(part[:2] for part in images[0]), calibration)
    assert len(voxel_scores(*images[0], mask)) == mask.sum()
    assert calibrate([], split="test", flips=()) is None


def test_few_images_claim_nothing() -> None:
    scores = [np.arange(1.0, 11.0)] * 18
    few, enough = (calibrate(s, split="val", flips=()) for s in (scores, [*scores, scores[0]]))
    assert few is not None
    assert enough is not None
    assert (few.claims, enough.claims) == (False, True)
    assert coverage_band(3, 0.9) == (0.775, 1.0)
    # More than all voxels cannot be within: the largest score is taken.
    assert conformal_factor([np.array([1.0, 2.0])], 0.9) == 2.0


def test_voxels_of_large_images_are_of_all_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros, target = np.zeros((4, 20, 30), np.float32), np.zeros((4, 20, 30))
    target[:, :, 0] = 5.0
    assert (voxel_scores(zeros, zeros, target) > 0).mean() == pytest.approx(1 / 30)
    for most in (100, 240, 400, 800):
        monkeypatch.setattr("repmode_cl.inference.intervals._MAX_VOXELS", most)
        scores = voxel_scores(zeros, zeros, target)
        # 2400 voxels: every 24th, 10th, 6th or 3rd would be of 5, 3, 5 or 10 of the 30 columns.
        assert most / 3 < len(scores) <= most
        assert (scores > 0).mean() == pytest.approx(1 / 30, abs=0.02)


def test_images_of_one_group_count_as_one() -> None:
    """Regions of one field resemble each other: however many there are, the field is one of those to come."""
    near, far = np.arange(1.0, 11.0), np.arange(101.0, 111.0)
    scores = [near] * 30 + [far] * 3
    groups = ["one field"] * 30 + ["a", "b", "c"]
    grouped = calibrate(scores, split="test", flips=(), groups=groups)
    assert grouped is not None
    assert (grouped.images, grouped.groups, grouped.claims) == (33, 4, False)
    # As if each group were one image.
    assert grouped.factors == calibrate([near, far, far, far], split="test", flips=()).factors
    single = calibrate(scores, split="test", flips=())
    assert single is not None
    assert (single.groups, single.claims, single.factor(0.9)) == (33, True, 101.0)
    assert (single.factor(0.5), grouped.factor(0.5)) == (6.0, 104.0)
    assert single.factors == calibrate(scores, split="test", flips=(), groups=range(33)).factors
    # Of a group that has no voxel within its masks nothing is known.
    assert calibrate([near, near[:0]], split="test", flips=(), groups=["a", "b"]).groups == 1


def test_a_calibration_of_before_groups_were_counted_keeps_its_meaning() -> None:
    stored = {"images": 24, "split": "val", "flips": [], "floor": 0.1, "factors": [[0.9, 2.0]]}
    earlier = Calibration.from_json(stored)
    assert (earlier.groups, earlier.independent, earlier.claims) == (None, 24, True)
    assert earlier.to_json() == stored
    counted = Calibration.from_json(stored | {"groups": 2})
    assert (counted.independent, counted.claims) == (2, False)
    assert counted.to_json() == stored | {"groups": 2}


def test_calibration_images_are_of_as_many_groups_as_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = RepModeUNet(Architecture(width=2, depth=1, experts=("conv1",)), ("dna",), seed=0).eval()
    np.save(tmp_path / "image.npy", np.random.default_rng(0).normal(size=(4, 4, 4)).astype(np.float32))
    path = tmp_path / "image.npy"
    names = ["one field"] * 40 + [f"field {n}" for n in range(25)]
    samples = [
        Sample("dna", "test", n, f"{n}", path, path, None, (4, 4, 4), name) for n, name in enumerate(names)
    ]
    how = {"window": (4, 4, 4), "overlap": 0.5, "batch": 4}

    def measured(samples: list[Sample]) -> tuple[int, int | None, bool]:
        found = measure_reliability(network, "dna", samples, "test", how, False).calibration
        assert found is not None
        return found.images, found.groups, found.claims

    assert measured(samples[:24]) == (24, 1, False)
    assert measured(samples) == (27, 26, True)
    monkeypatch.setattr("repmode_cl.workflows.reliability._MAX_CALIBRATION_IMAGES", 10)
    assert measured(samples[39:]) == (9, 9, False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": 0},
        {"groups": 0},
        {"groups": 4},
        {"split": "train"},
        {"flips": ("x", "z")},
        {"flips": ("t",)},
        {"floor": 0.0},
        {"factors": ()},
        {"factors": ((0.9, 1.0), (0.8, 2.0))},
        {"factors": ((0.8, 2.0), (0.9, 1.0))},
        {"factors": ((0.9, 0.0),)},
        {"factors": ((1.0, 1.0),)},
    ],
)
def test_a_calibration_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    right = {"images": 3, "split": "val", "flips": ("z", "x"), "floor": 0.1, "factors": ((0.9, 2.0),)}
    assert Calibration.from_json(Calibration(**right).to_json()) == Calibration(**right)
    with pytest.raises(ValueError):
        Calibration(**right | wrong)
