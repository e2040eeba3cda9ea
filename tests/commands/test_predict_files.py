"""Predictions of many images: names, the table of results, images that are skipped, and calls that continue."""

from __future__ import annotations

import csv
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import zarr
from numpy.typing import NDArray
from reader_files import write_set
from stored_model import make_predictor
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.data.preprocessing.normalisation import normalise
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.inference.image_task import ImageOutcome
from repmode_cl.inference.options import PredictionOptions
from repmode_cl.inference.positions import PositionChoice
from repmode_cl.inference.predict_file import FilePrediction
from repmode_cl.inference.predict_files import expand_inputs, output_names, predict_files
from repmode_cl.inference.streaming.journal import PredictionStopped
from repmode_cl.inference.streaming.metrics import compare_volumes
from repmode_cl.inference.streaming.run import WritingBeside
from repmode_cl.inference.volume_source import z_score_of
from repmode_cl.inference.writers import write_image
from repmode_cl.metrics import image_metrics
from repmode_cl.model import Model
from repmode_cl.nn import Architecture, RepModeUNet

VOXEL = (0.5, 0.3, 0.3)
SIZE = ("--voxel-size", "0.5,0.3,0.3", "--device", "cpu")
#: Options of a prediction that is compared with its truth.
MEASURED = ("--structure", "dna", "--channel", "0", "--target", "1", *SIZE)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_predictor(tmp_path_factory.mktemp("models") / "model", VOXEL, (6, 10, 8))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three fields of two channels, and one that is broken."""
    monkeypatch.chdir(tmp_path)
    fields = tmp_path / "fields"
    fields.mkdir()
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 3000, (2, 7, 18, 12)).astype(np.uint16)
        tifffile.imwrite(
            fields / f"f{number}.ome.tif", values, photometric="minisblack", metadata={"axes": "CZYX"}
        )
    return tmp_path


def command(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_pattern_a_table_and_a_second_run(model, folder):
    call = (
        model.path,
        "fields/*.tif",
        "--all",
        "--out",
        "out",
        "--csv",
        "results.csv",
        "--channel",
        "0",
        *SIZE,
    )
    code, out, err = command(*call)
    assert (code, err) == (0, "")
    names = sorted(path.name for path in Path("out").iterdir())
    assert names == [f"f{n}_{name}.ome.tif" for n in range(3) for name in ("dna", "golgi")]
    table = rows("results.csv")
    assert [(row["input"], row["structure"], row["status"]) for row in table] == [
        (str(Path(f"fields/f{n}.ome.tif")), name, "predicted") for n in range(3) for name in ("dna", "golgi")
    ]
    assert all(Path(row["output"]).is_file() and float(row["seconds"]) >= 0 for row in table)
    assert {row["r2"] for row in table} == {""}
    before = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}

    # One of them is gone, one image has changed: these are predicted, and no others.
    Path("out/f0_dna.ome.tif").unlink()
    later = max(before.values()) + 10**9
    os.utime("fields/f1.ome.tif", ns=(later, later))
    code, out, err = command(*call)
    assert code == 0
    assert out.count("already there") == 2
    assert [row["status"] for row in rows("results.csv")] == ["predicted"] * 4 + ["already there"] * 2
    same = {path.name for path, time in before.items() if path.stat().st_mtime_ns == time}
    assert same == {"f2_dna.ome.tif", "f2_golgi.ome.tif"}
    # Other settings are another prediction.
    code, out, err = command(*call, "--rescale", "-1:1")
    assert (code, out.count("already there")) == (0, 0)
    assert command(*call, "--rescale", "-1:1", "--restart")[1].count("already there") == 0


def test_images_that_cannot_be_predicted_are_skipped_with_keep_going(model, folder):
    Path("fields/f0.ome.tif").write_bytes(b"II*\0nothing")
    constant = np.full((2, 7, 18, 12), 3, np.uint8)
    tifffile.imwrite("fields/f2.ome.tif", constant, photometric="minisblack", metadata={"axes": "CZYX"})
    call = (
        model.path,
        "fields/*.tif",
        "gone.tif",
        "--structure",
        "dna",
        "--out",
        "out",
        "--channel",
        "0",
        *SIZE,
    )
    code, _, err = command(*call)
    assert code == 2
    assert "f0.ome.tif" in err
    assert not Path("out").exists()
    code, _, err = command(*call, "--keep-going", "--csv", "results.csv")
    assert code == 2
    assert "Traceback" not in err
    assert [path.name for path in Path("out").iterdir()] == ["f1_dna.ome.tif"]
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: 3 of 4 images left out: ")
    assert all(name in last for name in ("f0.ome.tif", "f2.ome.tif", "gone.tif"))
    table = rows("results.csv")
    assert [row["status"] for row in table] == ["failed", "predicted", "failed", "failed"]
    assert "constant" in table[2]["message"]
    # Only files that are there are named.
    assert [row["output"] for row in table] == ["", str(Path("out/f1_dna.ome.tif")), "", ""]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("manifest.csv", "no table of results"),
        ("fields/f1.ome.tif", "ends in .csv"),
        ("out.npy", "ends in .csv"),
        (".", "ends in .csv"),
        ("folder.csv", "is a folder"),
    ],
)
def test_a_table_replaces_nothing_else(name, message, model, folder):
    Path("manifest.csv").write_text("structure,signal,target\ndna,a.tif,b.tif\n", encoding="utf-8")
    Path("folder.csv").mkdir()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    call = (model.path, "fields/f0.ome.tif", "out.npy", "--structure", "dna", "--channel", "0", *SIZE)
    code, _, err = command(*call, "--csv", name)
    assert code == 2
    assert message in err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_no_image_is_replaced_by_the_prediction_of_another(model, folder):
    other = Path("fields/f0_dna.ome.tif")
    other.write_bytes(Path("fields/f1.ome.tif").read_bytes())
    before = other.read_bytes()
    code, _, err = command(
        model.path, "fields/*.tif", "--structure", "dna", "--channel", "0", "--out", "fields", *SIZE
    )
    assert code == 2
    assert "is one of the inputs" in err
    assert other.read_bytes() == before


def test_metrics_where_the_truth_is_a_channel(model, folder):
    call = (
        model.path,
        "fields/f0.ome.tif",
        "fields/f1.ome.tif",
        "--structure",
        "dna",
        "--channel",
        "0",
        *SIZE,
    )
    code, out, err = command(*call, "--target", "1", "--out", "{input}.npy", "--csv", "t.csv")
    assert (code, err) == (0, "")
    for row in rows("t.csv"):
        truth = tifffile.imread(row["input"])[1]
        want = image_metrics(np.load(row["output"]), normalise(truth))
        assert {key: float(row[key]) for key in want} == pytest.approx(want, rel=1e-6)
        assert f"R2 {want['r2']:.3f}, Pearson {want['pearson']:.3f}" in out
    # A stack is another file, with the same metrics; by name, and on another grid than the model's.
    again = (*call[:-3], "0.5,0.3,0.25", "--device", "cpu", "--stack", "--target", "dna=1", "--csv", "s.csv")
    code, _, _ = command(*again, "--out", "out")
    assert code == 0
    assert [Path(row["output"]).name for row in rows("s.csv")] == [
        "f0_predicted.ome.tif",
        "f1_predicted.ome.tif",
    ]
    first = [row["mse"] for row in rows("s.csv")]
    code, out, _ = command(*again, "--out", "out")
    assert out.count("already there") == 2
    assert [row["mse"] for row in rows("s.csv")] == first
    # Metrics that no table has are computed.
    Path("s.csv").unlink()
    code, out, _ = command(*again, "--out", "out")
    assert out.count("already there") == 0
    assert [row["mse"] for row in rows("s.csv")] == first


def test_metrics_are_of_the_target_that_is_named(model, folder):
    values = np.random.default_rng(9).integers(0, 3000, (3, 7, 18, 12)).astype(np.uint16)
    tifffile.imwrite("three.ome.tif", values, photometric="minisblack", metadata={"axes": "CZYX"})
    table = ("--csv", "t.csv", "--out", "out")
    call = (model.path, "three.ome.tif", "--structure", "dna", "--channel", "0", *SIZE, *table)
    found = {}
    for target in ("1", "2"):
        code, out, _ = command(*call, "--target", target)
        assert (code, out.count("already there")) == (0, 0)
        [row] = rows("t.csv")
        want = image_metrics(tifffile.imread(row["output"]), normalise(values[int(target)]))
        assert float(row["r2"]) == pytest.approx(want["r2"], rel=1e-6)
        assert row["target"] == target
        found[target] = row
    # Without a target the figures stay, with what they are of.
    code, out, _ = command(*call)
    assert out.count("already there") == 1
    [row] = rows("t.csv")
    figures = ("mse", "mae", "r2", "pearson", "target", "unlike")
    assert [row[key] for key in figures] == [found["2"][key] for key in figures]
    assert command(*call, "--target", "dna=2")[1].count("already there") == 1
    # A table of an earlier version does not say what its figures are of.
    lines = [line.rsplit(",", 2)[0] for line in Path("t.csv").read_text().splitlines()]
    assert lines[0].endswith(",scene,t")
    Path("t.csv").write_text("\n".join(lines) + "\n")
    assert command(*call)[1].count("already there") == 1
    assert [rows("t.csv")[0][key] for key in ("r2", "target")] == [found["2"]["r2"], ""]
    assert command(*call, "--target", "1")[1].count("already there") == 0
    assert rows("t.csv")[0]["r2"] == found["1"]["r2"]


def test_figures_are_those_of_the_prediction_that_is_there(model, folder):
    """A table that several models or settings write to gives none the figures of another."""
    call = (model.path, "fields/f0.ome.tif", *MEASURED, "--csv", "t.csv")
    first = (*call, "--out", "one")
    second = (*call, "--out", "two", "--window", "6,8,8")
    assert [command(*one)[0] for one in (first, second)] == [0, 0]
    [of_second] = rows("t.csv")
    # Its figures are not in the table any more: it is measured again, and not given those of the second.
    code, out, _ = command(*first)
    assert (code, out.count("already there")) == (0, 0)
    [of_first] = rows("t.csv")
    assert of_first["r2"] != of_second["r2"]
    assert of_first["prediction"].startswith("urn:uuid:")
    assert of_first["prediction"] != of_second["prediction"]
    # The same where the figures are not asked for: none are better than those of another prediction.
    untargeted = [word for word in second if word not in ("--target", "1")]
    code, out, _ = command(*untargeted)
    assert (code, out.count("already there")) == (0, 1)
    [row] = rows("t.csv")
    assert (row["r2"], row["unlike"], row["prediction"]) == ("", "", of_second["prediction"])


def test_truth_without_a_z_score_is_said_before_anything_is_computed(model, folder):
    values = np.random.default_rng(5).integers(0, 3000, (2, 7, 18, 12)).astype(np.uint16)
    values[1] = 0
    tifffile.imwrite("dark.ome.tif", values, photometric="minisblack", metadata={"axes": "CZYX"})
    call = (model.path, "dark.ome.tif", "dna.ome.tif", "--structure", "dna", "--channel", "0", *SIZE)
    code, _, err = command(*call, "--target", "1")
    said = " ".join(err.split())
    assert code == 2
    assert "dark.ome.tif: the truth of dna cannot be compared with: every voxel is 0" in said
    assert "without a target the image is predicted all the same" in said
    assert sorted(path.name for path in Path().iterdir()) == ["dark.ome.tif", "fields"]
    assert command(*call)[0] == 0


@pytest.fixture(scope="module")
def data_set_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model whose images and truths all have one mean and deviation, so that an outlier stays one."""
    network = RepModeUNet(Architecture(width=2, depth=1, experts=("conv3",)), ("dna",), seed=0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 10
    return Model.create(
        tmp_path_factory.mktemp("models") / "data-set",
        network,
        voxel_size=None,
        preprocessing=PreprocessingRecipe(data_set=True, light=(1500, 800)).to_json(),
        inference={"window": (6, 8, 8), "overlap": 0.5, "batch": 3},
        provenance={"intensities": {"light": [1500, 800], "targets": {"dna": [1500, 800]}}},
    )


@pytest.mark.parametrize(("truth", "reason"), [(7, "every voxel is 7"), (np.nan, "a voxel is NaN")])
def test_truth_by_a_score_of_all_images_is_checked_before_anything_is_computed(
    data_set_model, folder, truth, reason
):
    values = np.random.default_rng(5).integers(0, 3000, (2, 7, 18, 12)).astype(np.float32)
    values[1] = truth
    tifffile.imwrite("bad.ome.tif", values, photometric="minisblack", metadata={"axes": "CZYX"})
    stages: list[str] = []
    how = PredictionOptions(channel=0, targets={"dna": 1}, device="cpu", status=stages.append)
    with pytest.raises(ImageError, match=f"the truth of dna cannot be compared with: {reason}") as caught:
        FilePrediction(data_set_model, "dna", Path("bad.ome.tif"), Path("dna.ome.tif"), how).run()
    assert "data.preprocessing" not in str(caught.value)
    assert stages == []
    assert sorted(path.name for path in Path().iterdir()) == ["bad.ome.tif", "fields"]


@pytest.mark.parametrize("form", [".ome.tif", ".ome.zarr"])
def test_a_prediction_that_is_not_finite_is_an_error_of_its_image(data_set_model, folder, form):
    for path in sorted(Path("fields").iterdir()):
        values = tifffile.imread(path)[0].astype(np.float32)
        if path.name.startswith("f1"):
            values[0, 0, 0] = np.finfo(np.float32).max  # a mark of missing data
        tifffile.imwrite(path, values, photometric="minisblack", metadata={"axes": "ZYX"})
    out = f"out/{{input}}{form}"
    call = (data_set_model.path, "fields/*.tif", "--structure", "dna", "--out", out, "--device", "cpu")
    code, _, err = command(*call, "--keep-going", "--csv", "results.csv")
    assert code == 2
    assert "Traceback" not in err
    assert [row["status"] for row in rows("results.csv")] == ["predicted", "failed", "predicted"]
    said = rows("results.csv")[1]["message"]
    assert "f1.ome.tif: the network predicts numbers that are not finite for this image (dna, from" in said
    assert sorted(path.name for path in Path("out").iterdir()) == [f"f0{form}", f"f2{form}"]


@pytest.mark.parametrize("later", [None, {"dna": 1}])
def test_an_interrupted_prediction_continues_with_another_truth_or_none(model, folder, later):
    def predict(out, targets, **more):
        how = PredictionOptions(
            channel=0, voxel_size=VOXEL, device="cpu", targets=targets, window=(6, 8, 8), **more
        )
        return FilePrediction(model, "dna", Path("fields/f0.ome.tif"), Path(out), how).run()

    with pytest.raises(PredictionStopped):
        predict("parts.ome.tif", {"dna": 0}, stop_after_windows=5)
    [parts] = predict("parts.ome.tif", later)
    [whole] = predict("whole.ome.tif", later)
    assert parts.metrics == whole.metrics
    np.testing.assert_array_equal(tifffile.imread(parts.path), tifffile.imread(whole.path))


def test_a_call_that_ends_early_loses_no_earlier_figures(model, folder):
    call = (model.path, "fields/*.tif", *MEASURED, "--out", "out")
    assert command(*call, "--csv", "t.csv")[0] == 0
    before = {row["input"]: row for row in rows("t.csv")}
    shutil.copy("fields/f0.ome.tif", "fields/a0.ome.tif")
    Path("fields/a1.ome.tif").write_bytes(b"II*\0nothing")
    assert command(*call, "--csv", "t.csv")[0] == 2
    kept = {row["input"]: row for row in rows("t.csv")}
    assert len(kept) == 4
    assert {name: kept[name] for name in before} == before
    Path("fields/a1.ome.tif").unlink()
    code, out, _ = command(*call, "--csv", "t.csv")
    assert (code, out.count("already there")) == (0, 4)
    assert {row["input"]: row["r2"] for row in rows("t.csv") if row["input"] in before} == {
        name: row["r2"] for name, row in before.items()
    }


def make_zarr(path: str, values: NDArray[Any]) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=2)
    # A chunk for each voxel of a plane: many files, not compressed, so that a change leaves their sizes.
    array = group.create_array("0", shape=values.shape, chunks=(7, 1, 1), dtype="f4", compressors=None)
    array[:] = values
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scale = [{"type": "scale", "scale": list(VOXEL)}]
    levels = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]


