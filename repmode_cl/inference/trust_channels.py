"""Further channels of a prediction that say how far to trust it: calibrated intervals, distance to training images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from repmode_cl.errors import ModelError, RepmodeError
from repmode_cl.inference.flips import flip_axes, with_spread
from repmode_cl.inference.intervals import CONFIDENCE, coverage_band
from repmode_cl.inference.options import PredictionOptions
from repmode_cl.inference.unlike import WindowScores
from repmode_cl.inference.window_batches import Network
from repmode_cl.inference.writers import check_suffix
from repmode_cl.inference.writers.image_metadata import ChannelMetadata
from repmode_cl.nn.unet import UNet
from repmode_cl.store.registry import Entry
from repmode_cl.store.reliability import CLAIMED_FROM, Calibration, FeatureStatistics
from repmode_cl.store.snapshot import ModelSnapshot

__all__ = [
    "ExtraChannel",
    "WindowNetworks",
    "calibration_of",
    "check_extra_channels",
    "confidence_text",
    "extra_channels",
    "spread_key",
    "unlike_key",
    "window_networks",
]

_GREY = (160, 160, 160)
_Convert = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class ExtraChannel:
    """A channel that is no prediction.

    Attributes
    ----------
    key
        Name of its result.
    metadata
        Of the channel.
    convert
        What makes its values of the result.
    """

    key: str
    metadata: ChannelMetadata
    convert: _Convert


@dataclass(frozen=True)
class WindowNetworks:
    """The networks that a window passes, and those of them that score it.

    Attributes
    ----------
    networks
        By name of the result, in the order in which they are called.
    scores
        By structure: networks whose window scores are to be taken.
    statistics
        By structure: what these score against.
    """

    networks: Mapping[str, Network]
    scores: Mapping[str, WindowScores] = field(default_factory=dict)
    statistics: Mapping[str, FeatureStatistics] = field(default_factory=dict)


def spread_key(structure: str) -> str:
    """Return the name of the result that holds the spread of a structure's flipped predictions."""
    return f"{structure}.spread"


def unlike_key(structure: str) -> str:
    """Return the name of the result that maps how unlike a structure's training images an image is."""
    return f"{structure}.unlike"


def window_networks(
    model: ModelSnapshot, networks: Mapping[str, Network], device: torch.device, *, confidence: bool
) -> WindowNetworks:
    """Return the networks for a prediction: with scores where the model has statistics, with spreads if wanted.

    The outputs of `networks` are the same bits in any case.
    """
    called: dict[str, Network] = {}
    scores: dict[str, WindowScores] = {}
    statistics: dict[str, FeatureStatistics] = {}
    for name, network in networks.items():
        plain, features = network, _features(model.entries[name])
        if features is not None:
            statistics[name] = features
            network = scores[name] = WindowScores(cast(UNet, plain), features, device)
        if confidence:
            called[name], called[spread_key(name)] = with_spread(
                plain, calibration_of(model, name).flips, network
            )
        else:
            called[name] = network
    return WindowNetworks(called, scores, statistics)


def check_extra_channels(
    model: ModelSnapshot, structures: Sequence[str], paths: Sequence[Path], options: PredictionOptions
) -> None:
    """Refuse further channels that the model, the format or the type of the numbers cannot have.

    Raises
    ------
    ModelError
        If the model has no calibration, or no statistics, of a structure.
    RepmodeError
        If predictions are mapped onto other numbers, or the format has one channel.
    """
    wanted = [
        option
        for option, given in (("--confidence", options.confidence), ("--unlike-map", options.unlike_map))
        if given
    ]
    if not wanted:
        return
    for name in structures:
        if options.confidence:
            calibration_of(model, name)
        if options.unlike_map and _features(model.entries[name]) is None:
            raise ModelError(
                f"{model.path} has no statistics of the training images of {name!r}, so that --unlike-map "
                "(unlike_map=True) cannot be drawn: it was stored by an earlier repmode-cl, or without images; "
                f"{_again(model, name)}"
            )
    if options.rescale is not None:
        raise RepmodeError(
            f"{' and '.join(wanted)} write float32 channels, and --rescale maps predictions onto other numbers: "
            "leave one of them out"
        )
    for path in paths:
        if check_suffix(path) == ".npy":
            raise RepmodeError(
                f"{path}: {' and '.join(wanted)} need a format that names its channels; give a name that ends in "
                ".ome.tif or .ome.zarr"
            )


