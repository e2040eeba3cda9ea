"""Image readers: every axis order, voxel sizes in every unit, and files that must be refused."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from repmode_cl.data.readers import ImageReader, Region, open_image
from repmode_cl.errors import ImageError

SIZES = {"T": 2, "C": 3, "Z": 4, "Y": 5, "X": 6}


def numbered(axes: str, dtype: str = "uint16") -> np.ndarray:
    shape = tuple(SIZES[axis] for axis in axes)
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def as_zyx(image: np.ndarray, axes: str, c: int = 0, t: int = 0) -> np.ndarray:
    for axis, value in (("T", t), ("C", c)):
        if axis in axes:
            image, axes = np.take(image, value, axes.index(axis)), axes.replace(axis, "")
    return image.transpose([axes.index(axis) for axis in "ZYX"])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("axes", ["ZYX", "CZYX", "ZCYX", "TZCYX", "TCZYX", "CTZYX", "ZTCYX"])
def test_ome_tiff_in_any_order_of_its_axes(tmp_path: Path, axes: str, compression: str | None) -> None:
    image = numbered(axes)
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, image, metadata={"axes": axes}, compression=compression)
    with open_image(path) as reader:
        assert isinstance(reader, ImageReader)
        assert (reader.axes, reader.shape, reader.dtype) == ("CZYX", (4, 5, 6), np.uint16)
        assert reader.times == (2 if "T" in axes else 1)
        assert reader.n_channels == (3 if "C" in axes else 1)
        for c, t in itertools.product(range(reader.n_channels), range(reader.times)):
            expected = as_zyx(image, axes, c, t)
            np.testing.assert_array_equal(reader.read(c, t=t), expected)
            part = reader.read(c, Region.parse("1:3,2:,:4"), t=t)
            np.testing.assert_array_equal(part, expected[1:3, 2:, :4])


@pytest.mark.parametrize("axes", ["YXZ", "XYZ", "YXCZ", "ZXY"])
def test_planes_that_are_not_the_last_axes(tmp_path: Path, axes: str) -> None:
    image = numbered(axes, "float32")
    path = tmp_path / "a.tif"
    for compression in (None, "zlib"):
        tifffile.imwrite(
            path, image, metadata={"axes": axes}, photometric="minisblack", compression=compression
        )
        with open_image(path) as reader:
            np.testing.assert_array_equal(reader.read(0), as_zyx(image, axes))
            np.testing.assert_array_equal(
                reader.read(reader.n_channels - 1, Region.parse("0:2,1:4,2:3")),
                as_zyx(image, axes, reader.n_channels - 1)[0:2, 1:4, 2:3],
            )


@pytest.mark.parametrize("axes", ["ZYX", "ZCYX", "TZCYX", "CYX"])
def test_imagej_hyperstack(tmp_path: Path, axes: str) -> None:
    image = numbered(axes)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, image, imagej=True, resolution=(1 / 0.1, 1 / 0.2),
        metadata={"axes": axes, "spacing": 0.5, "unit": "um"},
    )  # fmt: skip
    with open_image(path) as reader:
        assert reader.voxel_size == pytest.approx((0.5, 0.2, 0.1))
        expected = as_zyx(image, axes, t=1) if "Z" in axes else image[:1]
        np.testing.assert_array_equal(reader.read(0, t=1 if "T" in axes else None), expected)


@pytest.mark.parametrize("unit", ["micron", "\\u00B5m", "nm", "pixel", ""])
def test_imagej_units(tmp_path: Path, unit: str) -> None:
    path = tmp_path / "a.tif"
    metadata = {"axes": "ZYX", "spacing": -2.0, "unit": unit}
    tifffile.imwrite(path, numbered("ZYX"), imagej=True, resolution=(4, 2), metadata=metadata)
    expected = {"micron": (2, 0.5, 0.25), "\\u00B5m": (2, 0.5, 0.25), "nm": (2e-3, 5e-4, 2.5e-4)}
    with open_image(path) as reader:
        assert reader.voxel_size == (pytest.approx(expected[unit]) if unit in expected else None)


def test_imagej_units_of_single_axes(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    metadata = {"axes": "ZYX", "spacing": 300.0, "unit": "micron", "zunit": "nm", "yunit": "mm"}
    tifffile.imwrite(path, numbered("ZYX"), imagej=True, resolution=(4, 2), metadata=metadata)
    with open_image(path) as reader:
        assert reader.voxel_size == pytest.approx((0.3, 500, 0.25))


@pytest.mark.parametrize(
    ("unit", "factor"), [("µm", 1), ("nm", 1e-3), ("mm", 1e3), ("Å", 1e-4), ("pixel", None), (None, 1)]
)
def test_ome_units_are_converted_to_um(tmp_path: Path, unit: str | None, factor: float | None) -> None:
    metadata: dict[str, object] = {"axes": "CZYX", "Channel": {"Name": ["light", "dna", "488"]}}
    for axis, size in zip("ZYX", (3.0, 2.0, 1.0), strict=True):
        metadata[f"PhysicalSize{axis}"] = size
        if unit is not None:
            metadata[f"PhysicalSize{axis}Unit"] = unit
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, numbered("CZYX"), metadata=metadata)
    with open_image(path) as reader:
        expected = None if factor is None else pytest.approx((3 * factor, 2 * factor, factor))
        assert reader.voxel_size == expected
        assert reader.channel_names == ("light", "dna", "488")
        assert [reader.channel_index(name) for name in ("dna", 1, "1", 488, "488")] == [1, 1, 1, 2, 2]
        with pytest.raises(ImageError, match=r"no channel is named.*0 'light', 1 'dna'"):
            reader.channel_index(None)
        with pytest.raises(ImageError, match=r"no channel 'dan' \(did you mean 'dna'\?\)"):
            reader.channel_index("dan")
        for wrong in (3, -1):
            with pytest.raises(ImageError, match="there is no channel"):
                reader.channel_index(wrong)


def test_half_known_voxel_size_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        path, numbered("ZYX"), metadata={"axes": "ZYX", "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.1}
    )
    with open_image(path) as reader:
        assert reader.voxel_size is None


def test_plain_pages_are_planes(tmp_path: Path) -> None:
    image = numbered("ZYX", ">i2")
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, byteorder=">") as writer:
        for plane in image:
            writer.write(plane, contiguous=False, metadata=None)
    with open_image(path) as reader:
        volume = reader.read(reader.channel_index(None))
        assert volume.dtype == np.dtype("int16")
        assert volume.dtype.isnative
        np.testing.assert_array_equal(volume, image)


def test_tiles(tmp_path: Path) -> None:
    image = np.arange(3 * 40 * 50, dtype="float32").reshape(3, 40, 50)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, image, tile=(16, 16), compression="zlib", metadata={"axes": "ZYX"}, photometric="minisblack"
    )
    with open_image(path) as reader:
        np.testing.assert_array_equal(
            reader.read(0, Region((1, 3), (10, 30), (7, 50))), image[1:3, 10:30, 7:]
        )


def test_several_times_or_scenes_are_never_chosen_silently(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, numbered("TZYX"), metadata={"axes": "TZYX"})
    with open_image(path) as reader:
        with pytest.raises(ImageError, match=r"2 time points of 4 planes; name one from 0 to 1"):
            reader.read(0)
        with pytest.raises(ImageError, match="no time point 2; there are 0 to 1"):
            reader.read(0, t=2)
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(numbered("ZYX"), metadata={"axes": "ZYX", "Name": "left"})
        writer.write(numbered("ZYX")[:2], metadata={"axes": "ZYX", "Name": "right", "PhysicalSizeX": 0.5})
    with open_image(path) as reader:
        assert reader.scenes == ("left", "right")
        with pytest.raises(ImageError, match=r"2 scenes: 0 'left'.*1 'right' CZYX 1x2x5x6"):
            reader.read(0)
        assert reader.read(0, scene=1).shape == (2, 5, 6)
    for scene in (1, "1", "right"):
        with open_image(path, scene=scene) as reader:
            assert reader.shape == reader.read(0).shape == (2, 5, 6)
    for wrong in (2, -1, "rihgt"):
        with pytest.raises(ImageError, match=r"no scene .*; the file holds 2 scenes: 0 'left'"):
            open_image(path, scene=wrong)


def test_time_point_chosen_when_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    image = numbered("TZYX")
    tifffile.imwrite(path, image, metadata={"axes": "TZYX"})
    with open_image(path, t=1) as reader:
        assert reader.times == 2
        np.testing.assert_array_equal(reader.read(0), image[1])
        np.testing.assert_array_equal(reader.read(0, t=0), image[0])
    with pytest.raises(ImageError, match="no time point 2; there are 0 to 1"):
        open_image(path, t=2)


def test_what_is_no_stack_of_channels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((2, 3, 8, 9), "uint8"), photometric="minisblack")
    with pytest.raises(
        ImageError,
        match=r"2 along an unnamed axis, 3 along an unnamed axis, .*; an unnamed axis cannot be used",
    ):
        open_image(path)
    tifffile.imwrite(path, np.zeros((3, 8, 9), "complex64"), photometric="minisblack")
    with pytest.raises(ImageError, match="complex64 are no intensities"):
        open_image(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"\x89HDF" + bytes(20), r"HDF5 \(Imaris\) is not supported yet; convert it to OME-TIFF"),
     (b"hello world", "no format known here"), (b"II*\0", "not readable as TIFF|damaged|no image")],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message):
        open_image(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        open_image(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="folder"):
        open_image(tmp_path)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_truncated_file(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "a.tif"
    noise = np.random.default_rng(0).integers(0, 9999, (6, 64, 64), "uint16")
    tifffile.imwrite(path, noise, metadata={"axes": "ZYX"}, compression=compression)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ImageError, match=r"truncated|missing|damaged|TIFF"), open_image(path) as reader:
        reader.read(0)


@pytest.mark.parametrize("compression", [1, 8])
def test_absurd_headers_do_not_allocate(tmp_path: Path, compression: int) -> None:
    tags = [
        (256, 4, 100_000),
        (257, 4, 100_000),
        (258, 3, 16),
        (259, 3, compression),
        (262, 3, 1),
    ]
    tags += [(273, 4, 200), (277, 3, 1), (278, 4, 100_000), (279, 4, 100)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    path = tmp_path / "a.tif"
    path.write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(400))
    with pytest.raises(ImageError, match=r"truncated|far more than"), open_image(path) as reader:
        reader.read(0)


def test_absurd_ome_header(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, numbered("ZYX"), metadata={"axes": "ZYX"})
    data = path.read_bytes().replace(b'SizeT="1"', b'SizeT="9"')
    path.write_bytes(data.replace(b'PlaneCount="4"', b'PlaneCount="9"'))
    with pytest.raises(ImageError), open_image(path) as reader:
        reader.read(0, t=8)
    xml = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    xml += '<Image ID="Image:0"><Pixels ID="P:0" DimensionOrder="XYZCT" Type="uint8" SizeX="4" SizeY="4" '
    xml += 'SizeZ="2000000000" SizeC="1" SizeT="1"><TiffData IFD="0" PlaneCount="2000000000"/></Pixels>'
    xml += "</Image></OME>"
    tifffile.imwrite(path, np.zeros((4, 4), "uint8"), description=xml, metadata=None)
    with pytest.raises(ImageError, match="claims 2000000000 planes"):
        open_image(path)


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10_000), junk=st.binary(min_size=1, max_size=12))
def test_damaged_bytes_give_an_image_error_or_an_image(
    tmp_path_factory: pytest.TempPathFactory, place: int, junk: bytes
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.ome.tif"
    tifffile.imwrite(path, numbered("CZYX"), metadata={"axes": "CZYX"}, compression="zlib")
    data = bytearray(path.read_bytes())
    place %= len(data)
    data[place : place + len(junk)] = junk
    path.write_bytes(data)
    try:
        with open_image(path) as reader:
            assert reader.read(0, t=0, scene=0).shape == reader.shape
    except ImageError:
        pass


@given(st.tuples(*[st.tuples(st.integers(0, 50), st.integers(1, 50) | st.none())] * 3))
def test_region_text_round_trip(spans: tuple[tuple[int, int | None], ...]) -> None:
    z, y, x = ((start, None if length is None else start + length) for start, length in spans)
    assert Region.parse(str(Region(z, y, x))) == Region(z, y, x)


@pytest.mark.parametrize(
    "text", ["", "1:2", "1:2,3:4", "1:2,3:4,5:6,7:8", "a:b,:,:", "-1:2,:,:", "3:3,:,:", "4,:,:"]
)
def test_wrong_regions(text: str) -> None:
    with pytest.raises(ImageError, match="region"):
        Region.parse(text)


def test_region_beyond_the_volume() -> None:
    assert Region.parse(":,1:3,2:").shape_in((4, 5, 6)) == (4, 2, 4)
    with pytest.raises(ImageError, match=r"beyond the volume of 4 x 5 x 6 voxels.*y has 0:5"):
        Region.parse(":,1:6,:").resolve((4, 5, 6))
