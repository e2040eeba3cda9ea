"""Reader of each file: other packages' formats, what is refused, and every sample of real software."""

from __future__ import annotations

import importlib.metadata
import re
import struct
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from repmode_cl.data.readers import BaseReader, ImageReader, Region, SceneInfo, open_image, registry
from repmode_cl.data.readers.image_reader import Box
from repmode_cl.data.readers.location import as_location, is_url
from repmode_cl.data.readers.tiff.axes import list_series, whole_axes
from repmode_cl.errors import ImageError

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real images are not part of the repository")


class RawReader(BaseReader):
    """A format of another package: the word RAW, three sizes, bytes; as docs/formats.md has it."""

    def _describe(self, scene: int) -> SceneInfo:
        z, y, x = struct.unpack("<3i", Path(self.path).read_bytes()[3:15])
        return SceneInfo((z, y, x), np.dtype("uint8"), ("light",), voxel_size=(1.0, 1.0, 1.0))

    def _load(self, scene: int, t: int, channel: int, box: Box) -> NDArray[Any]:
        return np.fromfile(self.path, "uint8", offset=15).reshape(self.shape)[box].copy()


class RawFormat:
    def recognises(self, path: Path | str, head: bytes) -> bool:
        return head.startswith(b"RAW") or str(path).startswith("raw://")

    def open(self, path: Path | str, *, scene: int | str | None = None, t: int | None = None) -> ImageReader:
        return RawReader(path, scene=scene, t=t)


