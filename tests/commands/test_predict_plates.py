"""All scenes and time points, and plates: names, tables, outputs with an axis of time, and calls that continue."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from plate_files import FIELDS, WELLS, make_plate
from stored_model import make_predictor
from typer.testing import CliRunner

import repmode_cl.inference.plan_outputs as plan_outputs
from repmode_cl.cli.app import app
from repmode_cl.data.readers import open_image
from repmode_cl.inference.predict_file import ComputedPrediction, FilePrediction, predict_file
from repmode_cl.inference.streaming.run import WritingBeside
from repmode_cl.model import Model

VOXEL = (0.5, 0.3, 0.3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_predictor(tmp_path_factory.mktemp("models") / "model", VOXEL, (5, 8, 8))


@pytest.fixture(scope="module")
def plate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_plate(tmp_path_factory.mktemp("plates") / "screen.ome.zarr")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["predict", *map(str, arguments), "--device", "cpu"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def content(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def test_a_plate_becomes_a_plate_and_an_interrupted_call_continues(model, plate, monkeypatch):
    call = (
        model.path,
        "--structure",
        "dna",
        "--channel",
        "1",
        "--scene",
        "all",
        "--t",
        "all",
        "--csv",
        "t.csv",
    )
    real, count = FilePrediction.compute, 0

    def compute(self: FilePrediction, beside: WritingBeside | None = None) -> ComputedPrediction:
        nonlocal count
        count += 1
        if count == 20:
            raise KeyboardInterrupt
        return real(self, beside)

    monkeypatch.setattr(FilePrediction, "compute", compute)
    code, _, err = command(*call, plate, "out.ome.zarr")
    assert (code, "continue" in err) == (130, True)
    assert not Path("out.ome.zarr").exists(), "nothing has its own name before it is whole"
    # The one before was being written: it may be whole, and listed, or neither.
    assert len(rows("t.csv")) in (18, 19)
    assert all(Path(row["output"]).exists() for row in rows("t.csv"))
    # The second time it ends in the middle of making the plate of its fields.
    write = plan_outputs.write_plate

    def interrupted(output: Path, plate: object, fields: dict[str, Path]) -> None:
        for field in list(fields)[:5]:
            (Path("out.ome.zarr.part") / field).parent.mkdir(parents=True, exist_ok=True)
            fields[field].replace(Path("out.ome.zarr.part") / field)
        raise KeyboardInterrupt

    monkeypatch.setattr(plan_outputs, "write_plate", interrupted)
    code, out, _ = command(*call, plate, "out.ome.zarr")
    assert code == 130
    assert out.count("already there") in (18, 19)
    monkeypatch.setattr(plan_outputs, "write_plate", write)
    count = 100
    code, out, err = command(*call, plate, "out.ome.zarr")
    assert (code, err) == (0, "")
    assert out.count("already there") == 36
    assert count == 100, "series that are whole are not even opened for prediction"
    assert sorted(path.name for path in Path().iterdir()) == ["out.ome.zarr", "t.csv"]
    table = rows("t.csv")
    assert [(row["scene"], row["t"]) for row in table] == [(f, str(t)) for f in FIELDS for t in range(3)]
    assert {(row["input"], row["output"], row["structure"]) for row in table} == {
        (str(plate), "out.ome.zarr", "dna")
    }
    # The same voxels as one image at a time.
    predict_file(model, "dna", plate / "B/2/1", "one.npy", channel=1, t=2, device="cpu")
    with open_image("out.ome.zarr/B/2/1", t=2) as image:
        assert (image.times, image.channel_names, image.voxel_size) == (3, ("dna",), VOXEL)
        np.testing.assert_array_equal(image.read(0), np.load("one.npy"))
    # A second call does nothing; a changed setting is another plate.
    before = content("out.ome.zarr")
    code, out, err = command(*call, plate, "out.ome.zarr")
    assert (code, out.count("already there"), content("out.ome.zarr") == before) == (0, 36, True)
    _is_a_plate(Path("out.ome.zarr"))


def _is_a_plate(path: Path) -> None:
    """Check a plate with ome-zarr, which reads it as napari's plugin does."""
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Plate, Reader

    location = parse_url(str(path))
    assert location is not None
    nodes = list(Reader(location)())
    [spec] = [spec for node in nodes for spec in node.specs if isinstance(spec, Plate)]
    assert [well["path"] for well in spec.plate_data["wells"]] == list(WELLS)
    about = json.loads((path / "zarr.json").read_text())["attributes"]
    assert about["ome"]["plate"]["acquisitions"] == [{"id": 0, "name": "first"}]
    # One picture of the first field of all wells: 2 rows of 3.
    whole = nodes[0].data[0]
    assert whole.shape == (3, 1, 5, 2 * 8, 3 * 8)
    with open_image(path / "A/1/0", t=1) as first, open_image(path / "B/3/0", t=1) as last:
        np.testing.assert_array_equal(whole[1, 0, :, :8, :8].compute(), first.read(0))
        np.testing.assert_array_equal(whole[1, 0, :, 8:, 16:].compute(), last.read(0))


