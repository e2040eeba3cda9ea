"""A whole benchmark: every strategy with every stream and seed, one results.csv, one report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from repmode_cl.benchmark.check_strategies import check_strategies
from repmode_cl.benchmark.dry_run import DryRun, estimate_run
from repmode_cl.benchmark.executors.dask import DaskCluster
from repmode_cl.benchmark.executors.local import LocalProcesses
from repmode_cl.benchmark.executors.scheduling import Executor, ScheduledTrial, run_trials
from repmode_cl.benchmark.perform_trial import perform_trial
from repmode_cl.benchmark.resume import (
    ResumeState,
    check_not_started,
    check_run,
    precision_of,
    recorded_threads,
    start_run,
)
from repmode_cl.benchmark.run_images import run_images
from repmode_cl.benchmark.shared_base import SharedBase
from repmode_cl.benchmark.trials import (
    BaseTrial,
    base_stream,
    collect_results,
    threads_of_trial,
    trials_of,
)
from repmode_cl.benchmark.worker_context import WorkerContext
from repmode_cl.config import Config
from repmode_cl.config.comparison_schema import check_planned_streams
from repmode_cl.data.pipeline import available_structures
from repmode_cl.data.sample import Sample, structure_digests
from repmode_cl.errors import ConfigError, RepmodeError, counted
from repmode_cl.evaluation.image_quality import check_measures
from repmode_cl.report.page import build_report
from repmode_cl.results.run_info import RunInfo, stream_groups, write_run_info
from repmode_cl.results.trial_record import (
    LOG,
    Trial,
    TrialOutcome,
    read_outcome,
    remove_outcome,
    write_outcome,
)
from repmode_cl.scenarios import StreamVariant, stream_variants, task_labels
from repmode_cl.strategies.registry import base_key_of, code_digest, strategy_class, strategy_section
from repmode_cl.structures import check_new_structure_name
from repmode_cl.training import refuse_distributed
from repmode_cl.utils.locks import exclusive
from repmode_cl.utils.progress import duration_text, report_line, task

__all__ = ["run_benchmark", "TrialsFailedError"]

#: The page is made again while a run goes on, unless that would take more than this part of the time.
_PAGE_SHARE = 0.05


class TrialsFailedError(RepmodeError):
    """Some trials of a benchmark failed; the others are finished and in its report.

    Parameters
    ----------
    folder
        The run's folder.
    failed
        Trial -> message of its error.
    """

    def __init__(self, folder: Path, failed: Mapping[Trial, str]) -> None:
        logs = {trial: folder / trial.folder / LOG for trial in failed}
        # A trial whose base failed never began.
        lines = [
            f"  {trial}: {message}" + (f"\n    log: {logs[trial]}" if logs[trial].exists() else "")
            for trial, message in failed.items()
        ]
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
    """Run a benchmark, or estimate what it would take.

    Parameters
    ----------
    config
        The benchmark's configuration.
    resume
        Resume an interrupted run of the same configuration: finished trials stay, interrupted ones resume from their
        last checkpoint, failed ones are tried again. Strategies, streams and seeds may have been added.
    dry_run
        Run nothing; return what would run and about how long.
    workers
        Processes that simulate and prepare images.
    jobs
        Trials (strategy, stream, seed) that run at the same time, each in its own process; 1 runs one after the other
        in this process.
    scheduler
        Address of a Dask scheduler, or path of its file: trials run on its workers, which see the run's folder at the
        same path. `jobs` is ignored then.
    threads
        Threads of each trial. By default torch's, divided among `jobs`; a resumed run keeps the number that it was
        started with.
    keep_going
        Leave out rows of the manifest whose images cannot be used, and list them in ``left_out.csv``.

    Returns
    -------
    Path or DryRun
        The run's folder, which holds ``results.csv`` and ``report.html``.

    Raises
    ------
    RepmodeError
        If a measure of ``evaluation.measures`` needs a package that is not installed.
    ConfigError
        If the folder holds a run already and `resume` is not given, or a run of another configuration, or another
        process is at work at it; or if the configuration is that of a search.
    StructureError
        If a structure has a name that no new one may have.
    TrialsFailedError
        If trials failed; raised at the end.
    """
    if config.search is not None:
        raise ConfigError(
            f"{config.name}: the configuration has the group 'search': run_search runs it, or set search to None"
        )
    check_measures(config.evaluation.measures)
    streams = stream_variants(config.stream, available_structures(config))
    if not resume:  # a run of an earlier version may have other names
        for name in {one for variant in streams.values() for names in variant.experiences for one in names}:
            check_new_structure_name(name)
    check_planned_streams(config.comparisons, stream_groups(streams).values())
    check_strategies(config, streams, rehearse_all=dry_run)
    if dry_run:
        estimate = estimate_run(config, streams, jobs=jobs, threads=threads, scheduler=scheduler)
        return replace(estimate, finished=_finished(config, streams)) if resume else estimate
    refuse_distributed("a benchmark")
    folder = Path(config.output) / config.name
    check_not_started(folder, resume=resume)
    with _run_lock(folder):
        # All checks come first, and write nothing.
        state = check_run(config, folder, streams)
        images = run_images(config, folder, streams, state, workers=workers, keep_going=keep_going)
        precision = precision_of(config, folder, state)
        run = _Run(config, folder, streams, images.samples)

        def start(threads: int) -> WorkerContext:
            start_run(config, folder, state, threads=threads, precision=precision)
            images.write_notes(folder)
            context = WorkerContext(folder, config, streams, images.samples, precision, threads)
            context.save()
            run.record()
            return context

        if scheduler is not None:
            with DaskCluster(scheduler, folder) as cluster:
                cluster.threads = _threads(folder, state, threads, cluster.threads_each)
                start(cluster.threads)
                run.run_on(cluster)
        else:
            trial_threads = _threads(folder, state, threads, lambda: threads_of_trial(jobs))
            context = start(trial_threads)
            if jobs == 1:
                run.run_here(context)
            else:
                with LocalProcesses(folder, jobs, trial_threads) as processes:
                    run.run_on(processes)
        failed = run.record(page=True)
    if failed:
        raise TrialsFailedError(folder, failed)
    return folder


class _Run:
    """A run's trials, and the files of the whole run, which only this process writes."""

    def __init__(
        self, config: Config, folder: Path, streams: Mapping[str, StreamVariant], samples: Sequence[Sample]
    ) -> None:
        self.config, self.folder, self.streams = config, folder, streams
        self.images = structure_digests(samples)
        self.trials = trials_of(config, streams)
        # Determined once: a user's own file may change while the run goes on.
        self.joint_titles = {
            one.title
            for one in config.strategies
            if strategy_class(one).learns_at_once(strategy_section(one))
        }
        self._page_seconds, self._page_at = 0.0, -float("inf")

    def remaining(self) -> list[Trial]:
        """Return the trials that are not finished, and remove the outcomes of those that failed."""
        remaining = []
        for trial in self.trials:
            outcome = read_outcome(self.folder / trial.folder)
            if outcome is None or not outcome.finished:
                remove_outcome(self.folder / trial.folder)
                remaining.append(trial)
        return remaining

    def run_here(self, context: WorkerContext) -> None:
        """Run all trials in this process, one after the other; the first of those that share a base trains it."""
        remaining = self.remaining()
        self._report_start(remaining)
        began = time.monotonic()
        for done, trial in enumerate(remaining, 1):
            perform_trial(context, trial)
            self.record()
            if left := len(remaining) - done:
                seconds = (time.monotonic() - began) / done * left
                report_line(
                    f"{self.config.name}: {trial} has ended, {done} of {len(remaining)} runs, "
                    f"about {duration_text(seconds)} left"
                )

    def _report_start(self, remaining: Sequence[Trial]) -> None:
        done = len(self.trials) - len(remaining)
        continuing = f", continuing after {done} of {len(self.trials)}" if done else ""
        report_line(f"{self.config.name}: {counted(len(remaining), 'run')} in {self.folder}{continuing}")

    def run_on(self, executor: Executor) -> None:
        """Run all trials in other processes; bases that several share come first."""
        jobs = self._jobs()
        self._report_start([job.trial for job in jobs if isinstance(job.trial, Trial)])
        report_line(f"{self.config.name}: the steps of each run are in its {LOG}")
        with task(f"{self.config.name}: runs", total=len(jobs), unit="run") as bar:

            def ended(trial: Trial | BaseTrial) -> None:
                bar.advance()
                bar.report(f"{trial} has ended")
                self.record()

            def fail(trial: Trial | BaseTrial, message: str) -> None:
                write_outcome(self.folder / trial.folder, TrialOutcome(False, message=message))

            run_trials(
                jobs,
                executor,
                outcome=lambda trial: read_outcome(self.folder / trial.folder),
                fail=fail,
                ended=ended,
            )

    def _jobs(self) -> list[ScheduledTrial]:
        keys = {one.title: base_key_of(self.config, one) for one in self.config.strategies}
        remaining = self.remaining()
        base_of: dict[Trial, BaseTrial] = {}
        bases: dict[tuple[str, str, int], BaseTrial] = {}
        for trial in remaining:
            key = keys[trial.title]
            if key is not None:
                stream = base_stream(self.streams, trial.stream)
                base_of[trial] = bases.setdefault(
                    (key, stream, trial.seed), BaseTrial(key, stream, trial.seed, trial.title)
                )
        users = Counter(base_of.values())
        jobs: list[ScheduledTrial] = []
        for trial in remaining:
            base = base_of.get(trial)
            # A base that only one trial needs is trained by that trial; one that is there is not trained again.
            if base is None or users[base] == 1 or SharedBase(self.folder / base.folder).trained:
                jobs.append(ScheduledTrial(trial))
                continue
            if all(job.trial != base for job in jobs):
                remove_outcome(self.folder / base.folder)
                jobs.append(ScheduledTrial(base))
            jobs.append(ScheduledTrial(trial, base))
        return jobs

    def record(self, *, page: bool = False) -> dict[Trial, str]:
        """Write results.csv and run.json of the trials that have ended, and return the messages of those that failed.

        The page is made again too: always if `page`, else where that takes little of the time.
        """
        results, outcomes = collect_results(self.folder, self.trials)
        if len(results):
            results.write(self.folder / "results.csv")
        experiences = {name: variant.experiences for name, variant in self.streams.items()}
        info = RunInfo.of_run(
            self.config,
            experiences,
            outcomes,
            images=self.images,
            file_digests={one.title: code_digest(self.config, one) for one in self.config.strategies},
            joint_titles=self.joint_titles,
            task_labels=task_labels([names for groups in experiences.values() for names in groups]),
        )
        write_run_info(self.folder, info)
        if len(results) and (page or time.monotonic() - self._page_at > self._page_seconds / _PAGE_SHARE):
            began = time.monotonic()
            try:
                build_report(self.folder)
            except Exception:
                # A page that cannot be made stops no trial that is still to run: it is tried again at the end.
                if page:
                    raise
                self._page_at = float("inf")
            else:
                self._page_at = time.monotonic()
                self._page_seconds = self._page_at - began
        return {trial: outcome.message for trial, outcome in outcomes.items() if not outcome.finished}


def _finished(config: Config, streams: Mapping[str, StreamVariant]) -> tuple[int, int]:
    """Return how many trials of the run's folder are finished, and of how many."""
    folder = Path(config.output) / config.name
    outcomes = [read_outcome(folder / trial.folder) for trial in trials_of(config, streams)]
    return sum(one is not None and one.finished for one in outcomes), len(outcomes)


@contextmanager
def _run_lock(folder: Path) -> Iterator[None]:
    """Hold the run's lock; refuse a run that another process is at work at."""
    busy = (
        f"another process is at work at {folder} ({{holder}}): wait until it is done, or choose another name"
    )
    with exclusive(folder / ".lock", busy, error=ConfigError, holder=folder / ".lock.holder"):
        yield


def _threads(folder: Path, state: ResumeState, requested: int | None, default: Callable[[], int]) -> int:
    """Return how many threads each trial has: as many as when the run started, so that its bits stay the same."""
    recorded = recorded_threads(folder) if state.learned else None
    if recorded is None:
        return default() if requested is None else requested
    if requested not in (None, recorded):
        raise ConfigError(
            f"{folder} was started with {recorded} thread(s) for each run, and --threads {requested} would change its "
            "figures' last bits: leave it out, or choose another name"
        )
    return recorded
