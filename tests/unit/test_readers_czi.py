"""Zeiss CZI: scenes, tiles, time points, colour, planes that are missing, and directories that must not be believed."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pylibCZIrw import czi

from repmode_cl.data.readers import ImageReader, Region, open_image
from repmode_cl.data.readers.czi.directory import read_directory
from repmode_cl.errors import ImageError

RNG = np.random.default_rng(0)


def write(
    path: Path,
    image: np.ndarray,
    scene: int = 0,
    tile: int | None = None,
    origin: int = 0,
    names: dict[int, str] | None = None,
    writer: object = None,
) -> None:
    """Write TCZYX (or TCZYXS), cut into tiles of `tile` pixels along x, with ZEISS's own library."""
    if writer is None:
        with czi.create_czi(str(path), exist_ok=True) as made:
            write(path, image, scene, tile, origin, names, made)
            made.write_metadata("a", channel_names=names, scale_x=1e-7, scale_y=2e-7, scale_z=3e-7)
        return
    for t, c, z in np.ndindex(*image.shape[:3]):
        plane = image[t, c, z]
        for x in range(0, plane.shape[1], tile or plane.shape[1]):
            part = np.ascontiguousarray(plane[:, x : x + tile] if tile else plane)
            writer.write(  # type: ignore[attr-defined]
                data=part if part.ndim == 3 else part[..., None],
                location=(origin + x, origin),
                plane={"T": t, "C": c, "Z": z},
                scene=scene,
            )


