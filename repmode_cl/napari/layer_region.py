"""Region of an image layer to predict: its voxels, and where in the layer the prediction belongs.

A layer has any number of axes, a network's input three. Axes of length one are dropped. On further axes the viewer's
sliders choose a position, and the prediction lies at just that position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from napari.layers import Image
from numpy.typing import NDArray

from repmode_cl.errors import ImageError

__all__ = ["LayerRegion", "TimePoints", "region_at_sliders", "stated_voxel_size", "time_points"]


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
        For every axis of the array its position, or None on `axes`.
    slider_positions
        In words, the positions on axes longer than one.
    """

    shape: tuple[int, int, int]
    axes: tuple[int, int, int]
    index: tuple[int | None, ...]
    slider_positions: tuple[str, ...]

    def read(self, data: Any) -> NDArray[Any]:
        """Return the volume (Z, Y, X) of a layer's data, which is a NumPy array or can become one, such as dask's."""
        volume = np.asarray(
            data[tuple(slice(None) if position is None else position for position in self.index)]
        )
        order = np.argsort(np.argsort(self.axes))
        return volume.transpose(tuple(int(axis) for axis in order))

    def with_layer_axes(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Return `volume` (Z, Y, X) with all axes of the array in their order, those with a position of length one."""
        ordered = volume.transpose(tuple(int(axis) for axis in np.argsort(self.axes)))
        return ordered[tuple(slice(None) if position is None else None for position in self.index)]

    def __str__(self) -> str:
        text = " x ".join(str(size) for size in self.shape) + " voxels (z, y, x)"
        return ", ".join((text, *self.slider_positions))


@dataclass(frozen=True)
class TimePoints:
    """The volumes of a layer along one further axis, which is time as a rule.

    Attributes
    ----------
    axis
        Of the layer's array.
    label
        Its name, for a person.
    regions
        One for each position, in order.
    """

    axis: int
    label: str
    regions: tuple[LayerRegion, ...]

    def __str__(self) -> str:
        first = self.regions[0]
        text = " x ".join(str(size) for size in first.shape) + " voxels (z, y, x)"
        others = [one for one in first.slider_positions if not one.startswith(f"{self.label} at ")]
        return ", ".join((text, f"{self.label} at 0 to {len(self.regions) - 1}", *others))


def time_points(layer: Image, region: LayerRegion) -> TimePoints | None:
    """Return the volumes along the axis named t or time, or along the only further axis that is longer than one.

    Parameters
    ----------
    layer
        The layer.
    region
        From `region_at_sliders`: on any further axes the sliders' positions hold for all of them.

    Returns
    -------
    TimePoints or None
        None where there is no such axis, or several and none of these names.
    """
    shape = (layer.data[0] if layer.multiscale else layer.data).shape
    further = [axis for axis, size in enumerate(shape) if size > 1 and axis not in region.axes]
    named = [axis for axis in further if str(layer.axis_labels[axis]).lower() in ("t", "time")]
    if len(named or further) != 1:
        return None
    [axis] = named or further
    label = _label(layer.axis_labels, axis)
    place, regions = further.index(axis), []
    for position in range(shape[axis]):
        index, texts = list(region.index), list(region.slider_positions)
        index[axis], texts[place] = position, f"{label} at {position} of 0 to {shape[axis] - 1}"
        regions.append(replace(region, index=tuple(index), slider_positions=tuple(texts)))
    return TimePoints(axis, label, tuple(regions))


def region_at_sliders(layer: Image, point: Sequence[float]) -> LayerRegion:
    """Return the region of an image layer at the positions of the viewer's sliders.

    Parameters
    ----------
    layer
        Grey values, at least three of its axes longer than one. Axes named z, y and x are used as such; else the last
        three longer than one are.
    point
        World coordinates of the viewer's sliders, at least one for each axis of the layer.

    Raises
    ------
    ImageError
        If it is a colour image or has no three axes, or a slider stands outside of it.
    """
    name = f"the layer {layer.name!r}"
    if layer.rgb:
        raise ImageError(
            f"{name} is a colour image: transmitted light is one channel; split it and choose one"
        )
    shape = tuple(int(size) for size in (layer.data[0] if layer.multiscale else layer.data).shape)
    longer = [axis for axis, size in enumerate(shape) if size > 1]
    if len(longer) < 3:
        raise ImageError(
            f"{name} has the shape {shape}: a stack is needed, with three axes (z, y, x) longer than one"
        )
    z, y, x = _named_axes(layer.axis_labels, longer) or longer[-3:]
    positions = layer.world_to_data(tuple(point)[-len(shape) :])
    index: list[int | None] = [0] * len(shape)
    slider_positions = []
    for axis in range(len(shape)):
        if axis in (z, y, x):
            index[axis] = None
        elif shape[axis] > 1:
            position = round(float(positions[axis]))
            label = _label(layer.axis_labels, axis)
            if not 0 <= position < shape[axis]:
                raise ImageError(
                    f"the slider of {label} stands outside of {name}, which has {shape[axis]} there; move it"
                )
            index[axis] = position
            slider_positions.append(f"{label} at {position} of 0 to {shape[axis] - 1}")
    return LayerRegion((shape[z], shape[y], shape[x]), (z, y, x), tuple(index), tuple(slider_positions))


def _named_axes(labels: Sequence[str], longer: Sequence[int]) -> list[int] | None:
    """Return the axes named z, y and x, if each is there once and longer than one."""
    names = [str(label).lower() for label in labels]
    if any(names.count(name) != 1 for name in "zyx"):
        return None
    axes = [names.index(name) for name in "zyx"]
    return axes if all(axis in longer for axis in axes) else None


def _label(labels: Sequence[str], axis: int) -> str:
    """Return an axis' name; napari numbers those that have none from the end ("-3", or "axis -3")."""
    label = str(labels[axis]).removeprefix("axis ")
    return f"axis {axis}" if label.lstrip("-").isdecimal() else f"axis {label}"


def stated_voxel_size(layer: Image, region: LayerRegion) -> tuple[float, float, float] | None:
    """Return the voxel size in um (z, y, x) that a layer states, or None.

    Units of length are converted. Most readers set a scale in um and no unit, so that any other scale than 1 is
    read as um; a scale of 1 without unit is napari's default, where no size is stated.
    """
    scale = [abs(float(layer.scale[axis])) for axis in region.axes]
    units = [layer.units[axis] for axis in region.axes]
    if all(unit.is_compatible_with("um") for unit in units):
        sizes = [size * float((1 * unit).to("um").magnitude) for size, unit in zip(scale, units, strict=True)]
    elif all(size == 1 for size in scale):
        return None
    else:
        sizes = scale
    return sizes[0], sizes[1], sizes[2]
