"""Nikon ND2: positions, times, colour, missing frames, and maps that must not be believed; compared with nd2 itself.

The files are written here, from what the package nd2 reads: no file of a microscope was at hand.
"""

from __future__ import annotations

import importlib.util
import struct
import tracemalloc
import zlib
from pathlib import Path

import nd2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nd2_files import TAIL_NAME, chunk, write_nd2

from repmode_cl.data.readers import ImageReader, Region, open_image
from repmode_cl.errors import ImageError

RNG = np.random.default_rng(0)


def noise(*shape: int, dtype: str = "uint16") -> np.ndarray:
    return RNG.integers(0, 250, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(("compressed", "padding"), [(False, 0), (False, 6), (True, 0), (True, 6)])
def test_the_library_reads_the_same(tmp_path: Path, dtype: str, compressed: bool, padding: int) -> None:
    image = noise(2, 2, 3, 2, 6, 8, dtype=dtype)
    padding *= image.dtype.itemsize
    path = write_nd2(
        tmp_path / "a.dat",
        image,
        names=("BF", "GFP"),
        positions=("A1", "B2"),
        compressed=compressed,
        padding=padding,
    )
    with open_image(path) as reader, nd2.ND2File(path) as file:
        assert isinstance(reader, ImageReader)
        expected = file.asarray()
        assert dict(file.sizes) == {"P": 2, "T": 2, "Z": 3, "C": 2, "Y": 6, "X": 8}
        assert (reader.scenes, reader.times, reader.shape) == (("A1", "B2"), 2, (3, 6, 8))
        assert (
            reader.channel_names == tuple(one.channel.name for one in file.metadata.channels) == ("BF", "GFP")
        )
        assert (reader.dtype, reader.random_access) == (np.dtype(dtype), not compressed)
        size = file.voxel_size()
        assert reader.voxel_size == (size.z, size.y, size.x) == pytest.approx((0.3, 0.2, 0.2))
        for p, t, c in np.ndindex(2, 2, 2):
            read = reader.read(c, scene=p, t=t)
            np.testing.assert_array_equal(read, image[p, t, :, c])
            np.testing.assert_array_equal(read, expected[p, t, :, c])
        part = Region.parse("1:3,2:,5:7")
        np.testing.assert_array_equal(reader.read(1, part, scene="B2", t=0), image[1, 0, 1:3, 1, 2:, 5:7])
        with pytest.raises(ImageError, match=r"2 scenes: 0 'A1' CZYX 2x3x6x8, 2 times, 1 'B2'"):
            reader.read(0, t=0)


def test_one_plane_of_one_channel(tmp_path: Path) -> None:
    image = noise(1, 1, 1, 1, 5, 7)
    with open_image(write_nd2(tmp_path / "a.nd2", image)) as reader:
        assert (reader.shape, reader.voxel_size, reader.channel_names) == ((1, 5, 7), None, ("C0",))
        np.testing.assert_array_equal(reader.read(0), image[0, 0, :, 0])


def test_a_size_that_was_not_calibrated_is_unknown(tmp_path: Path) -> None:
    """The library gives 1 um."""
    path = write_nd2(tmp_path / "a.nd2", noise(1, 1, 3, 1, 5, 7), voxel_size=None)
    with open_image(path) as reader, nd2.ND2File(path) as file:
        assert (reader.voxel_size, tuple(file.voxel_size())) == (None, (1.0, 1.0, 1.0))


def test_colour_samples_are_channels_to_choose_from(tmp_path: Path) -> None:
    image = noise(1, 1, 2, 1, 5, 7, 3, dtype="uint8")
    path = write_nd2(tmp_path / "a.nd2", image, samples=3)
    with open_image(path) as reader, nd2.ND2File(path) as file:
        assert reader.channel_names == ("red", "green", "blue")
        assert file.is_rgb
        for number in range(3):
            np.testing.assert_array_equal(reader.read(number), file.asarray()[..., number])


def test_a_missing_frame_is_refused_not_black(tmp_path: Path) -> None:
    image = noise(1, 2, 3, 1, 5, 7) + 1
    path = write_nd2(tmp_path / "a.nd2", image, left_out=(4, 5))
    with nd2.ND2File(path) as file:
        assert file.asarray()[1, 1:].max() == 0  # the library's way
    with open_image(path) as reader:
        np.testing.assert_array_equal(reader.read(0, t=0), image[0, 0, :, 0])
        np.testing.assert_array_equal(reader.read(0, Region((0, 1)), t=1), image[0, 1, :1, 0])
        with pytest.raises(ImageError, match="no plane 1 at time point 1; was the experiment stopped"):
            reader.read(0, t=1)


@pytest.mark.parametrize("part", [0.001, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("compressed", [False, True])
def test_truncated(tmp_path: Path, part: float, compressed: bool) -> None:
    path = write_nd2(tmp_path / "a.nd2", noise(1, 1, 3, 2, 30, 40), compressed=compressed)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ImageError, match=r"truncated|damaged") as error:
        open_image(path)
    assert str(path) in str(error.value)


def test_absurd_headers_do_not_allocate(tmp_path: Path) -> None:
    path = write_nd2(tmp_path / "a.nd2", noise(1, 1, 3, 2, 30, 40))
    data = path.read_bytes()
    width = data.index("uiWidth\0".encode("utf-16-le")) + 16
    for place, message in (
        (width, "damaged: frames of"),
        (data.index("uiHeight\0".encode("utf-16-le")) + 18, "claims"),
    ):
        huge = bytearray(data)
        struct.pack_into("<I", huge, place, 2**31)
        path.write_bytes(huge)
        with pytest.raises(ImageError, match=message):
            open_image(path)
    planes = bytearray(data)
    z_loop = data.index("uiCount\0".encode("utf-16-le"), data.index("uLoopPars\0".encode("utf-16-le"))) + 16
    struct.pack_into("<I", planes, z_loop, 2**31)  # planes
    path.write_bytes(planes)
    with open_image(path) as reader:
        assert reader.shape == (2**31, 30, 40)
        assert reader.read(0, Region((0, 3))).shape == (3, 30, 40)
        with pytest.raises(ImageError, match="no plane 3"):
            reader.read(0)
    # A chunk that is larger than the file, and one that unpacks to more than memory holds.
    long = bytearray(data)
    struct.pack_into("<Q", long, data.index(b"ImageAttributesLV!") - 8, 2**40)
    path.write_bytes(long)
    with pytest.raises(ImageError, match=r"truncated: a chunk ends at byte"):
        open_image(path)


@pytest.mark.parametrize("name", ["uiComp", "uiCompCount"])
def test_absurd_numbers_of_channels_make_no_lists(tmp_path: Path, name: str) -> None:
    path = write_nd2(tmp_path / "a.nd2", noise(1, 1, 3, 2, 8, 8), names=("a", "b"))
    data = bytearray(path.read_bytes())
    text = f"{name}\0".encode("utf-16-le")
    struct.pack_into("<I", data, data.index(text) + len(text), 2_000_000)
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=r"damaged: its header claims 200000\d numbers for each pixel"):
            open_image(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_packed_metadata_of_any_size_are_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from repmode_cl.data.readers.nd2 import chunk_map

    monkeypatch.setattr(chunk_map, "_MOST_METADATA", 1 << 20)
    bomb = b"\x4c\0" + bytes(10) + zlib.compress(bytes(2 << 20))
    data = chunk(b"ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver3.0".ljust(64, b"\0"), pad=False)
    listed = b"ImageAttributesLV!" + struct.pack("<QQ", len(data), len(bomb))
    data += chunk(b"ImageAttributesLV!", bomb)
    place = len(data)
    data += chunk(b"ND2 FILEMAP SIGNATURE NAME 0001!", listed + TAIL_NAME + bytes(16), pad=False)
    path = tmp_path / "a.nd2"
    path.write_bytes(data + struct.pack("<32sQ", TAIL_NAME, place))
    with pytest.raises(ImageError, match="larger than any microscope writes"):
        open_image(path)


@pytest.fixture(scope="module")
def sound_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_nd2(tmp_path_factory.mktemp("sound") / "a.nd2", noise(1, 2, 2, 1, 4, 5)).read_bytes()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 2**20), junk=st.binary(min_size=1, max_size=12))
def test_damaged_headers_give_an_image_error_or_an_image(
    tmp_path_factory: pytest.TempPathFactory, sound_file: bytes, place: int, junk: bytes
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.nd2"
    data = bytearray(sound_file)
    # Where there is something: names are padded by thousands of zeros.
    places = [number for number, byte in enumerate(data) if byte]
    place = places[place % len(places)]
    data[place : place + len(junk)] = junk
    path.write_bytes(data)
    try:
        with open_image(path) as reader:
            assert reader.shape[0] >= 1
    except ImageError:
        pass


def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_nd2(tmp_path / "a.nd2", noise(1, 1, 2, 1, 4, 5))
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "nd2" else real(name, *rest)
    )
    with pytest.raises(ImageError, match=r"Nikon ND2.*pip install -e '\.\[nd2\]'"):
        open_image(path)
