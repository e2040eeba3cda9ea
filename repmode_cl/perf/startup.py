"""Start-up time of commands: each in separate processes, alternating."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from repmode_cl.errors import RepmodeError
from repmode_cl.nn import Architecture, RepModeUNet
from repmode_cl.perf.settings import PerfSettings
from repmode_cl.perf.timing_rounds import alternate, rows_of
from repmode_cl.utils.progress import task

__all__ = ["measure_startup"]

_BARE = "python"


def measure_startup(
    settings: PerfSettings, commands: Sequence[Sequence[str]], seconds: float | None = None
) -> list[dict[str, Any]]:
    """Time ``--help`` of each command, ``show`` of a small model, and ``import repmode_cl``.

    Parameters
    ----------
    settings
        Rounds (at most five) and seed.
    commands
        The words of each command, without the program's name.
    seconds
        Time within which rounds may begin.

    Returns
    -------
    list of dict
        A `TimingRow` for each, as JSON; a Python that does nothing is the reference.
    """
    with tempfile.TemporaryDirectory(prefix="repmode-cl-perf-") as folder:
        # Elsewhere than in the repository, where python would import the folder beside it.
        lines: dict[str, list[str]] = {
            _BARE: ["-c", "pass"],
            "import repmode_cl": ["-c", "import repmode_cl"],
            "repmode-cl --help": ["-m", "repmode_cl", "--help"],
        }
        for words in commands:
            name = " ".join(["repmode-cl", *words, "--help"])
            lines[name] = ["-m", "repmode_cl", *words, "--help"]
        lines["repmode-cl show MODEL"] = ["-m", "repmode_cl", "show", str(_model(Path(folder)))]
        work = {name: _runs(arguments, folder) for name, arguments in lines.items()}
        rounds = min(settings.repeats, 5)
        with task("Start-up", (rounds + 1) * len(work)) as bar:
            timings = alternate(work, rounds=rounds, seed=settings.seed, seconds=seconds, bar=bar)
    labels = {name: name for name in work} | {_BARE: "python that does nothing"}
    return [row.to_json() for row in rows_of(timings, labels, _BARE)]


def _runs(arguments: Sequence[str], folder: str) -> Callable[[], None]:
    def run() -> None:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RepmodeError(f"python {' '.join(arguments)} ended with an error:\n{done.stderr.strip()}")

    return run


def _model(folder: Path) -> Path:
    """Store a model of the smallest kind, for `show` to list."""
    from repmode_cl.model import Model

    path = folder / "model"
    network = RepModeUNet(Architecture(width=2, depth=1, experts=("conv3", "conv1")), ("dna",), seed=0)
    Model.create(
        path,
        network,
        voxel_size=None,
        preprocessing={"order": 1},
        inference={"window": [8, 16, 16], "overlap": 0.5, "batch": 1},
        metrics={},
    )
    return path
