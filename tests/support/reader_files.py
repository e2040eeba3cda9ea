"""Files of formats that no library here writes, for the readers' tests."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

__all__ = ["write_micro_manager", "write_set"]


def write_micro_manager(
    path: Path,
    planes: dict[tuple[int, int, int, int], np.ndarray],
    summary: dict[str, Any],
    plane_metadata: dict[str, Any] | None = None,
    description: str | None = None,
) -> None:
    """Write a stack as Micro-Manager's "image stack file" has it (micro-manager.org/Micro-Manager_File_Formats).

    `planes` are (y, x) of uint16 by (channel, slice, frame, position); each follows its directory of 13 tags at once.
    """
    text = json.dumps({"MicroManagerVersion": "2.0.0", **summary}).encode()
    metadata = json.dumps(plane_metadata or {}).encode() + b"\0"
    data = bytearray(40) + text
    index = b""
    offsets: list[int] = []
    for number, (place, plane) in enumerate(planes.items()):
        data += bytes(len(data) % 2)
        begin = len(data)
        offsets.append(begin)
        index += struct.pack("<5I", *place, begin)
        height, width = plane.shape
        described = description.encode() + b"\0" if description and number == 0 else b""
        directory = 2 + 12 * (14 if described else 13) + 4
        pixels, after = begin + directory, begin + directory + plane.nbytes
        tags = [
            (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1),
            *([(270, 2, len(described), after + 16 + len(metadata))] if described else []),
            (273, 4, 1, pixels), (277, 3, 1, 1), (278, 3, 1, height), (279, 4, 1, plane.nbytes),
            (282, 5, 1, after), (283, 5, 1, after + 8), (296, 3, 1, 3), (51123, 2, len(metadata), after + 16),
        ]  # fmt: skip
        data += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        end = after + 16 + len(metadata) + len(described)
        data += struct.pack("<I", 0 if number == len(planes) - 1 else end + end % 2)
        data += plane.astype("<u2").tobytes() + struct.pack("<4I", 10, 1, 10, 1) + metadata + described
    map_at = len(data)
    data += struct.pack("<II", 3453623, len(planes)) + index
    head = struct.pack("<2sHI", b"II", 42, offsets[0])
    head += struct.pack("<8I", 54773648, map_at, 483765892, 0, 99384722, 0, 2355492, len(text))
    data[:40] = head
    path.write_bytes(data)


def write_set(folder: Path, image: np.ndarray, companion: bool = False) -> list[Path]:
    """Write CZYX as one OME-TIFF for each channel; the OME-XML names both files, or lies beside them."""
    folder.mkdir(exist_ok=True)
    channels, z, y, x = image.shape
    names = [f"image_c{number}.ome.tif" for number in range(channels)]
    data = "".join(
        f'<TiffData FirstC="{number}" FirstZ="0" FirstT="0" IFD="0" PlaneCount="{z}">'
        f'<UUID FileName="{name}">urn:uuid:0000-{number}</UUID></TiffData>'
        for number, name in enumerate(names)
    )
    listed = "".join(f'<Channel ID="Channel:0:{number}" Name="dye {number}"/>' for number in range(channels))
    start = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'
    )
    body = (
        f'<Image ID="Image:0" Name="set"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="{x}" '
        f'SizeY="{y}" SizeZ="{z}" SizeC="{channels}" SizeT="1" PhysicalSizeX="0.1" PhysicalSizeY="0.2" '
        f'PhysicalSizeZ="0.3">{listed}{data}</Pixels></Image></OME>'
    )
    for number, name in enumerate(names):
        xml = f'{start} UUID="urn:uuid:0000-{number}">{body}'
        if companion:
            other = '<BinaryOnly MetadataFile="set.companion.ome" UUID="urn:c"/>'
            xml = f'{start} UUID="urn:uuid:0000-{number}">{other}</OME>'
        tifffile.imwrite(
            folder / name, image[number], description=xml, metadata=None, photometric="minisblack"
        )
    if companion:
        (folder / "set.companion.ome").write_text(f'{start} UUID="urn:c">{body}', encoding="utf-8")
    return [folder / name for name in names]
