"""Metadata of a file of predictions: how it came about, and what its numbers mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repmode_cl.data.preprocessing.intensity_scales import recorded_target
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.readers import ImageReader
from repmode_cl.inference.display_colours import TRANSMITTED_LIGHT_COLOUR, colour_of
from repmode_cl.inference.identity import prediction_uuid
from repmode_cl.inference.rescale import Rescale
from repmode_cl.inference.writers import title_of
from repmode_cl.inference.writers.image_metadata import ChannelMetadata, ImageMetadata, software
from repmode_cl.store.snapshot import ModelSnapshot

__all__ = ["file_metadata", "input_name", "z_score_text"]


def file_metadata(
    path: Path,
    structures: Sequence[str],
    model: ModelSnapshot,
    image: ImageReader,
    request: Mapping[str, Any],
    rescale: Rescale | None,
    notes: Sequence[str] = (),
) -> ImageMetadata:
    """Return the metadata of a file of predictions.

    Parameters
    ----------
    path
        The file.
    structures
        Its structures, in the order of its channels.
    model
        The model that predicts them.
    image
        The input.
    request
        Everything that decides a voxel, as `repmode_cl.inference.predict_file.FilePrediction` writes it. Of a stack
        the first channel is the transmitted light.
    rescale
        The range of z-scores that is mapped onto integers, if any.
    notes
        Remarks for a reader of the result.
    """
    dtype = np.dtype("float32" if rescale is None else rescale.dtype)
    source, channel_name = input_name(image.path), image.channel_names[request["channel"]]
    channels = [_channel(model, name, rescale) for name in structures]
    if request["stack"]:
        # Channels without a name are called by their number.
        name = "transmitted light" if channel_name == f"C{request['channel']}" else channel_name
        about_light = {"channel": channel_name, "input": source}
        channels.insert(0, ChannelMetadata(name, TRANSMITTED_LIGHT_COLOUR, about_light))
    about = {
        "software": software(),
        "torch": torch.__version__,
        "model": model.title,
        "model_digest": model.base_digest,
        "input": source,
        "input_channel": channel_name,
        "voxel_size_zyx_um": _sizes_text(request["voxel size"]),
        "model_voxel_size_zyx_um": _sizes_text(model.voxel_size),
        "network_grid_zyx": _sizes_text(request["grid"]),
        "window_zyx": _sizes_text(request["window"]),
        "overlap": f"{request['overlap']:g}",
        "device": str(request["device"]),
        "precision": str(request.get("precision", "float32")),
    }
    about |= {key: str(request[key]) for key in ("scene", "time") if request[key] is not None}
    if (light := request["preprocessing"].get("light")) is not None:
        about["light_mean_and_deviation"] = " ".join(repr(one) for one in light)
    if notes:
        # Folders of one machine are nobody else's concern.
        about["notes"] = "; ".join(note.replace(str(image.path), source) for note in notes)
    unit = "in z-score units" if rescale is None else rescale.meaning
    z, y, x = image.shape
    return ImageMetadata(
        name=title_of(path),
        shape=(z, y, x),
        dtype=dtype,
        channels=tuple(channels),
        voxel_size=request["voxel size"],
        description=f"{', '.join(structures)} predicted by repmode-cl from {source}, {unit}",
        uuid=prediction_uuid(request, structures),
        about=about,
    )


def input_name(path: Path | str) -> str:
    """Return the last part of a path or URL; of an image within a ``.zarr``, all from that folder on."""
    parts = str(path).replace("\\", "/").rstrip("/").split("/")
    first = next((n for n, part in enumerate(parts) if part.lower().endswith(".zarr")), len(parts) - 1)
    return "/".join(parts[first:])


def input_title(path: Path | str) -> str:
    """Return what stands for an image in the names of its outputs: its name without suffixes.

    Of an image within a ``.zarr`` it is the whole way to it (``plate-A-1-0``): others there have the same last part.
    """
    first, *rest = input_name(path).split("/")
    return "-".join([title_of(Path(first)), *rest])


def z_score_text(model: ModelSnapshot) -> str:
    """Return what the z-scores that a model predicts are."""
    if PreprocessingRecipe.from_json(model.preprocessing).data_set:
        return "z-scores (mean 0 and deviation 1 over the voxels of all fluorescence images of the training)"
    return "z-scores (mean 0 and deviation 1 over the voxels of a fluorescence image)"


def _channel(model: ModelSnapshot, name: str, rescale: Rescale | None) -> ChannelMetadata:
    entry = model.entries[name]
    about = {
        "structure": name,
        "structure_digest": entry.digest,
        "structure_kind": entry.kind,
        "verdict": entry.verdict.text,
    }
    if name in model.staged:
        about["structure_state"] = "pending: it was not part of the model when this was predicted"
    scale = recorded_target(entry.provenance, name)
    if scale is not None:
        about["intensity"] = f"{scale[0]!r} + {scale[1]!r} * z-score, in the units of the training images"
    if rescale is None:
        about["values"] = z_score_text(model)
    else:
        about |= {
            "values": rescale.meaning,
            "rescale": str(rescale),
            "z_score_of_0": repr(float(rescale.low)),
            f"z_score_of_{rescale.top}": repr(float(rescale.high)),
        }
    return ChannelMetadata(name, colour_of(name), about)


def _sizes_text(sizes: Sequence[float] | None) -> str:
    return "unknown" if sizes is None else " ".join(f"{size:g}" for size in sizes)
