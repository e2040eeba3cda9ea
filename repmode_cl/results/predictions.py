"""``predictions/<structure>.npz``: the volumes of one test image, as a trial or a comparison predicted it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from repmode_cl.errors import RepmodeError
from repmode_cl.utils.atomic_files import replacing

__all__ = ["Prediction", "contrast", "prediction_path", "read_prediction", "write_prediction"]


@dataclass(frozen=True)
class Prediction:
    """Volumes of one fixed test image, (Z, Y, X) float32 in z-score units."""

    signal: NDArray[np.float32]
    target: NDArray[np.float32]
    prediction: NDArray[np.float32]


def prediction_path(trial_folder: Path, structure: str) -> Path:
    """Return the file of a structure's prediction in a trial's folder."""
    return trial_folder / "predictions" / f"{structure}.npz"


def write_prediction(path: Path, volumes: Prediction) -> None:
    """Write the volumes as compressed float16."""
    with replacing(path) as temporary, temporary.open("wb") as handle:
        np.savez_compressed(
            handle,
            signal=volumes.signal.astype(np.float16),
            target=volumes.target.astype(np.float16),
            prediction=np.asarray(volumes.prediction, np.float16),
        )


def read_prediction(path: str | Path) -> Prediction:
    """Read the volumes that `write_prediction` wrote.

    Raises
    ------
    RepmodeError
        If the file is no such archive, or its volumes differ in shape.
    """
    try:
        # Without pickle: an archive that needs it is refused.
        with Path(path).open("rb") as handle, np.load(handle, allow_pickle=False) as archive:
            volumes = [archive[key].astype(np.float32) for key in ("signal", "target", "prediction")]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise RepmodeError(f"{path}: cannot be read as volumes of one test image: {error}") from error
    shapes = {volume.shape for volume in volumes}
    if len(shapes) > 1 or volumes[0].ndim != 3 or volumes[0].size == 0:
        raise RepmodeError(f"{path}: holds volumes of shapes {sorted(shapes)}, expected one shape (Z, Y, X)")
    return Prediction(*volumes)


def contrast(volume: NDArray[np.float32], low: float, high: float) -> tuple[float, float]:
    """Return two percentiles of a volume's finite voxels, the second always above the first."""
    finite = volume[np.isfinite(volume)]
    if finite.size == 0:
        return 0.0, 1.0
    a, b = (float(value) for value in np.percentile(finite, (low, high)))
    return (a, b) if b > a else (a, a + 1.0)
