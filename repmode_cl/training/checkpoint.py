"""Checkpoint format: the state from which training resumes as if it had never stopped.

A checkpoint is a pair of files, tensors (safetensors) and everything else (JSON), and a pointer that is
replaced last: a process may die at any instant, and the folder still holds a whole checkpoint. The previous one
is kept too, in case a disk reported a write that it had not made. Nothing is ever pickled.

    checkpoints/
      00000007.safetensors  00000007.json
      00000008.safetensors  00000008.json
      latest.json           numbers of the valid ones, newest first, with the SHA-256 of their files

Any nested value of dicts, lists, tuples, numbers, strings, tensors and arrays can be stored: `flatten` separates
the tensors from it, `restore` puts them back. `capture` and `reinstate` do so for an optimiser, a schedule
and the random number generators.
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from repmode_cl.errors import ModelError
from repmode_cl.utils.atomic_files import TEMPORARY_MARK, sha256_file, write_json
from repmode_cl.utils.safetensors_io import read_tensors, write_tensors

__all__ = [
    "Checkpoint",
    "Stateful",
    "capture",
    "flatten",
    "has_checkpoint",
    "load_checkpoint",
    "random_state",
    "reinstate",
    "restore",
    "save_checkpoint",
    "set_random_state",
]

FORMAT = "repmode-cl checkpoint"
VERSION = 1
#: Checkpoints that a folder holds: the newest, and the one before it.
KEEP = 2
#: File that names them.
POINTER = "latest.json"

#: Numbers of the damaged checkpoints that this process came across, by folder: the next one takes their place, not that
#: of the one that was loaded instead of them.
_damaged: dict[Path, set[int]] = {}

_log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """Tensors by name, and the rest of the state."""

    tensors: dict[str, Tensor]
    state: Any


class Stateful(Protocol):
    """An optimiser, a learning-rate schedule or a gradient scaler."""

    def state_dict(self) -> dict[str, Any]:
        """Return its whole state."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Load a state."""


