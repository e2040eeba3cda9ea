"""Files of predictions, read by other libraries: OME-TIFF by tifffile and ome-types, OME-Zarr by zarr and ome-zarr."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import ome_types
import ome_zarr_models
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from stored_model import make_predictor

from repmode_cl import __version__
from repmode_cl.data.readers import open_image
from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.inference.display_colours import STRUCTURE_COLOURS, colour_of
from repmode_cl.inference.predict_file import predict_file
from repmode_cl.inference.rescale import Rescale
from repmode_cl.inference.writers import ome_tiff, pyramid, write_image
from repmode_cl.inference.writers.image_metadata import NAMESPACE, ChannelMetadata, ImageMetadata
from repmode_cl.inference.writers.pyramid import Pyramid, halve, level_shapes
from repmode_cl.model import Model
from repmode_cl.nn import Architecture, RepModeUNet
from repmode_cl.structures import TWELVE_STRUCTURES

VOXEL = (0.5, 0.3, 0.2)
UUID = "urn:uuid:00000000-1111-2222-3333-444455556666"


class Array:
    def __init__(self, values: NDArray[Any]) -> None:
        self.values, self.shape = values, values.shape

    def read(self, box: tuple[slice, ...]) -> NDArray[Any]:
        return self.values[box]


def write(path: Path, volumes: list[NDArray[Any]], voxel: tuple[float, ...] | None = VOXEL) -> None:
    dtype = volumes[0].dtype
    channels = [
        ChannelMetadata(f"c{n} <µ\0>", (255, n, 128), {"about": f"number {n}"}) for n in range(len(volumes))
    ]
    metadata = ImageMetadata(
        "name", volumes[0].shape, dtype, tuple(channels), voxel, "a & b", UUID, {"software": "x"}
    )
    pyramids = [
        Pyramid(Array(volume), dtype, None, path.with_name(f"s{n}")) for n, volume in enumerate(volumes)
    ]
    write_image(path, path.suffix, metadata, pyramids)
    for one in pyramids:
        one.close()


def levels_of(path: Path) -> list[NDArray[Any]]:
    """All levels as (C, Z, Y, X), by tifffile or zarr."""
    if path.suffix == ".zarr":
        group = zarr.open_group(path, mode="r")
        return [np.asarray(group[str(n)]) for n in range(len(list(group.array_keys())))]
    with tifffile.TiffFile(path) as tiff:
        [series] = tiff.series
        size = [ome_types.from_xml(tiff.ome_metadata).images[0].pixels.size_c, -1]
        return [np.reshape(level.asarray(), (*size, *level.shape[-2:])) for level in series.levels]


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 10), st.integers(1, 75), st.integers(1, 75)),
    count=st.integers(1, 3),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    suffix=st.sampled_from([".tif", ".zarr"]),
)
def test_all_levels_read_back_by_other_libraries(tmp_path, monkeypatch, shape, count, dtype, suffix):
    monkeypatch.setattr(pyramid, "TILE", 16)
    monkeypatch.setattr(ome_tiff, "TILE", 16)
    monkeypatch.setattr("repmode_cl.inference.writers.ome_zarr.TILE", 16)
    rng = np.random.default_rng(0)
    volumes = [rng.integers(0, 255, shape).astype(dtype) for _ in range(count)]
    path = tmp_path / f"a{suffix}"
    write(path, volumes)
    assert sorted(file.name for file in tmp_path.iterdir() if file.suffix not in (".tif", ".zarr")) == []
    found = levels_of(path)
    want = volumes
    assert [level.shape[1:] for level in found] == level_shapes(shape)
    assert max(found[-1].shape[2:]) <= 16
    for level in found:
        assert level.dtype == dtype
        assert np.array_equal(level, np.stack(want))
        want = [mean_of_four(volume) for volume in want]


def mean_of_four(volume: NDArray[Any]) -> NDArray[Any]:
    """Halve y and x by the definition, voxel by voxel of the result."""
    z, y, x = volume.shape
    out = np.empty((z, -(-y // 2), -(-x // 2)), volume.dtype)
    for j in range(out.shape[1]):
        for i in range(out.shape[2]):
            rows, columns = [2 * j, min(2 * j + 1, y - 1)], [2 * i, min(2 * i + 1, x - 1)]
            mean = volume[:, rows][:, :, columns].astype(float).mean(axis=(1, 2))
            out[:, j, i] = np.rint(mean) if volume.dtype.kind == "u" else mean
    return out


def test_halving_keeps_the_type_and_the_mean():
    volume = np.random.default_rng(0).normal(size=(2, 8, 6)).astype(np.float32)
    assert halve(volume).dtype == np.float32
    assert halve(volume).mean() == pytest.approx(volume.mean(), abs=1e-6)


@pytest.mark.parametrize("voxel", [VOXEL, None])
def test_an_ome_tiff_is_valid_by_the_schema_and_complete(tmp_path, voxel):
    path = tmp_path / "a.tif"
    volumes = [np.random.default_rng(n).normal(size=(3, 300, 520)).astype(np.float32) for n in range(2)]
    write(path, volumes, voxel)
    with tifffile.TiffFile(path) as tiff:
        xml = tiff.ome_metadata
        assert xml is not None
        page = tiff.pages[0]
        assert (page.compression, page.tile, tiff.is_bigtiff) == (8, (256, 256), False)
        assert len(page.pages) == 2  # the lower levels, as SubIFDs
        assert tiff.series[0].axes == "CZYX"
        if voxel is not None:
            numerator, denominator = page.tags["XResolution"].value
            assert 1e4 * denominator / numerator == pytest.approx(voxel[2], rel=1e-6)
    ome_types.validate_xml(xml)
    ome = ome_types.from_xml(xml)
    [image] = ome.images
    pixels = image.pixels
    assert (ome.creator, ome.uuid) == (f"repmode-cl {__version__}", UUID)
    assert (image.name, image.description) == ("name", "a & b")
    assert (pixels.type.value, pixels.size_c, pixels.size_z, pixels.size_y, pixels.size_x) == (
        "float", 2, 3, 300, 520,
    )  # fmt: skip
    sizes = (pixels.physical_size_z, pixels.physical_size_y, pixels.physical_size_x)
    assert sizes == (voxel if voxel is not None else (None, None, None))
    if voxel is not None:
        assert pixels.physical_size_z_unit.value == "µm"
    assert [channel.name for channel in pixels.channels] == ["c0 <µ\ufffd>", "c1 <µ\ufffd>"]
    assert [channel.color.as_rgb_tuple(alpha=False) for channel in pixels.channels] == [
        (255, 0, 128),
        (255, 1, 128),
    ]
    held = {one.id: dict(one.value) for one in ome.structured_annotations}
    assert [held[ref.id] for ref in image.annotation_refs] == [{"software": "x"}]
    assert [held[channel.annotation_refs[0].id] for channel in pixels.channels] == [
        {"about": "number 0"},
        {"about": "number 1"},
    ]
    assert {one.namespace for one in ome.structured_annotations} == {NAMESPACE}


def test_the_schema_finds_mistakes(tmp_path):
    write(tmp_path / "a.tif", [np.zeros((1, 4, 4), np.uint8)])
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        xml = tiff.ome_metadata
    assert xml is not None
    for old, new in (("XYZCT", "ZYX"), ("MapAnnotation", "OtherAnnotation"), ('Color="', 'Colour="')):
        assert old in xml
        with pytest.raises(Exception, match=r"(?i)valid|enumeration|unexpected|attribute"):
            ome_types.validate_xml(xml.replace(old, new))


@pytest.mark.parametrize("voxel", [VOXEL, None])
def test_an_ome_zarr_is_valid_and_complete(tmp_path, voxel):
    path = tmp_path / "a.zarr"
    volumes = [np.random.default_rng(n).normal(size=(3, 300, 520)).astype(np.float32) for n in range(2)]
    write(path, volumes, voxel)
    model = ome_zarr_models.open_ome_zarr(zarr.open_group(path, mode="r"))
    assert type(model).__module__ == "ome_zarr_models.v05.image"
    [node] = Reader(parse_url(path))()
    assert [level.shape for level in node.data] == [(2, 3, 300, 520), (2, 3, 150, 260), (2, 3, 75, 130)]
    assert np.array_equal(np.asarray(node.data[0]), np.stack(volumes))
    names = [axis["name"] for axis in node.metadata["axes"]]
    units = {axis.get("unit") for axis in node.metadata["axes"]}
    assert names == ["c", "z", "y", "x"]
    assert ("micrometer" in units) == (voxel is not None)
    size = np.array(voxel or (1.0, 1.0, 1.0))
    for number, [scale, *shift] in enumerate(node.metadata["coordinateTransformations"]):
        factor = np.array([1, 2**number, 2**number])
        assert scale["scale"] == pytest.approx([1, *(size * factor)])
        moved = np.array(shift[0]["translation"][1:]) if shift else 0
        # The first voxel's outer border stays where it is.
        assert moved - size * factor / 2 == pytest.approx(-size / 2)
    assert node.metadata["channel_names"] == ["c0 <µ\0>", "c1 <µ\0>"]
    assert node.metadata["colormap"][1][1] == pytest.approx([1, 1 / 255, 128 / 255])
    low, high = node.metadata["contrast_limits"][0]
    assert volumes[0].min() <= low < high <= volumes[0].max()
    group = json.loads((path / "zarr.json").read_text())
    assert group["attributes"][NAMESPACE]["software"] == "x"
    assert group["attributes"][NAMESPACE]["channels"][1]["about"] == "number 1"
    assert group["attributes"]["ome"]["version"] == "0.5"
    array = zarr.open_array(path / "0", mode="r")
    assert array.metadata.dimension_names == ("c", "z", "y", "x")
    assert array.chunks == (1, 3, 256, 256)


def test_only_what_needs_it_becomes_a_bigtiff(tmp_path, monkeypatch):
    monkeypatch.setattr(ome_tiff, "_CLASSIC", 4 * 20 * 20 * 4 // 3 * 2)
    for count, big in ((2, False), (3, True)):
        path = tmp_path / f"{count}.tif"
        write(path, [np.zeros((1, 20, 20), np.float32)] * count)
        with tifffile.TiffFile(path) as tiff:
            assert tiff.is_bigtiff is big


def test_our_own_reader_reads_both(tmp_path):
    volumes = [np.random.default_rng(n).integers(0, 9, (3, 20, 30)).astype(np.uint16) for n in range(2)]
    for suffix in (".tif", ".zarr"):
        path = tmp_path / f"a{suffix}"
        write(path, volumes)
        with open_image(path) as image:
            assert image.shape == (3, 20, 30)
            assert image.voxel_size == pytest.approx(VOXEL)
            assert [name[:2] for name in image.channel_names] == ["c0", "c1"]
            assert np.array_equal(image.read(1), volumes[1])


@pytest.mark.parametrize("suffix", [".ome.tif", ".ome.zarr"])
def test_numbers_that_are_not_finite_are_written_and_the_ranges_are_of_the_others(tmp_path, suffix):
    values = np.arange(2 * 8 * 8, dtype=np.float32).reshape(2, 8, 8)
    values[0, 0, :2] = np.nan, np.inf
    nothing = np.full_like(values, np.nan)
    path = tmp_path / f"image{suffix}"
    write(path, [values, nothing])
    np.testing.assert_array_equal(levels_of(path)[0], [values, nothing])
    if suffix == ".ome.zarr":
        shown = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["omero"]["channels"]
        assert [(one["window"]["min"], one["window"]["max"]) for one in shown] == [(2, 127), (0, 1)]


# -- metadata of predictions ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_predictor(tmp_path_factory.mktemp("models") / "model", VOXEL, (6, 10, 8))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "cells.ome.tif"
    values = np.random.default_rng(0).integers(100, 3000, (2, 7, 18, 22)).astype(np.uint16)
    metadata = {
        "axes": "CZYX",
        "Channel": {"Name": ["bright field", "dye"]},
        **{f"PhysicalSize{axis}": size for axis, size in zip("ZYX", (0.6, 0.3, 0.25), strict=True)},
        **{f"PhysicalSize{axis}Unit": "µm" for axis in "ZYX"},
    }
    tifffile.imwrite(path, values, photometric="minisblack", ome=True, metadata=metadata)
    return path


def about(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Return the annotations of a file and of each channel."""
    if path.suffix == ".zarr":
        found = json.loads((path / "zarr.json").read_text())["attributes"][NAMESPACE]
        return found, found["channels"]
    ome = ome_types.from_tiff(path, validate=True)
    held = {one.id: dict(one.value) for one in ome.structured_annotations}
    channels = [
        {"name": channel.name, **held[channel.annotation_refs[0].id]}
        for channel in ome.images[0].pixels.channels
    ]
    return {**held[ome.images[0].annotation_refs[0].id], "uuid": ome.uuid}, channels


