"""From a model and a manifest to what a training on them needs: the base's settings, unless told otherwise.

What adding a structure and comparing it with the alternatives have in common, before either trains.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from repmode_cl.config import (
    Config,
    DataConfig,
    InferenceConfig,
    PatchConfig,
    PreprocessingConfig,
    TrainingConfig,
)
from repmode_cl.config.error_messages import describe
from repmode_cl.config.field_types import check_expert
from repmode_cl.data.manifest import Manifest, Problem, read_manifest
from repmode_cl.data.preprocessing.prepare import voxel_size_of
from repmode_cl.data.preprocessing.recipe import Recipe
from repmode_cl.data.voxel_size_check import check_voxel_size, trained_voxels
from repmode_cl.errors import ConfigError, ImageError, ManifestError, RepmodeError, did_you_mean
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec
from repmode_cl.training import Precision

__all__ = [
    "configuration_for",
    "guard_voxels",
    "manifest_of",
    "origin_of",
    "other_precision",
    "spec_of",
    "training_for",
    "voxel_problems",
]


def origin_of(model: Model) -> Mapping[str, Any]:
    """Return how the base of `model` was trained; empty where that was never recorded."""
    return model.entries[model.base_structures[0]].provenance


def manifest_of(data: str | Path | Manifest, structure: str) -> Manifest:
    """Return the manifest `data`, opened.

    Raises
    ------
    ManifestError
        If it cannot be read, or has no row of `structure`.
    """
    manifest = data if isinstance(data, Manifest) else read_manifest(Path(data))
    if structure not in manifest.structures:
        raise ManifestError(
            f"{manifest.path} has no row of {structure!r}: it has {', '.join(manifest.structures)}"
            f"{did_you_mean(structure, manifest.structures)}"
        )
    return manifest


def training_for(
    origin: Mapping[str, Any],
    *,
    steps: int | None = None,
    epochs: int | None = None,
    patience: int | None = None,
    time_limit: float | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    loader_workers: int = 0,
) -> TrainingConfig:
    """Return the training that the base's provenance and what was given come to.

    Parameters
    ----------
    origin
        Provenance of the base, of `origin_of`.
    steps, epochs, learning_rate, batch_size
        ``None``: as the base was trained with (for the rate, what its configuration named for additions).
    patience, time_limit
        Validations without an improvement, and seconds of training, after which it ends early; ``None`` sets no
        such limit, whatever the base had.
    device, precision, loader_workers
        Never the base's: that was another machine, perhaps.

    Raises
    ------
    ConfigError
        If both `steps` and `epochs` are given, or a value is out of range.
    """
    for key, number in {"learning_rate": learning_rate, "time_limit": time_limit}.items():
        if number is not None and not _is_positive(number):
            raise ConfigError(f"{key} {number!r}: a positive number is needed")
    for key, count in {
        "steps": steps, "epochs": epochs, "patience": patience, "batch_size": batch_size,
    }.items():  # fmt: skip
        if count is not None:
            _whole(count, key, least=1)
    values: dict[str, Any] = dict(
        origin.get("training", {"steps": 300, "learning_rate": 2e-3, "schedule": "one_cycle"})
    )
    values |= {"base_steps": None, "patience": patience, "time_limit": time_limit}
    if steps is not None and epochs is not None:
        raise ConfigError(f"{steps} steps and {epochs} epochs: give one or the other")
    if steps is not None or epochs is not None:
        values |= {"steps": steps, "epochs": epochs, "validate_every": None, "validate_every_epochs": None}
    rate = learning_rate or (origin.get("addition") or {}).get("learning_rate")
    values |= {"learning_rate": rate or values["learning_rate"], "device": device, "precision": precision}
    values["loader_workers"] = loader_workers
    if batch_size is not None:
        values["batch_size"] = batch_size
        # As many micro-batches as divide it, at most as many as the base had.
        values["accumulate"] = math.gcd(batch_size, values.get("accumulate", 1))
    with _told(values):
        return TrainingConfig(**values)


def configuration_for(
    model: Model,
    manifest: Manifest,
    training: TrainingConfig,
    *,
    name: str,
    cache: str | Path,
    patch: Sequence[int] | None = None,
    seed: int = 0,
) -> Config:
    """Return a benchmark's configuration with what the model fixes: the same code trains both.

    Parameters
    ----------
    model
        Fixes voxel size, preprocessing and window.
    manifest
        The images.
    training
        Of `training_for`.
    name
        Of the run; underscores become hyphens.
    cache
        Folder of prepared images.
    patch
        Voxels (z, y, x) of a patch; ``None``: what the model's base was trained with.
    seed
        Seed of new weights and of patches.

    Raises
    ------
    ConfigError
        If `patch` or `seed` is none.
    """
    _whole(seed, "seed", least=0)
    origin = origin_of(model)
    window = model.inference["window"]
    # Models of earlier revisions do not say what they were trained with: it was their window.
    z, y, x = _patch(origin.get("patch", window) if patch is None else patch)
    return Config(
        name=name.replace("_", "-"),
        seeds=(seed,),
        training=training,
        data=DataConfig(
            manifest=str(manifest.path),
            cache=str(cache),
            preprocessing=PreprocessingConfig(
                voxel_size=model.voxel_size, **Recipe.from_json(model.preprocessing).to_settings()
            ),
        ),
        patch=PatchConfig(
            size=(z, y, x), flips=origin.get("flips", True), foreground=origin.get("foreground", 0.0)
        ),
        inference=InferenceConfig(
            overlap=model.inference["overlap"], batch_size=model.inference["batch"], window=_patch(window)
        ),
    )


def spec_of(given: object) -> AdditionSpec:
    """Return what a structure gets, by default the paper's; refuse what is no `AdditionSpec`."""
    if given is None:
        return AdditionSpec()
    if not isinstance(given, AdditionSpec):
        raise ConfigError(
            f"spec {given!r}: an AdditionSpec is needed, such as AdditionSpec(expert='lowrank:4')"
        )
    if given.expert != "none":
        try:
            check_expert(given.expert)
        except ValueError as error:
            raise ConfigError(f"spec: {error}, or none") from error
    return given


