"""`normalise: data_set`: one mean and deviation for all images, kept by the model, its additions and its figures."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from tiny_run import changed, tiny
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.config import Config, DataConfig, PreprocessingConfig, StreamConfig
from repmode_cl.data.manifest import Manifest, Row, read_manifest, write_manifest
from repmode_cl.data.preprocessing.intensity_scales import recorded_target
from repmode_cl.data.preprocessing.prepare import prepare
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.errors import ImageError, ManifestError, ModelError
from repmode_cl.export.bioimageio_package import _files_closed
from repmode_cl.export.description import Attribution, Person
from repmode_cl.export.export_structure import export_structure
from repmode_cl.export.model_card import model_card
from repmode_cl.export.volumes import ParityVolume
from repmode_cl.inference.predict_file import predict_file
from repmode_cl.metrics import image_metrics
from repmode_cl.model import Model
from repmode_cl.store import record_files
from repmode_cl.workflows.add_structure import add_structure
from repmode_cl.workflows.compare_structure import compare_structure
from repmode_cl.workflows.evaluate_model import evaluate_model
from repmode_cl.workflows.options import EvaluationOptions
from repmode_cl.workflows.train_base import train_base

OWN_GRID = {"voxel_size": None, "normalise": "data_set"}
SHAPE = (4, 16, 16)


def volume(seed: int, *, mean: float = 100.0, deviation: float = 10.0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=SHAPE)
    return (mean + deviation * values).astype(np.float32)


def save(path: Path, values: np.ndarray) -> None:
    tifffile.imwrite(path, values, photometric="minisblack", metadata={"axes": "ZYX"})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a manifest of four fields that differ in brightness, the last of which tests, with two structures."""
    folder, rows = tmp_path_factory.mktemp("fields"), []
    for field in range(4):
        light = folder / f"light{field}.tif"
        save(light, volume(field, mean=100 + 50 * field))
        for number, name in enumerate(("dna", "nucleolus")):
            target = folder / f"{name}{field}.tif"
            truth = volume(10 + field + 10 * number, mean=1000 * (field + 1), deviation=200)
            save(target, truth)
            split = "test" if field == 3 else "train"
            rows.append(Row(0, name, light, None, target, None, split=split))
    write_manifest(folder / "fields.csv", rows)
    return folder / "fields.csv"


def pooled(images: Path, name: str) -> tuple[float, float]:
    voxels = np.concatenate([tifffile.imread(images.parent / f"{name}{field}.tif") for field in range(3)])
    return float(voxels.mean(dtype=np.float64)), float(voxels.std(dtype=np.float64))


def settings(images: Path, output: Path) -> Config:
    config = tiny(images, output)
    return changed(
        config,
        data=DataConfig(manifest=str(images), preprocessing=PreprocessingConfig(**OWN_GRID)),
        stream=StreamConfig(base=("dna",)),
        training=config.training.model_copy(update={"steps": 2, "base_steps": 2}),
    )


