"""run.json: what a run is made of, checked once, so that tables and page need not guess."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from repmode_cl.errors import RepmodeError

__all__ = ["RunInfo", "Unit", "read_run_info", "unit_folder"]

#: One run of one strategy: (title, stream, seed).
Unit = tuple[str, str, int]

#: Newest form of run.json that is understood; files without "version" are of the first.
VERSION = 2


def unit_folder(title: str, stream: str, seed: int) -> Path:
    """Return where one run's files lie, below the folder of the whole run."""
    return Path(title, stream, f"seed-{seed}") if stream else Path(title, f"seed-{seed}")


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
        (title, stream, seed) of what ran to its end.
    options
        Title -> the strategy's section of the configuration; empty in files of the first form.
    joint
        Title of the strategy that learned all structures at once, which intransigence refers to, or None.
    failed
        (title, stream, seed) -> message of what ended with an error.
    steps
        Training steps of an experience of one structure that strategies have in common; None where they train in
        epochs, or where it is not known.
    at_once
        Titles of all strategies that learned all structures at once: `joint`, and a user's own that inherit from it.
    """

    streams: Mapping[str, tuple[tuple[str, ...], ...]]
    strategies: Mapping[str, str]
    bit_identical: Mapping[str, bool | None]
    seeds: tuple[int, ...]
    multi_net: str | None
    finished: frozenset[Unit]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    joint: str | None = None
    failed: Mapping[Unit, str] = field(default_factory=dict)
    steps: int | None = None
    at_once: frozenset[str] = frozenset()

    def budget_of(self, title: str) -> Literal["shorter", "common", "longer"]:
        """Tell how a strategy's steps compare with the common ones: shorter budgets are another experiment.

        Where the common number is not known, any number that a strategy has of its own counts as a shorter one.
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
        group is named by what is left of the name without the order, often ``""``.
        """
        groups: dict[str, tuple[str, ...]] = {}
        for stream in self.streams:
            name = re.sub(r"^order-\d+(-|$)", "", stream)
            groups[name] = (*groups.get(name, ()), stream)
        return groups

    @classmethod
    def of(cls, value: RunInfo | Mapping[str, Any], source: str = "run.json") -> RunInfo:
        """Return `value` as a RunInfo; a mapping is what run.json holds, of the first form or the second.

        Raises
        ------
        RepmodeError
            If a key is missing or has another form, or a newer repmode-cl wrote it.
        """
        if isinstance(value, RunInfo):
            return value
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
                finished=frozenset(_unit(entry) for entry in value.get("finished", ())),
                options={title: dict(entry.get("options") or {}) for title, entry in entries.items()},
                joint=value.get("joint"),
                failed={_unit(entry[:-1]): str(entry[-1]) for entry in value.get("failed", ())},
                steps=None if value.get("steps") is None else int(value["steps"]),
                at_once=frozenset(
                    title
                    for title, entry in entries.items()
                    if entry.get("at_once", entry["name"] == "joint")
                ),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, RepmodeError):
                raise
            raise RepmodeError(
                f"{source}: is no description of a run ({type(error).__name__}: {error}); it has "
                "streams (or experiences), strategies, seeds, multi_net and finished, and `repmode-cl bench` "
                "writes it"
            ) from error


def _streams(value: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], ...]]:
    streams = {
        str(stream): tuple(tuple(str(name) for name in names) for names in experiences)
        for stream, experiences in value.items()
    }
    if not streams or not all(names for experiences in streams.values() for names in experiences):
        raise ValueError("no stream, or a step of one without a structure")
    return streams


def _unit(entry: Any) -> Unit:
    title, *stream, seed = entry
    if len(stream) > 1:
        raise ValueError(f"{entry!r} is no (strategy, stream, seed)")
    return str(title), str(stream[0]) if stream else "", int(seed)


def read_run_info(run_dir: str | Path) -> RunInfo:
    """Read run.json of a run's folder.

    Raises
    ------
    RepmodeError
        If the folder or the file is missing, or the file is no description of a run.
    """
    run_dir = Path(run_dir)
    path = run_dir / "run.json"
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
    return RunInfo.of(value, str(path))


def _configured_steps(path: Path) -> int | None:
    """Return ``training.steps`` of a run whose run.json does not hold it; None where it cannot be found."""
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        steps = config["training"]["steps"]
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError):
        return None  # the page says that the configuration cannot be read; tables do without
    return steps if isinstance(steps, int) else None
