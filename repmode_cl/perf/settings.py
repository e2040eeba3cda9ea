"""Settings of a measurement: its parts and sizes, three of them ready, and the checks of a user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from repmode_cl.errors import ConfigError, did_you_mean

__all__ = ["DEFAULT_SECTIONS", "PAPER", "PRECISIONS", "QUICK", "SECTIONS", "PerfSettings", "check_names"]

#: In the order in which they are measured. The check runs by itself before anything is timed on a GPU.
SECTIONS = ("check", "training", "inference", "kernel3", "memory", "loading", "scaling", "startup", "profile")
DEFAULT_SECTIONS = ("training", "inference", "kernel3", "memory", "loading")
PRECISIONS = ("float32", "bfloat16", "float16", "auto")

#: A size that takes seconds: what shows that everything works, and that no ratio is grossly off.
QUICK: dict[str, Any] = {
    "width": 8,
    "depth": 2,
    "patch": (8, 16, 16),
    "precisions": ("float32",),
    "repeats": 3,
    "loader_workers": (0, 1),
    "fresh_processes": False,
}
#: The paper's (section 4.1 and appendix A), for a GPU of the largest kind.
PAPER: dict[str, Any] = {
    "width": 32,
    "depth": 4,
    "patch": (32, 128, 128),
    "batch": 8,
    "repeats": 10,
    "minutes": 8.0,
    "loader_workers": (0, 1, 2, 4),
}


@dataclass(frozen=True)
class PerfSettings:
    """Sizes and repetitions of a measurement; the defaults suit a CPU.

    Attributes
    ----------
    width, depth
        As of `Architecture`.
    patch
        Voxels (z, y, x) of a training patch and of a window.
    batch
        Samples of a step, and windows computed at once.
    precisions
        Each of `PRECISIONS`; ``auto`` is resolved by the rule that training has, and measured once.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    repeats
        Rounds after the warm-up; each measures every variant once.
    threads
        Threads of torch; ``None`` leaves them as they are.
    minutes
        Time after which no further round begins; every variant still has one. ``None``: no limit.
    seed
        Of weights, inputs and the order within a round.
    loader_workers
        Worker processes of the loaders that are measured.
    fresh_processes
        Whether peak resident memory is measured on a CPU, in one fresh process for each variant.
    sections
        Some of `SECTIONS`.
    variants
        Rows of the training step to measure, by name, besides the reference; empty takes all.
    """

    width: int = 8
    depth: int = 4
    patch: tuple[int, int, int] = (16, 64, 64)
    batch: int = 8
    precisions: tuple[str, ...] = ("float32", "auto")
    device: str = "auto"
    repeats: int = 7
    threads: int | None = None
    minutes: float | None = None
    seed: int = 0
    loader_workers: tuple[int, ...] = (0, 1, 2)
    fresh_processes: bool = True
    sections: tuple[str, ...] = DEFAULT_SECTIONS
    variants: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in ("width", "depth", "batch", "repeats"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is {getattr(self, key)}: at least 1 is needed")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is {self.threads}: at least 1 is needed")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise ConfigError(f"minutes is {self.minutes}: a positive number is needed")
        # Batch norm in training needs more than one value for each channel, in the bottleneck too.
        multiple = 1 << self.depth
        if len(self.patch) != 3 or any(size < multiple or size % multiple for size in self.patch):
            raise ConfigError(
                f"patch {_times(self.patch)}: three sizes z, y, x that 2^depth = {multiple} divides are needed, "
                "so that nothing is padded; give another patch or less depth"
            )
        voxels = self.batch
        for size in self.patch:
            voxels *= size // multiple
        if voxels < 2:
            raise ConfigError(
                f"patch {_times(self.patch)}, batch {self.batch} and depth {self.depth} leave one voxel in the "
                "bottleneck, where batch norm needs two: give a larger patch or batch"
            )
        check_names("precision", self.precisions, PRECISIONS)
        check_names("section", self.sections, SECTIONS)

    @property
    def structure_counts(self) -> tuple[int, ...]:
        """Structures in a batch that are measured: one, two and eight, as far as the batch holds them."""
        return tuple(count for count in (1, 2, 8) if count <= self.batch)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PerfSettings:
        """Read what `to_json` gave."""
        read: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**read)


def check_names(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Check that every name is known, and that there is one.

    Raises
    ------
    ConfigError
        Naming what is known.
    """
    if not given:
        raise ConfigError(f"at least one {what} is needed: {', '.join(known)}")
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{what} {name!r} is none: choose {', '.join(known)}{did_you_mean(name, known)}"
            )


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(str(size) for size in sizes)
