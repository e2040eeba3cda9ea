"""What a prediction's file says of how it came about and of what its numbers mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from repmode_cl.inference.display_colours import LIGHT, colour_of
from repmode_cl.inference.rescale import Rescale
from repmode_cl.inference.writers import title_of
from repmode_cl.inference.writers.image_metadata import ChannelMetadata, ImageMetadata, software
from repmode_cl.store.snapshot import ModelSnapshot

if TYPE_CHECKING:
    from repmode_cl.data.readers import ImageReader

__all__ = ["input_name", "picture_of"]


def picture_of(
    path: Path,
    model: ModelSnapshot,
    names: Sequence[str],
    image: ImageReader,
    call: Mapping[str, Any],
    rescale: Rescale | None,
    uuid: str,
    *,
    light: bool,
    notes: Sequence[str] = (),
) -> ImageMetadata:
    """Describe a file of predictions.

    Parameters
    ----------
    path
        The file.
    model, names
        What predicts, and the structures that the file shows.
    image
        The input.
    call
        What was asked for, as `predict_file` puts it.
    rescale
        What becomes of z-scores.
    uuid
        Of the prediction.
    light
        Whether the first channel is the transmitted light.
    notes
        What a reader of the result should know.
    """
    dtype = np.dtype("float32" if rescale is None else rescale.dtype)
    source, own = input_name(image.path), image.channel_names[call["channel"]]
    channels = [_channel(model, name, rescale) for name in names]
    if light:
        # Channels without a name of their own are called by their number.
        name = "transmitted light" if own == f"C{call['channel']}" else own
        channels.insert(0, ChannelMetadata(name, LIGHT, {"channel": own, "input": source}))
    about = {
        "software": software(),
        "torch": torch.__version__,
        "model": Path(model.path).resolve().name,
        "model_digest": model.base_digest,
        "input": source,
        "input_channel": own,
        "voxel_size_zyx_um": _sizes(call["voxel size"]),
        "model_voxel_size_zyx_um": _sizes(model.voxel_size),
        "network_grid_zyx": _sizes(call["grid"]),
        "window_zyx": _sizes(call["window"]),
        "overlap": f"{call['overlap']:g}",
        "device": str(call["device"]),
    }
    about |= {key: str(call[key]) for key in ("scene", "time") if call[key] is not None}
    if notes:
        # Where the image lay on one machine is nobody else's concern.
        about["notes"] = "; ".join(note.replace(str(image.path), source) for note in notes)
    said = "in z-score units" if rescale is None else rescale.meaning
    text = f"{', '.join(names)} predicted by repmode-cl from {source}, {said}"
    z, y, x = image.shape
    return ImageMetadata(
        title_of(path), (z, y, x), dtype, tuple(channels), call["voxel size"], text, uuid, about
    )


def input_name(path: Path | str) -> str:
    """Return the last part of a path or URL."""
    return str(path).replace("\\", "/").rstrip("/").rpartition("/")[2]


def _channel(model: ModelSnapshot, name: str, rescale: Rescale | None) -> ChannelMetadata:
    entry = model.entries[name]
    about = {"structure": name, "structure_digest": entry.digest, "structure_kind": entry.kind}
    if rescale is None:
        about["values"] = "z-scores (mean 0 and deviation 1 over the voxels of a fluorescence image)"
    else:
        about |= {
            "values": rescale.meaning,
            "rescale": str(rescale),
            "z_score_of_0": repr(float(rescale.low)),
            f"z_score_of_{rescale.top}": repr(float(rescale.high)),
        }
    return ChannelMetadata(name, colour_of(name), about)


def _sizes(sizes: Sequence[float] | None) -> str:
    return "unknown" if sizes is None else " ".join(f"{size:g}" for size in sizes)
