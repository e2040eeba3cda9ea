"""Digests of tensors that do not depend on a file's layout.

A file's SHA-256 changes when a writer orders its header differently; the digest of a *record* may not. It is
therefore taken over a canonical JSON header (facts, and sorted names with dtypes and shapes), followed by the
raw little-endian values in that order.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from repmode_cl.files import canonical_json

__all__ = ["json_digest", "raw_bytes", "same_bits", "tensor_digest"]

_FORMAT = "repmode-cl tensors 1"


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the values of `tensor` in C order as little-endian bytes.

    Parameters
    ----------
    tensor
        Any shape and dtype, on any device.
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8)
    if sys.byteorder == "big" and flat.element_size() > 1:
        # A complex number is two numbers: each is swapped by itself.
        size = flat.element_size() // (2 if flat.is_complex() else 1)
        data = data.reshape(-1, size).flip(1).reshape(-1)
    return data.numpy().data


def tensor_digest(state: Mapping[str, Tensor], facts: Any = None) -> str:
    """Return the SHA-256 of named tensors, and of the `facts` that they mean nothing without.

    Parameters
    ----------
    state
        Tensors by name; their order does not matter.
    facts
        JSON value that is part of the digest, such as a structure's name and the digest of its base.

    Returns
    -------
    str
        64 hexadecimal digits. Equal exactly when facts, names, dtypes, shapes and every bit of every value
        are (so -0.0 differs from 0.0, and a NaN equals itself).
    """
    names = sorted(state)
    tensors = [[name, str(state[name].dtype), list(state[name].shape)] for name in names]
    header = {"format": _FORMAT, "facts": facts, "tensors": tensors}
    text = canonical_json(header).encode("ascii")
    # The header's length comes first, so that no value can be read as part of a header.
    digest = hashlib.sha256(len(text).to_bytes(8, "little") + text)
    for name in names:
        digest.update(raw_bytes(state[name]))
    return digest.hexdigest()


def json_digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Say whether two tensors have the same dtype, shape and bits (unlike ``torch.equal``: NaN, -0.0)."""
    return (
        first.dtype == second.dtype and first.shape == second.shape and raw_bytes(first) == raw_bytes(second)
    )
