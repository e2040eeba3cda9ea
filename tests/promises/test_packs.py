"""A structure leaves a model as one file and joins another with the same base: the same bits, the same predictions."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from forging import Forgery
from stored_model import grown
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.errors import ModelError, UnknownStructureError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec
from repmode_cl.store import read_pack
from repmode_cl.utils.tensor_digests import same_bits

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((9, 12, 10)).astype(np.float32)


def without_additions(path: Path) -> Model:
    """Take all additions of the stored model out of a copy of it."""
    model = Model.open(path)
    for name in ("mitochondria", "tight_junction", "nucleolus"):
        model.remove(name)
    model.gc()
    return model


@pytest.fixture
def bare(stored: Path, tmp_path: Path) -> Model:
    """Return a model with the same base, and no addition."""
    return without_additions(shutil.copytree(stored, tmp_path / "bare"))


@pytest.mark.parametrize("version", ["now", "model-v1"])
def test_an_imported_pack_has_the_same_bits_and_predictions(
    stored: Path, tmp_path: Path, image: np.ndarray, version: str
) -> None:
    kept = stored if version == "now" else FIXTURES / version
    source = Model.open(shutil.copytree(kept, tmp_path / "source"))
    bare = without_additions(shutil.copytree(kept, tmp_path / "bare"))
    # The last sees the first two.
    for name in ("nucleolus", "tight_junction", "mitochondria"):
        file = source.export_pack(name, tmp_path / f"{name}.safetensors")
        taken = bare.import_pack(file)
        assert taken.status == "bit-identical" or version != "now"
        assert taken.entry.digest == source.entries[name].digest
        assert taken.entry.provenance == source.entries[name].provenance
        assert taken.entry.metrics == source.entries[name].metrics
    assert [change.action for change in bare.history[-3:]] == ["import"] * 3
    before, after = source.network(), Model.open(bare.path).network()
    for name in ("nucleolus", "tight_junction", "mitochondria"):
        tensors = after.structure_state(name)
        assert all(same_bits(tensors[key], value) for key, value in before.structure_state(name).items())
        assert bare.predict(image, name).tobytes() == source.predict(image, name).tobytes()
    assert bare.verify().ok
    # What came in can go on from here.
    again = bare.export_pack("nucleolus", tmp_path / "again.safetensors")
    assert again.read_bytes() == (tmp_path / "nucleolus.safetensors").read_bytes()


def test_a_file_within_a_model_is_a_pack(stored: Path, bare: Model) -> None:
    model = Model.open(stored)
    file = stored / model.entries["nucleolus"].file
    pack = read_pack(file)
    assert (pack.entry.name, pack.base) == ("nucleolus", model.base_digest)
    assert bare.import_pack(file).status == "bit-identical"


def test_another_environment_is_not_called_bit_identical(stored: Path, bare: Model, tmp_path: Path) -> None:
    forgery = Forgery.of(Model.open(stored).export_pack("nucleolus", tmp_path / "it.safetensors"))
    forgery.entry["proof"]["environment"]["torch"] = "2.0"
    forgery.entry["proof"]["prediction_digest"] = "0" * 64
    taken = bare.import_pack(forgery.write(tmp_path / "other.safetensors"))
    assert taken.status == "within tolerance"
    assert "torch 2.0 ->" in taken.detail


def test_needed_additions_must_be_present_in_the_same_version(
    stored: Path, bare: Model, tmp_path: Path
) -> None:
    model = Model.open(stored)
    packs = {name: model.export_pack(name, tmp_path / f"{name}.safetensors") for name in model.structures[2:]}
    with pytest.raises(ModelError, match=r"needs 'nucleolus', which .* lacks"):
        bare.import_pack(packs["mitochondria"])
    network = grown(bare, "nucleolus", AdditionSpec(expert="conv1"))
    bare.add("nucleolus", network)
    bare.import_pack(packs["tight_junction"])
    with pytest.raises(ModelError, match=r"made with version .* of 'nucleolus'"):
        bare.import_pack(packs["mitochondria"])
    assert "mitochondria" not in Model.open(bare.path).structures


def test_invalid_exports_are_refused(model_path: Path, tmp_path: Path) -> None:
    model = Model.open(model_path)
    file = tmp_path / "pack.safetensors"
    with pytest.raises(UnknownStructureError, match="did you mean 'nucleolus'"):
        model.export_pack("nucleoli", file)
    with pytest.raises(ModelError, match="'dna' is part of the base"):
        model.export_pack("dna", file)
    damaged = model_path / model.entries["nucleolus"].file
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(ModelError, match=r"nucleolus-.* is damaged"):
        model.export_pack("nucleolus", file)
    assert not list(tmp_path.glob("*.safetensors*"))
    file.write_text("mine")
    with pytest.raises(ModelError, match="is there already"):
        model.export_pack("tight_junction", file)
    assert file.read_text() == "mine"


def test_the_commands(stored: Path, bare: Model, tmp_path: Path) -> None:
    def run(*arguments: object, code: int = 0) -> str:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == code, done.output
        return done.output

    file = tmp_path / "nucleolus.safetensors"
    assert "nucleolus" in run("pack", "export", stored, "nucleolus", file)
    output = run("pack", "import", bare.path, file)
    assert "nucleolus: bit-identical" in output
    assert "has 'nucleolus' already, exactly this version" in run("pack", "import", bare.path, file, code=2)
    assert "No such file" in run("pack", "import", bare.path, tmp_path / "none", code=2)
