"""Images with an axis of time, and plates, made of predictions that are whole by themselves.

Nothing is under its final name before it is whole. Until then the parts lie in a folder ``<output>.parts``; whatever
instant a process dies at, the same call finds all that was predicted there.
"""

from __future__ import annotations

import dataclasses
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from repmode_cl.data.readers.plate import Plate, Well
from repmode_cl.errors import RepmodeError
from repmode_cl.inference.identity import stored_uuid
from repmode_cl.inference.positions import parts_folder
from repmode_cl.inference.writers import check_suffix, move_into_place, remove_path, write_image
from repmode_cl.inference.writers.image_metadata import NAMESPACE, ImageMetadata, software
from repmode_cl.inference.writers.predicted_zarr import PredictedZarr
from repmode_cl.inference.writers.pyramid import Pyramid
from repmode_cl.utils.atomic_files import write_json

__all__ = ["combined_uuid", "write_time_series", "write_plate", "take_plate_apart"]

_VERSION = "0.5"


def combined_uuid(uuids: Sequence[str]) -> str:
    """Return the UUID of an output that is made of others: the same for the same parts in the same order."""
    return f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, chr(10).join(uuids))}"


def write_time_series(output: Path, parts: Sequence[Path]) -> None:
    """Write one image with an axis of time, put it in place, and remove its parts.

    Parameters
    ----------
    output
        OME-TIFF or OME-Zarr.
    parts
        Predicted OME-Zarr folders in the order of time; all in `parts_folder` of `output`.

    Raises
    ------
    RepmodeError
        If a part is damaged, or two are of different sizes.
    """
    images = [PredictedZarr(part) for part in parts]
    metadata = _of_all_times(output, images)
    folder = parts_folder(output)
    whole = output.with_name(f"{output.name}.part")
    with ExitStack() as stack:
        pyramids = [
            stack.enter_context(
                closing(Pyramid(image.channel(c), metadata.dtype, None, folder / f"level-{t}-{c}"))
            )
            for t, image in enumerate(images)
            for c in range(len(metadata.channels))
        ]
        write_image(whole, check_suffix(output), metadata, pyramids)
    move_into_place(whole, output, folder / "replaced")
    shutil.rmtree(folder)


def _of_all_times(output: Path, images: Sequence[PredictedZarr]) -> ImageMetadata:
    """Return the metadata of an image of all time points; facts that differ between them are listed in order."""
    first = images[0].metadata
    for image in images:
        one = image.metadata
        if (one.shape, one.dtype, len(one.channels)) != (first.shape, first.dtype, len(first.channels)):
            raise RepmodeError(
                f"{image.path}: has {one.shape} voxels of {one.dtype}, and the first time point {first.shape} of "
                f"{first.dtype}: they make no series; put {{t}} into the name of the output"
            )
    channels = tuple(
        dataclasses.replace(channel, about=_listed([image.metadata.channels[c].about for image in images]))
        for c, channel in enumerate(first.channels)
    )
    name = output.name
    for suffix in (output.suffix, ".ome"):
        name = name.removesuffix(suffix)
    return dataclasses.replace(
        first,
        name=name,
        channels=channels,
        uuid=combined_uuid([str(image.metadata.uuid) for image in images]),
        about=_listed([image.metadata.about for image in images]),
        times=len(images),
    )


def _listed(facts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return facts of several images: one value where all have the same, else all of them in order."""
    result = {}
    for key in dict.fromkeys(key for one in facts for key in one):
        values = [one.get(key, "") for one in facts]
        result[key] = values[0] if len(set(values)) == 1 else ", ".join(map(str, values))
    return result


def write_plate(output: Path, plate: Plate, fields: Mapping[str, Path]) -> None:
    """Make a plate of its predicted fields, put it in place, and remove the folder of parts.

    Parameters
    ----------
    output
        The plate's folder.
    plate
        The plate that was predicted: names of rows, columns, wells, fields and acquisitions are copied.
    fields
        For each field (``row/column/field``) its predicted OME-Zarr folder, which is moved.
    """
    whole = output.with_name(f"{output.name}.part")
    uuids = [str(stored_uuid(path)) for path in fields.values()]
    for field, path in fields.items():
        target = whole / field
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    for row in {well.path.split("/")[0] for well in plate.wells}:
        _write_group(whole / row, {})
    for well in plate.wells:
        _write_group(whole / well.path, {"ome": {"version": _VERSION, "well": {"images": _images(well)}}})
    about = {
        "uuid": combined_uuid(uuids),
        "software": software(),
        "input": plate.path.name,
        "description": f"predicted by repmode-cl from {plate.path.name}",
    }
    layout: dict[str, Any] = {
        "name": plate.name,
        "rows": [{"name": name} for name in plate.rows],
        "columns": [{"name": name} for name in plate.columns],
        "wells": [
            {"path": well.path, "rowIndex": well.row, "columnIndex": well.column} for well in plate.wells
        ],
        "field_count": max(len(well.fields) for well in plate.wells),
    }
    if plate.acquisitions:
        layout["acquisitions"] = list(plate.acquisitions)
    # Last: without it the folder is no plate.
    _write_group(whole, {"ome": {"version": _VERSION, "plate": layout}, NAMESPACE: about})
    folder = parts_folder(output)
    move_into_place(whole, output, folder / "replaced")
    shutil.rmtree(folder)


def take_plate_apart(output: Path, fields: Mapping[str, Path]) -> None:
    """Undo what an interrupted `write_plate` did: its fields are parts again."""
    whole = output.with_name(f"{output.name}.part")
    for field, path in fields.items():
        if (whole / field / "zarr.json").exists() and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            (whole / field).replace(path)
    remove_path(whole)


def _images(well: Well) -> list[dict[str, Any]]:
    return [
        {"path": field.name, **({} if field.acquisition is None else {"acquisition": field.acquisition})}
        for field in well.fields
    ]


def _write_group(folder: Path, attributes: Mapping[str, Any]) -> None:
    write_json(folder / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})
