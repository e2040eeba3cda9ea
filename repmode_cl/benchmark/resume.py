"""Resume checks for a benchmark run: what may be added to it, and what must stay the same."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from repmode_cl.benchmark.shared_base import base_folder
from repmode_cl.benchmark.trials import trials_of
from repmode_cl.config import Config, StrategyConfig
from repmode_cl.config.diff import EXTENSION_KEYS, RESULT_NEUTRAL_KEYS, first_difference
from repmode_cl.config.load import dump_config, parse_recorded_config
from repmode_cl.data.sample import Sample, structure_digests
from repmode_cl.errors import ConfigError
from repmode_cl.results.run_info import RUN_FILE, VERSION, RunInfo, read_recorded_info
from repmode_cl.results.trial_record import read_outcome
from repmode_cl.scenarios import StreamVariant
from repmode_cl.strategies.registry import base_key_of, code_digest
from repmode_cl.training import Precision, has_checkpoint, recall_precision, resolve_precision
from repmode_cl.utils.atomic_files import read_json, write_json, write_text
from repmode_cl.utils.devices import resolve_device
from repmode_cl.utils.environment import environment_fingerprint, with_threads
from repmode_cl.utils.locks import exclusive

__all__ = [
    "ResumeState",
    "check_not_started",
    "check_run",
    "check_images_are_the_same",
    "recorded_threads",
    "precision_of",
    "start_run",
]

#: Remedy for an environment.json that cannot be read.
_ENVIRONMENT_REMEDY = (
    "restore it, or choose another name: threads and precision that the run was started with are not known"
)


@dataclass(frozen=True)
class ResumeState:
    """State of a run's folder before it is started or resumed.

    Attributes
    ----------
    learned
        Whether anything was learned: a trial finished, or came to its first checkpoint. Only then is the run bound to
        the configuration that it was started with.
    outdated
        Folders of strategies that learned nothing to resume from and have changed since. They start again.
    """

    learned: bool = False
    outdated: tuple[Path, ...] = ()


def check_not_started(folder: Path, *, resume: bool) -> None:
    """Refuse to start a run where there is one.

    Raises
    ------
    ConfigError
        If the folder holds a run already and `resume` is not given.
    """
    if (folder / RUN_FILE).exists() and not resume:
        raise ConfigError(
            f"{folder} holds a run already: continue it with --resume, or choose another name or output "
            "(--set name=NAME), or remove the folder"
        )


def check_run(config: Config, folder: Path, streams: Mapping[str, StreamVariant]) -> ResumeState:
    """Check that the run in `folder`, if there is one, is one that `config` describes, perhaps with more trials.

    Strategies of which nothing was learned may have changed, or be gone: the new configuration, or the new file of a
    user's own strategy, may correct the mistake that stopped them. Nothing is written.

    Raises
    ------
    ConfigError
        If it is a run of another configuration, or a process is still at work at a trial that would start again.
    """
    if not (folder / RUN_FILE).exists():
        return ResumeState()
    info = read_recorded_info(folder)
    if info.merged:
        raise ConfigError(
            f"{folder} was merged from other runs: resume those instead ({', '.join(info.merged)})"
        )
    if info.version != VERSION:
        raise ConfigError(
            f"{folder} was started by another version of repmode-cl, whose runs this one can show but not resume: "
            "choose another name"
        )
    path = folder / "config.yaml"
    before = parse_recorded_config(path.read_text(encoding="utf-8"), str(path))
    trials = trials_of(before, info.streams)
    learned_titles = {trial.title for trial in trials if _learned(folder / trial.folder)}
    learned = bool(learned_titles) or any(map(_learned, (folder / "base").glob("**/seed-*")))
    compared = learned_titles if learned else {one.title for one in before.strategies}
    difference = _difference(before, config, compared)
    if learned:
        _check_same(before, config, folder, streams, info, learned_titles, difference)
    unchanged = {
        one.title for one in config.strategies if difference is None and _is_unchanged(config, one, info)
    }
    outdated_trials = [trial for trial in trials if trial.title not in learned_titles | unchanged]
    outdated = [folder / trial.folder for trial in outdated_trials]
    titles = {trial.title for trial in outdated_trials}
    if any(one.is_custom for one in before.strategies if one.title in titles):
        # It may have trained a base that it shared: bases that no other strategy resumes from are not trusted either.
        keys = {base_key_of(config, one) for one in config.strategies if one.title in learned_titles}
        trusted = {base_folder(key, "", 0).parent.name for key in keys if key is not None}
        outdated += [path for path in (folder / "base").glob("*") if path.name not in trusted]
    for path in outdated:
        for lock in path.glob("**/.lock"):
            busy = (
                f"{lock.parent} would start again, and a process is still at work there: wait until it ends"
            )
            with exclusive(lock, busy, error=ConfigError):
                pass
    return ResumeState(learned, tuple(path for path in outdated if path.exists()))


def _learned(folder: Path) -> bool:
    """Return whether the trial, or the base, in `folder` is finished or has a checkpoint to resume from."""
    outcome = read_outcome(folder)
    checkpoints = (folder, folder / "checkpoint", folder / "training" / "checkpoint")
    return (outcome is not None and outcome.finished) or any(map(has_checkpoint, checkpoints))


def _is_unchanged(config: Config, options: StrategyConfig, info: RunInfo) -> bool:
    return info.options.get(options.title) == options.model_dump(mode="json") and info.file_digests.get(
        options.title
    ) == code_digest(config, options)


def _difference(before: Config, config: Config, titles: Collection[str]) -> str | None:
    """Name the first key by which two configurations differ, of all but the strategies that are not in `titles`."""
    bound = before.model_copy(
        update={"strategies": tuple(one for one in before.strategies if one.title in titles)}
    )
    # A list makes a stream of each number, and streams may be added; one number is what all streams are trained on.
    fixed = frozenset() if isinstance(config.stream.images, tuple) else frozenset({"stream.images"})
    return first_difference(bound, config, (RESULT_NEUTRAL_KEYS | EXTENSION_KEYS) - fixed)


def _check_same(
    before: Config,
    config: Config,
    folder: Path,
    streams: Mapping[str, StreamVariant],
    info: RunInfo,
    learned_titles: Collection[str],
    difference: str | None,
) -> None:
    problem = f"{folder} was started with another configuration"
    for options in config.strategies:
        changed = _changed_by_setting(before, options) if options.title in learned_titles else None
        if changed is not None:
            key, was = changed
            raise ConfigError(
                f"{problem}: {options.title}: {key} was {was!r} and is {getattr(options, key)!r} now: what the setting "
                f"{options.setting} stands for has changed since; give `{key}: {was}` and `label: {options.title}`, or "
                "choose another name"
            )
    if difference is not None:
        raise ConfigError(f"{problem}: {difference}; resume with the same, or choose another name")
    titles = [one.title for one in before.strategies]
    for key, old, new in (
        ("seeds", before.seeds, config.seeds),
        ("strategies", titles, [one.title for one in config.strategies]),
        ("streams", list(info.streams), list(streams)),
    ):
        removed = [one for one in old if one not in new and (key != "strategies" or one in learned_titles)]
        if removed:
            raise ConfigError(
                f"{problem}: {key} were {list(old)} and are {list(new)} now; more may be added, but "
                f"{', '.join(map(repr, removed))} must stay: add to what there was, or choose another name"
            )
    for name, experiences in info.streams.items():
        if tuple(map(tuple, streams[name].experiences)) != experiences:
            raise ConfigError(
                f"{problem}: the stream {name!r} was {_order_text(experiences)} and is "
                f"{_order_text(streams[name].experiences)} now; bring back the file or manifest that it was made "
                "from, or choose another name"
            )
    for options in config.strategies:
        title, plugins = options.title, ", or of a plugin," if config.plugins else ""
        if title in learned_titles and info.file_digests.get(title) != code_digest(config, options):
            raise ConfigError(
                f"{problem}: the file of the strategy {title} ({options.name}){plugins} has changed since; bring back "
                f"the earlier file, remove {folder / title} to start that strategy again, or choose another name"
            )


def _changed_by_setting(before: Config, options: StrategyConfig) -> tuple[str, Any] | None:
    """Return the first key, and its value then, for which a strategy's setting stands for something else today."""
    [then] = (one for one in before.strategies if one.title == options.title)
    for key in sorted(options.of_setting().keys() - options.model_fields_set):
        if getattr(then, key) != getattr(options, key):
            return key, getattr(then, key)
    return None


