"""A whole benchmark: every strategy with every stream and seed, one results.csv, one report."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from repmode_cl.benchmark.check_strategies import check_strategies
from repmode_cl.benchmark.dry_run import DryRun, estimate_run
from repmode_cl.benchmark.executors.dask import DaskCluster
from repmode_cl.benchmark.executors.local import LocalProcesses
from repmode_cl.benchmark.executors.scheduling import Executor, ScheduledTrial, run_jobs
from repmode_cl.benchmark.perform_trial import LOG, perform
from repmode_cl.benchmark.resume import (
    ResumeState,
    check_run,
    describe,
    precision_of,
    recorded_threads,
    refuse_existing,
    start_run,
)
from repmode_cl.benchmark.run_images import run_images
from repmode_cl.benchmark.shared_base import SharedBase
from repmode_cl.benchmark.trials import BaseTrial, base_stream, collect_results, trials_of
from repmode_cl.benchmark.worker_context import WorkerContext
from repmode_cl.config import Config
from repmode_cl.data.pipeline import known_structures
from repmode_cl.data.sample import Sample, images_digests
from repmode_cl.errors import ConfigError, RepmodeError
from repmode_cl.report import build_report
from repmode_cl.results.trial_record import Trial, TrialOutcome, forget_outcome, read_outcome, write_outcome
from repmode_cl.scenarios import StreamVariant, stream_variants
from repmode_cl.strategies.joint import Joint
from repmode_cl.strategies.registry import base_key_of, strategy_class
from repmode_cl.training import refuse_several
from repmode_cl.utils.atomic_files import write_text
from repmode_cl.utils.process_pool import workers_here
from repmode_cl.utils.progress import task

__all__ = ["TrialsFailedError", "run_benchmark"]


#: The page is made anew while a run goes on, unless that would take more than this part of the time.
_PAGE_SHARE = 0.05


class TrialsFailedError(RepmodeError):
    """Some units of a benchmark failed; the others are finished, and in its report.

    Parameters
    ----------
    folder
        The run's.
    failed
        Unit -> why.
    """

    def __init__(self, folder: Path, failed: Mapping[Trial, str]) -> None:
        lines = [f"  {unit}: {why}\n    log: {folder / unit.folder / LOG}" for unit, why in failed.items()]
        super().__init__(
            "\n".join([f"{len(failed)} run(s) of {folder} failed:", *lines, "--resume tries them again"])
        )
        self.folder = folder
        self.failed = dict(failed)


def run_benchmark(
    config: Config,
    *,
    resume: bool = False,
    dry_run: bool = False,
    workers: int = 1,
    jobs: int = 1,
    scheduler: str | None = None,
    threads: int | None = None,
    keep_going: bool = False,
) -> Path | DryRun:
    """Run a benchmark, or say what it would do.

    Parameters
    ----------
    config
        What to run.
    resume
        Go on with a run of the same configuration that was interrupted: what is finished is kept, what was
        interrupted goes on from its last checkpoint, what failed is tried again. Strategies, streams and seeds may
        have been added.
    dry_run
        Run nothing; return what would run and about how long.
    workers
        Processes that simulate and prepare images.
    jobs
        Units (strategy, stream, seed) that are at work at once, each in a process of its own; 1 does one after the
        other in this process.
    scheduler
        Address of a Dask scheduler, or path of its file: units run on its workers, which see the run's folder at the
        same path. `jobs` has no meaning then.
    threads
        Of each unit. By default torch's, divided among `jobs`; a resumed run keeps the number that it began with.
    keep_going
        Leave out rows of the manifest whose images cannot be used, and list them in ``left_out.csv``.

    Returns
    -------
    Path or DryRun
        The run's folder, which holds ``results.csv`` and ``report.html``.

    Raises
    ------
    ConfigError
        If the folder holds a run already and `resume` is not given, or one of another configuration, or another
        process is at work at it.
    UnitsFailedError
        If units failed; raised at the end.
    """
    streams = stream_variants(config.stream, known_structures(config))
    check_strategies(config, streams)
    if dry_run:
        return estimate_run(config, streams)
    refuse_several("a benchmark")
    folder = Path(config.output) / config.name
    refuse_existing(folder, resume=resume)
    with _alone_at(folder):
        # All that can be refused comes first, and writes nothing.
        before = check_run(config, folder, streams)
        images = run_images(config, folder, streams, before, workers=workers, keep_going=keep_going)
        precision = precision_of(config, folder, before)
        run = _Run(config, folder, streams, images.samples)

        def start(threads: int) -> WorkerContext:
            start_run(config, folder, before, threads=threads, precision=precision)
            images.write_notes(folder)
            work = WorkerContext(folder, config, streams, images.samples, precision, threads)
            work.save()
            run.record()
            return work

        if scheduler is not None:
            with DaskCluster(scheduler, folder) as cluster:
                cluster.threads = _threads(folder, before, threads, cluster.threads_each)
                start(cluster.threads)
                run.many(cluster)
        else:
            each = _threads(
                folder,
                before,
                threads,
                lambda: torch.get_num_threads() if jobs == 1 else max(1, workers_here() // jobs),
            )
            work = start(each)
            if jobs == 1:
                run.one_by_one(work)
            else:
                with LocalProcesses(folder, jobs, each) as processes:
                    run.many(processes)
        failed = run.record(page=True)
    if failed:
        raise TrialsFailedError(folder, failed)
    return folder


class _Run:
    """What is to be done, and the files of the whole run, which this process alone writes."""

    def __init__(
        self, config: Config, folder: Path, streams: Mapping[str, StreamVariant], samples: Sequence[Sample]
    ) -> None:
        self.config, self.folder, self.streams = config, folder, streams
        self.images = images_digests(samples)
        self.units = trials_of(config, streams)
        # Asked once: a user's own file may change while the run goes on.
        self.at_once = {one.title for one in config.strategies if issubclass(strategy_class(one), Joint)}
        self._page_seconds, self._page_at = 0.0, -float("inf")

    def left(self) -> list[Trial]:
        """Return the units that are not finished, and forget that some of them failed."""
        left = []
        for unit in self.units:
            outcome = read_outcome(self.folder / unit.folder)
            if outcome is None or not outcome.finished:
                forget_outcome(self.folder / unit.folder)
                left.append(unit)
        return left

    def one_by_one(self, work: WorkerContext) -> None:
        """Do all units here, one after the other; the first of those that share a base trains it."""
        for unit in self.left():
            perform(work, unit)
            self.record()

    def many(self, executor: Executor) -> None:
        """Do all units elsewhere; bases that several share come first."""
        jobs = self._jobs()
        with task(f"{self.config.name}: runs", total=len(jobs)) as bar:

            def ended(item: Trial | BaseTrial) -> None:
                bar.advance()
                self.record()

            run_jobs(
                jobs,
                executor,
                outcome=lambda item: read_outcome(self.folder / item.folder),
                fail=lambda item, why: write_outcome(
                    self.folder / item.folder, TrialOutcome(False, message=why)
                ),
                ended=ended,
            )

    def _jobs(self) -> list[ScheduledTrial]:
        keys = {one.title: base_key_of(self.config, one) for one in self.config.strategies}
        left = self.left()
        needs: dict[Trial, BaseTrial] = {}
        bases: dict[tuple[str, str, int], BaseTrial] = {}
        for unit in left:
            key = keys[unit.title]
            if key is not None:
                stream = base_stream(self.streams, unit.stream)
                needs[unit] = bases.setdefault(
                    (key, stream, unit.seed), BaseTrial(key, stream, unit.seed, unit.title)
                )
        shared = Counter(needs.values())
        jobs: list[ScheduledTrial] = []
        for unit in left:
            base = needs.get(unit)
            # One that a single unit needs is trained by it; so is none that is there.
            if base is None or shared[base] == 1 or SharedBase(self.folder / base.folder).trained:
                jobs.append(ScheduledTrial(unit))
                continue
            if all(job.item != base for job in jobs):
                forget_outcome(self.folder / base.folder)
                jobs.append(ScheduledTrial(base))
            jobs.append(ScheduledTrial(unit, base))
        return jobs

    def record(self, *, page: bool = False) -> dict[Trial, str]:
        """Make the run's tables of what is finished, and tell what failed and why."""
        results, outcomes = collect_results(self.folder, self.units)
        if len(results):
            results.write(self.folder / "results.csv")
        info = describe(self.config, self.streams, self.units, outcomes, self.images, self.at_once)
        # In the order of the configuration, which is that of tables.
        write_text(self.folder / "run.json", json.dumps(info, indent=2, allow_nan=False) + "\n")
        if len(results) and (page or time.monotonic() - self._page_at > self._page_seconds / _PAGE_SHARE):
            began = time.monotonic()
            try:
                build_report(self.folder)
            except Exception:
                # A page that cannot be made costs no unit that is still to run: at the end it is tried again.
                if page:
                    raise
                self._page_at = float("inf")
            else:
                self._page_at = time.monotonic()
                self._page_seconds = self._page_at - began
        return {unit: end.message for unit, end in outcomes.items() if not end.finished}


@contextmanager
def _alone_at(folder: Path) -> Iterator[None]:
    """Refuse to work at a run that another process is at work at."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"another process is at work at {folder}: wait until it is done, or choose another name"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _threads(folder: Path, before: ResumeState, asked: int | None, default: Callable[[], int]) -> int:
    """Return how many threads each unit has: as many as when the run began, for then its figures come to equal bits."""
    kept = recorded_threads(folder) if before.learned else None
    if kept is None:
        return default() if asked is None else asked
    if asked not in (None, kept):
        raise ConfigError(
            f"{folder} was begun with {kept} thread(s) for each run, and --threads {asked} would change its figures' "
            "last bits: leave it out, or choose another name"
        )
    return kept
