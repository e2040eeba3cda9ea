"""Streams of structures from datasets or tensors in memory: the benchmark that a manifest gives, without a manifest.

Volumes are written once, as files of arrays, and read back as the images of a manifest are, so that loader workers,
every strategy and every check find what they find elsewhere.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from repmode_cl.data.manifest import SPLITS, Manifest, Row
from repmode_cl.errors import ManifestError
from repmode_cl.scenarios.stream import PatchCount, StructureStream, check_stream_arguments, structure_stream
from repmode_cl.structures import check_structure_name
from repmode_cl.utils.atomic_files import replacing

__all__ = ["dense_regression_benchmark"]

#: Folders of benchmarks for which none was given. They are removed when Python ends, and not before: a dataset of the
#: benchmark may be used longer than the benchmark.
_folders: list[tempfile.TemporaryDirectory[str]] = []


def dense_regression_benchmark(
    datasets: Mapping[str, Sequence[Any]],
    order: Sequence[str] | int | None = None,
    *,
    base: Sequence[str] = (),
    patch: Sequence[int] = (32, 128, 128),
    patches: int | PatchCount | None = None,
    seed: int = 0,
    flips: bool | Sequence[str] = True,
    batch: int | None = None,
    structures_per_batch: int | None = None,
    images_each: int | None = None,
    foreground: float = 0.0,
    cache: str | Path | None = None,
) -> StructureStream:
    """Make a benchmark of volumes to volumes from datasets or tensors: what `structure_stream` makes of a manifest.

    Parameters
    ----------
    datasets
        Name of each structure -> its training, validation and test data. Each of the three is a dataset (with ``len``
        and items), a list of items, a pair of tensors or arrays (signals, targets) whose first axis is that of items,
        or None where there is no image, as may be for validation. An item is (signal, target) or (signal, target,
        mask); a task label in the third place, as Avalanche's datasets have it, says no more than the name and is left.
        A volume is (Z, Y, X) or (1, Z, Y, X), of any size; a mask is not 0 where a voxel counts in loss and metrics.
    order
        Structures after the base, or a seed that shuffles them; ``None`` takes the order of `datasets`.
    base, patch, patches, seed, flips, batch, structures_per_batch, images_each, foreground
        As for `structure_stream`.
    cache
        Folder that volumes are written to, which later calls and other processes can use; ``None`` makes one that is
        removed when Python ends.

    Returns
    -------
    StructureStream
        Its train, validation and test streams. Each volume is z-scored, as those of a manifest are.

    Raises
    ------
    ConfigError
        If `order` or `base` is a bare text, or `patches` or `images_each` is below 1.
    ManifestError
        If data are no volumes of one channel (two-dimensional images are none), signal, target and mask differ in
        shape, a value is not finite, or the same signal is in two splits.
    StructureError
        If a name cannot be one of a structure: lower-case letters, digits and underscores.
    """
    # Before a volume is written.
    check_stream_arguments(
        order=order,
        base=base,
        patches=patches,
        images_each=images_each,
        order_is="a list of names of structures, a seed, or None",
    )
    if not datasets:
        raise ManifestError("datasets is empty: give {name: (train, val, test)} for each structure")
    folder = Path(_new_folder() if cache is None else cache)
    (folder / "volumes").mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    seen: dict[str, tuple[str, str]] = {}
    for name, parts in datasets.items():
        check_structure_name(name)
        if not isinstance(parts, tuple | list) or len(parts) != 3:
            raise ManifestError(f"{name}: found {_kind(parts)}: give a triple (train, val, test) of datasets")
        for split, part in zip(SPLITS, parts, strict=True):
            for where, volumes in _items(f"{name}, {split}", part):
                paths = [None if one is None else _written(one, folder / "volumes") for one in volumes]
                signal, target, mask = paths
                assert signal is not None and target is not None  # noqa: PT018 - of one item
                other, first = seen.setdefault(signal.name, (split, where))
                if other != split:
                    raise ManifestError(
                        f"{where}: its signal is also that of {first}: an image must not be trained on and held out; "
                        "put each image into one of train, val and test"
                    )
                rows.append(Row(len(rows) + 1, name, signal, None, target, None, split=split, mask=mask))
    return structure_stream(
        Manifest(folder / "volumes", tuple(rows)),
        order,
        base=base,
        cache=folder / "prepared",
        patch=patch,
        patches=patches,
        seed=seed,
        flips=flips,
        batch=batch,
        structures_per_batch=structures_per_batch,
        images_each=images_each,
        foreground=foreground,
    )


def _new_folder() -> str:
    _folders.append(tempfile.TemporaryDirectory(prefix="repmode-volumes-", ignore_cleanup_errors=True))
    return _folders[-1].name


Volumes = tuple[NDArray[np.generic], NDArray[np.generic], NDArray[np.generic] | None]


def _items(where: str, data: Any) -> Iterator[tuple[str, Volumes]]:
    """Yield the name and the volumes (signal, target, mask) of each item of a dataset, checked."""
    if data is None:
        return
    if isinstance(data, Sequence) and len(data) in (2, 3) and all(_is_array(one) for one in data):
        sizes = [len(one) for one in data]
        if len(set(sizes)) > 1:
            raise ManifestError(
                f"{where}: signals, targets and masks are {' and '.join(map(str, sizes))} volumes"
            )
        # Not zip: a dataset and a list of items are read the same way.
        items: Any = list(zip(*data, strict=True))
    else:
        items = data
    if _is_array(items) or not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
        raise ManifestError(
            f"{where}: found {_kind(items)}: give a dataset (with len and items), a list of (signal, target), or a "
            "pair of tensors (signals, targets)"
        )
    for number in range(len(items)):
        yield f"{where} item {number}", _volumes(f"{where} item {number}", items[number])


def _volumes(where: str, item: Any) -> Volumes:
    if not isinstance(item, tuple | list) or len(item) not in (2, 3):
        raise ManifestError(
            f"{where}: found {_kind(item)}: an item is (signal, target) or (signal, target, mask)"
        )
    signal, target = (
        _volume(f"{where}: {part}", one) for part, one in zip(("signal", "target"), item, strict=False)
    )
    third: Any = item[2] if len(item) == 3 else None
    if isinstance(third, Integral) or (_is_array(third) and third.ndim == 0):
        third = None  # a task label: the name of the structure says as much
    mask = None if third is None else _volume(f"{where}: mask", third)
    for part, one in (("signal", signal), ("target", target)):
        if one.min() == one.max():
            raise ManifestError(
                f"{where}: the {part} is {one.min():g} everywhere: it cannot be z-scored; leave it out"
            )
    for part, other in (("target", target), ("mask", mask)):
        if other is not None and other.shape != signal.shape:
            raise ManifestError(
                f"{where}: the {part} has the shape {other.shape}, and the signal {signal.shape}"
            )
    return signal, target, None if mask is None else (mask != 0).astype(np.uint8)


def _volume(where: str, value: Any) -> NDArray[np.generic]:
    """Return a volume (Z, Y, X)."""
    if not _is_array(value):
        raise ManifestError(f"{where}: found {_kind(value)}: a volume is a tensor or an array")
    volume: NDArray[np.generic] = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    if volume.ndim == 4 and volume.shape[0] == 1:
        volume = volume[0]
    shape = tuple(value.shape)
    if volume.ndim == 2 or (volume.ndim == 3 and len(volume) == 1):
        raise ManifestError(
            f"{where} has the shape {shape}, a two-dimensional image: this benchmark is of volumes, (Z, Y, X) or "
            "(1, Z, Y, X), of more than one plane; stack planes, or use a benchmark for images"
        )
    if volume.ndim != 3:
        raise ManifestError(
            f"{where} has the shape {shape}: a volume is (Z, Y, X), or (1, Z, Y, X) with its one channel"
        )
    if volume.dtype.kind not in "buif":
        raise ManifestError(f"{where} holds {volume.dtype}: numbers are needed")
    if not np.isfinite(volume).all():
        raise ManifestError(f"{where} holds values that are not finite")
    return volume.astype(np.float32)


def _written(volume: NDArray[np.generic], folder: Path) -> Path:
    """Write a volume under the digest of its voxels, unless it is there, and return its path."""
    digest = hashlib.sha256(f"{volume.dtype.str}{volume.shape}".encode())
    digest.update(np.ascontiguousarray(volume).tobytes())
    path = folder / f"{digest.hexdigest()}.npy"
    if not path.exists():
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, volume)
    return path


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _kind(value: Any) -> str:
    return (
        f"{type(value).__name__} of the shape {tuple(value.shape)}"
        if _is_array(value)
        else type(value).__name__
    )
