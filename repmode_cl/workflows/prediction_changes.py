"""Changes of the known structures' predictions after a method of learning, measured on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repmode_cl.data.patches.dataset import VolumeDataset
from repmode_cl.data.sample import Sample
from repmode_cl.inference.sliding_window import sliding_window
from repmode_cl.metrics import image_metrics
from repmode_cl.nn import RepModeUNet, fold_norms
from repmode_cl.results.comparison import PredictionChange, similarity
from repmode_cl.results.predictions import Prediction
from repmode_cl.utils.progress import task

__all__ = ["compare_predictions", "HeldOutImage", "Predict", "model_predictor"]

#: Standard deviation below which a prediction shows no pattern; that of a z-scored target is 1.
_CONSTANT = 0.02

#: (plain network in evaluation mode, volume (Z, Y, X)) -> prediction, float32 (Z, Y, X).
Predict = Callable[[nn.Module, Tensor], NDArray[np.float32]]


@dataclass(frozen=True)
class HeldOutImage:
    """An image on which a known structure is predicted.

    Attributes
    ----------
    sample
        The prepared image.
    has_truth
        Whether its target shows the structure that is predicted; else only its transmitted light is used.
    """

    sample: Sample
    has_truth: bool


def model_predictor(inference: Mapping[str, Any], device: torch.device) -> Predict:
    """Return the model's own way to predict: its Gaussian sliding window, in float32, on `device`.

    Parameters
    ----------
    inference
        ``window``, ``overlap``, ``batch`` and, where it has them, ``weights`` of the model.
    device
        Where networks are.
    """

    def predict(network: nn.Module, volume: Tensor) -> NDArray[np.float32]:
        return sliding_window(
            network,
            volume,
            window=tuple(inference["window"]),
            overlap=inference["overlap"],
            batch_size=inference["batch"],
            device=device,
            weights=inference.get("weights", "floored"),
        )

    return predict


def compare_predictions(
    before: RepModeUNet,
    after: RepModeUNet,
    images: Mapping[str, Sequence[HeldOutImage]],
    predict: Predict,
    title: str,
) -> tuple[tuple[PredictionChange, ...], tuple[str, Prediction] | None]:
    """Compare the predictions of two networks for the structures that both know.

    Parameters
    ----------
    before, after
        The model's network, before and after learning; on the device of `predict`.
    images
        Structure -> images that it is predicted on, at least one each.
    predict
        From `model_predictor`.
    title
        Text of the progress bar.

    Returns
    -------
    changes
        One for each structure of `images`.
    worst
        The structure that changed most and the image on which it did, ``target`` being the prediction before;
        None where nothing changed.
    """
    changes = []
    worst: tuple[float, str, Prediction] | None = None
    with task(title, total=sum(len(held_out) for held_out in images.values())) as bar:
        for structure, held_out in images.items():
            plain = [fold_norms(network.fuse(structure)) for network in (before, after)]
            image_changes = []
            worst_image: tuple[float, Prediction] | None = None
            for image in held_out:
                signal, target = VolumeDataset([image.sample])[0]
                old, new = (predict(network, signal[0]) for network in plain)
                change = _image_change(old, new, target.numpy() if image.has_truth else None)
                image_changes.append(change)
                if not change.identical and (worst_image is None or _similarity(change) < worst_image[0]):
                    worst_image = _similarity(change), Prediction(signal[0].numpy(), old, new)
                bar.advance()
            changes.append(_structure_change(structure, image_changes))
            if worst_image is not None and (worst is None or _similarity(changes[-1]) < worst[0]):
                worst = _similarity(changes[-1]), structure, worst_image[1]
    return tuple(changes), None if worst is None else worst[1:]


@dataclass(frozen=True)
class _ImageChange:
    """Change of the prediction of one image; see `PredictionChange`."""

    identical: bool
    r2: float | None
    max_difference: float | None
    truth_r2: tuple[float, float] | None


def _image_change(
    old: NDArray[np.float32], new: NDArray[np.float32], target: NDArray[np.float32] | None
) -> _ImageChange:
    # By bytes: NaN is equal to itself here, and 0.0 is not -0.0.
    identical = old.tobytes() == new.tobytes()
    finite = bool(np.isfinite(old).all() and np.isfinite(new).all())
    difference = float(np.abs(new.astype(np.float64) - old).max()) if finite else None
    truth_r2 = None
    if target is not None:
        mask = target[1] if len(target) > 1 else None
        before, after = (image_metrics(volume, target[0], mask)["r2"] for volume in (old, new))
        truth_r2 = before, after
    return _ImageChange(identical, _r2(old, new) if finite else None, difference, truth_r2)


def _structure_change(structure: str, images: Sequence[_ImageChange]) -> PredictionChange:
    truths = [image.truth_r2 for image in images if image.truth_r2 is not None]
    differences = [image.max_difference for image in images]
    return PredictionChange(
        structure=structure,
        images=len(images),
        identical=all(image.identical for image in images),
        r2=_mean([image.r2 for image in images]),
        max_difference=None if None in differences else max(d for d in differences if d is not None),
        truth_images=len(truths),
        truth_before=_mean([before for before, _ in truths]),
        truth_after=_mean([after for _, after in truths]),
    )


def _similarity(change: _ImageChange | PredictionChange) -> float:
    return similarity(change.r2, change.max_difference)


def _r2(old: NDArray[np.float32], new: NDArray[np.float32]) -> float | None:
    # Against a prediction before that is (nearly) constant R2 does not exist, or is any number.
    if float(old.std(dtype=np.float64)) < _CONSTANT:
        return None
    return image_metrics(new, old)["r2"]


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None where there is no value, or one of them is undefined: nothing is omitted silently."""
    finite = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(finite)) if finite and len(finite) == len(values) else None