def age(folder: Path, seconds: float) -> None:
    """Set the times of a folder and of all files in it so many seconds back."""
    for path in (folder, *folder.rglob("*")):
        time = path.stat().st_mtime_ns - int(seconds * 1e9)
        os.utime(path, ns=(time, time))


def test_a_rewritten_zarr_is_predicted_again(model, folder):
    rng = np.random.default_rng(0)
    make_zarr("a.zarr", rng.normal(size=(7, 40, 30)))
    age(Path("a.zarr"), 100)
    call = (model.path, "a.zarr", "--structure", "dna", "--device", "cpu", "--out", "out")
    command(*call)
    before = tifffile.imread("out/a_dna.ome.tif")
    assert "already there" in command(*call)[1]
    zarr.open_group("a.zarr", mode="r+")["0"][:, 9, 9] = 1000  # the last of 1,200 chunks
    os.utime("out/a_dna.ome.tif", ns=(time := Path("a.zarr/0/0.9.9").stat().st_mtime_ns - 1, time))
    code, out, _ = command(*call)
    assert (code, out.count("already there")) == (0, 0)
    assert not np.array_equal(tifffile.imread("out/a_dna.ome.tif"), before)


def test_a_change_in_another_file_of_a_set_is_noticed(model, folder):
    values = np.random.default_rng(0).integers(0, 3000, (2, 7, 120, 100)).astype(np.uint16)
    _, other = write_set(Path("set"), values)
    age(Path("set"), 100)
    call = (model.path, "set/image_c0.ome.tif", "--structure", "dna", "--channel", "1", *SIZE, "--out", "out")
    command(*call)
    assert "already there" in command(*call)[1]
    with other.open("r+b") as file:
        file.seek(80_000)  # its fingerprint covers its ends
        file.write(bytes(2000))
    os.utime("out/image_c0_dna.ome.tif", ns=(time := other.stat().st_mtime_ns - 1, time))
    assert "already there" not in command(*call)[1]


