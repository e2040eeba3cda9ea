"""Program that tests run in a separate process: it ends as its order says, and imports nothing heavy."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from repmode_cl.benchmark.executors.child_process import read_order, run_in_child


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
