"""What is known of an image that is to be written, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

__all__ = ["NAMESPACE", "ChannelMetadata", "ImageMetadata", "software"]

#: Of our annotations in OME-XML, and the key of our attributes in zarr.
NAMESPACE = "urn:repmode-cl:prediction"


@dataclass(frozen=True)
class ChannelMetadata:
    """One channel.

    Attributes
    ----------
    name
        A structure's, or that of the transmitted light.
    colour
        Red, green, blue, 0 to 255.
    about
        What made it and what its numbers mean, for people and programs.
    """

    name: str
    colour: tuple[int, int, int] = (255, 255, 255)
    about: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageMetadata:
    """An image to write.

    Attributes
    ----------
    name
        For people: that of the file without its suffix.
    shape
        Voxels (Z, Y, X).
    dtype
        Of the voxels: uint8, uint16 or float32.
    channels
        In their order.
    voxel_size
        um (z, y, x), or None.
    description
        A sentence.
    uuid
        ``urn:uuid:...``: the same for the same voxels; None for none.
    about
        What holds for all channels.
    """

    name: str
    shape: tuple[int, int, int]
    dtype: np.dtype[np.generic]
    channels: tuple[ChannelMetadata, ...]
    voxel_size: tuple[float, float, float] | None = None
    description: str = ""
    uuid: str | None = None
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all channels at full resolution."""
        z, y, x = self.shape
        return len(self.channels) * z * y * x * self.dtype.itemsize


def software() -> str:
    """Return what files name as the software that wrote them."""
    from repmode_cl.version import __version__

    return f"repmode-cl {__version__}"
