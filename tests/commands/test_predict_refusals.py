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