def noise(*shape: int, dtype: str = "uint16") -> np.ndarray:
    return RNG.integers(0, 250, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("tile", [None, 7])
def test_times_channels_and_tiles(tmp_path: Path, dtype: str, tile: int | None) -> None:
    image = noise(2, 3, 4, 9, 20, dtype=dtype)
    path = tmp_path / "a.dat"  # by its content, not by its name
    write(path, image, tile=tile, origin=-50, names={0: "BF", 1: "GFP", 2: "BF"})
    with open_image(path) as reader:
        assert isinstance(reader, ImageReader)
        assert (reader.axes, reader.shape, reader.dtype, reader.times) == (
            "CZYX",
            (4, 9, 20),
            np.dtype(dtype),
            2,
        )
        assert (reader.channel_names, len(reader.scenes)) == (("BF", "GFP", "BF"), 1)
        assert reader.voxel_size == pytest.approx((0.3, 0.2, 0.1))
        for t, c in np.ndindex(2, 3):
            np.testing.assert_array_equal(reader.read(c, t=t), image[t, c])
        part = Region.parse("1:3,2:,5:11")
        np.testing.assert_array_equal(reader.read(1, part, t=1), image[1, 1, 1:3, 2:, 5:11])
        with pytest.raises(
            ImageError, match=r"2 time points of 4 planes; name one from 0 to 1 \(column t, option --t"
        ):
            reader.read(0)
    with open_image(path, t=1) as reader:
        np.testing.assert_array_equal(reader.read(2), image[1, 2])


def test_scenes_are_never_chosen_silently(tmp_path: Path) -> None:
    path = tmp_path / "a.czi"
    first, second = noise(1, 1, 2, 6, 8), noise(1, 1, 3, 5, 9)
    with czi.create_czi(str(path)) as writer:
        write(path, first, scene=0, writer=writer)
        write(path, second, scene=1, origin=3, tile=4, writer=writer)  # their rectangles overlap
    with open_image(path) as reader:
        assert len(reader.scenes) == 2
        with pytest.raises(ImageError, match=r"2 scenes: 0 '.*' CZYX 1x2x6x8, 1 '.*' CZYX 1x3x5x9; name one"):
            reader.read(0)
        np.testing.assert_array_equal(reader.read(0, scene=0), first[0, 0])
        np.testing.assert_array_equal(reader.read(0, scene=1), second[0, 0])
    with open_image(path, scene=1) as reader:
        assert (reader.shape, reader.voxel_size) == ((3, 5, 9), None)
        np.testing.assert_array_equal(reader.read(0, Region.parse("2:,:,3:")), second[0, 0, 2:, :, 3:])
    with pytest.raises(ImageError, match="no scene 2"):
        open_image(path, scene=2)


def test_colour_samples_are_channels_to_choose_from(tmp_path: Path) -> None:
    path = tmp_path / "a.czi"
    image = noise(1, 1, 2, 6, 8, 3, dtype="uint8")
    write(path, image)
    with open_image(path) as reader:
        assert reader.channel_names == ("red", "green", "blue")
        # Stored blue first.
        for number in range(3):
            np.testing.assert_array_equal(reader.read(number), image[0, 0, ..., 2 - number])


def test_a_missing_plane_is_refused_not_black(tmp_path: Path) -> None:
    path = tmp_path / "a.czi"
    image = noise(2, 1, 3, 6, 8)
    with czi.create_czi(str(path)) as writer:
        write(path, image[:1], writer=writer)
        writer.write(data=image[1, 0, 0][..., None], plane={"T": 1, "C": 0, "Z": 0})
    with open_image(path) as reader:
        np.testing.assert_array_equal(reader.read(0, t=0), image[0, 0])
        np.testing.assert_array_equal(reader.read(0, Region((0, 1)), t=1), image[1, 0, :1])
        with pytest.raises(
            ImageError, match="no plane 1 of channel 0 at time point 1; was the experiment stopped"
        ):
            reader.read(0, t=1)


def test_compressed(tmp_path: Path) -> None:
    path = tmp_path / "a.czi"
    image = noise(1, 1, 2, 40, 50)
    with czi.create_czi(str(path), compression_options="zstd1:ExplicitLevel=2") as writer:
        write(path, image, writer=writer)
    with open_image(path) as reader:
        np.testing.assert_array_equal(reader.read(0, Region.parse(":,5:30,10:")), image[0, 0, :, 5:30, 10:])


def whole(tmp_path: Path) -> tuple[Path, bytearray, int]:
    """Return a file, its bytes, and where its directory's first entry is."""
    path = tmp_path / "a.czi"
    write(path, noise(1, 2, 2, 30, 40))
    data = bytearray(path.read_bytes())
    return path, data, struct.unpack_from("<q", data, 84)[0] + 32 + 128


@pytest.mark.parametrize("part", [0.01, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_truncated(tmp_path: Path, part: float) -> None:
    path, data, _ = whole(tmp_path)
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ImageError, match=r"truncated|damaged") as error, open_image(path) as reader:
        reader.read(0)
    assert str(path) in str(error.value)


def test_absurd_directories_do_not_allocate(tmp_path: Path) -> None:
    path, data, entry = whole(tmp_path)
    (count,) = struct.unpack_from("<i", data, entry + 28)
    axes = {bytes(data[entry + 32 + 20 * k : entry + 33 + 20 * k]): entry + 36 + 20 * k for k in range(count)}
    far = bytearray(data)
    struct.pack_into("<i", far, axes[b"X"], 10**9)  # a tile 10^9 pixels away
    path.write_bytes(far)
    with pytest.raises(ImageError, match="far more than its tiles cover"):
        open_image(path)
    huge = bytearray(data)
    for axis in (b"X", b"Y"):
        struct.pack_into("<i", huge, axes[axis] + 4, 10**6)
        struct.pack_into("<i", huge, axes[axis] + 12, 10**6)
    path.write_bytes(huge)
    with pytest.raises(ImageError, match="truncated: a tile of 2000000000000 bytes"):
        open_image(path)
    struct.pack_into("<i", huge, entry + 18, 1)  # said to be compressed
    path.write_bytes(huge)
    with pytest.raises(ImageError, match="far more than the file holds"):
        open_image(path)
    many = bytearray(data)
    struct.pack_into("<i", many, entry - 128, 2**31 - 1)
    path.write_bytes(many)
    with pytest.raises(ImageError, match=r"directory is damaged|is none"):
        open_image(path)


def test_dimensions_without_a_meaning_here(tmp_path: Path) -> None:
    path, data, entry = whole(tmp_path)
    (count,) = struct.unpack_from("<i", data, entry + 28)
    place = next(p for p in range(entry + 32, entry + 32 + 20 * count, 20) if data[p : p + 1] == b"Z")
    data[place : place + 1] = b"H"
    struct.pack_into("<i", data, place + 4, 4)
    path.write_bytes(data)
    with pytest.raises(ImageError, match="holds 5 phases, which cannot be used"):
        open_image(path)
    path, data, entry = whole(tmp_path)
    struct.pack_into("<i", data, entry + 2, 10)
    path.write_bytes(data)
    with pytest.raises(ImageError, match="pixels of CZI type 10 are no intensities"):
        open_image(path)
    path, data, entry = whole(tmp_path)
    struct.pack_into("<i", data, entry + 14, 1)
    path.write_bytes(data)
    with pytest.raises(ImageError, match="lie in several CZI files"):
        open_image(path)


@pytest.fixture(scope="module")
def sound_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return bytes(whole(tmp_path_factory.mktemp("sound"))[1])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 100_000), junk=st.binary(min_size=1, max_size=12))
def test_damaged_headers_give_an_image_error_or_an_image(
    tmp_path_factory: pytest.TempPathFactory, sound_file: bytes, place: int, junk: bytes
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.czi"
    data = bytearray(sound_file)
    place %= len(data)
    data[place : place + len(junk)] = junk
    path.write_bytes(data)
    try:
        with open_image(path) as reader:
            assert reader.shape[0] >= 1
            read_directory(path)
    except ImageError:
        pass


def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _, _ = whole(tmp_path)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pylibCZIrw" else real(name, *rest)
    )
    with pytest.raises(ImageError, match=r"Zeiss CZI.*pip install -e '\.\[czi\]'"):
        open_image(path)
    monkeypatch.setattr("repmode_cl.utils.extras._ROOT", tmp_path)
    with pytest.raises(ImageError, match=r"Zeiss CZI.*pip install 'repmode-cl\[czi\]'"):
        open_image(path)
