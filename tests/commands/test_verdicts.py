"""Commands tell the verdict of each structure, with the command that trains on; predictions carry it."""

from __future__ import annotations

import csv
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import store_operations
import tifffile
from stored_model import another
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.cli.verdicts import verdict_line
from repmode_cl.model import Model
from repmode_cl.store.registry import Entry, Registry

GOOD = {"images": 8, "groups": 8, "r2_standard_error": 0.02, "r2_rise": 0.001}
POOR = {"images": 3, "groups": 3, "r2_standard_error": 0.01, "r2_rise": 0.2}


def output_of(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "220"})
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def judged(model_path: Path) -> Path:
    """Return a model whose dna is useful, whose nucleolus has learned nothing, and of whose others nothing is known."""
    registry = Registry.read(model_path)
    learned = {
        "held_out": "test",
        "steps": 200,
        "manifest": "new images.csv",
        "training": {"steps": 200},
        "evidence": {"dna": GOOD, "nucleolus": POOR},
    }
    figures = {"dna": {"r2": 0.6}, "nucleolus": {"r2": 0.01}}
    entries = tuple(
        replace(entry, metrics=figures.get(entry.name, {}), provenance=learned) for entry in registry.entries
    )
    replace(registry, entries=entries).write(model_path)
    return model_path


def test_show_tells_every_verdict(judged: Path) -> None:
    text = output_of("show", judged)
    lines = text.splitlines()
    rows = {line.split()[2]: line for line in lines if line.startswith("verdict of ")}
    assert rows["dna:"] == (
        "verdict of dna: useful: R2 0.600 (95% interval 0.553 to 0.647) on 8 test images; validation R2 "
        "gained 0.001 in the second half of its 200 steps: it is level"
    )
    again = shlex.join(
        ["repmode-cl", "replace", str(judged), "--structure", "nucleolus", "--data", "new images.csv",
         "--steps", "400"]
    )  # fmt: skip
    assert rows["nucleolus:"].endswith(f"train on: `{again}`")
    assert "not above 0 beyond the noise between images" in rows["nucleolus:"]
    assert rows["tight_junction:"].startswith(
        "verdict of tight_junction: unknown: no held-out figures; `repmode-cl evaluate"
    )


def test_history_tells_it_too(model_path: Path) -> None:
    model = Model.open(model_path)
    learned = {"held_out": "test", "evidence": {"desmosome": GOOD}}
    model.add("desmosome", another(model, "desmosome", 0), provenance=learned, metrics={"r2": 0.6})
    assert "R2 0.600 (useful)" in output_of("history", model_path)
    changes = json.loads(output_of("history", model_path, "--json"))
    assert changes[-1]["verdict"]["level"] == "useful"
    assert changes[0]["verdict"]["dna"]["level"] == "weak"  # R2 0.7 with no interval
    # What is stored has no key for it: it follows from the figures.
    assert "verdict" not in model.history[-1].to_json()


def test_pending_and_accept_tell_it(model_path: Path) -> None:
    store_operations.stage(model_path, "golgi_apparatus")
    text = output_of("pending", model_path)
    assert (
        "  verdict of golgi_apparatus: weak: R2 0.400 on the held-out images; no interval, so it is not called useful"
        in text
    )
    assert "verdict of golgi_apparatus: weak: R2 0.400" in output_of("accept", model_path, "golgi_apparatus")


def test_pending_names_the_version_that_would_be_replaced(judged: Path) -> None:
    store_operations.remove(judged, "mitochondria")
    store_operations.stage(judged, "nucleolus")
    assert "  the version in the model: learned nothing: R2 0.010" in output_of("pending", judged)


def entry_of(path: Path, name: str, evidence: dict[str, Any] = POOR, **provenance: Any) -> Entry:
    """Return an entry that has learned nothing, of a curve that rises."""
    learned = {"evidence": {name: evidence}, **provenance}
    return replace(Model.open(path).entries[name], metrics={"r2": 0.01}, provenance=learned)


