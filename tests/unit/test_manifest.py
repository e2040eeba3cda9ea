"""The manifest: read strictly, written back equal, and checked with all its images in one list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from repmode_cl.data.importers.common import read_table
from repmode_cl.data.manifest import Manifest, Region, Row, read_manifest, write_manifest
from repmode_cl.data.validation.manifest_check import CheckOptions, inspect_manifest
from repmode_cl.errors import ManifestError, UnknownStructureError

HEADER = "structure,signal,signal_channel,target,target_channel"


def write(folder: Path, *lines: str, header: str = HEADER, encoding: str = "utf-8") -> Path:
    path = folder / "manifest.csv"
    path.write_bytes("\n".join([header, *lines, ""]).encode(encoding))
    return path


def test_round_trip(tmp_path: Path) -> None:
    a, elsewhere = tmp_path / "sub" / "a, b.tif", tmp_path.parent / "elsewhere.tif"
    rows = (
        Row(2, "dna", a, 0, a, "dna", "train", "well 1", Region((0, 8), (0, None), (4, 9)), elsewhere, 1, 2,
            (0.3, 0.1, 0.1), "cells"),
        Row(3, "nucleolus", a, None, elsewhere, None),
    )  # fmt: skip
    path = tmp_path / "manifest.csv"
    write_manifest(path, rows)
    assert read_manifest(path) == Manifest(path, rows)
    text = path.read_text()
    assert '"sub/a, b.tif"' in text
    assert elsewhere.as_posix() in text
    write_manifest(path, rows[1:])
    assert path.read_text().splitlines()[0] == HEADER


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_spreadsheets_write(tmp_path: Path, delimiter: str) -> None:
    lines = ["", "dna,a.tif,0,a.tif,dna,train,0.3 0.1 0.1", ",,,,,,", "nucleolus,a.tif,,a.tif,1,,"]
    header = HEADER + ",split,voxel_size_zyx"
    lines, header = [line.replace(",", delimiter) + "\r" for line in lines], header.replace(",", delimiter)
    found = read_manifest(write(tmp_path, *lines, header=header + "\r", encoding="utf-8-sig"))
    assert [row.number for row in found.rows] == [3, 5]
    assert found.structures == ("dna", "nucleolus")
    first, second = found.rows
    assert (first.signal_channel, first.target_channel, first.split) == (0, "dna", "train")
    assert first.voxel_size == (0.3, 0.1, 0.1)
    assert (second.signal_channel, second.split) == (None, None)
    assert found.for_structure("nucleolus") == (second,)
    with pytest.raises(UnknownStructureError, match="did you mean 'dna'"):
        found.for_structure("dnaa")


@pytest.mark.parametrize(
    "first",
    ["sep=;", "SEP=;", '"sep=;"', "sep=|", "sep=\t", "sep=;;;;"],
    ids=["plain", "upper", "quoted", "bar", "tab", "padded"],
)
def test_a_first_line_that_states_the_separator(tmp_path: Path, first: str) -> None:
    separator = first.strip('"')[4]
    lines = [
        line.replace(",", separator).replace("NAME", '"a, b; c.tif"')
        for line in (HEADER, "dna,NAME,0,a.tif,1", "DNA,a.tif,0,a.tif,1")
    ]
    path = write(tmp_path, *(f"{line}\r" for line in lines[:2]), header=f"{first}\r", encoding="utf-8-sig")
    [row] = read_manifest(path).rows
    assert (row.number, row.signal.name, row.target_channel) == (3, "a, b; c.tif", 1)
    assert read_table(path, ["structure"])[0][0] == 3
    with pytest.raises(ManifestError, match="line 4, structure: structure name 'DNA'"):
        read_manifest(write(tmp_path, *lines, header=first))
    with pytest.raises(ManifestError, match="line 1, sep=: unknown column"):
        read_manifest(write(tmp_path, *lines, header="sep="))


def test_every_mistake_is_listed_with_its_line(tmp_path: Path) -> None:
    header = HEADER + ",split,region,t,voxel_size_zyx,mask_channel"
    path = write(
        tmp_path,
        "dna,a.tif,0,a.tif,1,trian,,,,",
        "DNA,,0,a.tif,1,,,,,",
        "dna,a.tif,0,a.tif,1,validation,0:5,x,1 2,",
        "dna,a.tif,0,a.tif,1,,,,,0",
        "dna,a.tif,0,a.tif,1,,,,,,,too many",
        header=header,
    )
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    text = str(caught.value)
    for expected in (
        "line 2, split: unknown split 'trian' (did you mean 'train'?)",
        "line 3, structure: structure name 'DNA' cannot be used",
        "line 3, signal: is empty",
        "line 4, split: unknown split 'validation' (did you mean 'val'?)",
        "line 4, region: region '0:5' is not",
        "line 4, t: 'x' is no whole number",
        "line 4, voxel_size_zyx: '1 2' is no voxel size",
        "line 5, mask_channel: names a channel, but there is no mask",
        "line 6: 12 values for 10 columns",
    ):
        assert expected in text


def test_columns(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"unknown column 'splt' \(did you mean 'split'\?\)"):
        read_manifest(write(tmp_path, header=HEADER + ",splt"))
    with pytest.raises(ManifestError, match="column 'target' is missing"):
        read_manifest(write(tmp_path, header="structure,signal"))
    with pytest.raises(ManifestError, match="stands twice"):
        read_manifest(write(tmp_path, header=HEADER + ",target"))
    with pytest.raises(ManifestError, match="no row below the header"):
        read_manifest(write(tmp_path))


def test_unreadable_manifests(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    with pytest.raises(ManifestError, match="no such manifest"):
        read_manifest(path)
    with pytest.raises(ManifestError, match="folder"):
        read_manifest(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ManifestError, match="empty"):
        read_manifest(path)
    path.write_bytes(HEADER.encode("utf-16"))
    with pytest.raises(ManifestError, match="CSV UTF-8"):
        read_manifest(path)
    # An image whose bytes are text by chance too, and a spreadsheet.
    for head, name in ((b"II*\0", "image (TIFF)"), (b"ZISRAWFILE", "image (CZI)"), (b"PK\3\4", "workbook")):
        path.write_bytes(head + b"," * 40)
        with pytest.raises(ManifestError, match="this is a") as refused:
            read_manifest(path)
        assert name in str(refused.value)
    path.write_bytes((HEADER + '\ndna,"a.tif').encode())
    with pytest.raises(ManifestError, match="check the quotes"):
        read_manifest(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Write a field of 12 x 40 x 100 voxels with four channels, and files that do not fit it."""
    rng = np.random.default_rng(0)
    field = rng.normal(size=(4, 12, 40, 100)).astype("float32")
    field[2] = 7
    field[3, 1, 2, 3] = np.nan
    names = {"axes": "CZYX", "Channel": {"Name": ["light", "dna", "flat", "broken"]}}
    tifffile.imwrite(tmp_path / "field.ome.tif", field, metadata=names)
    (tmp_path / "copy.ome.tif").write_bytes((tmp_path / "field.ome.tif").read_bytes())
    tifffile.imwrite(tmp_path / "small.ome.tif", field[:2, :4, :, :90], metadata={"axes": "CZYX"})
    tifffile.imwrite(tmp_path / "mask.tif", np.zeros((12, 40, 100), "uint8"), metadata={"axes": "ZYX"})
    (tmp_path / "text.tif").write_text("no image")
    return tmp_path


