"""Metadata of an image to write, the same for every format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from repmode_cl.version import __version__

__all__ = ["ImageMetadata", "ChannelMetadata", "NAMESPACE", "software"]

#: Namespace of our annotations in OME-XML, and key of our attributes in zarr.
NAMESPACE = "urn:repmode-cl:prediction"


@dataclass(frozen=True)
class ChannelMetadata:
    """Metadata of one channel.

    Attributes
    ----------
    name
        The structure's name, or that of the transmitted-light channel.
    colour
        Red, green, blue, 0 to 255.
    about
        Origin and unit of its numbers, for people and programs.
    """

    name: str
    colour: tuple[int, int, int] = (255, 255, 255)
    about: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageMetadata:
    """Metadata of an image to write.

    Attributes
    ----------
    name
        For people: the file's name without its suffix.
    shape
        Voxels (Z, Y, X).
    dtype
        Type of the voxels: uint8, uint16 or float32.
    channels
        In their order.
    voxel_size
        um (z, y, x), or None.
    description
        A sentence.
    uuid
        ``urn:uuid:...``: the same for the same voxels; None for none.
    about
        Facts that hold for all channels.
    times
        Number of time points; None where the image has no axis of time.
    """

    name: str
    shape: tuple[int, int, int]
    dtype: np.dtype[np.generic]
    channels: tuple[ChannelMetadata, ...]
    voxel_size: tuple[float, float, float] | None = None
    description: str = ""
    uuid: str | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    times: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all channels and time points at full resolution."""
        z, y, x = self.shape
        return (self.times or 1) * len(self.channels) * z * y * x * self.dtype.itemsize


def software() -> str:
    """Return name and version of this software, as files state it."""
    return f"repmode-cl {__version__}"
