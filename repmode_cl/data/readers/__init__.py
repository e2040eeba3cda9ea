"""Image files behind one small lazy protocol, so that nothing else knows of formats.

`open_image` picks the reader by the file's first bytes; `ImageReader` is all that the rest of the project
uses.
"""

from __future__ import annotations

from repmode_cl.data.readers.protocol import ImageReader, Region
from repmode_cl.data.readers.registry import open_image

__all__ = ["open_image", "ImageReader", "Region"]
