"""The header of a safetensors file, read without trusting it.

Nothing is parsed before the header's length is known to be small and within the file; the tensors that the header
lists must then fill the rest of the file exactly, so that every byte belongs to one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any, NoReturn

import torch

from repmode_cl.errors import ModelError

__all__ = ["MAX_HEADER", "Header", "Slot", "read_header", "strict_json"]

#: Most bytes that a header may have: a thousand times what the paper's network needs.
MAX_HEADER = 1 << 24

_DTYPES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64}


@dataclass(frozen=True)
class Slot:
    """Type, shape and place of one tensor in a file.

    Parameters
    ----------
    dtype
        Type of its values.
    shape
        Sizes along each axis.
    begin, end
        First byte, and the byte after the last, counted from the start of the data.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """Header of a safetensors file.

    Parameters
    ----------
    metadata
        Texts by key.
    tensors
        By name, in the order in which they fill the data, without gap or overlap.
    start
        Byte of the file at which the data begin.
    size
        Bytes of the whole file.
    sha256
        SHA-256 of the bytes before `start`.
    """

    metadata: dict[str, str]
    tensors: dict[str, Slot]
    start: int
    size: int
    sha256: str


def read_header(path: Path, dtypes: Mapping[str, torch.dtype] = _DTYPES) -> Header:
    """Read the header of a safetensors file, and check that it describes exactly this file.

    Parameters
    ----------
    path
        The file.
    dtypes
        Types that tensors may have, by the format's names for them; those of records by default.

    Raises
    ------
    ModelError
        If it is not such a file, is cut short or too long, or its header is too large or describes another file.
    OSError
        If the file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        length_bytes = file.read(8)
        length = int.from_bytes(length_bytes, "little")
        if size < 10 or not 2 <= length <= size - 8:
            _refuse(path, f"it is no safetensors file, or cut short ({size} bytes)")
        if length > MAX_HEADER:
            _refuse(path, f"its header has {length:,} bytes, allowed are {MAX_HEADER:,}")
        text = file.read(length)
    values = strict_json(text, f"{path}: its header")
    if not isinstance(values, dict):
        _refuse(path, "its header is no JSON object")
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(path, "its metadata are not texts by key")
    slots = [(name, _slot(path, name, value, dtypes)) for name, value in values.items()]
    tensors = dict(sorted(slots, key=lambda item: (item[1].begin, item[1].end)))
    end = 0
    for name, slot in tensors.items():
        if slot.begin != end:
            _refuse(
                path,
                f"tensor {short(name)} begins at byte {slot.begin}, not where the one before ends ({end})",
            )
        end = slot.end
    if end != size - 8 - length:
        _refuse(path, f"it has {size:,} bytes, its header describes {8 + length + end:,}")
    return Header(metadata, tensors, 8 + length, size, hashlib.sha256(length_bytes + text).hexdigest())


def strict_json(text: str | bytes, what: str) -> Any:
    """Parse JSON in which no key appears twice and every number is finite.

    Raises
    ------
    ModelError
        If it is anything else; `what` names it in the message.
    """

    def pairs(items: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(items)
        if len(values) < len(items):
            raise ValueError("a key appears twice")
        return values

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{short(text)} is not finite")
        return value

    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(decoded, object_pairs_hook=pairs, parse_float=number, parse_constant=number)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{what} is damaged ({error}): get the file again from its source") from error


def _slot(path: Path, name: str, value: Any, dtypes: Mapping[str, torch.dtype]) -> Slot:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"tensor {short(name)} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in dtypes:
        _refuse(path, f"tensor {short(name)} is of type {short(dtype)}, allowed are {', '.join(dtypes)}")
    if not _are_sizes(shape) or len(shape) > 8 or not _are_sizes(offsets) or len(offsets) != 2:
        _refuse(
            path,
            f"tensor {short(name)} has shape {short(shape)} at {short(offsets)}: whole numbers are needed",
        )
    begin, end = offsets
    if end - begin != math.prod(shape) * dtypes[dtype].itemsize:
        _refuse(path, f"tensor {short(name)} of shape {shape} does not take {end - begin} bytes")
    return Slot(dtypes[dtype], tuple(shape), begin, end)


def _are_sizes(value: Any) -> bool:
    # `type`, because True is an instance of int.
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 48 for size in value)


def _refuse(path: Path, why: str) -> NoReturn:
    raise ModelError(f"{path} is refused: {why}; get the file again from its source")