@pytest.mark.parametrize("suffix", [".ome.tif", ".ome.zarr"])
def test_a_stack_holds_light_and_structures_and_their_origin(model, image, tmp_path, suffix):
    out = tmp_path / f"stack{suffix}"
    done = predict_file(model, ["golgi", "dna"], image, out, channel=0, stack=True, device="cpu")
    single = tmp_path / "{structure}.npy"
    predict_file(model, ["golgi", "dna"], image, single, channel=0, device="cpu")
    assert [(one.path, one.structure) for one in done] == [(out, "golgi"), (out, "dna")]
    [values, *_] = levels_of(out)
    assert values.dtype == np.float32
    light = tifffile.imread(image)[0]
    want = [light, *(np.load(tmp_path / f"{name}.npy") for name in ("golgi", "dna"))]
    for got, wanted in zip(values, want, strict=True):
        assert np.array_equal(got, wanted)
    whole, [first, golgi, dna] = about(out)
    assert whole["model_digest"] == model.base_digest
    assert whole["software"] == f"repmode-cl {__version__}"
    assert (whole["input"], whole["input_channel"]) == ("cells.ome.tif", "bright field")
    assert str(tmp_path) not in str(whole)
    assert (first["name"], first["values"]) == ("bright field", "those of the input (uint16)")
    assert (golgi["name"], dna["name"]) == ("golgi", "dna")
    assert dna["structure_digest"] == model.entries["dna"].digest
    assert "z-scores" in dna["values"]
    with open_image(out) as found:
        assert found.channel_names == ("bright field", "golgi", "dna")
        assert found.voxel_size == pytest.approx((0.6, 0.3, 0.25))
        assert found.shape == (7, 18, 22)


