"""What a benchmark would do and about how long it would take, from a few timed steps of the real networks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from repmode_cl.strategies.build import STRATEGIES, architecture_of
from repmode_cl.strategies.multi_net import PlainNetworks

from repmode_cl.config import Config, StrategyConfig, TrainingConfig
from repmode_cl.data.manifest import read_manifest
from repmode_cl.devices import resolve_device
from repmode_cl.inference.windows import plan_windows
from repmode_cl.nn import RepModeUNet
from repmode_cl.nn.unet import checkpoint_activations
from repmode_cl.training import Precision, budget_of, make_adam, masked_mse, resolve_precision

__all__ = ["DryRun", "estimate", "minutes_text", "time_training"]

#: A field of the simulator is predicted at its size; of a manifest's images, whose headers are not read, the
#: size is taken to be this many patches.
_ASSUMED_PATCHES = 8


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


def estimate(config: Config, experiences: tuple[tuple[str, ...], ...]) -> DryRun:
    """Time a few steps of each kind of network on noise of the configured size, and multiply."""
    images = _images(config, experiences)
    lines, total = [], 0.0
    shared_base = False
    shape = config.data.simulate.shape if config.data.manifest is None else None
    windows = (
        len(plan_windows(shape, config.patch.size, config.inference.overlap)) if shape else _ASSUMED_PATCHES
    )
    for options in config.strategies:
        joint = STRATEGIES[options.name].joint_base
        step_time, window_time = _time(config, options)
        groups = experiences if joint else tuple((name,) for names in experiences for name in names)
        steps = [
            budget_of(config.training, len(names), sum(images[name][0] for name in names)) for names in groups
        ]
        seconds = 0.0
        for number, (names, budget) in enumerate(zip(groups, steps, strict=True)):
            validations = -(-budget.steps // budget.validate_every)
            held = sum(images[name][1] for name in names)
            if not (number == 0 and joint and shared_base):
                seconds += budget.steps * step_time + validations * held * windows * window_time
            seconds += (
                sum(images[name][2] for group in groups[: number + 1] for name in group)
                * windows
                * window_time
            )
        shared_base |= joint
        count = sum(budget.steps for budget in steps)
        lines.append(
            f"{options.title}: {len(config.seeds)} seed(s) x {count} steps of {config.training.batch_size} patches, "
            f"{step_time:.2f} s a step: about {minutes_text(seconds * len(config.seeds))}"
        )
        total += seconds * len(config.seeds)
    order = ", then ".join(" + ".join(names) for names in experiences)
    return DryRun((f"stream: {order}", *lines), total)


def _images(config: Config, experiences: tuple[tuple[str, ...], ...]) -> dict[str, tuple[int, int, int]]:
    """Return about how many images of each structure train, validate and test."""
    names = [name for group in experiences for name in group]
    if config.data.manifest is None:
        counts = dict.fromkeys(names, config.data.simulate.fields)
    else:
        manifest = read_manifest(config.data.manifest)
        counts = {name: len(manifest.for_structure(name)) for name in names}
    found = {}
    for name, count in counts.items():
        test = round(count * config.data.test_fraction)
        val = round((count - test) * config.data.val_fraction)
        found[name] = (count - test - val, val, test)
    return found


def _time(config: Config, options: StrategyConfig) -> tuple[float, float]:
    """Return the median seconds of a training step and of predicting one window."""
    device = resolve_device(config.training.device)
    precision = resolve_precision(config.training.precision, device)
    architecture = architecture_of(config)
    network: RepModeUNet | PlainNetworks
    if options.name == "multi_net":
        network = PlainNetworks(architecture, options.kernel)
        network.add("dna", seed=0)
    else:
        network = RepModeUNet(architecture, ["dna"])
    network.train_only(["dna"])
    return time_training(network, "dna", config.training, config.patch.size, precision, device)


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

    def window() -> None:
        with torch.no_grad():
            network.fuse(structure)(x[:1])

    step_time = _median(step, device, repeats)
    network.eval()
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
