"""Statistics of training features and calibrations are stored with a structure; models of before stay as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forging import Forgery
from safetensors import safe_open
from stored_model import PARTS, base_network, liven

from repmode_cl.errors import ModelError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec, RepModeUNet
from repmode_cl.store.reliability import (
    BlockStatistics,
    Calibration,
    FeatureStatistics,
    Reliability,
    feature_groups,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"
CALIBRATION = Calibration(20, "test", ("z", "y"), 0.1, ((0.5, 1.0), (0.9, 2.5)))


def registry_version(model: Model) -> int:
    return int(json.loads((model.path / "registry.json").read_text())["version"])


def file_version(file: Path) -> str:
    with safe_open(file, framework="pt") as opened:
        return str(opened.metadata()["version"])


def reliability_of(network: RepModeUNet) -> Reliability:
    blocks = tuple(
        BlockStatistics(name, *((0.5,) * feature_groups(block.c_out) for _ in range(4)))
        for name, block in network.named_mode_blocks()
    )
    return Reliability(FeatureStatistics((8, 8, 8), 3, 12, 1.0, 1.5, blocks), CALIBRATION)


def added(model: Model, reliability: bool, *, replace: bool = False, seed: int = 0) -> None:
    network = model.network([])
    network.add_structure("golgi", AdditionSpec("conv1"), seed=seed)
    liven(network, ".own.golgi.")
    records = reliability_of(network) if reliability else None
    model.add("golgi", network, metrics={"r2": 0.5}, replace=replace, reliability=records)


def test_a_base_has_them_and_its_digests_are_those_without(tmp_path: Path) -> None:
    network = base_network()
    records = reliability_of(network)
    plain = Model.create(tmp_path / "plain", network, **PARTS)
    model = Model.create(tmp_path / "model", network, **PARTS, reliability={"dna": records})
    assert (registry_version(plain), registry_version(model)) == (2, 4)
    for name in ("model.json", "base.safetensors"):
        assert (plain.path / name).read_bytes() == (model.path / name).read_bytes()
    opened = Model.open(model.path)
    assert opened.entries["dna"].reliability == records
    assert opened.entries["cell_membrane"].reliability is None
    assert "reliability" not in opened.entries["cell_membrane"].to_json()
    assert opened.verify().bit_identical


def test_packs_replace_and_rollback_carry_them(model_path: Path, tmp_path: Path) -> None:
    other = Model.open(shutil.copytree(model_path, tmp_path / "other"))
    model = Model.open(model_path)
    digests = {name: entry.digest for name, entry in model.entries.items()}
    files = {path.name: path.read_bytes() for path in (model_path / "structures").iterdir()}
    assert registry_version(model) == 2
    added(model, reliability=True)
    assert registry_version(model) == 4
    assert file_version(model_path / model.entries["golgi"].file) == "4"
    records = Model.open(model_path).entries["golgi"].reliability
    assert records == reliability_of(model.network())
    assert {name: model.entries[name].digest for name in digests} == digests
    assert all((model_path / "structures" / name).read_bytes() == data for name, data in files.items())

    taken = other.import_pack(model.export_pack("golgi", tmp_path / "golgi.safetensors"))
    assert taken.status == "bit-identical"
    assert taken.entry.reliability == records
    assert registry_version(other) == 4
    assert other.verify().bit_identical

    first = model.entries["golgi"].digest
    added(model, reliability=False, replace=True, seed=1)
    assert model.entries["golgi"].reliability is None
    assert registry_version(model) == 4  # the version that is kept has them
    model.rollback(len(model.history) - 1)
    assert (model.entries["golgi"].digest, model.entries["golgi"].reliability) == (first, records)
    assert model.verify().bit_identical
    model.remove("golgi")
    model.gc()
    assert registry_version(model) == 2

    # What was recorded here of a version counts: its missing file comes back, with these records.
    file = other.path / other.entries["golgi"].file
    file.unlink()
    assert other.import_pack(tmp_path / "golgi.safetensors").restored
    assert other.verify().bit_identical


def test_the_digest_of_a_structure_does_not_cover_them(model_path: Path, tmp_path: Path) -> None:
    copy = Model.open(shutil.copytree(model_path, tmp_path / "copy"))
    model = Model.open(model_path)
    added(model, reliability=True)
    added(copy, reliability=False)
    assert model.entries["golgi"].digest == copy.entries["golgi"].digest
    assert file_version(copy.path / copy.entries["golgi"].file) == "2"


def test_a_model_of_before_opens_as_it_is_and_has_none(tmp_path: Path) -> None:
    path = Path(shutil.copytree(FIXTURES / "model-v2", tmp_path / "model"))
    before = (path / "registry.json").read_bytes()
    model = Model.open(path)
    assert all(entry.reliability is None for entry in model.entries.values())
    assert (path / "registry.json").read_bytes() == before


def _set(*keys: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_set("features", "blocks", 0, 2, to=[-1.0, 0.5]), "is not above 0"),
        (_set("features", "blocks", 0, 1, to=[0.5]), "are not four numbers for each group"),
        (_set("features", "blocks", 0, 0, to="decoder.9"), "of a network with other blocks"),
        (_set("features", "blocks", 0, 1, to=[True, 0.5]), "True is no finite number"),
        (_set("features", "limit", to=0.5), "are not in order"),
        (_set("features", "images", to=0), "at least 1"),
        (_set("features", "windows", to=2.0), "2.0 is no whole number"),
        (_set("features", "window", to=[8, 8]), "its entry lacks"),
        (_set("features", "more", to=1), "its entry is not what an entry of this version holds"),
        (_set("calibration", "factors", to=[[0.9, 2.0], [0.5, 1.0]]), "coverages and factors increase"),
        (_set("calibration", "flips", to=["t"]), "flips are axes"),
        (_set("calibration", "floor", to=-1.0), "a floor above 0"),
        (_set("calibration", "split", to="x" * 100), "no short text"),
        (_set("more", to={}), "its entry is not what an entry of this version holds"),
        (_set("features", to=None), "its entry is not what an entry of this version holds"),
    ],
)
def test_forged_records_are_refused(
    model_path: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], why: str
) -> None:
    model = Model.open(model_path)
    added(model, reliability=True)
    forgery = Forgery.of(model.export_pack("golgi", tmp_path / "golgi.safetensors"))
    model.remove("golgi")
    change(forgery.entry["reliability"])
    before = (model_path / "registry.json").read_bytes()
    with pytest.raises(ModelError) as caught:
        model.import_pack(forgery.write(tmp_path / "forged.safetensors"))
    assert "is refused" in str(caught.value)
    assert why in str(caught.value)
    assert (model_path / "registry.json").read_bytes() == before


def test_a_version_that_does_not_fit_is_refused(model_path: Path, tmp_path: Path) -> None:
    model = Model.open(model_path)
    added(model, reliability=True)
    pack = model.export_pack("golgi", tmp_path / "golgi.safetensors")
    model.remove("golgi")
    forgery = Forgery.of(pack)
    forgery.version = "2"
    with pytest.raises(ModelError, match="has format version '2', and what it holds is of version 4"):
        model.import_pack(forgery.write(tmp_path / "a.safetensors"))
    forgery = Forgery.of(pack)
    del forgery.entry["reliability"]
    with pytest.raises(ModelError, match="has format version '4', and what it holds is of version 2"):
        model.import_pack(forgery.write(tmp_path / "b.safetensors"))
    values = json.loads((model_path / "registry.json").read_text())
    assert values["version"] == 4  # the removed version is kept
