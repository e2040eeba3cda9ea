"""Import of single cells in mitosis: ten tagged structures, each predicted from a dye of the same cell.

There is no transmitted light in these images: the input is the fluorescence of a membrane or a DNA dye. Each file holds
one cell in one of seven stages; stages that validate or test are not trained on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from repmode_cl.data.importers.common import ImportedRows, Skipped, listed_names
from repmode_cl.data.manifest import Row
from repmode_cl.data.readers import Region, open_image
from repmode_cl.errors import ImageError, ManifestError
from repmode_cl.utils.progress import track

__all__ = ["STAGES", "TAGGED", "import_mitotic"]

#: Structure by tagged gene.
TAGGED: Mapping[str, str] = {
    "ACTB": "actin_filament",
    "ACTN1": "alpha_actinin",
    "DSP": "desmosome",
    "FBL": "nucleolus",
    "LMNB1": "nuclear_envelope",
    "SEC61B": "endoplasmic_reticulum",
    "ST6GAL1": "golgi_apparatus",
    "TJP1": "tight_junction",
    "TOMM20": "mitochondria",
    "TUBA1B": "microtubule",
}
#: Stages of mitosis, as the files number them.
STAGES = range(1, 8)

#: Channel of each dye, of the structure, and of the mask of the cell.
_DYES = {"membrane": 0, "dna": 1}
_STRUCTURE, _MASK = 2, 3
_CHANNELS = 4
#: Voxels around the cell that a row's region takes in.
_MARGIN = 4
_NAME = re.compile(r"(?P<gene>[A-Z0-9]+)_M(?P<stage>\d+)\.ome\.tif")


def import_mitotic(
    folder: str | Path,
    *,
    dye: Literal["membrane", "dna"] = "membrane",
    val_stages: Collection[int] = (5,),
    test_stages: Collection[int] = (6, 7),
    voxel_size: tuple[float, float, float] | None = None,
) -> ImportedRows:
    """Return a row for each cell; masks are read, to cut each row's region to its cell.

    Parameters
    ----------
    folder
        Holds files such as ``ACTB_M1.ome.tif``: tagged gene and stage; four channels: membrane dye, DNA dye, structure,
        and mask of the cell.
    dye
        What the structures are predicted from.
    val_stages, test_stages
        Stages that validate (none: empty) and that test; the others train.
    voxel_size
        (z, y, x) in um, written into every row; None takes what the files say.

    Returns
    -------
    ImportedRows
        `skipped` holds files that cannot be read, and stages of a structure that are missing.

    Raises
    ------
    ManifestError
        If there is no such folder or no such file, a stage is unknown or in both, or none is left to train or to test.
    """
    folder = Path(folder)
    splits = _splits(set(val_stages), set(test_stages))
    if not folder.is_dir():
        raise ManifestError(f"{folder}: there is no such folder")
    imported = ImportedRows()
    cells: dict[tuple[str, int], Path] = {}
    others: list[str] = []
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match is None:
            others.append(path.name)
        elif match["gene"] not in TAGGED or int(match["stage"]) not in STAGES:
            known = f"{', '.join(TAGGED)} and stages {STAGES.start} to {STAGES.stop - 1}"
            imported.skipped.append(Skipped(str(path), f"gene or stage is unknown; known are {known}"))
        else:
            cells[match["gene"], int(match["stage"])] = path
    if others:
        imported.notes.append(f"{folder}: not taken as images: {listed_names(others, 'file')}")
    if not cells:
        raise ManifestError(f"{folder}: there is no file with a name such as ACTB_M1.ome.tif")
    imported.notes += [
        f"{gene}: structure {name}" for gene, name in TAGGED.items() if any(gene == one for one, _ in cells)
    ]
    imported.skipped += [
        Skipped(str(folder / f"{gene}_M{stage}.ome.tif"), "there is no such file")
        for gene in TAGGED
        for stage in STAGES
        if (gene, stage) not in cells
    ]
    for (gene, stage), path in track(sorted(cells.items()), "reading masks", len(cells)):
        try:
            region = _cell_region(path)
        except ImageError as error:
            imported.skipped.append(Skipped.of(path, error))
            continue
        imported.rows.append(
            Row(
                0, TAGGED[gene], path, _DYES[dye], path, _STRUCTURE, splits[stage],
                region=region, mask=path, mask_channel=_MASK, voxel_size=voxel_size,
            )
        )  # fmt: skip
    return imported


def _splits(validating: set[int], testing: set[int]) -> dict[int, str]:
    """Return the split of each stage.

    Raises
    ------
    ManifestError
        If a stage is unknown or in both, or if nothing is left to train or to test.
    """
    known = f"{STAGES.start} to {STAGES.stop - 1}"
    if not testing or not testing < set(STAGES):
        raise ManifestError(f"stages that test {sorted(testing)}: give some of {known}, not all")
    if not validating < set(STAGES):
        raise ManifestError(f"stages that validate {sorted(validating)}: give some of {known}, or none")
    if both := sorted(validating & testing):
        raise ManifestError(f"stage {both[0]} is to validate and to test: give each stage one of the two")
    if validating | testing == set(STAGES):
        raise ManifestError(
            f"stages that validate {sorted(validating)} and test {sorted(testing)}: no stage is left to train"
        )
    held = dict.fromkeys(validating, "val") | dict.fromkeys(testing, "test")
    return {stage: held.get(stage, "train") for stage in STAGES}


def _cell_region(path: Path) -> Region:
    """Return the box of the cell, with a margin.

    Raises
    ------
    ImageError
        If the file cannot be read, has other channels, or an empty mask.
    """
    with open_image(path) as image:
        if len(image.channel_names) != _CHANNELS:
            raise ImageError(
                f"{path}: {len(image.channel_names)} channels; needed are four: membrane dye, DNA dye, structure, mask"
            )
        mask = np.asarray(image.read(_MASK)) != 0
    if not mask.any():
        raise ImageError(f"{path}: the mask of the cell (channel {_MASK}) is empty")
    spans = []
    for axis, size in enumerate(mask.shape):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        spans.append((max(0, int(inside[0]) - _MARGIN), min(size, int(inside[-1]) + 1 + _MARGIN)))
    return Region(*spans)
