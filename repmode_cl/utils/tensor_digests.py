"""Digests of tensors that do not depend on a file's layout.

A file's SHA-256 changes when a writer orders its header differently; the digest of a *record* must not. It is
therefore computed from a canonical JSON header (facts, and sorted names with dtypes and shapes), followed by the
raw little-endian values in that order.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from repmode_cl.utils.atomic_files import canonical_json

__all__ = [
    "Described",
    "from_raw_bytes",
    "json_digest",
    "raw_bytes",
    "raw_chunks",
    "same_bits",
    "stream_digest",
    "tensor_digest",
]

_FORMAT = "repmode-cl tensors 1"
_CHUNK_BYTES = 1 << 22

#: Type and shape of a tensor that need not exist yet.
Described = tuple[torch.dtype, Sequence[int]]


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the values of `tensor` in C order as little-endian bytes.

    Parameters
    ----------
    tensor
        Any shape and dtype, on any device.
    """
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return _little_endian(data, tensor.dtype).numpy().data


def raw_chunks(tensor: Tensor) -> Iterator[memoryview]:
    """Yield the `raw_bytes` of a tensor in chunks: one with another memory layout is never copied as a whole.

    Parameters
    ----------
    tensor
        Any shape and dtype, on any device.
    """
    size = tensor.numel() * tensor.element_size()
    if size <= _CHUNK_BYTES or tensor.is_contiguous():
        yield raw_bytes(tensor)
        return
    for part in torch.split(tensor, max(1, _CHUNK_BYTES * len(tensor) // size)):
        yield raw_bytes(part)


def from_raw_bytes(values: bytearray, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Return the tensor whose `raw_bytes` these are; it shares their memory.

    Parameters
    ----------
    values
        As many bytes as the tensor has.
    dtype, shape
        Type and shape of the tensor.
    """
    if not values:
        return torch.empty(list(shape), dtype=dtype)
    data = torch.frombuffer(values, dtype=torch.uint8)
    return _little_endian(data, dtype).view(dtype).reshape(list(shape))


def _little_endian(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert bytes between the machine's order and little-endian, which most machines have."""
    if sys.byteorder == "little" or dtype.itemsize == 1:
        return data
    # The two parts of a complex number are swapped separately.
    size = dtype.itemsize // (2 if dtype.is_complex else 1)
    return data.reshape(-1, size).flip(1).reshape(-1)


def tensor_digest(state: Mapping[str, Tensor], facts: Any = None) -> str:
    """Return the SHA-256 of named tensors, and of the `facts` that they are meaningless without.

    Parameters
    ----------
    state
        Tensors by name; their order does not matter.
    facts
        JSON value that the digest covers too, such as a structure's name and the digest of its base.

    Returns
    -------
    str
        64 hexadecimal digits. Equal exactly when facts, names, dtypes, shapes and every bit of every value
        are (so -0.0 differs from 0.0, and a NaN equals itself).
    """
    described = {name: (tensor.dtype, tensor.shape) for name, tensor in state.items()}
    return stream_digest(described, state.__getitem__, facts)


def stream_digest(
    described: Mapping[str, Described], value: Callable[[str], Tensor], facts: Any = None
) -> str:
    """Return the `tensor_digest` of tensors that are computed or read one at a time.

    Parameters
    ----------
    described
        Type and shape of each, by name.
    value
        Returns a tensor by its name; called once for each, in the order of names.
    facts
        As for `tensor_digest`.

    Raises
    ------
    ValueError
        If a tensor has another type or shape than described.
    """
    names = sorted(described)
    tensors = [[name, str(described[name][0]), list(described[name][1])] for name in names]
    header = {"format": _FORMAT, "facts": facts, "tensors": tensors}
    text = canonical_json(header).encode("ascii")
    # The header's length comes first, so that no value can be read as part of a header.
    digest = hashlib.sha256(len(text).to_bytes(8, "little") + text)
    for name in names:
        tensor = value(name)
        dtype, shape = described[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
            raise ValueError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}, described as {dtype} {tuple(shape)}"
            )
        for chunk in raw_chunks(tensor):
            digest.update(chunk)
        del tensor, chunk  # before the next one is computed
    return digest.hexdigest()


def json_digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors have the same dtype, shape and bits (unlike ``torch.equal``: NaN, -0.0)."""
    return (
        first.dtype == second.dtype and first.shape == second.shape and raw_bytes(first) == raw_bytes(second)
    )
