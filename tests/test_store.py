"""What a model directory promises: nothing that is stored changes, and no damage goes unnoticed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from repmode_cl.errors import ModelError, UnknownStructureError
from repmode_cl.files import TEMPORARY_MARK
from repmode_cl.nn import AdditionSpec, Architecture, RepModeUNet
from repmode_cl.store import Model, environment_fingerprint, verify_model
from repmode_cl.store import verify as verify_module
from repmode_cl.store.digests import json_digest, same_bits, tensor_digest
from repmode_cl.store.environment import describe_difference
from repmode_cl.store.proof import probe_volume, references

ARCHITECTURE = Architecture(width=2, depth=1, experts=("conv3", "conv1", "avg3"))
INFERENCE = {"window": (8, 8, 8), "overlap": 0.5, "batch": 2}
PARTS = {"voxel_size": (0.29, 0.29, 0.29), "preprocessing": {"order": 1}, "inference": INFERENCE}


def base_network() -> RepModeUNet:
    network = RepModeUNet(ARCHITECTURE, ("dna", "cell_membrane"), seed=0)
    liven(network)
    return network.eval()


def liven(network: RepModeUNet, part: str = "") -> None:
    """Give norm statistics that a training would have, so that a lost one shows."""
    generator = torch.Generator().manual_seed(len(part))
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if part in name and (name.endswith("running_mean") or name.endswith("running_var")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model with a base of two and three additions, of which the last sees the first."""
    path = tmp_path_factory.mktemp("store") / "model"
    notes = {"provenance": {"run": "test"}, "metrics": {"dna": {"r2": 0.7}}}
    model = Model.create(path, base_network(), **PARTS, **notes)
    for name, spec in {
        "nucleolus": AdditionSpec(),
        "tight_junction": AdditionSpec(expert="lowrank:2", norm="base", resampling="base"),
        "mitochondria": AdditionSpec(expert="conv1", sees="all"),
    }.items():
        network = model.network()
        network.add_structure(name, spec, seed=3)
        liven(network, f".own.{name}.")
        model.add(name, network, metrics={"r2": 0.5})
    return path


@pytest.fixture
def model_path(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "model"))


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((9, 12, 10)).astype(np.float32)


def grown(model: Model, name: str, spec: AdditionSpec | None = None) -> RepModeUNet:
    network = model.network()
    network.add_structure(name, spec)
    return network


# -- digests and environment -------------------------------------------------------------


def test_a_digest_sees_every_bit_and_no_order() -> None:
    state = {"b": torch.tensor([0.0, 1.0]), "a": torch.arange(6).reshape(2, 3)}
    digest = tensor_digest(state)
    assert digest == tensor_digest(dict(reversed(state.items())))
    assert digest == tensor_digest({"b": state["b"], "a": state["a"].T.contiguous().T})
    others = [
        {**state, "b": torch.tensor([-0.0, 1.0])},
        {**state, "b": state["b"].double()},
        {**state, "a": state["a"].reshape(3, 2)},
        {"c": state["b"], "a": state["a"]},
    ]
    digests = {digest, tensor_digest(state, {"kind": "base"}), *map(tensor_digest, others)}
    assert len(digests) == 2 + len(others)
    assert tensor_digest({"a": torch.tensor(1.5, dtype=torch.bfloat16)}) != tensor_digest({})
    # The layout of the bytes is part of the format: this value may never change.
    assert tensor_digest({"x": torch.tensor([1.0, 2.0])}) == (
        "022a63fd7c7be1ec05983ab0c922c8f9980e24eefbc7734796d7e13aadd8a10f"
    )


def test_the_probe_is_the_same_everywhere() -> None:
    probe = probe_volume(Architecture(width=2, depth=2))
    assert probe.shape == (8, 12, 12)
    assert abs(float(probe.mean())) < 0.3
    assert 0.8 < float(probe.std()) < 1.2
    assert tensor_digest({"probe": probe}) == (
        "0d3192784dcedd8f0db515ab8669369edaff071e61b7c6e2344792941ecd8ed0"
    )


def test_a_fingerprint_is_json_and_says_what_differs() -> None:
    first = environment_fingerprint(window=(8, 8, 8), batch=1)
    assert json.loads(json.dumps(first)) == first
    second = environment_fingerprint(window=(8, 8, 8), batch=2) | {"torch": "0.1"}
    text = describe_difference(first, second)
    assert "batch 1 -> 2" in text
    assert f"torch {torch.__version__} -> 0.1" in text
    assert describe_difference(first, first) == ""


# -- a model comes back ------------------------------------------------------------------


