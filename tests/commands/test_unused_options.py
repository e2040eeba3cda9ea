"""Arguments that would not be used, or are of another kind, are refused before anything is computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_addition import make_base
from tiny_run import changed, tiny
from typer.testing import CliRunner

from repmode_cl import benchmark
from repmode_cl.cli.app import app
from repmode_cl.config.load import dump_config
from repmode_cl.errors import RepmodeError
from repmode_cl.model import Model
from repmode_cl.workflows import train_base


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("bench", "quickstart", "--jobs", "2", "--scheduler", "tcp://node1:8786"),
            "leave out one of the two",
        ),
        (
            ("perf", "--quick", "--only", "startup", "--variant", "ours-1"),
            "--variant chooses rows of the training",
        ),
        (
            ("train", "manifest.csv", "--out", "model"),
            "a manifest is named in a configuration, as data.manifest",
        ),
        (("bench", "image.tif"), "a configuration is a YAML file, saved as UTF-8"),
    ],
)
def test_refused(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("manifest.csv").write_text("structure,signal,target\ndna,a.tif,b.tif\n", encoding="utf-8")
    Path("image.tif").write_bytes(b"II*\0\xff\xff")
    before = sorted(tmp_path.iterdir())
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_train_says_what_of_a_benchmark_it_does_not_use(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(tiny(manifest, tmp_path / "runs"), seeds=(3, 4))
    trained = make_base(tmp_path / "trained")
    notes = {"notes": ["dna: no image validates"]}
    entries = {name: replace(entry, provenance=notes) for name, entry in Model.open(trained).entries.items()}
    monkeypatch.setattr(Model, "entries", property(lambda self: entries))
    monkeypatch.setattr("repmode_cl.workflows.train_base.train_base", lambda *_, **__: Model.open(trained))
    monkeypatch.setattr("repmode_cl.cli.train.show", lambda model: None)
    (tmp_path / "bench.yaml").write_text(dump_config(config), encoding="utf-8")
    result = CliRunner().invoke(
        app, ["train", str(tmp_path / "bench.yaml"), "--out", str(tmp_path / "model")]
    )
    assert result.exit_code == 0, result.output
    unused = "the strategies fine_tuning, multi_net, stream.order, output, the seeds 4 (only the first is)"
    assert f"note: not used by train: {unused}\n" in result.stderr
    assert "note: dna: no image validates\n" in result.stderr


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        (
            ["strategies=[{name: experts_frozen, setting: best, steps: 20, learning_rate: 1.0e-3}]"],
            "not used by train, nor by add, which has options for them: steps: 20, setting: best "
            "(of experts_frozen_best",
        ),
        (
            ["evaluation.measures=[ssim]", "output=elsewhere"],
            "not used by train: the strategies warm_copy, fine_tuning, multi_net, stream.order, evaluation, output",
        ),
        (["strategies=[{name: experts_frozen, learning_rate: 1.0e-3}]"], ""),
    ],
)
def test_choices_that_train_does_not_use_are_said(
    settings: list[str], note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*args: object, **options: object) -> None:
        raise RepmodeError("reached")

    monkeypatch.setattr(train_base, "train_base", train)
    given = [part for setting in settings for part in ("--set", setting)]
    result = CliRunner().invoke(app, ["train", "quickstart", "--out", str(tmp_path / "model"), *given])
    assert "reached" in result.stderr, result.output
    assert note in result.stderr
    assert ("nor by add" in result.stderr) == ("nor by add" in note)


#: Note on steps of a base that has one structure.
UNUSED_STEPS = (
    "note: not used: training.base_steps (120) is for a base of several structures; a single one is trained for "
    "training.steps (80)\n"
)


@pytest.mark.parametrize(
    ("base", "base_steps", "said"),
    [("[dna]", 120, True), ("1", 120, True), ("[dna]", 80, False), ("[dna, cell_membrane]", 120, False)],
)
def test_steps_of_a_base_that_are_not_used_are_said(
    base: str, base_steps: int, said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*args: object, **options: object) -> None:
        raise RepmodeError("reached")

    monkeypatch.setattr(train_base, "train_base", train)
    settings = (f"stream.base={base}", f"training.base_steps={base_steps}", "training.steps=80")
    given = [part for setting in settings for part in ("--set", setting)]
    result = CliRunner().invoke(app, ["train", "quickstart", "--out", str(tmp_path / "model"), *given])
    assert "reached" in result.stderr, result.output
    assert (UNUSED_STEPS in result.stderr) == said
    assert ("base_steps" in result.stderr) == said

    monkeypatch.setattr(benchmark, "run_benchmark", train)
    result = CliRunner().invoke(app, ["bench", "quickstart", *given])
    assert "reached" in result.stderr, result.output
    assert (UNUSED_STEPS in result.stderr) == said