def test_a_plate_with_a_failed_field_waits(model, tmp_path):
    plate = make_plate(tmp_path / "p.zarr", (1, 1, 5, 8, 8), version="0.5")
    chunks = plate / "A/2/0/0/c"
    shutil.move(chunks, tmp_path / "chunks")  # all blank, which has no z-score
    call = (model.path, plate, "--all", "--scene", "all", "--out", "out", "--csv", "t.csv", "--keep-going")
    code, out, err = command(*call)
    assert code == 2
    assert "1 of 12 images left out" in err
    assert f"{plate} A/2/0" in err
    assert [row["status"] for row in rows("t.csv")].count("failed") == 2
    assert all(path.name.endswith(".parts") for path in Path("out").iterdir())
    shutil.move(tmp_path / "chunks", chunks)
    code, out, err = command(*call)
    assert (code, out.count("already there")) == (0, 22)
    assert sorted(path.name for path in Path("out").iterdir()) == ["p_dna.ome.zarr", "p_golgi.ome.zarr"]
    assert {row["output"] for row in rows("t.csv")} == {
        str(Path(f"out/p_{name}.ome.zarr")) for name in ("dna", "golgi")
    }
    with open_image("out/p_golgi.ome.zarr/A/2/0") as image:
        assert (image.times, image.shape) == (1, (5, 8, 8))
    # One field, and a file for each of them.
    code, _, err = command(model.path, plate, "one.npy", "--structure", "dna", "--scene", "B/3/1")
    assert (code, err) == (0, "")
    assert np.load("one.npy").shape == (5, 8, 8)
    code, _, err = command(model.path, plate, "one.npy", "--structure", "dna", "--scene", "B/3/7")
    assert code == 2
    assert "there is no field B/3/7 (did you mean 'B/3/" in err


def test_time_points_of_files_become_one_image_or_one_each(model, tmp_path):
    values = np.random.default_rng(0).integers(0, 3000, (3, 5, 8, 264)).astype(np.uint16)
    size = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", VOXEL, strict=True)}
    units = {f"PhysicalSize{axis}Unit": "µm" for axis in "ZYX"}
    with tifffile.TiffWriter("two.ome.tif") as tiff:
        for name in ("left", "right"):
            tiff.write(
                values, photometric="minisblack", metadata={"axes": "TZYX", "Name": name, **size, **units}
            )
    call = (model.path, "two.ome.tif", "--structure", "dna", "--t", "all")
    code, _, err = command(*call, "o.ome.tif", "--scene", "all")
    assert code == 2
    assert "holds several scenes, which need a file each" in err
    code, _, err = command(*call, "o.npy", "--scene", "left")
    assert code == 2
    assert "an array has no axis of time" in err
    code, out, err = command(*call, "--scene", "all", "--out", "out", "--stack", "--rescale", "-4:4:uint8")
    assert (code, err) == (0, "")
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "two_left_predicted.ome.tif",
        "two_right_predicted.ome.tif",
    ]
    assert out.count("whole") == 2
    code, out, _ = command(*call, "--scene", "1", "{t}.npy", "--rescale", "-4:4:uint8")
    assert code == 0
    whole = tifffile.imread("out/two_right_predicted.ome.tif")
    assert whole.shape == (3, 2, 5, 8, 264)
    for t in range(3):
        np.testing.assert_array_equal(whole[t, 1], np.load(f"{t}.npy"))
    with tifffile.TiffFile("out/two_right_predicted.ome.tif") as tiff:
        [series] = tiff.series
        assert (series.axes, len(series.levels)) == ("TCZYX", 2)
    with open_image("out/two_left_predicted.ome.tif", t=1) as image:
        assert image.voxel_size == VOXEL
    code, out, _ = command(*call, "--scene", "all", "--out", "out", "--stack", "--rescale", "-4:4:uint8")
    assert (code, out.count("already there")) == (0, 6)
    # One scene at all times in OME-Zarr.
    code, _, err = command(*call, "--scene", "left", "movie.ome.zarr")
    assert (code, err) == (0, "")
    with open_image("movie.ome.zarr", t=2) as image:
        assert (image.times, image.voxel_size) == (3, VOXEL)


