"""``run.json``: what a run is made of and what of it has ended; written and read here only."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.config.comparison_schema import PlannedComparison, planned_digest
from repmode_cl.errors import RepmodeError
from repmode_cl.results.trial_record import Trial, TrialOutcome
from repmode_cl.utils.atomic_files import read_json, write_text

__all__ = [
    "RunInfo",
    "read_recorded_info",
    "read_run_info",
    "stream_groups",
    "write_run_info",
    "RUN_FILE",
    "VERSION",
]

#: Name of the file in a run's folder.
RUN_FILE = "run.json"

#: Newest form of run.json that is understood; files without "version" are of the first.
VERSION = 2


def stream_groups(streams: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the streams of a run that may be averaged, by what they have in common; see `RunInfo.stream_groups`."""
    groups: dict[str, tuple[str, ...]] = {}
    for stream in streams:
        name = re.sub(r"^order-\d+(-|$)", "", stream)
        groups[name] = (*groups.get(name, ()), stream)
    return groups


@dataclass(frozen=True)
class RunInfo:
    """Contents of run.json.

    Attributes
    ----------
    streams
        Name of the stream -> names of the structures learned in each step; the first step may hold several. A
        run of one stream calls it ``""``.
    strategies
        Title -> kind of strategy ("experts_frozen", ...), in the order of the configuration.
    bit_identical
        Title -> whether predictions and digests of earlier structures were found unchanged, bit for bit; None
        where that was not checked.
    seeds
        Seeds of the run.
    multi_net
        Title of the first Multi-Net with the common steps, or None. Which of several measures refer to is decided
        by what they reached (`repmode_cl.report.tables.multi_net_reference`).
    finished
        Trials that ran to their end.
    options
        Title -> the strategy's section of the configuration; empty in files of the first form.
    joint
        Title of the strategy that learned all structures at once, which intransigence refers to, or None.
    failed
        Trial -> message, of those that ended with an error.
    steps
        Training steps of an experience of one structure that strategies have in common; None where they train in
        epochs, or where it is not known.
    joint_titles
        Titles of all strategies that learned all structures at once: `joint`, and a user's own that inherit from it.
    file_digests
        Title -> SHA-256 of the file that defines a user's own strategy; None for strategies of the package.
    images
        Structure -> digest of its images and their split; empty in files of the first form.
    task_labels
        Structure -> Avalanche's task label.
    merged
        Folders of the runs that it was merged from; empty for a run that `repmode-cl bench` made.
    comparisons
        Comparisons that were planned before the run; run.json holds their digest too.
    version
        Form of the file that it was read from.
    """

    streams: Mapping[str, tuple[tuple[str, ...], ...]]
    strategies: Mapping[str, str]
    bit_identical: Mapping[str, bool | None]
    seeds: tuple[int, ...]
    multi_net: str | None
    finished: frozenset[Trial]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    joint: str | None = None
    failed: Mapping[Trial, str] = field(default_factory=dict)
    steps: int | None = None
    joint_titles: frozenset[str] = frozenset()
    file_digests: Mapping[str, str | None] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    task_labels: Mapping[str, int] = field(default_factory=dict)
    merged: tuple[str, ...] = ()
    comparisons: tuple[PlannedComparison, ...] = ()
    version: int = VERSION

    @property
    def trials(self) -> list[Trial]:
        """All trials, finished or not, in the order in which they run one after another."""
        return [
            Trial(title, stream, seed)
            for seed in self.seeds
            for stream in self.streams
            for title in self.strategies
        ]

    def budget_of(self, title: str) -> Literal["shorter", "common", "longer"]:
        """Compare a strategy's steps with the common ones: shorter budgets are another experiment.

        Where the common number is not known, any number that a strategy sets itself counts as a shorter one.
        """
        steps = self.options.get(title, {}).get("steps")
        if steps is None or steps == self.steps:
            return "common"
        return "longer" if self.steps is not None and steps > self.steps else "shorter"

    def more_steps(self, title: str) -> int | None:
        """Return a strategy's steps where they are more than the common ones, else None."""
        return int(self.options[title]["steps"]) if self.budget_of(title) == "longer" else None

    @property
    def experiences(self) -> tuple[tuple[str, ...], ...]:
        """Names of the structures learned in each step of the first stream."""
        return next(iter(self.streams.values()), ())

    @property
    def structures(self) -> tuple[str, ...]:
        """All structures of the first stream, in the order in which they arrive, each once."""
        return self.structures_of(next(iter(self.streams), ""))

    @property
    def added(self) -> tuple[str, ...]:
        """Structures of the first stream that arrive after the first experience."""
        return self.added_of(next(iter(self.streams), ""))

    def structures_of(self, stream: str) -> tuple[str, ...]:
        """Return all structures of a stream, in the order in which they arrive, each once."""
        return tuple(dict.fromkeys(name for names in self.streams.get(stream, ()) for name in names))

    def added_of(self, stream: str) -> tuple[str, ...]:
        """Return the structures of a stream that arrive after its first experience, each once."""
        return tuple(dict.fromkeys(name for names in self.streams.get(stream, ())[1:] for name in names))

    def stream_groups(self) -> dict[str, tuple[str, ...]]:
        """Return the streams that may be averaged, by what they have in common.

        Seeded orders (`order-3`) of the same structures repeat one experiment. Streams of another number of images
        (`images-4`, `order-3-images-4`), or that are arranged by difficulty (`easiest-first`), are another one. A
        group is named by the name without the order, often ``""``.
        """
        return stream_groups(self.streams)

    @classmethod
    def of_run(
        cls,
        config: Config,
        streams: Mapping[str, Sequence[Sequence[str]]],
        outcomes: Mapping[Trial, TrialOutcome],
        *,
        images: Mapping[str, str],
        file_digests: Mapping[str, str | None],
        joint_titles: Collection[str],
        task_labels: Mapping[str, int],
    ) -> RunInfo:
        """Describe a run by its configuration and what has ended so far.

        Parameters
        ----------
        config
            The run's configuration.
        streams
            Name of the stream -> names of the structures learned in each step.
        outcomes
            How trials ended that have ended.
        images, file_digests, joint_titles, task_labels
            As the attributes.
        """
        checks: dict[str, list[bool]] = {one.title: [] for one in config.strategies}
        for trial, outcome in outcomes.items():
            if outcome.bit_identical is not None:
                checks[trial.title].append(outcome.bit_identical)
        return cls(
            streams={name: tuple(tuple(names) for names in groups) for name, groups in streams.items()},
            strategies={one.title: one.name for one in config.strategies},
            # One trial in which something changed spoils the strategy.
            bit_identical={title: all(flags) if flags else None for title, flags in checks.items()},
            seeds=tuple(config.seeds),
            multi_net=_first_with_common_steps(config, "multi_net"),
            finished=frozenset(trial for trial, outcome in outcomes.items() if outcome.finished),
            options={one.title: one.model_dump(mode="json") for one in config.strategies},
            joint=_first_with_common_steps(config, "joint"),
            failed={trial: outcome.message for trial, outcome in outcomes.items() if not outcome.finished},
            steps=config.training.steps,
            joint_titles=frozenset(joint_titles),
            file_digests=dict(file_digests),
            images=dict(images),
            task_labels=dict(task_labels),
            comparisons=config.comparisons,
        )

    @classmethod
    def of(cls, value: RunInfo | Mapping[str, Any]) -> RunInfo:
        """Return `value` as a RunInfo; a mapping is what run.json holds."""
        return value if isinstance(value, RunInfo) else cls.from_json(value)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], source: str = RUN_FILE) -> RunInfo:
        """Return what run.json holds, of the first form or the second.

        Raises
        ------
        RepmodeError
            If a key is missing or has another form, or a newer repmode-cl wrote it.
        """
        try:
            version = int(value.get("version", 1))
            if version > VERSION:
                raise RepmodeError(
                    f"{source}: version {version}, written by a newer repmode-cl; this one reads up to {VERSION}"
                )
            entries = {str(title): entry for title, entry in value["strategies"].items()}
            streams = value["streams"] if version > 1 else {"": value["experiences"]}
            return cls(
                streams=_streams(streams),
                strategies={title: str(entry["name"]) for title, entry in entries.items()},
                bit_identical={title: entry.get("bit_identical") for title, entry in entries.items()},
                seeds=tuple(int(seed) for seed in value["seeds"]),
                multi_net=value.get("multi_net"),
                finished=frozenset(_trial(entry) for entry in value.get("finished", ())),
                options={title: dict(entry.get("options") or {}) for title, entry in entries.items()},
                joint=value.get("joint"),
                failed={_trial(entry[:-1]): str(entry[-1]) for entry in value.get("failed", ())},
                steps=None if value.get("steps") is None else int(value["steps"]),
                joint_titles=frozenset(
                    title
                    for title, entry in entries.items()
                    if entry.get("at_once", entry["name"] == "joint")
                ),
                file_digests={title: entry.get("file_sha256") for title, entry in entries.items()},
                images=dict(value.get("images", {})),
                task_labels=dict(value.get("task_labels", {})),
                merged=tuple(value.get("merged", ())),
                comparisons=_planned(value, source),
                version=version,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, RepmodeError):
                raise
            raise RepmodeError(
                f"{source}: is no description of a run ({type(error).__name__}: {error}); it has "
                "streams (or experiences), strategies, seeds, multi_net and finished, and `repmode-cl bench` "
                "writes it"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return what run.json holds, of the newest form."""
        return {
            "version": VERSION,
            **({"merged": list(self.merged)} if self.merged else {}),
            "streams": {name: [list(names) for names in groups] for name, groups in self.streams.items()},
            "strategies": {
                title: {
                    "name": name,
                    "bit_identical": self.bit_identical[title],
                    "options": self.options.get(title, {}),
                    "file_sha256": self.file_digests.get(title),
                    "at_once": title in self.joint_titles,
                }
                for title, name in self.strategies.items()
            },
            "seeds": list(self.seeds),
            "steps": self.steps,
            "images": dict(self.images),
            "multi_net": self.multi_net,
            "joint": self.joint,
            "finished": [list(trial) for trial in self.trials if trial in self.finished],
            "failed": [[*trial, self.failed[trial]] for trial in self.trials if trial in self.failed],
            "task_labels": dict(self.task_labels),
            **(
                {
                    "comparisons": [one.model_dump(mode="json") for one in self.comparisons],
                    "comparisons_sha256": planned_digest(self.comparisons),
                }
                if self.comparisons
                else {}
            ),
        }


def _planned(value: Mapping[str, Any], source: str) -> tuple[PlannedComparison, ...]:
    """Return the planned comparisons, which must be those that the digest was made of."""
    listed = value.get("comparisons", [])
    if planned_digest(listed) != value.get("comparisons_sha256"):
        raise RepmodeError(
            f"{source}: the planned comparisons are not those that comparisons_sha256 was made of: the list was "
            "changed after the run began. Restore it"
        )
    return tuple(PlannedComparison(**one) for one in listed)


def _first_with_common_steps(config: Config, kind: str) -> str | None:
    """Return the title of the first strategy of a kind that has all the steps; others are measured against it."""

    def has_all(options: StrategyConfig) -> bool:
        return options.steps is None or options.steps == config.training.steps

    return next((one.title for one in config.strategies if one.name == kind and has_all(one)), None)


def _streams(value: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], ...]]:
    streams = {
        str(stream): tuple(tuple(str(name) for name in names) for names in experiences)
        for stream, experiences in value.items()
    }
    if not streams or not all(names for experiences in streams.values() for names in experiences):
        raise ValueError("no stream, or a step of one without a structure")
    return streams


def _trial(entry: Any) -> Trial:
    title, *stream, seed = entry
    if len(stream) > 1:
        raise ValueError(f"{entry!r} is no (strategy, stream, seed)")
    return Trial(str(title), str(stream[0]) if stream else "", int(seed))


def write_run_info(folder: Path, info: RunInfo) -> None:
    """Write run.json of the run in `folder`."""
    write_text(folder / RUN_FILE, json.dumps(info.to_json(), indent=2, allow_nan=False) + "\n")


def read_run_info(run_dir: str | Path) -> RunInfo:
    """Read run.json of a run's folder.

    Raises
    ------
    RepmodeError
        If the folder or the file is missing, or the file is no description of a run.
    """
    run_dir = Path(run_dir)
    path = run_dir / RUN_FILE
    if not run_dir.is_dir():
        raise RepmodeError(f"{run_dir}: there is no such folder; name that of a run, such as runs/quickstart")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RepmodeError(
            f"{run_dir}: holds no run.json, so it is no run; name a folder that `repmode-cl bench` wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise RepmodeError(f"{path}: cannot be read as JSON: {error}") from error
    if isinstance(value, dict) and "steps" not in value:
        value["steps"] = _configured_steps(run_dir / "config.yaml")
    return RunInfo.from_json(value, str(path))


def read_recorded_info(run_dir: Path) -> RunInfo:
    """Read run.json of a run that is to be resumed, as it was last written.

    Raises
    ------
    RepmodeError
        If the file is missing or damaged, with what to do.
    """
    path = run_dir / RUN_FILE
    return RunInfo.from_json(
        read_json(path, f"restore it, or remove {run_dir} to start the run again"), str(path)
    )


def _configured_steps(path: Path) -> int | None:
    """Return ``training.steps`` of a run whose run.json does not hold it; None where it cannot be found."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        steps = config["training"]["steps"]
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError):
        return None  # the page says that the configuration cannot be read; tables do without
    return steps if isinstance(steps, int) else None
