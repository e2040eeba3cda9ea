"""Which voxels of an image layer are predicted, and where in the layer the prediction belongs.

A layer has any number of axes; a network sees three. Axes of length one go; of what is left beyond three, the
viewer's sliders choose, and the prediction comes to lie at just that point of these axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.errors import ImageError

if TYPE_CHECKING:
    from napari.layers import Image

__all__ = ["LayerRegion", "select", "stated_voxel_size"]


@dataclass(frozen=True)
class LayerRegion:
    """A volume within an array of any number of axes.

    Attributes
    ----------
    shape
        Voxels (Z, Y, X).
    axes
        Which axes of the array are z, y and x.
    index
        For every axis of the array the position taken, or None on `axes`.
    chosen
        In words, where the sliders of axes longer than one stand.
    """

    shape: tuple[int, int, int]
    axes: tuple[int, int, int]
    index: tuple[int | None, ...]
    chosen: tuple[str, ...]

    def read(self, data: Any) -> NDArray[Any]:
        """Return the volume (Z, Y, X) of a layer's data: NumPy, or what NumPy can take in, such as dask's."""
        taken = np.asarray(data[tuple(slice(None) if at is None else at for at in self.index)])
        order = np.argsort(np.argsort(self.axes))
        return taken.transpose(tuple(int(axis) for axis in order))

    def put_back(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Return `volume` (Z, Y, X) with the array's axes in their order, those that were chosen of length one."""
        ordered = volume.transpose(tuple(int(axis) for axis in np.argsort(self.axes)))
        return ordered[tuple(slice(None) if at is None else None for at in self.index)]

    def __str__(self) -> str:
        text = " x ".join(str(size) for size in self.shape) + " voxels (z, y, x)"
        return ", ".join((text, *self.chosen))


def select(layer: Image, point: Sequence[float]) -> LayerRegion:
    """Find the volume of an image layer that the sliders stand at.

    Parameters
    ----------
    layer
        Grey values, at least three of its axes longer than one. Axes that are named z, y and x are these; else the
        last three longer than one are.
    point
        World coordinates of the viewer's sliders, at least one for each axis of the layer.

    Raises
    ------
    ImageError
        If it is a colour image or has no three axes, or a slider stands outside of it.
    """
    name = f"the layer {layer.name!r}"
    if layer.rgb:
        raise ImageError(f"{name} is a colour image: transmitted light is one channel; split it and take one")
    shape = tuple(int(size) for size in (layer.data[0] if layer.multiscale else layer.data).shape)
    longer = [axis for axis, size in enumerate(shape) if size > 1]
    if len(longer) < 3:
        raise ImageError(
            f"{name} has the shape {shape}: a stack is needed, with three axes (z, y, x) longer than one"
        )
    z, y, x = _named_axes(layer.axis_labels, longer) or longer[-3:]
    at = layer.world_to_data(tuple(point)[-len(shape) :])
    index: list[int | None] = [0] * len(shape)
    chosen = []
    for axis in range(len(shape)):
        if axis in (z, y, x):
            index[axis] = None
        elif shape[axis] > 1:
            position = round(float(at[axis]))
            label = _label(layer.axis_labels, axis)
            if not 0 <= position < shape[axis]:
                raise ImageError(
                    f"the slider of {label} stands outside of {name}, which has {shape[axis]} there: move it"
                )
            index[axis] = position
            chosen.append(f"{label} at {position} of 0 to {shape[axis] - 1}")
    return LayerRegion((shape[z], shape[y], shape[x]), (z, y, x), tuple(index), tuple(chosen))


def _named_axes(labels: Sequence[str], longer: Sequence[int]) -> list[int] | None:
    found = [str(label).lower() for label in labels]
    if any(found.count(name) != 1 for name in "zyx"):
        return None
    axes = [found.index(name) for name in "zyx"]
    return axes if all(axis in longer for axis in axes) else None


def _label(labels: Sequence[str], axis: int) -> str:
    """Return an axis' name; napari numbers those that have none from the end ("-3", or "axis -3")."""
    label = str(labels[axis]).removeprefix("axis ")
    return f"axis {axis}" if label.lstrip("-").isdecimal() else f"axis {label}"


def stated_voxel_size(layer: Image, selection: LayerRegion) -> tuple[float, float, float] | None:
    """Return the voxel size in um (z, y, x) that a layer states, or None.

    Units of length are converted. Most readers set a scale in um and no unit, so that any other scale than 1 is
    taken as um; a scale of 1 without unit is what napari sets where nothing is known.
    """
    scale = [abs(float(layer.scale[axis])) for axis in selection.axes]
    units = [layer.units[axis] for axis in selection.axes]
    if all(unit.is_compatible_with("um") for unit in units):
        sizes = [size * float((1 * unit).to("um").magnitude) for size, unit in zip(scale, units, strict=True)]
    elif all(size == 1 for size in scale):
        return None
    else:
        sizes = scale
    return sizes[0], sizes[1], sizes[2]