@pytest.fixture
def other_package(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Offer an object as the entry point of another package."""
    offered: dict[str, Any] = {"object": RawFormat()}
    module = types.ModuleType("other_package_formats")
    module.__getattr__ = lambda name: offered[name]  # type: ignore[method-assign]
    monkeypatch.setitem(__import__("sys").modules, "other_package_formats", module)
    point = importlib.metadata.EntryPoint("raw", "other_package_formats:object", registry.ENTRY_POINTS)
    original = importlib.metadata.entry_points

    def entry_points(**chosen: Any) -> Any:
        found = original(**chosen)
        return (
            importlib.metadata.EntryPoints((*found, point))
            if chosen == {"group": registry.ENTRY_POINTS}
            else found
        )

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    registry._plugins.cache_clear()
    yield offered
    registry._plugins.cache_clear()


def test_a_format_of_another_package(tmp_path: Path, other_package: dict[str, Any]) -> None:
    image = np.arange(24, dtype="uint8").reshape(2, 3, 4)
    path = tmp_path / "a.raw"
    path.write_bytes(b"RAW" + struct.pack("<3i", *image.shape) + image.tobytes())
    with open_image(path) as reader:
        assert isinstance(reader, ImageReader)
        assert (reader.shape, reader.scenes, reader.times) == ((2, 3, 4), ("S0",), 1)
        np.testing.assert_array_equal(reader.read(0, Region.parse("1:,:,2:")), image[1:, :, 2:])
        with pytest.raises(ImageError, match="no time point 1"):
            reader.read(0, t=1)
    with pytest.raises(ImageError, match="no scene 3; the file holds 1 scene: 0 'S0'"):
        open_image(path, scene=3)
    # What is read here stays so.
    np.save(tmp_path / "a.npy", image)
    with open_image(tmp_path / "a.npy") as reader:
        assert not isinstance(reader, RawReader)


def test_a_broken_package_is_named(tmp_path: Path, other_package: dict[str, Any]) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(b"anything")
    other_package["object"] = types.SimpleNamespace(recognises=lambda path, head: 1 / 0)
    with pytest.raises(
        ImageError, match=r"a.raw: the reader 'raw' of another package fails on it \(division"
    ):
        open_image(path)
    registry._plugins.cache_clear()
    del other_package["object"]
    with pytest.raises(
        ImageError, match=r"image reader 'raw' \(other_package_formats:object\).*cannot be loaded"
    ):
        open_image(path)


@pytest.mark.parametrize(
    ("text", "url"),
    [("s3://bucket/a.zarr", True), (" https://host/a.zarr/ ", True), ("memory://a", True), ("C://a.tif", False),
     ("C:\\a.tif", False), ("a/b.tif", False), ("/a//b.tif", False)],
)  # fmt: skip
def test_urls_stay_text(text: str, url: bool) -> None:
    found = as_location(text)
    assert is_url(found) == url
    assert found == (text.strip().rstrip("/") if url else Path(text))


def test_folders_links_and_names(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="a folder, not an image file"):
        open_image(tmp_path)
    loop = tmp_path / "loop.tif"
    try:
        loop.symlink_to(loop)
    except OSError:  # Windows without the right to make links
        pass
    else:
        with pytest.raises(ImageError, match=r"loop.tif: cannot be read"):
            open_image(loop)
    with pytest.raises(ImageError, match=r"cannot be read|no such file"):
        open_image("a\0b.tif")


def metadata_of(path: Path) -> dict[str, Any]:
    """Read what a file says of itself, without the readers: sizes, voxel size (z, y, x) in um, channel names."""
    if path.suffix == ".czi":
        # Some files keep the XML of the experiment's set-up before that of the image.
        found = re.findall(rb"<ImageDocument.*?</ImageDocument>", path.read_bytes(), re.DOTALL)
        root = next(
            at
            for at in map(ElementTree.fromstring, found)
            if at.find("Metadata/Information/Image") is not None
        )
        image = root.find("Metadata/Information/Image")
        assert image is not None
        scale = {
            at.get("Id"): float(at.findtext("Value") or 0) * 1e6
            for at in root.iterfind(".//Scaling/Items/Distance")
        }
        return {
            "sizes": {axis: int(image.findtext(f"Size{axis}") or 1) for axis in "TCZYX"},
            "voxel": tuple(scale.get(axis) for axis in "ZYX"),
            "names": [channel.get("Name") for channel in image.iterfind("Dimensions/Channels/Channel")],
        }
    with tifffile.TiffFile(path) as file:
        if file.is_ome:
            pixels = next(
                at for at in ElementTree.fromstring(file.ome_metadata).iter() if at.tag.endswith("}Pixels")
            )
            voxel = [pixels.get(f"PhysicalSize{axis}") for axis in "ZYX"]
            channels = [at for at in pixels if at.tag.endswith("}Channel")]
            return {
                "sizes": {axis: int(pixels.get(f"Size{axis}")) for axis in "TCZYX"},
                "voxel": tuple(None if size is None else float(size) for size in voxel),
                "names": [at.get("Name") for at in channels],
            }
        page, about = file.pages[0], file.imagej_metadata
        if about is None:  # a plain stack, which says nothing of itself but its planes
            planes = {"Z": len(file.pages), "Y": page.imagelength, "X": page.imagewidth}
            return {"sizes": {"T": 1, "C": 1} | planes, "voxel": (None,) * 3, "names": [None]}
        pixel = [1 / np.divide(*page.tags[f"{axis}Resolution"].value) for axis in "YX"]
        sizes = {"T": about.get("frames", 1), "C": about.get("channels", 1), "Z": about["slices"]}
        return {
            "sizes": sizes | {"Y": page.imagelength, "X": page.imagewidth},
            "voxel": (about["spacing"], *pixel),
            "names": [None],
        }


SAMPLES = sorted(
    path
    for folder in ("reader_samples", "real")
    for path in (DATA / folder).glob("*")
    if path.suffix in (".tif", ".tiff", ".czi")
)
REFUSED = {
    "2012-06_FLIM-modulo-sample.ome.tif": r"holds 2 C, 8 lifetime bins, 150 Y, 180 X.*cannot be used",
    "2010-06_6x4y1z1t1c8b-swatch-2s2p4w2ws.ome.tiff": r"holds 22 scenes.*name one of them",
    "mini-spim-moduloZ.ome.tiff": r"4 regions or positions.*4 angles.*cannot be used",
}
# Files that leave out what must then be chosen, or hold more than their sizes say.
TILED = {"tiles_z.czi": {"Y": 512, "X": 510}, "tiles_time_z.czi": {"Y": 512, "X": 512}}
COLOUR = {"RGB-multichannel.czi": 3, "RGB-8bit.czi": 3}


@needs_data
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_every_sample_against_its_own_metadata(path: Path) -> None:
    if path.name in REFUSED:
        with pytest.raises(ImageError, match=REFUSED[path.name]), open_image(path) as reader:
            reader.read(0)
        return
    about = metadata_of(path)
    sizes = about["sizes"] | TILED.get(path.name, {})
    with open_image(path) as reader:
        assert (reader.times, *reader.shape) == tuple(sizes[axis] for axis in "TZYX")
        assert reader.n_channels == sizes["C"] * COLOUR.get(path.name, 1)
        known = all(about["voxel"])
        assert reader.voxel_size == (pytest.approx(about["voxel"]) if known else None)
        colours = ("red", "green", "blue") if path.name in COLOUR else (None,)
        names = [
            " ".join(filter(None, (name or f"C{n}", colour))) if about["names"] else colour
            for n, name in enumerate(about["names"] or (None,))
            for colour in colours
        ]
        assert reader.channel_names == tuple(names)
        if reader.times > 1:
            with pytest.raises(ImageError, match=f"{reader.times} time points of"):
                reader.read(0)
        last, t = reader.n_channels - 1, reader.times - 1
        volume = reader.read(last, t=t)
        assert (volume.shape, volume.dtype) == (reader.shape, reader.dtype)
        z, y, x = (size // 2 for size in reader.shape)
        part = reader.read(last, Region((z, None), (y, None), (0, x)), t=t)
        np.testing.assert_array_equal(part, volume[z:, y:, :x])
        if path.suffix != ".czi":
            with tifffile.TiffFile(path) as file:
                series = list_series(file)[0]
                whole = series.asarray(squeeze=False)
                index = [{"T": t, "C": last}.get(axis, slice(None)) for axis in whole_axes(series)[0]]
            np.testing.assert_array_equal(volume, np.squeeze(whole[tuple(index)]).reshape(volume.shape))


def tiles_of(path: Path) -> Iterator[tuple[dict[str, int], np.ndarray]]:
    """Read a CZI's uncompressed tiles where its directory says they are, without any library."""
    data = path.read_bytes()
    (place,) = struct.unpack_from("<q", data, 84)
    (count,) = struct.unpack_from("<i", data, place + 32)
    place += 160
    for _ in range(count):
        kind, position, dimensions = (
            struct.unpack_from(form, data, place + at)[0] for form, at in (("<i", 2), ("<q", 6), ("<i", 28))
        )
        place += 32
        start, size = {}, {}
        for _ in range(dimensions):
            axis, first, length = struct.unpack_from("<4sii", data, place)
            start[axis[:1].decode()], size[axis[:1].decode()] = first, length
            place += 20
        metadata, _, pixels = struct.unpack_from("<iiq", data, position + 32)
        begin = position + 32 + max(256, 16 + 32 + 20 * dimensions) + metadata
        dtype, samples = {0: ("uint8", 1), 1: ("uint16", 1), 3: ("uint8", 3)}[kind]
        found = np.frombuffer(data, dtype, pixels // np.dtype(dtype).itemsize, begin)
        yield start, found.reshape(size["Y"], size["X"], samples)


@needs_data
@pytest.mark.parametrize(
    "path", [path for path in SAMPLES if path.suffix == ".czi"], ids=lambda path: path.name
)
def test_czi_voxels_against_the_tiles_themselves(path: Path) -> None:
    tiles = list(tiles_of(path))
    left, top = (min(start[axis] for start, _ in tiles) for axis in "XY")
    with open_image(path) as reader:
        samples = tiles[0][1].shape[-1]
        last = reader.times - 1
        volumes = [reader.read(channel, t=last) for channel in range(reader.n_channels)]
        # Where tiles overlap the later one counts.
        expected = [np.zeros_like(volume) for volume in volumes]
        shown = [(start, tile) for start, tile in tiles if start.get("T", 0) == last]
        for start, tile in sorted(shown, key=lambda item: item[0].get("M", 0)):
            y, x = start["Y"] - top, start["X"] - left
            for sample in range(samples):
                plane = expected[start.get("C", 0) * samples + samples - 1 - sample][start.get("Z", 0)]
                plane[y : y + tile.shape[0], x : x + tile.shape[1]] = tile[..., sample]
    for volume, want in zip(volumes, expected, strict=True):
        np.testing.assert_array_equal(volume, want)
    assert any(want.any() for want in expected)
