"""Dry run of a benchmark: what would run and about how long, from a few timed steps of the real networks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repmode_cl.benchmark.trials import threads_of_trial
from repmode_cl.config import Config, StrategyConfig
from repmode_cl.data.manifest import read_manifest
from repmode_cl.errors import ConfigError, counted
from repmode_cl.scenarios import StreamVariant
from repmode_cl.strategies.hooks import StrategyHooks
from repmode_cl.strategies.multi_net import PlainNetworks
from repmode_cl.strategies.off_the_shelf import TaskAgnosticNetwork
from repmode_cl.strategies.registry import base_key_of, strategy_class, strategy_section
from repmode_cl.strategies.timing import time_training, windows_of_image
from repmode_cl.training import budget_of_steps, resolve_precision
from repmode_cl.utils.devices import resolve_device
from repmode_cl.utils.environment import with_threads
from repmode_cl.utils.progress import duration_text

__all__ = ["DryRun", "estimate_run"]


@dataclass(frozen=True)
class DryRun:
    """Estimate of a benchmark that was not run.

    Attributes
    ----------
    lines
        One per stream and strategy: what it trains and about how long.
    seconds
        Estimated seconds of all training and evaluation, one trial after the other.
    of_strategies
        Title of a strategy -> its part of the seconds. A base that several share counts for the first.
    jobs
        Trials that would run at once.
    threads
        Threads of each trial; steps were timed with as many.
    finished
        Of a run that is resumed: how many of its trials are finished, and of how many. The seconds are of all.
    """

    lines: tuple[str, ...]
    seconds: float
    of_strategies: Mapping[str, float] = field(default_factory=dict)
    jobs: int = 1
    threads: int = 1
    finished: tuple[int, int] | None = None

    def __str__(self) -> str:
        total = f"about {duration_text(self.seconds)} in all"
        if self.jobs > 1:
            total += f", {duration_text(self.seconds / self.jobs)} with {self.jobs} trials at once"
        lines = [*self.lines, f"{total}, {counted(self.threads, 'thread')} each; nothing was run"]
        if self.finished is not None:
            done, trials = self.finished
            lines.append(
                f"{done} of {counted(trials, 'run')} are finished, and would not be run again: less is left"
            )
        return "\n".join(lines)


def estimate_run(
    config: Config,
    streams: Mapping[str, StreamVariant],
    *,
    jobs: int = 1,
    threads: int | None = None,
    scheduler: str | None = None,
) -> DryRun:
    """Time a few steps of each kind of network on noise of the configured size, and multiply.

    Parameters
    ----------
    config
        The benchmark's configuration.
    streams
        Streams by name.
    jobs
        Trials that would run at once, at most one for each trial.
    threads
        Threads of each trial; by default torch's, divided among `jobs`.
    scheduler
        Must be None: a cluster's machines are not timed.

    Raises
    ------
    ConfigError
        If a scheduler is given.
    """
    if scheduler is not None:
        raise ConfigError("a dry run times steps on this machine, not on a cluster's: leave out --scheduler")
    threads = threads_of_trial(jobs) if threads is None else threads
    jobs = min(jobs, len(config.strategies) * len(config.seeds) * len(streams))
    with with_threads(threads):
        return _estimate(config, streams, jobs, threads)


def _estimate(config: Config, streams: Mapping[str, StreamVariant], jobs: int, threads: int) -> DryRun:
    windows = windows_of_image(config)
    timed: dict[tuple[object, ...], tuple[float, float]] = {}
    bases: set[tuple[str, tuple[str, ...]]] = set()
    lines = [_stream_line(name, variant) for name, variant in streams.items()]
    of_strategies: dict[str, float] = {}
    for options in config.strategies:
        # Networks of one kind are timed once.
        kind = (
            options.title if options.is_external else _network_kind(options),
            options.kernel,
            options.head,
            config.of_strategy(options).network,
        )
        if kind not in timed:
            timed[kind] = _time_network(config, options)
        step_time, window_time = timed[kind]
        seconds, counts = 0.0, []
        for variant in streams.values():
            trial_seconds, trial_steps = _estimate_trial(
                config, options, variant, step_time, windows * window_time, bases
            )
            seconds += trial_seconds * len(config.seeds)
            counts.append(trial_steps)
        steps = str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
        times_streams = f" x {len(streams)} streams" if len(streams) > 1 else ""
        lines.append(
            f"{options.title}: {len(config.seeds)} seed(s){times_streams} x {steps} steps of "
            f"{config.training.batch_size} patches, {step_time:.2f} s a step: about {duration_text(seconds)}"
        )
        of_strategies[options.title] = seconds
    return DryRun(tuple(lines), sum(of_strategies.values()), of_strategies, jobs, threads)


def _stream_line(name: str, variant: StreamVariant) -> str:
    order = ", then ".join(" + ".join(names) for names in variant.experiences)
    limit = "" if variant.images is None else f" ({variant.images} image(s) of each after the first)"
    return f"stream{f' {name}' if name else ''}: {order}{limit}"


def _network_kind(options: StrategyConfig) -> str:
    """Return ``repmode`` for all strategies that begin with its network, and else what is timed by itself."""
    made_by = strategy_class(options).make_network.__func__  # type: ignore[attr-defined]
    repmode = made_by is StrategyHooks.make_network.__func__  # type: ignore[attr-defined]
    return "repmode" if repmode else f"{options.name} {options.of}"


def _estimate_trial(
    config: Config,
    options: StrategyConfig,
    variant: StreamVariant,
    step_time: float,
    image_time: float,
    bases: set[tuple[str, tuple[str, ...]]],
) -> tuple[float, int]:
    """Return seconds and steps of one trial; `bases` are those trained already, and those of the trial are added."""
    images = _image_counts(config, variant)
    kind, section = strategy_class(options), strategy_section(options)
    groups, done_after = kind.regroup(variant.experiences, section)
    seconds, count = 0.0, 0
    learned: dict[str, None] = {}
    for number, names in enumerate(groups):
        training = sum(images[name][0] for name in names)
        steps = kind.steps_of(config.training, section, variant.experiences, names, training)
        budget = budget_of_steps(config.training, steps, training)
        base = (key, names) if number == 0 and (key := base_key_of(config, options)) is not None else None
        if base is None or base not in bases:
            validations = -(-budget.steps // budget.validate_every)
            selecting = {*names, *learned} if config.training.select_by == "known" else names
            validation_images = sum(images[name][1] for name in selecting)
            seconds += budget.steps * step_time * kind.cost_of_step(section, config.training, len(learned))
            seconds += validations * validation_images * image_time
        if base is not None:
            bases.add(base)
        learned |= dict.fromkeys(names)
        if number + 1 == len(groups) or done_after[number + 1] > done_after[number]:
            seconds += sum(images[name][2] for name in learned) * image_time
        count += budget.steps
    return seconds, count


def _image_counts(config: Config, variant: StreamVariant) -> dict[str, tuple[int, int, int]]:
    """Return about how many images of each structure train (at each arrival), validate and test."""
    times = Counter(name for group in variant.experiences for name in group)
    if config.data.manifest is None:
        counts = dict.fromkeys(times, config.data.simulate.fields)
    else:
        manifest = read_manifest(Path(config.data.manifest))
        counts = {name: len(manifest.for_structure(name)) for name in times}
    split_counts = {}
    for name, count in counts.items():
        test = round(count * config.data.test_fraction)
        val = round((count - test) * config.data.val_fraction)
        train = -(-(count - test - val) // times[name])
        if variant.images is not None and name not in variant.experiences[0]:
            train = min(train, variant.images)
        split_counts[name] = (train, val, test)
    return split_counts


def _time_network(config: Config, options: StrategyConfig) -> tuple[float, float]:
    """Return the median seconds of a step of `batch_size` patches and of predicting one window."""
    device = resolve_device(config.training.device)
    precision = resolve_precision(config.training.precision, device)
    config = config.of_strategy(options)
    network: Any = strategy_class(options).make_network(config, strategy_section(options), ["dna"], 0)
    if isinstance(network, PlainNetworks):
        network.add("dna", seed=0)
    if isinstance(network, TaskAgnosticNetwork):
        network = network.for_timing("dna")
    network.train_only(["dna"])
    step, window = time_training(network, "dna", config.training, config.patch.size, precision, device)
    return step, window * math.prod(config.window) / math.prod(config.patch.size)
