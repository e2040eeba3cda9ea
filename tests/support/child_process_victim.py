"""Program that tests run in a separate process: it ends as its order says, and imports nothing heavy."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time
import types
from pathlib import Path

import repmode_cl


def _module_by_file() -> types.ModuleType:
    """Return the module, read from its file: its package would import PyTorch and Avalanche, which takes seconds."""
    file = Path(repmode_cl.__file__).parent / "benchmark" / "executors" / "child_process.py"
    spec = importlib.util.spec_from_file_location("child_process", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


child_process = _module_by_file()
read_order, run_in_child = child_process.read_order, child_process.run_in_child


def main() -> None:
    order = read_order()
    if "run" in order:
        _run_trial(Path(order["run"]), order["item"])
    elif order["do"] == "exit":
        print("a word", flush=True)
        print(os.environ["OMP_NUM_THREADS"], Path.cwd(), file=sys.stderr, flush=True)
        sys.exit(order["status"])
    elif order["do"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif order["do"] == "wait":
        Path(order["file"]).write_text(str(os.getpid()))
        time.sleep(60)
    elif order["do"] == "give":
        log = Path(order["file"]).with_name("inner.txt")
        inner = {"do": "wait", "file": order["file"]}
        run_in_child("child_process_victim", inner, log, group="inner", threads=1, folder=".")


def _run_trial(run: Path, item: list[object]) -> None:
    """Run a trial: it is killed until its number of tries is its seed; below zero it fails."""
    title, stream, seed = item[:3]
    folder = run / str(title) / str(stream) / f"seed-{seed}"
    tried = folder / "tries.txt"
    tries = int(tried.read_text()) + 1 if tried.exists() else 1
    tried.write_text(str(tries))
    if tries < int(str(seed)):
        os.kill(os.getpid(), signal.SIGKILL)
    outcome = {"finished": True, "bit_identical": None, "message": "", "seconds": 0.0, "environment": {}}
    (folder / "unit.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()
