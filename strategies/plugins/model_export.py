"""Export of a trained network as a model directory, with the provenance of its structures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.data.preprocessing.intensity_scales import recorded_light, scales_record
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.sample import Sample, digest_of
from repmode_cl.data.split_record import split_record
from repmode_cl.data.voxel_size_check import voxel_size_record
from repmode_cl.model import Model
from repmode_cl.nn import RepModeUNet
from repmode_cl.store.reliability import Reliability
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.training import Precision

__all__ = ["ADDITION_TRAINING", "create_model", "inference_settings", "provenance_of", "training_facts"]

#: Keys of a strategy's section, besides its learning rate, that say how additions are trained.
ADDITION_TRAINING = ("decay_to_base", "gate_steps", "setting")


def provenance_of(
    config: Config, options: StrategyConfig, seed: int, images: Sequence[Sample], precision: Precision
) -> dict[str, Any]:
    """Return a model's record of how a structure was learned; `add` reads its defaults from it."""
    return {
        "config": config.name,
        "seed": seed,
        # Of a base both selections are the same, and `add` has its own.
        "training": config.training.model_dump(mode="json", exclude={"select_by"}),
        # The values that the settings, which may be "auto", were resolved to.
        "precision": precision.format,
        "device": precision.device,
        "patch": list(config.patch.size),
        "flips": config.patch.model_dump(mode="json")["flips"],
        **({"foreground": config.patch.foreground} if config.patch.foreground else {}),
        "addition": options.model_dump(mode="json", include={"learning_rate", *ADDITION_TRAINING}),
        "images": digest_of(*sorted({sample.image_id for sample in images})).hex(),
        **scales_record(images),
        **voxel_size_record(sample.voxel_size for sample in images),
        **split_record(images, config.data.model_dump()),
    }


def training_facts(strategy: StructureStrategy, number: int = 0) -> dict[str, Any]:
    """Return steps and rate with which experience `number`, just trained, was trained.

    The settings name limits of steps, and rates of several kinds.
    """
    rate: Any = strategy.group_rates_of(number) or strategy.learning_rate_of(number)
    return {"steps": strategy.progress.step, "learning_rate": rate}


def inference_settings(config: Config) -> dict[str, Any]:
    """Return the ``inference`` of a model that was trained by `config`."""
    weights = {} if config.inference.weights == "floored" else {"weights": config.inference.weights}
    return {
        "window": list(config.window),
        "overlap": config.inference.overlap,
        "batch": config.inference.batch_size,
        **weights,
    }


def create_model(
    path: Path,
    network: RepModeUNet,
    config: Config,
    provenance: dict[str, Any],
    metrics: dict[str, Any],
    reliability: Mapping[str, Reliability] | None = None,
) -> Model:
    """Write the model directory of a network that was trained by `config`; `provenance` is of `provenance_of`."""
    preprocessing = config.data.preprocessing
    recipe = PreprocessingRecipe.of(preprocessing)
    if recipe.data_set:
        recipe = replace(recipe, light=recorded_light(provenance))
    return Model.create(
        path,
        network,
        voxel_size=preprocessing.voxel_size,
        preprocessing=recipe.to_json(),
        inference=inference_settings(config),
        provenance=provenance,
        metrics=metrics,
        reliability=reliability,
    )
