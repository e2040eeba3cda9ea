"""A model is shared with a card that hubs read, fetched from a hub by revision, checked, and not changed there."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hub_server import Hub, serve_hub
from huggingface_hub import ModelCard, constants
from stored_model import another
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.errors import ModelError, RepmodeError
from repmode_cl.export.description import Attribution, Citation, Person, parse_citation, parse_person
from repmode_cl.export.model_card import model_card, write_card
from repmode_cl.inference.predict_file import predict_file
from repmode_cl.model import Model
from repmode_cl.store.hub import is_hub_address
from repmode_cl.store.signatures import sign_model, verify_signatures

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        template = served.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield served


def test_a_model_is_fetched_by_revision_and_predicts_the_same(hub: Hub, stored: Path, tmp_path: Path) -> None:
    local = Model.open(shutil.copytree(stored, tmp_path / "local"))
    sign_model(local.path, KEY)
    (local.path / "evil.pkl").write_bytes(b"cos\nsystem\n")
    first = hub.publish("lab/cells", local.path, "main", "v1")
    model = Model.open("hf://lab/cells@v1")
    assert model.title == f"lab/cells@{first[:12]}"
    assert model.structures == local.structures
    volume = np.random.default_rng(0).normal(size=(9, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(
        model.predict(volume, "mitochondria"), local.predict(volume, "mitochondria")
    )
    # By name, and nothing else of the repository.
    assert set(hub.requested) == {
        "registry.json",
        "model.json",
        "base.safetensors",
        "README.md",
        *(entry.file for entry in local.entries.values()),
        *(f"signatures/{number:04d}.json" for number in range(1, 7)),
    }
    assert verify_signatures(model.path, [KEY.public_key()]).ok
    # Another revision is another copy; the first one stays what it was.
    grown = Model.open(shutil.copytree(local.path, tmp_path / "grown"))
    grown.add("desmosome", another(grown, "desmosome", 0))
    hub.publish("lab/cells", grown.path, "main")
    assert "desmosome" in Model.open("hf://lab/cells").structures
    assert Model.open(f"hf://lab/cells@{first}").structures == local.structures
    # A path that was made of the address has one slash less.
    assert Model.open(Path("hf://lab/cells@v1")).structures == local.structures
    for change in (
        lambda: model.remove("mitochondria"),
        lambda: model.gc(),
        lambda: model.add("er", another(model, "er", 0)),
        lambda: model.pending("er"),
        lambda: sign_model(model.path, KEY),
        lambda: write_card(model, Attribution()),
    ):
        with pytest.raises(
            ModelError, match=f"cached copy of hf://lab/cells@{first[:12]}, which is not changed"
        ):
            change()


def test_a_cached_copy_is_not_changed_by_another_name(
    hub: Hub, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("lab/cells", stored, "main")
    cached = Model.open("hf://lab/cells").path
    monkeypatch.chdir(cached)
    link = tmp_path / "link"
    link.symlink_to(cached, target_is_directory=True)
    moved = tmp_path / "models--lab--moved"
    moved.symlink_to(cached.parent.parent, target_is_directory=True)
    for place in (Path(), Path("structures/.."), link, moved / "snapshots" / cached.name):
        with pytest.raises(ModelError, match="which is not changed"):
            Model.open(place).remove("mitochondria")
    # A copy that kept the cache's links is one's own: a change replaces a link, and never what it leads to.
    own = tmp_path / "own"
    for file in [file for file in cached.rglob("*") if file.is_file()]:
        (own / file.relative_to(cached)).parent.mkdir(parents=True, exist_ok=True)
        (own / file.relative_to(cached)).symlink_to(file.resolve())
    before = {file: file.read_bytes() for file in cached.rglob("*") if file.is_file()}
    Model.open(own).remove("mitochondria")
    assert {file: file.read_bytes() for file in cached.rglob("*") if file.is_file()} == before


def test_the_cache_serves_a_revision_without_the_hub(
    hub: Hub, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.publish("lab/cells", stored, "main")
    path = Model.open(f"hf://lab/cells@{commit}").path
    hub.repositories.clear()
    hub.requested.clear()
    assert Model.open(f"hf://lab/cells@{commit}").path == path
    assert hub.requested == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="hf://lab/other@main: cannot be fetched"):
        Model.open("hf://lab/other")


def test_the_commands_take_addresses(hub: Hub, stored: Path, tmp_path: Path) -> None:
    hub.publish("lab/cells", stored, "main")
    shown = CliRunner().invoke(app, ["show", "hf://lab/cells@main"])
    assert shown.exit_code == 0, shown.output
    assert "mitochondria" in shown.output
    checked = CliRunner().invoke(app, ["verify", "hf://lab/cells@main", "--level", "tensors"])
    assert checked.exit_code == 0, checked.output
    volume = np.random.default_rng(0).normal(size=(9, 8, 8)).astype(np.float32)
    np.save(tmp_path / "in.npy", volume)
    words = ["predict", "hf://lab/cells@main", "--structure", "dna", "--voxel-size", "0.29,0.29,0.29"]
    done = CliRunner().invoke(app, [*words, str(tmp_path / "in.npy"), str(tmp_path / "out.npy")])
    assert done.exit_code == 0, done.output
    predict_file(stored, "dna", tmp_path / "in.npy", tmp_path / "here.npy", voxel_size=(0.29, 0.29, 0.29))
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.load(tmp_path / "here.npy"))


def test_what_is_no_whole_model_is_refused(hub: Hub, stored: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(stored, tmp_path / "broken"))
    entry = Model.open(broken).entries["nucleolus"]
    content = bytearray((broken / entry.file).read_bytes())
    content[-1] ^= 1
    (broken / entry.file).write_bytes(content)
    hub.publish("lab/broken", broken, "main")
    with pytest.raises(ModelError, match=r"hf://lab/broken@main: .*nucleolus.* is damaged"):
        Model.open("hf://lab/broken")
    partial = Path(shutil.copytree(stored, tmp_path / "partial"))
    (partial / entry.file).unlink()
    hub.publish("lab/partial", partial, "main")
    with pytest.raises(ModelError, match=f"has no file {entry.file}, so that it is no whole model"):
        Model.open("hf://lab/partial")
    with pytest.raises(ModelError, match="hf://lab/nothing@main: cannot be fetched"):
        Model.open("hf://lab/nothing")
    with pytest.raises(ModelError, match="hf://lab/partial@v9: cannot be fetched"):
        Model.open("hf://lab/partial@v9")
    for address in ("hf://cells", "hf://lab/cells@", "hf://lab/cells/more", "hf://a b/c"):
        with pytest.raises(ModelError, match="the address of a model is hf://owner/name@revision"):
            Model.open(address)


@pytest.mark.parametrize("file", ["../../secret", "structures/payload.pkl", "evil.safetensors"])
def test_a_registry_that_names_other_files_fetches_nothing(
    hub: Hub, stored: Path, tmp_path: Path, file: str
) -> None:
    from dataclasses import replace

    from repmode_cl.store.registry import Registry

    hostile = Path(shutil.copytree(stored, tmp_path / "hostile"))
    registry = Registry.read(hostile)
    entries = (*registry.entries[:-1], replace(registry.entries[-1], file=file))
    replace(registry, entries=entries).write(hostile)
    hub.publish("lab/hostile", hostile, "main")
    with pytest.raises(ModelError, match="which no model has: it is refused"):
        Model.open("hf://lab/hostile")
    assert set(hub.requested) == {"registry.json", "model.json"}


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        RepmodeError, match=r"a model on the hub needs huggingface_hub: pip install .*\[hub\]"
    ):
        Model.open("hf://lab/cells")
    assert not is_hub_address("hf/lab/cells")


def test_a_card_has_the_header_that_hubs_read_and_disturbs_nothing(model_path: Path, tmp_path: Path) -> None:
    model = Model.open(model_path)
    model.add("desmosome", another(model, "desmosome", 0), metrics={"r2": 0.25, "pearson": 0.5})
    before = {path: path.read_bytes() for path in model_path.rglob("*") if path.is_file()}
    words = ["card", str(model_path), "--name", "lab/cells", "--author", "Ada Lovelace (London)"]
    more = ["--licence", "CC-BY-4.0", "--cite", "Lovelace, Notes, https://doi.org/10.1000/182"]
    done = CliRunner().invoke(app, [*words, *more, "--training-data", "Cells | of <the> lab"])
    assert done.exit_code == 0, done.output
    text = (model_path / "README.md").read_text(encoding="utf-8")
    card = ModelCard(text)
    assert card.data.library_name == "repmode-cl"
    assert card.data.license == "cc-by-4.0"
    assert card.data.pipeline_tag == "image-to-image"
    results = {(one.task_name, one.metric_name): one.metric_value for one in card.data.eval_results}
    assert results[("predict desmosome", "R2")] == 0.25
    assert results[("predict desmosome", "Pearson r")] == 0.5
    assert results[("predict dna", "R2")] == 0.7
    for part in (
        model.base_digest,
        f"`{model.entries['desmosome'].digest[:16]}`",
        "0.29 x 0.29 x 0.29 um",
        "Ada Lovelace (London)",
        "added: conv1, sees nucleolus, tight_junction",
        "Cells \\| of &lt;the> lab.",
        "repmode-cl predict hf://lab/cells@REVISION --structure dna",
        "Lovelace, Notes, https://doi.org/10.1000/182",
        "## Limits",
        "| added: conv1 | weak |",
        "- **desmosome**: weak: R2 0.250",
    ):
        assert part in text
    # Nothing else changed, and everything works as before.
    assert {p: p.read_bytes() for p in before} == before
    assert Model.open(model_path).verify("predictions").ok
    model.export_pack("desmosome", tmp_path / "desmosome.safetensors")
    model.remove("desmosome")
    assert CliRunner().invoke(app, ["card", str(model_path)]).exit_code == 0
    assert "desmosome" not in (model_path / "README.md").read_text(encoding="utf-8")
    assert "not stated" in (model_path / "README.md").read_text(encoding="utf-8")


def test_a_readme_of_somebody_is_not_replaced(model_path: Path) -> None:
    (model_path / "README.md").write_text("mine\n")
    done = CliRunner().invoke(app, ["card", str(model_path)])
    assert done.exit_code == 2
    assert "was not written by repmode-cl card" in done.output
    assert (model_path / "README.md").read_text() == "mine\n"
    assert CliRunner().invoke(app, ["card", str(model_path), "--name", "cells"]).exit_code == 2


def test_a_card_of_a_trained_model_tells_its_images(stored: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from repmode_cl.store.registry import Registry

    path = Path(shutil.copytree(stored, tmp_path / "told"))
    registry = Registry.read(path)
    ids = [f"{number:012x}" for number in range(6)]
    provenance = {
        "images": "ab" * 32,
        "voxel_sizes": {"unknown": 0, "smallest": [0.3, 0.1, 0.1], "largest": [0.3, 0.1, 0.1]},
        "splits": {
            "seed": 0, "test_fraction": 0.25, "val_fraction": 0.1,
            "train": " ".join(ids[:3]), "val": ids[3], "test": " ".join(ids[4:]),
        },
    }  # fmt: skip
    entries = tuple(replace(e, provenance=provenance) if e.name == "dna" else e for e in registry.entries)
    replace(registry, entries=entries).write(path)
    text = model_card(Model.open(path), Attribution())
    _, line = [line for line in text.splitlines() if line.startswith("- **dna**")]
    assert "Trained on 3 images, selected on 1, and tested on 2 held-out ones." in line
    assert "0.3 x 0.1 x 0.1" in line
    assert f"Digest of the images' contents: {'ab' * 32}." in line
    assert "Trained jointly with cell_membrane." in line
    header = yaml.safe_load(text.split("---")[1])
    assert "license" not in header
    for empty in ("", " "):
        assert model_card(Model.open(path), Attribution(licence=empty)) == text
    assert json.dumps(header)


def test_people_and_publications_are_read() -> None:
    assert parse_person("Ada Lovelace") == Person("Ada Lovelace")
    assert parse_person(" Ada Lovelace  (London, UK) ") == Person("Ada Lovelace", "London, UK")
    assert parse_citation("Notes, 1843, https://doi.org/10.1000/182") == Citation(
        "Notes, 1843", doi="10.1000/182"
    )
    assert parse_citation("Notes doi:10.1000/182") == Citation("Notes", doi="10.1000/182")
    assert parse_citation("Notes https://a.org/b") == Citation("Notes", url="https://a.org/b")
    for wrong in ("", "()", "a/b"):
        with pytest.raises(RepmodeError, match="--author"):
            parse_person(wrong)
    for wrong in ("Notes", "https://a.org", "Notes 10.1/x"):
        with pytest.raises(RepmodeError, match="--cite"):
            parse_citation(wrong)
