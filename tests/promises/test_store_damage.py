"""Every damage to a model directory is found, and reported for the right structure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from repmode_cl.errors import ModelError
from repmode_cl.model import Model
from repmode_cl.store import VerifyReport, verify_model
from repmode_cl.store import proof as proof_module
from repmode_cl.store.load_network import load_structure
from repmode_cl.store.probe import float64_references
from repmode_cl.utils.atomic_files import sha256_file, write_json
from repmode_cl.utils.tensor_digests import json_digest

FIXTURES = Path(__file__).parents[1] / "fixtures"


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("level", ["files", "tensors", "kernels", "predictions"])
def test_verify_names_the_damaged_file_and_structure(model_path: Path, level: str) -> None:
    entries = Model.open(model_path).entries
    file = model_path / entries["nucleolus"].file
    flip(file, file.stat().st_size - 1)
    report = verify_model(model_path, level)
    assert not report.ok
    failed = {result.structure: result.detail for result in report.results if not result.ok}
    # mitochondria sees nucleolus; tight_junction does not.
    assert set(failed) == {"nucleolus", "mitochondria"}
    assert all(file.name in detail for detail in failed.values())
    with pytest.raises(ModelError, match="nucleolus"):
        _tampered(model_path, "nucleolus")


def _tampered(path: Path, name: str) -> None:
    """Damage a weight without changing the file's size, and load it."""
    model = Model.open(path)
    file = path / model.entries[name].file
    header = int.from_bytes(file.read_bytes()[:8], "little")
    for place in range(8 + header, file.stat().st_size, 16):
        flip(file, place)
    model.network([name])


def test_a_damaged_base_fails_everything(model_path: Path) -> None:
    flip(model_path / "base.safetensors", (model_path / "base.safetensors").stat().st_size - 1)
    report = verify_model(model_path, "tensors")
    assert [result.status for result in report.results] == ["failed"] * 5
    assert all("base.safetensors" in result.detail for result in report.results)
    assert "FAILED" in str(report.results[0])


@pytest.mark.parametrize("file", ["model.json", "registry.json"])
def test_open_names_a_damaged_document(model_path: Path, file: str) -> None:
    path = model_path / file
    original = path.read_text()
    before, after = ("0.29", "0.39") if file == "model.json" else ("0.5", "0.9")
    path.write_text(original.replace(before, after))
    with pytest.raises(ModelError, match=rf"{file}.*damaged"):
        Model.open(model_path)
    path.write_text(original[:40])
    with pytest.raises(ModelError, match=rf"{file}.*damaged"):
        verify_model(model_path)
    version = json.loads(original)["version"]
    path.write_text(original.replace(f'"version": {version}', '"version": 9'))
    with pytest.raises(ModelError, match=rf"{file} has format version 9"):
        Model.open(model_path)
    path.unlink()
    with pytest.raises(ModelError, match=rf"{file} is missing"):
        Model.open(model_path)


def test_a_missing_or_cut_file_is_named_by_every_operation_that_needs_it(model_path: Path) -> None:
    file = model_path / Model.open(model_path).entries["nucleolus"].file
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ModelError, match=f"{file.name}.*nucleolus.*bytes"):
        Model.open(model_path).network()
    file.unlink()
    model = Model.open(model_path)
    for name in ("nucleolus", "mitochondria"):
        with pytest.raises(ModelError, match=f"{file.name} is missing"):
            model.fuse(name)
    failed = [result.structure for result in verify_model(model_path, "files").results if not result.ok]
    assert failed == ["nucleolus", "mitochondria"]
    # All else works: predicting, removing, rolling back, gc.
    image = np.zeros((8, 8, 8), np.float32)
    assert model.predict(image, "tight_junction").shape == model.predict(image, "dna").shape == image.shape
    model.remove("mitochondria")
    model.rollback(4)
    model.gc()
    assert Model.open(model_path).structures[-1] == "mitochondria"
    (model_path / "base.safetensors").unlink()
    with pytest.raises(ModelError, match=r"base\.safetensors is missing"):
        Model.open(model_path).network([])


def test_a_file_is_no_model(model_path: Path) -> None:
    for read in (Model.open, verify_model):
        with pytest.raises(ModelError, match="is a file: a model is a folder"):
            read(model_path / "model.json")


def rewrite(path: Path, change: dict[str, object], structure: str = "nucleolus") -> None:
    """Edit a structure's proof as someone who fixes the checksum would."""
    registry = json.loads((path / "registry.json").read_text())
    registry.pop("checksum")
    for entry in registry["entries"]:
        if entry["name"] == structure:
            entry["proof"] |= change
    registry["checksum"] = json_digest(registry)
    write_json(path / "registry.json", registry)


@pytest.mark.parametrize("what", ["kernel_digest", "prediction_digest"])
def test_other_bits_in_the_same_environment_fail(model_path: Path, what: str) -> None:
    rewrite(model_path, {what: "0" * 64})
    # And mitochondria, because it needs nucleolus.
    failed = [result.structure for result in verify_model(model_path).results if not result.ok]
    assert failed == ["nucleolus", "mitochondria"]
    assert verify_model(model_path, "tensors").ok


