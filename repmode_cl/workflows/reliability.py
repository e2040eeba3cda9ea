"""Records by which a user can tell how far to trust a structure, made just after its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from repmode_cl.data.sample import Sample
from repmode_cl.inference.flips import with_spread
from repmode_cl.inference.intervals import calibrate, voxel_scores
from repmode_cl.inference.sliding_window import sliding_windows
from repmode_cl.inference.unlike import training_statistics
from repmode_cl.nn import RepModeUNet, fold_structure
from repmode_cl.nn.unet import UNet
from repmode_cl.store.reliability import Calibration, Reliability
from repmode_cl.utils.progress import track

__all__ = ["measure_reliability"]

#: Held-out images that intervals are calibrated on at most: more change them by less than they differ between images.
_MAX_CALIBRATION_IMAGES = 64


def measure_reliability(
    network: RepModeUNet,
    structure: str,
    samples: Sequence[Sample],
    split: str,
    inference: Mapping[str, Any],
    flips: bool | Sequence[str],
) -> Reliability:
    """Return statistics of a structure's training features, and a calibration on its held-out images.

    Neither of a network that diverged: whoever stores it says so.

    Parameters
    ----------
    network
        The trained network, on any device, in any mode.
    structure
        One of its structures.
    samples
        Prepared images, of this and other structures.
    split
        That of the held-out images to calibrate on: ``test``, ``val``, or ``none``.
    inference
        ``window``, ``overlap``, ``batch`` and perhaps ``weights`` of predictions.
    flips
        Axes that training patches were flipped on, as the configuration says it.
    """
    own = [sample for sample in samples if sample.structure == structure]
    device = next(network.parameters()).device
    fused = fold_structure(network, structure)
    groups: dict[str, list[NDArray[np.floating]]] = {}
    for sample in own:
        if sample.split == "train":
            groups.setdefault(sample.group, []).append(
                np.load(sample.signal, mmap_mode="r", allow_pickle=False)
            )
    features = None
    if groups:
        features = training_statistics(
            fused, groups, window=inference["window"], overlap=inference["overlap"], device=device
        )
        if features is None:
            return Reliability()
    axes = (tuple("zyx") if flips else ()) if isinstance(flips, bool) else tuple(flips)
    held_out = [sample for sample in own if sample.split == split]
    return Reliability(features, _calibration(fused, held_out, split, inference, axes, device))


def _calibration(
    network: UNet,
    samples: Sequence[Sample],
    split: str,
    inference: Mapping[str, Any],
    flips: Sequence[str],
    device: torch.device,
) -> Calibration | None:
    """Return the calibration on held-out images; None without any."""
    flips = tuple(axis for axis in "zyx" if axis in flips)
    samples = _chosen(samples)

    def scores() -> Iterator[NDArray[np.float64]]:
        for sample in track(samples, "calibrating intervals"):
            prediction, spread = sliding_windows(
                with_spread(network, flips),
                np.load(sample.signal, mmap_mode="r", allow_pickle=False),
                window=inference["window"],
                overlap=inference["overlap"],
                batch_size=inference["batch"],
                device=device,
                weights=inference.get("weights", "floored"),
            )
            mask = None if sample.mask is None else np.load(sample.mask, allow_pickle=False)
            yield voxel_scores(prediction, spread, np.load(sample.target, allow_pickle=False), mask)

    groups = [sample.group for sample in samples]
    return calibrate(scores(), split=split, flips=flips, groups=groups) if samples else None


def _chosen(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return `_MAX_CALIBRATION_IMAGES` samples at most, of as many groups as there are: those are what counts."""
    if len(samples) <= _MAX_CALIBRATION_IMAGES:
        return samples
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    most = max(1, _MAX_CALIBRATION_IMAGES // len(groups))
    step = -(-len(groups) // _MAX_CALIBRATION_IMAGES)
    return [one for own in list(groups.values())[::step] for one in own[:: -(-len(own) // most)]]
