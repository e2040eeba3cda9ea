"""Checkpoints of the paper's authors: the one file of this package that reads a pickle, and only one of tensors.

Their files are pickles in a zip archive, as torch writes them. Before torch reads one, the archive's directory and the
names in its pickle are checked: nothing is compressed, no entry is larger than the file, and no name stands there but
those that tensors, dictionaries and ``argparse.Namespace`` need. torch itself then reads with ``weights_only``, which
calls nothing else, and maps the tensors from the file, so that memory is taken only of those that are copied.
"""

from __future__ import annotations

import argparse
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from repmode_cl.errors import ModelError

__all__ = ["read_authors_state"]

#: Most bytes of the pickle, which holds names and options, not numbers: that of the paper's network has 0.3 MB.
_LARGEST_PICKLE = 1 << 24

_MOST_ENTRIES = 1 << 16

_NAMES = re.compile(
    r"collections OrderedDict|argparse Namespace|torch\._utils _rebuild_(tensor_v2|parameter)"
    r"|torch (Float|Double|Half|BFloat16|Long|Int|Bool|Byte)Storage|torch (device|Size)"
)

#: Operations of pickles that call or name things in other ways than torch's files do.
_UNUSUAL = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"}


def read_authors_state(path: Path) -> tuple[Mapping[str, Any], int]:
    """Return the state of a network from a checkpoint of the authors' code, and the bytes of the file.

    Parameters
    ----------
    path
        A file with ``nn_state`` among others, whose options, optimiser and counters are left out, or a bare state.

    Returns
    -------
    tuple
        The tensors by name, mapped from the file, as they are there: the caller checks names and shapes.

    Raises
    ------
    ModelError
        If the file is missing, cut short, no archive of torch, compressed, or holds anything but tensors and options.
    """
    if not path.is_file():
        raise ModelError(f"{path} does not exist, or is no file")
    size = path.stat().st_size
    try:
        names = _names_in(path, size)
    except (zipfile.BadZipFile, EOFError, ValueError, KeyError, OSError, NotImplementedError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{path} cannot be read ({error}): it is cut short or damaged, or no file of torch.save (those of before "
            "torch 1.6 have to be loaded and saved again by a newer torch)"
        ) from error
    if strange := sorted(name for name in names if not _NAMES.fullmatch(name)):
        raise ModelError(
            f"{path} holds more than tensors and options: its pickle names {strange[0].replace(' ', '.')!r}. It is "
            "refused, and nothing of it was run; where you trust it, save its nn_state by itself (torch.save of "
            "nothing but the state dict) and import that"
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        # What torch raises of damaged files is of many kinds.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{path} cannot be read: {reason}; it is damaged, or holds more than tensors"
        ) from error
    state = content.get("nn_state", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise ModelError(f"{path} holds neither a state dict nor a checkpoint with nn_state")
    return state, size


def _names_in(path: Path, size: int) -> set[str]:
    """Return the names in the pickle of an archive, after its directory was checked."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > _MOST_ENTRIES:
            raise ModelError(f"{path} has {len(entries):,} entries, more than any network has tensors")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ModelError(f"{path} is compressed, which torch's files are not: it is refused")
        if sum(entry.file_size for entry in entries) > size:
            raise ModelError(f"{path} claims more bytes than it has: it is damaged or forged")
        pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > _LARGEST_PICKLE:
            raise ModelError(
                f"{path} is no file of torch.save: it has no pickle, several, or one that is too large"
            )
        data = archive.read(pickles[0])
    names = set()
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in _UNUSUAL:
            names.add(f"{operation.name} {argument}")
        elif operation.name == "GLOBAL":
            names.add(str(argument))
    return names
