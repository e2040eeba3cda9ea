"""Kinds of additions of later versions are stored, verified, exchanged and replaced; older programs refuse them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forging import Forgery
from safetensors import safe_open
from stored_model import liven

from repmode_cl.errors import ModelError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec
from repmode_cl.store import registry

KINDS = {
    "outside": AdditionSpec(gate="outside"),
    "scaled": AdditionSpec(gate="outside", scale=True),
    "outside, sees all": AdditionSpec(gate="outside", sees="all"),
    "ranks in the softmax": AdditionSpec("lowrank:2,1", resampling="base"),
    "ranks": AdditionSpec("lowrank:2,1", resampling="base", gate="outside"),
    "decoder": AdditionSpec("conv1", blocks="decoder"),
    "encoder": AdditionSpec("conv3", blocks="encoder"),
}


def add(model: Model, name: str, spec: AdditionSpec, seed: int = 0, *, replace: bool = False) -> None:
    network = model.network(None if spec.sees == "all" else [])
    network.add_structure(name, spec, seed=seed)
    liven(network, f".own.{name}.")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if f".own.{name}." in key and ".norm." not in key:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.add(name, network, metrics={"r2": 0.5}, replace=replace)


def registry_version(model: Model) -> int:
    return int(json.loads((model.path / "registry.json").read_text())["version"])


def file_version(file: Path) -> str:
    with safe_open(file, framework="pt") as opened:
        return str(opened.metadata()["version"])


@pytest.mark.parametrize("kind", KINDS)
def test_stored_verified_exchanged_and_replaced(model_path: Path, tmp_path: Path, kind: str) -> None:
    other = Model.open(shutil.copytree(model_path, tmp_path / "other"))
    model = Model.open(model_path)
    assert registry_version(model) == 2
    known = {name: model.network([name]).kernels(name) for name in model.structures}
    add(model, "golgi", KINDS[kind])
    assert registry_version(model) == 3
    assert file_version(model_path / model.entries["golgi"].file) == "3"
    assert file_version(model_path / model.entries["nucleolus"].file) == "2"
    opened = Model.open(model_path)
    spec = opened.entries["golgi"].spec
    assert spec is not None
    assert replace(spec, needs=()) == KINDS[kind]
    assert bool(spec.needs) == (KINDS[kind].sees == "all")
    assert opened.verify().bit_identical
    for name, kernels in known.items():
        now = opened.network([name]).kernels(name)
        assert all(torch.equal(now[block], kernel) for block, kernel in kernels.items())

    pack = opened.export_pack("golgi", tmp_path / "golgi.safetensors")
    taken = other.import_pack(pack)
    assert taken.status == "bit-identical"
    assert registry_version(other) == 3
    here, there = opened.network(["golgi"]), other.network(["golgi"])
    assert all(
        torch.equal(there.structure_state("golgi")[key], value)
        for key, value in here.structure_state("golgi").items()
    )
    assert other.verify().bit_identical

    first = opened.entries["golgi"].digest
    add(opened, "golgi", AdditionSpec("conv1"), seed=1, replace=True)
    # The history and the kept version are of the new kind still.
    assert registry_version(opened) == 3
    opened.rollback(len(opened.history) - 1)
    assert opened.entries["golgi"].digest == first
    assert opened.verify().bit_identical


def test_a_program_of_before_refuses_the_model_by_its_version(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(Model.open(model_path), "golgi", KINDS["ranks in the softmax"])
    monkeypatch.setattr(registry, "REGISTRY_VERSIONS", (1, 2))
    with pytest.raises(ModelError, match=r"registry\.json.*version 3"):
        Model.open(model_path)


def test_a_version_that_does_not_fit_the_kind_is_refused(model_path: Path, tmp_path: Path) -> None:
    model = Model.open(model_path)
    add(model, "golgi", KINDS["outside"])
    pack = model.export_pack("golgi", tmp_path / "golgi.safetensors")
    model.remove("golgi")
    forgery = Forgery.of(pack)
    forgery.version = "2"
    with pytest.raises(ModelError, match="has format version '2', and what it holds is of version 3"):
        model.import_pack(forgery.write(tmp_path / "forged.safetensors"))
    file = model_path / model.entries["nucleolus"].file
    file.write_bytes(file.read_bytes().replace(b'"version":"2"', b'"version":"3"'))
    with pytest.raises(ModelError, match=r"of version '3'.*reads .* of version 1 and 2"):
        Model.open(model_path).network(["nucleolus"])


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"gate": "inside"}, "gate is softmax or outside, not 'inside'"),
        ({"gate": "softmax"}, "not what"),
        ({"blocks": 3}, "blocks is all or encoder or decoder, not 3"),
        ({"scale": 1, "gate": "outside"}, "scale is true or false, not 1"),
        ({"expert": "lowrank:9,9"}, "it holds no expert of rank '9'"),
        ({"expert": "lowrank:2,1,1"}, "has 3 ranks, and this network has 2 levels"),
        ({"expert": "lowrank:2,0"}, "does not belong to the structure"),
        ({"blocks": "encoder"}, "does not belong to the structure"),
    ],
)
def test_forged_kinds_are_refused(
    model_path: Path, tmp_path: Path, spec: dict[str, object], why: str
) -> None:
    model = Model.open(model_path)
    add(model, "golgi", KINDS["ranks"])
    forgery = Forgery.of(model.export_pack("golgi", tmp_path / "golgi.safetensors"))
    model.remove("golgi")
    forgery.spec(**spec)
    forgery.version = "3"
    before = (model_path / "registry.json").read_bytes()
    with pytest.raises(ModelError) as caught:
        model.import_pack(forgery.write(tmp_path / "forged.safetensors"))
    assert "is refused" in str(caught.value)
    assert why in str(caught.value)
    assert (model_path / "registry.json").read_bytes() == before
