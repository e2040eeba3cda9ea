"""Options of adding a structure and of comparing: made once by a command, passed whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from repmode_cl.nn import AdditionSpec

__all__ = ["TrainingOverrides", "AdditionOptions", "ComparisonOptions", "EvaluationOptions"]


@dataclass(frozen=True)
class TrainingOverrides:
    """Training settings that replace those of the base.

    Attributes
    ----------
    steps, epochs
        Length of the training, one or the other; ``None``: that of the base.
    time_limit
        Seconds of training, validation excluded, after which it is validated and ends.
    patience
        Validations without an improvement after which it ends.
    learning_rate
        Peak rate, or one for each group of an addition's parameters; ``None``: what the base's configuration names for
        additions, or else the base's own.
    decay_to_base
        Decay of an addition towards the base; ``None``: what the base's configuration names for additions.
    gate_steps
        Share of the steps in which its gates learn; ``None``: as the rate, that of the setting or of
        the base's configuration.
    batch_size
        Patches of a step; ``None``: as the base.
    patch
        Voxels (z, y, x); ``None``: as the base.
    seed
        Seed of new weights and of patches.
    device, precision
        As of the configuration; with ``auto`` the precision is the base's, where the device has instructions for it.
    cache
        Folder of prepared images; ``None`` keeps them with the training until it is done.
    workers
        Processes that prepare images.
    loader_workers
        Processes that cut patches ahead of the training; 0 cuts them in this one.
    force
        Whether to use images whose voxel size is missing or far from what the base was trained on.
    """

    steps: int | None = None
    epochs: int | None = None
    time_limit: float | None = None
    patience: int | None = None
    learning_rate: float | Mapping[str, float] | None = None
    decay_to_base: float | None = None
    gate_steps: float | None = None
    batch_size: int | None = None
    patch: Sequence[int] | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    cache: str | Path | None = None
    workers: int = 1
    loader_workers: int = 0
    force: bool = False


@dataclass(frozen=True)
class AdditionOptions:
    """Choices for one addition.

    Attributes
    ----------
    spec
        What the structure gets; ``None``: what `setting` says; of a replacement without one: what the version has that
        it replaces.
    setting
        ``small`` or ``best``: a named kind of addition, and the rate at which it learns. ``None``: ``small``, unless
        `spec` is given.
    init_from
        What it starts from: ``none`` is chance; the name of a known structure; ``best``, the known structure whose
        mode has the lowest squared error on a sample of the training patches. ``None``: as the setting says.
    min_r2
        Smallest R2 on held-out images with which it becomes part of the model; below it is staged.
    stage
        Whether to stage it whatever its R2 is.
    replace
        Whether to train another version of an addition that the model has.
    """

    spec: AdditionSpec | None = None
    setting: str | None = None
    init_from: str | None = None
    min_r2: float | None = None
    stage: bool = False
    replace: bool = False


@dataclass(frozen=True)
class ComparisonOptions:
    """Choices for one comparison that an addition does not have.

    Attributes
    ----------
    out
        Folder of the comparison; ``None``: ``runs/compare-<structure>``.
    restart
        Whether to start again in a folder that holds a comparison.
    kernel
        Edge of the separate network's kernels, 3 or 5.
    fine_tuning_rate, network_rate
        Peak learning rates; ``None``: as of `compare_structure`.
    """

    out: str | Path | None = None
    restart: bool = False
    kernel: int = 3
    fine_tuning_rate: float | None = None
    network_rate: float | None = None


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of an evaluation.

    Attributes
    ----------
    structures
        Structures to evaluate; empty for all that model and manifest share.
    measures
        Measures besides the voxel metrics (`repmode_cl.evaluation.image_quality.MEASURES`); ``None``: all whose
        packages are installed.
    labels
        Folder of label images, each named as its image of transmitted light; ``None``: those that the manifest names.
    threshold
        z-score above which a voxel is foreground, in truth and prediction; ``None``: Otsu's, of each.
    min_size
        Voxels of the smallest object that is counted.
    out
        Folder; ``None``: ``runs/evaluate-<model>``.
    restart
        Whether to begin again in a folder that holds an evaluation.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    cache
        Folder of prepared images; ``None`` keeps them in the folder until the evaluation is done.
    workers
        Processes that prepare images.
    force
        Whether to use images whose voxel size is missing or far from what the base was trained on.
    confidence
        Whether to measure the intervals of `predict --confidence`, by predicting each window once for each flip.
    """

    structures: Sequence[str] = ()
    measures: Sequence[str] | None = None
    labels: Path | None = None
    threshold: float | None = None
    min_size: int = 27
    out: Path | None = None
    restart: bool = False
    device: str = "auto"
    cache: Path | None = None
    workers: int = 1
    force: bool = False
    confidence: bool = False
