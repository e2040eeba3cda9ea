"""Manifests of public real images: the in-silico-labeling sample, and cells in mitosis."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.config import load_config
from repmode_cl.data.importers.isl import PLANES, STAINS, read_isl, split_rows
from repmode_cl.data.importers.mitotic import TAGGED, import_mitotic
from repmode_cl.data.manifest import read_manifest
from repmode_cl.data.readers import open_image
from repmode_cl.data.readers.region import Region
from repmode_cl.errors import ImageError, ManifestError

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
FIELD = (
    "lab-FINKBEINER,condition-KEVAN_0_8,acquisition_date,year-2015,month-10,day-5,minute-0,well-A4,"
    "tile_computation-STITCHED"
)
ROWS, COLUMNS = 64, 24
SIZE = (ROWS, COLUMNS)
ALL = tuple(STAINS.values())


def run(*arguments: str | Path | int) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout + result.stderr


def plane_name(number: int) -> str:
    return f"{FIELD},z_depth-{number},channel-PHASE_CONTRAST,is_mask-false.png"


def stain_name(stain: str) -> str:
    return f"{FIELD},depth_computation-MAXPROJECT,channel-{stain},is_mask-false.png"


def write_png(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


# -- in-silico labeling ------------------------------------------------------------------------------------------


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """Return a folder with PNGs under the names of the public sample."""
    folder = tmp_path / "sample"
    folder.mkdir()
    random = np.random.default_rng(0)
    names = [plane_name(number) for number in range(PLANES)] + [stain_name(stain) for stain in STAINS]
    for name in names:
        write_png(folder / name, random.integers(0, 65536, SIZE).astype(np.uint16))
    return folder


def png(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / name)).astype(np.uint16)


def test_planes_in_order_and_projections_repeated(sample: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "isl.csv"
    code, said = run("data", "import", "isl", sample, "--out", out, "--gap", 4)
    assert code == 0, said
    stack = tmp_path / "out" / "isl.ome.tif"
    assert (
        f"{stack}: 13 x 64 x 24 voxels (z, y, x), channels phase_contrast, nuclei, dendrites, axons" in said
    )
    assert f"{out}: 9 rows (nuclei 3, dendrites 3, axons 3)" in said
    with open_image(stack) as image:
        assert image.channel_names == ("phase_contrast", "nuclei", "dendrites", "axons")
        light = image.read(image.channel_index("phase_contrast"))
        # z_depth-10 is the eleventh plane, though its name sorts before z_depth-2.
        for number in range(PLANES):
            np.testing.assert_array_equal(light[number], png(sample, plane_name(number)))
        for stain, structure in STAINS.items():
            target = image.read(image.channel_index(structure))
            assert target.shape == (PLANES, ROWS, COLUMNS)
            np.testing.assert_array_equal(target, np.stack([png(sample, stain_name(stain))] * PLANES))


def test_parts_train_validate_and_test_a_gap_apart(sample: Path, tmp_path: Path) -> None:
    out = tmp_path / "isl.csv"
    code, said = run("data", "import", "isl", sample, "--out", out, "--gap", 4, "--voxel-size", "1,0.5,0.5")
    assert code == 0, said
    found = read_manifest(out)
    # 56 rows of pixels outside the gaps: 14 test, a tenth of the others validates.
    spans = {"train": (0, 38), "val": (42, 46), "test": (50, 64)}
    for structure in STAINS.values():
        rows = found.for_structure(structure)
        assert {str(row.split): row.region for row in rows} == {
            split: Region(y=span) for split, span in spans.items()
        }
        assert {(row.signal_channel, row.target_channel) for row in rows} == {("phase_contrast", structure)}
        assert {row.voxel_size for row in rows} == {(1.0, 0.5, 0.5)}
    # Without a voxel size, as the collection states none, nothing is resampled.
    code, said = run("data", "import", "isl", sample, "--out", out, "--gap", 4, "--overwrite")
    assert code == 0, said
    assert {row.voxel_size for row in read_manifest(out).rows} == {None}
    code, said = run("data", "check", out, "--patch", "8,8,8")
    assert code == 0, said


def test_pixels_are_averaged_and_columns_left_out(sample: Path) -> None:
    found = read_isl(sample, bin_pixels=2, columns=20)
    assert found.stack.shape == (4, PLANES, ROWS // 2, 10)
    assert found.stack.dtype == np.uint16
    plane = png(sample, plane_name(3)).astype(float)
    assert found.stack[0, 3, 5, 7] == np.rint(plane[10:12, 14:16].mean())
    nuclei = png(sample, stain_name("DAPI_CONFOCAL")).astype(float)
    assert found.stack[1, 12, 23, 9] == np.rint(nuclei[46:48, 18:20].mean())


def test_split_of_rows() -> None:
    assert split_rows(512, 32) == {"train": (0, 302), "val": (334, 368), "test": (400, 512)}
    with pytest.raises(
        ManifestError, match="64 rows of pixels are too few for three parts that are 32 apart"
    ):
        split_rows(64, 32)


def _remove(*names: str):
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def _write(name: str, shape: tuple[int, ...], kind: type = np.uint16):
    def change(folder: Path) -> None:
        write_png(folder / name, np.zeros(shape, kind))

    return change


def _cut_short(folder: Path) -> None:
    path = folder / plane_name(4)
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_remove(plane_name(4)), "of the 13 planes of PHASE_CONTRAST (z_depth-0 to z_depth-12) z_depth 4 is missing"),
        (_remove(plane_name(0), plane_name(12)), "z_depth 0, 12 are missing"),
        (_write(plane_name(13), SIZE), "has 13 planes, numbered from 0 to 12"),
        (_write(plane_name(4), (ROWS, COLUMNS - 1)), "is_mask-false.png: 64 x 23 pixels (y, x)"),
        (_write(stain_name("NFH_CONFOCAL"), (ROWS - 1, COLUMNS)), "has 64 x 24: planes and stains of"),
        (_write(plane_name(4), SIZE, np.uint8), "the mode is L; needed is greyscale with 16 bits"),
        (_write(plane_name(4), (ROWS, COLUMNS, 3), np.uint8), "the mode is RGB"),
        (_cut_short, "not readable as PNG"),
        (_write(plane_name(4).replace("well-A4", "well-B2"), SIZE), "files of 2 fields"),
        (_write(plane_name(4).replace("z_depth-4", "z_depth-04"), SIZE), "the same channel and plane as"),
        (_remove(*(plane_name(n) for n in range(PLANES))), "z_depth 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 are"),
        (_write(stain_name("PHASE_CONTRAST"), SIZE), "a plane of phase contrast has a z_depth"),
    ],
)  # fmt: skip
def test_what_no_stack_can_be_made_of(sample: Path, tmp_path: Path, change, says: str) -> None:
    change(sample)
    for options in ([], ["--keep-going"]):
        code, said = run("data", "import", "isl", sample, "--out", tmp_path / "isl.csv", "--gap", 4, *options)
        assert code == 2
        assert says in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sample"]


@pytest.mark.parametrize(
    ("change", "says", "structures"),
    [
        (_remove(stain_name("MAP2_CONFOCAL")), "no MAP2_CONFOCAL, the target of dendrites", ("nuclei", "axons")),
        (_write("overview.png", (4, 4)), "overview.png: the name is not such as", ALL),
        (_write(stain_name("TUJ1").replace("false", "true"), (4, 4)), "masks are not used", ALL),
        (_write(stain_name("TUJ1"), (4, 4)), "the channel TUJ1 is unknown; known are PHASE", ALL),
        (_write(plane_name(3).replace("PHASE_CONTRAST", "NFH_CONFOCAL"), (4, 4)), "a stain is one projection", ALL),
    ],
)  # fmt: skip
def test_what_can_be_left_out(
    sample: Path, tmp_path: Path, change, says: str, structures: tuple[str, ...]
) -> None:
    change(sample)
    out = tmp_path / "isl.csv"
    code, said = run("data", "import", "isl", sample, "--out", out, "--gap", 4)
    assert code == 2
    assert says in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sample"]
    code, said = run("data", "import", "isl", sample, "--out", out, "--gap", 4, "--keep-going")
    assert code == 0, said
    assert "left out 1:" in said
    assert says in said
    assert read_manifest(out).structures == structures


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--bin", 5], "64 rows of pixels are no multiple of --bin 5"),
        (["--bin", 2, "--columns", 7], "7 columns of pixels are no multiple of --bin 2; --columns N uses the first N"),
        (["--columns", 25], "--columns 25, but there are 24"),
        (["--gap", 32], "too few for three parts that are 32 apart"),
        (["--stack", "stack.npy"], "the stack is an OME-TIFF"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit(sample: Path, tmp_path: Path, options: list[str | int], says: str) -> None:
    code, said = run("data", "import", "isl", sample, "--out", tmp_path / "isl.csv", *options)
    assert code == 2
    assert says in said
    assert not (tmp_path / "isl.csv").exists()


def test_nothing_is_replaced_unasked(sample: Path, tmp_path: Path) -> None:
    out, stack = tmp_path / "isl.csv", tmp_path / "field.ome.tif"
    command = ["data", "import", "isl", sample, "--out", out, "--stack", stack, "--gap", 4]
    stack.write_bytes(b"mine")
    code, said = run(*command)
    assert (code, f"{stack} is there already" in said) == (2, True)
    assert stack.read_bytes() == b"mine"
    stack.unlink()
    out.write_text("mine")
    code, said = run(*command)
    assert (code, f"{out} is there already" in said) == (2, True)
    assert not stack.exists()
    code, said = run(*command, "--overwrite")
    assert code == 0, said
    assert len(read_manifest(out).rows) == 9


def test_other_files_of_the_folder_are_named(sample: Path) -> None:
    (sample / "BUILD").touch()
    assert f"{sample}: not taken as images: 1 file (BUILD)" in read_isl(sample).notes
    with pytest.raises(ManifestError, match="no such folder"):
        read_isl(sample / "none")
    (sample.parent / "empty").mkdir()
    with pytest.raises(ManifestError, match="there is no PNG with a name such as"):
        read_isl(sample.parent / "empty")


@pytest.mark.skipif(not (DATA / "isl").is_dir(), reason="real images are not part of the repository")
def test_the_public_sample(tmp_path: Path) -> None:
    found = read_isl(DATA / "isl", bin_pixels=2)
    assert found.channels == ["phase_contrast", "nuclei", "dendrites", "axons"]
    assert found.stack.shape == (4, PLANES, 512, 384)
    assert found.skipped == []
    assert (found.stack[1:] == found.stack[1:, :1]).all()
    # Nuclei and dendrites are stained in cell bodies, axons are elsewhere.
    nuclei, dendrites, axons = (found.stack[channel, 0].ravel().astype(float) for channel in (1, 2, 3))
    assert np.corrcoef(nuclei, dendrites)[0, 1] > np.corrcoef(nuclei, axons)[0, 1] > 0


# -- cells in mitosis --------------------------------------------------------------------------------------------


def write_cell(path: Path, *, channels: int = 4, empty: bool = False) -> None:
    image = np.full((channels, 12, 20, 24), 7, np.uint8)
    image[-1] = 0
    if not empty:
        image[-1, 1:6, 8:12, 10:23] = 255
    tifffile.imwrite(path, image, ome=True, photometric="minisblack", metadata={"axes": "CZYX"})


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    folder = tmp_path / "cells"
    folder.mkdir()
    for gene in TAGGED:
        for stage in range(1, 8):
            write_cell(folder / f"{gene}_M{stage}.ome.tif")
    return folder


def test_cells_are_split_by_stage_and_cut_to_their_masks(cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "mitotic.csv"
    code, said = run("data", "import", "mitotic", cells, "--out", out)
    assert code == 0, said
    assert f"{out}: 70 rows" in said
    found = read_manifest(out)
    assert sorted(found.structures) == sorted(TAGGED.values())
    for gene, structure in TAGGED.items():
        rows = found.for_structure(structure)
        assert {row.signal.name for row in rows} == {f"{gene}_M{stage}.ome.tif" for stage in range(1, 8)}
        assert {row.signal.name[-9] for row in rows if row.split == "test"} == {"6", "7"}
        assert {row.signal.name[-9] for row in rows if row.split == "val"} == {"5"}
        assert Counter(row.split for row in rows) == {"train": 4, "val": 1, "test": 2}
    for row in found.rows:
        assert (row.signal_channel, row.target_channel, row.mask_channel) == (0, 2, 3)
        assert row.mask == row.signal == row.target
        assert row.region == Region((0, 10), (4, 16), (6, 24))  # four voxels around the cell, within the file
    by_dna = import_mitotic(cells, dye="dna", test_stages=[1], voxel_size=(0.3, 0.1, 0.1)).rows
    assert {row.signal_channel for row in by_dna} == {1}
    assert {row.voxel_size for row in by_dna} == {(0.3, 0.1, 0.1)}
    assert {row.signal.name[-9] for row in by_dna if row.split == "test"} == {"1"}
    code, said = run("data", "import", "mitotic", cells, "--out", out, "--overwrite", "--val-stages", "none")
    assert code == 0, said
    assert Counter(row.split for row in read_manifest(out).rows) == {"train": 50, "test": 20}


def test_cells_that_cannot_be_used(cells: Path, tmp_path: Path) -> None:
    (cells / "FBL_M2.ome.tif").unlink()
    write_cell(cells / "FBL_M3.ome.tif", empty=True)
    write_cell(cells / "FBL_M4.ome.tif", channels=3)
    write_cell(cells / "CENT2_M1.ome.tif")
    write_cell(cells / "ACTB_M8.ome.tif")
    (cells / "FBL_M5.ome.tif").write_bytes(b"II*\0")
    (cells / "notes.txt").touch()
    out = tmp_path / "mitotic.csv"
    code, said = run("data", "import", "mitotic", cells, "--out", out)
    assert code == 2
    for says in (
        "FBL_M2.ome.tif: there is no such file",
        "FBL_M3.ome.tif: the mask of the cell (channel 3) is empty",
        "FBL_M4.ome.tif: 3 channels; needed are four",
        "FBL_M5.ome.tif",
        "(ACTB_M8.ome.tif, CENT2_M1.ome.tif): gene or stage is unknown; known are ACTB, ACTN1",
    ):
        assert says in said
    assert not out.exists()
    code, said = run("data", "import", "mitotic", cells, "--out", out, "--keep-going")
    assert code == 0, said
    assert "not taken as images: 1 file (notes.txt)" in said
    assert {row.signal.name[-9] for row in read_manifest(out).for_structure("nucleolus")} == {"1", "6", "7"}


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        (("--test-stages", "0"), "stages that test [0]: give some of 1 to 7, not all"),
        (("--test-stages", "8"), "stages that test [8]"),
        (("--test-stages", "1,2,3,4,5,6,7"), "stages that test [1, 2, 3, 4, 5, 6, 7]"),
        (("--test-stages", "one"), "--test-stages 'one': give whole numbers such as 6,7"),
        (("--test-stages", ""), "--test-stages ''"),
        (("--val-stages", "0"), "stages that validate [0]: give some of 1 to 7, or none"),
        (("--val-stages", "all"), "--val-stages 'all'"),
        (("--val-stages", "6"), "stage 6 is to validate and to test"),
        (("--val-stages", "1,2,3,4,5"), "no stage is left to train"),
    ],
)
def test_stages_that_leave_nothing(cells: Path, tmp_path: Path, stages: tuple[str, str], says: str) -> None:
    code, said = run("data", "import", "mitotic", cells, "--out", tmp_path / "m.csv", *stages)
    assert code == 2
    assert says in said
    assert not (tmp_path / "m.csv").exists()


def test_folders_without_cells(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such folder"):
        import_mitotic(tmp_path / "none")
    with pytest.raises(ManifestError, match=r"no file with a name such as ACTB_M1\.ome\.tif"):
        import_mitotic(tmp_path)


@pytest.mark.skipif(not (DATA / "mitotic").is_dir(), reason="real images are not part of the repository")
def test_the_real_cells() -> None:
    found = import_mitotic(DATA / "mitotic")
    assert found.skipped == []
    assert Counter(row.structure for row in found.rows) == dict.fromkeys(TAGGED.values(), 7)
    for row in found.rows:
        with open_image(row.signal) as image:
            assert image.channel_names[0] == "membrane_dye"
            assert image.channel_names[3] == "cell_mask"
        assert row.region is not None
        box = row.region.resolve((200, 200, 200))
        assert all(10 < part.stop - part.start < 160 for part in box)


# -- lamin B1, added to structures of other fields ---------------------------------------------------------------


def test_the_study_of_lamin_b1_tests_on_a_field_that_trains_nothing() -> None:
    folder = Path(__file__).resolve().parents[2] / "docs" / "results" / "lamin_b1"
    config = load_config(folder / "lamin_b1.yaml")
    assert config.data.manifest == str(folder / "manifest.csv")
    assert config.stream.order == ("lamin_b1",)
    found = read_manifest(folder / "manifest.csv")
    assert sorted(found.structures) == sorted((*config.stream.base, "lamin_b1"))
    for row in found.rows:
        # Relative paths: the images are not in the repository.
        assert row.signal.relative_to(folder).parts[0] == (
            "lamin_b1" if row.structure == "lamin_b1" else "real"
        )
        assert row.signal == row.target
    fields = {(row.signal.name.split("_")[0], row.split) for row in found.for_structure("lamin_b1")}
    assert fields == {("P16", "train"), ("P26", "test")}
    for structure in config.stream.base:
        train, test = (row.region for row in found.for_structure(structure))
        assert train is not None
        assert test is not None
        gaps = [
            after[0] - before[1]
            for before, after in ((train.y, test.y), (train.x, test.x))
            if before[1] is not None
        ]
        assert gaps == [32]  # more than half a patch


def test_errors_are_of_the_user(sample: Path) -> None:
    (sample / plane_name(2)).write_bytes(b"no image")
    with pytest.raises(
        ImageError, match=r"z_depth-2,channel-PHASE_CONTRAST,is_mask-false\.png: not readable as PNG"
    ):
        read_isl(sample)