def found(path: Path, **options: object) -> list[str]:
    return [str(problem) for problem in inspect_manifest(path, CheckOptions(**options)).errors]  # type: ignore[arg-type]


def test_a_good_manifest_has_no_problem(images: Path) -> None:
    path = write(
        images, "dna,field.ome.tif,light,field.ome.tif,dna", "nucleolus,field.ome.tif,0,field.ome.tif,1"
    )
    assert found(path) == []


def test_check_lists_the_problems_of_every_row(images: Path) -> None:
    path = write(
        images,
        "dna,none.tif,0,field.ome.tif,dna,,",
        "dna,field.ome.tif,light,text.tif,0,,",
        "dna,field.ome.tif,light,field.ome.tif,dan,,",
        "dna,field.ome.tif,light,small.ome.tif,1,,",
        "nucleolus,field.ome.tif,light,field.ome.tif,flat,,",
        "mitochondria,field.ome.tif,light,field.ome.tif,broken,,",
        "golgi_apparatus,small.ome.tif,0,small.ome.tif,1,tset,",
        "desmosome,field.ome.tif,light,field.ome.tif,light,,mask.tif",
        "golgi_apparatus,small.ome.tif,0,none.tif,1,tset,",
        header=HEADER + ",split,mask",
    )
    problems = found(path)
    for line, expected in [
        (2, "signal: "), (2, "no such file"), (3, "target: "), (3, "no format known"),
        (4, "no channel 'dan' (did you mean 'dna'?)"), (5, "target: 4 x 40 x 90 voxels"),
        (6, "the volume is constant (7"),
        (7, "not finite"), (8, "unknown split 'tset'"), (8, "too small: 4 x 40 x 90"),
        (9, "same channel of the same file"),
        (9, "mask is zero everywhere"), (10, "unknown split"), (10, "no such file"),
    ]:  # fmt: skip
        assert any(text.startswith(f"line {line}, ") and expected in text for text in problems), (
            line,
            expected,
        )
    assert not any("constant" in text or "finite" in text for text in found(path, read_voxels=False))
    assert [int(text.split(",")[0][5:]) for text in problems] == sorted(
        int(text.split(",")[0][5:]) for text in problems
    )


