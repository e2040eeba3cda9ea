"""Voxel sizes and channel names from the metadata of microscopy TIFFs: OME-XML, ImageJ, Micro-Manager.

Files of both kinds come from many writers, so whatever is absent, zero or in no unit of length counts as
unknown: a wrong voxel size would silently resample an image to the wrong scale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from repmode_cl.data.geometry import VoxelSize
from repmode_cl.errors import ImageError

__all__ = [
    "MOST_PLANES",
    "SceneMetadata",
    "check_ome",
    "read_imagej",
    "read_micro_manager",
    "read_ome",
    "to_um",
]


#: More planes than any real file: such a header is damaged, and tifffile would make a list that long.
MOST_PLANES = 5_000_000

# Units of length in um, as OME-XML (schema 2016-06) and ImageJ spell them, in lower case, micro as u.
_MICROMETRES = {
    "m": 1e6, "dm": 1e5, "cm": 1e4, "mm": 1e3, "um": 1.0, "nm": 1e-3, "pm": 1e-6, "å": 1e-4,
    "angstrom": 1e-4,
    "in": 25400.0, "inch": 25400.0, "inches": 25400.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
    "micrometre": 1.0, "micrometers": 1.0, "micrometres": 1.0, "nanometer": 1e-3, "nanometre": 1e-3,
    "millimeter": 1e3, "millimetre": 1e3, "meter": 1e6, "metre": 1e6, "centimeter": 1e4, "picometer": 1e-6,
}  # fmt: skip


@dataclass(frozen=True)
class SceneMetadata:
    """Metadata of a scene: names of its channels (None: unnamed) and voxel size (z, y, x) in um."""

    channel_names: tuple[str | None, ...] = ()
    voxel_size: VoxelSize | None = None


def check_ome(xml: str) -> None:
    """Refuse OME-XML that would make a parser allocate without bound.

    Raises
    ------
    ImageError
        If it defines entities or claims an absurd number of planes.
    """
    if "<!ENTITY" in xml:
        raise ImageError("the OME-XML header defines entities, which no microscope writes: refused")
    # Up to the next tag, not to ">", which a value may hold: each character is looked at once.
    for tag in re.findall(r"<(?:\w+:)?Pixels\b[^<]*", xml):
        planes = math.prod(int(size) for size in re.findall(r"\bSize[CZT]\s*=\s*[\"'](\d{1,20})[\"']", tag))
        if planes > MOST_PLANES:
            raise ImageError(f"the OME-XML header claims {planes} planes: it is damaged")
    for count in re.findall(r"\b(?:PlaneCount|NumPlanes|IFD|First[CZT])\s*=\s*[\"'](\d{1,20})[\"']", xml):
        if int(count) > MOST_PLANES:
            raise ImageError(f"the OME-XML header refers to plane {count}: it is damaged")


def read_ome(xml: str) -> list[tuple[Mapping[str, str], SceneMetadata]]:
    """Return the Pixels attributes and the metadata of each image in an OME-XML text."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return []
    images: list[tuple[Mapping[str, str], SceneMetadata]] = []
    for image in root:
        if _tag(image) != "Image":
            continue
        for pixels in image:
            if _tag(pixels) == "Pixels":
                names = tuple(child.get("Name") for child in pixels if _tag(child) == "Channel")
                sizes = [_ome_length(pixels.attrib, axis) for axis in "ZYX"]
                images.append((dict(pixels.attrib), SceneMetadata(names, _whole(sizes))))
    return images


def read_imagej(
    metadata: Mapping[str, Any], resolution: Sequence[tuple[int, int] | None], n_channels: int
) -> SceneMetadata:
    """Return the metadata of ImageJ and of the resolution tags (y, x: pixels for each unit).

    Pixel sizes without a unit of length are unknown; so is a stack whose `spacing` is absent. `unit` is that of x, and
    of the axes for which `yunit` and `zunit` name no other.
    """
    common = str(metadata.get("unit", ""))
    z_unit, y_unit, x_unit = (to_um(str(metadata.get(key, common))) for key in ("zunit", "yunit", "unit"))
    sizes: list[float | None] = [None, None, None]
    spacing = metadata.get("spacing")
    if z_unit is not None and isinstance(spacing, int | float):
        # ImageJ writes a negative spacing for stacks recorded from the top down.
        sizes[0] = abs(float(spacing)) * z_unit
    for place, (value, unit) in enumerate(zip(resolution, (y_unit, x_unit), strict=True), start=1):
        if unit is not None and value is not None and value[0] > 0:
            sizes[place] = value[1] / value[0] * unit
    labels = metadata.get("Labels")
    names: tuple[str | None, ...] = ()
    # Labels belong to planes; only a list as long as the channels can be meant as their names.
    if isinstance(labels, list | tuple) and len(labels) == n_channels:
        names = tuple(str(label) or None for label in labels)
    return SceneMetadata(names, _whole(sizes))


def read_micro_manager(summary: Mapping[str, Any], plane: Any = None) -> SceneMetadata:
    """Return the metadata of a Micro-Manager stack: in the summary (1.4) or with its first plane (2.0), in um."""
    plane = plane if isinstance(plane, Mapping) else {}
    names = summary.get("ChNames") or ()
    pixel = [
        _number(source.get(key)) for source in (summary, plane) for key in ("PixelSize_um", "PixelSizeUm")
    ]
    step = _number(summary.get("z-step_um"))
    size = next((value for value in pixel if value), None)
    known = tuple(str(name) or None for name in names) if isinstance(names, list | tuple) else ()
    return SceneMetadata(known, _whole([None if step is None else abs(step), size, size]))


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _ome_length(attributes: Mapping[str, str], axis: str) -> float | None:
    try:
        value = float(attributes[f"PhysicalSize{axis}"])
    except (KeyError, ValueError):
        return None
    # OME schema: the unit is um unless another is named; "pixel" and "reference frame" are no lengths.
    unit = to_um(attributes.get(f"PhysicalSize{axis}Unit", "um"))
    return None if unit is None else value * unit


def to_um(unit: str) -> float | None:
    """Return the length of a unit in um, in any spelling; None where it is no unit of length."""
    unit = unit.strip().strip('"').replace("\\u00b5", "u").replace("\\u00B5", "u")
    # Two code points for micro, and the first of them as Latin-1 software mangles it.
    for micro in ("\u00c2\u00b5", "\u00b5", "\u03bc"):
        unit = unit.replace(micro, "u")
    return _MICROMETRES.get(unit.lower().replace("\u212b", "å"))


def _whole(sizes: Sequence[float | None]) -> VoxelSize | None:
    known = [size for size in sizes if size is not None and math.isfinite(size) and size > 0]
    return (known[0], known[1], known[2]) if len(known) == 3 else None
