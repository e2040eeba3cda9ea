"""Readers of image files: one small lazy interface, so that nothing else knows about formats.

`open_image` chooses the reader by a file's content; the rest of the project only uses `ImageReader`. A further format
is a subclass of it (docs/formats.md).
"""

from __future__ import annotations

from repmode_cl.data.readers.image_reader import BaseReader, ImageReader, SceneInfo
from repmode_cl.data.readers.location import as_location, is_url
from repmode_cl.data.readers.region import Region
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