def test_rows_against_one_another(images: Path) -> None:
    row = "{},{}.ome.tif,light,field.ome.tif,dna,{},{},{}"
    path = write(
        images,
        row.format("dna", "field", "train", "", '":,:,0:40"'),
        row.format("dna", "field", "train", "", '":,:,0:40"'),
        row.format("dna", "field", "train", "", '":,:,30:44"'),
        row.format("nucleolus", "copy", "test", "", '":,:,39:60"'),
        row.format("mitochondria", "field", "test", "", '":,:,50:100"'),
        row.format("mitochondria", "field", "", "", '":,:,0:40"'),
        header=HEADER + ",split,group,region",
    )
    problems = found(path, patch=(16, 16, 16))
    assert "line 3: is the same as line 2: remove one" in problems
    assert "line 4, region: the region overlaps that of lines 2, 3, of the same structure" in problems
    assert "line 5, region: the region (test) overlaps that of lines 2, 3, 4 (train)" in problems
    assert any(
        text.startswith("line 6, region: the region (test) is only 6 voxels from line 4 (train)")
        for text in problems
    )
    assert (
        "line 7, split: names no split, but other rows of this image are in test and train; name it"
        in problems
    )
    assert len(problems) == 5
    assert not any("is only" in text for text in found(path, gap=0))


def test_half_a_patch_is_counted_in_voxels_of_the_file(images: Path) -> None:
    lines = [f'dna,field.ome.tif,0,field.ome.tif,1,{split},"{part}",{{voxel}}' for split, part in
             (("train", ":,:,0:40"), ("test", ":,:,50:100"))]  # fmt: skip
    header = HEADER + ",split,region,voxel_size_zyx"
    for voxel, problems in (("", 0), ("0.29 0.29 0.29", 0), ("0.145 0.145 0.145", 1)):
        path = write(images, *[line.format(voxel=voxel) for line in lines], header=header)
        assert len(found(path, patch=(16, 16, 16), depth=1)) == problems


def test_group_that_straddles_splits(images: Path) -> None:
    lines = ["dna,field.ome.tif,0,field.ome.tif,1,train,a", "dna,small.ome.tif,0,small.ome.tif,1,test,a"]
    path = write(images, *lines, header=HEADER + ",split,group")
    assert found(path, depth=1) == [
        "line 3, group: group 'a' straddles splits: test here, train on line 2; a group stays in one"
    ]


def test_smallest_size_is_the_networks() -> None:
    from repmode_cl.nn import smallest_size

    assert [-(-((1 << depth) + 2) // 3) for depth in range(1, 7)] == [
        smallest_size(depth) for depth in range(1, 7)
    ]