def test_metrics_of_pieces_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr("repmode_cl.data.preprocessing.normalisation._STRIP", 50)
    rng = np.random.default_rng(0)

    class Array:
        def __init__(self, values: NDArray[Any]) -> None:
            self.values, self.shape = values, values.shape

        def read(self, box: tuple[slice, ...]) -> NDArray[Any]:
            return self.values[box]

    truth = rng.integers(0, 5000, (4, 11, 13)).astype(np.uint16)
    score = z_score_of(Array(truth))
    for prediction in (rng.normal(size=truth.shape).astype(np.float32), np.full(truth.shape, 2, np.float32)):
        metrics = compare_volumes(Array(prediction), Array(truth), score)
        want = image_metrics(prediction, score(truth))
        assert metrics == pytest.approx(want, rel=1e-9, nan_ok=True)
    with pytest.raises(RepmodeError, match="must be equal"):
        compare_volumes(Array(truth[:1]), Array(truth), score)


def test_names_say_which_scene_and_time_point_was_chosen():
    one = PositionChoice("Series 2", 3)
    assert output_names(["a.lif"], "o", ["dna"], stack=False, choice=one) == [
        str(Path("o") / "a_Series-2_t3_{structure}.ome.tif")
    ]
    assert output_names(["a.lif"], "o", ["dna"], stack=True, choice=PositionChoice(t=0)) == [
        str(Path("o") / "a_t0_predicted.ome.tif")
    ]
    assert output_names(["a.lif"], "{t}/{scene}_{input}.ome.zarr", ["dna"], stack=False, choice=one) == [
        "3/Series-2_a.ome.zarr"
    ]
    # Fields of a plate have the same last part.
    fields = [Path(f"p/plate.ome.zarr/{well}/1/0") for well in "AB"]
    assert output_names(fields, "{input}.ome.tif", ["dna"], stack=False) == [
        "plate-A-1-0.ome.tif",
        "plate-B-1-0.ome.tif",
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{input}_{scene}.ome.tif", "{scene} stands for the scene, and none is chosen: add --scene"),
        ("{input}_{t}.ome.tif", "{t} stands for the time point, and none is chosen"),
        ("{input}_{structur}.ome.tif", "{structur} stands for nothing (did you mean 'structure'?)"),
        ("{input}_{}.ome.tif", "{} stands for nothing"),
    ],
)
def test_what_stands_for_nothing_in_a_name_is_refused(model, folder, name, message):
    with pytest.raises(RepmodeError, match=re.escape(message)):
        output_names(["a.lif"], name, ["dna"], stack=False)
    code, _, err = command(
        model.path, "fields/f0.ome.tif", name, "--structure", "dna", "--channel", "0", *SIZE
    )
    assert code == 2
    assert message in " ".join(err.split())
    assert list(Path().glob("*.tif")) == []


