"""Image files behind one small lazy protocol, so that nothing else knows of formats.

`open_image` picks the reader by what a file holds; `ImageReader` is all that the rest of the project uses.
`BaseReader` is the shortest way to one more format (docs/formats.md).
"""

from __future__ import annotations

from repmode_cl.data.readers.image_reader import BaseReader, SceneInfo
from repmode_cl.data.readers.location import as_location, is_url
from repmode_cl.data.readers.region import ImageReader, Region
from repmode_cl.data.readers.registry import ReaderFormat, open_image

__all__ = [
    "open_image",
    "ImageReader",
    "Region",
    "BaseReader",
    "SceneInfo",
    "ReaderFormat",
    "as_location",
    "is_url",
]
