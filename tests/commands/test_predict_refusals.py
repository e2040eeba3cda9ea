"""Refusals of `predict`: each names the option that helps, with the values that the image has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from stored_model import make_predictor
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.inference.options import PredictionOptions
from repmode_cl.inference.predict_file import predict_file
from repmode_cl.model import Model

SIZES = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", (0.5, 0.3, 0.3), strict=True)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_predictor(tmp_path_factory.mktemp("models") / "model", (0.5, 0.3, 0.3), (6, 10, 8))


def write(path: str, axes: str, sizes: tuple[int, ...], **metadata: object) -> None:
    values = np.random.default_rng(0).integers(0, 3000, sizes).astype(np.uint16)
    tifffile.imwrite(path, values, photometric="minisblack", metadata={"axes": axes, **SIZES, **metadata})


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fields").mkdir()
    channels = {"Channel": {"Name": ["bright field", "Hoechst"]}}
    write("fields/two.ome.tif", "CZYX", (2, 7, 18, 12), **channels)
    write("alike.ome.tif", "CZYX", (3, 7, 18, 12), Channel={"Name": ["EGFP", "EGFP", "TL"]})
    write("times.ome.tif", "TZYX", (3, 7, 18, 12))
    write("film.ome.tif", "TYX", (3, 18, 12))
    tifffile.imwrite("flat.tif", np.zeros((18, 12), np.uint16))
    np.save("stack.npy", np.random.default_rng(0).normal(size=(7, 18, 12)))
    with tifffile.TiffWriter("scenes.ome.tif") as tiff:
        for name in ("left", "right"):
            values = np.random.default_rng(0).integers(0, 3000, (7, 18, 12)).astype(np.uint16)
            tiff.write(values, photometric="minisblack", metadata={"axes": "ZYX", "Name": name})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fields/two.ome.tif", "o.npy"), "one of --channel 'bright field', --channel Hoechst"),
        (("alike.ome.tif", "o.npy"), "one of --channel 0, --channel 1, --channel TL"),
        (("times.ome.tif", "o.npy"), "3 time points; give one of --t 0 to --t 2"),
        (("scenes.ome.tif", "o.npy"), "2 scenes; give one of --scene left, --scene right"),
        (("film.ome.tif", "o.npy"), "3 time points of one plane each, and the model predicts Z-stacks"),
        (("flat.tif", "o.npy"), "is a 2D image (one plane), and the model predicts Z-stacks of at least 2 planes"),
        (("fields", "out"), "fields: the input is a folder, not an image; for the images in it"),
        (("fields", "--out", "out"), "fields: the input is a folder, not an image"),
        (("stack.npy", "o.npy"), "no voxel size is stated"),
        (("stack.npy", "o.npy", "--force", "--voxel-size", "1e-7,0.3,0.3"), "State the right one with --voxel-size"),
        (("stack.npy", "o.npy", "--structure", "DNA"), "unknown structure 'DNA'"),
        (("stack.npy", "o.npy", "--structure", "Golgi"), "(did you mean 'golgi'?)"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(model: Model, arguments: tuple[str, ...], message: str) -> None:
    structure = () if "--structure" in arguments else ("--structure", "dna")
    result = CliRunner().invoke(app, ["predict", str(model.path), *arguments, *structure, "--device", "cpu"])
    assert result.exit_code == 2
    assert message in result.stderr
    # Options of another command, and columns of a manifest, do not help here.
    assert not any(word in result.stderr for word in ("column", "manifest", "voxel_size_zyx"))
    assert not Path("o.npy").exists()


def test_a_folder_that_is_an_image_is_no_folder_of_images(model: Model) -> None:
    call = ["predict", str(model.path), "--structure", "dna", "--device", "cpu"]
    to_zarr = CliRunner().invoke(app, [*call, "fields/two.ome.tif", "a.ome.zarr", "--channel", "0"])
    assert to_zarr.exit_code == 0, to_zarr.output
    from_zarr = CliRunner().invoke(app, [*call, "a.ome.zarr", "b.npy"])
    assert from_zarr.exit_code == 0, from_zarr.output


def test_only_predictions_are_replaced(model: Model) -> None:
    call = [
        "predict",
        str(model.path),
        "--structure",
        "dna",
        "--device",
        "cpu",
        "--channel",
        "0",
        "fields/two.ome.tif",
    ]
    raw = Path("flat.tif").read_bytes()
    refused = CliRunner().invoke(app, [*call, "flat.tif"])
    assert refused.exit_code == 2
    assert "flat.tif: is there, holds something else than a prediction, and is not replaced" in refused.stderr
    assert Path("flat.tif").read_bytes() == raw
    for rescale in ((), ("--rescale", "-2:8")):
        done = CliRunner().invoke(app, [*call, "out.tif", *rescale])
        assert done.exit_code == 0, done.output
    assert tifffile.imread("out.tif").dtype == np.uint16


def test_an_image_that_was_not_copied_whole_is_noted(model: Model) -> None:
    root = zarr.open_group("holes.zarr", mode="w")
    values = np.random.default_rng(0).integers(1, 3000, (8, 18, 12)).astype(np.uint16)
    root.create_array("0", data=values, chunks=(2, 18, 12))
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    scale = [{"type": "scale", "scale": [0.5, 0.3, 0.3]}]
    level = {"path": "0", "coordinateTransformations": scale}
    root.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [level]}]}
    call = ["predict", str(model.path), "--structure", "dna", "--device", "cpu", "holes.zarr"]
    whole = CliRunner().invoke(app, [*call, "whole.ome.tif"])
    assert (whole.exit_code, whole.stderr) == (0, "")
    Path("holes.zarr/0/c/1/0/0").unlink()
    noted = CliRunner().invoke(app, [*call, "holes.ome.tif"])
    assert noted.exit_code == 0, noted.output
    assert "note: holes.zarr: 1 of 4 chunks are missing, and read as blank" in noted.stderr
    with tifffile.TiffFile("holes.ome.tif") as tiff:
        assert "1 of 4 chunks are missing" in (tiff.ome_metadata or "")


def predicted(model: Model, *arguments: str) -> np.ndarray:
    """Return what `predict` writes; the file is removed."""
    call = ["predict", str(model.path), "--structure", "dna", "--device", "cpu", *arguments, "o.ome.tif"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    values = tifffile.imread("o.ome.tif")
    Path("o.ome.tif").unlink()
    return np.asarray(values)


def test_choices_that_are_offered_are_taken(model: Model) -> None:
    """Names of channels and scenes that are numbers are names first, and so are those of targets."""
    values = np.random.default_rng(0).integers(0, 3000, (3, 7, 18, 12)).astype(np.uint16)
    tifffile.imwrite("numbers.ome.tif", values, photometric="minisblack",
                     metadata={"axes": "CZYX", **SIZES, "Channel": {"Name": ["1", "2", "3"]}})  # fmt: skip
    for number in range(3):
        write_zyx(f"c{number}.ome.tif", values[number])
    expected = [predicted(model, f"c{number}.ome.tif") for number in range(3)]
    call = ["predict", str(model.path), "--structure", "dna", "--device", "cpu"]
    refused = CliRunner().invoke(app, [*call, "numbers.ome.tif", "o.ome.tif"])
    assert "one of --channel 1, --channel 2, --channel 3" in refused.stderr
    for text, number in (("1", 0), ("2", 1), ("3", 2), ("0", 0)):
        found = predicted(model, "--channel", text, "numbers.ome.tif")
        np.testing.assert_array_equal(found, expected[number])
    for names in (("101", "102"), ("1", "2")):
        with tifffile.TiffWriter("s.ome.tif") as tiff:
            for name, volume in zip(names, values, strict=False):
                tiff.write(volume, photometric="minisblack", metadata={"axes": "ZYX", "Name": name, **SIZES})
        refused = CliRunner().invoke(app, [*call, "s.ome.tif", "o.ome.tif"])
        assert f"one of --scene {names[0]}, --scene {names[1]}" in refused.stderr
        for number, name in enumerate(names):
            np.testing.assert_array_equal(predicted(model, "--scene", name, "s.ome.tif"), expected[number])


def write_zyx(path: str, values: np.ndarray) -> None:
    tifffile.imwrite(path, values, photometric="minisblack", metadata={"axes": "ZYX", **SIZES})


def test_a_number_that_is_the_name_of_another_is_not_offered(model: Model) -> None:
    write("alike.ome.tif", "CZYX", (4, 7, 18, 12), Channel={"Name": ["1", "x", "x", "0"]})
    call = ["predict", str(model.path), "--structure", "dna", "--device", "cpu", "alike.ome.tif", "o.npy"]
    refused = CliRunner().invoke(app, call)
    assert "one of --channel 1, --channel 2, --channel 0\n" in refused.stderr


def test_the_identity_of_a_prediction_by_number_stays(model: Model) -> None:
    """`--scene 1` of earlier versions was recorded as 1, and is not predicted again."""
    call = ["predict", str(model.path), "--structure", "dna", "--device", "cpu", "scenes.ome.tif",
            "--voxel-size", "0.5,0.3,0.3", "--out", "out/{input}_{structure}.ome.tif"]  # fmt: skip
    options = PredictionOptions(scene=1, voxel_size=(0.5, 0.3, 0.3), device="cpu")
    predict_file(model, "dna", "scenes.ome.tif", "out/scenes_dna.ome.tif", options)
    assert "already there" in CliRunner().invoke(app, [*call, "--scene", "1"]).stdout
    assert "already there" not in CliRunner().invoke(app, [*call, "--scene", "right"]).stdout
