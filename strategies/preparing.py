"""From a model and a manifest to what a training on them needs: the base's settings, unless told otherwise.

What adding a structure and comparing it with the alternatives have in common, before either trains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repmode_cl.config import (
    Config,
    DataConfig,
    InferenceConfig,
    PatchConfig,
    PreprocessingConfig,
    TrainingConfig,
)
from repmode_cl.data.manifest import Manifest, read_manifest
from repmode_cl.data.sample import digest_of
from repmode_cl.errors import ConfigError, ManifestError
from repmode_cl.store import Model
from repmode_cl.training import Precision

__all__ = ["configuration_for", "manifest_of", "origin_of", "other_precision", "rows_digest", "training_for"]


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
        If both `steps` and `epochs` are given.
    """
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
        Fixes voxel size, interpolation and window.
    manifest
        The images.
    training
        Of `training_for`.
    name
        Of the run; underscores become hyphens.
    cache
        Folder of prepared images.
    patch
        Voxels (z, y, x) of a patch; ``None``: the model's window.
    seed
        Seed of new weights and of patches.
    """
    z, y, x = (int(n) for n in patch or model.inference["window"])
    return Config(
        name=name.replace("_", "-"),
        seeds=(seed,),
        training=training,
        data=DataConfig(
            manifest=str(manifest.path),
            cache=str(cache),
            preprocessing=PreprocessingConfig(
                voxel_size=model.voxel_size, order=model.preprocessing.get("order", 1)
            ),
        ),
        patch=PatchConfig(size=(z, y, x), flips=origin_of(model).get("flips", True)),
        inference=InferenceConfig(overlap=model.inference["overlap"], batch_size=model.inference["batch"]),
    )


def rows_digest(manifest: Manifest, structures: Sequence[str]) -> str:
    """Return a digest of the manifest's rows of `structures`: a training goes on with the same rows alone."""
    return digest_of(*(str(row) for row in manifest.rows if row.structure in structures)).hex()


def other_precision(origin: Mapping[str, Any], precision: Precision, structure: str) -> str | None:
    """Return a note if `structure` is trained in another number format than the base was."""
    base, own = origin.get("precision"), precision.format
    if base not in ("float32", "bfloat16", "float16") or base == own:
        return None
    native = Precision(base, precision.device).native
    why = "" if native else ", for which this device has no instructions"
    return f"the base was trained in {base}{why}; {structure} is trained in {own}"
