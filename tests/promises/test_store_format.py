"""Every format version that was ever written is read, and edited files are not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stored_model import another

from repmode_cl.errors import ModelError
from repmode_cl.model import Model
from repmode_cl.store import verify_model
from repmode_cl.utils.atomic_files import write_json
from repmode_cl.utils.tensor_digests import json_digest, tensor_digest

FIXTURES = Path(__file__).parents[1] / "fixtures"

#: What both versions of the living model hold: the same structures, stored by different revisions.
LIVE = {
    "dna": (
        "9e06faee386b9f6a17493d47282282717adffc74ed777be43985b0a0e866448a",
        -0.226770,
        0.094131,
    ),
    "cell_membrane": (
        "9e06faee386b9f6a17493d47282282717adffc74ed777be43985b0a0e866448a",
        -0.183276,
        0.062413,
    ),
    "nucleolus": (
        "27793985e6aaec23f5418e8bc4611c84e4b66d9a56a73b1e629f77f78cd3ce10",
        -0.255238,
        0.105275,
    ),
    "tight_junction": (
        "d32c3621f8676f0fa0e01af73543bed9d2f9b603b4b858e042c57a5f9b94684e",
        -0.256889,
        0.096599,
    ),
    "mitochondria": (
        "ff80e8ba59cf46c2ae3b3c80ba8cb1131c48c1785d5711089271f3886e461c05",
        -0.055906,
        0.035945,
    ),
}
#: Model directories as programs wrote them when their version was the present one, by `stored_model`: the first two by
#: `make_model` (one of them all dead ReLUs), the others by `make_history`, `make_kinds` and `make_data_set`. Of each
#: structure: the digest of its tensors, without the facts that its recorded digest covers too, mean and standard
#: deviation of what it predicts of `image`.
WRITTEN: dict[str, dict[str, tuple[str, float, float]]] = {
    "model-v1": {
        "dna": (
            "8871fe50474596cee4978a14f3f41108c6c5ddcf5be581687a77e2ecd309e2d2",
            0.000000,
            0.000000,
        ),
        "cell_membrane": (
            "8871fe50474596cee4978a14f3f41108c6c5ddcf5be581687a77e2ecd309e2d2",
            0.000000,
            0.000000,
        ),
        "nucleolus": (
            "155607101430de0447f635a72cf8a1e08926581338a518d32dfc024e38ebddcb",
            0.000000,
            0.000000,
        ),
        "tight_junction": (
            "d32c3621f8676f0fa0e01af73543bed9d2f9b603b4b858e042c57a5f9b94684e",
            0.000000,
            0.000000,
        ),
        "mitochondria": (
            "b003e7542777347cd3689637d64a8fdc4a0455aa7fd2693407bac265af495f9d",
            0.000000,
            0.000000,
        ),
    },
    "model-v1-live": LIVE,
    "model-v2": {
        **LIVE,
        "desmosome": (
            "10562548c6124035223984a11237b0080ccd398501772bce4ded62cc318ffd0b",
            -0.019003,
            0.034472,
        ),
    },
    "model-v3": {
        "dna": (
            "9e06faee386b9f6a17493d47282282717adffc74ed777be43985b0a0e866448a",
            -0.555676,
            0.211163,
        ),
        "cell_membrane": (
            "9e06faee386b9f6a17493d47282282717adffc74ed777be43985b0a0e866448a",
            -0.575711,
            0.203551,
        ),
        "nucleolus": (
            "2c018a8cc3f07921a425c10b267673b2115d8e4ced80eecd59ab875e221a83de",
            116.329887,
            58.992260,
        ),
        "tight_junction": (
            "f7604d4d83510dbe1cc8d9c37b3d3909d0783faad677c35cd396ea948b5f1b72",
            -0.477720,
            0.209997,
        ),
        "mitochondria": (
            "9da021ac0d6fb6e1f5d9ed3d8bf91e12c7f08f3438fb76d1656307b80823c4f9",
            -0.914724,
            0.218503,
        ),
    },
    "model-v4": {name: LIVE[name] for name in ("dna", "cell_membrane", "nucleolus")},
}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    # Without a generator's help, so that it is the same whatever numpy does.
    places = np.arange(9 * 12 * 10, dtype=np.float64).reshape(9, 12, 10)
    return (((places * 7919) % 1009) / 291.0 - 1.73).astype(np.float32)


@pytest.mark.parametrize("version", WRITTEN)
def test_models_of_every_format_version_predict_as_before(version: str, image: np.ndarray) -> None:
    path = FIXTURES / version
    model = Model.open(path)
    assert model.structures == tuple(WRITTEN[version])
    network = model.network()
    for name, (digest, mean, deviation) in WRITTEN[version].items():
        state = network.structure_state(name) if name in network.additions else network.base_state()
        assert tensor_digest(state) == digest
        prediction = model.predict(image, name)
        assert float(prediction.mean()) == pytest.approx(mean, rel=1e-4, abs=1e-6)
        assert float(prediction.std()) == pytest.approx(deviation, rel=1e-4, abs=1e-6)
    # Bit for bit where the environment is the recorded one, else to the stated tolerance.
    report = verify_model(path)
    assert report.ok, report
    assert not (path / ".lock").exists()


@pytest.mark.parametrize("version", WRITTEN)
def test_the_first_change_upgrades_only_the_registry(version: str, tmp_path: Path) -> None:
    path = Path(shutil.copytree(FIXTURES / version, tmp_path / "model"))
    files = {file: file.read_bytes() for file in path.rglob("*.safetensors")}
    files[path / "model.json"] = (path / "model.json").read_bytes()
    model = Model.open(path)
    history, entries, kept = model.history, model.entries, model.kept
    model.add("golgi_apparatus", another(model, "golgi_apparatus", 0))
    again = Model.open(path)
    # Version 3 where it holds kinds of additions that version 2 does not know.
    newest = 3 if version == "model-v3" else 2
    assert json.loads((path / "registry.json").read_text())["version"] == newest
    assert again.history[:-1] == history
    assert [change.action for change in again.history][-1] == "add"
    assert {name: again.entries[name] for name in entries} == entries
    assert again.kept == kept
    assert all(file.read_bytes() == data for file, data in files.items())
    assert verify_model(path).ok


def test_a_model_without_a_history_gets_one_from_its_entries() -> None:
    model = Model.open(FIXTURES / "model-v1")
    done = [(change.number, change.action, change.structure) for change in model.history]
    assert done == [
        (1, "create", None),
        (2, "add", "nucleolus"),
        (3, "add", "tight_junction"),
        (4, "add", "mitochondria"),
    ]
    for change in model.history[1:]:
        entry = model.entries[change.structure or ""]
        assert (change.time, change.digest, change.spec) == (entry.created, entry.digest, entry.spec)
        assert (change.metrics, change.provenance) == (entry.metrics, entry.provenance)
    assert model.history[0].metrics["dna"] == {"r2": 0.7}
    assert [name for name, _ in model.state_after(3)] == [
        "dna",
        "cell_membrane",
        "nucleolus",
        "tight_junction",
    ]


# -- the text of the registry ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("e-07", "E-07", 1),
        lambda text: text.replace("e-07", "e997", 1),
        lambda text: text.replace('"r2": 0.7', '"r2": NaN', 1),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace('": ', '":', 1),
        lambda text: text + "\n",
        lambda text: text.replace('"version": 2', '"version": 2,\n  "version": 2'),
        lambda text: text.replace("desmosome", "\\u0064esmosome", 1),
        lambda text: text.replace('"parameters": 1554', '"parameters": 1555', 1),
    ],
)
def test_any_edit_of_the_registry_text_is_refused(tmp_path: Path, edit: Callable[[str], str]) -> None:
    path = Path(shutil.copytree(FIXTURES / "model-v2", tmp_path / "model"))
    text = (path / "registry.json").read_text()
    assert edit(text) != text
    (path / "registry.json").write_bytes(edit(text).encode())
    with pytest.raises(ModelError, match=r"registry\.json is damaged .*from a copy"):
        Model.open(path)


@pytest.mark.parametrize("version", [0, 5, 2.0, True, "2", None])
def test_an_unknown_version_is_refused(tmp_path: Path, version: object) -> None:
    path = Path(shutil.copytree(FIXTURES / "model-v2", tmp_path / "model"))
    values = json.loads((path / "registry.json").read_text()) | {"version": version}
    del values["checksum"]
    write_json(path / "registry.json", values | {"checksum": json_digest(values)})
    with pytest.raises(
        ModelError, match=r"registry\.json has format version .* reads versions 1, 2, 3 and 4"
    ):
        Model.open(path)


def test_a_file_of_an_unknown_version_is_not_loaded(tmp_path: Path) -> None:
    path = Path(shutil.copytree(FIXTURES / "model-v2", tmp_path / "model"))
    file = path / Model.open(path).entries["nucleolus"].file
    data = file.read_bytes()
    assert data.count(b'"version":"2"') == 1
    file.write_bytes(data.replace(b'"version":"2"', b'"version":"3"'))
    with pytest.raises(ModelError, match=rf"{file.name} .* of version '3'.*reads .* of version 1 and 2"):
        Model.open(path).network(["nucleolus"])


def test_an_edited_registry_with_a_valid_checksum_reports_its_missing_key(tmp_path: Path) -> None:
    path = Path(shutil.copytree(FIXTURES / "model-v2", tmp_path / "model"))
    values = json.loads((path / "registry.json").read_text())
    del values["checksum"], values["history"][2]["action"]
    write_json(path / "registry.json", values | {"checksum": json_digest(values)})
    with pytest.raises(ModelError, match=r"registry\.json lacks what a registry has \('action'\)"):
        Model.open(path)
