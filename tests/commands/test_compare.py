"""Comparing three methods to learn a structure: the model stays, adding changes nothing, fine-tuning does."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from tiny_compare import KNOWN, NEW, SETTINGS, Interruption, cut_off, make_model
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.config.addition_settings import ADDITION_SETTINGS
from repmode_cl.data.manifest import read_manifest, write_manifest
from repmode_cl.errors import ConfigError, ManifestError, ModelError, StructureError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec
from repmode_cl.results.comparison import METHODS, Comparison, read_comparison
from repmode_cl.strategies import StructureStrategy
from repmode_cl.utils.atomic_files import TEMPORARY_MARK
from repmode_cl.workflows.add_structure import add_structure
from repmode_cl.workflows.compare_structure import compare_structure


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return each file's content, and when files and folders were last written: a folder notes what comes and goes."""
    return {
        path.relative_to(folder).as_posix(): (
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted([folder, *folder.rglob("*")])
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("compare") / "model", ("mitochondria", AdditionSpec()))


@pytest.fixture(scope="module")
def compared(model: Path, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comparison]:
    """Return a comparison with a model that nobody may write to."""
    before = everything(model)
    modes = {path: path.stat().st_mode for path in (model, *model.rglob("*"))}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    try:
        yield compare_structure(
            model, NEW, manifest, out=tmp_path_factory.mktemp("compared") / "out", **SETTINGS
        )
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert everything(model) == before


def assert_same_results(comparison: Comparison, expected: Comparison) -> None:
    """All is equal but the seconds, and the bytes of their digits in a file's header."""
    for one, other in zip(comparison.methods, expected.methods, strict=True):
        first, second = one.to_json(), other.to_json()
        assert abs(first.pop("bytes") - second.pop("bytes")) <= 64
        del first["seconds"], second["seconds"]
        assert first == second


# -- results ---------------------------------------------------------------------------------------------


def test_the_model_is_not_changed(compared: Comparison, model: Path) -> None:
    """The fixture asserts it at its end too, when nothing hides a write any more."""
    assert Model.open(model).structures == KNOWN
    assert not (model / "pending").exists()
    assert Model.open(model).verify().bit_identical


def test_adding_changes_nothing_and_fine_tuning_everything(compared: Comparison) -> None:
    adding, fine_tuning, own = compared.methods
    assert tuple(way.key for way in compared.methods) == METHODS
    assert compared.known == KNOWN
    assert [change.structure for change in adding.changes] == list(KNOWN)
    for change in adding.changes:
        assert (change.identical, change.max_difference, change.r2, change.lost) == (True, 0.0, 1.0, 0.0)
    assert (adding.damage, adding.identical, adding.worst) == (0.0, True, None)
    # The addition among them too: its own tensors are what they were, but the base below them is not.
    for change in fine_tuning.changes:
        assert not change.identical
        assert change.max_difference is not None
        assert change.max_difference > 1e-3
        assert change.r2 is not None
        assert change.r2 < 1
        assert change.lost
    assert fine_tuning.damage == max(change.max_difference or 0 for change in fine_tuning.changes)
    assert own.changes == ()
    assert own.damage == 0.0


def test_all_learn_alike_and_are_judged_alike(compared: Comparison) -> None:
    assert compared.held_out == "test"
    assert [way.steps for way in compared.methods] == [SETTINGS["steps"]] * 3
    # Adding has the rate of its setting; a separate network that which the base's configuration names.
    rates = [ADDITION_SETTINGS["small"]["learning_rate"], 0.02, 0.03]
    assert [way.learning_rate for way in compared.methods] == rates
    for way in compared.methods:
        assert way.metrics.keys() == {"r2", "pearson", "mse", "mae"}
        assert way.seconds > 0
        assert way.bytes > 4 * way.parameters
        assert [step for step, _ in way.curve] == [1, 2, 3, 4]
    for change in (*compared.methods[0].changes, *compared.methods[1].changes):
        # Its own test images; those of the new structure are the same fields.
        assert change.truth_images == change.images == compared.images == 2


def test_the_figures_of_adding_are_those_of_an_addition(
    compared: Comparison, model: Path, manifest: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "model", copy_function=shutil.copyfile))
    result = add_structure(copy, NEW, manifest, **SETTINGS)
    adding = compared["adding"]
    assert adding.metrics == result.metrics
    assert adding.parameters == result.parameters
    # All but the digits of a few seconds, and the name of the run.
    assert abs(adding.bytes - result.bytes) <= 64
    file = copy / result.model.entries[NEW].file
    assert file.stat().st_size == result.bytes
    # And once it is there, the question may still be asked.
    again = compare_structure(copy, NEW, manifest, out=tmp_path / "again", **SETTINGS)
    assert_same_results(again, compared)
    assert again.known == KNOWN
    assert "nucleolus already" in again.notes[-1]
    begun = compare_structure(
        copy, NEW, manifest, out=tmp_path / "begun", init_from="best", **{**SETTINGS, "steps": 1}
    )
    assert begun["adding"].began in KNOWN