def test_networks_are_made_once(model, folder, monkeypatch):
    made = []
    real = Model.fused
    monkeypatch.setattr(Model, "fused", lambda self, name: (made.append(name), real(self, name))[1])
    inputs = expand_inputs(["fields/*.tif"])
    options = PredictionOptions(channel=0, voxel_size=VOXEL, device="cpu", keep=True)
    names = output_names(inputs, "out", ["dna", "golgi"], stack=False)
    outcomes = predict_files(model, ["dna", "golgi"], inputs, names, options)
    assert made == ["dna", "golgi"]
    assert len(outcomes) == 3
    predict_files(model, ["dna", "golgi"], inputs, names, options)
    assert made == ["dna", "golgi"], "files that are there already need no network"


OUTPUTS = "repmode_cl.inference.streaming.outputs.write_image"


def predict_three(model: Model, out: str, progress: Any = None, **keywords: Any) -> list[ImageOutcome]:
    inputs = expand_inputs(["fields/*.tif"])
    options = PredictionOptions(channel=0, voxel_size=VOXEL, device="cpu", keep=True, progress=progress)
    names = output_names(inputs, out, ["dna", "golgi"], stack=False)
    return predict_files(model, ["dna", "golgi"], inputs, names, options, **keywords)


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def one_by_one(model: Model, out: str) -> dict[str, bytes]:
    inputs = expand_inputs(["fields/*.tif"])
    names = output_names(inputs, out, ["dna", "golgi"], stack=False)
    options = PredictionOptions(channel=0, voxel_size=VOXEL, device="cpu", keep=True)
    for source, name in zip(inputs, names, strict=True):
        predict_files(model, ["dna", "golgi"], [source], [name], options)
    return contents(out)