@pytest.mark.parametrize("suffix", [".ome.tif", ".ome.zarr", ".npy"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_rescaled_numbers_become_z_scores_by_the_files_own_formula(model, image, tmp_path, suffix, dtype):
    plain = tmp_path / "plain.npy"
    predict_file(model, "dna", image, plain, channel=0, device="cpu")
    z = np.load(plain)
    low, high = (float(value) for value in np.quantile(z, (0.1, 0.9)))
    scale = Rescale.parse(f"{low!r}:{high!r}:{dtype}")
    out = tmp_path / f"out{suffix}"
    done = predict_file(model, "dna", image, out, channel=0, device="cpu", rescale=scale)
    values = np.load(out) if suffix == ".npy" else levels_of(out)[0][0]
    assert values.dtype == dtype
    assert done.values == scale.meaning
    want = np.clip(z, low, high)
    if suffix != ".npy":
        _, [channel] = about(out)
        low, high = float(channel["z_score_of_0"]), float(channel[f"z_score_of_{scale.top}"])
        assert Rescale.parse(channel["rescale"]) == scale
    again = low + values.astype(float) * (high - low) / scale.top
    error = np.abs(again - want).max()
    assert error <= (high - low) * (1e-6 if dtype == "float32" else 0.5001 / scale.top)


def test_light_that_does_not_fit_the_type_is_rescaled_with_its_range_in_the_file(model, image, tmp_path):
    out = tmp_path / "stack.ome.zarr"
    predict_file(model, ["dna"], image, out, channel=0, stack=True, device="cpu", rescale="-1:1:uint8")
    light = tifffile.imread(image)[0].astype(float)
    [values, *_] = levels_of(out)
    _, [first, _] = about(out)
    low, high = float(first["value_of_0"]), float(first["value_of_255"])
    assert (low, high) == (light.min(), light.max())
    assert np.abs(low + values[0] * (high - low) / 255 - light).max() <= (high - low) / 255
    predict_file(model, ["dna"], image, out, channel=0, stack=True, device="cpu", rescale="-1:1:uint16")
    assert np.array_equal(levels_of(out)[0][0], light)


def test_constant_light_has_no_range_to_be_mapped_and_is_zero(tmp_path):
    model = Model.create(
        tmp_path / "model",
        RepModeUNet(Architecture(width=2, depth=1, experts=("conv3",)), ("dna",), seed=0),
        voxel_size=None,
        preprocessing={"order": 1, "empty": "zeros"},
        inference={"window": (4, 8, 8), "overlap": 0.5, "batch": 3},
    )
    image, out = tmp_path / "flat.npy", tmp_path / "stack.ome.zarr"
    np.save(image, np.full((4, 8, 8), 700, np.uint16))
    predict_file(model, "dna", image, out, stack=True, device="cpu", rescale="-1:1:uint8")
    assert not levels_of(out)[0][0].any()
    _, [first, _] = about(out)
    assert first["values"] == "those of the input (uint16), which are all 700, as 0"
    assert float(first["value_of_0"]) == 700


@pytest.mark.parametrize(
    ("dtype", "says"),
    [
        ("uint16", "those of the input (uint16)"),
        ("float32", "those of the input (float32)"),
        ("uint32", "those of the input (uint32), whole numbers above 16777216 rounded to float32"),
        ("float64", "those of the input (float64), rounded to float32"),
    ],
)
def test_light_that_float32_rounds_is_said_to_be_rounded(model, tmp_path, dtype, says):
    top = 65535 if dtype == "uint16" else 2**32 - 256
    light = np.random.default_rng(0).uniform(0, top, (7, 18, 22)).astype(dtype)
    path, out = tmp_path / "light.npy", tmp_path / "stack.ome.zarr"
    np.save(path, light)
    predict_file(model, ["dna"], path, out, stack=True, device="cpu", voxel_size=VOXEL)
    [values, *_] = levels_of(out)
    assert np.array_equal(values[0], light.astype(np.float32))
    _, [first, _] = about(out)
    assert first["values"] == says
    assert np.array_equal(values[0].astype(np.float64), light.astype(np.float64)) == ("rounded" not in says)


def test_the_note_on_a_forced_voxel_size_stays_with_the_file(model, image, tmp_path):
    out = tmp_path / "dna.ome.tif"
    with pytest.raises(ImageError, match=r"more than 1\.5 times coarser on z"):
        predict_file(model, "dna", image, out, channel=0, device="cpu", voxel_size=(2.0, 0.3, 0.25))
    assert not list(tmp_path.glob("dna*"))
    done = predict_file(
        model, "dna", image, out, channel=0, device="cpu", voxel_size=(2.0, 0.3, 0.25), force=True
    )
    assert "coarser on z" in done.notes[0]
    whole, _ = about(out)
    assert "coarser on z" in whole["notes"]
    assert str(tmp_path) not in whole["notes"]


def test_preprocessing_of_the_model_is_that_of_the_prediction(image, tmp_path):
    from repmode_cl.data.preprocessing.normalisation import normalise
    from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
    from repmode_cl.data.preprocessing.resampling import resample

    network = RepModeUNet(Architecture(width=2, depth=1, experts=("conv3",)), ("dna",), seed=0)
    recipe = PreprocessingRecipe(axes="xy", order=3, anti_alias=True, percentiles=(2.0, 98.0))
    model = Model.create(
        tmp_path / "model",
        network,
        voxel_size=(0.5, 0.4, 0.4),
        preprocessing=recipe.to_json(),
        inference={"window": [6, 10, 8], "overlap": 0.5, "batch": 3},
    )
    done = predict_file(model, "dna", image, tmp_path / "out.npy", channel=0, device="cpu")
    volume = tifffile.imread(image)[0]
    size = (0.6, 0.4, 0.4)
    prepared = normalise(
        resample(volume, (0.6, 0.3, 0.25), size, 3, anti_alias=True), percentiles=(2.0, 98.0)
    )
    assert done.grid == prepared.shape == (7, 13, 14)
    from repmode_cl.data.preprocessing.resampling import resample_to

    want = resample_to(model.predict(prepared, "dna"), volume.shape, 1)
    assert np.abs(np.load(done.path) - want).max() <= 1e-4 * np.abs(want).max()


def test_colours_differ():
    assert set(STRUCTURE_COLOURS) == set(TWELVE_STRUCTURES)
    assert len(set(STRUCTURE_COLOURS.values())) == 12
    assert colour_of("peroxisome") == colour_of("peroxisome") != colour_of("lysosome")
    assert all(0 <= part <= 255 for name in ("peroxisome", "lysosome") for part in colour_of(name))


@pytest.mark.parametrize("text", ["", "1", "2:1", "1:1", "a:b", "nan:1", "0:inf", "0:1:int16", "0:1:uint8:x"])
def test_texts_that_are_no_range(text):
    with pytest.raises(RepmodeError, match="rescale"):
        Rescale.parse(text)
