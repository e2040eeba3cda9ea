"""A replacement is of the kind of what it replaces, unless an option says otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tiny_addition import added, dry_run, make_base
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec
from repmode_cl.store import Entry

SPEC = AdditionSpec(expert="conv1", norm="base")


def replaced(model: Path, manifest: Path, *options: str) -> Entry:
    """Replace nucleolus by the command, with these options, and return what the model has then."""
    words = [
        "replace",
        str(model),
        "--structure",
        "nucleolus",
        "--data",
        str(manifest),
        "--steps",
        "2",
        *options,
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return Model.open(model).entries["nucleolus"]


def test_replace_keeps_kind_and_patch_and_says_so(manifest: Path, tmp_path: Path) -> None:
    model = make_base(tmp_path / "model")
    added(model, manifest, spec=SPEC, patch=(4, 8, 4), steps=2)
    kind = "the kind is that of the version that it replaces: conv1, base's norm"
    patch = "the patch is that of the version that it replaces: 4 x 8 x 4"
    assert {kind, patch} <= set(dry_run(model, manifest, replace=True, steps=2).notes)
    result = added(model, manifest, replace=True, steps=2, seed=1)
    assert {kind, patch} <= set(result.notes)
    entry = Model.open(model).entries["nucleolus"]
    assert entry.spec == SPEC
    assert entry.provenance["patch"] == [4, 8, 4]


def test_an_option_of_replace_changes_only_that(manifest: Path, tmp_path: Path) -> None:
    model = make_base(tmp_path / "model")
    added(model, manifest, spec=SPEC, steps=2)
    assert replaced(model, manifest, "--expert", "conv3").spec == AdditionSpec(expert="conv3", norm="base")


def test_an_option_of_replace_keeps_the_setting(manifest: Path, tmp_path: Path) -> None:
    model = make_base(tmp_path / "model")
    added(model, manifest, setting="small", steps=2)
    before = Model.open(model).entries["nucleolus"]
    after = replaced(model, manifest, "--norm", "base")
    assert before.spec is not None
    assert after.spec == replace(before.spec, norm="base")
    assert after.provenance["addition"]["setting"] == "small"
    assert after.provenance["addition"]["learning_rate"] == before.provenance["addition"]["learning_rate"]
    assert after.provenance["init"]["asked"] == "best"


def test_a_setting_of_replace_is_the_whole_setting(manifest: Path, tmp_path: Path) -> None:
    """`best` has its own resampling layers, whatever the version that it replaces had."""
    model = make_base(tmp_path / "model")
    added(model, manifest, setting="small", steps=2)
    entry = replaced(model, manifest, "--setting", "best", "--norm", "base")
    assert entry.spec == AdditionSpec(expert="conv3", norm="base")
    assert entry.provenance["addition"]["setting"] == "best"