def test_what_was_stored_comes_back(stored: Path, image: np.ndarray) -> None:
    model = Model.open(stored)
    assert model.structures == ("dna", "cell_membrane", "nucleolus", "tight_junction", "mitochondria")
    assert model.base_structures == ("dna", "cell_membrane")
    assert model.architecture == ARCHITECTURE
    assert model.voxel_size == (0.29, 0.29, 0.29)
    assert model.preprocessing == {"order": 1}
    assert model.inference == {"window": [8, 8, 8], "overlap": 0.5, "batch": 2}
    assert model.entries["dna"].metrics == {"r2": 0.7}
    assert model.entries["dna"].provenance == {"run": "test"}
    assert [need for need, _ in model.entries["mitochondria"].needs] == ["nucleolus", "tight_junction"]
    assert model.entries["tight_junction"].parameters < model.entries["nucleolus"].parameters
    first = base_network().base_state()
    for name, tensor in model.network().base_state().items():
        assert same_bits(tensor, first[name])
    prediction = model.predict(image, "mitochondria")
    assert prediction.shape == image.shape
    assert prediction.dtype == np.float32


def test_only_what_is_asked_for_is_loaded(stored: Path) -> None:
    model = Model.open(stored)
    assert model.network(["dna"]).structures == ("dna", "cell_membrane")
    assert model.network(["tight_junction"]).structures == ("dna", "cell_membrane", "tight_junction")
    # What it needs comes with it.
    assert set(model.network(["mitochondria"]).additions) == {"nucleolus", "tight_junction", "mitochondria"}


def test_an_unknown_structure_never_falls_back(stored: Path, image: np.ndarray) -> None:
    model = Model.open(stored)
    with pytest.raises(UnknownStructureError, match="did you mean 'nucleolus'"):
        model.predict(image, "nucleoli")
    with pytest.raises(UnknownStructureError):
        model.network(["dna", "golgi_apparatus"])


def test_adding_changes_no_stored_file_and_no_prediction(model_path: Path, image: np.ndarray) -> None:
    model = Model.open(model_path)
    files = {path: path.read_bytes() for path in model_path.rglob("*.safetensors")}
    files[model_path / "model.json"] = (model_path / "model.json").read_bytes()
    before = {name: model.predict(image, name) for name in model.structures}
    entries = model.entries
    model.add("desmosome", grown(model, "desmosome", AdditionSpec(sees="all")))
    for again in (model, Model.open(model_path)):
        assert again.structures == (*before, "desmosome")
        for name, prediction in before.items():
            assert again.predict(image, name).tobytes() == prediction.tobytes()
            assert again.entries[name] == entries[name]
    assert all(path.read_bytes() == data for path, data in files.items())
    assert verify_model(model_path).bit_identical


def test_a_new_process_predicts_the_same_bits(stored: Path, tmp_path: Path, image: np.ndarray) -> None:
    np.save(tmp_path / "image.npy", image)
    code = (
        "import sys, numpy as np, torch; from repmode_cl.store import Model\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "model = Model.open(sys.argv[1])\n"
        "np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), 'nucleolus'))\n"
        "assert model.verify().bit_identical, model.verify()\n"
        "assert not any(name.partition('.')[0] == 'avalanche' for name in sys.modules)\n"
    )
    arguments = [str(stored), str(tmp_path / "image.npy"), str(tmp_path / "prediction.npy")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=120)
    expected = Model.open(stored).predict(image, "nucleolus")
    assert np.load(tmp_path / "prediction.npy").tobytes() == expected.tobytes()


def test_a_network_with_additions_can_be_stored_at_once(stored: Path, tmp_path: Path) -> None:
    model = Model.open(stored)
    copy = Model.create(tmp_path / "copy", model.network(), **PARTS)
    assert {name: entry.digest for name, entry in copy.entries.items()} == {
        name: entry.digest for name, entry in model.entries.items()
    }


# -- what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("experts", "in the base"),
        ("running_mean", "in the base"),
        (".own.nucleolus.", "structure 'nucleolus'"),
        (".own.tight_junction.", "structure 'tight_junction'"),
    ],
)
def test_a_network_that_changed_in_one_bit_is_refused(model_path: Path, part: str, message: str) -> None:
    model = Model.open(model_path)
    network = grown(model, "desmosome")
    name, tensor = next(
        (name, tensor)
        for name, tensor in network.state_dict().items()
        if part in name and (part.startswith(".own") or ".own." not in name) and tensor.is_floating_point()
    )
    flat = tensor.reshape(-1)
    flat[0] = torch.nextafter(flat[0], torch.tensor(9.0))
    with pytest.raises(ModelError, match=message):
        model.add("desmosome", network)
    assert "desmosome" not in Model.open(model_path).structures, name


