"""Measures of a predicted image besides the voxel metrics: PSNR, SSIM, MicroSSIM, spectral and shell correlation.

All take z-scored volumes (Z, Y, X), as `repmode_cl.metrics` does, and are means over one image. What each is in the
DynaCell benchmark, and where it differs, is in ``docs/evaluation.md``. The packages of the extra ``quality`` are
imported where they are used.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.evaluation.segmentation import object_measures
from repmode_cl.utils.extras import install_command

__all__ = [
    "MEASURES",
    "MEASURE_HIGHER_IS_BETTER",
    "ImagePair",
    "Measured",
    "available_measures",
    "check_measures",
    "figure_names",
    "measure_image",
]

Volume = NDArray[Any]

#: Measures that can be chosen, in the order of tables, and the package that each needs ("" for none).
MEASURES: Mapping[str, str] = MappingProxyType(
    {
        "psnr": "",
        "ssim": "skimage",
        "microssim": "cubic",
        "spectral_pcc": "cubic",
        "fsc": "cubic",
        "segmentation": "skimage",
    }
)
#: Figure -> whether a larger value is a better one; None where neither is.
MEASURE_HIGHER_IS_BETTER: Mapping[str, bool | None] = MappingProxyType(
    {
        "psnr": True,
        "ssim": True,
        "microssim": True,
        "spectral_pcc": True,
        "fsc_xy": False,
        "fsc_z": False,
        "dice": True,
        "iou": True,
        "objects_truth": None,
        "objects_prediction": None,
        "size_truth": None,
        "size_prediction": None,
    }
)
#: Figures of the measures that have another name, or several.
_FIGURES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "fsc": ("fsc_xy", "fsc_z"),
        "segmentation": (
            "dice", "iou", "objects_truth", "objects_prediction", "size_truth", "size_prediction",
        ),
    }
)  # fmt: skip
_DISTRIBUTIONS = {"skimage": "scikit-image", "cubic": "cubic"}

#: Gaussian window of SSIM: its deviation and radius in voxels (Wang et al. 2004; 11 voxels).
_SIGMA, _RADIUS = 1.5, 5
#: Voxels along an axis below which no spectrum of it says anything.
_SMALLEST_SPECTRUM = 16


@dataclass(frozen=True)
class ImagePair:
    """A prediction with its truth, and how both are segmented.

    Attributes
    ----------
    prediction, truth
        (Z, Y, X), z-score units.
    mask
        Voxels that count; None for all.
    voxel_size
        um (z, y, x) of these volumes; None if unknown: then resolutions are in voxels.
    threshold
        z-score from which on a voxel is foreground, in truth and prediction; None for Otsu's, of each.
    min_size
        Voxels of the smallest object.
    """

    prediction: Volume
    truth: Volume
    mask: NDArray[np.bool_] | None = None
    voxel_size: tuple[float, float, float] | None = None
    threshold: float | None = None
    min_size: int = 27

    def __post_init__(self) -> None:
        for name, volume in (("prediction", self.prediction), ("mask", self.mask)):
            if volume is not None and volume.shape != self.truth.shape:
                raise ImageError(
                    f"{name} has shape {volume.shape}, truth {self.truth.shape}: they must be equal"
                )
        if self.truth.ndim != 3:
            raise ImageError(f"truth has shape {self.truth.shape}: a volume (Z, Y, X) is needed")


@dataclass(frozen=True)
class Measured:
    """Figures of one image, and why others are missing.

    Attributes
    ----------
    figures
        By name, finite.
    notes
        One for each measure that is undefined for this image.
    """

    figures: Mapping[str, float]
    notes: tuple[str, ...] = ()


def available_measures() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the measures whose packages are installed, and those whose are not."""
    found = {
        package: not package or importlib.util.find_spec(package) is not None for package in MEASURES.values()
    }
    return (
        tuple(name for name, package in MEASURES.items() if found[package]),
        tuple(name for name, package in MEASURES.items() if not found[package]),
    )


def check_measures(names: Iterable[str]) -> tuple[str, ...]:
    """Return the measures in the order of tables, without repetition.

    Raises
    ------
    RepmodeError
        If one is unknown, or its package is not installed: the message names the extra.
    """
    asked = list(names)
    for name in asked:
        if name not in MEASURES:
            raise RepmodeError(f"unknown measure {name!r}: allowed are {', '.join(MEASURES)}")
    missing = [name for name in available_measures()[1] if name in asked]
    if missing:
        packages = sorted({_DISTRIBUTIONS[MEASURES[name]] for name in missing})
        raise RepmodeError(
            f"{', '.join(missing)} needs {' and '.join(packages)}, which is not installed: "
            f"{install_command('quality')}, or leave the measure out"
        )
    return tuple(name for name in MEASURES if name in asked)