def save_checkpoint(folder: str | Path, *, tensors: Mapping[str, Tensor], state: Any) -> None:
    """Write a checkpoint; the previous one stays, older ones are removed.

    Parameters
    ----------
    folder
        Created if it does not exist. Only one process may write at a time.
    tensors
        By name, any shape, dtype and device; stored as they are.
    state
        A JSON value (`flatten` makes one of anything else); its numbers may be infinite or NaN.

    Raises
    ------
    TypeError
        If `state` holds a tensor or an array, which belongs among `tensors`, or anything that `flatten` refuses.
    """
    folder = Path(folder)
    strays, document = flatten(state, "state")
    if strays:
        raise TypeError(
            f"{', '.join(strays)}: a tensor or array among the values of a checkpoint, which are JSON; return it among "
            "the tensors (the first part of `extra_state()`), by name, or as a list (`.tolist()`)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    entries = _pointer(folder)["checkpoints"] if (folder / POINTER).is_file() else []
    number = 1 + max((entry["number"] for entry in entries), default=0)
    names = {suffix: f"{number:08d}.{suffix}" for suffix in ("safetensors", "json")}
    write_tensors(folder / names["safetensors"], tensors, {"format": FORMAT, "version": str(VERSION)})
    write_json(folder / names["json"], {"format": FORMAT, "version": VERSION, "state": document})
    entry = {"number": number, "files": {name: sha256_file(folder / name) for name in names.values()}}
    damaged = _damaged.pop(folder.resolve(), set())
    entries = [entry, *(one for one in entries if one["number"] not in damaged)][:KEEP]
    # Until this line the previous checkpoint is valid; from it on, the new one.
    write_json(folder / POINTER, {"format": FORMAT, "version": VERSION, "checkpoints": entries})
    _remove_unlisted(folder, {name for entry in entries for name in entry["files"]})


def has_checkpoint(folder: str | Path) -> bool:
    """Return whether `folder` holds a checkpoint; one whose first write was cut short does not."""
    return (Path(folder) / POINTER).is_file()


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read the newest checkpoint that is whole: its tensors on the CPU, and its state.

    Raises
    ------
    ModelError
        If there is none, its format has another version, or all are damaged.
    """
    folder = Path(folder)
    if not has_checkpoint(folder):
        raise ModelError(f"{folder} holds no checkpoint (no {POINTER} in it): start without resuming")
    damage: list[str] = []
    numbers: set[int] = set()
    for entry in _pointer(folder)["checkpoints"]:
        try:
            checkpoint = _read(folder, entry)
        except (OSError, ValueError, KeyError) as error:
            damage.append(str(error))
            numbers.add(entry["number"])
            continue
        if damage:
            _log.warning("%s; continuing from the checkpoint before it", damage[-1])
        _damaged[folder.resolve()] = numbers
        return checkpoint
    raise ModelError(
        f"no checkpoint in {folder} can be read: {'; '.join(damage)}. Remove the folder to start afresh"
    )


def _read(folder: Path, entry: Mapping[str, Any]) -> Checkpoint:
    paths: dict[str, Path] = {}
    for name, sha256 in entry["files"].items():
        path = folder / name
        if not path.is_file():
            raise ModelError(f"{path} is missing")
        if sha256_file(path) != sha256:
            raise ModelError(f"{path} is damaged (its SHA-256 is not the one recorded)")
        paths[path.suffix] = path
    state = json.loads(paths[".json"].read_text(encoding="utf-8"))["state"]
    return Checkpoint(read_tensors(paths[".safetensors"])[0], restore(state, {}))


def _pointer(folder: Path) -> dict[str, Any]:
    path = folder / POINTER
    try:
        pointer = json.loads(path.read_text(encoding="utf-8"))
        format_, version = pointer["format"], pointer["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read ({error}): remove {folder} to start afresh") from error
    if format_ != FORMAT or version != VERSION:
        raise ModelError(
            f"{path} is {format_!r} version {version!r}; this repmode-cl reads {FORMAT!r} version {VERSION}: "
            "resume with the repmode-cl that wrote it"
        )
    return dict(pointer)


def _remove_unlisted(folder: Path, keep: set[str]) -> None:
    """Remove files that the pointer does not name: older checkpoints, and those of a killed process."""
    for path in folder.iterdir():
        unlisted = path.suffix in {".safetensors", ".json"} and path.stem.isdigit() and path.name not in keep
        if unlisted or TEMPORARY_MARK in path.name:
            try:
                path.unlink()
            except OSError as error:  # on Windows a reader may hold it open: the next write removes it
                _log.debug("cannot remove %s yet: %s", path, error)


def flatten(value: Any, prefix: str) -> tuple[dict[str, Tensor], Any]:
    """Split a nested value into its tensors and a JSON value that names their places.

    Parameters
    ----------
    value
        Dicts (keys str or int), lists, tuples, numbers, strings, bools, None, tensors, numpy arrays.
    prefix
        First part of the tensors' names, so that several values can share one checkpoint.

    Raises
    ------
    TypeError
        If it holds anything else, such as a function or an array of strings: that could only be pickled.
    """
    tensors: dict[str, Tensor] = {}

    def add(name: str, tensor: Tensor) -> str:
        # {"a.b": ...} and {"a": {"b": ...}}, or the keys 1 and "1", give one name to two places.
        while name in tensors:
            name += "~"
        tensors[name] = tensor
        return name

    def walk(item: Any, name: str) -> Any:
        if isinstance(item, np.generic):
            item = item.item()
        if item is None or isinstance(item, bool | int | str):
            return item
        if isinstance(item, float):
            return item if math.isfinite(item) else {"float": repr(item)}
        if isinstance(item, Tensor):
            return {"tensor": add(name, item)}
        if isinstance(item, np.ndarray):
            if item.dtype.kind in "OSUV":
                raise TypeError(
                    f"{name}: an array of {item.dtype} cannot be stored; numbers can, and lists of strings"
                )
            little = np.ascontiguousarray(item, dtype=item.dtype.newbyteorder("<"))
            values = torch.from_numpy(np.frombuffer(little.tobytes(), dtype=np.uint8).copy())
            return {"array": add(name, values), "dtype": item.dtype.name, "shape": list(item.shape)}
        if isinstance(item, Mapping):
            for key in item:
                if isinstance(key, bool) or not isinstance(key, str | int):
                    raise TypeError(f"{name}: a key {key!r} of type {type(key).__name__} cannot be stored")
            return {"dict": [[key, walk(below, f"{name}.{key}")] for key, below in item.items()]}
        if isinstance(item, list | tuple):
            kind = "list" if isinstance(item, list) else "tuple"
            return {kind: [walk(below, f"{name}.{index}") for index, below in enumerate(item)]}
        raise TypeError(f"{name}: a value of type {type(item).__name__} cannot be stored without pickling it")

    return tensors, walk(value, prefix)


def restore(state: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the value that `flatten` split.

    Raises
    ------
    ModelError
        If a tensor that it names is not among `tensors`.
    """
    if not isinstance(state, dict):
        return state
    (kind, content), *more = state.items()
    if kind in {"tensor", "array"}:
        if content not in tensors:
            raise ModelError(f"the checkpoint lacks the tensor {content!r}: it is not a whole one")
        tensor = tensors[content]
        if kind == "tensor":
            return tensor
        rest = dict(more)
        values = np.frombuffer(tensor.numpy().tobytes(), dtype=np.dtype(rest["dtype"]).newbyteorder("<"))
        return values.astype(rest["dtype"]).reshape(rest["shape"])
    if kind == "dict":
        return {key: restore(below, tensors) for key, below in content}
    if kind == "list":
        return [restore(below, tensors) for below in content]
    if kind == "tuple":
        return tuple(restore(below, tensors) for below in content)
    if kind == "float":
        return float(content)
    raise ModelError(f"the checkpoint's state has an unknown part {kind!r}: another version wrote it")


def random_state() -> dict[str, Any]:
    """Return the state of the random number generators of python, numpy and torch (every GPU in use too)."""
    state = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set the state that `random_state` returned; that of GPUs only on a machine with as many of them."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


def capture(**parts: Stateful | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and JSON for `save_checkpoint` of named parts and of the random number generators.

    Parameters
    ----------
    **parts
        Such as ``optimizer=..., scheduler=..., scaler=...``; parts that are None are left out.

    Examples
    --------
    >>> tensors, state = capture(optimizer=optimizer, scheduler=scheduler)
    >>> tensors |= {f"network.{name}": value for name, value in network.state_dict().items()}
    >>> save_checkpoint(folder, tensors=tensors, state={"step": step, "training": state})
    """
    values: dict[str, Any] = {name: part.state_dict() for name, part in parts.items() if part is not None}
    values["random"] = random_state()
    tensors: dict[str, Tensor] = {}
    state: dict[str, Any] = {}
    for name, value in values.items():
        part_tensors, state[name] = flatten(value, f"capture.{name}")
        tensors |= part_tensors
    return tensors, state


def reinstate(tensors: Mapping[str, Tensor], state: Mapping[str, Any], **parts: Stateful | None) -> None:
    """Load the state that `capture` returned into named parts and the random number generators.

    Raises
    ------
    ModelError
        If the checkpoint does not hold one of the parts.
    """
    for name, part in parts.items():
        if part is None:
            continue
        if name not in state:
            raise ModelError(f"the checkpoint holds no {name!r} (it holds {', '.join(sorted(state))})")
        part.load_state_dict(restore(state[name], tensors))
    # Last, because loading a state may draw numbers.
    set_random_state(restore(state["random"], tensors))
