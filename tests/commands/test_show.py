"""`show` and `verify` print untrusted text of a model safely, and mark figures that were measured elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import store_operations
from stored_model import PARTS, another, base_network, make_model
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.cli.text import figure, printable
from repmode_cl.data.voxel_size_check import voxel_size_record
from repmode_cl.model import Model
from repmode_cl.store.registry import Registry


def output_of(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5124, "0.512"),
        (-3, "-3.000"),
        (1e300, "1e+300"),
        (10**400, ""),
        (float("nan"), ""),
        (float("-inf"), ""),
        (True, ""),
        ("0.9", ""),
        (None, ""),
        ([1.0], ""),
    ],
)
def test_a_figure_is_formatted_or_left_blank(value: object, text: str) -> None:
    assert figure(value) == text


def test_control_characters_are_not_printed() -> None:
    assert printable("a\x1b[2J\nb \u202e\u00e9") == "a\ufffd[2J\ufffdb \ufffd\u00e9"


@pytest.mark.parametrize(
    ("sizes", "grid", "said"),
    [([None], (0.29,) * 3, True), ([None, (1, 1, 1)], (0.29,) * 3, False), ([None], None, False)],
)
def test_a_grid_that_no_training_image_was_brought_to_is_said(
    sizes: list[tuple[float, ...] | None], grid: tuple[float, ...] | None, said: bool, tmp_path: Path
) -> None:
    parts = {**PARTS, "voxel_size": grid}
    Model.create(tmp_path / "model", base_network(), **parts, provenance=voxel_size_record(sizes))
    text = "no image that it was trained on states its voxels: each kept its own grid"
    assert (text in output_of("show", tmp_path / "model")) is said


def test_an_imported_figure_is_marked(model_path: Path, tmp_path: Path) -> None:
    model = Model.open(make_model(tmp_path / "sender"))
    model.add("desmosome", another(model, "desmosome", 0), metrics={"r2": 0.987})
    pack = tmp_path / "desmosome.safetensors"
    model.export_pack("desmosome", pack)
    store_operations.import_pack(model_path, str(pack))
    text = output_of("show", model_path)
    [line] = [line for line in text.splitlines() if line.strip().startswith("desmosome")]
    assert "0.987 (imported)" in line
    assert text.count("(imported)") == 1
    assert "(imported)" not in output_of("show", model.path)
    # Gone back and forth, it is what it was.
    store_operations.remove(model_path, "desmosome")
    store_operations.rollback(model_path, len(Model.open(model_path).history) - 1)
    assert "0.987 (imported)" in output_of("show", model_path)


@pytest.mark.parametrize("r2", [10**400, "\x1b[31m0.9", True, [0.5], -1e30, None])
def test_show_accepts_odd_metrics(r2: object, model_path: Path) -> None:
    """A model may have them from a pack imported before such packs were refused."""
    registry = Registry.read(model_path)
    *others, last = registry.entries
    odd = replace(last, metrics={"r2": r2}, created="\x1b[2J")
    replace(registry, entries=(*others, odd)).write(model_path)
    text = output_of("show", model_path)
    assert last.name in text
    assert "\x1b" not in text


def test_a_damaged_earlier_version_can_be_deleted(model_path: Path) -> None:
    model = Model.open(model_path)
    store_operations.remove(model_path, "mitochondria")
    file = model_path / model.entries["mitochondria"].file
    file.write_bytes(b"x" + file.read_bytes()[1:])
    text = output_of("verify", model_path, "--level", "files", code=2)
    assert "put the named files back" in text
    assert f"`repmode-cl gc {model_path}` drops the earlier version" in text
    # Where an active one is damaged too, nothing is advised that deletes.
    other = model_path / model.entries["nucleolus"].file
    other.write_bytes(b"x" + other.read_bytes()[1:])
    assert "repmode-cl gc" not in output_of("verify", model_path, "--level", "files", code=2)
