"""Boxes, voxel sizes and shapes, in the order z, y, x, that all of `repmode_cl.data` shares."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Box", "VoxelSize", "shape_text"]

#: Part of a volume: one slice with both ends for each axis, (z, y, x).
Box = tuple[slice, slice, slice]

#: Edges of a voxel in um, (z, y, x).
VoxelSize = tuple[float, float, float]


def shape_text(shape: Sequence[int]) -> str:
    """Write a shape as ``4 x 40 x 90``."""
    return " x ".join(str(size) for size in shape)
