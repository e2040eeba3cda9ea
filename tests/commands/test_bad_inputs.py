"""Bad inputs as people give them: each ends with a clear error, exit code 2, in bounded memory, and writes nothing."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from repmode_cl.cli.app import app

HEADER = "structure,signal,signal_channel,target,target_channel"
SHAPE = (6, 20, 24)
#: Bytes that no case may allocate: headers that claim terabytes are believed by none.
MOST = 48 << 20

Make = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """A bad input.

    `make` writes it next to `good.tif`, a file of two channels; `line` is the manifest's one row (or all of it, with
    its header, in `whole`); what is printed holds all of `says`.
    """

    name: str
    make: Make
    says: tuple[str, ...]
    line: str = "dna,bad.tif,0,good.tif,1"
    header: str = HEADER
    whole: bytes | None = None
    row: int | None = 2


def nothing(folder: Path) -> None:
    """Write nothing: the line itself is bad."""


def put(data: bytes, name: str = "bad.tif") -> Make:
    return lambda folder: (folder / name).write_bytes(data) and None


def volume(shape: tuple[int, ...] = (2, *SHAPE), dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def tif(array: np.ndarray, axes: str = "CZYX", name: str = "bad.tif", **options: object) -> Make:
    def make(folder: Path) -> None:
        metadata = {"axes": axes}
        tifffile.imwrite(
            folder / name, array, ome=True, photometric="minisblack", metadata=metadata, **options
        )

    return make


def npy(array: np.ndarray, name: str = "bad.npy") -> Make:
    return lambda folder: np.save(folder / name, array, allow_pickle=True)


def npy_header(text: str, body: bytes = b"", name: str = "bad.npy") -> Make:
    data = text.encode().ljust(118) + b"\n"
    return put(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(data)) + data + body, name)


def cut(part: float, **options: object) -> Make:
    """Write a TIFF and cut it off at a part of its length."""

    def make(folder: Path) -> None:
        tif(volume(), **options)(folder)  # type: ignore[arg-type]
        data = (folder / "bad.tif").read_bytes()
        (folder / "bad.tif").write_bytes(data[: max(1, int(part * len(data)))])

    return make


def changed(change: Callable[[bytearray], None]) -> Make:
    """Write a plain TIFF of one page and change its bytes."""

    def make(folder: Path) -> None:
        path = folder / "bad.tif"
        tifffile.imwrite(path, volume(SHAPE), photometric="minisblack", metadata={"axes": "ZYX"})
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(bytes(data))

    return make


def tag(number: int, value: int) -> Callable[[bytearray], None]:
    """Set a tag of the first directory of a little-endian TIFF."""

    def change(data: bytearray) -> None:
        at = struct.unpack_from("<I", data, 4)[0]
        for entry in range(struct.unpack_from("<H", data, at)[0]):
            place = at + 2 + 12 * entry
            if struct.unpack_from("<H", data, place)[0] == number:
                struct.pack_into("<HI I", data, place + 2, 4, 1, value)
                return
        raise AssertionError(f"no tag {number}")

    return change


def huge(data: bytearray) -> None:
    """Claim 10^6 x 10^6 voxels a plane."""
    for number in (256, 257, 278):
        tag(number, 1_000_000)(data)


def loop(folder: Path) -> None:
    (folder / "bad.tif").symlink_to(folder / "again.tif")
    (folder / "again.tif").symlink_to(folder / "bad.tif")


def archive(folder: Path) -> None:
    with zipfile.ZipFile(folder / "bad.tif", "w") as file:
        file.writestr("a.tif", b"II*\0")


def zarr(files: dict[str, str]) -> Make:
    def make(folder: Path) -> None:
        for name, text in files.items():
            path = folder / "bad.zarr" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return make


def with_voxel(value: float) -> np.ndarray:
    array = volume(dtype="float32")
    array[0, 2, 3, 4] = value
    return array


NPY, ZARR = "dna,bad.npy,0,good.tif,1", "dna,bad.zarr,0,good.tif,1"
GOOD = "dna,good.tif,0,good.tif,1"
MULTISCALES = (
    '"multiscales": [{{"axes": [{{"name": "z", "type": "space"}}, {{"name": "y", "type": "space"}}, '
    '{{"name": "x", "type": "space"}}], "datasets": [{{"path": "0", "coordinateTransformations": '
    '[{{"type": "scale", "scale": [1, 1, 1]}}]}}], "version": "{version}"}}]'
)
ARRAY2 = (
    '{{"zarr_format": 2, "shape": {shape}, "chunks": {chunks}, "dtype": "<u2", "compressor": null, "fill_value": 0, '
    '"order": "C", "filters": null}}'
)

IMAGES = [
    Case("no such file", nothing, ("bad.tif", "no such file")),
    Case("backslashes", nothing, ("no such file", "write paths with /"), line="dna,a\\b.tif,0,good.tif,1"),
    Case("zero size", put(b""), ("bad.tif", "empty")),
    Case("one byte", put(b"I"), ("bad.tif",)),
    Case("text", put(b"no image at all, but words"), ("bad.tif", "no format known")),
    Case("wrong magic", changed(lambda data: data.__setitem__(slice(0, 4), b"XX*\0")), ("bad.tif", "no format known")),
    Case("PNG", put(b"\x89PNG\r\n\x1a\n" + bytes(50)), ("bad.tif", "PNG")),
    Case("JPEG", put(b"\xff\xd8\xff\xe0" + bytes(50)), ("bad.tif", "JPEG")),
    Case("HDF5", put(b"\x89HDF\r\n\x1a\n" + bytes(50)), ("bad.tif", "HDF5")),
    Case("ND2", put(b"\xda\xce\xbe\x0a" + bytes(50)), ("bad.tif", "ND2")),
    Case("ZIP", archive, ("bad.tif",)),
    Case("a folder", lambda folder: (folder / "bad.tif").mkdir(), ("bad.tif", "folder")),
    Case("a loop of links", loop, ("bad.tif",)),
    Case("a link to nothing", lambda folder: (folder / "bad.tif").symlink_to("gone.tif"), ("bad.tif", "no such file")),
    Case("below a file", nothing, ("good.tif/a.tif",), line="dna,good.tif/a.tif,0,good.tif,1"),
    Case("a name too long", nothing, ("cannot be read",), line=f"dna,{'a' * 400}.tif,0,good.tif,1"),
    Case("a pipe", lambda folder: os.mkfifo(folder / "bad.tif"), ("bad.tif", "no regular file")),
    # TIFF, cut off where it can be
    Case("TIFF cut in its first bytes", put(b"II*\0\x08"), ("bad.tif",)),
    Case("TIFF with nothing behind its header", put(b"II*\0\x08\0\0\0"), ("bad.tif",)),
    Case("TIFF with a directory beyond its end", put(b"II*\0" + struct.pack("<I", 10**9)), ("bad.tif",)),
    Case("TIFF that claims a thousand tags", put(b"II*\0\x08\0\0\0\xe8\x03" + bytes(20)), ("bad.tif",)),
    Case("BigTIFF cut in its header", put(b"II+\0\x08\0\0\0\x10"), ("bad.tif",)),
    Case("big-endian TIFF cut", put(b"MM\0*\0\0\0\x08\0\x01"), ("bad.tif",)),
    Case("TIFF cut in its metadata", cut(0.03), ("bad.tif",)),
    Case("TIFF cut at a quarter", cut(0.25), ("bad.tif",)),
    Case("TIFF cut at a half", cut(0.5), ("bad.tif",)),
    Case("TIFF without its last bytes", cut(0.97), ("bad.tif",)),
    Case("compressed TIFF cut", cut(0.6, compression="zlib"), ("bad.tif",)),
    Case("tiled TIFF cut", cut(0.6, tile=(16, 16)), ("bad.tif",)),
    Case("BigTIFF cut", cut(0.5, bigtiff=True), ("bad.tif",)),
    Case("TIFF of 10^12 voxels a plane", changed(huge), ("bad.tif",)),
    Case("TIFF of width 0", changed(tag(256, 0)), ("bad.tif",)),
    Case("TIFF of 4 billion rows", changed(tag(257, 2**32 - 1)), ("bad.tif",)),
    Case("TIFF whose voxels lie beyond its end", changed(tag(273, 2**31)), ("bad.tif",)),
    Case("TIFF of an unknown compression", changed(tag(259, 34666)), ("bad.tif",)),
    Case("NaN", tif(with_voxel(np.nan)), ("bad.tif", "not finite")),
    Case("infinity", tif(with_voxel(-np.inf)), ("bad.tif", "not finite")),
    Case("constant", tif(np.full((2, *SHAPE), 7, "uint16")), ("bad.tif", "constant (7")),
    Case("complex", tif(volume(dtype="complex64")), ("bad.tif", "complex")),
    Case("boolean", tif(volume().astype(bool)), ("bad.tif", "true or false")),
    Case("one plane", tif(volume((2, 1, 20, 24))), ("bad.tif", "signal")),
    Case("one voxel wide", tif(volume((2, 6, 20, 1))), ("bad.tif",)),
    Case("time points", tif(volume((3, *SHAPE)), "TZYX"), ("bad.tif", "time")),
    Case("a time point that is not there", tif(volume((3, *SHAPE)), "TZYX"), ("no time point 3",),
         line="dna,bad.tif,,good.tif,1,3", header=HEADER + ",t"),
    Case("a scene that is not there", nothing, ("good.tif", "scene 4"), line=f"{GOOD},4", header=HEADER + ",scene"),
    Case("a scene of no such name", nothing, ("good.tif", "scene"), line=f"{GOOD},left", header=HEADER + ",scene"),
    Case("no channel of that name", nothing, ("good.tif", "no channel 'lihgt'"), line="dna,good.tif,lihgt,good.tif,1"),
    Case("no channel of that number", nothing, ("good.tif", "no channel 5"), line="dna,good.tif,5,good.tif,1"),
    Case("no channel named", nothing, ("good.tif", "no channel is named"), line="dna,good.tif,,good.tif,1"),
    Case("the signal as its own target", nothing, ("same channel",), line="dna,good.tif,1,good.tif,1"),
    Case("shapes that differ", tif(volume((2, 5, 20, 24))), ("5 x 20 x 24", "6 x 20 x 24"),
         line="dna,good.tif,0,bad.tif,0"),
    Case("a mask of zeros", tif(np.zeros(SHAPE, "uint8"), "ZYX"), ("mask is zero",),
         line=f"{GOOD},bad.tif", header=HEADER + ",mask"),
    # NumPy
    Case("npy of objects", npy(np.array([[[{}]]], object)), ("bad.npy",), line=NPY),
    Case("npy with fields", npy(np.zeros(SHAPE, [("a", "u2")])), ("bad.npy",), line=NPY),
    Case("npy of complex numbers", npy(volume(SHAPE, "complex128")), ("bad.npy", "complex"), line=NPY),
    Case("npy of text", npy(np.full(SHAPE, "a")), ("bad.npy",), line=NPY),
    Case("npy of two axes", npy(volume((20, 24))), ("bad.npy", "(20, 24)"), line=NPY),
    Case("npy of five axes", npy(volume((2, 2, 6, 20, 24))), ("bad.npy",), line=NPY),
    Case("npy that is empty", npy(volume((0, 20, 24))), ("bad.npy", "empty"), line=NPY),
    Case("npy of 10^12 voxels", npy_header("{'descr': '<u2', 'fortran_order': False, 'shape': (10000, 10000, 10000)}"),
         ("bad.npy", "truncated"), line=NPY),
    Case("npy of a negative axis", npy_header("{'descr': '<u2', 'fortran_order': False, 'shape': (-1, 20, 24)}"),
         ("bad.npy",), line=NPY),
    Case("npy whose header is code", npy_header("__import__('os').system('touch hit')"), ("bad.npy",), line=NPY),
    Case("npy cut in its header", put(b"\x93NUMPY\x01\x00\x76", "bad.npy"), ("bad.npy",), line=NPY),
    Case("npy of an unknown version", put(b"\x93NUMPY\x09\x00" + bytes(64), "bad.npy"), ("bad.npy",), line=NPY),
    # CZI
    Case("CZI cut in its header", put(b"ZISRAWFILE" + bytes(6), "bad.czi"), ("bad.czi",), "dna,bad.czi,0,good.tif,1"),
    Case("CZI of zeros", put(b"ZISRAWFILE" + bytes(4086), "bad.czi"), ("bad.czi",), "dna,bad.czi,0,good.tif,1"),
    Case("CZI of noise", put(b"ZISRAWFILE" + bytes(6) + bytes(range(256)) * 16, "bad.czi"), ("bad.czi",),
         "dna,bad.czi,0,good.tif,1"),
    # OME-Zarr
    Case("zarr without metadata", zarr({".zgroup": '{"zarr_format": 2}'}), ("bad.zarr",), line=ZARR),
    Case("zarr with broken JSON", zarr({"zarr.json": "{broken"}), ("bad.zarr",), line=ZARR),
    Case("zarr of an unknown format", zarr({"zarr.json": '{"zarr_format": 9, "node_type": "group"}'}), ("bad.zarr",),
         line=ZARR),
    Case("zarr whose array is missing",
         zarr({".zgroup": '{"zarr_format": 2}', ".zattrs": "{" + MULTISCALES.format(version="0.4") + "}"}),
         ("bad.zarr",), line=ZARR),
    Case("zarr in one chunk of 10^12 voxels",
         zarr({".zgroup": '{"zarr_format": 2}', ".zattrs": "{" + MULTISCALES.format(version="0.4") + "}",
               "0/.zarray": ARRAY2.format(shape=[10000] * 3, chunks=[10000] * 3)}),
         ("bad.zarr",), line=ZARR),
]  # fmt: skip

MANIFESTS = [
    Case("empty", nothing, ("is empty",), whole=b"", row=None),
    Case("only a header", nothing, ("no row",), whole=HEADER.encode(), row=None),
    Case("blank lines", nothing, ("empty",), whole=b"\r\n\r\n\n", row=None),
    Case("UTF-16", nothing, ("CSV UTF-8",), whole=f"{HEADER}\n{GOOD}\n".encode("utf-16"), row=None),
    Case("an image", nothing, ("CSV UTF-8",), whole=b"II*\0\x08\0\0\0\xff\xfe\0\xd8" * 9, row=None),
    Case("NUL bytes", nothing, (), whole=f"{HEADER}\n{GOOD}\n".replace("good", "go\0od").encode()),
    Case("an open quote", nothing, ("check the quotes",), line='dna,"good.tif,0,good.tif,1', row=None),
    Case("a field of a megabyte", nothing, (), line=f"dna,{'a' * 1_000_000},0,good.tif,1", row=None),
    Case("an unknown column", nothing, ("unknown column 'splt'", "'split'"), line=f"{GOOD},a", header=HEADER + ",splt",
         row=1),
    Case("a missing column", nothing, ("column 'target' is missing",), line="dna,good.tif", header="structure,signal",
         row=1),
    Case("a column twice", nothing, ("stands twice",), line=f"{GOOD},0", header=HEADER + ",target", row=1),
    Case("a value too many", nothing, ("6 values for 5 columns",), line=f"{GOOD},1"),
    Case("no structure", nothing, ("structure", "is empty"), line=",good.tif,0,good.tif,1"),
    Case("no signal", nothing, ("signal", "is empty"), line="dna,,0,good.tif,1"),
    Case("a structure in capitals", nothing, ("'DNA'",), line="DNA,good.tif,0,good.tif,1"),
    Case("a reserved structure", nothing, ("reserved",), line="train,good.tif,0,good.tif,1"),
    Case("a misspelt split", nothing, ("'trian'", "'train'"), line=f"{GOOD},trian", header=HEADER + ",split"),
    Case("half a region", nothing, ("region",), line=f"{GOOD},0:5", header=HEADER + ",region"),
    Case("an empty region", nothing, ("region",), line=f'{GOOD},"5:5,:,:"', header=HEADER + ",region"),
    Case("a region beyond", nothing, ("good.tif", "beyond"), line=f'{GOOD},"0:99,:,:"', header=HEADER + ",region"),
    Case("a negative time", nothing, ("'-1'",), line=f"{GOOD},-1", header=HEADER + ",t"),
    Case("two voxel edges", nothing, ("voxel size",), line=f"{GOOD},0.3 0.1", header=HEADER + ",voxel_size_zyx"),
    Case("a voxel of nothing", nothing, ("voxel size",), line=f"{GOOD},0 0 0", header=HEADER + ",voxel_size_zyx"),
    Case("a voxel that is no number", nothing, ("voxel size",), line=f"{GOOD},nan 1 1",
         header=HEADER + ",voxel_size_zyx"),
    Case("a mask's channel without a mask", nothing, ("no mask",), line=f"{GOOD},0", header=HEADER + ",mask_channel"),
    Case("a URL", nothing, ("URL",), line="dna,s3://bucket/a.zarr,0,good.tif,1"),
    Case("a row twice", nothing, ("same as line 2",), line=f"{GOOD}\n{GOOD}", row=3),
    Case("a group that straddles", nothing, ("straddles",), header=HEADER + ",split,group", row=3,
         line=f"{GOOD},train,a\ndna,other.tif,0,other.tif,1,test,a"),
    Case("regions that overlap", nothing, ("overlaps",), header=HEADER + ",split,region", row=3,
         line=f'{GOOD},train,":,:,0:12"\n{GOOD},test,":,:,8:24"'),
    Case("semicolons and CRLF and a mark, and a mistake", nothing, ("unknown split",),
         whole=b"\xef\xbb\xbf" + f"{HEADER},split\r\n{GOOD},no\r\n".replace(",", ";").encode()),
]  # fmt: skip


def state(folder: Path) -> list[tuple[str, int, int]]:
    """Return all that is below a folder, with sizes and times."""
    found = []
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        found.append((path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns))
    return found


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception  # what a person would see as a traceback
    return result.exit_code, result.stdout + result.stderr


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    tif(volume(), name="good.tif")(folder)
    tif(volume()[:, :, ::-1], name="other.tif")(folder)
    # What is imported once is no case's memory.
    (folder / "manifest.csv").write_text(f"{HEADER}\n{GOOD}\n")
    code, said = run("data", "check", folder / "manifest.csv", "--depth", "1", "--patch", "4,4,4")
    assert (code, "1 row without" in said) == (0, True), said  # else every case would fail for that
    return folder


@pytest.mark.parametrize("case", [*IMAGES, *MANIFESTS], ids=lambda case: case.name)
def test_bad_input(case: Case, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("good.tif", "other.tif"):
        (tmp_path / name).write_bytes((good / name).read_bytes())
    case.make(tmp_path)
    path = tmp_path / "manifest.csv"
    path.write_bytes(case.whole if case.whole is not None else f"{case.header}\n{case.line}\n".encode())
    monkeypatch.chdir(tmp_path)
    before = state(tmp_path)
    if case in IMAGES:  # watched memory takes time
        tracemalloc.start()
    try:
        code, said = run(
            "data", "check", "manifest.csv", "--depth", "1", "--patch", "4,4,4", "--workers", "1"
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert code == 2, said
    assert "Traceback" not in said
    assert "manifest.csv" in said
    for words in case.says:
        assert words in said
    if case.row is not None:
        assert f"line {case.row}" in said
    assert state(tmp_path) == before
    assert peak < MOST


def test_there_are_sixty() -> None:
    names = [case.name for case in (*IMAGES, *MANIFESTS)]
    assert len(set(names)) == len(names) >= 60


@pytest.mark.parametrize(
    "make", [lambda path: path.mkdir(), lambda path: path.symlink_to(path), lambda path: None]
)
def test_a_manifest_that_is_no_file(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    make(path)
    code, said = run("data", "check", path)
    assert code == 2
    assert "manifest.csv" in said
