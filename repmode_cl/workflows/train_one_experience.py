"""What training a base and adding a structure share: one experience, learned once, gone on with if interrupted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from repmode_cl.config import Config
from repmode_cl.config.load import dump_config
from repmode_cl.config.strict_yaml import read_yaml
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError
from repmode_cl.scenarios import StructureStream, stream_of_samples
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.plugins.checkpoint import StrategyCheckpoint
from repmode_cl.strategies.plugins.tensorboard import TensorBoardLogger
from repmode_cl.training import budget_of, has_checkpoint
from repmode_cl.utils.atomic_files import write_json
from repmode_cl.utils.progress import task

__all__ = [
    "check_request",
    "differences",
    "dump_what_counts",
    "held_out",
    "learn",
    "same_request",
    "stream_of",
]

#: Characters of a value that a message quotes.
_SHORT = 32


def stream_of(
    config: Config, samples: list[Sample], experiences: tuple[tuple[str, ...], ...]
) -> StructureStream:
    """Make the stream of `config`, with as many patches as its budget has."""
    training = config.training

    def patches(structures: tuple[str, ...], images: int) -> int:
        return budget_of(training, len(structures), images).steps * training.batch_size

    return stream_of_samples(
        samples,
        experiences,
        patch=config.patch.size,
        count=patches,
        seed=config.seeds[0],
        flips=config.patch.flips,
        foreground=config.patch.foreground,
        batch=training.batch_size // training.accumulate,
        structures_per_batch=training.structures_per_batch,
    )


def learn(strategy: StructureStrategy, work: Path, what: str) -> None:
    """Train the stream's one experience, with checkpoints and TensorBoard events in `work`.

    Of several processes the first alone writes; all go on from the same checkpoint.

    Raises
    ------
    ConfigError
        If the processes do not see the same checkpoint, because `work` is not on a disk that they share.
    """
    checkpoint = StrategyCheckpoint(work / "checkpoint")
    checkpoint.resume(strategy)
    step, ranks = strategy.progress.step, strategy.ranks
    if ranks.total([step]) != [step * ranks.world]:
        raise ConfigError(
            f"{work}: the processes found different checkpoints there, so it is not one folder to all of them; put "
            "it on a disk that they share"
        )
    if not ranks.first:
        strategy.train(strategy.stream.train[0], eval_streams=[])
        return
    events = TensorBoardLogger(work / "tensorboard")
    events.begin(strategy)
    strategy.listeners += [events.after_step, checkpoint.after_step]
    strategy.on_validation += [events.after_validation, checkpoint.save]
    names = strategy.stream.experiences[0]
    steps = budget_of(strategy.training_config, len(names), len(strategy.stream.images[0])).steps
    try:
        with task(what, total=steps) as bar:
            bar.update(completed=step)
            strategy.bar = bar
            strategy.train(strategy.stream.train[0], eval_streams=[])
    finally:
        strategy.bar = None
        events.close()


def held_out(strategy: StructureStrategy, stream: StructureStream) -> tuple[dict[str, dict[str, float]], str]:
    """Return figures on the test images, or on the validation images where there are none."""
    for name, experiences in (("test", stream.test), ("val", stream.val)):
        if len(experiences[0].dataset):
            figures = strategy.evaluate([experiences[0]])
            # What is not finite (the correlation of a constant prediction) says nothing of a model.
            return {s: {k: v for k, v in f.items() if math.isfinite(v)} for s, f in figures.items()}, name
    return {}, "none"


def dump_what_counts(config: Config) -> str:
    """Return the text of `config` without what changes no result, so that it may differ when a training goes on."""
    training = config.training.model_copy(update={"loader_workers": 0})
    return dump_config(config.model_copy(update={"training": training}))


def same_request(path: Path, request: dict[str, Any], what: str, anew: str | None = None) -> None:
    """Write down what is asked for, unless a training that was asked for differently is to be gone on with.

    What was never trained, by a first checkpoint, is not in the way: the mistake that kept it from that may be what
    the new request corrects. For the rest see `check_request`.
    """
    check_request(path, request, what, anew)
    if not path.exists() or json.loads(path.read_text(encoding="utf-8")) != request:
        write_json(path, request)


def check_request(path: Path, request: dict[str, Any], what: str, anew: str | None = None) -> None:
    """Refuse to go on with a training that was asked for differently; nothing is written.

    Parameters
    ----------
    path
        File of the earlier request, if there was one; ``checkpoint`` lies beside it.
    request
        The present one: JSON.
    what
        For the message: what is interrupted.
    anew
        How to begin anew; by default the folder is to be removed.

    Raises
    ------
    ConfigError
        Naming each setting that differs, with both values.
    """
    if not path.exists() or not has_checkpoint(path.parent / "checkpoint"):
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if before == request:
        return
    raise ConfigError(
        f"{path.parent} holds an interrupted {what} with other settings ({'; '.join(differences(before, request))}): "
        f"repeat the same call to go on with it, or {anew or f'remove {path.parent}'} to begin anew"
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say of each setting of two requests that differs, how: ``training.steps 1500 -> 300``.

    Of what is no short value, such as a digest, the key alone is named.
    """
    then, today = dict(_settings(before)), dict(_settings(now))
    found = []
    for key in {**then, **today}:
        pair = [json.dumps(values.get(key)).strip('"') for values in (then, today)]
        if pair[0] != pair[1]:
            found.append(f"{key} {pair[0]} -> {pair[1]}" if max(map(len, pair)) <= _SHORT else key)
    return found


def _settings(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting by its dotted key; those of a configuration's text as they are in its file."""
    for key, value in values.items():
        if not above and key == "config" and isinstance(value, str):
            yield from _settings(read_yaml(value, key).value, "config")
        elif isinstance(value, Mapping) and value:
            yield from _settings(value, str(key) if above in ("", "config") else f"{above}.{key}")
        else:
            yield str(key) if above in ("", "config") else f"{above}.{key}", value
