"""Options of a prediction, and the record of a file that was predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from repmode_cl.data.preprocessing.intensity_scales import as_scale
from repmode_cl.errors import RepmodeError
from repmode_cl.inference.preview import PreviewVolumes
from repmode_cl.inference.rescale import Rescale
from repmode_cl.inference.unlike import ImageScore
from repmode_cl.inference.window_batches import Network, WindowOutputs, WindowsSource
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.utils.devices import multiplies_bfloat16
from repmode_cl.utils.memory import parse_memory
from repmode_cl.verdict import Verdict

__all__ = [
    "PredictionOptions",
    "PredictedFile",
    "WindowCluster",
    "FAST_OVERLAP",
    "PRECISIONS",
    "network_precision",
]

#: Overlap of a faster prediction (docs/prediction.md has what it costs).
FAST_OVERLAP = 0.25


#: Number formats that networks compute in; ``auto`` is one of the others.
PRECISIONS = ("float32", "bfloat16", "auto")


def network_precision(setting: str, device: torch.device) -> str:
    """Return the number format of a setting; ``auto`` is bfloat16 where the device multiplies matrices of it."""
    if setting != "auto":
        return setting
    return "bfloat16" if multiplies_bfloat16(device) else "float32"


class WindowCluster(Protocol):
    """Computes the windows of a volume in other processes."""

    def memory(self) -> int:
        """Return the bytes that a batch of windows may take in each process."""

    def windows(
        self,
        model: ModelSnapshot,
        structures: Sequence[str],
        device: torch.device,
        source: WindowsSource,
        batches: Iterator[range],
        *,
        precision: str,
        confidence: bool,
    ) -> Iterator[WindowOutputs]:
        """Yield what the networks of the structures make of each batch of windows, in order."""


@dataclass(frozen=True)
class PredictionOptions:
    """Options of a prediction, checked when they are made.

    Attributes
    ----------
    channel
        Name or number (from 0) of the transmitted-light channel; None where the file has one channel. As of every
        channel and scene here, a text is a name first, and an `int` a number.
    window, overlap
        Voxels (z, y, x) of a window on the model's grid, and the part its neighbour repeats (in [0, 1)); None takes
        the model's.
    device
        ``auto`` (cuda where there is one, else cpu), ``cpu``, ``cuda`` or ``cuda:N``.
    precision
        Number format of the networks' weights and of what passes between their layers: ``float32``, ``bfloat16``, or
        ``auto``: bfloat16 where the device multiplies matrices of it. Everything else stays float32.
    scene, t
        Which of several scenes (by number or name) or time points.
    voxel_size
        um (z, y, x) of the input, where the file states none or a wrong one.
    light
        Mean and deviation that the transmitted light is z-scored by, in place of those of the training images; for
        models that have these (``normalise: data_set``).
    force
        Continue where the voxel size is missing or far from those the model was trained on, with a note.
    rescale
        A range of z-scores to map onto the numbers of a type; None leaves z-scores as float32. A text such as
        ``"-2:8:uint8"`` becomes a `Rescale`.
    stack
        Write one file with the transmitted light and all structures as its channels.
    imagej
        Write TIFFs as ImageJ hyperstacks (untiled, without lower resolutions) instead of OME-TIFF.
    targets
        For each structure whose truth is in the input, the channel (name or number) to compare with.
    confidence
        Write a further channel for each structure: the half-width of its calibrated interval. Windows are predicted
        once more for each flip, 8 times in all where training flipped every axis; the prediction has the same bits.
    unlike_map
        Write a further channel for each structure: how unlike its training images the windows about a voxel are.
    memory
        Most bytes that this process may hold; None is what it holds now and half of what the system has to give. A
        text such as ``"2GB"`` becomes bytes. Where the model's batch of windows does not fit, fewer are computed at
        once, and a note says so.
    restart
        Discard an unfinished prediction of this output, also one with other settings.
    keep
        Do not predict again what was predicted already, by the same model from the same image with the same settings.
    measured
        With `keep` and `targets`: UUID and structure of each prediction whose figures are at hand; what is not among
        them is predicted again. None keeps all.
    preview
        Called with a part of the image and its predictions, before the files are written: a large image's middle
        before the rest is predicted, a small image as a whole. `repmode_cl.workflows.preview_page.PreviewWriter`
        makes a page of them.
    networks
        The structures' networks on `device` in `precision`, if they are at hand
        (`repmode_cl.inference.predict_file.FusedNetworks`).
    cluster
        Computes windows in other processes (`repmode_cl.inference.cluster.PredictionCluster`); None computes here.
    progress
        Called with the number of windows done and their total.
    status
        Called with a few words at the beginning of each stage.
    stop_after_windows
        Raise `repmode_cl.inference.streaming.run.PredictionStopped` after so many windows of this call: for
        measurements and tests.

    Raises
    ------
    RepmodeError
        If a value is out of range, or a text cannot be read.
    """

    channel: str | int | None = None
    window: tuple[int, int, int] | None = None
    overlap: float | None = None
    device: str = "auto"
    precision: str = "float32"
    scene: int | str | None = None
    t: int | None = None
    voxel_size: tuple[float, float, float] | None = None
    light: tuple[float, float] | None = None
    force: bool = False
    rescale: Rescale | None = None
    stack: bool = False
    imagej: bool = False
    targets: Mapping[str, str | int] | None = None
    confidence: bool = False
    unlike_map: bool = False
    memory: int | None = None
    restart: bool = False
    keep: bool = False
    measured: frozenset[tuple[str, str]] | None = None
    preview: Callable[[PreviewVolumes], object] | None = None
    networks: Mapping[str, Network] | None = None
    cluster: WindowCluster | None = None
    progress: Callable[[int, int], None] | None = None
    status: Callable[[str], None] | None = None
    stop_after_windows: int | None = None

    def __post_init__(self) -> None:
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise RepmodeError(f"overlap {self.overlap}: a number from 0 to below 1 is needed")
        if self.precision not in PRECISIONS:
            raise RepmodeError(
                f"precision {self.precision!r} is unknown: give one of {', '.join(PRECISIONS)}"
            )
        # Keywords of `predict_file` may be lists and texts; everything after this line has one type.
        for name, convert in _CONVERTERS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, convert(value))


def _voxel_size(size: Sequence[float]) -> tuple[float, float, float]:
    if len(size) != 3 or not all(0 < float(extent) < float("inf") for extent in size):
        raise RepmodeError(
            f"voxel size {', '.join(map(str, size))}: three positive numbers in um (z, y, x) are needed"
        )
    z, y, x = (float(extent) for extent in size)
    return z, y, x


def _window(size: Sequence[int]) -> tuple[int, int, int]:
    try:
        z, y, x = (int(extent) for extent in size)
        whole = min(z, y, x) >= 1 and [z, y, x] == [float(extent) for extent in size]
    except (ValueError, OverflowError):
        whole = False
    if not whole:
        raise RepmodeError(f"window {tuple(size)}: three positive whole numbers (z, y, x) are needed")
    return z, y, x


def _rescale(rescale: Rescale | str) -> Rescale:
    return Rescale.parse(rescale) if isinstance(rescale, str) else rescale


def _light(light: Sequence[float]) -> tuple[float, float]:
    scale = as_scale(light)
    if scale is None:
        raise RepmodeError(
            f"light {', '.join(map(str, light))}: its mean and its deviation are needed, the second above 0"
        )
    return scale


_CONVERTERS: Mapping[str, Callable[..., object]] = {
    "window": _window,
    "voxel_size": _voxel_size,
    "light": _light,
    "rescale": _rescale,
    "memory": parse_memory,
}


@dataclass(frozen=True)
class PredictedFile:
    """A predicted structure in a file, and how it came about.

    Attributes
    ----------
    path
        OME-TIFF, OME-Zarr or ``.npy``.
    structure
        The predicted structure.
    shape
        Voxels (Z, Y, X), those of the input.
    voxel_size
        um (z, y, x) of the input, or None where the file states none.
    grid
        Voxels (Z, Y, X) of the network's input.
    notes
        Remarks for a reader of the result: such as that an unknown voxel size was assumed to be the model's.
    seconds
        Wall time of the call, in which all structures were predicted together.
    values
        Unit of the numbers: ``z-score units``, or how they were rescaled.
    metrics
        ``mse``, ``mae``, ``r2`` and ``pearson`` on the model's grid, where a channel with the truth was named.
    existed
        Whether the file was there already, and nothing was done.
    verdict
        What the model's held-out figures say of the structure; None where it was not asked for.
    unlike
        How unlike the structure's training images the image is; None where the model has no statistics of them, or the
        file was there already.
    confidence
        What the confidence channel says, and on how many images it was calibrated; empty without one.
    uuid
        Identity of the file's content: image, model and settings. A part of a time series or plate has its own.
    """

    path: Path
    structure: str
    shape: tuple[int, int, int]
    voxel_size: tuple[float, float, float] | None
    grid: tuple[int, int, int]
    notes: tuple[str, ...]
    seconds: float
    values: str = "z-score units"
    metrics: Mapping[str, float] | None = None
    existed: bool = False
    verdict: Verdict | None = None
    unlike: ImageScore | None = None
    confidence: str = ""
    uuid: str = ""

    @property
    def unlike_text(self) -> str:
        """How unlike the structure's training images the image is, in words."""
        return "like training images or not: unknown" if self.unlike is None else self.unlike.text

    @property
    def trust_notes(self) -> tuple[str, ...]:
        """Remarks on how far to trust the prediction, for a reader of the result."""
        notes = []
        if self.unlike is not None and self.unlike.unlike:
            notes.append(
                f"{self.path} ({self.structure}) was predicted from an image further from the training images than any "
                "of them is from the others: the prediction may be wrong in ways that it does not show"
            )
        if self.confidence:
            notes.append(f"confidence of {self.structure}: {self.confidence}")
        return tuple(notes)
