"""What a benchmark would do and about how long it would take, from a few timed steps of the real networks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.data.manifest import read_manifest
from repmode_cl.scenarios import StreamVariant
from repmode_cl.strategies.multi_net import PlainNetworks
from repmode_cl.strategies.registry import base_key_of, strategy_class
from repmode_cl.strategies.timing import minutes_text, time_training, windows_of_image
from repmode_cl.training import budget_of_steps, resolve_precision
from repmode_cl.utils.devices import resolve_device

__all__ = ["DryRun", "estimate_run"]


@dataclass(frozen=True)
class DryRun:
    """What would run.

    Attributes
    ----------
    lines
        One per strategy: what it trains and about how long.
    seconds
        In all, training and evaluation.
    """

    lines: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        return "\n".join([*self.lines, f"about {minutes_text(self.seconds)} in all; nothing was run"])


def estimate_run(config: Config, streams: Mapping[str, StreamVariant]) -> DryRun:
    """Time a few steps of each kind of network on noise of the configured size, and multiply.

    Parameters
    ----------
    config
        What would run.
    streams
        What arrives when, by name.
    """
    windows = windows_of_image(config)
    timed: dict[tuple[str, int, str], tuple[float, float]] = {}
    bases: set[tuple[str, tuple[str, ...]]] = set()
    lines = [_stream_line(name, variant) for name, variant in streams.items()]
    total = 0.0
    for options in config.strategies:
        # Networks of one kind are timed once.
        kind = (options.name if options.is_custom else _network_of(options), options.kernel, options.head)
        if kind not in timed:
            timed[kind] = _time(config, options)
        step_time, window_time = timed[kind]
        seconds, counts = 0.0, []
        for variant in streams.values():
            found = _one(config, options, variant, step_time, windows * window_time, bases)
            seconds += found[0] * len(config.seeds)
            counts.append(found[1])
        steps = str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
        many = f" x {len(streams)} streams" if len(streams) > 1 else ""
        lines.append(
            f"{options.title}: {len(config.seeds)} seed(s){many} x {steps} steps of {config.training.batch_size} "
            f"patches, {step_time:.2f} s a step: about {minutes_text(seconds)}"
        )
        total += seconds
    return DryRun(tuple(lines), total)


def _stream_line(name: str, variant: StreamVariant) -> str:
    order = ", then ".join(" + ".join(names) for names in variant.experiences)
    few = "" if variant.images is None else f" ({variant.images} image(s) of each after the first)"
    return f"stream{f' {name}' if name else ''}: {order}{few}"


def _network_of(options: StrategyConfig) -> str:
    return options.name if options.name in ("multi_net", "multi_head") else "repmode"


def _one(
    config: Config,
    options: StrategyConfig,
    variant: StreamVariant,
    step_time: float,
    image_time: float,
    bases: set[tuple[str, tuple[str, ...]]],
) -> tuple[float, int]:
    """Return seconds and steps of one strategy with one stream and seed; `bases` are those trained already."""
    images = _images(config, variant)
    kind = strategy_class(options)
    groups, done_after = kind.regroup(variant.experiences, options)
    seconds, count = 0.0, 0
    known: dict[str, None] = {}
    for number, names in enumerate(groups):
        training = sum(images[name][0] for name in names)
        steps = kind.steps_of(config.training, options, variant.experiences, names, training)
        budget = budget_of_steps(config.training, steps, training)
        base = (key, names) if number == 0 and (key := base_key_of(config, options)) is not None else None
        if base is None or base not in bases:
            validations = -(-budget.steps // budget.validate_every)
            held = sum(images[name][1] for name in names)
            seconds += budget.steps * step_time * kind.cost_of_step(options, config.training, len(known))
            seconds += validations * held * image_time
        if base is not None:
            bases.add(base)
        known |= dict.fromkeys(names)
        if number + 1 == len(groups) or done_after[number + 1] > done_after[number]:
            seconds += sum(images[name][2] for name in known) * image_time
        count += budget.steps
    return seconds, count


def _images(config: Config, variant: StreamVariant) -> dict[str, tuple[int, int, int]]:
    """Return about how many images of each structure train (each time), validate and test."""
    times = Counter(name for group in variant.experiences for name in group)
    if config.data.manifest is None:
        counts = dict.fromkeys(times, config.data.simulate.fields)
    else:
        manifest = read_manifest(Path(config.data.manifest))
        counts = {name: len(manifest.for_structure(name)) for name in times}
    found = {}
    for name, count in counts.items():
        test = round(count * config.data.test_fraction)
        val = round((count - test) * config.data.val_fraction)
        train = -(-(count - test - val) // times[name])
        if variant.images is not None and name not in variant.experiences[0]:
            train = min(train, variant.images)
        found[name] = (train, val, test)
    return found


def _time(config: Config, options: StrategyConfig) -> tuple[float, float]:
    """Return the median seconds of a step of `batch_size` patches and of predicting one window."""
    device = resolve_device(config.training.device)
    precision = resolve_precision(config.training.precision, device)
    network: Any = strategy_class(options).make_network(config, options, ["dna"], 0)
    if isinstance(network, PlainNetworks):
        network.add("dna", seed=0)
    network.train_only(["dna"])
    step, window = time_training(network, "dna", config.training, config.patch.size, precision, device)
    return step, window * math.prod(config.window) / math.prod(config.patch.size)
