"""Sizes of patches and windows that a network can compute, checked before anything is trained."""

from __future__ import annotations

from repmode_cl.config import Config
from repmode_cl.errors import ConfigError
from repmode_cl.nn import smallest_size

__all__ = ["check_patches", "check_window"]


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
    if patches == 1 and all(voxels <= 1 << depth for voxels in size):
        raise ConfigError(
            f"patch.size {list(size)} at depth {depth} (network.depth) leaves one voxel on the lowest level, and "
            "training computes one patch at a time (batch_size / accumulate): batch norm needs two values; set larger "
            "patches, larger batches, or less depth where the network is new"
        )


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
