"""One trial of a benchmark, or one base, in its own process (``python -m`` starts it).

The order, a line of JSON on standard input, names the run's folder and the trial.
"""

from __future__ import annotations

from pathlib import Path

from repmode_cl.benchmark.executors.child_process import read_order

__all__: list[str] = []


def main() -> None:
    """Run the trial that the order names."""
    order = read_order()
    # Only now, so that this process also ends with its parent while it loads libraries, which takes seconds.
    from repmode_cl.benchmark.perform_trial import perform_trial
    from repmode_cl.benchmark.trials import BaseTrial
    from repmode_cl.benchmark.worker_context import WorkerContext
    from repmode_cl.results.trial_record import Trial

    kind = {"trial": Trial, "base": BaseTrial}[order["kind"]]
    perform_trial(WorkerContext.load(Path(order["run"])), kind(*order["item"]))


if __name__ == "__main__":
    main()
