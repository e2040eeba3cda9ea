"""What a benchmark would do and about how long it would take, from a few timed steps of the real networks."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from repmode_cl.scenarios import StreamVariant
from repmode_cl.strategies.build import base_key_of, strategy_class
from repmode_cl.strategies.multi_net import PlainNetworks

from repmode_cl.config import Config, StrategyConfig, TrainingConfig
from repmode_cl.data.manifest import Row, read_manifest
from repmode_cl.data.phantom.field import SIMULATED_VOXEL
from repmode_cl.data.readers import Region, open_image
from repmode_cl.data.recipe import Recipe, VoxelSize
from repmode_cl.devices import resolve_device
from repmode_cl.errors import ImageError
from repmode_cl.inference.windows import plan_windows
from repmode_cl.nn import RepModeUNet
from repmode_cl.nn.unet import checkpoint_activations
from repmode_cl.training import Precision, budget_of_steps, make_adam, masked_mse, resolve_precision

__all__ = ["DryRun", "estimate", "minutes_text", "time_training", "windows_of_image", "windows_of_row"]

#: Of how many rows of a manifest the headers are read, to see how large its images are.
_HEADERS = 20
#: Windows of an image where no header can be read.
_ASSUMED_WINDOWS = 8


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


def minutes_text(seconds: float) -> str:
    """Write a duration as a person would: ``40 s``, ``25 min`` or ``3.1 h``."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def estimate(config: Config, streams: Mapping[str, StreamVariant]) -> DryRun:
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


def windows_of_row(config: Config, row: Row) -> int:
    """Return how many windows the row's image is predicted in, once it is prepared; its header alone is read.

    Raises
    ------
    ImageError, OSError
        If the header cannot be read.
    """
    with open_image(row.signal, scene=row.scene) as image:
        shape = (row.region or Region()).shape_in(image.shape)
        return _windows(config, shape, row.voxel_size or image.voxel_size)


def windows_of_image(config: Config) -> float:
    """Return in how many windows an image is predicted: one of the simulator's, or the median of a manifest's."""
    if config.data.manifest is None:
        return _windows(config, config.data.simulate.shape, SIMULATED_VOXEL)
    rows, found = read_manifest(Path(config.data.manifest)).rows, []
    for row in rows[:: max(1, len(rows) // _HEADERS)]:
        with suppress(ImageError, OSError):  # `data check` says what is wrong with it
            found.append(windows_of_row(config, row))
    return statistics.median(found or [_ASSUMED_WINDOWS])


def _windows(config: Config, shape: Sequence[int], voxel: VoxelSize | None) -> int:
    settings = config.data.preprocessing
    grid = Recipe.of(settings).grid(shape, voxel, settings.voxel_size)
    return len(plan_windows(grid, config.window, config.inference.overlap))


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


def time_training(
    network: RepModeUNet | PlainNetworks,
    structure: str,
    training: TrainingConfig,
    patch: Sequence[int],
    precision: Precision,
    device: torch.device,
    repeats: int = 3,
) -> tuple[float, float]:
    """Return the median seconds of a training step of `structure` on noise, and of predicting one window.

    Parameters
    ----------
    network
        What is trainable is set; its weights are moved a little.
    structure
        One that it knows.
    training, patch
        Batch and micro-batches; voxels (z, y, x).
    precision, device
        What is computed in, and where.
    repeats
        Steps, and windows, that are timed after a first one.
    """
    network.to(device).train()
    checkpoint_activations(network, training.activation_checkpointing)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = make_adam(trained, learning_rate=1e-5)
    parts = training.accumulate
    x = torch.randn(training.batch_size // parts, 1, *patch, device=device)
    names = [structure] * len(x)

    def step() -> None:
        optimizer.zero_grad()
        for _ in range(parts):
            with precision.autocast():
                output = network(x, names)
            masked_mse(output, x).backward()
        optimizer.step()

    step_time = _median(step, device, repeats)
    plain = network.eval().fuse(structure)

    def window() -> None:
        with torch.no_grad():
            plain(x[:1])

    return step_time, _median(window, device, repeats)


def _median(call: Callable[[], None], device: torch.device, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])  # the first sets up what later ones reuse
