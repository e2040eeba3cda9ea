"""Beginning a benchmark, or going on with one: what may have been added since, and what must be the same."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from repmode_cl.scenarios import StreamVariant, task_labels
from repmode_cl.strategies.build import strategy_file_digest
from repmode_cl.strategies.units import Outcome, Unit
from repmode_cl.strategies.work import images_before

from repmode_cl.config import Config, StrategyConfig, parse_config
from repmode_cl.config.differences import GROWS, NO_RESULT, first_difference
from repmode_cl.config.loading import dump_config
from repmode_cl.data.sample import Sample
from repmode_cl.devices import resolve_device
from repmode_cl.errors import ConfigError
from repmode_cl.files import write_json, write_text
from repmode_cl.store.environment import environment_fingerprint, with_threads
from repmode_cl.training import Precision, recall_precision, resolve_precision

__all__ = [
    "check_images_are_the_same",
    "describe",
    "open_run",
    "refuse_existing",
    "resolve_environment",
    "threads_before",
]

VERSION = 2


def refuse_existing(folder: Path, *, resume: bool) -> None:
    """Refuse to begin where a run is.

    Raises
    ------
    ConfigError
        If the folder holds a run already and `resume` is not given.
    """
    if (folder / "run.json").exists() and not resume:
        raise ConfigError(
            f"{folder} holds a run already: continue it with --resume, or choose another name or output "
            "(--set name=NAME), or remove the folder"
        )


def open_run(config: Config, folder: Path, streams: Mapping[str, StreamVariant]) -> None:
    """Begin a run's folder, or check that the run in it is one that `config` describes, perhaps with more units.

    Raises
    ------
    ConfigError
        If it is a run of another configuration.
    """
    path = folder / "run.json"
    if path.exists():
        _check_same(config, folder, streams, json.loads(path.read_text(encoding="utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", dump_config(config))


def _check_same(
    config: Config, folder: Path, streams: Mapping[str, StreamVariant], info: Mapping[str, Any]
) -> None:
    if "merged" in info:
        raise ConfigError(
            f"{folder} was merged from other runs: go on with those ({', '.join(info['merged'])})"
        )
    if info.get("version") != VERSION:
        raise ConfigError(
            f"{folder} was begun by another version of repmode-cl, whose runs this one can show but not go on with: "
            "choose another name"
        )
    before = parse_config((folder / "config.yaml").read_text(encoding="utf-8"), str(folder / "config.yaml"))
    begun = f"{folder} was begun with another configuration"
    # A list makes a stream of each number, and streams may be added; one number is what all streams are trained on.
    fixed = frozenset() if isinstance(config.stream.images, tuple) else frozenset({"stream.images"})
    difference = first_difference(before, config, (NO_RESULT | GROWS) - fixed)
    if difference is not None:
        raise ConfigError(f"{begun}: {difference}; resume with the same, or choose another name")
    for key, old, new in (
        ("seeds", before.seeds, config.seeds),
        ("strategies", [s.title for s in before.strategies], [s.title for s in config.strategies]),
        ("streams", list(info["streams"]), list(streams)),
    ):
        if gone := [one for one in old if one not in new]:
            raise ConfigError(
                f"{begun}: {key} were {list(old)} and are {list(new)} now; more may be added, but "
                f"{', '.join(map(repr, gone))} must stay: add to what there was, or choose another name"
            )
    for name, experiences in info["streams"].items():
        if [list(names) for names in streams[name].experiences] != experiences:
            raise ConfigError(
                f"{begun}: the stream {name!r} was {_order(experiences)} and is {_order(streams[name].experiences)} "
                "now; bring back the file or manifest that it was made from, or choose another name"
            )
    for options in config.strategies:
        entry = info["strategies"].get(options.title)
        now = strategy_file_digest(options)
        if entry is not None and entry.get("file_sha256") != now:
            raise ConfigError(
                f"{begun}: the file of the strategy {options.title} ({options.name}) has changed since; bring back "
                "what it was, or choose another name"
            )


def _order(experiences: Sequence[Sequence[str]]) -> str:
    return ", then ".join(" + ".join(names) for names in experiences)


def check_images_are_the_same(folder: Path, samples: Sequence[Sample]) -> None:
    """Refuse to go on with a run whose images, or their split, changed since; new structures may have come.

    Raises
    ------
    ConfigError
        Naming the first structure.
    """
    before = images_before(folder)
    for structure, images in (before or {}).items():
        now = {(sample.image_id, sample.split) for sample in samples if sample.structure == structure}
        if now != images:
            raise ConfigError(
                f"{folder} was begun with other images: those of {structure}, or how they are split, have changed "
                "since; bring back what there was, or choose another name"
            )


def describe(
    config: Config,
    streams: Mapping[str, StreamVariant],
    units: Sequence[Unit],
    outcomes: Mapping[Unit, Outcome],
) -> dict[str, Any]:
    """Return what run.json says: what the run consists of, and what has ended how."""
    found = {unit: outcomes[unit] for unit in units if unit in outcomes}
    names = [group for variant in streams.values() for group in variant.experiences]
    return {
        "version": VERSION,
        "streams": {
            name: [list(group) for group in variant.experiences] for name, variant in streams.items()
        },
        "strategies": {
            options.title: {
                "name": options.name,
                "bit_identical": _all_identical(
                    [end.bit_identical for unit, end in found.items() if unit.title == options.title]
                ),
                "options": options.model_dump(mode="json"),
                "file_sha256": strategy_file_digest(options),
            }
            for options in config.strategies
        },
        "seeds": list(config.seeds),
        "multi_net": _first(config, "multi_net"),
        "joint": _first(config, "joint"),
        "finished": [list(unit) for unit, end in found.items() if end.finished],
        "failed": [[*unit, end.message] for unit, end in found.items() if not end.finished],
        "task_labels": task_labels(names),
    }


def _all_identical(found: Sequence[bool | None]) -> bool | None:
    """Return what holds of all: one that is not spoils it; None where nothing was checked."""
    checked = [one for one in found if one is not None]
    return all(checked) if checked else None


def _first(config: Config, kind: str) -> str | None:
    """Return the title of the first strategy of a kind that has all the steps; what others are measured against."""

    def whole(options: StrategyConfig) -> bool:
        return options.steps is None or options.steps == config.training.steps

    return next((s.title for s in config.strategies if s.name == kind and whole(s)), None)


def threads_before(folder: Path) -> int | None:
    """Return the number of threads that the run was begun with, or None if it was not."""
    path = folder / "environment.json"
    return int(json.loads(path.read_text(encoding="utf-8"))["threads"]) if path.exists() else None


def resolve_environment(config: Config, folder: Path, threads: int) -> Precision:
    """Write down what figures depend on besides the configuration, and return the run's precision.

    A resumed run keeps the precision that it began with, so that all its strategies are trained alike.
    """
    device = resolve_device(config.training.device)
    path = folder / "environment.json"
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))["precision"]
        precision = recall_precision(stored, device, f"the run {folder}")
    else:
        precision = resolve_precision(config.training.precision, device)
    with with_threads(threads):
        fingerprint = environment_fingerprint(
            device=device, window=config.window, batch=config.inference.batch_size
        )
    packages = ("repmode-cl", "torch", "avalanche-lib", "numpy", "scipy", "tifffile")
    write_json(
        path,
        {
            **fingerprint,
            "precision": precision.format,
            "python": platform.python_version(),
            "packages": {name: version(name) for name in packages},
        },
    )
    return precision
