"""Models from elsewhere that lie: ``model.json`` and the registry are checked as packs are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stored_model import ARCHITECTURE
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.errors import ModelError, RepmodeError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec, Architecture, RepModeUNet
from repmode_cl.nn.experts import expert_shapes
from repmode_cl.store import verify_model
from repmode_cl.utils.atomic_files import sha256_file, write_json
from repmode_cl.utils.tensor_digests import json_digest

Edit = Callable[[dict[str, Any]], object]


def nothing(values: dict[str, Any]) -> None:
    """Change nothing."""


def forge(path: Path, document: Edit = nothing, registry: Edit = nothing) -> None:
    """Change both files of a model as someone would who takes every digest again."""
    values = json.loads((path / "model.json").read_text())
    document(values)
    write_json(path / "model.json", values)
    values = json.loads((path / "registry.json").read_text())
    del values["checksum"]
    values["model_sha256"] = sha256_file(path / "model.json")
    registry(values)
    write_json(path / "registry.json", values | {"checksum": json_digest(values)})


def of(structure: str, /, **values: Any) -> Edit:
    """Return the change of an entry of the registry."""

    def edit(registry: dict[str, Any]) -> None:
        next(entry for entry in registry["entries"] if entry["name"] == structure).update(values)

    return edit


@pytest.mark.parametrize(
    "outside", ["../victim.txt", "absolute", "structures/../../victim.txt", "model.json"]
)
def test_a_registry_cannot_have_a_file_outside_the_model_written(
    model_path: Path, stored: Path, tmp_path: Path, outside: str
) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    pack = Model.open(stored).export_pack("nucleolus", tmp_path / "pack.safetensors")
    file = str(victim) if outside == "absolute" else outside
    forge(model_path, registry=of("nucleolus", file=file))
    document = (model_path / "model.json").read_bytes()
    done = CliRunner().invoke(app, ["pack", "import", str(model_path), str(pack)])
    assert done.exit_code == 2
    assert "registry.json: its entry 'nucleolus': it names the file" in " ".join(done.output.split())
    assert victim.read_text() == "precious"
    assert (model_path / "model.json").read_bytes() == document


def _put(*keys: str, value: Any) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return edit


DOCUMENTS: dict[str, tuple[Edit, str]] = {
    "a width that is text": (_put("architecture", "width", value="x"), "the width 'x'"),
    "a width of 10^30": (_put("architecture", "width", value=10**30), "the width 1000000"),
    "a depth of 10^9": (_put("architecture", "depth", value=10**9), "the depth 1000000000"),
    "no architecture": (lambda d: d.pop("architecture"), "architecture is None"),
    "an unknown expert": (_put("architecture", "experts", value=["conv9"]), "'conv9' is no expert"),
    "experts that are text": (_put("architecture", "experts", value="conv3"), "architecture is"),
    "an expert that is a list": (_put("architecture", "experts", value=[["conv3"]]), "is no expert"),
    "a rank of many digits": (
        _put("architecture", "experts", value=["lowrank:" + "9" * 9000]),
        "architecture: Exceeds",
    ),
    "an unknown scope": (_put("architecture", "scope", value="all"), "scope is both or"),
    "a window of text": (_put("inference", "window", value="abc"), "window 'abc'"),
    "an overlap of 5": (_put("inference", "overlap", value=5), "overlap 5"),
    "no inference": (lambda d: d.pop("inference"), "inference is None"),
    "one voxel size": (_put("voxel_size", value=[0.29]), r"voxel_size is \[0.29\]"),
    "a voxel size of 0": (_put("voxel_size", value=[0.29, 0, 0.29]), "voxel_size is"),
    "no voxel size": (lambda d: d.pop("voxel_size"), "voxel_size is 'missing'"),
    "preprocessing of text": (_put("preprocessing", value="none"), "preprocessing is 'none'"),
    "no base structure": (_put("base_structures", value=[]), r"base_structures are \[\]"),
    "other base structures": (_put("base_structures", value=["golgi"]), r"base_structures are \['golgi'\]"),
    "base structures in another order": (
        _put("base_structures", value=["cell_membrane", "dna"]),
        "base_structures are",
    ),
    "another digest of the base": (_put("base", "digest", value="0" * 64), "base has the digest 00000000"),
    "no digest of the base": (_put("base", value={}), "base is {}"),
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_a_document_that_no_model_has_is_refused_with_its_key(model_path: Path, case: str) -> None:
    edit, why = DOCUMENTS[case]
    forge(model_path, document=edit)
    with pytest.raises(ModelError, match=rf"model\.json: .*{why}.*from a copy of the model"):
        Model.open(model_path)


def _double(registry: dict[str, Any]) -> None:
    registry["entries"].append(registry["entries"][-1])


def _out_of_order(registry: dict[str, Any]) -> None:
    registry["entries"].insert(2, registry["entries"].pop())


REGISTRIES: dict[str, tuple[Edit, str]] = {
    "no entries": (lambda r: r.update(entries=[]), "do not begin with a structure of the base"),
    "no base": (lambda r: r.update(entries=r["entries"][2:]), "do not begin with a structure of the base"),
    "entries that are numbers": (lambda r: r.update(entries=[1]), "lacks what a registry has"),
    "entries that are lists": (lambda r: r.update(entries=[[]]), "lacks what a registry has"),
    "a name that is a path": (of("dna", name="../x"), "structure name '../x' cannot be used"),
    "a name that is a number": (of("dna", name=5), "5 is no name of a structure"),
    "an unknown kind": (of("dna", kind="other"), "its kind is 'other'"),
    "a base that is an addition": (of("nucleolus", kind="base"), "its kind is 'base'"),
    "a size of text": (of("nucleolus", bytes="many"), "its bytes are 'many'"),
    "no SHA-256": (of("nucleolus", sha256=""), "its sha256 is ''"),
    "no digest": (of("nucleolus", digest=None), "one of its digests"),
    "a million threads": (
        lambda r: r["entries"][0]["proof"]["environment"].update(threads=10**6),
        "1000000 threads",
    ),
    "a need that is not there": (
        lambda r: r["entries"][-1]["needs"][0].update(name="golgi"),
        "the needs of 'mitochondria' are inconsistent",
    ),
    "a need that comes later": (_out_of_order, "'mitochondria': it needs 'nucleolus', which does not stand"),
    "a structure twice": (_double, "have 'mitochondria' twice"),
    "metrics that are a list": (of("nucleolus", metrics=[]), "no JSON object"),
    "reliability that is a list": (of("nucleolus", reliability=[]), "lacks what a registry has"),
    "a number of infinite size": (
        lambda r: r["entries"][0]["proof"].update(float32_error=10**400),
        "lacks what a registry has",
    ),
    "a change without a number": (lambda r: r["history"][1].update(number=7), "change 2 of its history"),
    "a change to what comes later": (
        lambda r: r["history"][1].update(action="rollback", to=3),
        "goes back to 3",
    ),
    "a change to text": (lambda r: r["history"][1].update(action="rollback", to="x"), "goes back to 'x'"),
    "a history without a beginning": (
        lambda r: r.update(history=r["history"][1:]),
        "change 1 of its history",
    ),
}


@pytest.mark.parametrize("case", REGISTRIES)
def test_a_registry_that_no_model_has_is_refused_with_its_entry(model_path: Path, case: str) -> None:
    edit, why = REGISTRIES[case]
    forge(model_path, registry=edit)
    with pytest.raises(ModelError, match=rf"registry\.json.*{why}"):
        Model.open(model_path)
    with pytest.raises(ModelError, match=rf"registry\.json.*{why}"):
        verify_model(model_path)


@pytest.mark.parametrize(
    "values",
    [
        {"width": 100_000},
        {"depth": 32},
        {"experts": ["conv3"] * 100_000},
        {"experts": ["conv3", "conv1", "avg3", "conv5"]},
        {"experts": ["conv3", "conv1", "lowrank:4000000000"]},
    ],
    ids=["width", "depth", "many experts", "another expert", "a rank of billions"],
)
def test_a_network_larger_than_its_file_is_never_built(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    forge(model_path, document=lambda document: document["architecture"].update(values))
    model = Model.open(model_path)

    def built(*_: object, **__: object) -> None:
        raise AssertionError("a network was built")

    monkeypatch.setattr("repmode_cl.store.load_network.RepModeUNet", built)
    with pytest.raises(ModelError, match=r"base\.safetensors is damaged: its tensor '.*experts.*' is"):
        model.network()


@pytest.mark.parametrize(
    ("spec", "why"),
    [({"expert": "lowrank:4000000000"}, "no expert of rank"), ({"expert": "conv9"}, "'conv9' is no expert")],
)
def test_an_addition_larger_than_its_file_is_never_built(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any], why: str
) -> None:
    whole = json.loads((model_path / "registry.json").read_text())
    before = next(entry["spec"] for entry in whole["entries"] if entry["name"] == "nucleolus")
    forge(model_path, registry=of("nucleolus", spec=before | spec))

    def added(*_: object, **__: object) -> None:
        raise AssertionError("a structure was added")

    monkeypatch.setattr(RepModeUNet, "add_structure", added)
    with pytest.raises(RepmodeError, match=why):
        Model.open(model_path).network(["nucleolus"])


@pytest.mark.parametrize("scope", ["both", "encoder", "decoder"])
@pytest.mark.parametrize("depth", [1, 3])
def test_the_blocks_of_an_architecture_are_those_of_its_network(scope: Any, depth: int) -> None:
    experts = ("conv3", "conv1", "conv3", "avg5", "lowrank:2")
    architecture = Architecture(width=2, depth=depth, experts=experts, scope=scope)
    network = RepModeUNet(architecture, ("dna",))
    blocks = list(architecture.blocks())
    assert [name for name, *_ in blocks] == [name for name, _ in network.named_mode_blocks()]
    for (_, c_in, c_out, specs), (_, block) in zip(blocks, network.named_mode_blocks(), strict=True):
        assert (c_in, c_out) == (block.c_in, block.c_out)
        made = [{key: tuple(w.shape) for key, w in one.named_parameters()} for one in block.experts.values()]
        assert made == [expert_shapes(spec, c_in, c_out) for spec in specs]


@pytest.mark.parametrize("scope", ["encoder", "decoder"])
def test_ranks_are_not_expected_in_blocks_without_experts(tmp_path: Path, scope: Any) -> None:
    network = RepModeUNet(Architecture(2, 1, ("conv3", "conv1"), scope=scope), ("dna",))
    network.add_structure("nucleolus", AdditionSpec(expert="lowrank:2"))
    settings = {"window": [8, 8, 8], "overlap": 0.5, "batch": 1}
    model = Model.create(
        tmp_path / "model",
        network.eval(),
        voxel_size=None,
        preprocessing={"order": 1},
        inference=settings,
    )
    pack = model.export_pack("nucleolus", tmp_path / "pack.safetensors")
    model.remove("nucleolus")
    model.gc()
    model.import_pack(pack)
    assert Model.open(tmp_path / "model").verify().ok


def test_forging_nothing_leaves_a_model_that_opens(model_path: Path) -> None:
    copy = Path(shutil.copytree(model_path, model_path.with_name("copy")))
    forge(copy)
    assert Model.open(copy).architecture == ARCHITECTURE
    assert verify_model(copy).ok