def test_another_environment_is_compared_within_tolerance(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = Model.open(model_path).entries["nucleolus"].proof
    # Elsewhere the digests are others, and rightly so.
    rewrite(model_path, {"environment": proof.environment | {"torch": "2.0"}, "prediction_digest": "0" * 64})
    report = verify_model(model_path)
    result = report.results[2]
    assert report.ok
    assert not report.bit_identical
    assert result.status == "within tolerance"
    assert f"torch 2.0 -> {torch.__version__}" in result.detail
    kernels = verify_model(model_path, "kernels").results[2]
    assert kernels.status == "within tolerance"

    def wrong(*arguments: object, **options: object) -> dict[str, torch.Tensor]:
        return {name: tensor + 1e-4 for name, tensor in float64_references(*arguments, **options).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(proof_module, "float64_references", wrong)
    result = verify_model(model_path).results[2]
    assert result.status == "failed"
    assert "allowed in another environment" in result.detail


def test_a_proof_is_checked_with_its_own_number_of_threads(stored: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert verify_model(stored).bit_identical
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_an_unknown_level_is_refused(stored: Path) -> None:
    with pytest.raises(ModelError, match="none of files, tensors, kernels, predictions"):
        verify_model(stored, "everything")  # type: ignore[arg-type]


def flipped(path: Path, step: int, seed: int) -> Iterator[tuple[Path, int]]:
    """Flip one seeded bit in every `step`th byte of every file of a model, one at a time, and put it back."""
    random = np.random.default_rng(seed)
    files = [file for file in sorted(path.rglob("*")) if file.suffix in (".json", ".safetensors")]
    assert len(files) == 8
    for file in files:
        original = file.read_bytes()
        # Every byte of a document or a header, and a sample of the data.
        head = len(original) if file.suffix == ".json" else 8 + int.from_bytes(original[:8], "little")
        places = [*range(int(random.integers(step)), head, step)]
        if head < len(original):
            places += random.integers(head, len(original), 200 // step + 5).tolist()
        for place in places:
            data = bytearray(original)
            data[place] ^= 1 << int(random.integers(8))
            file.write_bytes(data)
            yield file, place
        file.write_bytes(original)


def found_by(path: Path) -> tuple[VerifyReport | None, str]:
    try:
        return verify_model(path, "files"), ""
    except ModelError as error:
        return None, str(error)


@pytest.mark.parametrize("step", [97, pytest.param(1, marks=pytest.mark.slow)])
def test_any_flipped_bit_is_found_and_named(tmp_path: Path, step: int) -> None:
    path = Path(shutil.copytree(FIXTURES / "model-v2", tmp_path / "model"))
    entries = (*Model.open(path).entries.values(), *Model.open(path).kept)
    whose = {path / entry.file: (entry.name, entry.digest) for entry in entries}
    count = 0
    for file, place in flipped(path, step, seed=step):
        count += 1
        report, error = found_by(path)
        if report is None:
            assert file.suffix == ".json", (file, place)
            assert file.name in error, (file, place)
            assert "in doubt" in error, (file, place)
            continue
        assert not report.ok, (file, place)
        failed = [result for result in (*report.results, *report.earlier) if not result.ok]
        assert all(file.name in result.detail for result in failed), (file, place)
        assert whose[file] in {(result.structure, result.digest) for result in failed}, (file, place)
    print(f"{count} flipped bits, {count} found")
    assert verify_model(path, "tensors").ok
    assert count > (500 if step > 1 else 50_000)


def test_a_damaged_earlier_version_fails_no_active_structure(tmp_path: Path) -> None:
    path = Path(shutil.copytree(FIXTURES / "model-v2", tmp_path / "model"))
    [kept] = Model.open(path).kept
    flip(path / kept.file, kept.bytes - 1)
    for level in ("files", "predictions"):
        report = verify_model(path, level)  # type: ignore[arg-type]
        assert not report.ok
        assert all(result.ok for result in report.results)
        [result] = report.earlier
        assert result.structure == "desmosome"
        assert f"earlier version {kept.digest[:8]}" in result.detail
        assert kept.file in result.detail
        assert "delete all earlier versions with `gc`" in result.detail


def test_changed_tensors_fail_even_with_a_matching_file_digest(model_path: Path) -> None:
    """The SHA-256 of files would be right, as where a tool rewrote a file and fixed the registry."""
    registry = json.loads((model_path / "registry.json").read_text())
    registry.pop("checksum")
    entry = next(entry for entry in registry["entries"] if entry["name"] == "tight_junction")
    file = model_path / entry["file"]
    flip(file, file.stat().st_size - 1)
    entry["sha256"] = sha256_file(file)
    write_json(model_path / "registry.json", registry | {"checksum": json_digest(registry)})
    assert verify_model(model_path, "files").ok
    report = verify_model(model_path)
    failed = {result.structure: result.detail for result in report.results if not result.ok}
    # What comes after it in the same process is checked as if it had never been loaded.
    assert set(failed) == {"tight_junction", "mitochondria"}
    assert "not those recorded" in failed["tight_junction"]
    assert report.results[2].status == "bit-identical"
    network = Model.open(model_path).network(["nucleolus"])
    damaged = Model.open(model_path).entries["tight_junction"]
    with pytest.raises(ModelError, match="not those recorded"):
        load_structure(network, model_path, damaged, Model.open(model_path).base_digest)
    assert tuple(network.additions) == ("nucleolus",)
    assert not [name for name in network.state_dict() if "tight_junction" in name]
