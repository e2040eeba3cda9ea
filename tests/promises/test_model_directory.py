"""Promises of a model directory: nothing stored changes, and every damage is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from stored_model import ARCHITECTURE, INFERENCE, PARTS, base_network, grown

from repmode_cl.errors import ModelError, UnknownStructureError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec, Architecture, RepModeUNet
from repmode_cl.store import verify_model
from repmode_cl.store.probe import probe_volume
from repmode_cl.utils.environment import describe_difference, environment_fingerprint
from repmode_cl.utils.tensor_digests import same_bits, tensor_digest


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((9, 12, 10)).astype(np.float32)


# -- digests and environment -------------------------------------------------------------


def test_a_digest_depends_on_every_bit_and_not_on_order() -> None:
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


def test_the_probe_is_the_same_on_every_machine() -> None:
    probe = probe_volume(Architecture(width=2, depth=2))
    assert probe.shape == (8, 12, 12)
    assert abs(float(probe.mean())) < 0.3
    assert 0.8 < float(probe.std()) < 1.2
    assert tensor_digest({"probe": probe}) == (
        "0d3192784dcedd8f0db515ab8669369edaff071e61b7c6e2344792941ecd8ed0"
    )


def test_a_fingerprint_is_json_and_its_differences_are_described() -> None:
    first = environment_fingerprint(window=(8, 8, 8), batch=1)
    assert json.loads(json.dumps(first)) == first
    second = environment_fingerprint(window=(8, 8, 8), batch=2) | {"torch": "0.1"}
    text = describe_difference(first, second)
    assert "batch 1 -> 2" in text
    assert f"torch {torch.__version__} -> 0.1" in text
    assert describe_difference(first, first) == ""


# -- a model comes back ------------------------------------------------------------------


def test_a_stored_model_is_read_back_unchanged(stored: Path, image: np.ndarray) -> None:
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


def test_only_requested_structures_and_their_needs_are_loaded(stored: Path) -> None:
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
        "import sys, numpy as np, torch; from repmode_cl.model import Model\n"
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


def test_invalid_additions_are_refused(model_path: Path) -> None:
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


def test_invalid_creations_are_refused(tmp_path: Path, stored: Path) -> None:
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
