"""``repmode-cl add`` and ``replace``: their output and exit codes."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_addition import files_of, make_base
from tiny_run import BASE
from typer.testing import CliRunner

from repmode_cl.cli.add import _parse_seconds
from repmode_cl.cli.app import app
from repmode_cl.data.manifest import read_manifest, write_manifest
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec


def run(*arguments: str | Path) -> tuple[int, str]:
    """Return exit code and output, errors among it."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout + result.stderr


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "model"))


def test_add_prints_initialisation_figures_and_unchanged_structures(model: Path, manifest: Path) -> None:
    command = ("add", model, "--structure", "nucleolus", "--data", manifest, "--steps", "2")
    code, out = run(*command, "--init-from", "best", "--time-limit", "90")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "on 8 training patches, before training:"
    assert lines[1].startswith("  ")
    assert lines[1].endswith(", started from")
    assert lines[3].startswith("  nucleolus at step 0: mse ")
    assert any(line.startswith("nucleolus on the test images: mse ") for line in lines)
    assert any(line.endswith("of training; it ended after all 2 steps") for line in lines)
    for name in BASE:
        assert f"{name}: bit-identical to before" in lines
    assert "nucleolus: bit-identical, as it was stored" in lines
    code, out = run("replace", *command[1:], "--init-from", "nucleolus", "--seed", "1", "--stage")
    assert code == 0
    place = f"{model} nucleolus"
    assert (
        f"the model is as it was: `repmode-cl accept {place}` takes nucleolus, `repmode-cl discard {place}` removes it"
        in out.splitlines()
    )
    assert run("accept", model, "nucleolus")[0] == 0
    code, out = run("replace", *command[1:], "--seed", "2")
    assert "replaced nucleolus: " in out
    assert [change.action for change in Model.open(model).history] == ["create", "add", "accept", "replace"]
    assert len(Model.open(model).kept) == 2


@pytest.mark.slow
def test_an_addition_outside_the_softmax_begins_as_the_known_structure(model: Path, manifest: Path) -> None:
    command = [model, "--structure", "nucleolus", "--data", manifest, "--steps", "2"]
    kind = [
        "--gate",
        "outside",
        "--scale",
        "--expert",
        "lowrank:2,1",
        "--blocks",
        "encoder",
        "--init-from",
        "best",
    ]
    code, dry = run("add", *command, *kind, "--dry-run")
    assert code == 0
    code, out = run("add", *command, *kind)
    assert code == 0
    lines = out.splitlines()
    [chosen] = [line for line in lines if line.endswith(", started from")]
    [start] = [line for line in lines if line.startswith("  nucleolus at step 0: mse ")]
    figures = re.findall(r"mse [0-9.e-]+", chosen), re.findall(r"mse [0-9.e-]+", start)
    assert figures[0] == figures[1] != []
    opened = Model.open(model)
    entry = opened.entries["nucleolus"]
    assert entry.spec == AdditionSpec("lowrank:2,1", gate="outside", scale=True, blocks="encoder")
    said = re.search(r"its file would have about ([0-9.]+) kB", dry)
    assert said is not None, dry
    assert float(said[1]) * 1000 == pytest.approx((model / entry.file).stat().st_size, rel=0.1)
    assert "it would train 1,293 numbers: experts 650, gate rows 99, norms 160, resampling layers 384" in dry
    assert opened.verify().bit_identical
    assert (
        "lowrank:2,1, outside the softmax, learned scale, experts in the encoder" in run("history", model)[1]
    )
    # A replacement is of the same kind, but for what is said.
    assert run("replace", *command, "--no-scale", "--init-from", "nucleolus")[0] == 0
    spec = Model.open(model).entries["nucleolus"].spec
    assert spec == AdditionSpec("lowrank:2,1", gate="outside", blocks="encoder")


def test_below_min_r2_the_exit_code_is_3(model: Path, manifest: Path) -> None:
    command = ("add", model, "--structure", "nucleolus", "--data", manifest, "--steps", "1")
    code, out = run(*command, "--min-r2", "0.9999")
    assert code == 3
    assert "what was demanded is not reached; the model is as it was: `repmode-cl accept" in out
    assert "takes nucleolus all the same" in out
    code, out = run(*command)
    assert code == 2
    assert "is trained and waits" in out


def test_a_dry_run_lists_problems_and_exits_with_2(model: Path, manifest: Path) -> None:
    before = files_of(model)
    command = ("add", model, "--structure", "nucleolus", "--dry-run", "--data")
    code, out = run(*command, manifest)
    assert code == 0
    assert "nucleolus: 6 images: 3 train, 1 validate, 2 test" in out
    assert "no problem in its images" in out
    assert out.endswith("nothing was written\n")
    rows = list(read_manifest(manifest).for_structure("nucleolus"))
    broken = manifest.parent / "no-target.csv"
    write_manifest(broken, [replace(rows[0], target=Path("no-such.tif")), *rows[1:]])
    code, out = run(*command, broken)
    assert code == 2
    assert "line 2, target: " in out
    assert "1 problem in the images of nucleolus" in out
    assert files_of(model) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--time-limit", "soon"], "give minutes such as 90, or a time such as 45s, 30m or 1.5h"),
        (["--time-limit", "0"], "--time-limit '0': give minutes"),
        (["--steps", "3", "--epochs", "2"], "give either --steps or --epochs, not both"),
        (["--min-r2", "1.5"], "--min-r2 1.5: a number of at most 1 is needed"),
        (["--min-r2", "nan"], "--min-r2 nan: a number of at most 1 is needed"),
        (["--init-from", "dnaa"], "did you mean 'dna'"),
        (["--scale"], "has gate softmax and expert conv3: choose gate outside and an expert, or no scale"),
        (["--expert", "lowrank:2,x"], "--expert 'lowrank:2,x' is no expert"),
        (["--expert", "lowrank:2,1,1,1,1"], "has 5 ranks, and this network has 2 levels"),
        (["--patience", "0"], "Invalid value for '--patience'"),
        (["--seed", str(2**64)], "Invalid value for '--seed'"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_written(
    model: Path, manifest: Path, arguments: list[str], message: str
) -> None:
    before = files_of(model)
    code, out = run("add", model, "--structure", "nucleolus", "--data", manifest, *arguments)
    assert code == 2
    assert message in out
    assert files_of(model) == before


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 5400), ("1.5h", 5400), ("30m", 1800), ("45 s", 45), (".5 MIN", 30)]
)
def test_a_time_limit_is_in_minutes_unless_it_says_otherwise(text: str, seconds: float) -> None:
    assert _parse_seconds(text, "--time-limit") == seconds
