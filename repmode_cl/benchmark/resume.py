"""Beginning a benchmark, or going on with one: what may have been added since, and what must be the same."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from repmode_cl.benchmark.shared_base import base_folder
from repmode_cl.benchmark.trials import trials_of
from repmode_cl.config import Config, StrategyConfig, parse_config
from repmode_cl.config.diff import GROWS, NO_RESULT, first_difference
from repmode_cl.config.load import dump_config
from repmode_cl.data.sample import Sample, images_digests
from repmode_cl.errors import ConfigError
from repmode_cl.results.trial_record import Trial, TrialOutcome, read_outcome
from repmode_cl.scenarios import StreamVariant, task_labels
from repmode_cl.strategies.registry import base_key_of, strategy_file_digest
from repmode_cl.training import Precision, has_checkpoint, recall_precision, resolve_precision
from repmode_cl.utils.atomic_files import read_json, write_json, write_text
from repmode_cl.utils.devices import resolve_device
from repmode_cl.utils.environment import environment_fingerprint, with_threads

__all__ = [
    "ResumeState",
    "start_run",
    "check_images_are_the_same",
    "check_run",
    "describe",
    "precision_of",
    "refuse_existing",
    "recorded_threads",
]

VERSION = 2

#: What to do about an environment.json that cannot be read.
_ENVIRONMENT = (
    "restore it, or choose another name: threads and precision that the run was begun with are not known"
)


@dataclass(frozen=True)
class ResumeState:
    """What there is of a run that is begun or gone on with.

    Attributes
    ----------
    learned
        Whether anything was: a unit finished, or came to its first checkpoint. Only then is the run bound to what it
        was begun with.
    remains
        Folders, below the run's, of strategies that learned nothing to go on with and are others now. They begin anew.
    """

    learned: bool = False
    remains: tuple[Path, ...] = ()


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


def check_run(config: Config, folder: Path, streams: Mapping[str, StreamVariant]) -> ResumeState:
    """Check that the run in `folder`, if there is one, is one that `config` describes, perhaps with more units.

    Strategies of which nothing was learned may be others, or gone: what kept them from it may be what the new
    configuration, or the new file of a user's own, corrects. Nothing is written.

    Raises
    ------
    ConfigError
        If it is a run of another configuration, or a unit of what is to begin anew is still at work.
    """
    if not (folder / "run.json").exists():
        return ResumeState()
    info = _described(folder)
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
    units = trials_of(before, info["streams"])
    bound = {unit.title for unit in units if _learned(folder / unit.folder)}
    learned = bool(bound) or any(map(_learned, (folder / "base").glob("**/seed-*")))
    difference = _difference(before, config, bound if learned else {one.title for one in before.strategies})
    if learned:
        _check_same(before, config, folder, streams, info, bound, difference)
    entries = {} if difference is not None else info["strategies"]
    same = {one.title for one in config.strategies if _is_as_before(one, entries.get(one.title))}
    renewed = [unit for unit in units if unit.title not in bound | same]
    remains = [folder / unit.folder for unit in renewed]
    if any(one.is_custom for one in before.strategies if one.title in {unit.title for unit in renewed}):
        # It may have trained a base that it shared: what no other went on with is not trusted either.
        kept = {base_key_of(config, one) for one in config.strategies if one.title in bound}
        names = {base_folder(key, "", 0).parent.name for key in kept if key is not None}
        remains += [path for path in (folder / "base").glob("*") if path.name not in names]
    for path in remains:
        for lock in path.glob("**/.lock"):
            _refuse_at_work(lock)
    return ResumeState(learned, tuple(path for path in remains if path.exists()))


def _learned(folder: Path) -> bool:
    """Tell whether the unit, or the base, in `folder` is finished or has something to go on with."""
    end = read_outcome(folder)
    checkpoints = (folder, folder / "checkpoint", folder / "training" / "checkpoint")
    return (end is not None and end.finished) or any(map(has_checkpoint, checkpoints))


def _is_as_before(options: StrategyConfig, entry: Mapping[str, Any] | None) -> bool:
    return (
        entry is not None
        and entry.get("options") == options.model_dump(mode="json")
        and entry.get("file_sha256") == strategy_file_digest(options)
    )


def _refuse_at_work(path: Path) -> None:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{path.parent} is to begin anew, and a process is still at work there: wait until it ends"
        ) from None
    lock.release()


def _difference(before: Config, config: Config, titles: Collection[str]) -> str | None:
    """Name the first key, of those that are bound, by which two configurations differ."""
    bound = before.model_copy(
        update={"strategies": tuple(one for one in before.strategies if one.title in titles)}
    )
    # A list makes a stream of each number, and streams may be added; one number is what all streams are trained on.
    fixed = frozenset() if isinstance(config.stream.images, tuple) else frozenset({"stream.images"})
    return first_difference(bound, config, (NO_RESULT | GROWS) - fixed)


def _check_same(
    before: Config,
    config: Config,
    folder: Path,
    streams: Mapping[str, StreamVariant],
    info: Mapping[str, Any],
    bound: Collection[str],
    difference: str | None,
) -> None:
    begun = f"{folder} was begun with another configuration"
    if difference is not None:
        raise ConfigError(f"{begun}: {difference}; resume with the same, or choose another name")
    titles = [one.title for one in before.strategies]
    for key, old, new in (
        ("seeds", before.seeds, config.seeds),
        ("strategies", titles, [one.title for one in config.strategies]),
        ("streams", list(info["streams"]), list(streams)),
    ):
        if gone := [one for one in old if one not in new and (key != "strategies" or one in bound)]:
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
        entry = info["strategies"].get(options.title) if options.title in bound else None
        if entry is not None and entry.get("file_sha256") != strategy_file_digest(options):
            raise ConfigError(
                f"{begun}: the file of the strategy {options.title} ({options.name}) has changed since; bring back "
                f"what it was, remove {folder / options.title} to begin that strategy anew, or choose another name"
            )


def _described(folder: Path) -> dict[str, Any]:
    """Return what `describe` said of the run in `folder` when it was last worked at."""
    return read_json(folder / "run.json", f"restore it, or remove {folder} to begin the run anew")


def _order(experiences: Sequence[Sequence[str]]) -> str:
    return ", then ".join(" + ".join(names) for names in experiences)


def check_images_are_the_same(folder: Path, samples: Sequence[Sample]) -> None:
    """Refuse to go on with a run whose images, or their split, changed since; new structures may have come.

    Raises
    ------
    ConfigError
        Naming the first structure.
    """
    now = images_digests(samples)
    for structure, images in _described(folder).get("images", {}).items():
        if now.get(structure) != images:
            raise ConfigError(
                f"{folder} was begun with other images: those of {structure}, or how they are split, have changed "
                "since; bring back what there was, or choose another name"
            )


def describe(
    config: Config,
    streams: Mapping[str, StreamVariant],
    units: Sequence[Trial],
    outcomes: Mapping[Trial, TrialOutcome],
    images: Mapping[str, str],
    at_once: Collection[str],
) -> dict[str, Any]:
    """Return what run.json says: what the run consists of, and what has ended how.

    `images` is what `images_digests` says of them; `at_once` are the titles of the strategies that learn as `joint`
    does, which the names of a user's own do not tell.
    """
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
                "at_once": options.title in at_once,
            }
            for options in config.strategies
        },
        "seeds": list(config.seeds),
        "steps": config.training.steps,
        "images": dict(images),
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


def recorded_threads(folder: Path) -> int | None:
    """Return the number of threads that the run was begun with, or None if it was not."""
    path = folder / "environment.json"
    return int(read_json(path, _ENVIRONMENT)["threads"]) if path.exists() else None


def precision_of(config: Config, folder: Path, before: ResumeState) -> Precision:
    """Return the run's precision: that which it was begun with, so that all its strategies are trained alike."""
    device = resolve_device(config.training.device)
    path = folder / "environment.json"
    if before.learned and path.exists():
        stored = read_json(path, _ENVIRONMENT)["precision"]
        return recall_precision(stored, device, f"the run {folder}")
    return resolve_precision(config.training.precision, device)


def start_run(
    config: Config, folder: Path, before: ResumeState, *, threads: int, precision: Precision
) -> None:
    """Write down what is run, and what its figures depend on besides; after all that could be refused was not."""
    with with_threads(threads):
        fingerprint = environment_fingerprint(
            device=resolve_device(config.training.device),
            window=config.window,
            batch=config.inference.batch_size,
        )
    packages = ("repmode-cl", "torch", "avalanche-lib", "numpy", "scipy", "tifffile")
    environment = {
        **fingerprint,
        "precision": precision.format,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }
    for path in before.remains:
        shutil.rmtree(path)
    write_json(folder / "environment.json", environment)
    write_text(folder / "config.yaml", dump_config(config))
