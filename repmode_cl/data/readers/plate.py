"""Plates of OME-Zarr (HCS layout, 0.4 and 0.5): their wells and fields, each of which is an image.

Only JSON is read, so that a plate of thousands of fields is listed in a moment and without zarr.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repmode_cl.errors import ImageError

__all__ = ["Plate", "Well", "Field", "read_plate"]

# The format allows letters and digits; a name from a file must never lead out of its folder.
_WELL = re.compile(r"[A-Za-z0-9]+/[A-Za-z0-9]+")
_FIELD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Field:
    """A field of view of a well: the name of its folder, and the number of its acquisition if it has one."""

    name: str
    acquisition: int | None = None


@dataclass(frozen=True)
class Well:
    """A well: ``row/column``, the numbers of both among the plate's, and its fields."""

    path: str
    row: int
    column: int
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Plate:
    """A plate.

    Attributes
    ----------
    path
        Its folder.
    name
        As the file names it.
    rows, columns
        Their names.
    wells
        Those that were imaged.
    acquisitions
        Descriptions of its acquisitions, as the file has them.
    """

    path: Path
    name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    wells: tuple[Well, ...]
    acquisitions: tuple[Mapping[str, Any], ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """``row/column/field`` of every field, well by well."""
        return tuple(f"{well.path}/{field.name}" for well in self.wells for field in well.fields)


def read_plate(path: Path) -> Plate | None:
    """Return the layout of a plate; None of anything else.

    Parameters
    ----------
    path
        A folder.

    Raises
    ------
    ImageError
        If it says that it is a plate, and its metadata or those of a well are missing or damaged.
    """
    attributes = _attributes(path)
    if attributes is None or not isinstance(attributes.get("plate"), Mapping):
        return None
    try:
        plate = attributes["plate"]
        rows = tuple(str(row["name"]) for row in plate["rows"])
        columns = tuple(str(column["name"]) for column in plate["columns"])
        wells = tuple(_well(path, entry, rows, columns) for entry in plate["wells"])
        acquisitions = tuple(dict(entry) for entry in plate.get("acquisitions") or ())
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ImageError(f"{path}: the metadata of this plate are damaged ({error!r})") from error
    if not any(well.fields for well in wells):
        raise ImageError(f"{path}: a plate without an image")
    return Plate(path, str(plate.get("name") or path.name), rows, columns, wells, acquisitions)


def _well(plate: Path, entry: Mapping[str, Any], rows: tuple[str, ...], columns: tuple[str, ...]) -> Well:
    name = str(entry["path"])
    if not _WELL.fullmatch(name):
        raise ValueError(f"well {name!r} is not named row/column")
    row, column = name.split("/")
    attributes = _attributes(plate / name)
    if attributes is None or not isinstance(attributes.get("well"), Mapping):
        raise ImageError(
            f"{plate}: the well {name} is listed and not there; copy the plate again, or give one field, such as "
            f"{plate}/{name}/0"
        )
    fields = []
    for image in attributes["well"]["images"]:
        field = str(image["path"])
        if not _FIELD.fullmatch(field):
            raise ValueError(f"field {field!r} of the well {name} is no plain name")
        acquisition = image.get("acquisition")
        fields.append(Field(field, None if acquisition is None else int(acquisition)))
    return Well(name, rows.index(row), columns.index(column), tuple(fields))


def _attributes(folder: Path) -> Mapping[str, Any] | None:
    """Return the attributes of OME-Zarr of a group of format 3 or 2; None where there is no group."""
    for file in ("zarr.json", ".zattrs"):
        try:
            value = json.loads((folder / file).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            raise ImageError(f"{folder / file}: cannot be read ({error})") from error
        attributes = value.get("attributes") if file == "zarr.json" and isinstance(value, dict) else value
        if not isinstance(attributes, Mapping):
            return None
        ome = attributes.get("ome")
        return ome if isinstance(ome, Mapping) else attributes
    return None
