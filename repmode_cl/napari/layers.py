"""Layer of a prediction: at the image's place, in the structure's colour, with its origin as metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image
from napari.utils import Colormap
from napari.utils.transforms import Affine

from repmode_cl.inference.display_colours import colour_of
from repmode_cl.napari.layer_region import LayerRegion, TimePoints
from repmode_cl.version import __version__

# Imports torch, which takes seconds: the widget opens without it.
if TYPE_CHECKING:
    from repmode_cl.napari.predict_layer import PredictedVolume, VolumeRequest

__all__ = ["LayerPlacement", "prediction_layer", "set_time_point"]


class LayerPlacement:
    """Place of an image layer in the viewer and region of it to predict, as they were when prediction began.

    Parameters
    ----------
    layer
        The image.
    region
        The volume within it.

    Attributes
    ----------
    layer_options
        Keywords by which a layer of the prediction lies at the same place.
    """

    def __init__(self, layer: Image, region: LayerRegion) -> None:
        transform = Affine(scale=layer.scale, rotate=layer.rotate, shear=layer.shear)
        start = np.array([0 if position is None else position for position in region.index], float)
        self.region = region
        self.layer_options: dict[str, Any] = {
            "scale": layer.scale.copy(),
            "rotate": layer.rotate.copy(),
            "shear": layer.shear.copy(),
            "affine": layer.affine.affine_matrix.copy(),
            # It is visible where the sliders stood and nowhere else.
            "translate": layer.translate + transform.linear_matrix @ start,
            "units": layer.units,
            "axis_labels": layer.axis_labels,
        }


def prediction_layer(
    prediction: PredictedVolume,
    placement: LayerPlacement,
    request: VolumeRequest,
    times: TimePoints | None = None,
) -> Image:
    """Return an image layer of a prediction, to be laid over the image.

    With `times`, of whose first region `placement` is, it has a place for each time point: the prediction is that of
    the first, and the others are NaN until `set_time_point` fills them.

    Its colour is that of the structure in predicted files. Its metadata (``layer.metadata["repmode-cl"]``) name the
    model and the version that made it, and the unit of its values, z-scores.
    """
    colour = [part / 255 for part in colour_of(prediction.structure)]
    title = prediction.structure
    if prediction.confidence:
        colour, title = [1.0, 1.0, 1.0], f"{prediction.structure} confidence"
    origin = {
        "structure": prediction.structure,
        "structure_digest": prediction.digest,
        "verdict": request.model.entries[prediction.structure].verdict.text,
        "model": str(request.model.path.absolute()),
        "base_digest": request.model.base_digest,
        "version": __version__,
        "image": request.name,
        "voxel_size_um_zyx": request.voxel_size,
        "selection": str(times or placement.region),
        "values": "z-score units",
    }
    if prediction.confidence:
        origin["values"] = "half-width of an interval about the prediction, z-score units"
        origin["interval"] = prediction.confidence
    values = placement.region.with_layer_axes(prediction.values)
    if times is not None:
        film = np.full(
            [len(times.regions) if axis == times.axis else size for axis, size in enumerate(values.shape)],
            np.nan,
            np.float32,
        )
        film[_at(times, 0)] = values
        values = film
    layer = Image(
        values,
        name=f"{title} of {request.name}",
        colormap=Colormap([[0, 0, 0], colour], name=title),
        blending="additive",
        contrast_limits=prediction.limits,
        metadata={"repmode-cl": origin},
        visible=not prediction.confidence,
        **placement.layer_options,
    )
    # The range of the contrast slider.
    layer.contrast_limits_range = (
        prediction.extent if prediction.extent[0] < prediction.extent[1] else prediction.limits
    )
    return layer


def set_time_point(layer: Image, prediction: PredictedVolume, times: TimePoints, number: int) -> None:
    """Fill time point `number` of a layer of `prediction_layer`; black and white stay those of the first."""
    layer.data[_at(times, number)] = times.regions[number].with_layer_axes(prediction.values)
    low, high = layer.contrast_limits_range
    layer.contrast_limits_range = (min(low, prediction.extent[0]), max(high, prediction.extent[1]))
    layer.refresh()


def _at(times: TimePoints, number: int) -> tuple[slice, ...]:
    """Return the index of a time point into an array of all axes, that keeps its axis."""
    return (*[slice(None)] * times.axis, slice(number, number + 1))
