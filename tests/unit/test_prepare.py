"""From manifest rows to cached volumes: what is computed, shared, made again and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from repmode_cl.config.schema import PreprocessingConfig
from repmode_cl.data.manifest import Manifest, Row
from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.data.preprocessing import volume_jobs as jobs
from repmode_cl.data.preprocessing.normalisation import normalise
from repmode_cl.data.preprocessing.prepare import prepare
from repmode_cl.data.preprocessing.resampling import resample, resample_to
from repmode_cl.data.preprocessing.volume_cache import VolumeCache
from repmode_cl.data.readers import Region
from repmode_cl.errors import ImageError, ManifestError, RepmodeError, UnknownStructureError

#: Half precision rounds by at most 2^-11 of a value.
HALF = 2**-11 + 1e-6

KEEP = PreprocessingConfig(voxel_size=None)
REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "real"


def write(path, volume, voxel_size=None, names=None):
    volume = np.asarray(volume)
    metadata = {"axes": "CZYX" if volume.ndim == 4 else "ZYX"}
    if voxel_size is not None:
        for axis, size in zip("ZYX", voxel_size, strict=True):
            metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    if names is not None:
        metadata["Channel"] = {"Name": names}
    tifffile.imwrite(path, volume, ome=True, photometric="minisblack", metadata=metadata)
    return path


@pytest.fixture
def field(tmp_path):
    """Write a field with a signal and two targets in one file, and return its two rows' manifest."""
    image = np.random.default_rng(0).integers(0, 4000, (3, 4, 10, 12)).astype(np.uint16)
    path = write(tmp_path / "field.ome.tif", image, (0.58, 0.29, 0.29), ["light", "dna", "golgi"])
    rows = (
        Row(2, "dna", path, "light", path, "dna"),
        Row(3, "golgi_apparatus", path, "light", path, "golgi"),
    )
    return image, Manifest(tmp_path / "manifest.csv", rows)


def run(manifest, folder, config=KEEP, **options):
    splits = dict.fromkeys([row.number for row in manifest.rows], "train")
    return prepare(manifest, splits, config, folder, **options)


def made(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}


def zscore(volume):
    volume = np.asarray(volume, np.float64)
    return (volume - volume.mean()) / volume.std()


def test_volumes_are_z_scored_and_a_shared_signal_is_one_file(field, tmp_path):
    image, manifest = field
    dna, golgi = run(manifest, tmp_path / "cache")
    assert (dna.structure, dna.row, dna.shape, dna.split) == ("dna", 2, (4, 10, 12), "train")
    assert dna.signal == golgi.signal
    assert dna.image_id == golgi.image_id
    assert dna.group == golgi.group
    assert dna.target != golgi.target
    assert len(made(tmp_path / "cache")) == 3
    for path, channel in ((dna.signal, 0), (dna.target, 1), (golgi.target, 2)):
        volume = np.load(path, mmap_mode="r")
        assert volume.dtype == np.float16
        np.testing.assert_allclose(volume, zscore(image[channel]), rtol=HALF)
    signal, target = PatchDataset([dna, golgi], patch=(4, 8, 8), seed=0, length=4)[3]
    assert signal.shape == target.shape == (1, 4, 8, 8)


def test_known_voxel_sizes_are_resampled_and_the_manifest_s_wins(field, tmp_path):
    _, manifest = field
    config = PreprocessingConfig(voxel_size=(0.29, 0.29, 0.29))
    assert run(manifest, tmp_path / "cache", config)[0].shape == (8, 10, 12)
    rows = tuple(replace(row, voxel_size=(0.29, 0.29, 0.145)) for row in manifest.rows)
    stated = run(Manifest(manifest.path, rows), tmp_path / "cache", config)
    assert stated[0].shape == (4, 10, 6)
    assert run(manifest, tmp_path / "cache", config)[0].signal != stated[0].signal


def test_images_without_a_voxel_size_keep_theirs(tmp_path):
    volume = np.random.default_rng(0).random((4, 9, 7)).astype(np.float32)
    path = tmp_path / "plain.tif"
    tifffile.imwrite(path, volume, photometric="minisblack")
    manifest = Manifest(tmp_path / "manifest.csv", (Row(2, "dna", path, None, path, None),))
    (sample,) = run(manifest, tmp_path / "cache", PreprocessingConfig())
    assert sample.shape == (4, 9, 7)
    assert sample.signal == sample.target


