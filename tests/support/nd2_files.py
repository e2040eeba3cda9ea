"""ND2 files that no library writes: what the package nd2 reads of Nikon's format, written for the reader's tests."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["write_nd2"]

MARK = 0x0ABECEDA
SIGNATURE, MAP_NAME = b"ND2 FILE SIGNATURE CHUNK NAME01!", b"ND2 FILEMAP SIGNATURE NAME 0001!"
TAIL_NAME = b"ND2 CHUNK MAP SIGNATURE 0000001!"


def write_nd2(
    path: Path,
    image: np.ndarray,
    *,
    names: tuple[str, ...] = (),
    positions: tuple[str, ...] = (),
    voxel_size: tuple[float, float, float] | None = (0.3, 0.2, 0.2),
    samples: int = 1,
    compressed: bool = False,
    padding: int = 0,
    left_out: tuple[int, ...] = (),
) -> Path:
    """Write P, T, Z, C, Y, X (and S, if `samples`), each frame all channels of one plane.

    Parameters
    ----------
    names, positions
        Of channels and positions.
    samples
        Colour samples: the last axis of `image`.
    compressed
        Deflate the frames.
    padding
        Bytes after each row.
    left_out
        Frames that are not written, as of an experiment that was stopped.
    """
    shaped = image if samples > 1 else image[..., None]
    n_p, n_t, n_z, n_c, n_y, n_x, _ = shaped.shape
    components, size = n_c * samples, image.dtype.itemsize
    row = n_x * components * size + padding
    planes = {
        f"i{number:010}": {
            "sDescription": name,
            "uiCompCount": samples,
            "pFluorescentProbe": {"m_sName": name},
        }
        for number, name in enumerate(names or ("",) * n_c)
    }
    attributes = {
        "uiWidth": n_x, "uiWidthBytes": row, "uiHeight": n_y, "uiComp": components, "uiBpcInMemory": 8 * size,
        "uiBpcSignificant": 8 * size, "uiSequenceCount": n_p * n_t * n_z, "eCompression": 0 if compressed else 2,
    }  # fmt: skip
    z_step, step = (1.0, 1.0) if voxel_size is None else (voxel_size[0], voxel_size[2])
    metadata = {
        "bCalibrated": voxel_size is not None,
        "dCalibration": step,
        "sPicturePlanes": {"uiCount": n_c, "sPlaneNew": planes},
    }
    loops: list[dict[str, Any]] = []
    if n_p > 1:
        points = {
            f"i{k:010}": {"dPosX": float(k), "dPosName": name}
            for k, name in enumerate(positions or ("",) * n_p)
        }
        loops.append({"eType": 2, "uLoopPars": {"uiCount": n_p, "Points": points}})
    if n_t > 1:
        times = {"uiCount": n_t, "dStart": 0.0, "dPeriod": 1.0, "dDuration": 1.0}
        loops.append({"eType": 1, "uLoopPars": times})
    if n_z > 1:
        loops.append({"eType": 4, "uLoopPars": {"uiCount": n_z, "dZStep": z_step}})
    experiment: dict[str, Any] = {}
    for loop in reversed(loops):
        experiment = loop | ({"ppNextLevelEx": {"i0000000000": experiment}} if experiment else {})
    chunks: list[tuple[bytes, bytes]] = [
        (b"ImageAttributesLV!", lite({"SLxImageAttributes": attributes})),
        (b"ImageMetadataSeqLV|0!", lite({"SLxPictureMetadata": metadata})),
    ]
    if experiment:
        chunks.append((b"ImageMetadataLV!", lite({"SLxExperiment": experiment})))
    # Pixels hold their channels, and these their samples.
    frames = np.moveaxis(shaped, 3, 5).reshape(n_p * n_t * n_z, n_y, n_x * components)
    for number, frame in enumerate(frames):
        rows = np.zeros((n_y, row), np.uint8)
        rows[:, : row - padding] = np.ascontiguousarray(frame).view(np.uint8)
        voxels = zlib.compress(rows.tobytes()) if compressed else rows.tobytes()
        if number not in left_out:
            chunks.append((f"ImageDataSeq|{number}!".encode(), struct.pack("<d", number) + voxels))
    data = chunk(SIGNATURE, b"Ver3.0".ljust(64, b"\0"), pad=False)
    listed = b""
    for name, content in chunks:
        listed += name + struct.pack("<QQ", len(data), len(content))
        data += chunk(name, content)
    place = len(data)
    data += chunk(MAP_NAME, listed + TAIL_NAME + struct.pack("<QQ", 0, 0), pad=False)
    path.write_bytes(data + struct.pack("<32sQ", TAIL_NAME, place))
    return path


def chunk(name: bytes, content: bytes, pad: bool = True) -> bytes:
    """Return a chunk; names are padded so that voxels begin at a page."""
    name = name.ljust(4072, b"\0") if pad else name
    return struct.pack("<IIQ", MARK, len(name), len(content)) + name + content


def lite(value: dict[str, Any]) -> bytes:
    """Return nested values as the format's "lite variant": type, length of the name, name, value."""
    return b"".join(_item(name, one) for name, one in value.items())


def _item(name: str, value: Any) -> bytes:
    text = (name + "\0").encode("utf-16-le")
    head = len(text) // 2

    def item(kind: int, content: bytes) -> bytes:
        return bytes([kind, head]) + text + content

    if isinstance(value, bool):
        return item(1, bytes([value]))
    if isinstance(value, int):
        return item(3, struct.pack("<I", value))
    if isinstance(value, float):
        return item(6, struct.pack("<d", value))
    if isinstance(value, str):
        return item(8, (value + "\0").encode("utf-16-le"))
    content = lite(value)
    length = 2 + len(text) + 12 + len(content)
    # Then the places of its items, which readers skip.
    return item(11, struct.pack("<IQ", len(value), length) + content + bytes(8 * len(value)))
