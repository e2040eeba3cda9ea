"""Adding and comparing prepare images as the base's were, and check the size of their voxels first."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from tiny_addition import dry_run
from tiny_run import SHAPE, changed, tiny
from typer.testing import CliRunner

from repmode_cl.benchmark import run_benchmark
from repmode_cl.cli.app import app
from repmode_cl.config import (
    Config,
    DataConfig,
    PatchConfig,
    PreprocessingConfig,
    StrategyConfig,
    StreamConfig,
)
from repmode_cl.data.manifest import read_manifest, write_manifest
from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.data.preprocessing.prepare import prepare
from repmode_cl.data.voxel_size_check import trained_voxels
from repmode_cl.errors import ManifestError
from repmode_cl.model import Model
from repmode_cl.workflows.add_structure import add_structure
from repmode_cl.workflows.compare_structure import compare_structure
from repmode_cl.workflows.options import TrainingOverrides
from repmode_cl.workflows.train_base import train_base
from repmode_cl.workflows.training_settings import (
    base_provenance,
    open_manifest,
    run_config,
    training_config,
)

OWN = (0.4, 0.2, 0.2)
UNUSUAL = PreprocessingConfig(
    voxel_size=(0.29, 0.29, 0.29), axes="xy", order=3, anti_alias=True, normalise="percentiles",
    percentiles=(1.0, 99.0), empty="zeros",
)  # fmt: skip


def stated(manifest: Path, path: Path, *sizes: tuple[float, float, float] | None) -> Path:
    """Write a manifest whose rows state voxel sizes, the last for all that follow."""
    rows = read_manifest(manifest).rows
    given = [*sizes, *[sizes[-1]] * len(rows)][: len(rows)]
    write_manifest(path, [replace(row, voxel_size=size) for row, size in zip(rows, given, strict=True)])
    return path


@pytest.fixture(scope="module")
def known(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stated(manifest, tmp_path_factory.mktemp("known") / "manifest.csv", OWN)


@pytest.fixture(scope="module")
def settings(known: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = tiny(known, tmp_path_factory.mktemp("runs"))
    return changed(
        config,
        data=DataConfig(manifest=str(known), preprocessing=UNUSUAL),
        stream=StreamConfig(base=("dna",)),
        patch=PatchConfig(size=(4, 8, 8), foreground=0.5),
        training=config.training.model_copy(update={"steps": 2, "base_steps": 2}),
    )


@pytest.fixture(scope="module")
def model(settings: Config, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return train_base(settings, tmp_path_factory.mktemp("model") / "model")


def test_a_trained_model_keeps_how_its_images_were_prepared(
    model: Model, settings: Config, known: Path
) -> None:
    document = json.loads((model.path / "model.json").read_text(encoding="utf-8"))
    assert document["version"] == 2
    assert document["preprocessing"] == {
        "normalisation": "z-score between percentiles",
        "order": 3,
        "axes": "xy",
        "anti_alias": True,
        "percentiles": [1.0, 99.0],
        "empty": "zeros",
    }
    shown = CliRunner().invoke(app, ["show", str(model.path)]).output.splitlines()
    assert "trained on images of voxels of 0.4 x 0.2 x 0.2 um (z, y, x)" in shown
    assert (
        "images are prepared with order 3, axes xy, anti_alias True, percentiles 1-99, empty zeros" in shown
    )
    seen = trained_voxels(model.entries["dna"].provenance, model.voxel_size)
    assert (seen.smallest, seen.largest, seen.unknown) == (OWN, OWN, 0)
    overrides = TrainingOverrides(steps=2, device="cpu", precision="float32")
    training = training_config(base_provenance(model), overrides)
    config = run_config(
        model, open_manifest(known, "nucleolus"), training, name="add", cache=known.parent / "cache"
    )
    assert config.data.preprocessing == UNUSUAL
    assert config.patch == settings.patch


def test_an_addition_is_prepared_alike_and_records_its_voxel_sizes(
    model: Model, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, shares = copy(model, tmp_path), cropped(monkeypatch)
    result = add_structure(
        path, "nucleolus", known, steps=2, device="cpu", cache=tmp_path / "cache", init_from="best"
    )
    assert shares == [0.5, 0.5], "patches of the training, and the sample of its initialisation"
    assert not any("voxel" in note for note in result.notes)
    provenance = Model.open(path).entries["nucleolus"].provenance
    assert provenance["foreground"] == 0.5
    assert provenance["voxel_sizes"] == {"unknown": 0, "smallest": list(OWN), "largest": list(OWN)}
    manifest = read_manifest(known)
    row = manifest.for_structure("nucleolus")[0]
    [sample] = prepare(replace(manifest, rows=(row,)), {row.number: "train"}, UNUSUAL, tmp_path / "cache")
    assert sample.shape == (4, 11, 11)
    made = {file.name for file in (tmp_path / "cache").rglob("*.npy")}
    assert len(made) == 12, "nothing was prepared in another way"
    assert {sample.signal.name, sample.target.name} <= made
    assert np.isfinite(list(result.metrics.values())).all()


def test_a_benchmark_centres_crops_on_foreground_in_earlier_images_too(
    settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = cropped(monkeypatch)
    run_benchmark(
        changed(
            settings,
            output=str(tmp_path),
            stream=StreamConfig(base=("dna",), order=("nucleolus",)),
            strategies=(StrategyConfig(name="cumulative"),),
        )
    )
    assert shares == [0.5, 0.5, 0.5], "two experiences, and the earlier images of the second"


def cropped(patch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that every sequence of crops made from now on adds its share of centred ones to."""
    shares: list[float] = []
    init = PatchDataset.__init__

    def spy(self: PatchDataset, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        shares.append(self.foreground)

    patch.setattr(PatchDataset, "__init__", spy)
    return shares


def copy(model: Model, folder: Path) -> Path:
    return Path(shutil.copytree(model.path, folder / "model"))


@pytest.fixture
def odd(known: Path, tmp_path: Path) -> Path:
    """Make a manifest in which the first six rows are fine, one is coarse, and the others say nothing."""
    return stated(known, tmp_path / "odd.csv", *[OWN] * 6, (0.4, 0.65, 0.65), None)


def test_images_of_other_voxels_are_refused_before_anything_is_written(
    model: Model, odd: Path, tmp_path: Path
) -> None:
    path = copy(model, tmp_path)
    before = sorted(path.rglob("*"))
    with pytest.raises(ManifestError) as caught:
        add_structure(path, "nucleolus", odd, steps=2, device="cpu")
    message = str(caught.value)
    assert "odd.csv" in message
    assert "voxel_size_zyx" in message
    assert "no voxel size is stated" in message
    assert "--force" in message
    with pytest.raises(ManifestError, match="voxels of another size"):
        compare_structure(path, "nucleolus", odd, steps=2, device="cpu", out=tmp_path / "compared")
    assert not (tmp_path / "compared").exists()
    assert sorted(path.rglob("*")) == before
    command = ["add", str(path), "--structure", "nucleolus", "--data", str(odd), "--steps", "2"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "no voxel size is stated" in result.output
    dry = dry_run(path, odd, steps=2, device="cpu")
    assert not dry.ok
    assert any(problem.column == "voxel_size_zyx" for problem in dry.problems)
    assert sorted(path.rglob("*")) == before


def test_a_dry_run_treats_constant_images_as_training_does(model: Model, known: Path, tmp_path: Path) -> None:
    path = copy(model, tmp_path)
    tifffile.imwrite(tmp_path / "flat.tif", np.full(SHAPE, 7, "float32"), photometric="minisblack")
    flat = [
        replace(row, target=tmp_path / "flat.tif", target_channel=None)
        for row in read_manifest(known).for_structure("nucleolus")
    ]
    write_manifest(tmp_path / "flat.csv", flat)
    dry = dry_run(path, tmp_path / "flat.csv", steps=2, device="cpu")
    assert len(dry.problems) == len(flat) - dry.images["train"] > 0
    assert "would be in the split" in dry.problems[0].message
    write_manifest(tmp_path / "flat.csv", [replace(row, split="train") for row in flat])
    assert dry_run(path, tmp_path / "flat.csv", steps=2, device="cpu").ok


def test_force_uses_the_images_and_notes_it(model: Model, odd: Path, tmp_path: Path) -> None:
    path = copy(model, tmp_path)
    assert dry_run(path, odd, steps=2, device="cpu", force=True).ok
    command = ["add", str(path), "--structure", "nucleolus", "--data", str(odd), "--steps", "2", "--force"]
    result = CliRunner().invoke(app, [*command, "--batch-size", "2"])
    assert result.exit_code == 0, result.output
    assert "used anyway, because of force" in result.output
    provenance = Model.open(path).entries["nucleolus"].provenance
    assert any("used anyway, because of force" in note for note in provenance["notes"])
    assert provenance["voxel_sizes"]["unknown"] > 0