def test_regions_masks_groups_and_splits(field, tmp_path):
    image, manifest = field
    mask = write(tmp_path / "mask.tif", (image[0] > 2000).astype(np.uint8) * 7)
    base = replace(manifest.rows[0], mask=mask, group="plate 1")
    left = replace(base, number=2, region=Region.parse(":,:,0:6"))
    right = replace(base, number=3, region=Region.parse(":,:,6:12"))
    whole = replace(base, number=4, region=Region.parse("0:4,0:10,:"))
    none = replace(base, number=5)
    manifest = Manifest(manifest.path, (left, right, whole, none))
    splits = {2: "train", 3: "test", 4: "val", 5: "val"}
    a, b, c, d = prepare(manifest, splits, KEEP, tmp_path / "cache")
    assert [sample.split for sample in (a, b, c, d)] == ["train", "test", "val", "val"]
    assert a.group == "plate 1"
    assert a.image_id != b.image_id
    np.testing.assert_allclose(np.load(b.signal), zscore(image[0, :, :, 6:]), rtol=HALF)
    assert np.load(b.mask).dtype == np.bool_
    assert np.array_equal(np.load(b.mask), image[0, :, :, 6:] > 2000)
    # A region of the whole file and none are the same image.
    assert (c.signal, c.image_id) == (d.signal, d.image_id)


def test_second_run_makes_nothing_and_a_changed_image_is_made_again(field, tmp_path):
    image, manifest = field
    cache = tmp_path / "cache"
    first = run(manifest, cache)
    before = made(cache)
    assert run(manifest, cache) == first
    assert made(cache) == before
    path = manifest.rows[0].signal
    write(path, image[:, :, ::-1], (0.58, 0.29, 0.29), ["light", "dna", "golgi"])
    second = run(manifest, cache)
    assert second[0].signal != first[0].signal
    assert second[0].image_id != first[0].image_id


@pytest.mark.parametrize("damage", ["cut", "flip", "no record", "bad record", "gone"])
def test_damaged_cache_files_are_made_again(field, tmp_path, damage):
    _, manifest = field
    first = run(manifest, tmp_path / "cache")
    path = first[0].signal
    good = path.read_bytes()
    if damage == "cut":
        path.write_bytes(good[:-9])
    elif damage == "flip":
        path.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
        os.utime(path, ns=(1, 1))
    elif damage == "no record":
        path.with_suffix(".json").unlink()
    elif damage == "bad record":
        path.with_suffix(".json").write_text('{"shape"')
    else:
        path.unlink()
    assert run(manifest, tmp_path / "cache") == first
    assert path.read_bytes() == good
    assert not [name for name in path.parent.iterdir() if "writing" in name.name]


def test_copied_cache_is_believed_after_a_look_at_its_bytes(field, tmp_path):
    _, manifest = field
    first = run(manifest, tmp_path / "cache")
    os.utime(first[0].signal, ns=(1, 1))
    run(manifest, tmp_path / "cache")
    assert first[0].signal.stat().st_mtime_ns == 1
    assert json.loads(first[0].signal.with_suffix(".json").read_text())["mtime_ns"] == 1


def test_processes_make_the_same_bytes(field, tmp_path):
    _, manifest = field
    one, two = run(manifest, tmp_path / "one"), run(manifest, tmp_path / "two", workers=2)
    assert len(made(tmp_path / "two")) == 3
    for a, b in zip(one, two, strict=True):
        assert a.signal.read_bytes() == b.signal.read_bytes()
        assert a.target.read_bytes() == b.target.read_bytes()
        assert a.image_id == b.image_id


def test_only_some_structures(field, tmp_path):
    _, manifest = field
    samples = run(manifest, tmp_path / "cache", structures=["golgi_apparatus"])
    assert [sample.structure for sample in samples] == ["golgi_apparatus"]
    with pytest.raises(UnknownStructureError, match="golgi_apparatus"):
        run(manifest, tmp_path / "cache", structures=["golgi"])
    with pytest.raises(ValueError, match="no entry"):
        prepare(manifest, {2: "train"}, KEEP, tmp_path / "cache")


