"""Region of an image layer to predict, whatever its axes, and the place of its prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import offscreen
import pytest

offscreen.application()

from napari.layers import Image  # noqa: E402 - after what it needs was seen to

from repmode_cl.errors import ImageError  # noqa: E402
from repmode_cl.napari.layer_region import region_at_sliders, stated_voxel_size  # noqa: E402

ANY = np.random.default_rng(0)


def image(*shape: int, **settings: Any) -> Image:
    return Image(ANY.random(shape), name="cells", **settings)


@pytest.mark.parametrize(
    ("shape", "labels", "point", "expected", "text"),
    [
        ((4, 5, 6), None, (0, 0, 0), lambda d: d, "4 x 5 x 6 voxels (z, y, x)"),
        ((1, 4, 5, 6), None, (0, 0, 0, 0), lambda d: d[0], "4 x 5 x 6 voxels (z, y, x)"),
        ((4, 1, 5, 6), None, (0, 0, 0, 0), lambda d: d[:, 0], "4 x 5 x 6 voxels (z, y, x)"),
        ((3, 4, 5, 6), None, (1.6, 0, 0, 0), lambda d: d[2], "4 x 5 x 6 voxels (z, y, x), axis 0 at 2 of 0 to 2"),
        # The viewer may have more axes than the layer: they are counted from the last.
        ((3, 4, 5, 6), "tzyx", (9, 1, 0, 0, 0), lambda d: d[1], "4 x 5 x 6 voxels (z, y, x), axis t at 1 of 0 to 2"),
        (
            (4, 3, 5, 6), "zcyx", (0, 2, 0, 0), lambda d: d[:, 2],
            "4 x 5 x 6 voxels (z, y, x), axis c at 2 of 0 to 2",
        ),
        ((6, 5, 4), "xyz", (0, 0, 0), lambda d: d.transpose(2, 1, 0), "4 x 5 x 6 voxels (z, y, x)"),
        ((5, 4, 6), "YZX", (0, 0, 0), lambda d: d.transpose(1, 0, 2), "4 x 5 x 6 voxels (z, y, x)"),
        ((6, 4, 5), "xzy", (0, 0, 0), lambda d: d.transpose(1, 2, 0), "4 x 5 x 6 voxels (z, y, x)"),
        # Not all three are named: the last three longer than one.
        ((4, 5, 6), ("z", "y", "u"), (0, 0, 0), lambda d: d, "4 x 5 x 6 voxels (z, y, x)"),
        ((4, 5, 6, 1), "zyxc", (0, 0, 0, 0), lambda d: d[..., 0], "4 x 5 x 6 voxels (z, y, x)"),
    ],
)  # fmt: skip
def test_a_volume_of_any_axes(shape: Any, labels: Any, point: Any, expected: Any, text: str) -> None:
    layer = image(*shape, axis_labels=None if labels is None else tuple(labels))
    region = region_at_sliders(layer, point)
    volume = region.read(layer.data)
    np.testing.assert_array_equal(volume, expected(layer.data))
    assert volume.shape == region.shape
    assert str(region) == text
    # Where it came from, the same values.
    back = region.with_layer_axes(volume)
    assert back.ndim == layer.ndim
    box = tuple(slice(None) if at is None else slice(at, at + 1) for at in region.index)
    np.testing.assert_array_equal(back, layer.data[box])


def test_sliders_are_read_in_the_layers_own_coordinates() -> None:
    layer = image(3, 4, 5, 6, scale=(10, 1, 1, 1), translate=(100, 0, 0, 0))
    assert region_at_sliders(layer, (120, 0, 0, 0)).index[0] == 2
    with pytest.raises(
        ImageError, match=r"slider of axis 0 stands outside of the layer 'cells', which has 3"
    ):
        region_at_sliders(layer, (0, 0, 0, 0))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: image(5, 6), r"'cells' has the shape \(5, 6\): a stack is needed"),
        (lambda: image(1, 5, 6), r"\(1, 5, 6\): a stack is needed, with three axes"),
        (lambda: image(1, 1, 4, 1, 6), "a stack is needed"),
        (lambda: image(4, 5, 6, 3, rgb=True), "is a colour image: transmitted light is one channel"),
    ],
)
def test_layers_without_a_volume_are_refused(layer: Any, message: str) -> None:
    image_layer = layer()
    with pytest.raises(ImageError, match=message):
        region_at_sliders(image_layer, (0,) * image_layer.ndim)


def test_only_the_chosen_region_is_computed() -> None:
    import dask.array

    seen = []

    def block(part: Any, block_info: Any = None) -> Any:
        seen.append(block_info[0]["chunk-location"][0])
        return part

    data = dask.array.ones((5, 4, 5, 6), chunks=(1, 4, 5, 6)).map_blocks(block, dtype=float, meta=np.empty(0))
    layer = Image(data, multiscale=False, contrast_limits=(0, 1))
    chosen = region_at_sliders(layer, (3, 0, 0, 0))
    seen.clear()
    assert chosen.read(data).shape == (4, 5, 6)
    assert set(seen) == {3}


def test_the_finest_level_of_a_pyramid_counts() -> None:
    layer = Image([ANY.random((4, 16, 16)), ANY.random((4, 8, 8))], multiscale=True)
    assert region_at_sliders(layer, (0, 0, 0)).shape == (4, 16, 16)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, None),  # no size is stated
        ({"scale": (0.29, 0.1, 0.2)}, (0.29, 0.1, 0.2)),  # most readers: um, and no unit
        ({"scale": (0.29, -0.1, 0.2)}, (0.29, 0.1, 0.2)),  # turned over
        ({"scale": (290, 100, 0.2), "units": ("nm", "nm", "um")}, (0.29, 0.1, 0.2)),
        ({"scale": (1, 1, 1), "units": ("um",) * 3}, (1.0, 1.0, 1.0)),  # stated with its unit
        ({"scale": (0.29, 0.1, 0.2), "units": ("s", "um", "um")}, (0.29, 0.1, 0.2)),
        ({"scale": (0.2, 0.1, 0.29), "axis_labels": ("x", "y", "z")}, (0.29, 0.1, 0.2)),
    ],
)
def test_voxel_sizes_that_layers_state(settings: Any, size: Any) -> None:
    layer = image(4, 5, 6, **settings)
    stated = stated_voxel_size(layer, region_at_sliders(layer, (0, 0, 0)))
    assert stated == (None if size is None else pytest.approx(size))
