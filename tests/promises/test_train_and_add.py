"""Training a base and adding to it: provenance, inherited settings, and resuming."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stored_model import PARTS
from tiny_addition import added, make_base
from tiny_run import BASE, changed, make_manifest, tiny
from typer.testing import CliRunner

from repmode_cl.benchmark import TrialsFailedError, run_benchmark
from repmode_cl.cli.app import app
from repmode_cl.config import Config, DataConfig, InferenceConfig, PatchConfig, StrategyConfig, StreamConfig
from repmode_cl.config.load import dump_config
from repmode_cl.data.manifest import read_manifest, write_manifest
from repmode_cl.errors import ConfigError, ModelError, StructureError
from repmode_cl.inference.unlike import score_volume
from repmode_cl.model import Model
from repmode_cl.nn import Architecture, RepModeUNet
from repmode_cl.store import record_files
from repmode_cl.strategies import StructureStrategy
from repmode_cl.utils.atomic_files import TEMPORARY_MARK
from repmode_cl.utils.locks import exclusive
from repmode_cl.workflows.add_structure import add_structure
from repmode_cl.workflows.train_base import train_base, training_folder


class Interruption(Exception):  # noqa: N818 - it stands for a power cut
    """Exception that ends a training in the middle."""


def configured(manifest: Path, folder: Path) -> Config:
    config = tiny(manifest, folder)
    training = config.training.model_copy(
        update={"batch_size": 4, "accumulate": 4, "precision": "auto", "activation_checkpointing": True}
    )
    return changed(config, stream=StreamConfig(base=BASE), training=training)


def amx(patch: pytest.MonkeyPatch, there: bool) -> None:
    patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: there)
    patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: there)


@pytest.fixture(scope="module")
def trained(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a base that was trained on a processor with bfloat16."""
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        amx(patch, True)
        return train_base(configured(manifest, folder), folder / "model").path


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "model"))


def cut_off(patch: pytest.MonkeyPatch, at: int) -> None:
    """Let every training end before step `at` is done."""
    step = StructureStrategy._train_step

    def interrupted(self: StructureStrategy, *args: object, **kwargs: object) -> None:
        if self.progress.step == at:
            raise Interruption
        step(self, *args, **kwargs)  # type: ignore[arg-type]

    patch.setattr(StructureStrategy, "_train_step", interrupted)


def check_reliability(model: Model, name: str) -> None:
    """Statistics and a calibration are of the structure's own images, and of the network that predicts it."""
    records, splits = model.entries[name].reliability, model.entries[name].provenance["splits"]
    assert records is not None
    assert records.features is not None
    assert records.calibration is not None
    assert records.features.images == len(splits["train"].split())
    assert records.calibration.images == len(splits["test"].split())
    assert (records.calibration.split, records.calibration.flips) == ("test", ("z", "y", "x"))
    volume = np.random.default_rng(0).normal(size=(16, 32, 32)).astype(np.float32)
    how = {key: model.inference[key] for key in ("window", "overlap")}
    assert score_volume(model.fused(name), volume, records.features, **how).score > 0


def test_a_model_records_how_its_base_was_trained(trained: Path) -> None:
    model = Model.open(trained)
    for name in BASE:
        provenance = model.entries[name].provenance
        assert (provenance["precision"], provenance["device"]) == ("bfloat16", "cpu")
        assert provenance["training"]["precision"] == "auto"
        assert provenance["training"]["accumulate"] == 4
        assert provenance["held_out"] == "test"
        assert model.entries[name].metrics.keys() >= {"mse", "r2"}
        evidence = provenance["evidence"][name]
        assert evidence["images"] >= evidence["groups"] >= 1
        assert model.entries[name].verdict.figures.images == evidence["images"]
        check_reliability(model, name)
    assert model.verify().bit_identical


def test_an_addition_is_trained_as_the_base_was(
    model: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # the rule would say float32
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)  # but bfloat16 can be had
    result = add_structure(model, "nucleolus", manifest, batch_size=6, steps=2)
    assert result.verified.ok
    assert not any("trained in" in note for note in result.notes)
    provenance = Model.open(model).entries["nucleolus"].provenance
    assert provenance["precision"] == "bfloat16"
    training = provenance["training"]
    assert (training["batch_size"], training["accumulate"]) == (6, 2)  # four micro-batches do not divide six
    assert training["activation_checkpointing"] is True
    check_reliability(Model.open(model), "nucleolus")


