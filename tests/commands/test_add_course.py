"""Course of an addition: its initial weights, why it ends, the R2 demanded of it, and its dry run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_addition import add_untrained, added, dry_run, files_of, make_base
from tiny_run import BASE

from repmode_cl.data.manifest import read_manifest, write_manifest
from repmode_cl.errors import (
    ConfigError,
    ImageError,
    ManifestError,
    ModelError,
    StructureError,
    UnknownStructureError,
)
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec
from repmode_cl.store.staging import accept, discard, list_pending
from repmode_cl.strategies import StructureStrategy
from repmode_cl.strategies.state import Evaluation
from repmode_cl.workflows import addition_dry_run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "model"))


@pytest.fixture(scope="module")
def only_train(manifest: Path) -> Path:
    """Return a manifest that holds no image of nucleolus out."""
    rows = [replace(row, split="train") for row in read_manifest(manifest).for_structure("nucleolus")]
    path = manifest.parent / "only-train.csv"
    write_manifest(path, rows)
    return path


def test_an_addition_ends_with_figures_costs_and_the_proof(model: Path, manifest: Path) -> None:
    add_untrained(model, "mitochondria")
    opened = Model.open(model)
    result = added(opened, manifest)
    assert result.unchanged == dict.fromkeys((*BASE, "mitochondria"), True)
    assert result.verified.ok
    assert (result.stopped, result.held_out, result.staged) == ("all 6 steps", "test", False)
    assert result.metrics.keys() >= {"mse", "r2", "pearson"}
    entry = opened.entries["nucleolus"]  # the model that was given knows it
    assert (model / entry.file).stat().st_size == result.bytes
    assert entry.metrics == result.metrics
    assert entry.provenance["steps"] == 6
    evidence = entry.provenance["evidence"]["nucleolus"]
    listed = len(entry.provenance["splits"]["test"].split())
    assert evidence["images"] == evidence["groups"] == listed == 2
    assert evidence["r2_standard_error"] > 0
    assert evidence["r2_rise"] >= 0
    assert result.verdict == entry.verdict
    assert entry.verdict.level == "learned nothing"  # six steps of a tiny network
    assert opened.entries["mitochondria"].verdict.level == "unknown"
    assert [change.action for change in Model.open(model).history] == ["create", "add", "add"]
    assert not list((model / "pending").glob("*/"))


def test_best_starts_from_the_known_structure_that_fits_best(model: Path, manifest: Path) -> None:
    """Nucleolus, when it is there already under another name, is what fits nucleolus best."""
    rows = [
        row if row.structure != "nucleolus" else replace(row, structure="the_same")
        for row in read_manifest(manifest).rows
    ]
    renamed = manifest.parent / "renamed.csv"
    write_manifest(renamed, rows)
    added(model, renamed, "the_same", steps=40)
    result = added(model, manifest, init_from="best", steps=2)
    init = result.init
    assert init.structure == "the_same"
    assert set(init.figures) == {*BASE, "the_same"}
    assert init.figures["the_same"]["mse"] == min(found["mse"] for found in init.figures.values())
    assert init.step_0 == init.figures["the_same"]  # of the same kind: it begins as its copy, bit for bit
    assert init.patches == 8
    assert Model.open(model).entries["nucleolus"].provenance["init"] == {"asked": "best", **init.to_json()}


def test_a_structure_may_be_named_to_start_from(model: Path, manifest: Path) -> None:
    result = added(model, manifest, init_from="dna", steps=2, spec=AdditionSpec(expert="lowrank:2"))
    assert result.init.structure == "dna"
    assert set(result.init.figures) == {"dna"}
    assert result.init.step_0.keys() == {"mse", "r2"}
    assert result.init.copied == ("gate rows", "centre of its kernels")
    with pytest.raises(StructureError, match=r"init_from 'dnaa': .*did you mean 'dna'.*or none or best"):
        added(model, manifest, "mitochondria", init_from="dnaa")


def test_it_stops_when_nothing_improves(model: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validations = iter([0.5, 0.6, 0.4, 0.45, 0.41, 0.4, 0.1])
    evaluate = StructureStrategy.evaluate

    def evaluated(self: StructureStrategy, experiences: list[Any]) -> Evaluation:
        found = evaluate(self, experiences)
        return {name: figures | {"mse": next(validations)} for name, figures in found.items()}

    monkeypatch.setattr(StructureStrategy, "evaluate", evaluated)
    result = added(model, manifest, steps=40, patience=3)
    provenance = Model.open(model).entries["nucleolus"].provenance
    assert result.stopped == "no improvement in 3 validations"
    # Four steps between validations; the third was the best, and one that is as good is no improvement.
    assert (provenance["selected_step"], provenance["steps"]) == (12, 24)
    assert result.metrics["mse"] == 0.1  # the next figure is of the test images: nothing was validated twice
    assert any("ended at step 24 of 40" in note for note in result.notes)


def test_patience_needs_images_that_validate(model: Path, only_train: Path) -> None:
    with pytest.raises(ConfigError, match="no image of nucleolus validates"):
        added(model, only_train, patience=2)


def test_it_stops_at_the_time_limit_and_validates_then(model: Path, manifest: Path) -> None:
    result = added(model, manifest, time_limit=1e-6, steps=40)
    provenance = Model.open(model).entries["nucleolus"].provenance
    assert result.stopped == "the time limit of 0.0 s"
    assert (provenance["steps"], provenance["selected_step"]) == (1, 1)


@pytest.mark.parametrize("base_training", [{"steps": None, "epochs": 2}, {"patience": 1, "time_limit": 1e-9}])
def test_epochs_count_images_and_the_bases_early_end_is_not_inherited(
    tmp_path: Path, manifest: Path, base_training: dict[str, object]
) -> None:
    model = make_base(tmp_path / "model", **base_training)
    result = added(model, manifest, epochs=3)
    assert result.stopped == "all 5 steps"  # three times three images, two a step
    with pytest.raises(ConfigError, match="give one or the other"):
        added(model, manifest, "mitochondria", epochs=3, steps=4)


def test_an_addition_below_min_r2_is_staged(model: Path, manifest: Path) -> None:
    before = files_of(model)
    result = added(model, manifest, min_r2=0.999)
    assert (result.staged, result.reached, result.unchanged) == (True, False, {})
    assert {name: data for name, data in files_of(model).items() if not name.startswith("pending")} == before
    [waiting] = list_pending(Model.open(model))
    assert (waiting.why, waiting.min_r2) == ("below the R2 that was demanded, on the test images", 0.999)
    assert sorted(file.name.split("-")[0] for file in waiting.folder.iterdir()) == [
        "nucleolus",
        "staged.json",
    ]
    for call in (added, dry_run):
        with pytest.raises(ModelError, match="take it with `repmode-cl accept"):
            call(model, manifest)
    accepted = accept(Model.open(model), "nucleolus")
    assert accepted.status == "bit-identical"
    assert Model.open(model).entries["nucleolus"].metrics == result.metrics


def test_an_addition_above_min_r2_is_committed_and_a_staged_one_can_be_discarded(
    model: Path, manifest: Path
) -> None:
    assert not added(model, manifest, min_r2=-1e9).staged
    result = added(model, manifest, "mitochondria", stage=True)
    assert (result.staged, result.reached) == (True, True)
    discard(Model.open(model), "mitochondria")
    assert Model.open(model).structures == (*BASE, "nucleolus")


def test_min_r2_needs_a_held_out_image(model: Path, only_train: Path) -> None:
    with pytest.raises(ManifestError, match="no image of 'nucleolus' is held out"):
        added(model, only_train, min_r2=0.1)
    with pytest.raises(ManifestError, match="no image of 'nucleolus' is held out"):
        dry_run(model, only_train, min_r2=0.1)
    assert added(model, only_train, steps=1).held_out == "none"  # what failed is not in the way


def test_a_replaced_version_is_kept(model: Path, manifest: Path) -> None:
    first = added(model, manifest)
    before = Model.open(model).entries["nucleolus"]
    result = added(model, manifest, init_from="nucleolus", replace=True, seed=1)
    opened = Model.open(model)
    assert opened.entries["nucleolus"].digest != before.digest
    assert [entry.digest for entry in opened.kept] == [before.digest]
    assert result.unchanged == dict.fromkeys(BASE, True)
    assert result.init.step_0 == result.init.figures["nucleolus"]
    assert first.metrics != result.metrics
    opened.rollback(2)
    assert opened.entries["nucleolus"].digest == before.digest


def test_another_version_may_see_later_additions(model: Path, manifest: Path) -> None:
    add_untrained(model, "nucleolus")
    add_untrained(model, "mitochondria")
    result = added(model, manifest, spec=AdditionSpec(sees="all"), replace=True, steps=1)
    opened = Model.open(model)
    assert opened.structures == (*BASE, "mitochondria", "nucleolus")
    assert [name for name, _ in opened.entries["nucleolus"].needs] == ["mitochondria"]
    assert result.unchanged == dict.fromkeys((*BASE, "mitochondria"), True)


def test_structures_that_others_need_or_of_the_base_are_not_replaced(model: Path, manifest: Path) -> None:
    add_untrained(model, "nucleolus")
    add_untrained(model, "mitochondria", AdditionSpec(sees="all"))
    before = files_of(model)
    with pytest.raises(ModelError, match=r"mitochondria of .* needs its experts"):
        added(model, manifest, replace=True)
    with pytest.raises(ModelError, match="part of the base"):
        added(model, manifest, "dna", replace=True)
    with pytest.raises(UnknownStructureError):
        added(model, manifest, "nucleoli", replace=True)
    assert files_of(model) == before


def test_a_damaged_model_is_not_added_to(model: Path, manifest: Path) -> None:
    add_untrained(model, "mitochondria")
    [file] = (model / "structures").iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelError, match="does not verify as it is: mitochondria: FAILED"):
        added(model, manifest)


def test_a_dry_run_reports_everything_and_writes_nothing(model: Path, manifest: Path) -> None:
    before, folders = files_of(model), sorted(path.as_posix() for path in model.rglob("*"))
    found = dry_run(model, manifest, spec=AdditionSpec(expert="lowrank:2"), epochs=10)
    assert files_of(model) == before
    assert sorted(path.as_posix() for path in model.rglob("*")) == folders
    assert found.ok
    assert (found.images, found.steps) == ({"train": 3, "val": 1, "test": 2}, 15)
    assert str(found).endswith("nothing was written")
    result = added(model, manifest, spec=AdditionSpec(expert="lowrank:2"), epochs=10)
    provenance = Model.open(model).entries["nucleolus"].provenance
    assert sum(found.parameters.values()) == result.parameters
    assert found.bytes == pytest.approx(result.bytes, rel=0.1)
    assert provenance["steps"] == found.steps
    assert found.memory > 4 * 4 * result.parameters  # weights, gradients and two moments, in float32
    assert found.step_seconds > 0


def test_a_dry_run_of_a_step_beyond_the_memory_computes_none(
    model: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a step needs is estimated from small patches, as exactly as it is measured of the real one."""
    needed: list[float] = []
    estimate = addition_dry_run._estimated_memory

    def kept(*arguments: Any) -> float:
        needed.append(estimate(*arguments))
        return needed[-1]

    monkeypatch.setattr(addition_dry_run, "_estimated_memory", kept)
    for spec, batch_size in ((AdditionSpec(expert="lowrank:2"), 2), (AdditionSpec(), 6)):
        found = dry_run(model, manifest, spec=spec, patch=(5, 16, 14), batch_size=batch_size)
        assert needed.pop() == pytest.approx(found.memory, rel=0.01)
    monkeypatch.setattr(addition_dry_run, "time_training", None)
    with pytest.raises(
        ConfigError, match=r"2 patches of 4000 x 4000 x 4000 voxels .* about \d+ GB .* and .* are free"
    ):
        dry_run(model, manifest, patch=(4000, 4000, 4000))


