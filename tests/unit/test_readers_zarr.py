"""OME-Zarr written by other libraries, in folders and over fsspec; only the chunks asked for are fetched."""

from __future__ import annotations

import functools
import hashlib
import http.server
import importlib.util
import json
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import FsspecStore

from repmode_cl.data.readers import ImageReader, Region, open_image
from repmode_cl.errors import ImageError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of zarr's deprecated parts
    from ome_zarr.format import FormatV04, FormatV05
    from ome_zarr.writer import write_image

FORMATS = {"0.4": FormatV04(), "0.5": FormatV05()}
SIZES = {"t": 2, "c": 3, "z": 4, "y": 15, "x": 16}
MICROMETRES = dict.fromkeys("zyx", "micrometer")


def noise(axes: str = "tczyx", dtype: str = "uint16") -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 250, [SIZES[axis] for axis in axes]).astype(dtype)


_KEPT = tempfile.TemporaryDirectory()


def write(path: str, image: np.ndarray, version: str = "0.5", axes: str = "tczyx", **more: Any) -> None:
    """Write with ome-zarr into a folder; what several tests need is written once, as that takes a while."""
    about = f"{version}{axes}{image.dtype}{more}".encode()
    kept = Path(_KEPT.name) / hashlib.sha256(about + image.tobytes()).hexdigest()
    if not kept.exists():
        write_anew(str(kept), image, version, axes, **more)
    shutil.copytree(kept, path)


def write_anew(
    where: Any,
    image: np.ndarray,
    version: str = "0.5",
    axes: str = "tczyx",
    units: Any = MICROMETRES,
    **more: Any,
) -> None:
    """Write with ome-zarr, voxels of 0.3 x 0.2 x 0.1."""
    kind = FORMATS[version]
    group = zarr.open_group(where, mode="w", zarr_format=kind.zarr_format)
    scale = {axis: {"z": 0.3, "y": 0.2, "x": 0.1}.get(axis, 1.0) for axis in axes}
    write_image(
        image, group, fmt=kind, axes=axes, scale=scale, axes_units=units and {a: units[a] for a in axes if a in units},
        scale_factors=[2] if image.ndim == 3 else [],
        storage_options={"chunks": (1,) * (image.ndim - 3) + (4, 8, 16)}, **more,
    )  # fmt: skip


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["tczyx", "zyx"])
def test_written_by_another_library(tmp_path: Path, version: str, axes: str) -> None:
    image = noise(axes, ">u2")
    path = tmp_path / "image"  # by its content, not by its name
    labels = {"omero": {"channels": [{"label": name, "color": "FFFFFF"} for name in ("BF", "DAPI", "GFP")]}}
    write(str(path), image, version, axes, **({"metadata": labels} if "c" in axes else {}))
    with open_image(path) as reader:
        assert isinstance(reader, ImageReader)
        assert (reader.shape, reader.dtype, reader.times) == (
            (4, 15, 16),
            np.dtype("uint16"),
            2 if "t" in axes else 1,
        )
        assert reader.voxel_size == pytest.approx((0.3, 0.2, 0.1))
        full = image.reshape((1,) * (5 - image.ndim) + image.shape)
        assert reader.n_channels == full.shape[1]
        for t, c in np.ndindex(*full.shape[:2]):
            np.testing.assert_array_equal(reader.read(c, t=t), full[t, c])
        found = reader.read(0, Region.parse("1:3,2:,5:11"), t=0)
        np.testing.assert_array_equal(found, full[0, 0, 1:3, 2:, 5:11])
        assert found.dtype.isnative
    if "t" in axes:
        with open_image(path, t=1) as reader:
            np.testing.assert_array_equal(reader.read(2), image[1, 2])
        with open_image(path) as reader, pytest.raises(ImageError, match="2 time points of 4 planes"):
            reader.read(0)


def change(path: Path, edit: Any) -> None:
    """Change the OME metadata of a group in place."""
    for name in ("zarr.json", ".zattrs"):
        if (path / name).exists():
            found = json.loads((path / name).read_text())
            edit(found["attributes"]["ome"] if name == "zarr.json" else found)
            (path / name).write_text(json.dumps(found))
            return