def test_a_note_tells_where_the_bases_precision_is_not_available(
    model: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    amx(monkeypatch, False)
    result = add_structure(model, "nucleolus", manifest, steps=2)
    [note] = [note for note in result.notes if "trained in" in note]
    assert note == (
        "the base was trained in bfloat16, for which this device has no instructions; nucleolus is trained in float32"
    )
    provenance = Model.open(model).entries["nucleolus"].provenance
    assert provenance["precision"] == "float32"
    assert note in provenance["notes"]


@pytest.mark.slow
def test_an_interrupted_base_is_resumed_in_its_precision(
    manifest: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine whose rule says otherwise: what was resolved once is what counts."""
    config = configured(manifest, trained.parent)
    with monkeypatch.context() as patch:
        amx(patch, True)
        cut_off(patch, 5)
        with pytest.raises(Interruption):
            train_base(config, tmp_path / "model")
    amx(monkeypatch, False)
    model = train_base(config, tmp_path / "model")
    assert model.entries["dna"].provenance["precision"] == "bfloat16"
    before = Model.open(trained)
    assert model.base_digest == before.base_digest
    assert model.entries["dna"].metrics == before.entries["dna"].metrics


def test_another_configuration_is_not_resumed(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(manifest, tmp_path)
    other = changed(config, training=config.training.model_copy(update={"steps": 9}))
    with monkeypatch.context() as patch:
        cut_off(patch, 0)
        with pytest.raises(Interruption):
            train_base(other, tmp_path / "model")  # nothing was learned: it is in nobody's way
    capsys.readouterr()
    cut_off(monkeypatch, 5)
    with pytest.raises(Interruption):
        train_base(config, tmp_path / "model")
    said = capsys.readouterr().err
    assert re.search(
        r"other settings \(training.steps 9 -> \d+\) saved no step; this one starts at step 0", said
    )
    with pytest.raises(
        ConfigError, match=r"holds an interrupted training with other settings \(training.steps \d+ -> 9\)"
    ):
        train_base(other, tmp_path / "model")


def test_changed_images_are_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither other splits, by which test images would be trained on, nor files with other content."""
    manifest = make_manifest(tmp_path)
    rows = [row for row in read_manifest(manifest).rows if row.structure == "dna"]

    def split(*names: str) -> None:
        pairs = zip(rows, names, strict=True)
        write_manifest(manifest, [replace(row, split=name) for row, name in pairs])

    config = changed(configured(manifest, tmp_path), stream=StreamConfig(base=("dna",)))
    first = ("train", "train", "val", "test", "test", "test")
    split(*first)
    with monkeypatch.context() as patch:
        cut_off(patch, 3)
        with pytest.raises(Interruption):
            train_base(config, tmp_path / "model")
    split("test", "test", "val", "train", "train", "train")
    with pytest.raises(
        ConfigError, match=r"the split of 5 of its images changed \(dna, line 2.*remove .*model.training"
    ):
        train_base(config, tmp_path / "model")
    split(*first)
    kept = rows[1].target.read_bytes()
    rows[1].target.write_bytes(rows[2].target.read_bytes())
    with pytest.raises(ConfigError, match=r"1 of its images changed \(dna, line 3\)"):
        train_base(config, tmp_path / "model")
    rows[1].target.write_bytes(kept)
    # A training of an earlier version recorded no images: it continues, and says what could not be checked.
    (tmp_path / "model.training" / "images.json").unlink()
    capsys.readouterr()
    train_base(config, tmp_path / "model")
    assert "has no record of its images" in capsys.readouterr().err
    assert not (tmp_path / "model.training" / "images.json").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("inference.window", "[4,1,8]"), ("patch.size", "[4,1,8]"), ("patch.size", "[2,2,2]")],
)
def test_sizes_that_the_network_cannot_take_are_refused_before_training(
    manifest: Path, tmp_path: Path, key: str, value: str
) -> None:
    """By the key that holds them: a size of padding alone, and a bottleneck of one voxel, which has no deviation."""
    (tmp_path / "c.yaml").write_text(
        dump_config(changed(tiny(manifest, tmp_path), stream=StreamConfig(base=BASE)))
    )
    words = ["train", tmp_path / "c.yaml", "--set", f"{key}={value}", "--set", "training.batch_size=1"]
    done = CliRunner().invoke(app, [*map(str, words), "--out", str(tmp_path / "model")])
    assert done.exit_code == 2
    assert key in done.output
    assert not (tmp_path / "model.training").exists()


