"""Leica LIF: series, times, scans in xz, colour, and headers that must not be believed; compared with liffile."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import liffile
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repmode_cl.data.readers import ImageReader, Region, open_image
from repmode_cl.errors import ImageError
from repmode_cl.inference.positions import PositionChoice, plan_positions

SAMPLES = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "reader_samples"
needs_data = pytest.mark.skipif(not SAMPLES.is_dir(), reason="real images are not part of the repository")
RNG = np.random.default_rng(0)


def noise(*shape: int, dtype: str = "uint16") -> np.ndarray:
    return RNG.integers(0, 250, shape).astype(dtype)


DIMENSIONS = {"X": 1, "Y": 2, "Z": 3, "T": 4, "λ": 5, "M": 10}


def series(name: str, image: np.ndarray, axes: str, number: int = 0, dyes: tuple[str, ...] = ()) -> str:
    """Return the XML of an image whose axes are `axes`, the outermost first; C are channels."""
    steps = dict(zip(axes, image.strides, strict=True))
    sizes = dict(zip(axes, image.shape, strict=True))
    kind, bits = int(image.dtype.kind == "f"), 8 * image.dtype.itemsize
    channels = "".join(
        f'<ChannelDescription DataType="{kind}" ChannelTag="{c + 1 if dyes == ("colour",) else 0}" '
        f'Resolution="{bits}" NameOfMeasuredQuantity="" Min="0" Max="255" Unit="" LUTName="Green" IsLUTInverted="0" '
        f'BytesInc="{c * steps.get("C", 0)}" BitInc="0">'
        + (
            f"<ChannelProperty><Key>DyeName</Key><Value>{dyes[c]}</Value></ChannelProperty>"
            if c < len(dyes)
            else ""
        )
        + "</ChannelDescription>"
        for c in range(sizes.get("C", 1))
    )
    dimensions = "".join(
        f'<DimensionDescription DimID="{DIMENSIONS[axis]}" NumberOfElements="{sizes[axis]}" Origin="0" '
        f'Length="{(sizes[axis] - 1) * 1e-7 * (-3 if axis == "Z" else 2)}" Unit="m" BitInc="0" '
        f'BytesInc="{steps[axis]}"/>'
        for axis in reversed(axes)
        if axis != "C"
    )
    return (
        f'<Element Name="{name}" UniqueID="u{number}"><Data><Image><ImageDescription><Channels>{channels}</Channels>'
        f'<Dimensions>{dimensions}</Dimensions></ImageDescription></Image></Data><Memory Size="{image.nbytes}" '
        f'MemoryBlockID="MemBlock_{number}"/></Element>'
    )


def write(path: Path, images: list[np.ndarray], xml: list[str], version: int = 2) -> Path:
    text = (
        f'<LMSDataContainerHeader Version="{version}"><Element Name="project" UniqueID="p"><Data><Experiment/></Data>'
        f"<Children>{''.join(xml)}</Children></Element></LMSDataContainerHeader>"
    )
    data = struct.pack("<IIBI", 0x70, 2 * len(text) + 5, 0x2A, len(text)) + text.encode("utf-16-le")
    for number, image in enumerate(images):
        name = f"MemBlock_{number}"
        layout = "<IIBQBI" if version == 2 else "<IIBIBI"
        data += struct.pack(layout, 0x70, 14 + 2 * len(name), 0x2A, image.nbytes, 0x2A, len(name))
        data += name.encode("utf-16-le") + image.tobytes()
    path.write_bytes(data)
    return path


def one(path: Path, image: np.ndarray, axes: str, dyes: tuple[str, ...] = ()) -> Path:
    return write(path, [image], [series("cells", image, axes, dyes=dyes)])


@needs_data
def test_the_samples_are_read_as_liffile_reads_them() -> None:
    """The channels of xz scans over time, and what has no meaning here."""
    path = SAMPLES / "testdata_2channel_xz.lif"
    with liffile.LifFile(path, squeeze=False) as file, open_image(path) as reader:
        assert reader.scenes == tuple(image.path for image in file.images)
        checked = 0
        for number, image in enumerate(file.images):
            sizes, expected = dict(image.sizes), image.asarray()
            with open_image(path, scene=number) as opened:
                assert opened.shape == tuple(sizes.get(axis, 1) for axis in "ZYX")
                assert (opened.times, opened.n_channels) == (sizes.get("T", 1), sizes.get("C", 1))
                assert opened.dtype == image.dtype
                steps = [image.coords.get(axis) for axis in "ZYX"]
                if all(step is not None and len(step) > 1 for step in steps):
                    assert opened.voxel_size == pytest.approx(
                        [1e6 * abs(step[1] - step[0]) for step in steps]
                    )
                else:
                    assert opened.voxel_size is None
                # Of an xzy scan the library's order is y, z, x.
                left = [axis for axis in sizes if axis not in "TC"]
                order = [left.index(axis) for axis in "ZYX" if axis in left]
                for t, c in np.ndindex(opened.times, opened.n_channels):
                    index = tuple({"T": t, "C": c}.get(axis, slice(None)) for axis in sizes)
                    read = opened.read(c, t=t)
                    volume = expected[index].transpose(order)
                    np.testing.assert_array_equal(read.reshape(volume.shape), volume)
                    checked += read.size
        assert checked > 10**5
        with pytest.raises(ImageError, match=r"3 scenes: 0 'xzt' CZYX 2x128x1x128, 20 times"):
            reader.read(0, t=0)
    path = SAMPLES / "LeicaLASX_wavelength-sweep_example.lif"
    with pytest.raises(ImageError, match="holds 20 emission wavelengths, which cannot be used"):
        open_image(path, scene=0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("axes", ["TZCYX", "CTZYX", "TCYZX"])
@pytest.mark.parametrize("version", [1, 2])
def test_axes_in_any_order(tmp_path: Path, dtype: str, axes: str, version: int) -> None:
    sizes = {"T": 2, "Z": 3, "C": 2, "Y": 5, "X": 4}
    image = noise(*(sizes[axis] for axis in axes), dtype=dtype)
    path = write(tmp_path / "a.dat", [image], [series("cells", image, axes, dyes=("BF", "GFP"))], version)
    ordered = np.moveaxis(image, [axes.index(axis) for axis in "TCZYX"], range(5))
    with open_image(path) as reader:
        assert isinstance(reader, ImageReader)
        assert (reader.shape, reader.times, reader.dtype) == ((3, 5, 4), 2, np.dtype(dtype))
        assert (reader.channel_names, reader.scenes) == (("BF", "GFP"), ("cells",))
        assert reader.voxel_size == pytest.approx((0.3, 0.2, 0.2))
        for t, c in np.ndindex(2, 2):
            np.testing.assert_array_equal(reader.read(c, t=t), ordered[t, c])
        np.testing.assert_array_equal(
            reader.read(1, Region.parse("1:3,2:,1:3"), t=1), ordered[1, 1, 1:3, 2:, 1:3]
        )
    if axes != "TCYZX":
        with liffile.LifFile(path) as file:
            np.testing.assert_array_equal(file.images[0].asarray(), image)


def test_series_are_never_chosen_silently(tmp_path: Path) -> None:
    first, second, flat = noise(2, 6, 8), noise(3, 5, 9), noise(4, 6, 8)
    xml = [series("a", first, "ZYX"), series("b", second, "ZYX", 1), series("c", flat, "MYX", 2)]
    path = write(tmp_path / "a.lif", [first, second, flat], xml)
    with open_image(path) as reader:
        with pytest.raises(
            ImageError, match=r"3 scenes: 0 'a' CZYX 1x2x6x8, 1 'b' CZYX 1x3x5x9, 2 'c'; name one"
        ):
            reader.read(0)
        np.testing.assert_array_equal(reader.read(0, scene="b"), second)
    with pytest.raises(ImageError, match="holds 4 tiles of a mosaic, which cannot be used"):
        open_image(path, scene=2)


def test_an_overview_before_the_stacks_hides_none_of_them(tmp_path: Path) -> None:
    """A scan of tiles comes first in many projects, and cannot be used."""
    tiles, first, second = noise(4, 6, 8), noise(2, 6, 8), noise(3, 5, 9)
    xml = [series("Overview", tiles, "MYX"), series("a", first, "ZYX", 1), series("b", second, "ZYX", 2)]
    path = write(tmp_path / "a.lif", [tiles, first, second], xml)
    with open_image(path) as reader:
        assert reader.scenes == ("Overview", "a", "b")
        assert reader.shape == first.shape
        np.testing.assert_array_equal(reader.read(0, scene="b"), second)
        with pytest.raises(ImageError, match="tiles of a mosaic"):
            reader.read(0, scene=0)
    plan = plan_positions([path], PositionChoice("all", "all"), str(tmp_path), ["dna"], stack=False)
    assert [task.scene for task in plan.tasks] == [0, 1, 2]
    only = write(
        tmp_path / "b.lif", [tiles, tiles], [series("x", tiles, "MYX"), series("y", tiles, "MYX", 1)]
    )
    with pytest.raises(
        ImageError, match=r"tiles of a mosaic.* That is its first scene; the file holds 2 scenes"
    ):
        open_image(only)


def test_colour_samples_are_channels_to_choose_from(tmp_path: Path) -> None:
    image = noise(2, 5, 4, 3, dtype="uint8")
    path = one(tmp_path / "a.lif", image, "ZYXC", dyes=("colour",))
    with open_image(path) as reader:
        assert reader.channel_names == ("red", "green", "blue")
        for number in range(3):
            np.testing.assert_array_equal(reader.read(number), image[..., number])


@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.9, 0.99])
def test_truncated(tmp_path: Path, part: float) -> None:
    path = one(tmp_path / "a.lif", noise(3, 40, 30), "ZYX")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ImageError, match=r"truncated|damaged") as error:
        open_image(path)
    assert str(path) in str(error.value)


def test_a_block_that_is_missing_is_reported_for_its_series(tmp_path: Path) -> None:
    first, second = noise(2, 6, 8), noise(3, 5, 9)
    path = write(tmp_path / "a.lif", [first], [series("a", first, "ZYX"), series("b", second, "ZYX", 1)])
    with open_image(path, scene="a") as reader:
        np.testing.assert_array_equal(reader.read(0), first)
    with pytest.raises(ImageError, match=r"truncated: the voxels of 'b' are missing"):
        open_image(path, scene="b")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'NumberOfElements="3"',
            'NumberOfElements="3000000000"',
            "its header claims .* bytes of voxels, its block has 240",
        ),
        ('BytesInc="40"', 'BytesInc="400"', "its header claims"),
        ('BytesInc="40"', 'BytesInc="-4"', "begins before its voxels"),
        ('BytesInc="40"', 'BytesInc="0"', None),
        ('NumberOfElements="3"', 'NumberOfElements="0"', "an axis of 0 elements"),
        ('NumberOfElements="3"', 'NumberOfElements="x"', "the description of its series 'cells' is damaged"),
        ('DimID="3"', 'DimID="2"', "two axes Y"),
        ('DataType="0"', 'DataType="7"', "no intensities"),
        ("<Image>", "<Other>", None),
    ],
)
def test_absurd_headers_do_not_allocate(tmp_path: Path, old: str, new: str, message: str | None) -> None:
    image = noise(3, 5, 4, dtype="uint32")
    path = one(tmp_path / "a.lif", image, "ZYX")
    new = new.ljust(len(old)) if len(new) < len(old) else new
    xml = series("cells", image, "ZYX").replace(old.replace("40", str(image.strides[0])), new)
    if new.startswith("<"):
        xml = xml.replace("</Image>", "</Other>")
    write(path, [image], [xml])
    if message is None and "Other" in new:
        message = "holds no image"
    if message is None:  # planes on top of each other are strange, and take no more than the file has
        with open_image(path) as reader:
            assert reader.read(0).nbytes == image.nbytes
        return
    with pytest.raises(ImageError, match=message):
        open_image(path)


def test_headers_and_names_of_any_length_are_not_read(tmp_path: Path) -> None:
    path = one(tmp_path / "a.lif", noise(3, 5, 4), "ZYX")
    data = bytearray(path.read_bytes())
    place = data.index("MemBlock_0".encode("utf-16-le"), data.index("</LMS".encode("utf-16-le")))
    long = bytearray(data)
    struct.pack_into("<I", long, place - 4, 2**31)
    path.write_bytes(long)
    with pytest.raises(ImageError, match="a name of 2147483648 characters"):
        open_image(path)
    long = bytearray(data)
    struct.pack_into("<I", long, 9, 2**31)
    path.write_bytes(long)
    with pytest.raises(ImageError, match="claims 4294967296 bytes"):
        open_image(path)
    text = '<!DOCTYPE a [<!ENTITY b "c">]><LMSDataContainerHeader Version="2"/>'
    path.write_bytes(struct.pack("<IIBI", 0x70, 0, 0x2A, len(text)) + text.encode("utf-16-le"))
    with pytest.raises(ImageError, match="defines entities"):
        open_image(path)
    text = "LMS_Object_File"
    path.write_bytes(struct.pack("<IIBI", 0x70, 0, 0x2A, len(text)) + text.encode("utf-16-le"))
    with pytest.raises(ImageError, match="a Leica LOF file"):
        open_image(path)


@pytest.fixture(scope="module")
def sound_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return one(tmp_path_factory.mktemp("sound") / "a.lif", noise(2, 3, 4), "ZYX").read_bytes()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 2**20), junk=st.binary(min_size=1, max_size=12))
def test_damaged_headers_give_an_image_error_or_an_image(
    tmp_path_factory: pytest.TempPathFactory, sound_file: bytes, place: int, junk: bytes
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.lif"
    data = bytearray(sound_file)
    place %= len(data)
    data[place : place + len(junk)] = junk
    path.write_bytes(data)
    try:
        with open_image(path) as reader:
            assert reader.read(0).size >= 1
    except ImageError:
        pass


def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = one(tmp_path / "a.lif", noise(2, 3, 4), "ZYX")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "liffile" else real(name, *rest)
    )
    with pytest.raises(ImageError, match=r"Leica LIF.*pip install -e '\.\[lif\]'"):
        open_image(path)
