"""Checks of a configuration's strategies, made before anything is run or written."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from repmode_cl.benchmark.rehearsal import rehearse
from repmode_cl.config import Config, StrategyConfig
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError, ImageError, RepmodeError
from repmode_cl.scenarios import PatchSampling, StreamVariant, stream_of_samples, task_labels
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.extensions import check_extensions
from repmode_cl.strategies.registry import build_strategy, strategy_class, strategy_section
from repmode_cl.training import resolve_precision
from repmode_cl.training.checkpoint import random_state, set_random_state
from repmode_cl.training.size_check import check_patches, check_window

__all__ = ["check_strategies"]

#: Images of each structure that a user's own strategy is tried with.
_IMAGES = 3


def check_strategies(
    config: Config, streams: Mapping[str, StreamVariant], *, rehearse_all: bool = False
) -> None:
    """Refuse strategies that cannot be loaded, cannot be made, or cannot learn the streams.

    Parameters
    ----------
    config
        The whole configuration.
    streams
        Streams by name.
    rehearse_all
        Rehearse every strategy (see `rehearse`), as a dry run does. Else they are rehearsed only where there are
        plugins: a strategy that fails in its own trial stops no other, and a plugin would stop all.

    Raises
    ------
    ConfigError
        If a user's own class or its file is missing or cannot be imported, if the class cannot be made with its
        options or would not know added structures, if first steps, evaluation or fused network fail in a rehearsal, or
        if a strategy's `check` refuses a stream; or if patches or windows are too small for the networks.

    Notes
    -----
    A user's own strategy is made once for each stream, on the CPU, for images that do not exist: one that reads
    images when it is made is not checked so.
    """
    _check_sizes(config)
    check_extensions(config)
    for options in config.strategies:
        kind, own_config = strategy_class(options), config.of_strategy(options)
        if options.network is not None:
            _check_sizes(own_config)
        for variant in streams.values():
            with _errors_named(options):
                kind.check(own_config, strategy_section(options), variant.experiences)
                if options.is_custom:
                    _check_custom(config, options, variant)
    # Last: it takes longer than all the rest, and every mistake that is found without it is.
    for options in config.strategies:
        if config.plugins or rehearse_all:
            with _errors_named(options):
                rehearse(config, options, next(iter(streams.values())))


def _check_sizes(config: Config) -> None:
    check_patches(config, config.network.depth)
    check_window(config, config.network.depth)


@contextmanager
def _errors_named(options: StrategyConfig) -> Iterator[None]:
    """Turn any error in a class from elsewhere into a ConfigError that names the class."""
    try:
        yield
    except RepmodeError:
        raise
    except (Exception, SystemExit) as error:
        if not options.is_external:
            raise
        raise ConfigError(
            f"strategies: {options.name} with options {options.options}: {type(error).__name__}: {error}"
            f"{_line_of(error, options)}"
        ) from error


def _line_of(error: BaseException, options: StrategyConfig) -> str:
    """Return the last line of the user's own file that an error came through."""
    file = Path(options.name.rpartition(":")[0])
    # By its name alone: a copy of the file with the same content is the same module.
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).name == file.name]
    return f" (line {lines[-1]} of {file})" if lines else ""


def _check_custom(config: Config, options: StrategyConfig, variant: StreamVariant) -> None:
    """Make a user's own strategy for images that do not exist, and check that it knows all structures."""
    kind, training = strategy_class(options), config.training
    times = Counter(name for names in variant.experiences for name in names)
    samples = [
        _placeholder(name, split, number, config.patch.size)
        for name, count in times.items()
        for split, images in (("train", max(count, _IMAGES)), ("val", 1), ("test", 1))
        for number in range(images)
    ]
    stream = stream_of_samples(
        samples,
        kind.regroup(variant.experiences, strategy_section(options))[0],
        PatchSampling(config.patch.size),
        count=lambda _, __: training.batch_size,
        seed=0,
        labels=task_labels(variant.experiences),
        arrivals=variant.experiences,
    )
    device, before = torch.device("cpu"), random_state()
    try:
        # The machine that checks a configuration may have no accelerator.
        precision = resolve_precision("float32", device)
        strategy = build_strategy(config, options, stream, 0, device=device, precision=precision)
    except ImageError:
        return  # it reads images, which do not exist yet
    finally:
        set_random_state(before)
    unknown = [name for name in times if name not in strategy.network.structures]
    if unknown and kind.grow is StructureStrategy.grow:
        raise ConfigError(
            f"strategies: {options.name}: its network does not know {', '.join(unknown)}, and the class has no method "
            "grow that would make it know them: write one, or derive it from a strategy that has one (FineTuning)"
        )


def _placeholder(structure: str, split: str, number: int, shape: tuple[int, int, int]) -> Sample:
    name, path = f"{structure}-{split}-{number}", Path("there-is-no-such-image.npy")
    return Sample(structure, split, number, name, path, path, None, shape, name)