@pytest.mark.parametrize(
    ("key", "value", "asked"),
    [
        ("patch.size", "[100000,100000,100000]", "4 patches of 100000 x 100000 x 100000 voxels at a time"),
        ("network.width", "1000000000", "a network of network.width 1000000000 and network.depth 1"),
    ],
)
def test_sizes_beyond_the_memory_are_named(
    manifest: Path, tmp_path: Path, key: str, value: str, asked: str
) -> None:
    (tmp_path / "c.yaml").write_text(
        dump_config(changed(tiny(manifest, tmp_path), stream=StreamConfig(base=BASE)))
    )
    words = ["train", tmp_path / "c.yaml", "--set", f"{key}={value}", "--set", "training.batch_size=4"]
    words += ["--set", "inference.window=[4,8,8]", "--out", tmp_path / "model"]
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 2, done.output
    assert f"there is too little memory for {asked}" in " ".join(done.output.split())


def test_the_folder_of_a_training_lies_next_to_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the model's folder is the current one, given as a point."""
    inner = tmp_path / "model" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner.parent)
    assert training_folder("inner") == Path("inner.training")
    assert training_folder(".") == tmp_path / "model.training"
    assert training_folder("inner/..") == tmp_path / "model.training"


def test_only_one_process_trains_a_base(manifest: Path, tmp_path: Path) -> None:
    """The other's message names the process that does, and advises nothing that would harm it."""
    work, config = tmp_path / "model.training", configured(manifest, tmp_path)
    holder = work / ".lock.holder"
    with (
        exclusive(work / ".lock", "", error=ConfigError, holder=holder),
        pytest.raises(ConfigError) as caught,
    ):
        train_base(config, tmp_path / "model")
    assert f"model is being trained by process {os.getpid()} on " in str(caught.value)
    assert str(caught.value).endswith("wait until that ends, or give another --out")
    assert [path.name for path in work.iterdir()] == [".lock"]


def test_a_base_records_what_was_trained(trained: Path) -> None:
    model = Model.open(trained)
    for name in BASE:
        provenance = model.entries[name].provenance
        assert (provenance["steps"], provenance["learning_rate"]) == (6, 0.02)
        assert provenance["stopped"] == "all 6 steps"
    for command in ("history", "show"):
        assert "6 steps, rate 0.02, seed 3" in CliRunner().invoke(app, [command, str(trained)]).output


def test_a_finished_base_leaves_only_the_curves_of_its_training(trained: Path) -> None:
    assert {path.name for path in trained.with_name("model.training").iterdir()} <= {
        "learning.csv",
        "tensorboard",
        ".lock",
    }


