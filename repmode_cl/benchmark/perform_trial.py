"""Run of one trial, or of the training of one base, in this process; its outcome is always recorded."""

from __future__ import annotations

import time
import traceback
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from repmode_cl.benchmark.trial_run import TrialRun
from repmode_cl.benchmark.trials import BaseTrial
from repmode_cl.benchmark.worker_context import WorkerContext
from repmode_cl.errors import RepmodeError
from repmode_cl.results.results_table import ResultsTable
from repmode_cl.results.trial_record import (
    LOG,
    Trial,
    TrialOutcome,
    read_outcome,
    remove_outcome,
    write_outcome,
)
from repmode_cl.utils.atomic_files import sha256_file
from repmode_cl.utils.environment import environment_fingerprint, with_threads

__all__ = ["perform_trial"]


def perform_trial(context: WorkerContext, trial: Trial | BaseTrial) -> None:
    """Run one trial, or train one base, from its last checkpoint; nothing is done if it is finished.

    Its figures and its outcome are in its folder then. An error is recorded there too, and not raised: the other
    trials go on.
    """
    folder = context.folder / trial.folder
    folder.mkdir(parents=True, exist_ok=True)
    # A process whose parent has gone may still be at work here.
    with FileLock(folder / ".lock"):
        before = read_outcome(folder)
        if before is not None and before.finished:
            return
        remove_outcome(folder)
        began = time.perf_counter()
        try:
            with with_threads(context.threads):
                outcome = _learn(context, trial, folder)
        except (Exception, SystemExit) as error:  # a strategy of a user's own may exit
            with (folder / LOG).open("a", encoding="utf-8") as log:
                log.write(traceback.format_exc())
            message = str(error) if isinstance(error, RepmodeError) else f"{type(error).__name__}: {error}"
            outcome = TrialOutcome(finished=False, message=message)
        write_outcome(folder, replace(outcome, seconds=time.perf_counter() - began))


def _learn(context: WorkerContext, trial: Trial | BaseTrial, folder: Path) -> TrialOutcome:
    run = TrialRun(context, trial)
    if isinstance(trial, BaseTrial):
        run.learn_base()
        return TrialOutcome(finished=True)
    rows = run.run()
    ResultsTable(rows).write(folder / "results.csv")
    return TrialOutcome(
        results=sha256_file(folder / "results.csv"),
        finished=True,
        bit_identical=run.bit_identical,
        environment=environment_fingerprint(
            device=run.strategy.device,
            window=context.config.window,
            batch=context.config.inference.batch_size,
        ),
    )