@pytest.mark.parametrize("cache", ["file", "file/below"])
def test_a_file_in_place_of_the_folder_of_prepared_images_is_refused(
    model: Path, manifest: Path, tmp_path: Path, cache: str
) -> None:
    (tmp_path / "file").touch()
    for call in (added, dry_run):
        with pytest.raises(ConfigError, match=r"is no folder: .*file.*give another"):
            call(model, manifest, cache=tmp_path / cache)
    assert not (model / "pending").exists()


def test_a_dry_run_lists_problems_of_the_images(model: Path, manifest: Path) -> None:
    rows = list(read_manifest(manifest).for_structure("nucleolus"))
    rows[2] = replace(rows[2], target=Path("no-such.tif"))
    broken = manifest.parent / "broken.csv"
    write_manifest(broken, rows)
    found = dry_run(model, broken)
    [problem] = found.problems
    assert (problem.row, problem.column) == (4, "target")
    assert "1 problem in its images" in str(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps 0: a whole number of at least 1"),
        ({"time_limit": -1}, "time_limit -1: a positive number"),
        ({"learning_rate": 0}, "learning_rate 0: a positive number"),
        ({"patience": 0}, "patience 0: a whole number of at least 1"),
        ({"seed": -1}, "seed -1: a whole number of at least 0"),
        ({"patch": (16, 16)}, r"patch \(16, 16\): three sizes"),
        ({"patch": (16, 16, 0)}, r"patch \(16, 16, 0\): 0: a whole number"),
        ({"spec": "conv3"}, "spec 'conv3': an AdditionSpec is needed"),
        ({"spec": AdditionSpec(expert="conv7")}, "spec: 'conv7' is no expert"),
        ({"min_r2": 2}, "min_r2 2: a finite number of at most 1"),
        ({"precision": "double"}, 'settings of the training: precision: found "double"'),
    ],
)
def test_impossible_options_are_refused_before_anything_is_written(
    model: Path, manifest: Path, options: dict[str, Any], message: str
) -> None:
    before = files_of(model)
    with pytest.raises(ConfigError, match=message):
        added(model, manifest, **options)
    with pytest.raises(ConfigError, match=message):
        dry_run(model, manifest, **options)
    assert files_of(model) == before


def test_damage_of_the_base_is_reported_once(model: Path, manifest: Path) -> None:
    file = model / "base.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelError, match="does not verify") as raised:
        added(model, manifest)
    assert str(raised.value).count("base.safetensors") == 1


def test_predict_refuses_swapped_arguments_and_values_that_are_not_finite(model: Path) -> None:
    opened = Model.open(model)
    volume = np.zeros((4, 8, 8), np.float32)
    for structure in (["dna"], None, volume):
        with pytest.raises(StructureError, match=r"structure is a name.*predict\(volume, structure\)"):
            opened.predict(volume, structure)  # type: ignore[arg-type]
    for wrong in ("dna", [[[0.0]]], None):
        with pytest.raises(ImageError, match="volume is an array"):
            opened.predict(wrong, "dna")  # type: ignore[arg-type]
    volume[1, 2, 3] = np.nan
    with pytest.raises(ImageError, match="not finite"):
        opened.predict(volume, "dna")
