"""`evaluate`: figures on new images, files and page, cells, what is left out and refused, and interruptions."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from stored_model import PARTS, base_network
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.data.manifest import Row, read_manifest, write_manifest
from repmode_cl.data.preprocessing.normalisation import normalise
from repmode_cl.errors import (
    ConfigError,
    ImageError,
    ManifestError,
    ModelError,
    RepmodeError,
    UnknownStructureError,
)
from repmode_cl.evaluation.segmentation import cell_features, feature_correlations, foreground
from repmode_cl.inference.predict_file import predict_file
from repmode_cl.metrics import image_metrics
from repmode_cl.model import Model
from repmode_cl.results.evaluation import ModelEvaluation, read_evaluation
from repmode_cl.store.reliability import Calibration, Reliability
from repmode_cl.workflows import evaluate_model as workflow
from repmode_cl.workflows.evaluate_model import evaluate_model
from repmode_cl.workflows.options import EvaluationOptions

SHAPE = (6, 16, 14)
NOTHING_LEARNED = {
    "splits": {"seed": 0, "test_fraction": 0.25, "val_fraction": 0.1, "train": "", "val": "", "test": ""}
}
LINES = {"dna": (2, 4, 6), "cell_membrane": (3, 5, 7)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model without a voxel size, that has learned from no image on record."""
    path = tmp_path_factory.mktemp("model") / "model"
    Model.create(path, base_network(), **{**PARTS, "voxel_size": None}, provenance=NOTHING_LEARNED)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a manifest of three fields with two structures and labels of four cells."""
    folder = tmp_path_factory.mktemp("new")
    (folder / "cells").mkdir()
    random, rows = np.random.default_rng(0), []
    labels = np.zeros(SHAPE, np.uint16)
    labels[:, :8, :7], labels[:, :8, 7:], labels[:, 8:, :7], labels[:, 9:, 8:] = 1, 2, 3, 9

    def save(name: str, volume: np.ndarray) -> Path:
        tifffile.imwrite(folder / name, volume, photometric="minisblack", metadata={"axes": "ZYX"})
        return folder / name

    for field in range(3):
        signal = save(f"f{field}.tif", random.normal(size=SHAPE).astype(np.float32))
        save(f"cells/f{field}.tif", labels)
        for name in LINES:
            truth = save(f"{name}{field}.tif", random.normal(size=SHAPE).astype(np.float32))
            rows.append(Row(0, name, signal, None, truth, None))
    write_manifest(folder / "new.csv", rows)
    return folder / "new.csv"


@pytest.fixture(scope="module")
def evaluated(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelEvaluation:
    out = tmp_path_factory.mktemp("evaluated") / "out"
    options = EvaluationOptions(
        out=out, labels=data.parent / "cells", measures=("psnr", "segmentation"), min_size=2, device="cpu"
    )
    return evaluate_model(model, data, options)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_the_figures_are_those_of_the_models_own_predictions(
    evaluated: ModelEvaluation, model: Path, data: Path
) -> None:
    opened, labels = Model.open(model), tifffile.imread(data.parent / "cells" / "f0.tif")
    assert [one.structure for one in evaluated.structures] == ["dna", "cell_membrane"]
    for name, lines in LINES.items():
        sides: tuple[dict[str, list[float]], ...] = ({}, {})
        for image, line in zip(evaluated[name].images, lines, strict=True):
            signal, truth = (
                normalise(tifffile.imread(data.parent / file))
                for file in (image.image, f"{name}{image.image[1]}.tif")
            )
            prediction = opened.predict(signal, name)
            metrics = image_metrics(prediction, truth)
            assert (image.line, image.image) == (line, f"f{lines.index(line)}.tif")
            assert {key: image.figures[key] for key in metrics} == pytest.approx(metrics, abs=1e-4)
            for side, volume in zip(sides, (truth, prediction), strict=True):
                for key, values in cell_features(volume, foreground(volume), labels).items():
                    side.setdefault(key, []).extend(values)
        means = evaluated[name].means
        assert means["r2"] == pytest.approx(
            np.mean([image.figures["r2"] for image in evaluated[name].images])
        )
        assert evaluated[name].cells == 12
        assert evaluated[name].correlations == pytest.approx(feature_correlations(*sides), abs=5e-3)
        verdict = evaluated[name].verdict
        assert (verdict.level, verdict.figures.images, verdict.figures.groups) == ("learned nothing", 3, 3)
        assert "on 3 new images" in verdict.text
        assert evaluated[name].model_verdict == "unknown: no held-out figures"


def test_tables_and_json_hold_the_same(evaluated: ModelEvaluation) -> None:
    assert read_evaluation(evaluated.folder) == evaluated
    table = rows_of(evaluated.table)
    assert [(row["structure"], int(row["line"])) for row in table] == [
        (name, line) for name, lines in LINES.items() for line in lines
    ]
    first = evaluated["dna"].images[0]
    assert float(table[0]["r2"]) == first.figures["r2"]
    assert float(table[0]["dice"]) == first.figures["dice"]
    cells = rows_of(evaluated.folder / "cells.csv")
    assert len(cells) == 24
    assert first.cells is not None
    assert float(cells[3]["texture_prediction"]) == first.cells.prediction["texture"][3]
    # Their own labels, of which some may be left out.
    assert [row["cell"] for row in cells[:4]] == ["1", "2", "3", "9"]
    written = json.loads((evaluated.folder / "evaluation.json").read_text(encoding="utf-8"))
    assert written["summary"] == json.loads(json.dumps(evaluated.summary()))
    # Prepared images, and what an interrupted call would have needed, are gone.
    assert {path.name for path in evaluated.folder.iterdir()} == {
        "cells.csv", "evaluate-request.json", "evaluate.lock", "evaluation.csv", "evaluation.json",
        "measured-images.json", "report.html",
    }  # fmt: skip


def test_the_page_holds_everything_and_loads_nothing(evaluated: ModelEvaluation) -> None:
    page = evaluated.report.read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "dna" in page
    assert "learned nothing: R² " in page
    assert "Correlation over 12 labelled cells" in page
    assert (
        page.count('<div class="panel">') == 2 * 3 * 3
    )  # light, truth and prediction of three images of each
    assert f"{evaluated['dna'].means['dice']:.3f}" in page


def test_the_command_tells_it(model: Path, data: Path, tmp_path: Path) -> None:
    words = [
        "evaluate",
        model,
        "--data",
        data,
        "--structure",
        "dna",
        "--measures",
        "psnr",
        "--out",
        tmp_path / "out",
    ]
    done = CliRunner().invoke(app, [*map(str, words), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "dna: learned nothing: R2 " in done.output
    assert f"report: {tmp_path / 'out' / 'report.html'}" in done.output
    # Once more: what is there is shown, as JSON here.
    again = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert json.loads(again.stdout)["dna"]["images"] == 3
    other = CliRunner().invoke(app, [*map(str, words), "--measures", "segmentation"])
    assert other.exit_code == 2
    assert "holds an evaluation with other settings (measures)" in other.output
    for unused in (("--threshold", "1"), ("--min-size", "3")):
        refused = CliRunner().invoke(app, [*map(str, words), *unused])
        assert refused.exit_code == 2
        assert f"{' '.join(unused)} is of the segmentation" in " ".join(refused.output.split())


def test_intervals_are_those_that_predict_writes(
    data: Path, evaluated: ModelEvaluation, tmp_path: Path
) -> None:
    calibration = Calibration(3, "val", ("y", "x"), 0.1, ((0.5, 1.0), (0.9, 4.0)))
    Model.create(
        tmp_path / "model",
        base_network(),
        **{**PARTS, "voxel_size": None},
        provenance=NOTHING_LEARNED,
        reliability={"dna": Reliability(None, calibration)},
    )
    table = [row for row in read_manifest(data).rows if row.structure == "dna"]
    mask = np.zeros(SHAPE, np.uint8)
    mask[:3] = 1
    tifffile.imwrite(tmp_path / "mask.tif", mask, photometric="minisblack", metadata={"axes": "ZYX"})
    write_manifest(tmp_path / "new.csv", [table[0], replace(table[1], mask=tmp_path / "mask.tif")])
    words = ["evaluate", tmp_path / "model", "--data", tmp_path / "new.csv", "--out", tmp_path / "out"]
    words += ["--measures", "psnr", "--device", "cpu"]
    done = CliRunner().invoke(app, [*map(str, words), "--confidence"])
    assert done.exit_code == 0, done.output
    assert "note: intervals of dna: no coverage is claimed: calibrated on 3 held-out images" in done.output
    result = read_evaluation(tmp_path / "out")
    for image, counts in zip(result["dna"].images, (np.ones(SHAPE, bool), mask > 0), strict=True):
        made = predict_file(
            tmp_path / "model", "dna", data.parent / image.image, tmp_path / "p.ome.tif", confidence=True
        )
        prediction, half = tifffile.imread(made.path)
        truth = normalise(tifffile.imread(data.parent / f"dna{image.image[1]}.tif"))
        inside = (np.abs(prediction - truth) <= half)[counts].mean()
        assert 0.2 < inside < 0.999
        assert image.figures["coverage"] == pytest.approx(inside, abs=2 / counts.sum())
        assert image.figures["interval_width"] == pytest.approx(2 * half[counts].mean(), rel=1e-4)
        made.path.unlink()
    # The other figures are the same as without.
    plain = evaluated["dna"].images[0].figures
    assert {name: result["dna"].images[0].figures[name] for name in ("r2", "psnr")} == {
        name: plain[name] for name in ("r2", "psnr")
    }
    assert "coverage" not in plain
    page = result.report.read_text(encoding="utf-8")
    assert f"{result['dna'].means['coverage']:.3f}" in page
    without = CliRunner().invoke(app, list(map(str, words)))
    assert "holds an evaluation with other settings (confidence)" in without.output
    write_manifest(tmp_path / "both.csv", read_manifest(data).rows)
    options = EvaluationOptions(out=tmp_path / "both", measures=("psnr",), device="cpu", confidence=True)
    with pytest.raises(ModelError, match="has no calibration of 'cell_membrane'"):
        evaluate_model(tmp_path / "model", tmp_path / "both.csv", options)


def test_an_interrupted_evaluation_continues(
    model: Path, data: Path, evaluated: ModelEvaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted: list[str] = []
    predict = workflow.EvaluationRun._predict

    def counted(self: Any, structure: str, volume: Any) -> Any:
        if len(predicted) == 4:
            predicted.append("cut off")
            raise KeyboardInterrupt
        predicted.append(structure)
        return predict(self, structure, volume)

    monkeypatch.setattr(workflow.EvaluationRun, "_predict", counted)
    options = EvaluationOptions(
        out=tmp_path,
        labels=data.parent / "cells",
        measures=("psnr", "segmentation"),
        min_size=2,
        device="cpu",
    )
    with pytest.raises(KeyboardInterrupt):
        evaluate_model(model, data, options)
    assert not (tmp_path / "evaluation.json").exists()
    assert len(list((tmp_path / "images").iterdir())) == 4
    result = evaluate_model(model, data, options)
    assert predicted == ["dna"] * 3 + ["cell_membrane"] + ["cut off"] + ["cell_membrane"] * 2
    assert result.structures == evaluated.structures


@pytest.mark.parametrize("changed", ["f1.tif", "dna1.tif", "cells/f1.tif"])
def test_figures_of_changed_images_are_not_shown(
    model: Path, data: Path, tmp_path: Path, changed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Light, truth and labels of line 4; also where the evaluation was interrupted."""
    manifest = Path(shutil.copytree(data.parent, tmp_path / "new")) / data.name
    options = EvaluationOptions(
        structures=("dna",),
        out=tmp_path / "out",
        labels=manifest.parent / "cells",
        measures=("segmentation",),
        device="cpu",
    )
    before = evaluate_model(model, manifest, options)
    capsys.readouterr()
    assert evaluate_model(model, manifest, options) == before
    assert "already measured, of the same images (--restart measures again)" in capsys.readouterr().err
    file = manifest.parent / changed
    volume = tifffile.imread(file)[:, ::-1].copy()
    tifffile.imwrite(file, volume, photometric="minisblack", metadata={"axes": "ZYX"})
    other = r"of other images: .* in line 4 of the manifest changed, or they cannot be read.*--restart"
    with pytest.raises(ConfigError, match=other):
        evaluate_model(model, manifest, options)
    # Interrupted after the first two images: the changed one is measured again.
    work = tmp_path / "out" / "images"
    fresh = evaluate_model(model, manifest, replace(options, out=tmp_path / "fresh"))
    assert fresh["dna"].images[1].cells != before["dna"].images[1].cells
    (tmp_path / "out" / "evaluation.json").unlink()
    again = evaluate_model(model, manifest, options)
    assert again.structures == fresh.structures
    assert not work.exists()
    # An evaluation of an earlier version recorded no contents.
    (tmp_path / "out" / "measured-images.json").unlink()
    capsys.readouterr()
    assert evaluate_model(model, manifest, options) == again
    assert "did not record the content of the images" in capsys.readouterr().err


