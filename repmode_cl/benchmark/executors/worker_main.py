"""One trial of a benchmark, or one base, in its own process (``python -m`` starts it).

The order, a line of JSON on standard input, names the run's folder and the trial.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from repmode_cl.benchmark.executors.child_process import read_order
from repmode_cl.utils.stop_signals import Stopped, handle_stop_signals

__all__: list[str] = []


def main() -> None:
    """Run the trial that the order names; asked to stop, end with a checkpoint and without an outcome."""
    try:
        with handle_stop_signals(child=True):
            _run(read_order())
    except Stopped as stopped:
        sys.exit(128 + stopped.number)


def _run(order: Any) -> None:
    # Only now, so that this process also ends with its parent while it loads libraries, which takes seconds.
    from repmode_cl.benchmark.perform_trial import perform_trial
    from repmode_cl.benchmark.trials import BaseTrial
    from repmode_cl.benchmark.worker_context import WorkerContext
    from repmode_cl.results.trial_record import Trial

    kind = {"trial": Trial, "base": BaseTrial}[order["kind"]]
    perform_trial(WorkerContext.load(Path(order["run"])), kind(*order["item"]))


if __name__ == "__main__":
    main()