@pytest.fixture(scope="module")
def model(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of one base structure, to which a second was added."""
    path = tmp_path_factory.mktemp("model") / "model"
    train_base(settings(images, path.parent), path)
    add_structure(path, "nucleolus", images, steps=2, device="cpu")
    return path


# -- preparing ------------------------------------------------------------------------------------------------


def test_every_image_is_z_scored_by_the_voxels_of_the_training_images(images: Path, tmp_path: Path) -> None:
    manifest = read_manifest(images)
    splits = {row.number: str(row.split) for row in manifest.rows}
    samples = prepare(manifest, splits, PreprocessingConfig(**OWN_GRID), tmp_path / "cache")
    light, dna = pooled(images, "light"), pooled(images, "dna")
    for sample, row in zip(samples, manifest.rows, strict=True):
        assert sample.light_scale == pytest.approx(light)
        expected = (tifffile.imread(row.signal) - light[0]) / light[1]
        np.testing.assert_allclose(np.load(sample.signal), expected, atol=2e-3)
        if sample.structure == "dna":
            assert sample.target_scale == pytest.approx(dna)
            expected = (tifffile.imread(row.target) - dna[0]) / dna[1]
            np.testing.assert_allclose(np.load(sample.target), expected, atol=2e-3)
    bright = np.load(samples[-1].signal)
    assert bright.mean() > 1.5, "the image that was brighter still is"
    # Stated intensities are taken as they are, and nothing is measured: no row trains.
    stated = PreprocessingConfig(**OWN_GRID, light=(50, 2), targets={"dna": (0, 100), "nucleolus": (0, 1)})
    held_out = dict.fromkeys(splits, "test")
    sample = prepare(manifest, held_out, stated, tmp_path / "cache")[0]
    np.testing.assert_allclose(
        np.load(sample.signal), (tifffile.imread(images.parent / "light0.tif") - 50) / 2, rtol=1e-3, atol=0.02
    )
    with pytest.raises(
        ManifestError, match=r"no targets of dna can be read in the split train: state them as"
    ):
        prepare(manifest, held_out, PreprocessingConfig(**OWN_GRID, light=(50, 2)), tmp_path / "cache")


def test_a_constant_image_is_refused_or_keeps_its_place_among_the_others(tmp_path: Path) -> None:
    rows = []
    for number, (light, target) in enumerate([(volume(0), volume(1)), (volume(2), np.full(SHAPE, 70.0))]):
        np.save(tmp_path / f"light{number}.npy", light)
        np.save(tmp_path / f"dna{number}.npy", target.astype(np.float32))
        rows.append(
            Row(number + 2, "dna", tmp_path / f"light{number}.npy", None, tmp_path / f"dna{number}.npy", None)
        )
    manifest, splits = Manifest(tmp_path / "m.csv", tuple(rows)), {2: "train", 3: "train"}
    with pytest.raises(ManifestError, match=r"line 3: .*every voxel is 70: .*data.preprocessing.empty: keep"):
        prepare(manifest, splits, PreprocessingConfig(**OWN_GRID), tmp_path / "cache")
    kept = PreprocessingConfig(**OWN_GRID, empty="keep")
    samples = prepare(manifest, splits, kept, tmp_path / "cache")
    mean, deviation = samples[1].target_scale or (0, 0)
    np.testing.assert_allclose(np.load(samples[1].target), (70 - mean) / deviation, rtol=1e-3)
    with pytest.raises(ManifestError, match="the target is constant, and its row is in the split test"):
        prepare(manifest, {2: "train", 3: "test"}, kept, tmp_path / "cache")
    rows = [replace(row, target=tmp_path / "dna1.npy") for row in rows]
    with pytest.raises(ManifestError, match="every voxel of the targets of dna in the split train is 70"):
        prepare(Manifest(tmp_path / "m.csv", tuple(rows)), splits, kept, tmp_path / "cache")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"light": [1, 2]}, "intensities of a data set, but normalise is z_score"),
        ({"normalise": "data_set", "light": [1, 0]}, "greater than 0"),
        ({"normalise": "data_set", "empty": "zeros"}, "make empty keep, or refuse"),
        ({"empty": "keep"}, "make empty zeros, or refuse"),
    ],
)
def test_settings_that_do_not_go_together(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreprocessingConfig(**keys)


# -- the model ------------------------------------------------------------------------------------------------


def test_a_model_keeps_the_intensities_and_earlier_versions_refuse_it(
    model: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads((model / "model.json").read_text(encoding="utf-8"))
    assert document["version"] == 4
    prepared = document["preprocessing"]
    assert prepared["normalisation"] == "z-score over the training images"
    light = pooled(images, "light")
    assert prepared["light"] == pytest.approx(light)
    recipe = PreprocessingRecipe.from_json(prepared)
    assert PreprocessingConfig(voxel_size=None, **recipe.to_settings()).light == recipe.light
    for damage in ({"light": [1.0, 0.0]}, {"light": None}, {"data_set": False}):
        with pytest.raises(ModelError, match="not known to this repmode-cl"):
            PreprocessingRecipe.from_json({**prepared, **damage})
    shown = CliRunner().invoke(app, ["show", str(model)]).output
    text = f"z-score over the training images, light of mean {light[0]:.6g} and deviation {light[1]:.6g}"
    assert f"images are prepared with {text}" in shown
    assert "states its voxels" not in shown, "its images keep their grids anyway"
    card = model_card(Model.open(model), Attribution())
    assert text in card
    assert "z-scores over all training images" in card
    monkeypatch.setattr(record_files, "MODEL_VERSIONS", (1, 2, 3))
    with pytest.raises(ModelError, match="format version 4"):
        Model.open(model)


def test_an_addition_takes_the_models_light_and_its_own_targets(
    model: Path, images: Path, tmp_path: Path
) -> None:
    opened = Model.open(model)
    for name in ("dna", "nucleolus"):
        assert recorded_target(opened.entries[name].provenance, name) == pytest.approx(pooled(images, name))
    # Darker images do not move the light of the model.
    dark = []
    for row in read_manifest(images).for_structure("nucleolus"):
        np.save(tmp_path / f"{row.signal.stem}.npy", tifffile.imread(row.signal) / 2)
        dark.append(replace(row, structure="golgi", signal=tmp_path / f"{row.signal.stem}.npy"))
    write_manifest(tmp_path / "dark.csv", dark)
    path = Path(shutil.copytree(model, tmp_path / "model"))
    add_structure(path, "golgi", tmp_path / "dark.csv", steps=2, device="cpu", cache=tmp_path / "cache")
    added = Model.open(path).entries["golgi"].provenance["intensities"]
    assert tuple(added["light"]) == PreprocessingRecipe.from_json(opened.preprocessing).light
    assert added["targets"]["golgi"] == pytest.approx(pooled(images, "nucleolus"))


def test_predictions_and_figures_are_in_the_units_of_the_training(
    model: Path, images: Path, tmp_path: Path
) -> None:
    opened, field = Model.open(model), tifffile.imread(images.parent / "light3.tif")
    light, target = pooled(images, "light"), pooled(images, "nucleolus")
    truth = (tifffile.imread(images.parent / "nucleolus3.tif") - target[0]) / target[1]
    both = np.stack([field, tifffile.imread(images.parent / "nucleolus3.tif")], 1)
    tifffile.imwrite(tmp_path / "both.tif", both, imagej=True, metadata={"axes": "ZCYX"})
    found = predict_file(
        model,
        "nucleolus",
        tmp_path / "both.tif",
        tmp_path / "out.ome.tif",
        channel=0,
        targets={"nucleolus": 1},
    )
    expected = opened.predict(((field - light[0]) / light[1]).astype(np.float32), "nucleolus")
    np.testing.assert_allclose(tifffile.imread(tmp_path / "out.ome.tif"), expected, atol=1e-4)
    metrics = image_metrics(expected, truth.astype(np.float32))
    assert found.metrics == pytest.approx(metrics, rel=1e-4)
    with tifffile.TiffFile(tmp_path / "out.ome.tif") as file:
        written = file.ome_metadata or ""
    assert "all fluorescence images of the training" in written
    assert f"{target[1]:.3f}"[:6] in written
    options = EvaluationOptions(out=tmp_path / "evaluated", measures=(), device="cpu")
    held_out = [row for row in read_manifest(images).rows if row.split == "test"]
    write_manifest(tmp_path / "new.csv", held_out)
    figures = evaluate_model(model, tmp_path / "new.csv", options)["nucleolus"].images[0].figures
    assert {key: figures[key] for key in metrics} == pytest.approx(metrics, abs=2e-3)
    np.save(tmp_path / "flat.npy", np.full(SHAPE, 3.0, np.float32))
    with pytest.raises(ImageError, match=r"flat.npy: every voxel is 3: such an image shows nothing"):
        predict_file(model, "dna", tmp_path / "flat.npy", tmp_path / "flat.ome.tif")


def test_a_plate_may_be_z_scored_by_its_own_light(model: Path, images: Path, tmp_path: Path) -> None:
    # The same fields under a lamp of half the strength, one of them on other voxels.
    plate = []
    for field in range(3):
        save(tmp_path / f"well{field}.tif", tifffile.imread(images.parent / f"light{field}.tif") / 2)
        plate.append(str(tmp_path / f"well{field}.tif"))
    call = ["predict", str(model), "--all", *plate, "--out", str(tmp_path / "out"), "--device", "cpu"]
    result = CliRunner().invoke(app, [*call, "--light", "all"])
    assert result.exit_code == 0, result.output
    mean, deviation = pooled(images, "light")
    text = re.search("--light ([0-9.]+),([0-9.]+)", result.output)
    assert text is not None
    assert [float(one) for one in text.groups()] == pytest.approx([mean / 2, deviation / 2])
    bright = Model.open(model).predict(
        ((tifffile.imread(images.parent / "light2.tif") - mean) / deviation).astype(np.float32), "dna"
    )
    np.testing.assert_allclose(tifffile.imread(tmp_path / "out" / "well2_dna.ome.tif"), bright, atol=1e-4)
    again = CliRunner().invoke(app, [*call, "--light", f"{text[1]},{text[2]}"])
    assert again.exit_code == 0, again.output
    assert again.output.count("already") == 6, "the same numbers make the same prediction"
    refused = CliRunner().invoke(app, [*call, "--light", "12"])
    assert "give the light's mean and deviation" in refused.output


def test_a_model_that_z_scores_each_image_takes_no_light(stored: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", volume(0))
    call = [
        "predict",
        str(stored),
        "--structure",
        "dna",
        str(tmp_path / "a.npy"),
        str(tmp_path / "b.ome.tif"),
    ]
    for light in ("all", "100,10"):
        result = CliRunner().invoke(app, [*call, "--force", "--light", light])
        assert result.exit_code != 0
        assert "each image is z-scored by itself" in result.output


@pytest.mark.slow  # three methods are trained
def test_a_comparison_measures_known_structures_in_their_own_units(
    model: Path, images: Path, tmp_path: Path
) -> None:
    # A third structure, in a manifest that holds the first one's images too, of which one was never trained on.
    rows = [replace(row, structure="golgi") for row in read_manifest(images).for_structure("nucleolus")] + [
        row for row in read_manifest(images).for_structure("dna") if row.split == "test"
    ]
    write_manifest(tmp_path / "both.csv", rows)
    found = compare_structure(
        model, "golgi", tmp_path / "both.csv", steps=2, device="cpu", out=tmp_path / "compared"
    )
    [change] = [one for one in found.methods[0].changes if one.structure == "dna"]
    light, target = pooled(images, "light"), pooled(images, "dna")
    field, truth = (tifffile.imread(images.parent / f"{name}3.tif") for name in ("light", "dna"))
    prediction = Model.open(model).predict(((field - light[0]) / light[1]).astype(np.float32), "dna")
    expected = image_metrics(prediction, ((truth - target[0]) / target[1]).astype(np.float32))["r2"]
    assert (change.truth_images, change.identical) == (1, True)
    assert change.truth_before == pytest.approx(expected, rel=1e-2)


@pytest.mark.slow
def test_advice_and_another_version_take_the_models_light(model: Path, images: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(model, tmp_path / "model"))
    add_structure(path, "nucleolus", images, steps=2, device="cpu", replace=True)
    entry = Model.open(path).entries["nucleolus"].provenance["intensities"]
    assert tuple(entry["light"]) == PreprocessingRecipe.from_json(Model.open(path).preprocessing).light
    call = ["advise", str(path), "--structure", "nucleolus", "--data", str(images), "--steps", "2"]
    result = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "advice"), "--device", "cpu"])
    assert result.exit_code == 0, result.output


def test_a_truth_without_recorded_intensities_is_refused(model: Path, images: Path, tmp_path: Path) -> None:
    opened = Model.open(model)
    parts = {"voxel_size": None, "preprocessing": opened.preprocessing, "inference": opened.inference}
    Model.create(tmp_path / "bare", opened.network(["dna"]), **parts)
    light = images.parent / "light3.tif"
    assert predict_file(tmp_path / "bare", "dna", light, tmp_path / "dna.ome.tif").shape == SHAPE
    with pytest.raises(
        ModelError, match="mean and deviation of the training targets of dna are not recorded"
    ):
        predict_file(tmp_path / "bare", "dna", light, tmp_path / "other.ome.tif", targets={"dna": 0})


@pytest.mark.slow  # its library takes seconds to load
def test_a_package_states_mean_and_deviation(model: Path, tmp_path: Path) -> None:
    from bioimageio.spec import load_description

    opened, values = Model.open(model), volume(3, mean=200)
    mean, deviation = opened.preprocessing["light"]
    prepared = ((values.astype(np.float64) - mean) / deviation).astype(np.float32)
    attribution = Attribution((Person("Ada Lovelace"),), "CC-BY-4.0")
    # Tested by the format's own library, which z-scores by what the package states.
    with _files_closed():
        export_structure(
            opened,
            "dna",
            tmp_path / "dna.zip",
            "bioimageio",
            ParityVolume("a", False, values, prepared),
            attribution,
        )
        [z_score] = [
            one
            for one in load_description(tmp_path / "dna.zip").inputs[0].preprocessing
            if "variance" in one.id
        ]
    assert (z_score.id, z_score.kwargs.mean, z_score.kwargs.std) == (
        "fixed_zero_mean_unit_variance",
        mean,
        deviation,
    )
