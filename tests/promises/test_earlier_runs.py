"""Runs and checkpoints of an earlier revision: they are read, and end as they would have then.

tests/fixtures/README.md says what they are.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.config import parse_config
from repmode_cl.model import Model
from repmode_cl.report.page import build_report
from repmode_cl.results import ResultsTable
from repmode_cl.results.run_folder import read_run
from repmode_cl.strategies import StructureStrategy
from repmode_cl.utils.environment import environment_fingerprint
from repmode_cl.workflows.train_base import train_base

FIXTURES = Path(__file__).parents[1] / "fixtures"
MANIFEST = "images-v1/manifest.csv"
STRUCTURES = ("dna", "cell_membrane", "nucleolus", "mitochondria")
UNITS = {title: Path(title, "seed-3") for title in ("fine_tuning", "experts_frozen", "multi_net_k3")}
#: Why Windows refuses the addition: the digest of the manifest's rows is that of their paths as text.
POSIX = "the interrupted addition was made with POSIX paths"
#: Figures that no two runs have alike.
MEASURED = ("train_seconds", "cpu_seconds", "peak_memory_bytes")

Figures = dict[tuple[Any, ...], float]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go to a folder that holds the images and the finished run, as when the others were made."""
    for name in ("images-v1", "run-v1"):
        shutil.copytree(FIXTURES / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Return the strategy, experience and number of each training step that is done from now on."""
    done: list[tuple[str, int, int]] = []
    step = StructureStrategy._train_step

    def stepping(self: StructureStrategy, *args: Any, **kwargs: Any) -> None:
        done.append((type(self).__name__, self.progress.experience, self.progress.step))
        step(self, *args, **kwargs)

    monkeypatch.setattr(StructureStrategy, "_train_step", stepping)
    return done


def same_environment() -> bool:
    """Say whether floats are computed here as where the fixtures were made, to the last bit."""
    recorded = json.loads((FIXTURES / "run-v1/fine_tuning/seed-3/unit.json").read_text(encoding="utf-8"))
    fingerprint = environment_fingerprint(
        window=recorded["environment"]["window"], batch=recorded["environment"]["batch"]
    )
    return bool(fingerprint == recorded["environment"])


def check_figures(now: Figures, then: Figures) -> None:
    """Compare figures bit for bit where that can be, else to a tolerance."""
    assert list(now) == list(then)
    assert now == (then if same_environment() else pytest.approx(then, rel=1e-3, abs=1e-3))


def check_model(model: Model, name: str) -> None:
    """Compare a model with what the same training came to without an interruption."""
    expected = json.loads((FIXTURES / "expected-v1.json").read_text(encoding="utf-8"))[name]
    assert model.structures == tuple(expected)
    for structure, then in expected.items():
        entry = model.entries[structure]
        check_figures(dict(entry.metrics), then["metrics"])
        if same_environment():
            assert entry.digest == then["digest"]
    assert model.verify().ok


def figures_of(run: Path) -> Figures:
    return {
        (row.strategy, row.seed, row.step, row.structure, row.metric, row.stream): row.value
        for row in ResultsTable.read(run / "results.csv")
        if row.metric not in MEASURED
    }


def bench(name: str) -> None:
    words = [
        "bench",
        f"{name}/config.yaml",
        "--set",
        f"data.manifest={MANIFEST}",
        "--resume",
        "--workers",
        "1",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output


def test_a_finished_run_is_read_and_reported() -> None:
    run = Path("run-v1")
    figures = figures_of(run)
    assert {key[0] for key in figures} == set(UNITS)
    assert {key[3] for key in figures} >= set(STRUCTURES)
    assert read_run(run).notes == []
    page = build_report(run).read_text(encoding="utf-8")
    assert all(text in page for text in (*UNITS, *STRUCTURES))
    done = CliRunner().invoke(app, ["report", str(run), "--tables", "tables"])
    assert done.exit_code == 0, done.output
    assert list(Path("tables").glob("*.csv"))


def test_the_model_of_a_finished_run_predicts_the_same() -> None:
    unit = Path("run-v1") / UNITS["experts_frozen"]
    model = Model.open(unit / "model")
    report = model.verify()
    assert report.ok
    assert report.bit_identical == same_environment()
    for name in STRUCTURES:
        then = np.load(unit / "predictions" / f"{name}.npz")
        # Stored in half precision, signal and prediction.
        now = model.predict(then["signal"].astype(np.float32), name)
        assert now == pytest.approx(then["prediction"].astype(np.float32), abs=5e-3)


def test_a_finished_run_is_left_as_it_is(steps: list[tuple[str, int, int]]) -> None:
    before = Path("run-v1/results.csv").read_bytes(), Path("run-v1/run.json").read_bytes()
    bench("run-v1")
    assert (Path("run-v1/results.csv").read_bytes(), Path("run-v1/run.json").read_bytes()) == before
    assert steps == []


def test_an_interrupted_run_ends_as_the_finished_one(steps: list[tuple[str, int, int]]) -> None:
    shutil.unpack_archive(FIXTURES / "run-v1-interrupted.zip", ".")
    then, run = Path("run-v1"), Path("run-v1-interrupted")
    bench(run.name)
    # Two of the four steps of its last structure; the Multi-Net had not begun.
    assert [step for step in steps if step[0] != "MultiNet"] == [
        ("ExpertsFrozen", 2, 2),
        ("ExpertsFrozen", 2, 3),
    ]
    assert len(steps) > 2
    check_figures(figures_of(run), figures_of(then))
    models = [Model.open(folder / UNITS["experts_frozen"] / "model") for folder in (run, then)]
    assert models[0].verify().ok
    if not same_environment():
        return
    digests = [{name: entry.digest for name, entry in model.entries.items()} for model in models]
    assert digests[0] == digests[1]
    for unit in UNITS.values():
        assert (run / unit / "learning.csv").read_bytes() == (then / unit / "learning.csv").read_bytes()
        for name in STRUCTURES:
            one, two = (np.load(folder / unit / "predictions" / f"{name}.npz") for folder in (run, then))
            assert all(np.array_equal(one[key], two[key]) for key in ("signal", "target", "prediction"))
    info = [json.loads((folder / "run.json").read_text(encoding="utf-8")) for folder in (run, then)]
    assert info[0] == info[1]


def test_an_interrupted_training_goes_on(steps: list[tuple[str, int, int]]) -> None:
    shutil.unpack_archive(FIXTURES / "train-v1-interrupted.zip", ".")
    request = json.loads(Path("train-v1-interrupted.training/request.json").read_text(encoding="utf-8"))
    config = parse_config(request["config"])
    # As it was given then; parsing makes it absolute.
    config = config.model_copy(update={"data": config.data.model_copy(update={"manifest": MANIFEST})})
    model = train_base(config, "train-v1-interrupted")
    assert [step for _, _, step in steps] == [4, 5]
    check_model(model, "train-v1-interrupted")


@pytest.mark.skipif(os.name == "nt", reason=POSIX)
def test_an_interrupted_addition_goes_on(steps: list[tuple[str, int, int]]) -> None:
    shutil.unpack_archive(FIXTURES / "add-v1-interrupted.zip", ".")
    words = ["add", "add-v1-interrupted", "--structure", "nucleolus", "--data", MANIFEST, "--workers", "1"]
    words += ["--expert", "lowrank:2", "--sees", "all", "--init-from", "best"]
    words += ["--device", "cpu", "--precision", "float32"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert [step for _, _, step in steps] == [2, 3]
    check_model(Model.open("add-v1-interrupted"), "add-v1-interrupted")
    assert not list(Path("add-v1-interrupted/pending").glob("*/"))