@pytest.mark.parametrize("workers", [1, 2])
def test_every_bad_row_is_listed_and_the_others_are_prepared(field, tmp_path, workers):
    image, manifest = field
    good = manifest.rows[0]
    constant = write(tmp_path / "constant.tif", np.full((4, 10, 12), 7, np.uint16))
    broken = np.ones((4, 10, 12), np.float32)
    broken[1, 2, 3] = np.nan
    other = write(tmp_path / "other.tif", image[0, :, :5], (0.3, 0.3, 0.3))
    empty = write(tmp_path / "empty.tif", np.zeros((4, 10, 12), np.uint8))
    small = write(tmp_path / "small.tif", image[0, :, :5])
    rows = (
        replace(good, number=2),
        replace(good, number=3, target=constant, target_channel=None),
        replace(good, number=4, target=write(tmp_path / "nan.tif", broken), target_channel=None),
        replace(good, number=5, target=other, target_channel=None),
        replace(good, number=6, signal=tmp_path / "absent.tif"),
        replace(good, number=7, target_channel="nothing"),
        replace(good, number=8, mask=empty),
        replace(good, number=9, target=small, target_channel=None),
        replace(good, number=10, region=Region.parse("0:4,0:99,:")),
    )
    with pytest.raises(ManifestError) as caught:
        run(Manifest(manifest.path, rows), tmp_path / "cache", workers=workers)
    lines = str(caught.value).splitlines()
    assert "8 problems" in lines[0]
    expected = ("constant", "NaN", "voxel sizes", "absent", "nothing", "0 everywhere", "shapes", "beyond")
    for line, number, word in zip(lines[1:], range(3, 11), expected, strict=True):
        assert f"line {number}:" in line
        assert word in line
    assert "constant.tif" in lines[1]
    before = made(tmp_path / "cache")
    run(Manifest(manifest.path, rows[:1]), tmp_path / "cache")
    assert made(tmp_path / "cache") == before


def interrupt(monkeypatch, error, after=1):
    """Let the cache take `after` volumes, and raise `error` for the next."""
    store, stored = VolumeCache.store, []

    def storing(self, key, volume, about):
        if len(stored) == after:
            raise error
        stored.append(store(self, key, volume, about))
        return stored[-1]

    monkeypatch.setattr(VolumeCache, "store", storing)


def test_an_interrupted_preparation_goes_on(field, tmp_path, monkeypatch):
    _, manifest = field
    os.utime(manifest.rows[0].signal, ns=(10**18, 10**18))
    with monkeypatch.context() as patch:
        interrupt(patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(manifest, tmp_path / "cache")
    before = made(tmp_path / "cache")
    assert len(before) == 1
    assert json.loads((tmp_path / "cache" / "contents.json").read_text())
    run(manifest, tmp_path / "cache")
    after = made(tmp_path / "cache")
    assert len(after) == 3
    assert before.items() <= after.items()


def test_a_full_disk_and_an_unforeseen_error_name_the_file(field, tmp_path, monkeypatch):
    _, manifest = field
    with monkeypatch.context() as patch:
        interrupt(patch, OSError(28, "No space left on device"))
        with pytest.raises(
            RepmodeError, match=r"field\.ome\.tif cannot be written \(No space left.*data\.cache"
        ) as full:
            run(manifest, tmp_path / "cache")
    assert not isinstance(full.value, ManifestError)  # no fault of a row
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "normalise", lambda volume, **how: volume.no_such_method())
        with pytest.raises(AttributeError) as caught:
            run(manifest, tmp_path / "cache")
    assert "field.ome.tif, channel" in caught.value.__notes__[0]


def test_a_file_too_large_for_memory_is_named(field, tmp_path, monkeypatch):
    def full(volume, **how):
        raise MemoryError

    monkeypatch.setattr(jobs, "normalise", full)
    with pytest.raises(RepmodeError, match=r"field\.ome\.tif: not enough memory.*--workers 1"):
        run(field[1], tmp_path / "cache")


def test_a_process_that_prepares_imports_neither_torch_nor_avalanche():
    code = (
        "import sys, repmode_cl.data.preprocessing.volume_jobs\n"
        "heavy = {'torch', 'avalanche', 'pydantic', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64, np.float16])
def test_z_score_of_every_type(dtype):
    volume = np.random.default_rng(0).integers(0, 200, (3, 5, 7)).astype(dtype)
    got = normalise(volume)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, zscore(volume), atol=1e-6)


