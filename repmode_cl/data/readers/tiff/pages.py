"""Boxes of voxels from the pages of a TIFF: only the strips and tiles that a box touches are decoded.

Nothing is allocated for the sizes of a header before the file is checked to hold about as much.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.errors import ImageError
from repmode_cl.utils.extras import install_command

__all__ = ["cut_off", "native", "read_pages", "read_rows", "reason"]

# No codec of use here shrinks more than this; a header that claims more is damaged. Small planes are never
# suspected.
_MOST_COMPRESSION = 50_000
_SMALL = 64 << 20

# Codecs whose strips and tiles decode by themselves: none, LZW, deflate (two numbers), PackBits, LZMA, zstd (two).
_SEGMENTED = {1, 5, 8, 32946, 32773, 34925, 34926, 50000}

# Number of the tag ImageDescription: OME-XML, ImageJ's and tifffile's axes.
_DESCRIPTION = 270


def read_rows(
    handle: Any, path: Path, offset: int, stored: np.dtype[Any], sizes: Sequence[int], box: Sequence[slice]
) -> NDArray[Any]:
    """Read a box of an uncompressed array in a file: only the rows of the box.

    Parameters
    ----------
    handle
        tifffile's handle of the open file.
    path
        For messages.
    offset
        Byte at which the array begins.
    stored
        Type, in the file's byte order.
    sizes, box
        Of all axes of the array.

    Raises
    ------
    ImageError
        If the file is shorter than the array.
    """
    claimed = math.prod(sizes) * stored.itemsize
    if offset + claimed > handle.size:
        raise ImageError(
            f"{path}: truncated: its header claims {claimed} bytes of voxels, the file has "
            f"{handle.size}; copy it again"
        )
    out = np.empty([part.stop - part.start for part in box], native(stored))
    rows, row = box[-2], sizes[-1]
    for place in itertools.product(*(range(part.start, part.stop) for part in box[:-2])):
        plane = int(np.ravel_multi_index(place, tuple(sizes[:-2]))) if place else 0
        first = (plane * sizes[-2] + rows.start) * row
        count = (rows.stop - rows.start) * row
        handle.seek(offset + first * stored.itemsize)
        data = np.frombuffer(handle.read(count * stored.itemsize), stored)
        target = tuple(value - part.start for value, part in zip(place, box, strict=False))
        out[target] = data.reshape(-1, row)[:, box[-1]]
    return out


def read_pages(
    series: Any, axes: str, sizes: Sequence[int], box: Sequence[slice], path: Path
) -> NDArray[Any]:
    """Read a box of a series with all its axes, page by page.

    Parameters
    ----------
    series
        tifffile's.
    axes, sizes, box
        Of all axes of the series that are longer than 1.
    path
        For messages.

    Raises
    ------
    ImageError
        If a page is missing, truncated, claims far more than is stored, or cannot be decoded.
    """
    lead = len(sizes) - _axes_of_page(series, axes, sizes, path)
    numbers = {
        place: int(np.ravel_multi_index(place, tuple(sizes[:lead]))) if lead else 0
        for place in itertools.product(*(range(part.start, part.stop) for part in box[:lead]))
    }
    pages = {number: _page(series, number, path) for number in numbers.values()}
    _check_stored(pages, path)
    out = np.empty([part.stop - part.start for part in box], native(series.dtype))
    for place, number in numbers.items():
        try:
            plane = _read_page(pages[number], sizes[lead:], box[lead:])
        except Exception as error:  # codecs raise whatever damaged bytes lead them to
            hint = ""
            if "imagecodecs" in str(error):
                hint = f"; its compression needs a further package: {install_command('compressed')}"
            raise ImageError(f"{path}: page {number} cannot be decoded ({reason(error)}){hint}") from error
        out[tuple(value - part.start for value, part in zip(place, box, strict=False))] = plane
    return out


def cut_off(file: Any) -> str | None:
    """Describe the missing part of a file whose end was cut off, where tifffile ignores it; None if the file is whole.

    Each page holds the offset of the next one, and the last holds 0. The first holds the offset of the text that names
    the axes; without it the planes of all channels would be read as one stack.
    """
    form, handle = file.tiff, file.filehandle
    try:
        handle.seek(file.pages[0].offset)
        (tags,) = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))
        for entry in struct.iter_unpack(
            form.byteorder + ("HHQQ" if form.is_bigtiff else "HHII"), handle.read(tags * form.tagsize)
        ):
            code, _, length, at = entry
            if code == _DESCRIPTION and length > form.tagoffsetthreshold and at + length > handle.size:
                return "the text that describes its axes is gone"
        # Not of the last page itself: the tags of a damaged one cannot be read.
        handle.seek(file.pages.next_page_offset)
        (following,) = struct.unpack(form.offsetformat, handle.read(form.offsetsize))
    except (struct.error, OSError):
        following = 1
    return f"its list of pages breaks off after {len(file.pages)}" if following else None


def native(dtype: Any) -> np.dtype[Any]:
    """Return a type in this machine's byte order."""
    native_type: np.dtype[Any] = np.dtype(dtype).newbyteorder("=")
    return native_type