def test_a_copy_is_a_whole_model(compared: Comparison, model: Path) -> None:
    network = Model.open(model).network()
    floats = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
    rows = sum(block.gates["dna"].numel() for _, block in network.named_mode_blocks())
    assert compared["fine_tuning"].parameters == sum(tensor.numel() for tensor in floats) + rows
    files = sum(file.stat().st_size for file in model.rglob("*.safetensors"))
    assert compared["fine_tuning"].bytes == files + 4 * rows


# -- files and output ------------------------------------------------------------------------------------


def test_files_hold_the_same_figures(compared: Comparison) -> None:
    assert read_comparison(compared.folder) == compared
    with (compared.folder / "compare.csv").open(encoding="utf-8", newline="") as handle:
        rows = {
            (row["way"], row["structure"], row["metric"]): float(row["value"])
            for row in csv.DictReader(handle)
        }
    assert rows["adding", NEW, "r2"] == compared["adding"].metrics["r2"]
    assert rows["adding", "mitochondria", "max_difference"] == 0.0
    assert rows["fine_tuning", "dna", "r2_to_before"] == compared["fine_tuning"].changes[0].r2
    assert rows["own_network", NEW, "bytes"] == compared["own_network"].bytes
    verdict = compared.verdict(compared["adding"])
    assert (verdict.level, verdict.figures.images, verdict.figures.steps) == ("learned nothing", 2, 4)
    assert rows["adding", NEW, "r2_low"] == verdict.low
    assert rows["adding", NEW, "useful"] == 0.0
    recorded = json.loads((compared.folder / "compare.json").read_text(encoding="utf-8"))
    assert (recorded["version"], recorded["verdicts"]["adding"]["text"]) == (2, verdict.text)
    left = {path.relative_to(compared.folder).parts[0] for path in compared.folder.iterdir()}
    assert left == {
        "compare-request.json",
        "compare.lock",
        "images.json",
        "measured-images.json",
        "compare.csv",
        "compare.json",
        "report.html",
        *METHODS,
    }
    assert not list(compared.folder.rglob("checkpoint"))


def test_the_page_needs_no_network(compared: Comparison) -> None:
    text = compared.report.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert "http:" not in text
    assert "https:" not in text
    assert "<script" not in text
    # Light, truth and three ways; light, before and after; two slices each.
    assert text.count('<img src="data:image/png;base64,') == 2 * (5 + 3)
    assert text.count("bit-identical") >= 1 + len(KNOWN)
    for name in (*KNOWN, NEW):
        assert name.replace("_", " ") in text
    assert text.count('<svg class="chart"') == 2


