"""Manifests made of what people have: the public collection's CSVs, folders of files, multi-channel files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.data.importers.allen import import_allen
from repmode_cl.data.importers.channels import import_channels
from repmode_cl.data.importers.common import structure_from_channel
from repmode_cl.data.importers.folder import import_folder
from repmode_cl.data.manifest import Manifest, read_manifest
from repmode_cl.errors import ManifestError, StructureError
from repmode_cl.structures import DATASET_NAMES, TWELVE_STRUCTURES

DATASETS = [name for name in DATASET_NAMES.values() if name != "dna"]
#: Images of each data set, and channels (signal, target, DNA) as the collection has them.
IMAGES, CHANNELS = 40, (6, 3, 5)


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout + result.stderr


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """Return a folder with the CSVs, and the (empty) images below ``data``."""
    dna = ["path_czi,channel_signal,channel_target,structureProteinName,colony_position"]
    for dataset in DATASETS:
        folder = tmp_path / "data" / dataset
        folder.mkdir(parents=True)
        lines = ["path_czi,channel_signal,channel_target"]
        for number in range(IMAGES):
            (folder / f"{number}.czi").touch()
            lines.append(f"data/{dataset}/{number}.czi,{CHANNELS[0]},{CHANNELS[1]}")
            if dataset != "membrane_caax_63x" and number % 2:
                dna.append(f"data/{dataset}/{number}.czi,{CHANNELS[0]},{CHANNELS[2]},x,")
        (tmp_path / f"{dataset}.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "dna.csv").write_text("\n".join(dna) + "\n")
    return tmp_path


def manifest(folder: Path, *options: str | Path) -> Manifest:
    out = folder / "out.csv"
    code, said = run(
        "data", "import", "allen", folder, "--root", folder, "--out", out, "--overwrite", *options
    )
    assert code == 0, said
    return read_manifest(out)


def test_the_collection_becomes_twelve_structures(collection: Path) -> None:
    found = manifest(collection)
    assert found.structures == TWELVE_STRUCTURES
    for structure in TWELVE_STRUCTURES:
        rows = found.for_structure(structure)
        counts = Counter(row.split for row in rows)
        if structure == "dna":
            assert counts == {"train": 54, "val": 6, "test": 20}
            assert {row.target_channel for row in rows} == {CHANNELS[2]}
        else:  # a quarter tests, a tenth of the rest validates
            assert counts == {"train": 27, "val": 3, "test": 10}
            assert {(row.signal_channel, row.target_channel) for row in rows} == {CHANNELS[:2]}


def test_dna_is_drawn_from_the_others_within_their_splits(collection: Path) -> None:
    found = manifest(collection)
    place = {row.signal: row.split for row in found.rows if row.structure != "dna"}
    rows = found.for_structure("dna")
    assert len({row.signal for row in rows}) == 80
    assert all(row.split == place[row.signal] for row in rows)
    assert all(int(row.signal.stem) % 2 for row in rows)  # those that dna.csv lists
    assert len({row.signal.parent.name for row in rows}) > 5
    assert manifest(collection) == found
    assert manifest(collection, "--seed", "1") != found
    assert Counter(r.split for r in manifest(collection, "--dna", "5,1,2").for_structure("dna")) == {
        "train": 5, "val": 1, "test": 2,
    }  # fmt: skip


def test_the_splits_and_draws_are_those_of_the_published_scripts(collection: Path) -> None:
    """Computed once by the scripts published with the paper, of the same CSVs."""
    found = manifest(collection)
    tested = [int(row.signal.stem) for row in found.for_structure("actin_filament") if row.split == "test"]
    valid = [int(row.signal.stem) for row in found.for_structure("actin_filament") if row.split == "val"]
    dna = [row for row in found.for_structure("dna") if row.split == "val"]
    assert tested == PUBLISHED_TEST
    assert valid == PUBLISHED_VAL
    assert [f"{row.signal.parent.name}/{row.signal.stem}" for row in dna] == PUBLISHED_DNA


PUBLISHED_TEST = [23, 32, 10, 22, 18, 20, 7, 14, 28, 38]
PUBLISHED_VAL = [34, 33, 37]
PUBLISHED_DNA = [
    "beta_actin/33",
    "zo1/33",
    "sec61_beta/33",
    "sec61_beta/37",
    "alpha_tubulin/33",
    "beta_actin/37",
]


def test_stated_splits_are_kept(collection: Path) -> None:
    folder = collection / "zo1"
    folder.mkdir()
    for part, numbers in {"train": range(30), "val": range(30, 34), "test": range(34, 40)}.items():
        lines = [f"data/zo1/{number}.czi,6,3" for number in numbers]
        (folder / f"{part}.csv").write_text("\n".join(["path_czi,channel_signal,channel_target", *lines]))
    rows = manifest(collection).for_structure("tight_junction")
    assert all(row.split == ("train" if int(row.signal.stem) < 30 else row.split) for row in rows)
    assert Counter(row.split for row in rows) == {"train": 30, "val": 4, "test": 6}


def test_without_a_list_of_dna_images(collection: Path) -> None:
    (collection / "dna.csv").unlink()
    found = import_allen(collection, collection)
    assert any("no dna.csv" in note for note in found.notes)
    assert {row.target_channel for row in found.rows if row.structure == "dna"} == {CHANNELS[0] - 1}


def test_images_are_found_where_people_put_them(collection: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "7.czi").touch()
    (collection / "beta_actin.csv").write_text(
        "path_czi,channel_signal,channel_target\n//allen/aics/microscopy/7.czi,6.0,3.0\n"
    )
    assert flat / "7.czi" in {row.signal for row in import_allen(collection, flat).rows}
    below = import_allen(collection, collection / "data")
    assert not [left for left in below.skipped if "7.czi" not in str(left)]


def test_images_that_are_missing(collection: Path) -> None:
    (collection / "data" / "zo1" / "3.czi").unlink()
    (collection / "tom20.csv").unlink()
    out = collection / "out.csv"
    code, said = run("data", "import", "allen", collection, "--root", collection, "--out", out)
    assert code == 2
    assert "zo1.csv, line 5: there is no data/zo1/3.czi" in said
    assert not out.exists()
    code, said = run(
        "data", "import", "allen", collection, "--root", collection, "--out", out, "--keep-going"
    )
    assert code == 0
    assert "left out" in said
    assert "zo1.csv, line 5" in said
    assert "tom20: no tom20.csv" in said
    assert "mitochondria" not in read_manifest(out).structures
    code, said = run(
        "data", "import", "allen", collection, "--root", collection, "--out", out, "--keep-going"
    )
    assert (code, "--overwrite" in said) == (2, True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("path,channel_signal,channel_target\n", "'path_czi' is missing"),
        ("path_czi,channel_signal,channel_target\na.czi,six,3\n", "line 2: channel_signal 'six'"),
        ("path_czi,channel_signal,channel_target\na.czi,6\n", "line 2: 2 values for 3 columns"),
        ("path_czi,channel_signal,channel_target\n,6,3\n", "line 2: path_czi is empty"),
        ('path_czi,channel_signal,channel_target\n"a.czi,6,3\n', "not readable as CSV"),
    ],
)
def test_bad_lists(collection: Path, text: str, says: str) -> None:
    (collection / "zo1.csv").write_text(text)
    code, said = run(
        "data", "import", "allen", collection, "--root", collection, "--out", collection / "out.csv"
    )
    assert code == 2
    assert "zo1.csv" in said
    assert says in said
    assert not (collection / "out.csv").exists()


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such folder"):
        import_allen(tmp_path / "none", tmp_path)
    with pytest.raises(ManifestError, match=r"none of alpha_tubulin.csv"):
        import_allen(tmp_path, tmp_path)


# -- a folder of files -----------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for plate in ("p1", "p2"):
        for name in ("a_1", "b"):
            for channel in ("light", "hoechst", "EGFP 488"):
                path = tmp_path / plate / f"{name}_{channel}.tif"
                path.parent.mkdir(exist_ok=True)
                path.touch()
    return tmp_path


def test_files_are_paired_by_their_names(files: Path) -> None:
    found = import_folder(files, "{group}/{id}_{channel}.tif", signal="light", targets={"dna": "hoechst"})
    assert found.skipped == []
    assert [(row.structure, row.group, row.signal.name, row.target.name) for row in found.rows] == [
        ("dna", plate, f"{name}_light.tif", f"{name}_hoechst.tif")
        for plate in ("p1", "p2")
        for name in ("a_1", "b")
    ]
    every = import_folder(files, "{group}/{id}_{channel}.tif", signal="light")
    assert Counter(row.structure for row in every.rows) == {"hoechst": 4, "egfp_488": 4}
    assert "channel 'EGFP 488': structure egfp_488" in every.notes
    one = import_folder(files / "p1", "{id}_{channel}.*", signal="light", voxel_size=(0.3, 0.1, 0.1))
    assert {row.group for row in one.rows} == {None}
    assert {row.voxel_size for row in one.rows} == {(0.3, 0.1, 0.1)}


def test_files_that_a_pattern_does_not_fit_are_named(files: Path) -> None:
    (files / "p1" / "overview.tif").touch()
    found = import_folder(files, "{group}/{id}_{channel}.tif", signal="light", targets={"dna": "hoechst"})
    # Of the files that fit "{id}_{channel}", two for each field are of a channel that no target names.
    assert len(found.rows) == 4
    [note] = found.notes
    assert note.startswith(f"{files}: the pattern does not fit ")
    assert "p1/overview.tif" in note


def test_a_folder_for_each_channel(tmp_path: Path) -> None:
    for channel in ("bf", "dna"):
        (tmp_path / channel).mkdir()
        for name in ("1", "2"):
            (tmp_path / channel / f"{name}.tif").touch()
    rows = import_folder(tmp_path, "{channel}/{id}.tif", signal="bf").rows
    assert [(row.structure, row.signal.name, row.target.parent.name) for row in rows] == [
        ("dna", "1.tif", "dna"),
        ("dna", "2.tif", "dna"),
    ]


def test_files_without_a_partner(files: Path) -> None:
    (files / "p1" / "b_light.tif").unlink()
    (files / "p2" / "c_light.tif").touch()
    out = files / "out.csv"
    command = ["data", "import", "folder", files, "--pattern", "{group}/{id}_{channel}.tif", "--signal", "light",
               "--target", "dna=hoechst", "--out", out]  # fmt: skip
    code, said = run(*command)
    assert code == 2
    assert "there is no signal 'light' of p1, b" in said
    assert "there is no target of p2, c" in said
    assert not out.exists()
    code, said = run(*command, "--keep-going")
    assert (code, "left out 2" in said) == (0, True)
    assert len(read_manifest(out).rows) == 3


@pytest.mark.parametrize(
    ("pattern", "signal", "targets", "says"),
    [
        ("{id}.tif", "light", None, "{channel} is missing"),
        ("{id}_{chanel}.tif", "light", None, "{chanel} is unknown"),
        ("{id}_{channel}.tif", "light", None, "no file fits"),
        ("*/{id}_{channel}.tif", "lihgt", None, "there are EGFP 488, hoechst, light"),
        ("*/{id}_{channel}.tif", "light", {"dna": "light"}, "is the signal, and the target"),
        ("*/{id}_{channel}.tif", "light", {"dna": "hoechst", "rna": "hoechst"}, "target of dna and of rna"),
    ],
)
def test_bad_patterns(
    files: Path, pattern: str, signal: str, targets: dict[str, str] | None, says: str
) -> None:
    with pytest.raises(ManifestError) as caught:
        import_folder(files, pattern, signal=signal, targets=targets)
    assert says in str(caught.value)


def test_two_files_for_one(files: Path) -> None:
    found = import_folder(files, "*/{id}_{channel}.tif", signal="light", targets={"dna": "hoechst"})
    assert len(found.skipped) == 4  # the plates' names were not told apart
    assert "already" in found.skipped[0].reason


# -- multi-channel files ---------------------------------------------------------------------------------


@pytest.fixture
def stacks(tmp_path: Path) -> Path:
    metadata = {"axes": "CZYX", "Channel": {"Name": ["Bright field", "Hoechst", "EGFP-tubulin"]}}
    for name in ("a", "b"):
        tifffile.imwrite(
            tmp_path / f"{name}.ome.tif",
            np.zeros((3, 4, 8, 8), np.uint8),
            photometric="minisblack",
            metadata=metadata,
        )
    return tmp_path


def test_a_row_for_every_channel(stacks: Path) -> None:
    code, said = run(
        "data", "import", "channels", stacks, "--signal", "Bright field", "--out", stacks / "m.csv"
    )
    assert code == 0, said
    assert "channel 'EGFP-tubulin': structure egfp_tubulin" in said
    rows = read_manifest(stacks / "m.csv").rows
    assert [(row.structure, row.signal.name, row.signal_channel, row.target_channel) for row in rows] == [
        (structure, f"{name}.ome.tif", "Bright field", channel)
        for name in ("a", "b")
        for channel, structure in (("Hoechst", "hoechst"), ("EGFP-tubulin", "egfp_tubulin"))
    ]
    chosen = import_channels([stacks / "a.ome.tif"], signal=0, targets={"dna": "1"})
    assert [(row.structure, row.target_channel) for row in chosen.rows] == [("dna", 1)]
    assert "left out, as no target names them: 1 channel (EGFP-tubulin)" in chosen.notes


def test_scenes_and_times_need_a_choice(stacks: Path) -> None:
    path = stacks / "many.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for name in ("left", "right"):
            file.write(
                np.zeros((2, 2, 4, 8, 8), np.uint8),
                photometric="minisblack",
                metadata={"axes": "TCZYX", "Name": name},
            )
    targets = {"dna": "1"}
    assert (
        "holds 2 scenes: 0 'left', 1 'right'"
        in import_channels([path], signal=0, targets=targets).skipped[0].reason
    )
    assert (
        "2 time points" in import_channels([path], signal=0, targets=targets, scenes="all").skipped[0].reason
    )
    found = import_channels([path], signal=0, targets=targets, scenes="all", times="1")
    assert [(row.scene, row.t) for row in found.rows] == [(0, 1), (1, 1)]
    assert "from 0 to 1" in import_channels([path], signal=0, targets=targets, scenes="2").skipped[0].reason


def test_files_that_cannot_be_imported(stacks: Path) -> None:
    (stacks / "c.tif").write_text("no image")
    tifffile.imwrite(stacks / "d.tif", np.zeros((2, 4, 8, 8), np.uint8), metadata={"axes": "CZYX"}, ome=True,
                     photometric="minisblack")  # fmt: skip
    out = stacks / "m.csv"
    command = ["data", "import", "channels", stacks, "--signal", "0", "--out", out]
    code, said = run(*command)
    assert code == 2
    assert "c.tif: no format known" in said
    assert "d.tif: channel 1 has no name" in said
    assert not out.exists()
    code, said = run(*command, "--keep-going")
    assert (code, "left out 2" in said, len(read_manifest(out).rows)) == (0, True, 4)


def test_files_of_a_folder_that_are_not_read_are_named_and_counted(stacks: Path) -> None:
    """Files of formats that are not read count as errors; other files and folders are named in notes."""
    (stacks / "plate.ims").write_bytes(b"\x89HDF" + bytes(64))
    (stacks / "plate.nd2").write_bytes(b"\xda\xce\xbe\x0a" + bytes(64))  # cut off
    (stacks / "preview.PNG").write_bytes(b"\x89PNG\r\n")
    (stacks / "notes.txt").write_text("of Tuesday")
    (stacks / "week2").mkdir()
    out = stacks / "m.csv"
    command = ["data", "import", "channels", stacks, "--signal", "Bright field", "--out", out]
    code, said = run(*command)
    assert code == 2
    assert "3 things cannot be imported (--keep-going leaves them out)" in said
    assert f"{stacks / 'plate.ims'}: HDF5 (Imaris) is not supported yet" in said
    assert f"{stacks / 'plate.nd2'}: truncated" in said
    assert f"{stacks / 'preview.PNG'}: PNG is not supported yet" in said
    assert not out.exists()
    code, said = run(*command, "--keep-going")
    assert code == 0
    assert "left out 3:" in said
    assert f"note: {stacks}: not taken as images: 1 file (notes.txt)" in said
    assert f"note: {stacks}: folders in it are not searched: 1 folder (week2)" in said
    assert len(read_manifest(out).rows) == 4


def test_files_with_the_same_reason_share_a_line(tmp_path: Path) -> None:
    for number in range(22):
        tifffile.imwrite(tmp_path / f"w{number:02}.ome.tif", np.zeros((2, 2, 4, 4), np.uint8), photometric="minisblack",
                         metadata={"axes": "CZYX", "Channel": {"Name": ["BF", "Hoechst"]}})  # fmt: skip
    code, said = run("data", "import", "channels", tmp_path, "--signal", "light", "--out", tmp_path / "m.csv")
    assert code == 2
    assert said.count(str(tmp_path)) == 1
    assert said.count("there is no channel 'light'") == 1
    assert all(f"w{number:02}.ome.tif" in said for number in range(22))
    assert "22 things cannot be imported" in said


@pytest.mark.parametrize(
    ("signal", "targets", "cells"),
    [
        ("Bright field", {"dna": "Hoechst"}, ("Bright field", "Hoechst")),
        (0, {"dna": "Hoechst"}, (0, "Hoechst")),
        ("Bright field", {"dna": "1"}, ("Bright field", 1)),
    ],
)
def test_channels_are_written_as_they_were_given(
    stacks: Path, signal: str | int, targets: dict[str, str], cells: tuple[str | int, str | int]
) -> None:
    [row] = import_channels([stacks / "a.ome.tif"], signal=signal, targets=targets).rows
    assert (row.signal_channel, row.target_channel) == cells


def test_a_channel_whose_name_would_be_read_as_another_is_written_as_a_number(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, np.zeros((3, 2, 4, 4), np.uint8), photometric="minisblack",
                     metadata={"axes": "CZYX", "Channel": {"Name": ["BF", "GFP", " EGFP"]}})  # fmt: skip
    rows = import_channels([path], signal="BF").rows
    assert [row.target_channel for row in rows] == ["GFP", 2]


def test_names_of_structures() -> None:
    assert structure_from_channel("EGFP 488 (raw)") == "egfp_488_raw"
    for name in ("488", "_", "train"):
        with pytest.raises(StructureError, match="--target dna="):
            structure_from_channel(name)


@pytest.mark.parametrize("option", [("--voxel-size", "0,1,1"), ("--target", "dna"), ("--dna", "1,2")])
def test_bad_options(collection: Path, option: tuple[str, str]) -> None:
    kind = (
        ["allen", collection, "--root", collection]
        if option[0] != "--target"
        else ["channels", "a", "--signal", "0"]
    )
    code, said = run("data", "import", *kind, *option)
    assert code == 2
    assert option[1] in said