@pytest.mark.parametrize("out", ["o.ome.zarr", "o.ome.tif"])
def test_figures_of_another_target_are_measured(model, tmp_path, out):
    if out == "o.ome.zarr":
        source = make_plate(tmp_path / "screen.ome.zarr")
    else:
        source = tmp_path / "times.ome.tif"
        values = np.random.default_rng(9).integers(0, 3000, (2, 2, 5, 12, 10)).astype(np.uint16)
        sizes = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", VOXEL, strict=True)}
        tifffile.imwrite(source, values, photometric="minisblack", metadata={"axes": "TCZYX", **sizes})
    call = (model.path, "--structure", "dna", "--channel", "1", "--scene", "all", "--t", "all", source, out)
    found = {}
    for target in ("0", "1"):
        code, said, err = command(*call, "--csv", "t.csv", "--target", target)
        assert (code, said.count("already there")) == (0, 0), err
        found[target] = [row["r2"] for row in rows("t.csv")]
        assert {row["target"] for row in rows("t.csv")} == {target}
        code, said, _ = command(*call, "--csv", "t.csv", "--target", target)
        assert said.count("already there") == len(found[target]) > 1
        assert [row["r2"] for row in rows("t.csv")] == found[target]
    assert "" not in found["0"]
    assert found["0"] != found["1"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"plate": {"rows": [], "columns": [], "wells": [{"path": "../x"}]}}, "is not named row/column"),
        ({"plate": {"wells": []}}, "metadata of this plate are damaged"),
        ({"plate": {"rows": [], "columns": [], "wells": []}}, "a plate without an image"),
        (
            {"plate": {"rows": [{"name": "A"}], "columns": [{"name": "1"}], "wells": [{"path": "A/1"}]}},
            "the well A/1 is listed and not there",
        ),
    ],
)
def test_damaged_plates_are_refused(model, metadata, message, tmp_path):
    (tmp_path / "p.zarr").mkdir()
    (tmp_path / "p.zarr" / ".zattrs").write_text(json.dumps(metadata), encoding="utf-8")
    (tmp_path / "p.zarr" / ".zgroup").write_text('{"zarr_format": 2}', encoding="utf-8")
    code, _, err = command(model.path, "p.zarr", "o.ome.zarr", "--structure", "dna", "--scene", "all")
    assert code == 2
    assert message in err
    assert not Path("o.ome.zarr.parts").exists()


def test_fast_is_an_overlap_of_a_quarter(model):
    np.save("in.npy", np.random.default_rng(0).integers(0, 3000, (5, 20, 16)).astype(np.uint16))
    call = (model.path, "in.npy", "--structure", "dna", "--voxel-size", "0.5,0.3,0.3")
    for options in (("fast.npy", "--fast"), ("quarter.npy", "--overlap", "0.25"), ("half.npy",)):
        assert command(*call, *options)[0] == 0
    assert np.array_equal(np.load("fast.npy"), np.load("quarter.npy"))
    assert not np.array_equal(np.load("fast.npy"), np.load("half.npy"))
    code, _, err = command(*call, "o.npy", "--fast", "--overlap", "0.3")
    assert (code, "leave out one of them" in err) == (2, True)
