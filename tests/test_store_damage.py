"""No damage to a model directory goes unnoticed, and none is blamed on the wrong structure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from repmode_cl.errors import ModelError
from repmode_cl.store import Model, verify_model
from repmode_cl.store import verify as verify_module
from repmode_cl.store.digests import json_digest
from repmode_cl.store.proof import references


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
    path.write_text(original.replace('"version": 1', '"version": 2'))
    with pytest.raises(ModelError, match=rf"{file} has format version 2"):
        Model.open(model_path)
    path.unlink()
    with pytest.raises(ModelError, match=rf"{file} is missing"):
        Model.open(model_path)


def test_open_names_a_file_cut_short_or_missing(model_path: Path) -> None:
    file = model_path / Model.open(model_path).entries["nucleolus"].file
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ModelError, match=f"{file.name}.*nucleolus.*bytes"):
        Model.open(model_path)
    file.unlink()
    with pytest.raises(ModelError, match=f"{file.name} is missing"):
        Model.open(model_path)
    assert not verify_model(model_path, "files").ok


def rewrite(path: Path, change: dict[str, object], structure: str = "nucleolus") -> None:
    """Edit a structure's proof as someone who fixes the checksum would."""
    registry = json.loads((path / "registry.json").read_text())
    registry.pop("checksum")
    for entry in registry["entries"]:
        if entry["name"] == structure:
            entry["proof"] |= change
    registry["checksum"] = json_digest(registry)
    (path / "registry.json").write_text(json.dumps(registry))


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
        return {name: tensor + 1e-4 for name, tensor in references(*arguments, **options).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(verify_module, "references", wrong)
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
