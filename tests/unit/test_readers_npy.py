"""Raw `.npy` arrays as images: read box by box, and never believed beyond what the file holds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from repmode_cl.data.readers import ImageReader, Region, open_image
from repmode_cl.errors import ImageError


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "<i4", "float16", "float32", ">f8", "bool"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("channels", [None, 3])
def test_every_type_order_and_channel(tmp_path: Path, dtype: str, order: str, channels: int | None) -> None:
    shape = (4, 5, 6) if channels is None else (channels, 4, 5, 6)
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    # By its content, not by its name.
    path = tmp_path / "array.raw"
    with path.open("wb") as file:
        np.save(file, np.asarray(array, order=order))
    with open_image(path) as image:
        assert isinstance(image, ImageReader)
        assert (image.axes, image.shape, image.n_channels) == ("CZYX", (4, 5, 6), channels or 1)
        assert (image.voxel_size, image.scenes, image.times, image.random_access) == (None, ("S0",), 1, True)
        assert image.dtype == np.dtype(dtype).newbyteorder("=")
        last = image.channel_index(None if channels is None else "C2")
        want = array if channels is None else array[2]
        for region, box in ((None, ...), ("1:3,:,2:5", np.s_[1:3, :, 2:5])):
            got = image.read(last, Region.parse(region) if region else None)
            assert got.dtype == image.dtype
            assert got.flags.c_contiguous
            assert got.base is None, "an array in memory, not a map of the file"
            assert np.array_equal(got, want[box])


def test_leading_axes_of_length_1_go(tmp_path: Path) -> None:
    array = np.arange(2 * 4 * 5 * 6).reshape(1, 1, 2, 4, 5, 6)
    np.save(tmp_path / "a.npy", array)
    with open_image(tmp_path / "a.npy") as image:
        assert (image.n_channels, image.shape) == (2, (4, 5, 6))
        assert np.array_equal(image.read(1), array[0, 0, 1])


def saved(array: np.ndarray, **settings: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **settings)
    return buffer.getvalue()


def headed(text: str, data: bytes = b"\0" * 1000) -> bytes:
    header = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (saved(np.zeros((5, 6))), "readable are three axes"),
        (saved(np.zeros((2, 1, 5, 6, 7))), r"shape \(2, 1, 5, 6, 7\); readable are three axes"),
        (saved(np.zeros((5, 0, 6))), "is empty"),
        (saved(np.zeros((4, 5, 6), complex)), "no intensities"),
        (saved(np.array([[[{}]]]), allow_pickle=True), "no intensities"),
        (saved(np.zeros((4, 5, 6), [("a", "u1")])), "no intensities"),
        (saved(np.zeros((4, 5, 6)))[:-1], "header claims 960 bytes of voxels, the file has 959"),
        (saved(np.zeros((4, 5, 6)))[:20], "header is damaged"),
        (headed("{'descr': '<u2', 'fortran_order': False, 'shape': (1000000000000000, 9, 9)}"), "claims"),
        (headed("{'descr': '<u2', 'fortran_order': False, 'shape': (-4, 9, 9)}"), "empty|damaged"),
        (headed("__import__('os').getcwd()"), "header is damaged"),
        (b"\x93NUMPY\x09\x00" + b"\0" * 100, r"version 9\.0"),
        (b"\x93NUMPY", "header is damaged"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.npy"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as error:
        open_image(path)
    assert str(path) in str(error.value)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((2, 4, 5, 6), np.uint8))
    with pytest.raises(ImageError, match="no scene 1"):
        open_image(path, scene=1)
    image = open_image(path)
    for arguments, message in (
        ({"channel": 2}, "no channel 2"),
        ({"channel": 0, "t": 1}, "no time point 1"),
        ({"channel": 0, "scene": 3}, "no scene 3"),
        ({"channel": 0, "region": Region.parse("0:5,:,:")}, "beyond"),
    ):
        with pytest.raises(ImageError, match=message):
            image.read(**arguments)
    with pytest.raises(ImageError, match="0 'C0', 1 'C1'"):
        image.channel_index(None)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ImageError, match="since it was opened"):
        image.read(0)
