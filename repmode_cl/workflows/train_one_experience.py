"""Train one experience of a stream, resumable: the part that training a base, adding and comparing share."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from repmode_cl.config import Config
from repmode_cl.config.load import dump_config, parse_config, rows_with_learning_gates
from repmode_cl.config.strict_yaml import read_yaml, write_yaml
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError
from repmode_cl.scenarios import PatchSampling, StructureStream, stream_of_samples
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.experts_frozen import ExpertsFrozen
from repmode_cl.strategies.plugins.checkpoint import StrategyCheckpoint
from repmode_cl.strategies.plugins.tensorboard import TensorBoardLogger
from repmode_cl.training import budget_of, has_checkpoint, patch_count
from repmode_cl.training.size_check import check_last_batch
from repmode_cl.utils.atomic_files import read_json, write_json
from repmode_cl.utils.memory import memory_errors
from repmode_cl.utils.progress import report_line, task
from repmode_cl.utils.stop_signals import deferred
from repmode_cl.verdict import held_out_evidence, validation_rise

__all__ = [
    "make_stream",
    "train_experience",
    "evaluate_held_out",
    "verdict_evidence",
    "resume_config_text",
    "record_request",
    "check_same_request",
    "changed_settings",
    "with_present_defaults",
]

#: Characters of a value that a message quotes.
_QUOTED = 32


def make_stream(
    config: Config,
    samples: list[Sample],
    experiences: tuple[tuple[str, ...], ...],
    *,
    depth: int,
    processes: int = 1,
) -> StructureStream:
    """Make the stream of `config`, with as many patches as its budget has.

    Raises
    ------
    ConfigError
        If the last batch of an epoch is too small for a network of `depth`, or for the `processes` that share it.
    """
    training = config.training

    def patches(structures: tuple[str, ...], images: int) -> int:
        count = patch_count(training, budget_of(training, len(structures), images).steps, images)
        check_last_batch(training, config.patch.size, depth, count, processes)
        return count

    return stream_of_samples(
        samples,
        experiences,
        PatchSampling.of_config(config),
        count=patches,
        seed=config.seeds[0],
    )


def train_experience(strategy: StructureStrategy, work: Path, title: str) -> None:
    """Train the stream's one experience, with checkpoints and TensorBoard events in `work`.

    Of several processes only the first writes; all resume from the same checkpoint.

    Parameters
    ----------
    strategy
        Strategy with a stream of one experience.
    work
        Folder of the training; a checkpoint in it is resumed.
    title
        Text of the progress bar.

    Raises
    ------
    ConfigError
        If the processes do not see the same checkpoint, because `work` is not on a disk that they share.
    RepmodeError
        If the patches of a step need more memory than there is.
    Stopped
        If a signal asked to stop; a checkpoint holds the steps until then.
    """
    if isinstance(strategy, ExpertsFrozen):
        strategy.base_is_ready = True  # that of the model
    checkpoint = StrategyCheckpoint(work / "checkpoint")
    checkpoint.resume(strategy)
    step, ranks = strategy.progress.step, strategy.ranks
    if ranks.total([step]) != [step * ranks.world]:
        raise ConfigError(
            f"{work}: the processes found different checkpoints there, so it is not one folder to all of them; put "
            "it on a disk that they share"
        )
    patches = strategy.training_config.batch_size // strategy.training_config.accumulate
    size = " x ".join(map(str, strategy.stream.patch))
    asked = f"{patches} patches of {size} voxels at a time (batch_size / accumulate)"
    if not ranks.first:
        with deferred(), memory_errors(asked):
            strategy.train(strategy.stream.train[0], eval_streams=[])
        return
    events = TensorBoardLogger(work / "tensorboard")
    events.begin(strategy)
    strategy.listeners += [events.after_step, checkpoint.after_step]
    strategy.on_validation += [events.after_validation, checkpoint.save]
    strategy.on_stop.append(checkpoint.save)
    names = strategy.stream.experiences[0]
    steps = budget_of(strategy.training_config, len(names), len(strategy.stream.images[0])).steps
    try:
        with task(title, steps, completed=step, unit="step") as bar:
            strategy.progress_bar = bar
            with deferred(), memory_errors(asked):
                strategy.train(strategy.stream.train[0], eval_streams=[])
    finally:
        strategy.progress_bar = None
        events.close()


def evaluate_held_out(
    strategy: StructureStrategy, stream: StructureStream
) -> tuple[dict[str, dict[str, float]], str]:
    """Return figures on the test images, or on the validation images where there are none.

    Returns
    -------
    figures
        Structure -> metric -> mean over images; empty where no image is held out.
    split
        ``test``, ``val`` or ``none``.
    """
    for split, experiences in (("test", stream.test), ("val", stream.val)):
        if len(experiences[0].dataset):
            with task(f"evaluating on the {split} images"):
                figures = strategy.evaluate([experiences[0]])
            # What is not finite (the correlation of a constant prediction) says nothing about a model.
            finite = {s: {k: v for k, v in f.items() if math.isfinite(v)} for s, f in figures.items()}
            return finite, split
    return {}, "none"


def verdict_evidence(
    strategy: StructureStrategy, samples: Sequence[Sample], split: str
) -> dict[str, dict[str, float]]:
    """Return what verdicts need besides the mean figures; call it just after `evaluate_held_out`.

    Parameters
    ----------
    strategy
        After its training, and after the evaluation on the images of `split`.
    samples
        All images of the training, in the order in which the stream was made of them.
    split
        As `evaluate_held_out` returned it.

    Returns
    -------
    dict
        For the key `repmode_cl.verdict.EVIDENCE` of a provenance: structure -> numbers; empty where no image is held
        out.
    """
    if split == "none":
        return {}
    evidence = {}
    for name, images in strategy.image_figures.items():
        groups = [sample.group for sample in samples if (sample.structure, sample.split) == (name, split)]
        evidence[name] = held_out_evidence([image["r2"] for image in images], groups)
        curve = [
            (int(row["train_step"]), float(row["value"]))
            for row in strategy.progress.curve
            if (row["structure"], row["metric"]) == (name, "r2")
        ]
        rise = validation_rise(curve, strategy.progress.step)
        if rise is not None:
            evidence[name]["r2_rise"] = rise
    return evidence


def resume_config_text(config: Config) -> str:
    """Return the text of `config` without the settings that change no result and so may differ on resuming."""
    training = config.training.model_copy(update={"loader_workers": 0})
    return dump_config(config.model_copy(update={"training": training}))


def record_request(path: Path, request: dict[str, Any], title: str, restart_hint: str | None = None) -> None:
    """Write `request` to `path`, after `check_same_request`.

    A training without a checkpoint is not in the way, and a line says so: the mistake that stopped it may be what the
    new request corrects.
    """
    check_same_request(path, request, title, restart_hint)
    changes = changed_settings(_recorded_request(path, restart_hint), request) if path.exists() else []
    if changes:
        report_line(
            f"{title}: an interrupted one with other settings ({'; '.join(changes)}) saved no step; this one starts "
            "at step 0",
            always=True,
        )
    if changes or not path.exists():
        write_json(path, request)


def check_same_request(
    path: Path, request: dict[str, Any], title: str, restart_hint: str | None = None
) -> None:
    """Refuse to resume a training that was started with other settings; nothing is written.

    Parameters
    ----------
    path
        File of the earlier request, if there was one; ``checkpoint`` lies in the same folder.
    request
        The present one: JSON.
    title
        Name of the interrupted training, for the message.
    restart_hint
        How to start again, for the message; by default: remove the folder.

    Raises
    ------
    ConfigError
        Naming each setting that differs, with both values.
    """
    if not path.exists() or not has_checkpoint(path.parent / "checkpoint"):
        return
    changes = changed_settings(_recorded_request(path, restart_hint), request)
    if not changes:
        return
    raise ConfigError(
        f"{path.parent} holds an interrupted {title} with other settings "
        f"({'; '.join(changes)}): repeat the same call to resume it, or "
        f"{restart_hint or f'remove {path.parent}'} to start again"
    )


def _recorded_request(path: Path, restart_hint: str | None) -> dict[str, Any]:
    return with_present_defaults(read_json(path, f"{restart_hint or f'remove {path.parent}'} to start again"))


def with_present_defaults(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded request whose configuration has the keys that came later, with their defaults.

    One that cannot be parsed any more stays as it is: what is compared with it differs.
    """
    text = request.get("config")
    if not isinstance(text, str):
        return dict(request)
    try:
        recorded = read_yaml(text, "config").value
        for row in rows_with_learning_gates(recorded):
            row["gate_steps"] = 1.0
        present = read_yaml(resume_config_text(parse_config(write_yaml(recorded))), "config").value
    except ConfigError:
        return dict(request)
    completed = _completed(recorded, present)
    # What a setting stands for is in what is recorded today.
    for row, now in zip(completed.get("strategies", []), present["strategies"], strict=False):
        if "setting" in row:
            row |= {key: value for key, value in now.items() if key not in row}
    return {**request, "config": write_yaml(completed)}


