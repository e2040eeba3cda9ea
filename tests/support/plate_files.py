"""Plates of OME-Zarr as microscopes' software writes them, made with zarr and ome-zarr's own layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

#: Two rows and three columns, two fields each.
WELLS = tuple(f"{row}/{column}" for row in "AB" for column in "123")
FIELDS = tuple(f"{well}/{field}" for well in WELLS for field in "01")


def make_plate(path: Path, shape: tuple[int, ...] = (3, 2, 5, 8, 8), version: str = "0.4") -> Path:
    """Write a plate of 2 x 3 wells with 2 fields each, whose images are (t, c, z, y, x)."""
    kind = 2 if version == "0.4" else 3

    def put(group: zarr.Group, attributes: dict) -> None:
        group.attrs.put(attributes if kind == 2 else {"ome": {"version": version, **attributes}})

    root = zarr.open_group(str(path), mode="w", zarr_format=kind)
    put(root, {
        "plate": {
            "version": version,
            "name": "screen",
            "rows": [{"name": name} for name in "AB"],
            "columns": [{"name": name} for name in "123"],
            "wells": [
                {"path": well, "rowIndex": "AB".index(well[0]), "columnIndex": "123".index(well[2])}
                for well in WELLS
            ],
            "field_count": 2,
            "acquisitions": [{"id": 0, "name": "first"}],
        }
    })  # fmt: skip
    axes = [
        {"name": "t", "type": "time"},
        {"name": "c", "type": "channel"},
        *({"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"),
    ]
    scale = {"type": "scale", "scale": [1.0, 1.0, 0.5, 0.3, 0.3]}
    for number, field in enumerate(FIELDS):
        well = root.require_group(field.rpartition("/")[0])
        put(well, {"well": {"images": [{"path": "0", "acquisition": 0}, {"path": "1", "acquisition": 0}]}})
        image = root.create_group(field)
        array = image.create_array("0", shape=shape, chunks=(1, 1, *shape[2:]), dtype="uint16")
        array[:] = np.random.default_rng(number).integers(0, 3000, shape).astype(np.uint16)
        datasets = [{"path": "0", "coordinateTransformations": [scale]}]
        put(image, {"multiscales": [{"version": version, "name": field, "axes": axes, "datasets": datasets}]})
    return path
