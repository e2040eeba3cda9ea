"""Small pictures of a row's images, all to one scale, for a person to see whether they are what they should be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from repmode_cl.data.validation.rows import InspectedRow

__all__ = ["FrameKey", "Thumbnail", "ThumbnailFrame", "busiest_plane", "thumbnail", "thumbnail_frames"]

#: Row number and column of an image.
FrameKey = tuple[int, str]

#: Longest side of a thumbnail in pixels, and pixels of all thumbnails of a page together: a page of 400 rows stays
#: below ten megabytes.
LONGEST, _MOST_PIXELS = 256, 9_000_000
#: An image that is larger than the median image by more than this factor does not decide the scale: it is reduced.
#: One that would be smaller than this part of the largest is enlarged. Both are said.
_OUTLYING, _TINY = 4.0, 6.0
#: Planes, evenly spread, of which the one with the largest deviation is shown.
_PLANES = 16


@dataclass(frozen=True)
class ThumbnailFrame:
    """Size of an image and of its thumbnail.

    Attributes
    ----------
    extent
        Height and width of the image: in um, or in voxels where no voxel size is known.
    in_um
        Whether they are in um.
    voxels
        Height and width in voxels.
    pixels
        Height and width of the thumbnail.
    longest
        Extent (of the same unit) that fills the place of a thumbnail, at the scale of all images.
    enlarged
        Factor by which this image is shown larger than that scale; 1 for all that are shown to it.
    """

    extent: tuple[float, float]
    in_um: bool
    voxels: tuple[int, int]
    pixels: tuple[int, int] = (1, 1)
    longest: float = 1.0
    enlarged: float = 1.0


@dataclass(frozen=True)
class Thumbnail:
    """One plane of an image.

    Attributes
    ----------
    grey
        (Y, X) uint8: from the 0.5th percentile of the plane, black, to the 99.5th, white.
    plane
        Its number in the region that the row names.
    frame
        Its size.
    """

    grey: NDArray[np.uint8]
    plane: int
    frame: ThumbnailFrame


def thumbnail_frames(rows: Iterable[InspectedRow]) -> dict[FrameKey, ThumbnailFrame]:
    """Return the sizes of the signals and targets of rows: of one scale, as far as their voxel sizes are known.

    Images without a voxel size are to one scale among themselves, in voxels. An image that is much smaller or larger
    than the others has a scale that differs from theirs by a whole factor.
    """
    frames: dict[FrameKey, ThumbnailFrame] = {}
    for one in rows:
        for column in ("signal", "target"):
            if column not in one.images:
                continue
            image = one.images[column]
            _, height, width = one.region.shape_in(image.shape)
            size = one.row.voxel_size or image.header.voxel_size or one.voxel_size
            y, x = (1.0, 1.0) if size is None else size[1:]
            frames[one.row.number, column] = ThumbnailFrame(
                (height * y, width * x), size is not None, (height, width)
            )
    side = min(LONGEST, math.isqrt(_MOST_PIXELS // max(len(frames), 1)))
    return _scaled(frames, True, side) | _scaled(frames, False, side)


def _scaled(
    frames: Mapping[FrameKey, ThumbnailFrame], in_um: bool, side: int
) -> dict[FrameKey, ThumbnailFrame]:
    chosen = {key: frame for key, frame in frames.items() if frame.in_um == in_um}
    if not chosen:
        return {}
    usual = median(max(frame.extent) for frame in chosen.values())
    longest = max(
        max(frame.extent) for frame in chosen.values() if max(frame.extent) <= _OUTLYING * usual * (1 + 1e-9)
    )
    scaled = {}
    for key, frame in chosen.items():
        own = max(frame.extent)
        enlarged = 1.0
        if own > longest:
            enlarged = 1.0 / math.ceil(own / longest)
        elif own * _TINY < longest:
            enlarged = float(int(longest / (2 * own)))
        # No more pixels than voxels: a browser enlarges as well.
        height, width = (
            max(1, min(count, round(side * enlarged * length / longest)))
            for count, length in zip(frame.voxels, frame.extent, strict=True)
        )
        scaled[key] = replace(frame, pixels=(height, width), longest=longest, enlarged=enlarged)
    return scaled


def busiest_plane(volume: NDArray[Any]) -> int:
    """Return the number of the plane of a volume (Z, Y, X), of some evenly spread, with the largest deviation."""
    step = max(1, len(volume) // _PLANES)
    spread = [float(np.std(plane, dtype=np.float64)) for plane in volume[::step]]
    return step * spread.index(max(spread))


def thumbnail(volume: NDArray[Any], plane: int, frame: ThumbnailFrame) -> Thumbnail:
    """Return one plane of a volume (Z, Y, X) in grey levels, from the 0.5th to the 99.5th percentile."""
    image = Picture.fromarray(np.ascontiguousarray(volume[plane], np.float32))
    reduced: NDArray[np.float32] = np.asarray(image.resize(frame.pixels[::-1], Picture.Resampling.BOX))
    low, high = (float(value) for value in np.percentile(reduced, (0.5, 99.5)))
    grey = np.clip((reduced.astype(np.float64) - low) / max(high - low, 1e-30), 0, 1)
    return Thumbnail((255 * grey + 0.5).astype(np.uint8), plane, frame)