def _order_text(experiences: Sequence[Sequence[str]]) -> str:
    return ", then ".join(" + ".join(names) for names in experiences)


def check_images_are_the_same(folder: Path, samples: Sequence[Sample]) -> None:
    """Refuse to resume a run whose images, or their split, have changed; structures may have been added.

    Raises
    ------
    ConfigError
        Naming the first structure.
    """
    digests = structure_digests(samples)
    for structure, digest in read_recorded_info(folder).images.items():
        if digests.get(structure) != digest:
            raise ConfigError(
                f"{folder} was started with other images: those of {structure}, or how they are split, have changed "
                "since; bring back the earlier images, or choose another name"
            )


def recorded_threads(folder: Path) -> int | None:
    """Return the number of threads that the run was started with, or None if it was not started."""
    path = folder / "environment.json"
    return int(read_json(path, _ENVIRONMENT_REMEDY)["threads"]) if path.exists() else None


def precision_of(config: Config, folder: Path, state: ResumeState) -> Precision:
    """Return the run's precision: the one that it was started with, so that all its strategies are trained alike."""
    device = resolve_device(config.training.device)
    path = folder / "environment.json"
    if state.learned and path.exists():
        stored = read_json(path, _ENVIRONMENT_REMEDY)["precision"]
        return recall_precision(stored, device, f"the run {folder}")
    return resolve_precision(config.training.precision, device)


def start_run(
    config: Config, folder: Path, state: ResumeState, *, threads: int, precision: Precision
) -> None:
    """Write the run's configuration and environment, and remove what is outdated; call it after all checks."""
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
    for path in state.outdated:
        shutil.rmtree(path)
    write_json(folder / "environment.json", environment)
    write_text(folder / "config.yaml", dump_config(config))