@pytest.mark.slow
def test_a_wrong_structure_is_found_before_training_libraries_are_loaded(
    manifest: Path, tmp_path: Path
) -> None:
    for base, message in (
        (("dna", "nucleolos"), "did you mean 'nucleolus'"),
        ((), "stream.base is empty"),
    ):
        config = tmp_path / "config.yaml"
        config.write_text(dump_config(changed(tiny(manifest, tmp_path), stream=StreamConfig(base=base))))
        script = (
            "import sys\nfrom repmode_cl.cli.app import app\ntry:\n    app()\n"
            "finally:\n    print({'torch', 'avalanche'} & set(sys.modules))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, "train", config, "--out", tmp_path / "model"],
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (2, "set()\n"), done.stderr
        assert message in done.stderr
    assert not (tmp_path / "model.training").exists()


@pytest.mark.parametrize("name", ["con", "lpt9", "none", "best"])
def test_names_that_no_folder_or_option_can_have_are_refused_for_what_is_new(
    model: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rows = [
        replace(row, structure=name) for row in read_manifest(manifest).rows if row.structure == "nucleolus"
    ]
    write_manifest(tmp_path / "named.csv", rows)
    config = changed(tiny(tmp_path / "named.csv", tmp_path), stream=StreamConfig(base=(name,), order=()))
    message = f"'{name}' cannot be the name of a new structure: .*'{name}_structure'"
    with pytest.raises(StructureError, match=message):
        train_base(config, tmp_path / "new")
    assert not (tmp_path / "new.training").exists()
    with pytest.raises(StructureError, match=message):
        run_benchmark(config)
    with pytest.raises(StructureError, match=message):
        add_structure(model, name, tmp_path / "named.csv")
    assert not (model / "pending").exists()
    network = RepModeUNet(Architecture(width=2, depth=1, experts=("conv3",)), (name,), seed=0).eval()
    with pytest.raises(StructureError, match=message):
        Model.create(tmp_path / "made", network, **PARTS)
    # One of an earlier version stays readable, and so do its manifests.
    with monkeypatch.context() as patch:
        patch.setattr("repmode_cl.store.create.check_new_structure_name", lambda name: name)
        Model.create(tmp_path / "made", network, **PARTS)
    assert Model.open(tmp_path / "made").verify().ok


def test_an_existing_model_is_not_trained_over(trained: Path, manifest: Path) -> None:
    with pytest.raises(ModelError, match="exists already"):
        train_base(configured(manifest, trained.parent), trained)
    with pytest.raises(ModelError, match="has 'dna' already"):
        add_structure(trained, "dna", manifest)


def test_a_base_whose_model_was_half_written_is_written_by_the_same_command(
    monkeypatch: pytest.MonkeyPatch, manifest: Path, tmp_path: Path
) -> None:
    """A full disk, or a power cut, leaves files in the new folder; the training is not lost."""
    config, out = configured(manifest, tmp_path), tmp_path / "model"

    def full(path: Path, *_: object) -> None:
        path.with_name(f"base{TEMPORARY_MARK}ab.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(record_files, "write_tensors", full)
        with pytest.raises(OSError, match="No space left"):
            train_base(config, out)
    assert (out / ".lock").exists()
    assert not (out / "registry.json").exists()

    def no_step(*_: object) -> None:
        raise AssertionError("its training had ended")

    monkeypatch.setattr(StructureStrategy, "_train_step", no_step)
    assert train_base(config, out).verify().ok
    assert not list(out.glob(f"*{TEMPORARY_MARK}*"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(ModelError, match="exists already"):
        train_base(config, tmp_path / "mine")


def test_a_training_that_diverged_says_so(manifest: Path, tmp_path: Path) -> None:
    config = configured(manifest, tmp_path)
    hot = config.training.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(ModelError, match="its training diverged; train it again with a lower learning rate"):
        train_base(config.model_copy(update={"training": hot}), tmp_path / "model")
    base = make_base(tmp_path / "base")
    with pytest.raises(ModelError, match="its training diverged; train it again with a lower learning rate"):
        added(base, manifest, learning_rate=1e30, steps=3)
    assert Model.open(base).structures == BASE


def test_a_last_batch_of_one_voxel_is_refused_before_training(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch norm has one value there. With five of six images in batches of two, one patch is left over."""
    monkeypatch.setattr(StructureStrategy, "_train_step", lambda *_: pytest.fail("a step was trained"))
    config = configured(manifest, tmp_path)
    training = {"steps": None, "base_steps": None, "validate_every": None, "epochs": 1, "last_batch": "short"}
    config = changed(
        config,
        training=config.training.model_copy(update=training | {"batch_size": 2, "accumulate": 1}),
        data=DataConfig(manifest=str(manifest), test_fraction=0.1, val_fraction=0.0),
        stream=StreamConfig(base=("dna",), order=()),
        patch=PatchConfig(size=(2, 2, 2)),
        inference=InferenceConfig(window=(4, 8, 8)),
        strategies=(StrategyConfig(name="experts_frozen"),),
    )
    with pytest.raises(ConfigError, match=r"5 patches .* ends with a batch of 1, and patch.size \[2, 2, 2\]"):
        train_base(config, tmp_path / "model")
    with pytest.raises(TrialsFailedError, match="ends with a batch of 1"):
        run_benchmark(config)


def test_the_network_that_is_trained_is_checked_first(manifest: Path, tmp_path: Path) -> None:
    """A strategy may have a network unlike that of the configuration."""
    config = configured(manifest, tmp_path)

    def changed_network(**network: Any) -> Config:
        options = StrategyConfig(name="experts_frozen", label="ours", network=network)
        return config.model_copy(update={"strategies": (options,)})

    for network, message in (
        ({"gate": "input"}, "network.gate is input"),
        ({"depth": 4}, "a network of depth 4"),
    ):
        with pytest.raises(ConfigError, match=message):
            train_base(changed_network(**network), tmp_path / "model")
    assert not (tmp_path / "model.training").exists()


def test_an_interrupted_base_is_continued_by_the_same_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopped(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("repmode_cl.workflows.train_base.train_base", stopped)
    words = ["train", "quickstart", "--out", str(tmp_path / "model")]
    monkeypatch.setattr(sys, "argv", ["repmode-cl", *words])
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 130
    assert f"interrupted; continue with: repmode-cl {' '.join(words)}\n" in done.output