def test_what_cannot_be_added_is_refused(model_path: Path) -> None:
    model = Model.open(model_path)
    with pytest.raises(ModelError, match="has 'nucleolus' already"):
        model.add("nucleolus", model.network())
    with pytest.raises(UnknownStructureError):
        model.add("desmosome", model.network())
    network = grown(model, "desmosome")
    network.add_structure("golgi_apparatus", AdditionSpec(sees="all"))
    with pytest.raises(ModelError, match="needs 'desmosome'"):
        model.add("golgi_apparatus", network)
    other = RepModeUNet(Architecture(2, 1, ("conv3",)), ("dna", "cell_membrane"))
    other.add_structure("desmosome")
    with pytest.raises(ModelError, match="architecture"):
        model.add("desmosome", other)
    network = grown(model, "desmosome")
    gate = next(name for name in network.owned_names("desmosome") if name.endswith("gate"))
    network.state_dict()[gate].fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        model.add("desmosome", network)
    with pytest.raises(ModelError, match="as JSON"):
        model.add("desmosome", grown(model, "desmosome"), metrics={"r2": float("nan")})


def test_what_cannot_be_created_is_refused(tmp_path: Path, stored: Path) -> None:
    with pytest.raises(ModelError, match="is a model already"):
        Model.create(stored, base_network(), **PARTS)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ModelError, match=r"thesis\.txt"):
        Model.create(tmp_path, base_network(), **PARTS)
    with pytest.raises(ModelError, match=r"overlap 1\.5"):
        Model.create(tmp_path / "m", base_network(), **{**PARTS, "inference": {**INFERENCE, "overlap": 1.5}})
    with pytest.raises(UnknownStructureError):
        Model.create(tmp_path / "m", base_network(), **PARTS, metrics={"r2": {}})
    assert not (tmp_path / "m").exists()


# -- damage ------------------------------------------------------------------------------


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


# -- dying and sharing -------------------------------------------------------------------


def die_at(monkeypatch: pytest.MonkeyPatch, count: int, *, after: bool) -> None:
    """Let the `count`th replacing of a file be the last thing, before or after it happens."""
    replace, replaced = os.replace, 0

    def replacing(source: str, target: str) -> None:
        nonlocal replaced
        replaced += 1
        if replaced == count and not after:
            raise KeyboardInterrupt
        replace(source, target)
        if replaced == count:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replacing)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_a_killed_add_leaves_the_old_model_or_the_new(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, after: bool
) -> None:
    model = Model.open(model_path)
    network = grown(model, "desmosome")
    with monkeypatch.context() as patch:
        die_at(patch, count, after=after)
        with pytest.raises(KeyboardInterrupt):
            model.add("desmosome", network)
    again = Model.open(model_path)
    report = again.verify()
    assert report.bit_identical
    done = count == 2 and after
    assert ("desmosome" in again.structures) == done
    if not done:
        assert bool(report.notes) == ((count, after) != (1, False))
        again.add("desmosome", network)
        assert not verify_model(model_path, "files").notes


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_killed_creation_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    with monkeypatch.context() as patch:
        die_at(patch, count, after=False)
        with pytest.raises(KeyboardInterrupt):
            Model.create(tmp_path, base_network(), **PARTS)
    with pytest.raises(ModelError, match="interrupted"):
        Model.open(tmp_path)
    assert Model.create(tmp_path, base_network(), **PARTS).structures == ("dna", "cell_membrane")


def test_left_overs_go_at_the_next_write_and_pending_stays(model_path: Path) -> None:
    names = (f"registry{TEMPORARY_MARK}ab.json", f"structures/x{TEMPORARY_MARK}cd.safetensors")
    left = [model_path / name for name in names]
    model = Model.open(model_path)
    pending = model.pending("desmosome") / f"1{TEMPORARY_MARK}ef.json"
    pending.parent.mkdir(parents=True)
    for path in (*left, pending):
        path.write_text("half")
    model.add("desmosome", grown(model, "desmosome"))
    assert not any(path.exists() for path in left)
    assert pending.exists()


def test_two_that_opened_the_same_model_both_add(model_path: Path) -> None:
    first, second = Model.open(model_path), Model.open(model_path)
    first.add("desmosome", grown(first, "desmosome"))
    second.add("golgi_apparatus", grown(second, "golgi_apparatus"))
    assert Model.open(model_path).structures[-2:] == ("desmosome", "golgi_apparatus")
    assert second.structures == Model.open(model_path).structures
