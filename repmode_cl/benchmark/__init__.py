"""Benchmark runner: the trials of a configuration, their executors, and how a run is resumed."""

import warnings
from typing import Any

from repmode_cl.benchmark.dry_run import DryRun
from repmode_cl.benchmark.run import TrialsFailedError, run_benchmark

__all__ = ["run_benchmark", "TrialsFailedError", "DryRun"]


def __getattr__(name: str) -> Any:
    """Return `TrialsFailedError` for the name that it had before, which is deprecated."""
    if name == "UnitsFailedError":
        message = "repmode_cl.benchmark.UnitsFailedError is deprecated: use TrialsFailedError"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return TrialsFailedError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
