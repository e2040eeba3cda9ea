"""SIGTERM and Ctrl-C end a training at its next step with a checkpoint: no step is lost, and no bit changes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_addition import make_base
from tiny_run import changed, tiny
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.config import Config, StrategyConfig
from repmode_cl.config.load import dump_config
from repmode_cl.model import Model
from repmode_cl.results import ResultsTable
from repmode_cl.results.comparison import read_comparison
from repmode_cl.training import load_checkpoint

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to other processes")

#: Enough for a signal to come in the middle; validations and checkpoints are far apart.
STEPS, EVERY = 400, 200
#: Steps where they are SLOWED.
FEW, FEW_EVERY = 40, 20
#: The command, with steps that take a quarter of a second longer: fewer are enough for a signal to come between two.
SLOWED = """
import time
from repmode_cl.cli.app import main
from repmode_cl.strategies import StructureStrategy
step = StructureStrategy._train_step
def slow(self, *args, **kwargs):
    step(self, *args, **kwargs)
    time.sleep(0.25)
StructureStrategy._train_step = slow
main()
"""
#: Seconds until a command that shows nothing counts as stuck: a machine may be busy with others.
PATIENCE = 300
MEASURED = ("train_seconds", "cpu_seconds", "peak_memory_bytes")


def heed_ctrl_c() -> None:
    """Undo what a shell does to tests that run in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Command:
    """A command in its own process group, whose standard error is read line by line."""

    def __init__(self, log: Path, *arguments: str | Path, slowed: bool = False) -> None:
        self.log, self.steps = log, FEW if slowed else STEPS
        program = ("-c", SLOWED) if slowed else ("-m", "repmode_cl")
        with log.open("wb") as handle:
            self.process = subprocess.Popen(
                [sys.executable, *program, *map(str, arguments)],
                stdout=subprocess.DEVNULL,
                stderr=handle,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                preexec_fn=heed_ctrl_c,
            )

    @property
    def errors(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.errors:
            assert self.process.poll() is None, self.errors
            assert time.monotonic() < deadline, self.errors
            time.sleep(0.01)

    def wait_for_step(self) -> None:
        """Wait until some steps of a training are done, long before its first validation."""
        self.wait_for(f"started, {self.steps} steps")
        time.sleep(0.3)

    def signal(self, number: int) -> None:
        """Send a signal to all its processes, as a terminal, ``timeout`` and SLURM do."""
        os.killpg(self.process.pid, number)

    def end(self) -> int:
        return self.process.wait(timeout=PATIENCE)


def completed(*arguments: str | Path) -> str:
    """Run a command to its end in this process; return what it writes to standard error."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return result.stderr


def configured(manifest: Path, folder: Path, steps: int = STEPS, every: int = EVERY) -> Config:
    config = tiny(manifest, folder / "runs")
    training = config.training.model_copy(
        update={"steps": steps, "base_steps": steps, "validate_every": every}
    )
    return changed(config, training=training)


def interrupt(command: Command, number: int) -> int:
    """Send the signal in the middle of a training; return the step that was saved."""
    command.wait_for_step()
    command.signal(number)
    assert command.end() == 128 + number, command.errors
    assert "stopping after this step" in command.errors
    saved = re.search(r"interrupted \(step (\d+) is saved\); continue with: repmode-cl ", command.errors)
    assert saved is not None, command.errors
    assert "Traceback" not in command.errors
    return int(saved[1])


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_add_continues_at_the_step_of_the_signal(manifest: Path, tmp_path: Path, number: int) -> None:
    """With workers that cut patches, which get the signal too."""
    whole = make_base(tmp_path / "whole", validate_every=FEW_EVERY)
    model = Path(shutil.copytree(whole, tmp_path / "model"))
    options = ("--structure", "nucleolus", "--data", manifest, "--steps", str(FEW), "--workers", "1")
    command = Command(tmp_path / "1.txt", "add", model, *options, "--loader-workers", "1", slowed=True)
    step = interrupt(command, number)
    work = model / "pending" / "nucleolus"
    assert load_checkpoint(work / "checkpoint").state["progress"]["step"] == step
    assert 0 < step < FEW_EVERY
    errors = completed("add", model, *options)
    assert f"adding nucleolus: continuing at step {step} of {FEW}\n" in errors
    assert f"adding nucleolus: after step {FEW_EVERY}: nucleolus R2 " in errors
    completed("add", whole, *options)
    mine, other = (Model.open(path).entries["nucleolus"] for path in (model, whole))
    assert mine.digest == other.digest
    assert mine.metrics == other.metrics


@pytest.mark.slow  # as an addition, which is cut off below
def test_train_continues_at_the_step_of_the_signal(manifest: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(configured(manifest, tmp_path, FEW, FEW_EVERY)))
    options = ("--out", tmp_path / "model", "--workers", "1")
    command = Command(tmp_path / "log.txt", "train", config, *options, slowed=True)
    step = interrupt(command, signal.SIGTERM)
    errors = completed("train", config, "--out", tmp_path / "model")
    assert f"continuing at step {step} of {FEW}\n" in errors
    completed("train", config, "--out", tmp_path / "whole")
    mine, other = (Model.open(tmp_path / name) for name in ("model", "whole"))
    assert mine.base_digest == other.base_digest
    assert [entry.metrics for entry in mine.entries.values()] == [
        entry.metrics for entry in other.entries.values()
    ]


@pytest.mark.slow
def test_compare_continues_at_the_step_of_the_signal(manifest: Path, tmp_path: Path) -> None:
    model = make_base(tmp_path / "model", validate_every=EVERY)
    options = ("--structure", "nucleolus", "--data", manifest, "--steps", str(STEPS), "--out")

    def compare(name: str) -> Command:
        return Command(tmp_path / f"{name}.txt", "compare", model, *options, tmp_path / name)

    step = interrupt(compare("mine"), signal.SIGTERM)
    again = compare("mine")
    assert again.end() == 0, again.errors
    assert f"continuing at step {step} of {STEPS}\n" in again.errors
    assert compare("whole").end() == 0
    mine, other = (read_comparison(tmp_path / name) for name in ("mine", "whole"))
    assert [way.metrics for way in mine.methods] == [way.metrics for way in other.methods]
    assert [way.curve for way in mine.methods] == [way.curve for way in other.methods]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_bench_continues_at_the_step_of_the_signal(manifest: Path, tmp_path: Path, jobs: int) -> None:
    """Each of its processes saves its steps."""
    config = tmp_path / "config.yaml"
    settings = configured(manifest, tmp_path)
    strategies = (StrategyConfig(name="experts_frozen"), StrategyConfig(name="multi_net"))
    config.write_text(dump_config(changed(settings, strategies=strategies)))

    def bench(name: str, *options: str) -> Command:
        given = ("--set", f"name={name}", "--jobs", str(jobs), "--threads", "1", *options)
        return Command(tmp_path / f"{name}{len(options)}.txt", "bench", config, *given)

    command = bench("mine")
    logs = tmp_path / "runs" / "mine"
    if jobs == 1:
        steps = [interrupt(command, signal.SIGTERM)]
    else:
        command.wait_for("2 runs")
        deadline = time.monotonic() + PATIENCE
        while sum("started, " in log.read_text() for log in logs.glob("**/log.txt")) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.3)
        command.signal(signal.SIGTERM)
        assert command.end() == 143, command.errors
        assert "interrupted; continue with: repmode-cl bench " in command.errors
        checkpoints = [pointer.parent for pointer in logs.glob("**/latest.json")]
        steps = [load_checkpoint(folder).state["progress"]["step"] for folder in checkpoints]
        assert len(steps) == 2
    assert all(0 < step < STEPS for step in steps)
    again = bench("mine", "--resume")
    assert again.end() == 0, again.errors
    said = again.errors + "".join(log.read_text() for log in logs.glob("**/log.txt"))
    for step in steps:
        assert f"continuing at step {step} of " in said
    assert bench("whole").end() == 0
    figures = []
    for name in ("mine", "whole"):
        rows = ResultsTable.read(tmp_path / "runs" / name / "results.csv")
        figures.append(sorted(str(row) for row in rows if row.metric not in MEASURED))
    assert figures[0] == figures[1]


@pytest.mark.slow
def test_a_second_signal_ends_at_once(manifest: Path, tmp_path: Path) -> None:
    """Also while a step would take for ever."""
    model = make_base(tmp_path / "model", validate_every=EVERY)
    script = (
        "import sys, time\n"
        "from repmode_cl.strategies import StructureStrategy\n"
        "from repmode_cl.cli.app import main\n"
        "def step(self, *args, **kwargs):\n"
        "    print('in a step', file=sys.stderr, flush=True)\n"
        "    time.sleep(300)\n"
        "StructureStrategy._train_step = step\n"
        "main()\n"
    )
    arguments = ("add", model, "--structure", "nucleolus", "--data", manifest, "--workers", "1")
    log = tmp_path / "log.txt"
    with log.open("wb") as handle:
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stderr=handle,
            preexec_fn=heed_ctrl_c,
        )
    for text, number in (("in a step", signal.SIGINT), ("stopping after this step", signal.SIGTERM)):
        deadline = time.monotonic() + PATIENCE
        while text not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        assert process.poll() is None
        process.send_signal(number)
    assert process.wait(timeout=60) == -signal.SIGTERM


def test_a_signal_outside_a_training_ends_the_command(tmp_path: Path) -> None:
    size = ("--fields", "400", "--shape", "12,64,64")
    command = Command(tmp_path / "log.txt", "data", "simulate", tmp_path / "cells", *size)
    deadline = time.monotonic() + PATIENCE
    while not list(tmp_path.glob("cells/**/*.tif")):
        assert time.monotonic() < deadline, command.errors
        time.sleep(0.05)
    command.signal(signal.SIGTERM)
    assert command.end() == 143
    assert command.errors.endswith("interrupted; run the same command again to start over\n")