def test_names_units_and_scales(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write(str(path), noise("czyx"), axes="czyx", units=None)
    with open_image(path) as reader:
        assert reader.voxel_size is None, "a scale without a unit is no size"
        assert reader.channel_names == ("C0", "C1", "C2")

    def edit(ome: dict[str, Any]) -> None:
        for axis in ome["multiscales"][0]["axes"]:
            if axis["type"] == "space":
                axis["unit"] = "nanometer"
        ome["multiscales"][0]["coordinateTransformations"] = [
            {"type": "scale", "scale": [1, 1000, 1000, 1000]}
        ]
        ome["omero"] = {"channels": [{"label": "BF"}, {"color": "FF0000"}, {"label": "GFP"}]}

    change(path, edit)
    with open_image(path) as reader:
        assert reader.voxel_size == pytest.approx((0.3, 0.2, 0.1))
        assert reader.channel_names == ("BF", "C1", "GFP")


def test_only_the_chunks_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zarr"
    image = noise()
    write(str(path), image)
    got: list[str] = []
    original = zarr.storage.LocalStore.get

    async def get(store: Any, key: str, *rest: Any, **more: Any) -> Any:
        got.append(key)
        return await original(store, key, *rest, **more)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", get)
    with open_image(path) as reader:
        assert not [key for key in got if "/c/" in key], "opening reads no voxels"
        part = Region.parse("1:2,9:13,1:6")
        np.testing.assert_array_equal(reader.read(1, part, t=1), image[1, 1, 1:2, 9:13, 1:6])
    assert [key.partition("/")[2] for key in got if "/c/" in key] == ["c/1/1/0/1/0"]


def test_over_fsspec() -> None:
    url = "memory://bucket/fsspec/image.zarr"
    image = noise()
    write_anew(FsspecStore.from_url(url), image[:1, :2], axes="tczyx")
    with open_image(url) as reader:
        assert (reader.path, reader.random_access) == (url, False)
        np.testing.assert_array_equal(reader.read(1), image[0, 1])
    with pytest.raises(ImageError, match=r"memory://bucket/nothing.zarr: not readable as Zarr"):
        open_image("memory://bucket/nothing.zarr")
    with pytest.raises(ImageError, match=r"nowhere://a/b.zarr: .*nowhere"):
        open_image("nowhere://a/b.zarr")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.func.log_message = lambda *_: None  # type: ignore[method-assign]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_over_http(tmp_path: Path, served: str, version: str) -> None:
    image = noise("czyx")
    write(str(tmp_path / "a.zarr"), image, version, "czyx")
    with open_image(f"{served}/a.zarr/") as reader:
        np.testing.assert_array_equal(reader.read(2, Region.parse("1:,:,3:9")), image[2, 1:, :, 3:9])
        assert reader.voxel_size == pytest.approx((0.3, 0.2, 0.1))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_several_images_are_scenes(tmp_path: Path, version: str) -> None:
    """The layout of bioformats2raw: numbered images below one group, which a group OME may list."""
    path = tmp_path / "a.zarr"
    kind = FORMATS[version]
    root = zarr.open_group(str(path), mode="w", zarr_format=kind.zarr_format)
    about = {"bioformats2raw.layout": 3}
    root.attrs.update({"ome": {"version": "0.5", **about}} if version == "0.5" else about)
    images = [noise("zyx"), noise("zyx")[:2]]
    for number, image in enumerate(images):
        write(str(path / str(number)), image, version, "zyx")
    for listed in (False, True):
        if listed:
            names = {"series": ["1", "0"]}
            ome = root.create_group("OME")
            ome.attrs.update({"ome": {"version": "0.5", **names}} if version == "0.5" else names)
        with open_image(path) as reader:
            assert reader.scenes == (("1", "0") if listed else ("0", "1"))
            with pytest.raises(ImageError, match=r"2 scenes: 0 '.' CZYX 1x.*; name one of them"):
                reader.read(0)
            np.testing.assert_array_equal(reader.read(0, scene="1"), images[1])
    well = tmp_path / "well.zarr"
    group = zarr.open_group(str(well), mode="w", zarr_format=2)
    group.attrs["well"] = {"images": [{"path": "f0"}, {"path": "f1"}]}
    for number, image in enumerate(images):
        write(str(well / f"f{number}"), image, "0.4", "zyx")
    with open_image(well, scene="f1") as reader:
        np.testing.assert_array_equal(reader.read(0), images[1])
    group.attrs.put({"plate": {"wells": [{"path": "A/1"}, {"path": "A/2"}]}})
    group.attrs.put({"plate": {"wells": [{"path": "A/1"}]}})
    with pytest.raises(ImageError, match=r"a plate of 1 well \(A/1\)"):
        open_image(well)
    group.attrs.put({"plate": {"wells": [{"path": "A/1"}, {"path": "A/2"}]}})
    with pytest.raises(ImageError, match=r"a plate of 2 wells \(A/1, A/2\); give one .*well.zarr/A/1/0"):
        open_image(well)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_claims_are_checked_before_memory_is_taken(tmp_path: Path, version: str) -> None:
    path = tmp_path / "a.zarr"
    write(str(path), noise("zyx"), version, axes="zyx")
    for array in (*path.rglob("zarr.json"), *path.rglob(".zarray")):
        about = json.loads(array.read_text())
        if about.get("shape") == [4, 15, 16]:
            array.write_text(json.dumps({**about, "shape": [10_000, 10_000, 10_000]}))
    with open_image(path) as reader:
        assert reader.shape == (10_000,) * 3
        with pytest.raises(
            ImageError, match="claim 2000000000000 bytes for what is read, far more than its chunks"
        ):
            reader.read(0)
        assert reader.read(0, Region((0, 2), (0, 9), (0, 9))).shape == (2, 9, 9)


def test_shards(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    image = noise("zyx")
    write(str(path), image, axes="zyx")
    first = next(
        found
        for found in sorted(path.rglob("zarr.json"))
        if json.loads(found.read_text()).get("shape") == [4, 15, 16]
    )
    shutil.rmtree(first.parent)
    zarr.create_array(str(first.parent), data=image, chunks=(2, 4, 4), shards=(4, 8, 16))
    with open_image(path) as reader:
        np.testing.assert_array_equal(reader.read(0, Region.parse("1:,3:11,:5")), image[1:, 3:11, :5])


BAD: dict[str, tuple[Any, str]] = {
    "no multiscales": (lambda ome: ome.pop("multiscales"), "no OME-Zarr image"),
    "no datasets": (lambda ome: ome["multiscales"][0].pop("datasets"), "metadata are damaged"),
    "no such array": (
        lambda ome: ome["multiscales"][0]["datasets"][0].update(path="9"),
        "metadata are damaged",
    ),
    "path upwards": (
        lambda ome: ome["multiscales"][0]["datasets"][0].update(path="../../x"),
        "metadata are damaged",
    ),
    "too few axes": (lambda ome: ome["multiscales"][0]["axes"].pop(), "2 axes of an array with 3"),
    "axes are text": (lambda ome: ome["multiscales"][0].update(axes=[1, 2, 3]), "metadata are damaged"),
    "unknown axis": (
        lambda ome: ome["multiscales"][0]["axes"][0].update(name="phase"),
        "readable are t, c, z, y, x",
    ),
    "twice an axis": (
        lambda ome: ome["multiscales"][0]["axes"][0].update(name="x"),
        "readable are t, c, z, y, x",
    ),
    "multiscales is a number": (lambda ome: ome.update(multiscales=3), "metadata are damaged"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_damaged_metadata(tmp_path: Path, what: str, version: str) -> None:
    path = tmp_path / "a.zarr"
    write(str(path), noise("zyx"), version, "zyx")
    edit, message = BAD[what]
    change(path, edit)
    with pytest.raises(ImageError, match=message) as error:
        open_image(path)
    assert str(path) in str(error.value)


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    image = noise("zyx")
    write(str(path), image, axes="zyx")
    with pytest.raises(ImageError, match="a Zarr array by itself; give the folder"):
        open_image(next(found.parent for found in path.rglob("zarr.json") if found.parent != path))
    with open_image(path / "zarr.json") as reader:
        np.testing.assert_array_equal(reader.read(0), image)
    chunk = next(found for found in sorted(path.rglob("*")) if found.is_file() and found.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    with open_image(path) as reader, pytest.raises(ImageError, match="cannot be read, damaged or truncated"):
        reader.read(0)
    (path / "zarr.json").write_text("{")
    with pytest.raises(ImageError, match="not readable as Zarr"):
        open_image(path)


def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(str(tmp_path / "a.zarr"), noise("zyx"), axes="zyx")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "zarr" else real(name, *rest)
    )
    for path in (tmp_path / "a.zarr", "s3://bucket/a.zarr"):
        with pytest.raises(ImageError, match=r"OME-Zarr; reading it needs .*pip install -e '\.\[zarr\]'"):
            open_image(path)
    monkeypatch.setattr("repmode_cl.utils.extras._ROOT", tmp_path)
    for path in (tmp_path / "a.zarr", "s3://bucket/a.zarr"):
        with pytest.raises(
            ImageError, match=r"OME-Zarr; reading it needs .*pip install 'repmode-cl\[zarr\]'"
        ):
            open_image(path)


@pytest.mark.parametrize("version", [2, 3])
def test_a_blosc_chunk_that_ends_early(tmp_path: Path, version: int) -> None:
    """Blosc is the compression of most OME-Zarr 0.4, and decodes whatever lies behind a chunk that was cut off."""
    from numcodecs import Blosc
    from zarr.codecs import BloscCodec

    path, image = tmp_path / "a.zarr", noise("zyx")
    write(str(path), image, "0.4" if version == 2 else "0.5", "zyx")
    group = zarr.open_group(path, mode="r+")
    attributes = group.attrs.asdict()
    place = attributes.get("ome", attributes)["multiscales"][0]["datasets"][0]["path"]
    codec: Any = Blosc() if version == 2 else BloscCodec()
    group.create_array(place, data=image, chunks=(4, 8, 16), compressors=[codec], overwrite=True)
    with open_image(path) as reader:
        np.testing.assert_array_equal(reader.read(0), image)
    files = [file for file in (path / place).rglob("*") if file.is_file() and file.suffix != ".json"]
    chunk = max(files, key=lambda file: file.stat().st_size)
    whole = chunk.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        chunk.write_bytes(whole[:length])
        with open_image(path) as reader, pytest.raises(ImageError, match="truncated"):
            reader.read(0)
    chunk.unlink()
    with open_image(path) as reader:
        assert 0 < np.count_nonzero(reader.read(0)) < image.size, "a chunk that is not there is blank"