def test_the_command_prints_the_figures(compared: Comparison, model: Path, manifest: Path) -> None:
    asked = ("--steps", 4, "--batch-size", 2, "--device", "cpu", "--precision", "float32", "--seed", 3)
    command = ("compare", model, "--structure", NEW, "--data", manifest, "--out", compared.folder, *asked)
    result = CliRunner().invoke(app, [str(word) for word in command])
    assert result.exit_code == 0, result.output
    adding = round(compared["adding"].metrics["r2"], 3) or 0.0  # a minus before zero says nothing
    assert (
        f"adding: R2 {adding:.3f}; the 3 structures of the model predicted bit for bit as before"
        in result.stdout
    )
    assert "all 3 structures of the model predicted otherwise than before" in result.stdout
    assert "the model is not involved" in result.stdout
    assert result.stdout.splitlines()[-1] == f"report: {compared.report}"
    assert max(len(line) for line in result.stdout.split("adding: ")[0].splitlines()) <= 100


# -- resuming --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "at", "left"),
    [
        ("FineTuning", 2, {"FineTuning": 2, "MultiNet": 4}),
        pytest.param("MultiNet", 0, {"MultiNet": 4}, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_comparison_is_resumed(
    kind: str, at: int, left: dict[str, int], compared: Comparison, model: Path, manifest: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        cut_off(patch, kind, at)
        with pytest.raises(Interruption):
            compare_structure(model, NEW, manifest, out=tmp_path / "out", **SETTINGS)
    steps = cut_off(monkeypatch, kind, -1)
    resumed = compare_structure(model, NEW, manifest, out=tmp_path / "out", **SETTINGS)
    assert steps == left
    assert_same_results(resumed, compared)


def test_a_finished_comparison_is_returned_at_once(
    compared: Comparison, model: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = cut_off(monkeypatch, "", -1)
    compared.report.unlink()
    assert compare_structure(model, NEW, manifest, out=compared.folder, **SETTINGS) == compared
    assert not steps
    assert compared.report.is_file()
    with pytest.raises(ConfigError, match=r"other settings \(config, learning rates\).*--restart"):
        compare_structure(
            model, NEW, manifest, out=compared.folder, **{**SETTINGS, "steps": 5}, learning_rate=1e-3
        )


def test_a_finished_comparison_of_changed_images_is_not_shown(
    compared: Comparison, model: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of a known structure, on which changes were measured."""
    folder = Path(shutil.copytree(manifest.parent, tmp_path / "images"))
    capsys.readouterr()
    assert compare_structure(model, NEW, manifest, out=compared.folder, **SETTINGS) == compared
    assert "already measured, of the same images" in capsys.readouterr().err
    out = Path(shutil.copytree(compared.folder, tmp_path / "out"))
    measured = json.loads((out / "measured-images.json").read_text(encoding="utf-8"))
    rows = {row.number: row for row in read_manifest(manifest).rows}
    assert {rows[int(line)].structure for line in measured} == {NEW, *KNOWN}
    # The rows name the same files, of which one now has the content of another.
    for name in (NEW, KNOWN[0]):
        row = next(rows[int(line)] for line in measured if rows[int(line)].structure == name)
        kept = row.target.read_bytes()
        row.target.write_bytes((folder / "mitochondria0.tif").read_bytes())
        try:
            with pytest.raises(ConfigError, match=f"a comparison of other images: .* line {row.number} of"):
                compare_structure(model, NEW, manifest, out=out, **SETTINGS)
        finally:
            row.target.write_bytes(kept)


@pytest.mark.slow
def test_restart_clears_only_the_folder_of_a_comparison(model: Path, manifest: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "steps": 1}
    out = tmp_path / "out"
    other = {"kernel": 5, "network_rate": 0.5, "init_from": "none"}
    first = compare_structure(model, NEW, manifest, out=out, **settings, **other)
    assert first["own_network"].parameters > 0
    (out / "notes.txt").touch()
    (out / "compare-golgi").mkdir()  # one in the same folder, of another structure
    (out / f"compare{TEMPORARY_MARK}ab.csv").touch()
    with pytest.raises(ConfigError, match=r"other settings \(learning rates, kernel\), first "):
        compare_structure(model, NEW, manifest, out=out, **settings, init_from="none")
    second = compare_structure(model, NEW, manifest, out=out, restart=True, init_from="dna", **settings)
    assert (first["adding"].began, second["adding"].began) == (None, "dna")
    assert second["adding"].metrics != first["adding"].metrics
    assert second["own_network"].parameters < first["own_network"].parameters
    assert (out / "notes.txt").exists()
    assert (out / "compare-golgi").exists()
    assert not (out / f"compare{TEMPORARY_MARK}ab.csv").exists()
    with (
        FileLock(out / "compare.lock"),
        pytest.raises(ConfigError, match="another process is at work on a comparison"),
    ):
        compare_structure(model, NEW, manifest, out=out, restart=True, **settings)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="something other than a comparison"):
        compare_structure(model, NEW, manifest, out=mine, restart=True, **settings)
    assert (mine / "thesis.txt").exists()


# -- refusals --------------------------------------------------------------------------------------------


def test_impossible_requests_are_refused_before_anything_is_written(
    model: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="belongs to the base"):
        compare_structure(model, "dna", manifest)
    with pytest.raises(ManifestError, match="has no row of 'golgi'"):
        compare_structure(model, "golgi", manifest)
    with pytest.raises(StructureError, match="cannot be used"):
        compare_structure(model, "../golgi", manifest)
    with pytest.raises(StructureError, match=r"unknown structure 'dnaa'.*did you mean 'dna'"):
        compare_structure(model, NEW, manifest, init_from="dnaa")
    with pytest.raises(ConfigError, match="kernel 4"):
        compare_structure(model, NEW, manifest, kernel=4)  # type: ignore[arg-type]
    for inside in (model, model / "runs"):
        with pytest.raises(ConfigError, match="lies in the model"):
            compare_structure(model, NEW, manifest, out=inside)
    assert not list(tmp_path.iterdir())


def test_an_addition_that_another_needs_is_refused(manifest: Path, tmp_path: Path) -> None:
    needed = ("nucleolus", AdditionSpec()), ("mitochondria", AdditionSpec(sees="all"))
    path = make_model(tmp_path / "model", *needed)
    with pytest.raises(ModelError, match=r"'mitochondria'.* needs the experts of 'nucleolus'"):
        compare_structure(path, "nucleolus", manifest, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_comparison_needs_a_held_out_image(model: Path, manifest: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.csv"
    write_manifest(one, [row for row in read_manifest(manifest).rows if row.structure == NEW][:1])
    with pytest.raises(ManifestError, match="no image of 'nucleolus' is held out"):
        compare_structure(model, NEW, one, out=tmp_path / "out", **SETTINGS)


def test_predictions_that_are_not_finite_are_reported(
    model: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fine-tuning that diverges is a result; it ends no comparison."""
    rows = [row for row in read_manifest(manifest).rows if row.structure == NEW]
    alone = tmp_path / "alone.csv"
    write_manifest(alone, rows)
    step = StructureStrategy._train_step

    def diverging(self: StructureStrategy, *args: Any, **kwargs: Any) -> None:
        step(self, *args, **kwargs)
        if type(self).__name__ == "FineTuning":
            with torch.no_grad():
                next(self.network.parameters()).fill_(float("nan"))

    monkeypatch.setattr(StructureStrategy, "_train_step", diverging)
    found = compare_structure(model, NEW, alone, out=tmp_path / "out", **{**SETTINGS, "steps": 1})
    assert found["fine_tuning"].metrics == {}
    for change in found["fine_tuning"].changes:
        assert (change.r2, change.max_difference, change.identical) == (None, None, False)
        assert (change.truth_images, change.lost) == (0, None)  # the manifest has no rows of them
    assert found["fine_tuning"].damage == float("inf")
    assert found["adding"].damage == 0.0
    text = found.report.read_text(encoding="utf-8")
    assert "not finite" in text
    assert "no finite numbers" in text