def _completed(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `recorded`, in the order of `present`, which gives those that are missing."""
    values = {}
    for key, default in {**present, **recorded}.items():
        value = recorded.get(key, default)
        both = isinstance(value, Mapping) and isinstance(present.get(key), Mapping)
        values[key] = _completed(value, present[key]) if both else value
    return values


def changed_settings(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return each setting that differs between two requests, as ``training.steps 1500 -> 300``.

    Of a long value, such as a digest, only the key is given.
    """
    old, new = dict(_flattened(earlier)), dict(_flattened(now))
    changes = []
    for key in {**old, **new}:
        first, second = (json.dumps(values.get(key)).strip('"') for values in (old, new))
        if first != second:
            short = max(len(first), len(second)) <= _QUOTED
            changes.append(f"{key} {first} -> {second}" if short else key)
    return changes


def _flattened(values: Mapping[str, Any], parent: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting by its dotted key; those of a configuration's text as they are in its file."""
    for key, value in values.items():
        name = str(key) if parent in ("", "config") else f"{parent}.{key}"
        if not parent and key == "config" and isinstance(value, str):
            yield from _flattened(read_yaml(value, key).value, "config")
        elif isinstance(value, Mapping) and value:
            yield from _flattened(value, name)
        else:
            yield name, value
