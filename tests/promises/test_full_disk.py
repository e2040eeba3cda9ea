"""A disk that is full, a folder that may not be written to: the model stays whole, and the error says which file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from killing import Outcome, steps_to_die_at
from victims import CHANGES, Harness, state, temporary

from repmode_cl.model import Model
from repmode_cl.store import verify_model

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signal that kills")

NOBODY = 65534


def whole(harness: Harness, operation: str, outcome: Outcome, left: Path) -> bool:
    """See that an operation that may have failed left the old model or the new one; return which."""
    victim = harness.victim(operation)
    assert outcome.clean, outcome.error
    found = state(left)
    assert found in (victim.before, victim.after)
    assert bool(outcome.error) or found == victim.after
    report = verify_model(left)
    assert report.ok, report
    assert report.bit_identical, report
    assert not temporary(left)
    return found == victim.after


@pytest.mark.parametrize("operation", CHANGES)
def test_a_full_disk_loses_nothing(harness: Harness, operation: str) -> None:
    victim = harness.victim(operation)
    outcomes = []
    for free in (0, 20480, 262144):
        place, keep = harness.folder / "disk", harness.folder / "kept"
        place.mkdir(exist_ok=True)
        disk = {"folder": place, "free": free, "keep": keep}
        outcome = harness.crew.run(operation, victim.template, *victim.arguments, disk=disk)
        if outcome.error.startswith("NoDisk"):
            shutil.copytree(victim.template, keep)
            outcome = harness.crew.run(operation, keep, *victim.arguments, largest=free)
        # What was begun is gone at once: it would be in the way of whoever makes room.
        assert not temporary(keep)
        new = whole(harness, operation, outcome, keep)
        outcomes.append(new)
        if not new:
            assert "No space left" in outcome.error or "too large" in outcome.error, outcome.error
            assert ".json" in outcome.error or ".safetensors" in outcome.error
            # With room again, the same command does it.
            assert not harness.crew.run(operation, keep, *victim.arguments).error
            assert state(keep) == victim.after
        shutil.rmtree(keep)
    assert not outcomes[0]
    assert outcomes[-1]


@pytest.mark.parametrize("operation", CHANGES)
def test_a_limit_on_the_size_of_files_loses_nothing(harness: Harness, operation: str) -> None:
    victim = harness.victim(operation)
    for largest in (0, 5000):
        model = harness.copy(victim.template)
        outcome = harness.crew.run(operation, model, *victim.arguments, largest=largest)
        assert not whole(harness, operation, outcome, model)
        assert "File too large" in outcome.error
        shutil.rmtree(model)


def test_a_read_only_model_can_be_read_and_not_changed(harness: Harness) -> None:
    for operation in CHANGES:
        victim = harness.victim(operation)
        model = harness.copy(victim.template)
        left = model / "structures" / "x.writing-ab.safetensors"
        left.write_text("half")
        _permit(model, write=False)
        before = {file: file.read_bytes() for file in model.rglob("*") if file.is_file()}
        outcome = harness.crew.run(operation, model, *victim.arguments, user=NOBODY)
        assert outcome.error.startswith("PermissionError"), outcome.error
        assert outcome.clean
        # Reading asks for no right to write, not even to clear away what a killed writer left.
        assert harness.crew.run("verify", model, user=NOBODY).result is True
        assert {file: file.read_bytes() for file in model.rglob("*") if file.is_file()} == before
        _permit(model, write=True)
        shutil.rmtree(model)


def test_a_pack_can_be_made_of_a_read_only_model(harness: Harness) -> None:
    model = harness.copy(harness.stored)
    _permit(model, write=False)
    out = harness.folder / "out"
    out.mkdir()
    out.chmod(0o777)
    outcome = harness.crew.run("export_pack", model, "nucleolus", out / "pack.safetensors", user=NOBODY)
    assert not outcome.error
    assert (out / "pack.safetensors").read_bytes() == harness.pack.read_bytes()
    _permit(model, write=True)
    shutil.rmtree(model)


@pytest.mark.parametrize("operation", CHANGES)
def test_a_right_that_is_lost_midway_loses_nothing(harness: Harness, operation: str) -> None:
    _lose(harness, operation, steps_to_die_at(harness.victim(operation).lines, 1, seed=7))


@pytest.mark.slow
@pytest.mark.parametrize("operation", CHANGES)
def test_a_right_that_is_lost_anywhere_loses_nothing(harness: Harness, operation: str) -> None:
    _lose(harness, operation, steps_to_die_at(harness.victim(operation).lines, 20, seed=8))


def _lose(harness: Harness, operation: str, steps: list[int]) -> None:
    victim = harness.victim(operation)
    for step in steps:
        model = harness.copy(victim.template)
        if os.getuid() == 0:
            for path in (model, *model.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        folders = [model, *(path for path in model.rglob("*") if path.is_dir())]
        outcome = harness.crew.run(
            operation, model, *victim.arguments, user=NOBODY, lose_at=step, lose=[*folders, model / ".lock"]
        )
        for path in (*folders, model / ".lock"):
            if path.exists():
                path.chmod(0o755)
        whole(harness, operation, outcome, model)
        if outcome.error:
            assert outcome.error.startswith("PermissionError"), outcome.error
        shutil.rmtree(model)


def _permit(model: Path, *, write: bool) -> None:
    for path in (model, *model.rglob("*")):
        path.chmod((0o755 if path.is_dir() else 0o644) & ~(0 if write else 0o222))


def test_the_harness_tells_models_apart(harness: Harness) -> None:
    for operation in CHANGES:
        victim = harness.victim(operation)
        assert victim.before != victim.after
        assert Model.open(victim.template).structures
