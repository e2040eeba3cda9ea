"""Adding in separate processes: killed outright, and two at once."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_addition import make_base
from tiny_run import BASE

from repmode_cl.model import Model

pytestmark = pytest.mark.slow

KILLS, STEPS = 6, 240


def start(model: Path, manifest: Path, name: str, *options: str) -> subprocess.Popen[str]:
    command = [
        "add",
        str(model),
        "--structure",
        name,
        "--data",
        str(manifest),
        "--steps",
        str(STEPS),
        *options,
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "repmode_cl", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=300)
    return process.returncode, out


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    """Wait until `condition` holds; return False if the process ended before."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    return True


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "model", checkpoint_every=5)


def test_killed_at_any_moment_it_ends_as_the_same_bits(base: Path, manifest: Path, tmp_path: Path) -> None:
    whole, model = (Path(shutil.copytree(base, tmp_path / name)) for name in ("whole", "killed"))
    options = ("--init-from", "best", "--patience", "1000")
    assert end(start(whole, manifest, "nucleolus", *options))[0] == 0
    rng, kills = random.Random(0), 0
    for _ in range(KILLS):
        process = start(model, manifest, "nucleolus", *options)
        pointer = model / "pending" / "nucleolus" / "checkpoint" / "latest.json"
        before = pointer.read_bytes() if pointer.exists() else b""
        if wait_for(lambda: pointer.exists() and pointer.read_bytes() != before, process):  # noqa: B023
            time.sleep(rng.uniform(0, 1.0))
            process.kill()
            kills += process.wait() < 0
        end(process)
        assert Model.open(model).verify().ok
    assert kills >= KILLS - 2  # the last may come too late
    code, out = end(start(model, manifest, "nucleolus", *options))
    # Killed after its commit it finishes; had it finished before, the structure is there already.
    assert code == 0 or "has 'nucleolus' already" in out, out
    mine, other = (Model.open(path).entries["nucleolus"] for path in (model, whole))
    assert mine.digest == other.digest
    assert mine.proof.prediction_digest == other.proof.prediction_digest
    assert mine.metrics == other.metrics
    print(f"{kills} kills, {mine.provenance['steps']} steps, the same bits")


def test_two_processes_add_two_structures_at_once(base: Path, manifest: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(base, tmp_path / "model"))
    names = ("nucleolus", "mitochondria")
    for code, out in [end(process) for process in [start(model, manifest, name) for name in names]]:
        assert code == 0, out
    opened = Model.open(model)
    assert set(opened.structures) == {*BASE, *names}
    assert opened.verify().ok
    assert len(opened.history) == 3


def test_of_two_processes_that_add_the_same_structure_one_is_refused(
    base: Path, manifest: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(base, tmp_path / "model"))
    results = [end(process) for process in [start(model, manifest, "nucleolus") for _ in range(2)]]
    assert sorted(code for code, _ in results) == [0, 2]
    [out] = [out for code, out in results if code == 2]
    assert "another process is adding 'nucleolus'" in out or "has 'nucleolus' already" in out
    assert Model.open(model).verify().ok
