"""From a prediction to a layer: at the image's place, in the structure's colour, with what made it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from repmode_cl.inference.display_colours import colour_of
from repmode_cl.version import __version__

if TYPE_CHECKING:
    from napari.layers import Image

    from repmode_cl.napari.layer_region import LayerRegion
    from repmode_cl.napari.predict_layer import Prediction, Request

__all__ = ["Placed", "layer_of"]


class Placed:
    """Where a layer lay, and what of it was predicted, when the prediction was asked for.

    Parameters
    ----------
    layer
        The image.
    selection
        The volume within it.
    """

    def __init__(self, layer: Image, selection: LayerRegion) -> None:
        from napari.utils.transforms import Affine

        own = Affine(scale=layer.scale, rotate=layer.rotate, shear=layer.shear)
        start = np.array([0 if at is None else at for at in selection.index], float)
        self.selection = selection
        self.settings: dict[str, Any] = {
            "scale": layer.scale.copy(),
            "rotate": layer.rotate.copy(),
            "shear": layer.shear.copy(),
            "affine": layer.affine.affine_matrix.copy(),
            # So that it is seen where the sliders stood and nowhere else.
            "translate": layer.translate + own.linear_matrix @ start,
            "units": layer.units,
            "axis_labels": layer.axis_labels,
        }


def layer_of(prediction: Prediction, placed: Placed, request: Request) -> Image:
    """Return an image layer of a prediction, to be laid over the image.

    Its colour is the one that files of the structure have too; its metadata (``layer.metadata["repmode-cl"]``) say
    which model and version made it, and that its values are z-scores.
    """
    from napari.layers import Image
    from napari.utils import Colormap

    colour = [part / 255 for part in colour_of(prediction.structure)]
    made = {
        "structure": prediction.structure,
        "structure_digest": prediction.digest,
        "model": str(request.model.path.absolute()),
        "base_digest": request.model.base_digest,
        "version": __version__,
        "image": request.name,
        "voxel_size_um_zyx": request.voxel_size,
        "selection": str(placed.selection),
        "values": "z-score units",
    }
    layer = Image(
        placed.selection.put_back(prediction.values),
        name=f"{prediction.structure} of {request.name}",
        colormap=Colormap([[0, 0, 0], colour], name=prediction.structure),
        blending="additive",
        contrast_limits=prediction.limits,
        metadata={"repmode-cl": made},
        **placed.settings,
    )
    # What the slider of the contrast reaches.
    layer.contrast_limits_range = (
        prediction.extent if prediction.extent[0] < prediction.extent[1] else prediction.limits
    )
    return layer
