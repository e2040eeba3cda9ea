"""Sample data for napari's menu *File > Open Sample*: one simulated field of cells."""

from __future__ import annotations

from typing import Any

from repmode_cl.data.phantom.field import simulate_field
from repmode_cl.inference.display_colours import colour_of

__all__ = ["simulated_cells"]

_STRUCTURES = ("dna", "cell_membrane", "nucleolus")
_SHAPE, _VOXEL = (24, 96, 96), (0.29, 0.29, 0.29)


def simulated_cells() -> list[tuple[Any, dict[str, Any], str]]:
    """Return transmitted light and three structures of one simulated field, as napari's layer tuples.

    They are those of ``repmode-cl data simulate``: for trying the plugin, not for judging a model.
    """
    from napari.utils import Colormap  # napari, which calls this, has imported it

    images = simulate_field(0, 0, _STRUCTURES, _SHAPE, _VOXEL)
    layers = []
    for name, values in images.items():
        light = name not in _STRUCTURES
        colour = [1.0, 1.0, 1.0] if light else [part / 255 for part in colour_of(name)]
        layers.append(
            (
                values,
                {
                    "name": f"simulated {name.replace('_', ' ')}",
                    "scale": _VOXEL,
                    "units": ("um",) * 3,
                    "colormap": "gray" if light else Colormap([[0, 0, 0], colour], name=name),
                    "blending": "translucent" if light else "additive",
                    "visible": light,
                },
                "image",
            )
        )
    return layers
