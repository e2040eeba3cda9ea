"""The benchmark runner: many trials, their executors, and how a run is resumed."""

from repmode_cl.benchmark.dry_run import DryRun
from repmode_cl.benchmark.run import TrialsFailedError, run_benchmark

__all__ = [
    "DryRun",
    "TrialsFailedError",
    "run_benchmark",
]