def test_an_output_is_written_while_the_next_image_is_computed(model, folder, monkeypatch):
    want = one_by_one(model, "single")
    real, main = write_image, threading.current_thread()
    computing, writers, done = threading.Event(), list[threading.Thread](), list[str]()

    def slowly(path: Path, *arguments: Any, **keywords: Any) -> None:
        if path.name.startswith("f0_dna"):
            assert computing.wait(20), "the next image is not computed before the first is written"
        writers.append(threading.current_thread())
        real(path, *arguments, **keywords)

    starts = []

    def progress(count: int, total: int) -> None:
        starts.append(count == 0)
        if sum(starts) == 2:
            computing.set()
        assert threading.current_thread() is main

    monkeypatch.setattr(OUTPUTS, slowly)
    report = lambda outcome: done.append(Path(str(outcome.source)).name)  # noqa: E731
    outcomes = predict_three(model, "out", progress, done=report)
    assert [outcome.error for outcome in outcomes] == [None] * 3
    assert done == ["f0.ome.tif", "f1.ome.tif", "f2.ome.tif"]
    assert contents("out") == want
    assert [thread is main for thread in writers] == [False] * 4 + [True] * 2, (
        "the last has nothing beside it"
    )


def test_an_error_of_writing_is_that_of_its_image(model, folder, monkeypatch):
    want, real = one_by_one(model, "single"), write_image

    def fails(path: Path, *arguments: Any, **keywords: Any) -> None:
        if path.name.startswith("f0_golgi"):
            raise OSError(28, "No space left on device", str(path))
        real(path, *arguments, **keywords)

    monkeypatch.setattr(OUTPUTS, fails)
    outcomes = predict_three(model, "out", keep_going=True)
    assert [outcome.error is None for outcome in outcomes] == [False, True, True]
    assert "f0_golgi" in str(outcomes[0].error)
    assert "No space left" in str(outcomes[0].error)
    done: list[Path | str] = []
    with pytest.raises(OSError, match="No space left"):
        predict_three(model, "again", done=lambda outcome: done.append(outcome.source))
    assert done == []
    monkeypatch.setattr(OUTPUTS, real)
    # What was computed is not lost, and nothing is locked.
    for out in ("out", "again"):
        predict_three(model, out)
        assert contents(out) == want


