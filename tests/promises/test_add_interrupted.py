"""An addition that is interrupted anywhere ends as the same bits, and others may change the model meanwhile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from tiny_addition import Interruption, add_untrained, added, cut_off, dry_run, files_of, make_base
from tiny_run import BASE
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.data.manifest import read_manifest
from repmode_cl.errors import ConfigError, ModelError, RepmodeError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec
from repmode_cl.store.staging import accept, discard, list_pending, training_lock
from repmode_cl.strategies import StructureStrategy
from repmode_cl.workflows import add_structure
from repmode_cl.workflows.add_structure import AdditionRun

#: All that decides how a training is resumed.
OPTIONS: dict[str, Any] = {
    "init_from": "best",
    "patience": 2,
    "steps": 12,
    "spec": AdditionSpec(sees="all", expert="lowrank:2"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_base(tmp_path_factory.mktemp("base") / "model", checkpoint_every=3)
    add_untrained(path, "golgi")
    return path


@pytest.fixture(scope="module")
def digest(base: Path, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the digest of what an uninterrupted training comes to."""
    path = shutil.copytree(base, tmp_path_factory.mktemp("whole") / "model")
    added(path, manifest, **OPTIONS)
    return Model.open(path).entries["nucleolus"].digest


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "model"))


def interrupt(patch: pytest.MonkeyPatch, owner: Any, name: str, *, before: bool) -> None:
    """Let every call of a function end in an interruption, before it does anything or after it is done."""
    function: Callable[..., Any] = getattr(owner, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if not before:
            function(*args, **kwargs)
        raise Interruption

    patch.setattr(owner, name, interrupted)


def test_cut_off_again_and_again_it_ends_as_the_same_bits(
    model: Path, manifest: Path, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the training, before its first checkpoint and later, and on every step from there into the model."""
    for step in (0, 2, 4, 7):
        with monkeypatch.context() as patch:
            cut_off(patch, step)
            with pytest.raises(Interruption):
                added(model, manifest, **OPTIONS)
        assert [one.entry for one in list_pending(Model.open(model))] == [None]
    for owner, name, before in (
        (add_structure, "evaluate_held_out", True),
        (add_structure, "make_candidate", True),
        (add_structure, "make_candidate", False),
        (Model, "commit", True),
    ):
        with monkeypatch.context() as patch:
            interrupt(patch, owner, name, before=before)
            with pytest.raises(Interruption):
                added(model, manifest, **OPTIONS)
        assert Model.open(model).structures == (*BASE, "golgi")
    result = added(model, manifest, **OPTIONS)
    assert Model.open(model).entries["nucleolus"].digest == digest
    assert result.init.structure is not None
    assert set(result.unchanged.values()) == {True}
    assert not list((model / "pending").glob("*/"))


def test_killed_after_its_commit_the_same_call_finishes(
    model: Path, manifest: Path, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, Model, "commit", before=False)
        with pytest.raises(Interruption):
            added(model, manifest, **OPTIONS)
    assert Model.open(model).entries["nucleolus"].digest == digest
    result = added(model, manifest, **OPTIONS)
    assert any("before an interruption" in note for note in result.notes)
    assert result.metrics == Model.open(model).entries["nucleolus"].metrics
    assert not list((model / "pending").glob("*/"))
    assert len(Model.open(model).history) == 3
    with pytest.raises(ModelError, match="has 'nucleolus' already"):
        added(model, manifest, **OPTIONS)


def test_killed_while_it_is_staged_it_still_waits(
    model: Path, manifest: Path, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, add_structure, "stage_candidate", before=False)
        with pytest.raises(Interruption):
            added(model, manifest, stage=True, **OPTIONS)
    with pytest.raises(ModelError, match="is trained and waits"):
        added(model, manifest, stage=True, **OPTIONS)
    assert accept(Model.open(model), "nucleolus").entry.digest == digest


def test_other_settings_are_not_resumed_but_another_decision_is(
    model: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        cut_off(patch, 5)
        with pytest.raises(Interruption):
            added(model, manifest, **OPTIONS)
    for changed, key in (
        ({"init_from": "none"}, "init_from best -> none"),
        ({"steps": 13}, "training.steps 12 -> 13"),
        ({"patience": 3}, "training.patience 2 -> 3"),
        ({"spec": AdditionSpec()}, "spec.expert lowrank:2 -> conv3; .*spec.sees all -> own"),
    ):
        with pytest.raises(ConfigError, match=rf"other settings \(.*{key}.*repmode-cl discard"):
            dry_run(model, manifest, **OPTIONS | changed)
        with pytest.raises(ConfigError, match=rf"other settings \(.*{key}.*repmode-cl discard"):
            added(model, manifest, **OPTIONS | changed)
    # What becomes of the result is decided when there is one; where images are prepared changes nothing.
    assert added(model, manifest, stage=True, cache=model.parent / "cache", **OPTIONS).staged


@pytest.mark.parametrize("file", ["request.json", "images.json", "beginning.json"])
def test_a_damaged_file_of_an_interrupted_addition_is_named(
    file: str, model: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        cut_off(patch, 7)
        with pytest.raises(Interruption):
            added(model, manifest, **OPTIONS)
    path = model / "pending" / "nucleolus" / file
    path.write_text(path.read_text()[:9])
    with pytest.raises(RepmodeError, match=rf"{file}: cannot be read .*repmode-cl discard .* nucleolus"):
        added(model, manifest, **OPTIONS)
    discard(Model.open(model), "nucleolus")


@pytest.mark.slow
def test_another_structure_may_come_into_the_model_meanwhile(
    model: Path, manifest: Path, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the training sees all additions: those that it saw when it began, by digest."""
    step = StructureStrategy._train_step

    def stepping(self: StructureStrategy, *args: Any, **kwargs: Any) -> None:
        if self.progress.step == 5 and "tight_junction" not in Model.open(model).structures:
            add_untrained(model, "tight_junction", AdditionSpec(sees="all"))
            raise Interruption
        step(self, *args, **kwargs)

    monkeypatch.setattr(StructureStrategy, "_train_step", stepping)
    with pytest.raises(Interruption):
        added(model, manifest, **OPTIONS)
    result = added(model, manifest, **OPTIONS)
    opened = Model.open(model)
    assert opened.structures == (*BASE, "golgi", "tight_junction", "nucleolus")
    assert opened.entries["nucleolus"].digest == digest
    assert result.unchanged == dict.fromkeys((*BASE, "golgi", "tight_junction"), True)


@pytest.mark.slow
def test_the_structures_that_it_sees_must_not_change(
    model: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replaced while it trains, the addition cannot be taken; while it is interrupted, it cannot go on."""
    replaced: list[bool] = []
    step = StructureStrategy._train_step

    def stepping(self: StructureStrategy, *args: Any, **kwargs: Any) -> None:
        if self.progress.step == 5 and not replaced:
            replaced.append(True)
            add_untrained(model, "golgi", replace=True)
        step(self, *args, **kwargs)

    monkeypatch.setattr(StructureStrategy, "_train_step", stepping)
    with pytest.raises(ModelError, match=r"was made with version .* of 'golgi'"):
        added(model, manifest, **OPTIONS)
    with pytest.raises(ModelError, match="which is no longer that of"):
        added(model, manifest, **OPTIONS)
    assert Model.open(model).structures == (*BASE, "golgi")
    discard(Model.open(model), "nucleolus")
    assert added(model, manifest, **OPTIONS).verified.ok


def test_an_earlier_structure_that_is_replaced_meanwhile_is_not_called_changed(
    model: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = AdditionRun._prepare

    def preparing(self: AdditionRun, *args: Any) -> Any:
        add_untrained(model, "golgi", replace=True)
        return run(self, *args)

    monkeypatch.setattr(AdditionRun, "_prepare", preparing)
    assert added(model, manifest, steps=2).unchanged == dict.fromkeys(BASE, True)


def test_only_one_process_trains_a_structure(model: Path, manifest: Path) -> None:
    before = files_of(model)
    with (
        training_lock(Model.open(model), "nucleolus"),
        pytest.raises(ModelError, match="another process is adding 'nucleolus'"),
    ):
        added(model, manifest)
    assert files_of(model) == before
    assert added(model, manifest, steps=2).verified.ok


def killed_after_its_commit(
    monkeypatch: pytest.MonkeyPatch, model: Path, manifest: Path, **options: Any
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, Model, "commit", before=False)
        with pytest.raises(Interruption):
            added(model, manifest, **options)


@pytest.mark.slow
def test_another_request_does_not_finish_a_committed_addition(
    model: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done as requested: refused, where the model has the structure, or trained."""
    for other in ({"steps": 3}, {"steps": 2, "stage": True}, {"steps": 2, "min_r2": 1.0}):
        killed_after_its_commit(monkeypatch, model, manifest, steps=2)
        with pytest.raises(ModelError, match="has 'nucleolus' already"):
            added(model, manifest, **other)
        assert not list((model / "pending").glob("*/"))
        Model.open(model).remove("nucleolus")
    killed_after_its_commit(monkeypatch, model, manifest, steps=2)
    first = Model.open(model).entries["nucleolus"].digest
    assert added(model, manifest, steps=2, seed=1, replace=True).verified.ok
    second = Model.open(model)
    assert second.entries["nucleolus"].digest != first
    assert second.history[-1].action == "replace"


@pytest.mark.slow
def test_an_earlier_identical_version_is_not_mistaken_for_the_commit(
    model: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replacement that comes to the very bits that are there was not committed, whatever lies in pending."""
    added(model, manifest, steps=2)
    with monkeypatch.context() as patch:
        interrupt(patch, Model, "commit", before=True)
        with pytest.raises(Interruption):
            added(model, manifest, steps=2, replace=True)
    with pytest.raises(ModelError, match="holds exactly this version"):
        added(model, manifest, steps=2, replace=True)
    assert [change.action for change in Model.open(model).history][-1] == "add"


def test_a_committed_addition_that_was_removed_is_trained_again(
    model: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_after_its_commit(monkeypatch, model, manifest, steps=2)
    Model.open(model).remove("nucleolus")
    result = added(model, manifest, steps=2)
    assert not any("before an interruption" in note for note in result.notes)
    assert "nucleolus" in Model.open(model).structures


def test_a_training_whose_images_changed_is_not_resumed(
    model: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = shutil.copytree(manifest.parent, tmp_path / "images") / manifest.name
    row = next(row for row in read_manifest(own).rows if row.structure == "nucleolus")
    assert tmp_path in row.target.parents
    with monkeypatch.context() as patch:
        cut_off(patch, 5)
        with pytest.raises(Interruption):
            added(model, own, **OPTIONS)
    before = row.target.read_bytes()
    tifffile.imwrite(row.target, np.flip(tifffile.imread(row.target), 0).copy(), photometric="minisblack")
    with pytest.raises(ConfigError, match=rf"1 of its images.*nucleolus, line {row.number}.*discard"):
        added(model, own, **OPTIONS)
    row.target.write_bytes(before)
    assert added(model, own, **OPTIONS).verified.ok


def test_a_name_conflict_leaves_the_choice_to_a_person(
    model: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = AdditionRun._prepare

    def preparing(self: AdditionRun, *args: Any) -> Any:
        add_untrained(model, "nucleolus")
        return prepare(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(AdditionRun, "_prepare", preparing)
        with pytest.raises(ModelError, match=r"from elsewhere.*repmode-cl remove .*repmode-cl discard"):
            added(model, manifest, steps=2)
    with pytest.raises(ModelError, match=r"from elsewhere.*repmode-cl remove"):
        added(model, manifest, steps=2)
    Model.open(model).remove("nucleolus")
    assert added(model, manifest, steps=2).verified.ok


@pytest.mark.slow
def test_rates_by_group_and_decay_go_on_after_an_interruption(
    base: Path, manifest: Path, tmp_path: Path
) -> None:
    how: dict[str, Any] = {
        "spec": AdditionSpec("lowrank:2", gate="outside"), "decay_to_base": 0.5, "steps": 6,
        "learning_rate": {"expert": 0.04, "gate": 0.08},
    }  # fmt: skip
    whole, broken = (Path(shutil.copytree(base, tmp_path / name)) for name in ("whole", "broken"))
    added(whole, manifest, **how)
    with pytest.MonkeyPatch.context() as patch:
        cut_off(patch, 5)
        with pytest.raises(Interruption):
            added(broken, manifest, **how)
    for change in ({"learning_rate": {"expert": 0.04, "gate": 0.01}}, {"decay_to_base": 0.1}):
        with pytest.raises(ConfigError, match="with other settings"):
            added(broken, manifest, **{**how, **change})
    added(broken, manifest, **how)
    entries = [Model.open(path).entries["nucleolus"] for path in (whole, broken)]
    assert entries[0].digest == entries[1].digest
    recorded = entries[0].provenance["addition"]
    assert recorded == {"learning_rate": {"expert": 0.04, "gate": 0.08}, "decay_to_base": 0.5}
    text = CliRunner().invoke(app, ["history", str(whole)]).output
    assert "rates expert 0.04, gate 0.08" in text


@pytest.mark.slow
def test_additions_take_the_rates_that_the_base_named(manifest: Path, tmp_path: Path) -> None:
    rates = {"expert": 0.04, "resampling": 0.01}
    path = make_base(tmp_path / "model", addition={"learning_rate": rates, "decay_to_base": 0.5})

    def recorded(structure: str, **how: Any) -> Any:
        added(path, manifest, structure, steps=2, **how)
        return Model.open(path).entries[structure].provenance["addition"]

    outside = AdditionSpec(resampling="base", gate="outside")
    assert recorded("nucleolus", spec=outside) == {"learning_rate": {"expert": 0.04}, "decay_to_base": 0.5}
    # Nothing decays within the softmax.
    assert recorded("mitochondria", spec=AdditionSpec()) == {"learning_rate": rates}
    number = {"learning_rate": 0.03, "decay_to_base": 0.5}
    assert recorded("nucleolus", replace=True, learning_rate=0.03) == number
    with pytest.raises(ConfigError, match="unknown group 'gates'"):
        recorded("nucleolus", replace=True, learning_rate={"gates": 0.1})
    with pytest.raises(ConfigError, match="needs gate: outside"):
        recorded("mitochondria", replace=True, decay_to_base=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["softmax", pytest.param("outside", marks=pytest.mark.slow)])
def test_gates_stay_fixed_after_an_interruption(
    base: Path, manifest: Path, tmp_path: Path, gate: Any
) -> None:
    how: dict[str, Any] = {"spec": AdditionSpec(gate=gate), "gate_steps": 0.5, "steps": 8}
    whole, broken = (Path(shutil.copytree(base, tmp_path / name)) for name in ("whole", "broken"))
    added(whole, manifest, **how)
    for step in (2, 4, 5, 7):
        with pytest.MonkeyPatch.context() as patch:
            cut_off(patch, step)
            with pytest.raises(Interruption):
                added(broken, manifest, **how)
    with pytest.raises(ConfigError, match="other settings"):
        added(broken, manifest, **{**how, "gate_steps": 0.25})
    added(broken, manifest, **how)
    entries = [Model.open(path).entries["nucleolus"] for path in (whole, broken)]
    assert entries[0].digest == entries[1].digest
    assert entries[0].provenance["addition"]["gate_steps"] == 0.5


def test_a_setting_whose_gates_learned_in_all_steps_continues_so(
    base: Path, manifest: Path, tmp_path: Path
) -> None:
    """A training that an earlier version began names the setting, and not what that stood for then."""
    whole, broken = (Path(shutil.copytree(base, tmp_path / name)) for name in ("whole", "broken"))
    added(whole, manifest, setting="small", gate_steps=1.0, steps=8)
    with pytest.MonkeyPatch.context() as patch:
        cut_off(patch, 4)
        with pytest.raises(Interruption):
            added(broken, manifest, setting="small", gate_steps=1.0, steps=8)
    path = broken / "pending" / "nucleolus" / "request.json"
    request = json.loads(path.read_text())
    lines = request["config"].splitlines(keepends=True)
    kept = [line for line in lines if not line.strip().startswith(("gate_steps:", "init_from:"))]
    assert len(kept) == len(lines) - 2
    path.write_text(json.dumps({**request, "config": "".join(kept)}))
    with pytest.raises(ConfigError, match="other settings"):
        added(broken, manifest, setting="small", gate_steps=0.5, steps=8)
    result = added(broken, manifest, setting="small", steps=8)
    assert any("its gates learn in all steps" in note for note in result.notes)
    entries = [Model.open(path).entries["nucleolus"] for path in (whole, broken)]
    assert entries[0].digest == entries[1].digest
    assert entries[1].provenance["addition"]["gate_steps"] == 1.0
