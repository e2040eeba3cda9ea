"""run.json: what a run is made of, checked once, so that tables and page need not guess."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repmode_cl.errors import RepmodeError

__all__ = ["RunInfo", "read_run_info"]


@dataclass(frozen=True)
class RunInfo:
    """Contents of run.json.

    Attributes
    ----------
    experiences
        Names of the structures learned in each step; the first may hold several.
    strategies
        Title -> kind of strategy ("experts_frozen", ...), in the order of the configuration.
    bit_identical
        Title -> whether predictions and digests of earlier structures were found unchanged, bit for bit; None
        where that was not checked.
    seeds
        Seeds of the run.
    multi_net
        Title of the strategy that the relative improvement refers to, or None.
    finished
        (title, seed) of what ran to its end.
    """

    experiences: tuple[tuple[str, ...], ...]
    strategies: Mapping[str, str]
    bit_identical: Mapping[str, bool | None]
    seeds: tuple[int, ...]
    multi_net: str | None
    finished: frozenset[tuple[str, int]]

    @property
    def structures(self) -> tuple[str, ...]:
        """All structures, in the order in which they arrive."""
        return tuple(name for names in self.experiences for name in names)

    @property
    def added(self) -> tuple[str, ...]:
        """Structures that arrive after the first experience."""
        return tuple(name for names in self.experiences[1:] for name in names)

    @classmethod
    def of(cls, value: RunInfo | Mapping[str, Any], source: str = "run.json") -> RunInfo:
        """Return `value` as a RunInfo; a mapping is what run.json holds.

        Raises
        ------
        RepmodeError
            If a key is missing or has another form.
        """
        if isinstance(value, RunInfo):
            return value
        try:
            strategies = {str(title): entry for title, entry in value["strategies"].items()}
            return cls(
                experiences=tuple(tuple(str(name) for name in names) for names in value["experiences"]),
                strategies={title: str(entry["name"]) for title, entry in strategies.items()},
                bit_identical={title: entry.get("bit_identical") for title, entry in strategies.items()},
                seeds=tuple(int(seed) for seed in value["seeds"]),
                multi_net=value.get("multi_net"),
                finished=frozenset((str(title), int(seed)) for title, seed in value.get("finished", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RepmodeError(
                f"{source}: is no description of a run ({type(error).__name__}: {error}); it has "
                "experiences, strategies, seeds, multi_net and finished, and `repmode-cl bench` writes it"
            ) from error


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
    return RunInfo.of(value, str(path))
