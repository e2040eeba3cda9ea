"""Time for each window of a volume as the volume grows: what is done besides predicting must not grow faster."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repmode_cl.inference.predict_file import predict_file
from repmode_cl.inference.sliding_window import sliding_window
from repmode_cl.inference.windows import plan_windows
from repmode_cl.model import Model
from repmode_cl.nn import Architecture, RepModeUNet
from repmode_cl.perf.settings import PerfSettings
from repmode_cl.perf.timing_rounds import TimingRow, alternate, rows_of
from repmode_cl.utils.progress import task

__all__ = ["SIZES", "measure_scaling", "volume_shape"]

#: Times the first volume, and by how much each axis (z, y, x) grows for it.
SIZES = {1: (1, 1, 1), 4: (1, 2, 2), 16: (1, 4, 4), 64: (4, 4, 4)}

#: How a volume is predicted: by the Python function for one in memory, or as `repmode-cl predict` does.
_WAYS = {"memory": "in memory", "disk": "from disk to disk"}

_STRUCTURE = "dna"

#: Windows computed at once.
_AT_ONCE = 4


def volume_shape(settings: PerfSettings, times: int) -> tuple[int, int, int]:
    """Return the voxels of the volume that is `times` the first one, which takes 1 x 3 x 3 windows."""
    z, y, x = settings.patch
    z, y, x = (size * grow for size, grow in zip((z, 2 * y, 2 * x), SIZES[times], strict=True))
    return z, y, x


def measure_scaling(
    settings: PerfSettings, device: torch.device, seconds: float | None = None
) -> dict[str, Any]:
    """Time predictions of volumes of 1 to 64 times the first one's size, in memory and from disk to disk.

    Parameters
    ----------
    settings
        Widths and window (the patch); four windows are computed at once.
    device
        Where it is predicted.
    seconds
        Time within which rounds may begin.

    Returns
    -------
    dict
        ``window``, and ``rows``: a `TimingRow` of each volume and way as JSON with ``way``, ``times``, ``voxels``,
        ``windows``, the median seconds ``per_window`` and these relative to the first volume's, ``per_window_ratio``.
    """
    counts = {times: len(plan_windows(volume_shape(settings, times), settings.patch, 0.5)) for times in SIZES}
    # Files that are mapped cannot be removed on Windows; the folder goes when nothing maps them any more.
    with tempfile.TemporaryDirectory(prefix="repmode-cl-perf-", ignore_cleanup_errors=True) as name:
        work = _work(settings, device, Path(name))
        for way in _WAYS:
            work[f"{way}-1"]()  # the windows of all volumes are the same: the smallest warms up for all
        rounds = min(settings.repeats, 3)
        with task("Scaling", rounds * len(work)) as bar:
            timings = alternate(
                work,
                rounds=rounds,
                seed=settings.seed,
                device=device,
                seconds=seconds,
                bar=bar,
                warm_up=False,
            )
    rows = []
    for way, text in _WAYS.items():
        mine = {f"{way}-{times}": timings[f"{way}-{times}"] for times in SIZES}
        labels = {f"{way}-{times}": f"{times} x the volume, {text}" for times in SIZES}
        for times, row in zip(SIZES, rows_of(mine, labels, f"{way}-1"), strict=True):
            rows.append(_per_window(row, way, times, volume_shape(settings, times), counts))
    return {"window": list(settings.patch), "rows": rows}


def _work(settings: PerfSettings, device: torch.device, folder: Path) -> dict[str, Callable[[], object]]:
    """Return what is timed, and make the model and the volumes that it needs."""
    network = RepModeUNet(Architecture(settings.width, settings.depth), (_STRUCTURE,), seed=settings.seed)
    model = Model.create(
        folder / "model",
        network,
        voxel_size=None,
        preprocessing={"order": 1},
        inference={"window": list(settings.patch), "overlap": 0.5, "batch": _AT_ONCE},
        metrics={},
    )
    fused = copy.deepcopy(model.fused(_STRUCTURE)).to(device)
    generator = np.random.default_rng(settings.seed)
    work: dict[str, Callable[[], object]] = {}
    for times in SIZES:
        volume = generator.standard_normal(volume_shape(settings, times), np.float32)
        path = folder / f"{times}.npy"
        np.save(path, volume)

        def in_memory(path: Path = path) -> object:
            return sliding_window(
                fused,
                np.load(path, allow_pickle=False),
                window=settings.patch,
                overlap=0.5,
                batch_size=_AT_ONCE,
                device=device,
            )

        def on_disk(path: Path = path) -> object:
            out = path.with_name(f"{path.stem}-out.npy")
            return predict_file(model, _STRUCTURE, path, out, device=str(device), restart=True)

        work[f"memory-{times}"], work[f"disk-{times}"] = in_memory, on_disk
    return work


def _per_window(
    row: TimingRow, way: str, times: int, voxels: tuple[int, int, int], counts: dict[int, int]
) -> dict[str, Any]:
    return row.to_json() | {
        "way": way,
        "times": times,
        "voxels": list(voxels),
        "windows": counts[times],
        "per_window": None if row.median is None else row.median / counts[times],
        "per_window_ratio": None if row.ratio is None else row.ratio * counts[1] / counts[times],
    }