@pytest.mark.parametrize(
    ("provenance", "how", "command"),
    [
        ({"steps": 200}, {}, "repmode-cl replace m --structure nucleolus --data MANIFEST.csv --steps 400"),
        ({"steps": 200, "training": {"epochs": 30}}, {},
         "repmode-cl replace m --structure nucleolus --data MANIFEST.csv --epochs 60"),
        ({"steps": 200}, {"data": Path("a/b.csv")},
         "repmode-cl replace m --structure nucleolus --data a/b.csv --steps 400"),
        ({"steps": 200}, {"staged": True, "replace": False},
         "repmode-cl discard m nucleolus`, then `repmode-cl add m --structure nucleolus --data MANIFEST.csv "
         "--steps 400"),
        ({"steps": True, "training": {"steps": "many"}}, {},
         "repmode-cl replace m --structure nucleolus --data MANIFEST.csv --steps STEPS"),
        ({"steps": 9, "manifest": "\x1b[31mx.csv"}, {},
         "repmode-cl replace m --structure nucleolus --data '\ufffd[31mx.csv' --steps 18"),
    ],
)  # fmt: skip
def test_the_command_that_trains_on(
    provenance: dict[str, Any], how: dict[str, Any], command: str, stored: Path
) -> None:
    line = verdict_line(entry_of(stored, "nucleolus", **provenance), "m", **how)
    assert line.endswith(f"train on: `{command}`")


@pytest.mark.parametrize(("base", "key"), [(2, "base_steps"), (1, "steps")])
def test_a_base_is_trained_on_as_a_new_model(base: int, key: str, stored: Path) -> None:
    entry = entry_of(stored, "dna", steps=300, config="mine")
    line = verdict_line(entry, "m", base=base)
    assert (
        f"train on: `repmode-cl train CONFIG --out NEW --set training.{key}=600`, with the configuration (mine) and "
        "the settings that trained it, makes a new model"
    ) in line


def test_a_level_curve_asks_for_images(stored: Path) -> None:
    entry = entry_of(stored, "nucleolus", {**POOR, "r2_rise": 0.0})
    assert verdict_line(entry, "m").endswith(
        "it is level, so that more images may help where more steps do not"
    )


def test_predictions_carry_it(judged: Path, tmp_path: Path) -> None:
    image = tmp_path / "cells.ome.tif"
    values = np.random.default_rng(0).integers(0, 3000, (8, 8, 8)).astype(np.uint16)
    tifffile.imwrite(image, values, photometric="minisblack", metadata={"axes": "ZYX"})
    table = tmp_path / "t.csv"
    table.write_text(
        "input,structure,output,status,seconds,mse,mae,r2,pearson,message\n"
    )  # of an earlier version
    words = [
        "predict", judged, image, "--structure", "dna", "--structure", "nucleolus", "--structure", "mitochondria",
        "--out", tmp_path / "out", "--csv", table, "--voxel-size", "0.29,0.29,0.29", "--device", "cpu",
    ]  # fmt: skip
    text = output_of(*words)
    assert "note: nucleolus: learned nothing: R2 0.010 (95% interval" in text
    assert "note: dna" not in text
    assert "; how good is unknown: no held-out figures" in next(
        line for line in text.splitlines() if "mitochondria, 8 x" in line
    )
    with table.open(newline="", encoding="utf-8") as file:
        rows = {row["structure"]: row["verdict"] for row in csv.DictReader(file)}
    assert rows == {"dna": "useful", "nucleolus": "learned nothing", "mitochondria": "unknown"}
    with tifffile.TiffFile(tmp_path / "out" / "cells_nucleolus.ome.tif") as file:
        assert (
            "learned nothing: R2 0.010 (95% interval -0.033 to 0.053) on 3 test images" in file.ome_metadata
        )
