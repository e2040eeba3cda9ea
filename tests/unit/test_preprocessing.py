"""Preprocessing as configuration: percentiles, constant images, resampling, and what a model keeps of it."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from repmode_cl.config.load import load_config
from repmode_cl.config.schema import PreprocessingConfig
from repmode_cl.data.manifest import Manifest, Row
from repmode_cl.data.preprocessing.normalisation import (
    ZScore,
    normalise,
    streaming_percentiles,
    strips,
    z_score,
)
from repmode_cl.data.preprocessing.prepare import prepare
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.preprocessing.resample_box import resample_box, resample_tiles
from repmode_cl.data.preprocessing.resampling import blur_radius, resample, resample_to
from repmode_cl.data.voxel_size_check import voxel_size_record
from repmode_cl.errors import ConfigError, ImageError, ManifestError, ModelError
from repmode_cl.inference.predict_file import predict_file
from repmode_cl.model import Model
from repmode_cl.nn import Architecture, RepModeUNet

NUMBERS = st.one_of(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-3.0, 3.0, width=32)),
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    hnp.arrays(np.uint16, st.integers(1, 60)),
    hnp.arrays(np.int32, st.integers(1, 60), elements=st.integers(-(2**20), 2**20)),
    hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e3, 1e3)),
)


@settings(deadline=None, max_examples=60)
@given(values=NUMBERS, which=st.tuples(st.floats(0, 100), st.floats(0, 100)), cut=st.integers(1, 60))
def test_percentiles_are_those_of_the_whole_however_it_is_cut(values, which, cut):
    found = streaming_percentiles(
        lambda: (values[k : k + cut] for k in range(0, len(values), cut)), len(values), which
    )
    ranks = [int(one / 100 * (len(values) - 1)) for one in which]
    assert found == [float(np.sort(values.astype(np.float32))[rank]) for rank in ranks]


def test_percentiles_of_a_volume_larger_than_what_is_counted_at_once(monkeypatch):
    monkeypatch.setattr("repmode_cl.data.preprocessing.normalisation._CHUNK", 1000)
    volume = np.random.default_rng(0).normal(size=(3, 40, 50)).astype(np.float32)
    wanted = [float(np.percentile(volume, one, method="lower")) for one in (0, 0.1, 50, 99.9, 100)]
    assert streaming_percentiles(lambda: iter(volume), volume.size, (0, 0.1, 50, 99.9, 100)) == wanted


def test_a_hot_pixel_does_not_change_percentiles():
    volume = np.random.default_rng(0).normal(100, 10, (6, 30, 30)).astype(np.float32)
    hot = volume.copy()
    hot[2, 3, 4] = 1e6
    plain, robust = normalise(hot), normalise(hot, percentiles=(1, 99))
    assert plain.std() == pytest.approx(1, rel=1e-5)
    assert np.delete(plain.ravel(), plain.argmax()).std() < 0.01  # what the pixel leaves of the image
    ordered = np.sort(hot.ravel())
    low, high = (ordered[int(q / 100 * (hot.size - 1))] for q in (1, 99))
    clipped = np.clip(hot.astype(np.float64), low, high)
    np.testing.assert_allclose(robust, (hot - clipped.mean()) / clipped.std(), rtol=1e-5, atol=1e-5)
    assert robust.max() > 1e4, "the voxel itself is not clipped: nothing is lost"
    np.testing.assert_allclose(
        normalise(volume, percentiles=(0, 100)), normalise(volume), rtol=1e-5, atol=1e-6
    )


def test_piece_by_piece_gives_the_bits_of_the_whole():
    volume = np.random.default_rng(1).integers(0, 4000, (5, 20, 30)).astype(np.uint16)
    score = z_score(lambda: (volume[box] for box in strips(volume.shape)), volume.size, percentiles=(2, 98))
    assert np.array_equal(score(volume), normalise(volume, percentiles=(2, 98)))


@pytest.mark.parametrize("scale", [1e300, 1.7e308, 1e-300])
def test_values_whose_squares_no_float64_holds_are_refused(scale):
    volume = np.random.default_rng(0).uniform(0, 1, (4, 16, 16)) * scale
    volume[0, 2, 3] = scale
    with pytest.raises(ImageError, match=re.escape(f"to {scale:g}") + ".*by a constant"):
        normalise(volume)
    np.testing.assert_allclose(normalise(volume / scale), normalise(volume / scale * 1e100), atol=1e-6)


@pytest.mark.parametrize("value", [1e300, -1e60])
def test_values_far_from_a_given_scale_are_refused(value):
    volume = np.random.default_rng(0).normal(size=(4, 8, 8))
    score = ZScore(0.0, 1.0)
    assert np.isfinite(normalise(volume, given=score)).all()
    volume[0, 0, 0] = value
    with pytest.raises(ImageError, match=re.escape(f"{value:g}")):
        normalise(volume, given=score)


def test_constant_images_are_refused_or_zero():
    constant = np.full((3, 4, 5), 0.1, np.float32)  # which no sum of it is a multiple of
    with pytest.raises(ImageError, match="constant image has no z-score"):
        normalise(constant)
    for percentiles in (None, (1.0, 99.0)):
        zeros = normalise(constant, empty="zeros", percentiles=percentiles)
        assert zeros.dtype == np.float32
        assert not zeros.any()
    with pytest.raises(ImageError, match="empty"):
        normalise(np.empty((0, 4, 5), np.float32), empty="zeros")
    with pytest.raises(ImageError, match="NaN or infinite"):
        normalise(np.full((3, 4, 5), np.nan, np.float32), empty="zeros")
    sparse = np.zeros((10, 10, 10), np.float32)
    sparse[1, 2, 3] = 7
    with pytest.raises(ImageError, match=r"percentile 1 and percentile 99 of its voxels are both 0.*z_score"):
        normalise(sparse, percentiles=(1.0, 99.0), empty="zeros")


def test_a_blur_first_removes_the_pattern_that_leaving_out_voxels_makes():
    stripes = np.zeros((4, 40, 40), np.float32)
    stripes[:, :, ::2] = 1  # finer than the new voxels, and in no step with them
    shape = (4, 40, 14)
    inner = (slice(None), slice(None), slice(4, -4))
    pattern = resample_to(stripes, shape)[inner].std()
    # A Gaussian of a deviation of (40/14 - 1)/2 voxels leaves 3 % of the finest stripes.
    assert resample_to(stripes, shape, anti_alias=True)[inner].std() < 0.05 * pattern
    assert pattern > 0.2
    blurred = ndimage.gaussian_filter1d(stripes, (40 / 14 - 1) / 2, axis=2, mode="nearest", truncate=4.0)
    assert np.array_equal(resample_to(stripes, shape, 3, anti_alias=True), resample_to(blurred, shape, 3))
    assert np.array_equal(
        resample_to(stripes, (9, 80, 40), 1, anti_alias=True), resample_to(stripes, (9, 80, 40))
    )
    mask = stripes > 0
    assert np.array_equal(resample_to(mask, shape, anti_alias=True), resample_to(mask, shape))


SIZES = st.tuples(st.integers(1, 9), st.integers(2, 60), st.integers(2, 70))


@settings(deadline=None, max_examples=60)
@given(size=SIZES, wanted=SIZES, order=st.integers(0, 3), memory=st.sampled_from([1 << 14, 1 << 17, 1 << 22]))
def test_boxes_are_resampled_as_the_whole_is_with_a_blur(size, wanted, order, memory):
    volume = np.random.default_rng(0).integers(0, 255, size).astype(np.uint8)
    if size == wanted:
        return
    whole, found = resample_to(volume, wanted, order, anti_alias=True), np.full(wanted, np.nan, np.float32)
    for box in resample_tiles(size, wanted, order, memory, anti_alias=True):
        found[box] = resample_box(lambda box: volume[box], size, wanted, box, order, anti_alias=True)
    # The whole is blurred in float32, axis after axis.
    np.testing.assert_allclose(found, whole, atol=2e-3 if order else 1e-3)


def test_a_blurred_box_reads_only_what_it_needs():
    seen = []
    volume = np.zeros((8, 400, 400), np.float32)

    def read(box):
        seen.append([part.stop - part.start for part in box])
        return volume[box]

    box = (slice(2, 3), slice(40, 50), slice(40, 50))
    resample_box(read, volume.shape, (8, 100, 100), box, 1, anti_alias=True)
    assert blur_radius(400, 100) == 6
    assert seen == [[1, 40 + 2 * 6 + 1, 40 + 2 * 6 + 1]] or max(seen[0]) <= 40 + 2 * 6 + 4


# -- settings -------------------------------------------------------------------------------------------------


def test_the_paper_resamples_only_y_and_x_with_cubic_splines():
    own = load_config("paper").data.preprocessing
    assert (own.axes, own.order, own.normalise) == ("xy", 3, "before_resampling")
    recipe = PreprocessingRecipe.of(own)
    assert recipe.target_voxel((0.4, 0.108, 0.108), (0.29, 0.29, 0.29)) == (0.4, 0.29, 0.29)
    assert recipe.grid((32, 600, 900), (0.4, 0.108, 0.108), (0.29, 0.29, 0.29)) == (32, 223, 335)
    assert PreprocessingRecipe().grid((32, 600, 900), (0.4, 0.108, 0.108), (0.29, 0.29, 0.29)) == (
        44,
        223,
        335,
    )
    assert recipe.grid((32, 600, 900), None, (0.29, 0.29, 0.29)) == (32, 600, 900)
    assert recipe.grid((32, 600, 900), (0.4, 0.108, 0.108), None) == (32, 600, 900)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"normalise": "percentiles", "percentiles": [90, 10]}, "lower, upper"),
        ({"normalise": "percentiles", "percentiles": [5, 5]}, "lower, upper"),
        ({"normalise": "percentiles", "percentiles": [-1, 99]}, "percentiles"),
        ({"normalise": "percentiles", "percentiles": [1, 101]}, "percentiles"),
        ({"percentiles": [1, 99]}, "normalise is z_score"),
        ({"normalise": "min_max"}, "z_score"),
        ({"axes": "z"}, "xy"),
        ({"empty": "skip"}, "zeros"),
        ({"order": 4}, "3"),
    ],
)
def test_settings_that_make_no_sense_are_refused(keys, message):
    overrides = [f"data.preprocessing.{key}={value}" for key, value in keys.items()]
    with pytest.raises(ConfigError, match=message):
        load_config("quickstart", overrides)


EVERY = [
    {},
    {"order": 3, "axes": "xy"},
    {"anti_alias": True, "empty": "zeros"},
    {"normalise": "percentiles"},
    {"normalise": "percentiles", "percentiles": (0.0, 99.0), "order": 0},
]


@pytest.mark.parametrize("keys", EVERY)
def test_a_model_gives_back_what_was_configured(keys, tmp_path):
    config = PreprocessingConfig(**keys)
    recipe = PreprocessingRecipe.of(config)
    assert PreprocessingRecipe.from_json(recipe.to_json()) == recipe
    assert PreprocessingConfig(voxel_size=config.voxel_size, **recipe.to_settings()) == config
    network = RepModeUNet(Architecture(width=1, depth=1, experts=("conv1",)), ("dna",), seed=0)
    parts = {"voxel_size": (0.29, 0.29, 0.29), "inference": {"window": [4, 4, 4], "overlap": 0.5, "batch": 1}}
    path = Model.create(tmp_path / "model", network, preprocessing=recipe.to_json(), **parts).path
    assert PreprocessingRecipe.from_json(Model.open(path).preprocessing) == recipe
    # An older program must not open what it would prepare otherwise.
    unusual = set(keys) - {"order"}
    assert f'"version": {2 if unusual else 1}' in (path / "model.json").read_text(encoding="utf-8")


def test_earlier_models_mean_what_they_meant():
    assert PreprocessingRecipe.of(PreprocessingConfig()).to_json() == {
        "normalisation": "z-score per image",
        "order": 1,
    }
    assert PreprocessingRecipe.from_json(
        {"normalisation": "z-score per image", "order": 3}
    ) == PreprocessingRecipe(order=3)
    assert PreprocessingRecipe.from_json({"order": 0}) == PreprocessingRecipe(order=0)
    assert PreprocessingRecipe.from_json({}) == PreprocessingRecipe()


@pytest.mark.parametrize(
    "document",
    [
        {"order": 7},
        {"order": True},
        {"order": "1"},
        {"normalisation": "min-max"},
        {"normalisation": "z-score between percentiles"},
        {"percentiles": [1, 99]},
        {"normalisation": "z-score between percentiles", "percentiles": [99, 1]},
        {"normalisation": "z-score between percentiles", "percentiles": ["1", "99"]},
        {"normalisation": "z-score between percentiles", "percentiles": 5},
        {"axes": "yx"},
        {"axes": ["xy"]},
        {"anti_alias": 1},
        {"empty": None},
        {"gamma": 2.2},
    ],
)
def test_a_recipe_that_is_not_known_is_refused(document):
    with pytest.raises(ModelError, match="newer repmode-cl"):
        PreprocessingRecipe.from_json(document)


# -- preparing ------------------------------------------------------------------------------------------------


@pytest.fixture
def row(tmp_path: Path) -> Row:
    volume = (np.arange(4 * 10 * 12).reshape(4, 10, 12) ** 2 % 251).astype(np.uint16)
    np.save(tmp_path / "light.npy", volume)
    np.save(tmp_path / "dna.npy", volume[::-1].copy())
    np.save(tmp_path / "mask.npy", (volume > 20).astype(np.uint8))
    return Row(
        2, "dna", tmp_path / "light.npy", None, tmp_path / "dna.npy", None,
        mask=tmp_path / "mask.npy", voxel_size=(0.58, 0.1, 0.1),
    )  # fmt: skip


def run(row: Row, split: str = "train", **keys):
    manifest = Manifest(row.signal.parent / "manifest.csv", (row,))
    return prepare(manifest, {2: split}, PreprocessingConfig(**keys), row.signal.parent / "cache")[0]


def test_default_settings_find_what_earlier_versions_cached(row):
    keys = {
        "2842cbf93e64197355102f82ff4734606bd6f194f97d49cf33eb2c0a6164a858": run(row).signal,
        "ac8fcbc16b205cd28191d507d60591f2fadd86454263dfe3ae2b16a2c97cb8e8": run(row).mask,
        "2cd35773f851845c5e2623b28b884caa969298bd68ee524067c23df9989d3b54": run(row, voxel_size=None).signal,
        "039d4279d3a17923be58c6d32bfbada3400ccf81f5d04a6e45c64ce4ab7401ed": run(row, order=3).signal,
    }
    assert [path.stem for path in keys.values()] == list(keys)


def test_each_setting_is_applied_and_makes_a_volume_of_its_own(row):
    volume = np.load(row.signal)
    size, to = (0.58, 0.1, 0.1), (0.29, 0.29, 0.29)
    wanted = {
        (): normalise(resample(volume, size, to)),
        (("axes", "xy"),): normalise(resample(volume, size, (0.58, 0.29, 0.29))),
        (("anti_alias", True),): normalise(resample(volume, size, to, anti_alias=True)),
        (("normalise", "percentiles"), ("percentiles", (10.0, 90.0))): normalise(
            resample(volume, size, to), percentiles=(10, 90)
        ),
        (("empty", "zeros"),): normalise(resample(volume, size, to)),
    }
    paths, masks = set(), set()
    for keys, expected in wanted.items():
        sample = run(row, **dict(keys))
        found = np.load(sample.signal)
        assert found.shape == sample.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=2**-10, atol=1e-3)
        assert sample.voxel_size == size
        paths.add(sample.signal)
        masks.add(sample.mask)
    assert len(paths) == 5
    assert len(masks) == 2, "a mask depends only on its grid"
    again = run(row, voxel_size=None, anti_alias=True)
    assert again.signal == run(row, voxel_size=None).signal, "what is not resampled is not blurred"


def test_an_empty_target_trains_but_is_not_held_out(row):
    np.save(row.target, np.full((4, 10, 12), 5, np.uint16))
    with pytest.raises(ManifestError, match="constant image has no z-score"):
        run(row)
    sample = run(row, empty="zeros")
    assert not np.load(sample.target).any()
    assert np.load(sample.signal).any()
    for split in ("val", "test"):
        with pytest.raises(ManifestError, match=rf"line 2: the target is constant.*split {split}"):
            run(row, split, empty="zeros")


# -- from training to prediction --------------------------------------------------------------------------------


UNUSUAL = {
    "axes": "xy",
    "order": 3,
    "anti_alias": True,
    "normalise": "percentiles",
    "percentiles": (2.0, 98.0),
    "empty": "zeros",
}


def test_prediction_from_disk_prepares_as_training_does(tmp_path):
    recipe, to, own = (
        PreprocessingRecipe.of(PreprocessingConfig(**UNUSUAL)),
        (0.29, 0.29, 0.29),
        (0.4, 0.13, 0.11),
    )
    network = RepModeUNet(Architecture(width=2, depth=1, experts=("conv3",)), ("dna",), seed=0)
    inference = {"window": [4, 8, 8], "overlap": 0.5, "batch": 2}
    path = tmp_path / "model"
    seen = voxel_size_record([own])
    model = Model.create(
        path, network, voxel_size=to, preprocessing=recipe.to_json(), inference=inference, provenance=seen
    )
    volume = np.random.default_rng(0).integers(0, 3000, (6, 40, 50)).astype(np.uint16)
    volume[2, 3, 4] = 60000
    np.save(tmp_path / "in.npy", volume)
    row = Row(2, "dna", tmp_path / "in.npy", None, tmp_path / "in.npy", None, voxel_size=own)
    manifest = Manifest(tmp_path / "manifest.csv", (row,))
    [sample] = prepare(manifest, {2: "train"}, PreprocessingConfig(**UNUSUAL), tmp_path / "cache")
    prepared = np.load(sample.signal).astype(np.float32)
    assert prepared.shape == (6, 18, 19), "z is left as it is"
    wanted = resample_to(model.predict(prepared, "dna"), volume.shape)
    done = predict_file(path, "dna", tmp_path / "in.npy", tmp_path / "out.npy", voxel_size=own, device="cpu")
    assert done.grid == prepared.shape
    found = np.load(tmp_path / "out.npy")
    # What is prepared for training is kept in half precision.
    assert np.abs(found - wanted).max() < 2e-3 * np.abs(wanted).max()
    # Each setting matters, and by more than that.
    for key in ("axes", "order", "anti_alias", "normalise"):
        less = {
            k: v for k, v in UNUSUAL.items() if k != key and not (key == "normalise" and k == "percentiles")
        }
        other = PreprocessingRecipe.of(PreprocessingConfig(**less))
        otherwise = normalise(
            resample(volume, own, other.target_voxel(own, to), other.order, anti_alias=other.anti_alias),
            percentiles=other.percentiles,
        )
        assert otherwise.shape != prepared.shape or np.abs(otherwise - prepared).max() > 0.01
    np.save(tmp_path / "blank.npy", np.full((6, 40, 50), 7, np.uint16))
    predict_file(
        path, "dna", tmp_path / "blank.npy", tmp_path / "blank-out.npy", voxel_size=own, device="cpu"
    )
    blank = model.predict(np.zeros(prepared.shape, np.float32), "dna")
    np.testing.assert_allclose(
        np.load(tmp_path / "blank-out.npy"), resample_to(blank, volume.shape), rtol=1e-4, atol=1e-6
    )


def test_prediction_asks_for_a_voxel_size_that_fits(tmp_path):
    network = RepModeUNet(Architecture(width=1, depth=1, experts=("conv1",)), ("dna",), seed=0)
    inference = {"window": [4, 8, 8], "overlap": 0.5, "batch": 2}
    path = tmp_path / "model"
    Model.create(
        path, network, voxel_size=(0.29, 0.29, 0.29), preprocessing={"order": 1}, inference=inference,
        provenance=voxel_size_record([(0.29, 0.1, 0.1)]),
    )  # fmt: skip
    np.save(tmp_path / "in.npy", np.random.default_rng(0).normal(size=(6, 30, 30)).astype(np.float32))
    call = partial(predict_file, path, "dna", tmp_path / "in.npy", tmp_path / "out.npy", device="cpu")
    with pytest.raises(ImageError, match="no voxel size is stated"):
        call()
    with pytest.raises(ImageError, match="coarser on y, x than"):
        call(voxel_size=(0.29, 0.29, 0.29))
    assert not (tmp_path / "out.npy").exists()
    assert call(voxel_size=(0.29, 0.12, 0.12)).notes == ()
    [note] = call(force=True, restart=True).notes[:1]
    assert "no voxel size is stated" in note