def test_images_that_were_learned_from_are_left_out(model: Path, data: Path, tmp_path: Path) -> None:
    rows = read_manifest(data).rows
    learned = workflow.ContentDigests(tmp_path / "contents.json").of(rows[0].signal)
    splits = {
        "seed": 0,
        "test_fraction": 0.25,
        "val_fraction": 0.1,
        "train": learned[:12],
        "val": "",
        "test": "",
    }
    path = tmp_path / "model"
    Model.create(path, base_network(), **{**PARTS, "voxel_size": None}, provenance={"splits": splits})
    options = EvaluationOptions(structures=("dna",), measures=("psnr",), out=tmp_path / "out", device="cpu")
    result = evaluate_model(path, data, options)
    assert [image.line for image in result["dna"].images] == [4, 6]
    [note] = [note for note in result.notes if "line 2" in note]
    assert note.startswith(
        "dna is not evaluated on line 2: the model learned from there, or from what lies near"
    )
    write_manifest(tmp_path / "seen.csv", rows[:1])
    with pytest.raises(ManifestError, match="every image of 'dna' was learned from"):
        evaluate_model(path, tmp_path / "seen.csv", replace(options, out=tmp_path / "seen"))


def test_bad_input_is_refused(model: Path, data: Path, tmp_path: Path) -> None:
    quick = EvaluationOptions(structures=("dna",), measures=("psnr",), out=tmp_path / "out", device="cpu")
    row = read_manifest(data).for_structure("dna")[0]

    def refused(error: type[Exception], message: str, changed: Row, **more: Any) -> None:
        write_manifest(tmp_path / "bad.csv", [changed])
        with pytest.raises(error, match=message):
            evaluate_model(model, tmp_path / "bad.csv", replace(quick, **{"restart": True, **more}))

    def saved(name: str, volume: np.ndarray) -> Path:
        tifffile.imwrite(tmp_path / name, volume, photometric="minisblack", metadata={"axes": "ZYX"})
        return tmp_path / name

    with pytest.raises(UnknownStructureError, match="golgi"):
        evaluate_model(model, data, replace(quick, structures=("golgi",)))
    refused(UnknownStructureError, "the manifest", replace(row, structure="golgi"))
    refused(ManifestError, "none is in both", replace(row, structure="golgi"), structures=())
    refused(ManifestError, "line 2: .*gone.tif", replace(row, target=tmp_path / "gone.tif"))
    small = saved("small.tif", np.random.default_rng(0).normal(size=(6, 16, 13)).astype(np.float32))
    refused(ManifestError, r"line 2: the shapes \(z, y, x\) differ", replace(row, target=small))
    both = {"measures": ("segmentation",)}
    other = saved("labels.tif", np.ones((6, 16, 13), np.uint8))
    refused(
        ImageError, r"line 2: labels labels.tif have \(6, 16, 13\) voxels", replace(row, labels=other), **both
    )
    halves = saved("halves.tif", np.full(SHAPE, 0.5, np.float32))
    refused(ImageError, "hold float32 numbers that are not whole", replace(row, labels=halves), **both)
    refused(RepmodeError, "add segmentation to --measures", replace(row, labels=other))
    refused(RepmodeError, "unknown measure 'dice'", row, measures=("dice",))
    refused(RepmodeError, "a finite z-score is needed", row, threshold=float("nan"))
    refused(RepmodeError, "at least 1 voxel", row, min_size=0)
    refused(ManifestError, "is no folder", row, labels=tmp_path / "nowhere", **both)
    refused(
        ManifestError,
        r"must have one image of labels called f0\.\*, found: none",
        row,
        labels=tmp_path,
        **both,
    )
    refused(ConfigError, "lies in the model", row, out=model / "evaluation")
    (tmp_path / "file").touch()
    refused(ConfigError, "is no folder: .*file is a file", row, cache=tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    refused(ConfigError, "holds something other than an evaluation", row, out=tmp_path / "other")


def test_labels_of_a_manifest_are_read_and_resampled(tmp_path: Path) -> None:
    """A column of the manifest, a channel of it, and half as many voxels along y and x."""
    values = np.zeros((2, 4, 8, 8), np.uint8)
    values[1, :, :4], values[1, :, 4:, 2:] = 5, 6
    tifffile.imwrite(tmp_path / "labels.ome.tif", values, photometric="minisblack", metadata={"axes": "CZYX"})
    tifffile.imwrite(tmp_path / "t.tif", values[0], photometric="minisblack", metadata={"axes": "ZYX"})
    row = Row(2, "dna", tmp_path / "t.tif", None, tmp_path / "t.tif", None)
    row = replace(row, labels=tmp_path / "labels.ome.tif", labels_channel=1)
    write_manifest(tmp_path / "m.csv", [row])
    [read] = read_manifest(tmp_path / "m.csv").rows
    assert (read.labels, read.labels_channel) == (row.labels, 1)
    assert str(read) == str(
        replace(read, labels=None, labels_channel=None)
    )  # resumed trainings know rows by this
    assert np.array_equal(workflow._read_labels(read, (4, 8, 8)), values[1])
    assert np.array_equal(workflow._read_labels(read, (4, 4, 4)), values[1][:, 1::2, 1::2])
    (tmp_path / "bad.csv").write_text("structure,signal,target,labels_channel\ndna,t.tif,t.tif,1\n")
    with pytest.raises(ManifestError, match="names a channel, but there are no labels"):
        read_manifest(tmp_path / "bad.csv")
