"""Doing one unit of a benchmark, or a base, in this process; and writing down how it ended, whatever happens."""

from __future__ import annotations

import time
import traceback
from pathlib import Path

from filelock import FileLock

from repmode_cl.benchmark.trial_run import TrialRun
from repmode_cl.benchmark.trials import BaseTrial, base_stream
from repmode_cl.benchmark.worker_context import WorkerContext
from repmode_cl.errors import RepmodeError
from repmode_cl.results.results_table import ResultsTable
from repmode_cl.results.trial_record import Trial, TrialOutcome, forget_outcome, read_outcome, write_outcome
from repmode_cl.utils.atomic_files import sha256_file
from repmode_cl.utils.environment import environment_fingerprint, with_threads

__all__ = ["LOG", "make_run", "perform"]

#: What a unit printed, and where it failed: in its folder.
LOG = "log.txt"


def make_run(work: WorkerContext, title: str, stream: str, seed: int) -> TrialRun:
    """Make the run of one strategy with one stream and one seed."""
    [options] = [one for one in work.config.strategies if one.title == title]
    return TrialRun(
        work.config,
        options,
        seed,
        work.samples,
        work.streams[stream],
        work.folder,
        work.precision,
        name=stream,
        base_name=base_stream(work.streams, stream),
    )


def perform(work: WorkerContext, item: Trial | BaseTrial) -> None:
    """Do one unit, or train one base, from its last checkpoint; what is finished is left alone.

    Its figures and how it ended are in its folder then. An error is written down there too, and not raised: the
    others go on.
    """
    folder = work.folder / item.folder
    folder.mkdir(parents=True, exist_ok=True)
    # A process that lost its giver, and is not yet gone, may still be at work here.
    with FileLock(folder / ".lock"):
        before = read_outcome(folder)
        if before is not None and before.finished:
            return
        forget_outcome(folder)
        began = time.perf_counter()
        try:
            with with_threads(work.threads):
                outcome = _learn(work, item, folder)
        except (Exception, SystemExit) as error:  # a strategy of a user's own may end itself
            with (folder / LOG).open("a", encoding="utf-8") as log:
                log.write(traceback.format_exc())
            text = str(error) if isinstance(error, RepmodeError) else f"{type(error).__name__}: {error}"
            outcome = TrialOutcome(finished=False, message=text)
        write_outcome(folder, TrialOutcome(**{**vars(outcome), "seconds": time.perf_counter() - began}))


def _learn(work: WorkerContext, item: Trial | BaseTrial, folder: Path) -> TrialOutcome:
    run = make_run(work, item.title, item.stream, item.seed)
    if isinstance(item, BaseTrial):
        run.learn_base()
        return TrialOutcome(finished=True)
    rows = run.run()
    ResultsTable(rows).write(folder / "results.csv")
    return TrialOutcome(
        results=sha256_file(folder / "results.csv"),
        finished=True,
        bit_identical=run.bit_identical,
        environment=environment_fingerprint(
            device=run.strategy.device, window=work.config.window, batch=work.config.inference.batch_size
        ),
    )
