"""A whole search: trials are proposed, run as a benchmark, measured, and the best of each strategy is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from repmode_cl.benchmark.check_strategies import check_strategies
from repmode_cl.benchmark.dry_run import DryRun, estimate_run
from repmode_cl.benchmark.run import run_benchmark
from repmode_cl.benchmark.search.plan import SearchPlan, plan_search, trial_title
from repmode_cl.benchmark.search.study_files import matching_strategies, write_studies
from repmode_cl.benchmark.search.trial_store import STORE, StoredTrial, TrialStore, require_optuna
from repmode_cl.config import Config
from repmode_cl.config.diff import RESULT_NEUTRAL_KEYS, first_difference
from repmode_cl.config.load import dump_config, parse_recorded_config
from repmode_cl.data.pipeline import available_structures
from repmode_cl.errors import ConfigError, RepmodeError
from repmode_cl.evaluation.search_score import RULES, bytes_of_trial, score_of_trial
from repmode_cl.report.search import build_search_report
from repmode_cl.results.results_table import ResultsTable
from repmode_cl.results.run_info import RUN_FILE
from repmode_cl.results.search_table import SEARCH_TABLE, SearchRow, write_search_table
from repmode_cl.scenarios import stream_variants
from repmode_cl.utils.atomic_files import write_text
from repmode_cl.utils.locks import exclusive
from repmode_cl.utils.progress import duration_text, report_line

__all__ = ["SearchResult", "run_search"]

#: The search's configuration in its folder; config.yaml is that of the run of its trials.
_CONFIG = "search.yaml"


class SearchResult:
    """A finished search.

    Parameters
    ----------
    plan
        The search.
    rows
        All its trials, by strategy and number.
    studies
        Configurations with the chosen values.
    """

    def __init__(self, plan: SearchPlan, rows: Sequence[SearchRow], studies: Sequence[Path]) -> None:
        self.folder, self.rule = plan.folder, RULES[plan.search.rule]
        self.rows, self.studies = tuple(rows), tuple(studies)

    @property
    def page(self) -> Path:
        """The table as a page."""
        return self.folder / "search.html"


def run_search(
    config: Config, *, resume: bool = False, dry_run: bool = False, **options: Any
) -> SearchResult | DryRun:
    """Search for values of the strategies' keys, or estimate what that would take.

    The trials are a separate run of the benchmark, in which every trial is a strategy: it shares bases, runs in
    several processes or on a cluster, and continues as every run does.

    Parameters
    ----------
    config
        A configuration with `search`.
    resume
        Continue an interrupted search of the same configuration.
    dry_run
        Run nothing; return what would run and about how long.
    options
        As for `run_benchmark`.

    Raises
    ------
    ConfigError
        If the search is wrong, its folder holds a run already and `resume` is not given, or another search.
    TrialsFailedError
        If trials failed; `resume` tries them again. Nothing is chosen before all have ended well.
    RepmodeError
        If optuna is not installed, or no trial of a strategy has finite figures.
    """
    plan = plan_search(config)
    matching_strategies(plan)
    require_optuna()
    if dry_run:
        timed = ("jobs", "threads", "scheduler")
        return _estimate(plan, **{key: value for key, value in options.items() if key in timed})
    busy = f"another process is at work at {plan.folder} ({{holder}}): wait until it is done"
    lock = plan.folder / ".search.lock"
    _check_not_started(plan, resume=resume)
    check_strategies(plan.run({title: plan.examples(title) for title in plan.ranges}), _streams(plan))
    with exclusive(lock, busy, error=ConfigError, holder=lock.with_suffix(".holder")):
        _check_same(plan)
        write_text(plan.folder / _CONFIG, dump_config(config))
        store = TrialStore(plan)
        try:
            return _search(plan, store, options)
        finally:
            store.close()


def _search(plan: SearchPlan, store: TrialStore, options: Mapping[str, Any]) -> SearchResult:
    report_line(f"{plan.folder.name}: {_what_trials_see(plan)}")
    for first in range(0, plan.trials, plan.batch):
        count = min(first + plan.batch, plan.trials)
        for title in plan.ranges:
            store.propose(title, count)
        trials = {title: store.trials(title) for title in plan.ranges}
        if all(one.measured for own in trials.values() for one in own[:count]):
            continue
        report_line(
            f"{plan.folder.name}: trials {first} to {count - 1} of {plan.trials} of each strategy, measured together"
        )
        run_benchmark(_run_of(plan, trials), resume=True, **options)
        results = ResultsTable.read(plan.folder / "results.csv")
        # In the order of their numbers, whichever ended first.
        for title, own in trials.items():
            for number, one in enumerate(own):
                if not one.measured:
                    store.record(title, number, _score(_scores(plan, results, title, number)))
    rows = _rows(plan, {title: store.trials(title) for title in plan.ranges})
    write_search_table(plan.folder / SEARCH_TABLE, rows)
    build_search_report(
        plan.folder / "search.html",
        rows,
        title=plan.config.name,
        rule=RULES[plan.search.rule],
        settings=_settings(plan),
    )
    chosen = {row.strategy for row in rows if row.chosen}
    if diverged := [title for title in plan.ranges if title not in chosen]:
        raise RepmodeError(
            f"{plan.folder}: no trial of {', '.join(diverged)} has finite figures, so that none can be chosen: search "
            f"lower learning rates or strengths under another name ({SEARCH_TABLE} has the others)"
        )
    return SearchResult(plan, rows, write_studies(plan, rows))


def _run_of(plan: SearchPlan, trials: Mapping[str, Sequence[StoredTrial]]) -> Config:
    return plan.run({title: [one.values for one in own] for title, own in trials.items()})


def _scores(plan: SearchPlan, results: ResultsTable, title: str, number: int) -> dict[int, float | None]:
    """Return what a trial is worth with each seed: the mean over streams."""
    streams = _streams(plan)
    scores = {}
    for seed in plan.seeds:
        of_streams = [
            score_of_trial(
                results,
                trial_title(title, number),
                variant.experiences,
                seed=seed,
                stream=name,
                rule=plan.search.rule,
            )
            for name, variant in streams.items()
        ]
        scores[seed] = _score(dict(enumerate(of_streams)))
    return scores


def _score(scores: Mapping[int, float | None]) -> float | None:
    """Return the mean, or None where one is missing: a trial that diverges with one seed is not chosen."""
    found = [score for score in scores.values() if score is not None]
    return fmean(found) if len(found) == len(scores) else None


def _rows(plan: SearchPlan, trials: Mapping[str, Sequence[StoredTrial]]) -> list[SearchRow]:
    """Return all trials; the best of each strategy is chosen: of equal ones that of fewest bytes, then the first."""
    results = ResultsTable.read(plan.folder / "results.csv")
    rows = []
    for title, own in trials.items():
        of_strategy = [
            SearchRow(
                strategy=title,
                number=number,
                title=trial_title(title, number),
                values=one.values,
                score=one.score,
                scores=_scores(plan, results, title, number),
                size=bytes_of_trial(results, trial_title(title, number)),
            )
            for number, one in enumerate(own)
        ]
        finite = [(-row.score, row.size, row.number) for row in of_strategy if row.score is not None]
        if finite:
            best = of_strategy[min(finite)[-1]]
            edges = tuple(key for key, one in plan.ranges[title].items() if one.at_edge(best.values[key]))
            of_strategy[best.number] = replace(best, chosen=True, edges=edges)
        rows += of_strategy
    return rows


def _streams(plan: SearchPlan) -> Mapping[str, Any]:
    return stream_variants(plan.config.stream, available_structures(plan.config))


def _images_text(plan: SearchPlan) -> str:
    if plan.data.without_test:
        return "training and validation images of the study, split again"
    return f"simulated, data.simulate.seed {plan.data.simulate.seed}"


def _what_trials_see(plan: SearchPlan) -> str:
    """Return the seeds and the images of the trials, which need not be those of the configuration."""
    return f"trials with {', '.join(f'seed {seed}' for seed in plan.seeds)}, on images: {_images_text(plan)}"


def _settings(plan: SearchPlan) -> list[tuple[str, str]]:
    return [
        ("sampler", plan.search.sampler),
        ("trials of each strategy", str(plan.trials)),
        ("seeds", ", ".join(map(str, plan.seeds))),
        ("images", _images_text(plan)),
    ]


def _estimate(plan: SearchPlan, **options: Any) -> DryRun:
    """Return what all trials would take, with a line for each strategy."""
    streams = _streams(plan)
    run = plan.run({title: plan.examples(title) for title in plan.ranges})
    check_strategies(run, streams)
    estimate = estimate_run(run, streams, **options)
    lines = [line for line in estimate.lines if line.startswith("stream")][: len(streams)]
    for title in plan.ranges:
        seconds = sum(estimate.of_strategies[trial_title(title, number)] for number in range(plan.trials))
        keys = ", ".join(_range_text(plan, title, key) for key in plan.ranges[title])
        lines.append(
            f"{title}: {plan.trials} trials x {len(plan.seeds)} seed(s) over {keys}: about {duration_text(seconds)}"
        )
    total = len(plan.ranges) * plan.trials * len(plan.seeds) * len(streams)
    lines.append(_what_trials_see(plan))
    lines.append(f"{total} runs in {plan.folder}; chosen is the best {RULES[plan.search.rule]}")
    return replace(estimate, lines=tuple(lines))


def _range_text(plan: SearchPlan, title: str, key: str) -> str:
    one = plan.ranges[title][key]
    return f"{key} {', '.join(map(str, one.grid))}" if one.grid else f"{key} {one.low:g} to {one.high:g}"


def _check_not_started(plan: SearchPlan, *, resume: bool) -> None:
    folder = plan.folder
    if not (folder / RUN_FILE).exists():
        return
    if not (folder / _CONFIG).exists():
        raise ConfigError(f"{folder} holds a run that is no search: choose another name (--set name=NAME)")
    if not resume:
        raise ConfigError(
            f"{folder} holds a search already: continue it with --resume, or choose another name or output "
            "(--set name=NAME), or remove the folder"
        )


def _check_same(plan: SearchPlan) -> None:
    """Refuse to continue another search; one of which nothing has run yet starts over."""
    folder, path = plan.folder, plan.folder / _CONFIG
    if not (folder / RUN_FILE).exists():
        if not path.exists() or path.read_text(encoding="utf-8") != dump_config(plan.config):
            (folder / STORE).unlink(missing_ok=True)
        return
    before = parse_recorded_config(path.read_text(encoding="utf-8"), str(path))
    difference = first_difference(before, plan.config, RESULT_NEUTRAL_KEYS)
    titles = [[one.title for one in config.strategies] for config in (before, plan.config)]
    if difference is None and titles[0] != titles[1]:
        difference = f"strategies were {titles[0]} and are {titles[1]} now"
    if difference is not None:
        raise ConfigError(
            f"{folder} was started as another search: {difference}; resume with the same, or choose another name"
        )
