"""OME-TIFF sets whose OME-XML is in a separate file (``*.companion.ome``): planes are in the files it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.sax.saxutils import unescape

from repmode_cl.data.readers.tiff.metadata import check_ome
from repmode_cl.data.readers.tiff.reader import TiffReader
from repmode_cl.errors import ImageError

__all__ = ["open_companion"]

# The XML of a plate of thousands of planes has some MB.
_MOST_XML = 256 << 20


def open_companion(path: Path, **choice: Any) -> TiffReader:
    """Open the image that a companion file describes.

    Parameters
    ----------
    path
        The OME-XML file, beside the TIFF files that it names.
    **choice
        `scene` and `t` as of `TiffReader`.

    Raises
    ------
    ImageError
        If none of the files is there, or the XML is no description of an image.
    """
    if path.stat().st_size > _MOST_XML:
        raise ImageError(f"{path}: {path.stat().st_size} bytes are too many for a description of an image")
    try:
        xml = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"{path}: not readable as OME-XML ({error})") from error
    try:
        check_ome(xml)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    quoted = re.findall(r"\bFileName\s*=\s*(?:\"([^\"]*)\"|'([^']*)')", xml)
    names = list(dict.fromkeys(unescape(one or other) for one, other in quoted))
    if not names:
        raise ImageError(f"{path}: OME-XML that names no file with planes; give the image file itself")
    for name in names:
        if (path.parent / name).is_file():
            return TiffReader(path.parent / name, ome_xml=xml, **choice)
    raise ImageError(f"{path}: none of the files that it names is beside it: {', '.join(names[:5])}")
