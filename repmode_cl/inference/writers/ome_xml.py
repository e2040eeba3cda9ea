"""OME-XML of an OME-TIFF (schema 2016-06, https://www.openmicroscopy.org/Schemas/).

Written here and not by tifffile: not every version that this package runs with has options for colours and
annotations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from repmode_cl.inference.writers.image_metadata import NAMESPACE, ImageMetadata

__all__ = ["ome_xml"]

_SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"

#: numpy's name of a type -> OME's.
_TYPES = {"uint8": "uint8", "uint16": "uint16", "float32": "float"}

# Characters that XML 1.0 cannot hold, not even escaped; a channel's name in the input may have some.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def ome_xml(metadata: ImageMetadata, creator: str) -> bytes:
    """Return the OME-XML of an image as UTF-8.

    Its pages are all planes of the first channel, then those of the next, and so for each time point. The `about` of
    the image and of its channels become key-value annotations.

    Parameters
    ----------
    metadata
        Of the image.
    creator
        Name and version of the software.
    """
    z, y, x = metadata.shape
    root = Element("OME", {
        "xmlns": _SCHEMA,
        "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
        "xsi:schemaLocation": f"{_SCHEMA} {_SCHEMA}/ome.xsd",
        "Creator": creator,
    })  # fmt: skip
    if metadata.uuid is not None:
        root.set("UUID", metadata.uuid)
    image = SubElement(root, "Image", ID="Image:0", Name=_clean(metadata.name))
    if metadata.description:
        SubElement(image, "Description").text = _clean(metadata.description)
    pixels = SubElement(
        image,
        "Pixels",
        ID="Pixels:0",
        DimensionOrder="XYZCT",
        Type=_TYPES[metadata.dtype.name],
        BigEndian="false",
        SizeX=str(x),
        SizeY=str(y),
        SizeZ=str(z),
        SizeC=str(len(metadata.channels)),
        SizeT=str(metadata.times or 1),
    )
    if metadata.voxel_size is not None:
        for axis, size in zip("ZYX", metadata.voxel_size, strict=True):
            pixels.set(f"PhysicalSize{axis}", repr(float(size)))
            pixels.set(f"PhysicalSize{axis}Unit", "µm")
    annotations: list[Mapping[str, str]] = []
    for number, channel in enumerate(metadata.channels):
        node = SubElement(
            pixels,
            "Channel",
            ID=f"Channel:0:{number}",
            Name=_clean(channel.name),
            SamplesPerPixel="1",
            Color=str(_colour(channel.colour)),
        )
        _annotate(node, channel.about, annotations)
    SubElement(
        pixels, "TiffData", IFD="0", PlaneCount=str((metadata.times or 1) * z * len(metadata.channels))
    )
    _annotate(image, metadata.about, annotations)
    if annotations:
        annotations_node = SubElement(root, "StructuredAnnotations")
        for number, about in enumerate(annotations):
            node = SubElement(
                annotations_node, "MapAnnotation", ID=f"Annotation:{number}", Namespace=NAMESPACE
            )
            value = SubElement(node, "Value")
            for key, text in about.items():
                SubElement(value, "M", K=_clean(key)).text = _clean(text)
    xml: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return xml


def _annotate(node: Element, about: Mapping[str, str], annotations: list[Mapping[str, str]]) -> None:
    """Add an annotation to the list, and a reference to it to an element."""
    if about:
        SubElement(node, "AnnotationRef", ID=f"Annotation:{len(annotations)}")
        annotations.append(about)


def _colour(colour: tuple[int, int, int]) -> int:
    """Return red, green, blue and full alpha as the signed 32-bit number of the schema."""
    red, green, blue = colour
    value = red << 24 | green << 16 | blue << 8 | 255
    return value - (1 << 32) if value >= 1 << 31 else value


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
