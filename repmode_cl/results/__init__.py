"""Formats of a run: what a benchmark or a comparison leaves on disk, defined, written and read here."""

from repmode_cl.results.comparison import Comparison, MethodResult, PredictionChange, read_comparison
from repmode_cl.results.predictions import Prediction, read_prediction, write_prediction
from repmode_cl.results.results_table import BASE, COSTS, Result, ResultsTable
from repmode_cl.results.run_folder import Run, read_run
from repmode_cl.results.run_info import RunInfo, read_run_info, write_run_info
from repmode_cl.results.trial_record import Trial, TrialOutcome, read_outcome, write_outcome

__all__ = [
    "ResultsTable",
    "Result",
    "RunInfo",
    "read_run_info",
    "write_run_info",
    "Trial",
    "TrialOutcome",
    "read_outcome",
    "write_outcome",
    "Prediction",
    "read_prediction",
    "write_prediction",
    "Run",
    "read_run",
    "Comparison",
    "MethodResult",
    "PredictionChange",
    "read_comparison",
    "BASE",
    "COSTS",
]