def figure_names(measures: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the figures that measures give."""
    return tuple(
        figure
        for figure in MEASURE_HIGHER_IS_BETTER
        for name in measures
        if figure in _FIGURES.get(name, (name,))
    )


def measure_image(pair: ImagePair, measures: Sequence[str]) -> Measured:
    """Compute measures of one image.

    Parameters
    ----------
    pair
        Prediction and truth.
    measures
        Of `check_measures`.
    """
    figures: dict[str, float] = {}
    notes = []
    if not np.isfinite(pair.prediction).all():
        return Measured({}, ("the prediction is not finite: only the voxel metrics say so",))
    for name in measures:
        if pair.mask is not None and not pair.mask.all() and name in ("microssim", "spectral_pcc", "fsc"):
            notes.append(f"{name} is not computed where a mask leaves voxels out")
            continue
        found = _COMPUTE[name](pair)
        undefined = [key for key, value in found.items() if not math.isfinite(value)]
        figures |= {key: float(value) for key, value in found.items() if key not in undefined}
        if undefined:
            notes.append(f"{', '.join(undefined)}: undefined for this image")
    return Measured(figures, tuple(notes))


def _range(truth: Volume) -> float:
    """Return the range of the truth's values, the largest error that PSNR and SSIM know."""
    return float(truth.max()) - float(truth.min())


def _psnr(pair: ImagePair) -> dict[str, float]:
    """Return ``10 log10(range^2 / MSE)`` in dB; infinite for a perfect prediction."""
    truth, prediction = pair.truth.astype(np.float64), pair.prediction.astype(np.float64)
    if pair.mask is not None:
        truth, prediction = truth[pair.mask], prediction[pair.mask]
    error = float(np.mean((prediction - truth) ** 2))
    size = _range(truth)
    return {"psnr": 10 * math.log10(size * size / error) if error > 0 and size > 0 else math.inf}


def _ssim(pair: ImagePair) -> dict[str, float]:
    """Return the mean structural similarity: of the volume where it is deep enough, else plane by plane."""
    from skimage.metrics import structural_similarity

    truth, prediction = pair.truth.astype(np.float64), pair.prediction.astype(np.float64)
    counted = truth if pair.mask is None else truth[pair.mask]
    size, window = _range(counted), 2 * _RADIUS + 1
    if size == 0 or min(truth.shape[1:]) < window:
        return {"ssim": math.nan}
    settings: dict[str, Any] = {
        "data_range": size,
        "gaussian_weights": True,
        "sigma": _SIGMA,
        "use_sample_covariance": False,
        "full": True,
    }
    if truth.shape[0] >= window:
        _, similar = structural_similarity(truth, prediction, **settings)
        depth = slice(_RADIUS, -_RADIUS)
    else:
        planes = zip(truth, prediction, strict=True)
        similar = np.stack([structural_similarity(*plane, **settings)[1] for plane in planes])
        depth = slice(None)
    inner = depth, slice(_RADIUS, -_RADIUS), slice(_RADIUS, -_RADIUS)
    # Windows that reach over the border are left out, as in the original.
    values = similar[inner] if pair.mask is None else similar[inner][pair.mask[inner]]
    return {"ssim": float(values.mean()) if values.size else math.nan}


def _microssim(pair: ImagePair) -> dict[str, float]:
    """Return the mean MicroSSIM over planes (Ashesh et al. 2024), with range and scale of the whole image."""
    micro_structural_similarity = _cubic().micro_structural_similarity
    if min(pair.truth.shape[1:]) < 2 * _RADIUS + 1 or _is_constant(pair):
        return {"microssim": math.nan}
    truth, prediction = _contiguous(pair)
    planes = micro_structural_similarity(truth, prediction)
    return {"microssim": float(np.mean(planes))}


def _spectral_pcc(pair: ImagePair) -> dict[str, float]:
    """Return the correlation of the spectra, weighted by the truth's power above its noise."""
    spectral_pcc = _cubic().spectral_pcc
    if min(pair.truth.shape[1:]) < _SMALLEST_SPECTRUM or _is_constant(pair):
        return {"spectral_pcc": math.nan}
    truth, prediction = _contiguous(pair)
    spacing: tuple[float, ...] = pair.voxel_size or (1.0, 1.0, 1.0)
    if truth.shape[0] == 1:
        truth, prediction, spacing = truth[0], prediction[0], spacing[1:]
    return {"spectral_pcc": float(spectral_pcc(prediction, truth, spacing=spacing))}


def _fsc(pair: ImagePair) -> dict[str, float]:
    """Return the finest detail in which truth and prediction agree: the Fourier shell correlation falls to 1/7."""
    cubic = _cubic()
    spacing = pair.voxel_size or (1.0, 1.0, 1.0)
    if min(pair.truth.shape[1:]) < _SMALLEST_SPECTRUM or _is_constant(pair):
        return {"fsc_xy": math.nan}
    truth, prediction = _contiguous(pair)
    if truth.shape[0] < _SMALLEST_SPECTRUM:
        middle = truth.shape[0] // 2
        return {
            "fsc_xy": float(
                cubic.frc_resolution(truth[middle], prediction[middle], spacing=spacing[1:], backend="hist")
            )
        }
    found = cubic.fsc_resolution(truth, prediction, spacing=spacing)
    return {"fsc_xy": float(found["xy"]), "fsc_z": float(found["z"])}


def _cubic() -> Any:
    """Return the metrics of `cubic`, without its warning that there is no GPU: none was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="CuPy or CuCIM is not installed")
        return importlib.import_module("cubic.metrics")


def _segmentation(pair: ImagePair) -> dict[str, float]:
    return object_measures(pair.prediction, pair.truth, pair.mask, pair.threshold, pair.min_size)


def _is_constant(pair: ImagePair) -> bool:
    return bool(pair.truth.max() == pair.truth.min() or pair.prediction.max() == pair.prediction.min())


def _contiguous(pair: ImagePair) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return truth and prediction as float32, in memory of their own."""
    return np.array(pair.truth, np.float32), np.array(pair.prediction, np.float32)


_COMPUTE: Mapping[str, Callable[[ImagePair], dict[str, float]]] = {
    "psnr": _psnr,
    "ssim": _ssim,
    "microssim": _microssim,
    "spectral_pcc": _spectral_pcc,
    "fsc": _fsc,
    "segmentation": _segmentation,
}