def test_z_score_is_exact_on_a_large_offset():
    volume = 1e6 + np.random.default_rng(0).random((16, 64, 64))
    got = normalise(volume).astype(np.float64)
    assert abs(got.mean()) < 1e-6
    assert abs(got.std() - 1) < 1e-6


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_z_score_refuses_what_has_none(bad):
    volume = np.random.default_rng(0).random((3, 5, 7))
    volume[2, 1, 1] = bad
    with pytest.raises(ImageError, match="NaN or infinite"):
        normalise(volume)
    with pytest.raises(ImageError, match="constant"):
        normalise(np.full((3, 5, 7), 0.1))
    with pytest.raises(ImageError, match="empty"):
        normalise(np.zeros((0, 5, 7)))


def test_resampling_keeps_a_ramp_where_it_is():
    # The voxel at index i is centred at (i + 0.5) voxels: a linear ramp in um stays the same ramp.
    for old, new in ((0.3, 0.15), (0.15, 0.3), (0.3, 0.2)):
        x = (np.arange(24) + 0.5) * old
        volume = np.broadcast_to(x, (4, 4, 24)).astype(np.float32)
        for order in (1, 3):
            got = resample(volume, (1, 1, old), (1, 1, new), order)
            assert got.shape == (4, 4, round(24 * old / new))
            want = (np.arange(got.shape[2]) + 0.5) * new
            inner = slice(4, -4)
            np.testing.assert_allclose(got[1, 1, inner], want[inner], atol=0.01 if order == 3 else 1e-5)


def test_resampling_of_masks_types_and_shapes():
    mask = np.zeros((4, 4, 4), bool)
    mask[:, :, 2:] = True
    double = resample(mask, (1, 1, 1), (0.5, 0.5, 0.5), 3)
    assert double.dtype == np.bool_
    assert np.array_equal(double, mask.repeat(2, 0).repeat(2, 1).repeat(2, 2))
    volume = np.random.default_rng(0).random((4, 5, 6))
    assert np.array_equal(resample(volume, (0.29,) * 3, (0.2901,) * 3), volume.astype(np.float32))
    assert resample_to(volume, (7, 5, 3)).shape == (7, 5, 3)
    assert resample(volume, (0.1,) * 3, (5,) * 3).shape == (1, 1, 1)


@pytest.mark.parametrize("size", [0.0, -1.0, np.nan, 290.0])
def test_voxel_sizes_that_cannot_be_are_refused(size):
    with pytest.raises(ImageError, match="um"):
        resample(np.zeros((2, 2, 2)), (size, 0.3, 0.3), (0.29,) * 3)


@pytest.mark.skipif(not REAL.is_dir(), reason="real images are not part of the repository")
def test_real_stacks_are_prepared(tmp_path):
    path = REAL / "AICS-13_319_nuclear_envelope.ome.tif"
    region = Region.parse(":,0:128,0:128")
    row = Row(2, "nuclear_envelope", path, "brightfield", path, "structure", region=region)
    (sample,) = run(Manifest(tmp_path / "m.csv", (row,)), tmp_path / "cache", PreprocessingConfig())
    z, y, x = sample.shape
    assert z == 40
    assert abs(y - 128 * 0.264 / 0.29) <= 1
    assert abs(x - 128 * 0.245 / 0.29) <= 1
    assert abs(float(np.load(sample.signal).mean())) < 1e-3


def test_a_scene_by_name_is_the_scene_by_number(tmp_path):
    path = tmp_path / "scenes.ome.tif"
    images = np.random.default_rng(0).integers(0, 99, (2, 3, 8, 9)).astype(np.uint16)
    with tifffile.TiffWriter(path, ome=True) as file:
        for name, image in zip(("left", "right"), images, strict=True):
            file.write(image, photometric="minisblack", metadata={"axes": "ZYX", "Name": name})
    manifest = Manifest(
        tmp_path / "m.csv",
        tuple(Row(k, "dna", path, None, path, None, scene=s) for k, s in enumerate(("right", 1, "left"), 2)),
    )
    named, numbered, other = run(manifest, tmp_path / "cache")
    assert (named.image_id, named.signal) == (numbered.image_id, numbered.signal)
    assert other.image_id != named.image_id
    np.testing.assert_allclose(np.load(named.signal), zscore(images[1]), rtol=HALF, atol=HALF)