def extra_channels(model: ModelSnapshot, structure: str, options: PredictionOptions) -> list[ExtraChannel]:
    """Return the further channels of a structure that `options` want."""
    channels = []
    about = {"structure": structure, "structure_digest": model.entries[structure].digest}
    if options.confidence:
        calibration = calibration_of(model, structure)
        factor, floor = np.float32(calibration.factor(CONFIDENCE)), np.float32(calibration.floor)

        def half_width(spread: NDArray[Any]) -> NDArray[Any]:
            half: NDArray[np.float32] = factor * (spread + floor)
            return half

        texts = {
            "values": "half-width of an interval about the prediction, z-score units",
            "interval": confidence_text(model, structure),
            "interval_coverage": f"{CONFIDENCE:g}" if calibration.claims else "not claimed",
            "calibration_images": str(calibration.images),
            **({"calibration_groups": str(calibration.groups)} if _are_grouped(calibration) else {}),
            "test_time_flips": " ".join(calibration.flips) or "none",
            "factor": f"{factor:.6g}",
            "floor": f"{floor:.6g}",
        }
        metadata = ChannelMetadata(f"{structure} confidence", _GREY, about | texts)
        channels.append(ExtraChannel(spread_key(structure), metadata, half_width))
    if options.unlike_map:
        values = "distance of the windows about a voxel from the training images"
        metadata = ChannelMetadata(f"{structure} unlike training", _GREY, about | {"values": values})
        channels.append(ExtraChannel(unlike_key(structure), metadata, np.asarray))
    return channels


def confidence_text(model: ModelSnapshot, structure: str) -> str:
    """Return what a structure's confidence channel claims, in words."""
    calibration = calibration_of(model, structure)
    low, high = coverage_band(calibration.independent, CONFIDENCE)
    grouped = _are_grouped(calibration)
    images = f"{calibration.images} held-out image{'s' if calibration.images > 1 else ''}"
    if grouped:
        images += f" of {calibration.groups} group{'s' if calibration.groups != 1 else ''}"
    times = len(flip_axes(calibration.flips))
    made = f"calibrated on {images}; each window predicted {times} time{'s' if times > 1 else ''}"
    if not calibration.claims:
        return (
            f"no coverage is claimed: {made}; {CLAIMED_FROM} {'groups' if grouped else 'images'} are needed before an "
            "interval is called "
            f"{CONFIDENCE:.0%}"
        )
    return (
        f"{CONFIDENCE:.0%} of the voxels of an image like those lie within it on average ({low:.1%} to {high:.1%} "
        f"expected, single images differ); {made}"
    )


def _are_grouped(calibration: Calibration) -> bool:
    """Tell whether some calibration images belong together."""
    return calibration.independent < calibration.images


def _features(entry: Entry) -> FeatureStatistics | None:
    return None if entry.reliability is None else entry.reliability.features


def calibration_of(model: ModelSnapshot, structure: str) -> Calibration:
    """Return the calibration of a structure's intervals.

    Raises
    ------
    ModelError
        If the model has none.
    """
    reliability = model.entries[structure].reliability
    if reliability is None or reliability.calibration is None:
        raise ModelError(
            f"{model.path} has no calibration of {structure!r}, which --confidence (confidence=True) needs: it was "
            "stored by an earlier repmode-cl, or no image was held out; leave --confidence out, or "
            f"{_again(model, structure)} with held-out images ({CLAIMED_FROM} or more, not parts of one field, for a "
            "coverage to be claimed)"
        )
    return reliability.calibration


def _again(model: ModelSnapshot, structure: str) -> str:
    """Name the command that makes a structure's records."""
    if model.entries[structure].kind == "base":
        return "train the model again by `repmode-cl train`"
    return "train the structure again by `repmode-cl replace`"
