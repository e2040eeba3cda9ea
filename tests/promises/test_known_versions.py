"""A model that knows a version, active or kept, by its tensors believes nothing else of a pack that holds the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from forging import Forgery
from stored_model import another
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.errors import ModelError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec
from repmode_cl.store import make_candidate, verify_model


def lying_pack(model: Model, name: str, folder: Path) -> Path:
    """Return a pack with the tensors of a structure, and other figures."""
    forgery = Forgery.of(model.export_pack(name, folder / "honest.safetensors"))
    forgery.entry["metrics"] = {"r2": 0.99}
    forgery.entry["provenance"] = {"note": "mine"}
    forgery.entry["proof"]["float32_error"] = 0.0
    return forgery.write(folder / "lying.safetensors")


@pytest.mark.parametrize("file", ["whole", "damaged", "missing"])
def test_a_kept_version_comes_back_as_what_it_was(model_path: Path, tmp_path: Path, file: str) -> None:
    model = Model.open(model_path)
    pack, honest = lying_pack(model, "mitochondria", tmp_path), model.entries["mitochondria"]
    model.remove("mitochondria")
    if file == "damaged":
        (model_path / honest.file).write_bytes(bytes(honest.bytes))
    elif file == "missing":
        (model_path / honest.file).unlink()
    taken = model.import_pack(pack)
    assert taken.entry == model.entries["mitochondria"] == honest
    assert model.history[-1].action == "import"
    assert model.history[-1].metrics == honest.metrics == {"r2": 0.5}
    assert "0.99" not in CliRunner().invoke(app, ["history", str(model_path)]).output
    model.gc()
    model.remove("mitochondria")
    model.rollback(4)
    assert model.entries["mitochondria"] == honest
    # What the file itself says, wherever it goes from here, is what it said.
    again = model.export_pack("mitochondria", tmp_path / "again.safetensors")
    assert again.read_bytes() == (tmp_path / "honest.safetensors").read_bytes()
    assert verify_model(model_path).bit_identical


@pytest.mark.parametrize("which", ["honest", "lying"])
def test_a_pack_puts_the_file_of_an_active_structure_back(
    model_path: Path, tmp_path: Path, which: str
) -> None:
    model = Model.open(model_path)
    lying_pack(model, "nucleolus", tmp_path)
    pack = tmp_path / f"{which}.safetensors"
    with pytest.raises(ModelError, match="exactly this version"):
        model.import_pack(pack)
    file = model_path / model.entries["nucleolus"].file
    for damage in (file.unlink, lambda: file.write_bytes(bytes(file.stat().st_size))):
        before = {one.name: one.read_bytes() for one in model_path.rglob("*") if one.is_file()}
        damage()
        taken = Model.open(model_path).import_pack(pack)
        assert taken.restored
        assert {one.name: one.read_bytes() for one in model_path.rglob("*") if one.is_file()} == before
    assert verify_model(model_path).bit_identical


def test_other_bytes_are_another_file_of_the_same_entry(model_path: Path, tmp_path: Path) -> None:
    """As where the file was written by an earlier version, or the proof in another environment."""
    model = Model.open(model_path)
    forgery = Forgery.of(model.export_pack("nucleolus", tmp_path / "honest.safetensors"))
    forgery.entry["metrics"] = {"r2": 0.99}
    reference = next(name for name in forgery.tensors if name.endswith("prediction"))
    forgery.tensors[reference] += 1e-14
    entry, history = model.entries["nucleolus"], model.history
    (model_path / entry.file).unlink()
    model.import_pack(forgery.write(tmp_path / "pack.safetensors"))
    restored = model.entries["nucleolus"]
    assert restored.file == f"structures/nucleolus-{entry.digest[:16]}.safetensors"
    assert (restored.metrics, restored.digest) == ({"r2": 0.5}, entry.digest)
    assert model.history == history
    assert tuple(model.entries) == tuple(Model.open(model_path).structures)
    assert verify_model(model_path).bit_identical
    assert [file for file, _ in model.gc().files] == []


def test_what_needs_a_version_that_went_meanwhile_says_so(model_path: Path, tmp_path: Path) -> None:
    opened = Model.open(model_path)
    network = opened.network(["tight_junction"])
    network.add_structure("desmosome", AdditionSpec(sees="all"))
    candidate = make_candidate(opened, "desmosome", network, tmp_path)
    other = Model.open(model_path)
    other.remove("mitochondria")
    other.add("tight_junction", another(other, "tight_junction", 9), replace=True)
    with pytest.raises(ModelError, match=rf"now has version .*`repmode-cl rollback {model_path} 5`"):
        opened.commit(candidate)
    other.gc()
    for act in (
        lambda: opened.commit(candidate),
        lambda: opened.add("desmosome", network),
        lambda: make_candidate(opened, "desmosome", network, tmp_path / "again"),
    ):
        with pytest.raises(ModelError, match=r"'desmosome' was made with version .* of 'tight_junction'"):
            act()


def test_the_commands(stored: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(stored, tmp_path / "model"))
    model = Model.open(path)
    pack = model.export_pack("nucleolus", tmp_path / "pack.safetensors")
    (path / model.entries["nucleolus"].file).unlink()
    for command in ("show", "history", "pending"):
        done = CliRunner().invoke(app, [command, str(path)])
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["pack", "import", str(path), str(pack)])
    assert done.exit_code == 0, done.output
    assert "restored" in done.output
    done = CliRunner().invoke(app, ["pack", "import", str(path), str(pack)])
    assert (done.exit_code, "exactly this version" in done.output) == (2, True)
