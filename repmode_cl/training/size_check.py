"""Sizes of patches, windows and batches that a network can compute, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from repmode_cl.config import Config, TrainingConfig
from repmode_cl.errors import ConfigError
from repmode_cl.nn import smallest_size

__all__ = ["check_last_batch", "check_patches", "check_window"]


def check_patches(config: Config, depth: int) -> None:
    """Refuse patches that a network cannot compute, or that leave batch norm a single value.

    Parameters
    ----------
    config
        Patch and batch.
    depth
        Of the network, which need not be the configuration's: an addition has that of its model.

    Raises
    ------
    ConfigError
        With the sizes that are allowed.
    """
    size, least = config.patch.size, smallest_size(depth)
    if min(size) < least:
        raise ConfigError(
            f"patch.size is {list(size)}, and a network of depth {depth} (network.depth) needs at least {least} voxels "
            "along each axis: set larger patches, or less depth where the network is new"
        )
    patches = config.training.batch_size // config.training.accumulate
    if patches == 1 and _leaves_one_voxel(size, depth):
        raise ConfigError(
            f"patch.size {list(size)} at depth {depth} (network.depth) leaves one voxel on the lowest level, and "
            "training computes one patch at a time (batch_size / accumulate): batch norm needs two values; set larger "
            "patches, larger batches, or less depth where the network is new"
        )


def check_last_batch(
    training: TrainingConfig, patch: Sequence[int], depth: int, patches: int, world: int = 1
) -> None:
    """Refuse an epoch whose last batch leaves a process nothing to compute, or batch norm a single value.

    Parameters
    ----------
    training
        Size of the batches.
    patch
        Voxels (z, y, x) of a patch.
    depth
        Of the network.
    patches
        Of an epoch, after which the next begins with a new batch; with ``last_batch: short`` one of each image.
    world
        Processes that train together.

    Raises
    ------
    ConfigError
        With what to set.
    """
    size = training.batch_size // training.accumulate
    last = patches % size
    found = f"an epoch of {patches} patches in batches of {size} (batch_size / accumulate) ends with a batch of {last}"
    remedy = f"set training.last_batch=continuous, or a training.batch_size by which {patches} leaves another remainder"
    if 0 < last < world:
        raise ConfigError(
            f"{found}, fewer than the {world} processes that share it: {remedy}, or start fewer processes"
        )
    if last == 1 and _leaves_one_voxel(patch, depth):
        raise ConfigError(
            f"{found}, and patch.size {list(patch)} at depth {depth} (network.depth) leaves it one voxel on the lowest "
            f"level: batch norm needs two values; {remedy}, or larger patches"
        )


def _leaves_one_voxel(patch: Sequence[int], depth: int) -> bool:
    return all(voxels <= 1 << depth for voxels in patch)


def check_window(config: Config, depth: int) -> None:
    """Refuse windows of predictions that a network of `depth` cannot compute.

    Raises
    ------
    ConfigError
        With the sizes that are allowed.
    """
    least = smallest_size(depth)
    if min(config.window) < least:
        raise ConfigError(
            f"inference.window is {list(config.window)}, and a network of depth {depth} (network.depth) needs at least "
            f"{least} voxels along each axis: set larger windows, or null for those of the patches"
        )
