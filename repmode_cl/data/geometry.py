"""Types of boxes and voxel sizes, in the order z, y, x, that all of `repmode_cl.data` shares."""

from __future__ import annotations

__all__ = ["Box", "VoxelSize"]

#: Part of a volume: one slice with both ends for each axis, (z, y, x).
Box = tuple[slice, slice, slice]

#: Edges of a voxel in um, (z, y, x).
VoxelSize = tuple[float, float, float]
