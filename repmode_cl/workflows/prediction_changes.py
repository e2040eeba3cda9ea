"""What a way of learning did to the structures that a model knows, measured on images held out."""

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
from repmode_cl.errors import ImageError
from repmode_cl.inference.sliding_window import sliding_window
from repmode_cl.metrics import image_metrics
from repmode_cl.nn import RepModeUNet, fold_norms
from repmode_cl.results.comparison import PredictionChange
from repmode_cl.results.predictions import Prediction
from repmode_cl.utils.progress import task

__all__ = ["HeldOut", "Predict", "changes_of", "predictor"]

#: (plain network in evaluation mode, volume (Z, Y, X)) -> prediction, float32 (Z, Y, X).
Predict = Callable[[nn.Module, Tensor], NDArray[np.float32]]


@dataclass(frozen=True)
class HeldOut:
    """An image that a known structure is predicted on.

    Attributes
    ----------
    sample
        The prepared image.
    truth
        Whether its target shows the structure that is predicted; else its transmitted light alone is used.
    """

    sample: Sample
    truth: bool


def predictor(inference: Mapping[str, Any], device: torch.device) -> Predict:
    """Return how the model itself predicts: its Gaussian sliding window, in float32, on `device`.

    Parameters
    ----------
    inference
        ``window``, ``overlap`` and ``batch`` of the model.
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
        )

    return predict


def changes_of(
    before: RepModeUNet,
    after: RepModeUNet,
    images: Mapping[str, Sequence[HeldOut]],
    predict: Predict,
    what: str,
) -> tuple[tuple[PredictionChange, ...], tuple[str, Prediction] | None]:
    """Compare the predictions of two networks for the structures that both know.

    Parameters
    ----------
    before, after
        The model's network, and what became of it; on the device of `predict`.
    images
        Structure -> what it is predicted on, at least one image each.
    predict
        Of `predictor`.
    what
        What the progress bar says.

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
    with task(what, total=sum(len(of) for of in images.values())) as bar:
        for structure, of in images.items():
            plain = [fold_norms(network.fuse(structure)) for network in (before, after)]
            found = []
            most: tuple[float, Prediction] | None = None
            for image in of:
                signal, target = VolumeDataset([image.sample])[0]
                old, new = (predict(network, signal[0]) for network in plain)
                one = _one(old, new, target.numpy() if image.truth else None)
                found.append(one)
                if not one.identical and (most is None or _likeness(one) < most[0]):
                    most = _likeness(one), Prediction(signal[0].numpy(), old, new)
                bar.advance()
            changes.append(_all(structure, found))
            if most is not None and (worst is None or _likeness(changes[-1]) < worst[0]):
                worst = _likeness(changes[-1]), structure, most[1]
    return tuple(changes), None if worst is None else worst[1:]


@dataclass(frozen=True)
class _One:
    """The change on one image."""

    identical: bool
    r2: float | None
    difference: float | None
    truth: tuple[float, float] | None


def _one(old: NDArray[np.float32], new: NDArray[np.float32], target: NDArray[np.float32] | None) -> _One:
    # By bytes: NaN is equal to itself here, and 0.0 is not -0.0.
    identical = old.tobytes() == new.tobytes()
    finite = bool(np.isfinite(old).all() and np.isfinite(new).all())
    difference = float(np.abs(new.astype(np.float64) - old).max()) if finite else None
    truth = None
    if target is not None:
        mask = target[1] if len(target) > 1 else None
        before, after = (image_metrics(volume, target[0], mask)["r2"] for volume in (old, new))
        truth = before, after
    return _One(identical, _r2(old, new) if finite else None, difference, truth)


def _likeness(change: _One | PredictionChange) -> float:
    return -np.inf if change.r2 is None else change.r2


def _r2(old: NDArray[np.float32], new: NDArray[np.float32]) -> float | None:
    try:
        return image_metrics(new, old)["r2"]
    except ImageError:  # the prediction before is constant, so that R2 against it does not exist
        return None


def _all(structure: str, found: Sequence[_One]) -> PredictionChange:
    truths = [one.truth for one in found if one.truth is not None]
    differences = [one.difference for one in found]
    return PredictionChange(
        structure=structure,
        images=len(found),
        identical=all(one.identical for one in found),
        r2=_mean([one.r2 for one in found]),
        max_difference=None if None in differences else max(d for d in differences if d is not None),
        truth_images=len(truths),
        truth_before=_mean([before for before, _ in truths]),
        truth_after=_mean([after for _, after in truths]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None where there is no value, or one of them is undefined: nothing is left out silently."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known and len(known) == len(values) else None
