"""Sizes in a comparison are sizes of files, and it is resumed only with the images that it started with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_compare import NEW, SETTINGS, Interruption, cut_off, make_model
from tiny_run import make_manifest
from tiny_strategies import ARCHITECTURE

from repmode_cl.errors import ConfigError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec
from repmode_cl.store.staging import OUTCOME, REQUEST
from repmode_cl.strategies import PlainNetworks
from repmode_cl.workflows.compare_structure import compare_structure
from repmode_cl.workflows.comparison_methods import addition_bytes, network_bytes


def test_sizes_are_those_of_files(tmp_path: Path) -> None:
    plain = PlainNetworks(ARCHITECTURE, 3)
    plain.add(NEW, seed=0)
    save_file(
        {name: t.contiguous() for name, t in plain.state_dict().items()}, tmp_path / "plain.safetensors"
    )
    # No two writers have quite the same header.
    assert (
        abs(network_bytes(plain.state_dict(), tmp_path) - (tmp_path / "plain.safetensors").stat().st_size)
        <= 64
    )
    model = Model.open(make_model(tmp_path / "model"))
    network = model.network()
    network.add_structure(NEW, AdditionSpec(), seed=1)
    made = addition_bytes(model, NEW, network, tmp_path, provenance={}, metrics={})
    with torch.no_grad():
        network.structure_state(NEW)[next(iter(network.structure_state(NEW)))].fill_(float("nan"))
    # Of a diverged one there is no file.
    assert addition_bytes(model, NEW, network, tmp_path, provenance={}, metrics={}) == pytest.approx(
        made, rel=0.2
    )
    assert not (tmp_path / "scratch").exists()


def test_a_comparison_whose_images_changed_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "model")
    (tmp_path / "images").mkdir()
    manifest = make_manifest(tmp_path / "images")
    with monkeypatch.context() as patch:
        cut_off(patch, "FineTuning", 0)
        with pytest.raises(Interruption):
            compare_structure(model, NEW, manifest, out=tmp_path / "out", **{**SETTINGS, "steps": 1})
    # The same row, another content.
    shutil.copyfile(tmp_path / "images" / f"{NEW}1.tif", tmp_path / "images" / f"{NEW}0.tif")
    with pytest.raises(ConfigError, match=r"content or the split of 1 of its images changed .*--restart"):
        compare_structure(model, NEW, manifest, out=tmp_path / "out", **{**SETTINGS, "steps": 1})


def test_files_of_an_unfinished_training_keep_their_names() -> None:
    """Trainings begun by earlier versions are resumed and listed by these names."""
    assert (REQUEST, OUTCOME) == ("request.json", "outcome.json")
