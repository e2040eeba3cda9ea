"""Reports of `verify`: of one model, before and after a change, and against another model."""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stored_model import PARTS, another, base_network, grown, liven
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.errors import ModelError
from repmode_cl.model import Model
from repmode_cl.nn import Architecture, ModeBlock, RepModeUNet
from repmode_cl.store import VerifyReport, verify_model
from repmode_cl.store import record_files as records
from repmode_cl.store.registry import Registry
from repmode_cl.store.verify_report import compare_models
from repmode_cl.utils import environment
from repmode_cl.utils.atomic_files import write_json
from repmode_cl.utils.environment import with_threads
from repmode_cl.utils.memory import peak_tensor_bytes
from repmode_cl.utils.tensor_digests import json_digest

ACTIVE = ("dna", "cell_membrane", "nucleolus", "tight_junction", "mitochondria")


def command(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["verify", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def copy(model_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_path, tmp_path / "copy"))


def add(path: Path, name: str, seed: int = 3, *, replace: bool = False) -> None:
    model = Model.open(path)
    model.add(name, another(model, name, seed), replace=replace)


# -- before and after a change --------------------------------------------------------------------


def test_computed_digests_are_the_same_before_and_after_an_addition(model_path: Path) -> None:
    before = verify_model(model_path)
    add(model_path, "desmosome", seed=1)
    after = verify_model(model_path)
    assert after.same_as(before) == dict.fromkeys(ACTIVE, True)
    # The recorded digests are those of this environment.
    for result in after.results:
        proof = Model.open(model_path).entries[result.structure].proof
        assert result.computed == (proof.kernel_digest, proof.prediction_digest)
    assert len({result.computed for result in after.results}) == 6
    add(model_path, "desmosome", seed=2, replace=True)
    assert verify_model(model_path).same_as(after) == dict.fromkeys(ACTIVE, True) | {"desmosome": False}


def test_a_model_from_elsewhere_is_compared_with_itself_as_computed_here(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(environment, "ARITHMETIC", 99)
        before = verify_model(model_path)
        assert {result.status for result in before.results} == {"within tolerance"}
        add(model_path, "desmosome")
        after = verify_model(model_path)
    assert [result.status for result in after.results] == ["within tolerance"] * 5 + ["bit-identical"]
    assert after.same_as(before) == dict.fromkeys(ACTIVE, True)


def test_other_arithmetic_within_tolerance_is_noticed(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "ARITHMETIC", 99)
    before = verify_model(stored)
    kernel = ModeBlock.kernel

    def other(block: ModeBlock, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        found = kernel(block, name, dtype)
        return found * (1 + 1e-6) if name == "nucleolus" else found

    monkeypatch.setattr(ModeBlock, "kernel", other)
    after = verify_model(stored)
    assert {result.status for result in after.results} == {"within tolerance"}
    assert after.same_as(before) == dict.fromkeys(ACTIVE, True) | {"nucleolus": False}


def test_reports_below_the_level_predictions_cannot_be_compared(stored: Path) -> None:
    full = verify_model(stored)
    for level in ("files", "tensors", "kernels"):
        less = verify_model(stored, level)  # type: ignore[arg-type]
        computed = [result.computed for result in less.results]
        assert [one and one.prediction for one in computed] == [None] * 5
        assert (computed[0] is None) == (level != "kernels")
        with pytest.raises(ModelError, match=f"{level} and predictions cannot be compared"):
            full.same_as(less)


def test_a_structure_that_fails_is_not_the_same(model_path: Path) -> None:
    before = verify_model(model_path)
    file = model_path / Model.open(model_path).entries["mitochondria"].file
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    after = verify_model(model_path)
    assert after.same_as(before) == dict.fromkeys(ACTIVE, True) | {"mitochondria": False}


# -- against another model ------------------------------------------------------------------------


def compared(path: Path, other: Path) -> tuple[VerifyReport, set[str], dict[str, str]]:
    report = verify_model(path, against=other)
    assert report.comparison is not None
    return report, set(report.comparison.same), dict(report.comparison.different)


def test_a_backup_and_the_grown_model_share_the_same_structures(model_path: Path, copy: Path) -> None:
    add(model_path, "desmosome")
    Model.open(model_path).remove("mitochondria")
    report, same, different = compared(model_path, copy)
    assert report.ok
    assert (same, different) == (set(ACTIVE) - {"mitochondria"}, {})
    assert report.comparison is not None
    assert report.comparison.only_here == ("desmosome",)
    assert report.comparison.only_there == ("mitochondria",)
    code, out, err = command(model_path, "--against", copy)
    assert (code, err) == (0, "")
    assert "nucleolus       the same tensors, kernels and prediction, bit for bit" in out
    assert "desmosome       only here" in out
    assert f"mitochondria    only in {copy}" in out


def test_another_version_differs_and_is_named(model_path: Path, copy: Path) -> None:
    add(model_path, "mitochondria", replace=True)
    report, same, different = compared(model_path, copy)
    assert not report.ok
    assert all(result.ok for result in report.results)
    assert same == set(ACTIVE) - {"mitochondria"}
    assert "another version" in different["mitochondria"]
    code, out, err = command(model_path, "--against", copy, "--level", "files")
    assert code == 2
    assert "mitochondria    DIFFERS: another version" in err
    assert "differ in mitochondria\n" in err
    assert "dna             the same by recorded digest" in out


def test_with_another_base_all_structures_differ(model_path: Path, tmp_path: Path) -> None:
    network = base_network()
    with torch.no_grad():
        next(iter(network.parameters())).view(-1)[0] += 1e-3
    Model.create(tmp_path / "other", network, **PARTS)
    _, same, different = compared(model_path, tmp_path / "other")
    assert same == set()
    assert set(different) == {"dna", "cell_membrane"}
    assert all("different bases" in how for how in different.values())


def test_a_damaged_copy_is_reported_as_the_failing_one(model_path: Path, copy: Path) -> None:
    file = copy / Model.open(copy).entries["nucleolus"].file
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    report, _, different = compared(model_path, copy)
    assert all(result.ok for result in report.results)
    assert set(different) == {"nucleolus", "mitochondria"}  # which sees nucleolus
    assert "fails there" in different["nucleolus"]
    assert file.name in different["nucleolus"]
    with pytest.raises(ModelError, match="nowhere"):
        verify_model(model_path, against=copy / "nowhere")


def test_models_with_other_windows_differ(model_path: Path, tmp_path: Path) -> None:
    inference = {**PARTS["inference"], "overlap": 0.25}
    Model.create(tmp_path / "other", base_network(), **{**PARTS, "inference": inference})
    _, same, different = compared(model_path, tmp_path / "other")
    assert same == set()
    assert "other windows" in different["dna"]


def test_other_kernels_or_another_prediction_differ(stored: Path) -> None:
    report, document = verify_model(stored), records.read_model_document(stored, Registry.read(stored))
    computed = report.results[0].computed
    assert computed is not None
    for change, how in (({"kernels": "0"}, "kernels differ"), ({"prediction": "0"}, "prediction differs")):
        first = replace(report.results[0], computed=computed._replace(**change))
        other = replace(report, results=(first, *report.results[1:]))
        found = compare_models(report, other, document, document)
        assert list(found.different) == ["dna"]
        assert how in found.different["dna"]
        assert not found.ok


def test_proofs_of_other_numbers_of_threads_are_compared_with_the_same(
    model_path: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []

    def noted(count: int) -> AbstractContextManager[None]:
        used.append(count)
        return with_threads(count)

    registry = json.loads((copy / "registry.json").read_text())
    registry.pop("checksum")
    for entry in registry["entries"]:
        entry["proof"]["environment"]["threads"] += 1
    write_json(copy / "registry.json", registry | {"checksum": json_digest(registry)})
    monkeypatch.setattr("repmode_cl.store.verify.with_threads", noted)
    _, same, different = compared(model_path, copy)
    assert (same, different) == (set(ACTIVE), {})
    assert used == [torch.get_num_threads()] * 10
    verify_model(copy)
    assert used[10:] == [torch.get_num_threads() + 1] * 5


# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_verifying_needs_less_memory_than_twice_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    network = RepModeUNet(Architecture(width=8, depth=3), ("dna",), seed=0)
    liven(network)
    parts = {**PARTS, "inference": {"window": (16, 24, 24), "overlap": 0.5, "batch": 1}}
    model = Model.create(tmp_path / "model", network.eval(), **parts)
    model.add("nucleolus", grown(model, "nucleolus"))
    size = sum(file.stat().st_size for file in (tmp_path / "model").rglob("*.safetensors"))
    if elsewhere:
        monkeypatch.setattr(environment, "ARITHMETIC", 99)
    peak = peak_tensor_bytes(lambda: verify_model(tmp_path / "model"))
    assert peak is not None
    # Only tensors, activations among them; the process is measured at the paper's width (test_verify_memory.py).
    print(f"{peak / size:.2f} times the model")
    assert size < peak < 2 * size
    # What no later structure needs is not held: a model that grows is verified in the same memory.
    model.add("desmosome", grown(model, "desmosome"))
    more = peak_tensor_bytes(lambda: verify_model(tmp_path / "model"))
    assert more is not None
    assert more < 1.02 * peak
