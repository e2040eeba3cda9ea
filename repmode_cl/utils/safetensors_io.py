"""Tensors in safetensors files: written whole or not at all, and read one at a time, never memory-mapped.

The format is a JSON header and raw values, simple enough to be written here. Three things matter that memory-mapped
files do not give: memory bounded by one tensor; an error, not a signal, on a full disk or a file that is cut short; and
Windows, which neither replaces nor removes a mapped file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from repmode_cl.errors import ModelError
from repmode_cl.utils.atomic_files import replacing
from repmode_cl.utils.safetensors_header import Header, read_header
from repmode_cl.utils.tensor_digests import from_raw_bytes, raw_chunks

__all__ = ["TensorFile", "open_tensors", "read_metadata", "read_tensors", "write_tensors"]

#: Types of checkpoints too; records are read with fewer (`repmode_cl.utils.safetensors_header`).
_DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors of any device and layout; a reader sees the old file or the new one.

    Equal tensors and metadata give the same bytes.

    Raises
    ------
    OSError
        With the file's name, if the disk is full or refuses.
    """
    # Large elements first, as the format's own library does: every tensor is then aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for chunk in raw_chunks(tensors[name]):
                file.write(chunk)


class TensorFile:
    """An open safetensors file; made by `open_tensors`.

    Attributes
    ----------
    path
        The file.
    header
        Its metadata, and name, type, shape and place of each tensor.
    """

    def __init__(self, path: Path, header: Header, file: BufferedReader) -> None:
        self.path = path
        self.header = header
        self._file = file

    def read(self, name: str) -> Tensor:
        """Return one tensor, on the CPU, its values in C order.

        Raises
        ------
        ModelError
            If the file ends before it does, or cannot be read.
        """
        slot = self.header.tensors[name]
        values = bytearray(slot.end - slot.begin)
        try:
            self._file.seek(self.header.start + slot.begin)
            count = self._file.readinto(values)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if count != len(values):
            raise ModelError(f"{self.path} was cut short while it was read: put it back from a copy")
        return from_raw_bytes(values, slot.dtype, slot.shape)


@contextmanager
def open_tensors(path: str | Path) -> Iterator[TensorFile]:
    """Open a safetensors file for reading tensor by tensor, without mapping it.

    Raises
    ------
    ModelError
        If the file is missing, cannot be read, or is not a complete safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path} is missing: put it back from a copy of the model")
    try:
        header = read_header(path, _DTYPES)
        file = path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error
    with file:
        yield TensorFile(path, header, file)


def read_tensors(
    path: str | Path, select: Callable[[str], bool] = lambda name: True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors whose names `select` accepts, on the CPU, and the metadata; errors of `open_tensors`."""
    with open_tensors(path) as file:
        tensors = {name: file.read(name) for name in file.header.tensors if select(name)}
        return tensors, file.header.metadata


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return a file's metadata without reading its tensors; errors of `open_tensors`."""
    with open_tensors(path) as file:
        return file.header.metadata


def _unreadable(path: Path, error: OSError) -> ModelError:
    return ModelError(f"{path} cannot be read ({error.strerror}): check the disk and who may read the folder")
