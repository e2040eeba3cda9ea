"""Tensors in safetensors files, written whole or not at all, and read without leaving a file mapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from repmode_cl.errors import ModelError
from repmode_cl.files import replacing

__all__ = ["read_metadata", "read_tensors", "write_tensors"]


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors of any device and layout; a reader sees the old file or the new one."""
    with replacing(path) as beside:
        # Touched first, for the permissions that the user's umask gives: the library makes files of its own private.
        beside.touch()
        permissions = beside.stat().st_mode
        safetensors.torch.save_file(_separate(tensors), beside, metadata=dict(metadata))
        beside.chmod(permissions)


def read_tensors(
    path: str | Path, wanted: Callable[[str], bool] = lambda name: True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors whose names are `wanted`, on the CPU, and the file's metadata.

    Raises
    ------
    ModelError
        If the file is missing or no whole safetensors file.
    """
    path = _present(path)
    try:
        with safe_open(path, framework="pt") as file:
            # Copies: a tensor that still maps the file would keep Windows from replacing or removing it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys() if wanted(name)}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return a file's metadata without reading its tensors; errors as of `read_tensors`."""
    return read_tensors(path, lambda name: False)[1]


def _present(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path} is missing: put it back from a copy of the model")
    return path


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path} is damaged ({error}): put it back from a copy of the model")


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous CPU tensors none of which shares memory with another, as safetensors wants them."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != value.numel() * value.element_size():
            value = value.clone(memory_format=torch.contiguous_format)
        seen.add(value.untyped_storage().data_ptr())
        separate[name] = value
    return separate