def test_an_interruption_ends_the_writing_too(model, folder, monkeypatch):
    want, real, threads = one_by_one(model, "single"), write_image, threading.active_count()
    writing = threading.Event()

    def never_ends(path: Path, suffix: str, metadata: Any, channels: Any, **keywords: Any) -> None:
        while True:
            channels[0].rows(0, 0, 1)
            writing.set()

    def progress(count: int, total: int) -> None:
        if writing.wait(0 if count else 0.5):
            raise KeyboardInterrupt

    monkeypatch.setattr(OUTPUTS, never_ends)
    with pytest.raises(KeyboardInterrupt):
        predict_three(model, "out", progress)
    assert threading.active_count() == threads
    assert not list(Path("out").glob("*.ome.tif"))
    monkeypatch.setattr(OUTPUTS, real)
    predict_three(model, "out")
    assert contents("out") == want


@pytest.mark.parametrize(("memory", "disk", "waits"), [(0, 0, 0), (1 << 60, 0, 1), (0, 1 << 60, 1)])
def test_what_does_not_fit_beside_the_writing_waits_for_it(model, folder, memory, disk, waits):
    waited: list[bool] = []
    options = PredictionOptions(channel=0, voxel_size=VOXEL, device="cpu")
    prediction = FilePrediction(model, "dna", "fields/f0.ome.tif", "out.npy", options)
    with prediction.compute(WritingBeside(memory, disk, lambda: waited.append(True))) as computed:
        assert len(waited) == waits
        assert min(computed.memory, computed.disk) > 0
        computed.write()
    assert Path("out.npy").is_file()


def test_names_and_patterns(folder):
    assert expand_inputs(["fields/f1.ome.tif", "fields/f*.tif", "s3://a/b*.zarr"]) == [
        Path("fields/f1.ome.tif"), Path("fields/f0.ome.tif"), Path("fields/f2.ome.tif"), "s3://a/b*.zarr",
    ]  # fmt: skip
    Path("fields/[1].tif").touch()
    assert expand_inputs(["fields/[1].tif"]) == [Path("fields/[1].tif")], "a file's own name is no pattern"
    assert output_names(["s3://a/b.ome.zarr"], "o", ["dna"], stack=False) == [
        str(Path("o/b_{structure}.ome.tif"))
    ]
    assert output_names([Path("a.b.czi")], "x/{input}.ome.zarr", ["dna"], stack=True) == ["x/a.b.ome.zarr"]