def _patch(given: object) -> tuple[int, int, int]:
    sizes = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    if len(sizes) != 3:
        raise ConfigError(
            f"patch {given!r}: three sizes in voxels (z, y, x) are needed, such as (32, 128, 128)"
        )
    z, y, x = (_whole(size, f"patch {tuple(sizes)}:", least=1) for size in sizes)
    return z, y, x


def _whole(value: object, what: str, *, least: int) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least:
        raise ConfigError(f"{what} {value!r}: a whole number of at least {least} is needed")
    return number


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 < value < math.inf


@contextmanager
def _told(values: Mapping[str, Any]) -> Iterator[None]:
    """Say what a schema found wrong as the mistake of a user that it is."""
    try:
        yield
    except ValidationError as error:
        raise ConfigError(describe(error, values, "settings of the training", {}, {})) from error


def other_precision(origin: Mapping[str, Any], precision: Precision, structure: str) -> str | None:
    """Return a note if `structure` is trained in another number format than the base was."""
    base, own = origin.get("precision"), precision.format
    if base not in ("float32", "bfloat16", "float16") or base == own:
        return None
    native = Precision(base, precision.device).native
    why = "" if native else ", for which this device has no instructions"
    return f"the base was trained in {base}{why}; {structure} is trained in {own}"


_REMEDY = "state the right one in the column voxel_size_zyx, or give --force (force=True) to learn from it all the same"

#: Rows that are told one by one.
_TOLD = 5


def voxel_problems(
    model: Model, manifest: Manifest, structure: str, *, force: bool = False
) -> tuple[list[Problem], list[str]]:
    """Compare the voxel size of each image of a structure with those that the base was trained on.

    Parameters
    ----------
    model, manifest, structure
        The manifest's rows of `structure`; headers are read. Those that cannot be are left to whoever prepares them.
    force
        Make notes of problems.

    Returns
    -------
    list of Problem
        What is refused.
    list of str
        What a person should know; of many rows the first few.
    """
    trained = trained_voxels(origin_of(model), model.voxel_size)
    problems: list[Problem] = []
    notes: list[str] = []
    for row in manifest.for_structure(structure):
        try:
            found = voxel_size_of(row)
        except (RepmodeError, OSError):
            continue
        try:
            note = check_voxel_size(found, trained, row.signal.name, force, remedy=_REMEDY)
        except ImageError as error:
            problems.append(Problem(row.number, "voxel_size_zyx", str(error)))
        else:
            notes += [f"line {row.number}: {note}"] if note else []
    return problems, _shortened(notes)


def guard_voxels(model: Model, manifest: Manifest, structure: str, *, force: bool = False) -> list[str]:
    """Refuse images whose voxels are not of a size that the model was trained for; return notes.

    Raises
    ------
    ManifestError
        Naming each such row, unless `force`.
    """
    problems, notes = voxel_problems(model, manifest, structure, force=force)
    if problems:
        listed = "\n".join(f"  {line}" for line in _shortened([str(problem) for problem in problems]))
        raise ManifestError(
            f"{manifest.path}: voxels of another size than the model was trained on\n{listed}"
        )
    return notes


def _shortened(lines: Sequence[str]) -> list[str]:
    more = len(lines) - _TOLD
    return [*lines[:_TOLD], *([f"and {more} more such images"] if more > 0 else [])]
