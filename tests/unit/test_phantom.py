"""The simulator: the same seed gives the same images, and its optics behave as optics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from repmode_cl.data.manifest import read_manifest
from repmode_cl.data.phantom import LIGHT_CHANNEL, simulate, simulate_field
from repmode_cl.data.phantom.cells import grow_colony
from repmode_cl.data.phantom.optics import (
    LIGHT_WAVELENGTH,
    Emission,
    fluorescence_image,
    fluorescence_transfer,
    light_image,
    light_transfer,
)
from repmode_cl.data.phantom.randomness import Streams, smooth_noise
from repmode_cl.data.phantom.structures import EMISSIONS, INDEX_EXCESS
from repmode_cl.data.readers import open_image
from repmode_cl.errors import ConfigError, RepmodeError, UnknownStructureError
from repmode_cl.structures import TWELVE_STRUCTURES

SMALL = (12, 40, 44)
VOXEL = (0.29, 0.29, 0.29)


@pytest.fixture(scope="module")
def field() -> dict[str, np.ndarray]:
    return simulate_field(3, 1, TWELVE_STRUCTURES, (24, 64, 64))


def test_every_structure_is_there_and_varies(field: dict[str, np.ndarray]) -> None:
    assert list(field) == [LIGHT_CHANNEL, *TWELVE_STRUCTURES]
    for name, image in field.items():
        assert image.dtype == np.uint16
        assert image.shape == (24, 64, 64)
        assert 0 < image.min() < image.max() < 65535, name
    assert set(EMISSIONS) == set(INDEX_EXCESS) == set(TWELVE_STRUCTURES)


def test_each_structure_is_more_than_noise(field: dict[str, np.ndarray]) -> None:
    """Noise is independent from voxel to voxel; structure is not."""
    for name, image in field.items():
        z_scored = (image - image.mean()) / image.std()
        neighbours = float((z_scored[:, :, 1:] * z_scored[:, :, :-1]).mean())
        assert neighbours > 0.1, name


def test_structures_lie_where_they_belong(field: dict[str, np.ndarray]) -> None:
    def correlation(first: str, second: str) -> float:
        return float(np.corrcoef(field[first].ravel(), field[second].ravel())[0, 1])

    assert correlation("dna", "nucleolus") > 0.1
    assert correlation("dna", "mitochondria") < 0.1
    assert correlation("tight_junction", "actin_filament") > 0.3
    heights = {
        name: (field[name].astype(float) - np.median(field[name])).clip(0).mean(axis=(1, 2)).argmax()
        for name in ("tight_junction", "dna")
    }
    assert heights["tight_junction"] > heights["dna"]


def test_same_seed_same_image_whatever_the_subset() -> None:
    names = ("golgi_apparatus", "dna")
    some = simulate_field(7, 2, names, SMALL)
    more = simulate_field(7, 2, ("microtubule", "dna", "golgi_apparatus"), SMALL)
    for name in (LIGHT_CHANNEL, *names):
        np.testing.assert_array_equal(some[name], more[name])
    assert not np.array_equal(some["dna"], simulate_field(7, 3, ("dna",), SMALL)["dna"])
    assert not np.array_equal(some["dna"], simulate_field(8, 2, ("dna",), SMALL)["dna"])


@pytest.mark.slow
def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path) -> None:
    for workers in (1, 2):
        simulate(
            tmp_path / str(workers),
            fields=2,
            structures=("dna", "desmosome"),
            seed=5,
            shape=(8, 24, 24),
            workers=workers,
        )
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert files == ["field-0000.ome.tif", "field-0001.ome.tif", "manifest.csv", "simulation.json"]
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_is_read_back_through_the_ordinary_reader(tmp_path: Path) -> None:
    voxel = (0.4, 0.29, 0.29)
    path = simulate(
        tmp_path / "cells",
        fields=2,
        structures=("nucleolus", "dna"),
        seed=1,
        shape=(8, 24, 28),
        voxel_size=voxel,
        workers=1,
    )
    manifest = read_manifest(path)
    assert manifest.structures == ("nucleolus", "dna")
    assert len(manifest.rows) == 4
    assert len({row.group for row in manifest.rows}) == 2
    expected = simulate_field(1, 1, ("nucleolus", "dna"), (8, 24, 28), voxel)
    row = manifest.rows[-1]
    with open_image(row.target) as reader:
        assert reader.channel_names == (LIGHT_CHANNEL, "nucleolus", "dna")
        assert reader.voxel_size == pytest.approx(voxel)
        for name in (row.signal_channel, row.target_channel):
            np.testing.assert_array_equal(reader.read(reader.channel_index(name)), expected[str(name)])


def test_goes_on_where_it_stopped_and_refuses_other_settings(tmp_path: Path) -> None:
    options = {"structures": ("dna",), "shape": (8, 16, 16), "workers": 1}
    simulate(tmp_path, fields=1, **options)
    first = (tmp_path / "field-0000.ome.tif").stat().st_mtime_ns
    simulate(tmp_path, fields=2, **options)
    assert (tmp_path / "field-0000.ome.tif").stat().st_mtime_ns == first
    assert len(read_manifest(tmp_path / "manifest.csv").rows) == 2
    with pytest.raises(ConfigError, match="seed"):
        simulate(tmp_path, fields=2, seed=9, **options)
    (tmp_path / "simulation.json").write_text("no record", encoding="utf-8")
    with pytest.raises(ConfigError, match="not the record"):
        simulate(tmp_path, fields=1, **options)


@pytest.mark.parametrize("name", ["manifest.csv", "field-0000.ome.tif"])
def test_a_folder_of_other_images_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"of a user")
    with pytest.raises(ConfigError, match=f"holds {name}, which is of no simulation"):
        simulate(tmp_path, fields=1, structures=("dna",), shape=(8, 16, 16), workers=1)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"of a user")]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"structures": ("nucleoli",)}, "nucleolus"),
        ({"structures": ()}, "no structure"),
        ({"structures": ("dna", "dna")}, "twice"),
        ({"shape": (4, 24, 24)}, "8x16x16"),
        ({"shape": (24, 24)}, "24x24"),
        ({"voxel_size": (0.29, 0.29, float("nan"))}, "voxel_size"),
        ({"seed": -1}, "seed"),
        ({"fields": 0}, "fields"),
        ({"workers": 0}, "workers"),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_anything_is_written(
    tmp_path: Path, wrong: dict[str, object], message: str
) -> None:
    with pytest.raises(RepmodeError, match=message):
        simulate(tmp_path / "out", **({"fields": 1, "structures": ("dna",)} | wrong))
    assert not (tmp_path / "out").exists()


def test_unknown_structure_is_its_own_error() -> None:
    with pytest.raises(UnknownStructureError, match="simulator"):
        simulate_field(0, 0, ("axon",), SMALL)


def test_cells_are_whole() -> None:
    colony = grow_colony(Streams(0, 0), (24, 64, 64), VOXEL)
    assert (colony.lateral >= 0).all()
    inside = colony.nucleus > 0
    assert inside.any()
    assert (colony.depth[inside] > 0).all()
    assert (colony.cytoplasm[inside] < 0).all()
    volume = np.bincount(colony.label[colony.depth > 0])
    assert (volume > 0).sum() >= 3


def test_light_kernel_is_odd_in_z_and_blind_to_a_uniform_slab() -> None:
    transfer = light_transfer((32, 48, 48), VOXEL)
    # Odd in z: reversing z changes the sign; a real, odd kernel has an imaginary transform along z.
    assert np.abs(transfer.real).max() < 1e-5 * np.abs(transfer).max()
    assert np.abs(transfer[:, 0, 0]).max() < 1e-5 * np.abs(transfer).max()
    # Nothing passes beyond the sum of both apertures.
    y, x = np.fft.fftfreq(48, 0.29)[:, None], np.fft.rfftfreq(48, 0.29)
    beyond = np.hypot(y, x) > (1.25 + 0.39) / LIGHT_WAVELENGTH + 0.05
    assert not beyond.any() or not transfer[:, beyond].any()


def test_a_dense_bead_is_bright_below_and_dark_above() -> None:
    index = np.zeros((33, 48, 48), np.float32)
    z, y, x = np.meshgrid(*[np.arange(n) - n // 2 for n in index.shape], indexing="ij")
    index[z**2 + y**2 + x**2 <= 9] = 0.02
    image = light_image(np.random.default_rng(0), index, VOXEL)
    middle = image[:, 23:26, 23:26].mean(axis=(1, 2)) / image.mean()
    assert middle[16 - 6 : 16 - 2].mean() > 1.02
    assert middle[16 + 3 : 16 + 7].mean() < 0.98


def test_fluorescence_blurs_more_along_z_and_counts_photons() -> None:
    transfer = fluorescence_transfer((32, 32, 32), VOXEL, 0.51)
    assert transfer[0, 0, 0] == pytest.approx(1.0)
    assert transfer[4, 0, 0] < transfer[0, 0, 4]
    flat = np.ones((8, 64, 64), np.float32)
    image = fluorescence_image(np.random.default_rng(0), flat, VOXEL, Emission(0.51, 400.0, 0.0, 0.0))
    electrons = (image[4] - 100.0) / 2.0
    # Poisson: the variance is the mean, and the camera adds its own.
    assert electrons.var() == pytest.approx(electrons.mean() + 1.6**2, rel=0.1)


def test_noise_is_standard_and_smooth() -> None:
    noise = smooth_noise(np.random.default_rng(0), (16, 32, 32), VOXEL, 0.6)
    assert noise.dtype == np.float32
    assert noise.mean() == pytest.approx(0, abs=1e-4)
    assert noise.std() == pytest.approx(1, abs=1e-3)
    assert (noise[:, :, 1:] * noise[:, :, :-1]).mean() > 0.9


def test_record_says_what_was_simulated(tmp_path: Path) -> None:
    simulate(tmp_path, fields=1, structures=("dna",), seed=4, shape=(8, 16, 16), workers=1)
    record = json.loads((tmp_path / "simulation.json").read_text(encoding="utf-8"))
    assert record["seed"] == 4
    assert record["structures"] == ["dna"]
    assert record["shape"] == [8, 16, 16]