def reason(error: BaseException) -> str:
    """Return another library's message as part of a line."""
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__


def _axes_of_page(series: Any, axes: str, sizes: Sequence[int], path: Path) -> int:
    """Return the number of last axes that one page holds."""
    held = math.prod(series.keyframe.shape)
    for count in range(1, len(sizes) + 1):
        if math.prod(sizes[-count:]) == held:
            return count
    raise ImageError(f"{path}: its pages do not fit its axes {axes}; save it as OME-TIFF")


def _page(series: Any, number: int, path: Path) -> Any:
    page = series.pages[number] if number < len(series.pages) else None
    # tifffile gives an offset of 0 to Micro-Manager's planes that the file is too short for.
    if page is None or (series.kind == "mmstack" and not page.offset):
        raise ImageError(
            f"{path}: page {number} is missing: the file is truncated, or part of a set of files "
            "that is not whole"
        )
    return page


def _check_stored(pages: Mapping[int, Any], path: Path) -> None:
    """Refuse pages whose data lie beyond the file's end or are too few for what the header claims."""
    claimed = stored = 0
    for number, page in pages.items():
        size = page.parent.filehandle.size
        ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=False)]
        if ends and max(ends) > size:
            where = "" if page.parent.filename == path.name else f" of {page.parent.filename}"
            raise ImageError(
                f"{path}: truncated: page {number}{where} ends at byte {max(ends)} of {size}; copy it again"
            )
        claimed += page.nbytes
        # Counts of zero are empty tiles, which need not be stored.
        whole = page.keyframe.compression == 1 and all(page.databytecounts)
        stored += sum(page.databytecounts) * (1 if whole else _MOST_COMPRESSION)
        if claimed > _SMALL and claimed > stored * 1.01 + 64:
            raise ImageError(
                f"{path}: its header claims {page.nbytes} bytes for page {number}, far more than "
                "the file holds: it is damaged"
            )


def _read_page(page: Any, sizes: Sequence[int], box: Sequence[slice]) -> NDArray[Any]:
    """Return a box of one page, whose axes are the last of its series."""
    key, handle = page.keyframe, page.parent.filehandle
    separate, depth, length, width, samples = key.shaped
    # The files of a set are kept closed between reads: there may be thousands.
    closed = handle.closed
    if closed:
        handle.open()
    try:
        plain = (
            separate == depth == 1
            and key.compression in _SEGMENTED
            and not getattr(key, "is_subsampled", False)
            and tuple(sizes) == ((length, width) if samples == 1 else (length, width, samples))
        )
        if not plain:
            whole: NDArray[Any] = page.asarray(maxworkers=1)
            return whole.reshape(sizes)[tuple(box)]
        pixels = _read_segments(page, key, handle, box[0], box[1])
        return pixels[..., box[2]] if samples > 1 else pixels[..., 0]
    finally:
        if closed:
            handle.close()


def _read_segments(page: Any, key: Any, handle: Any, rows: slice, columns: slice) -> NDArray[Any]:
    """Decode the strips or tiles that touch a box; return (rows, columns, samples)."""
    _, _, length, width, samples = key.shaped
    high = key.tilelength if key.is_tiled else min(key.rowsperstrip, length)
    wide = key.tilewidth if key.is_tiled else width
    across = math.ceil(width / wide)
    out = np.empty((rows.stop - rows.start, columns.stop - columns.start, samples), native(key.dtype))
    for down in range(rows.start // high, math.ceil(rows.stop / high)):
        for along in range(columns.start // wide, math.ceil(columns.stop / wide)):
            index = down * across + along
            count = page.databytecounts[index]
            handle.seek(page.dataoffsets[index])
            data, _, _ = key.decode(handle.read(count) if count else None, index)
            top, left = down * high, along * wide
            y0, y1 = max(rows.start, top), min(rows.stop, top + high)
            x0, x1 = max(columns.start, left), min(columns.stop, left + wide)
            target = out[y0 - rows.start : y1 - rows.start, x0 - columns.start : x1 - columns.start]
            target[:] = key.nodata if data is None else data[0, y0 - top : y1 - top, x0 - left : x1 - left]
    return out
