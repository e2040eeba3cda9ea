"""Simulation of many fields, written as OME-TIFFs with a manifest: the data set that stands in for a real collection.

Fields are computed by a pool of processes and each is written whole or not at all, so an interrupted simulation
resumes where it stopped, and one with the same settings can be extended by more fields.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from repmode_cl.data.manifest import Row, write_manifest
from repmode_cl.data.phantom.field import LIGHT_CHANNEL, SIMULATED_VOXEL, check_request, simulate_field
from repmode_cl.errors import ConfigError
from repmode_cl.structures import TWELVE_STRUCTURES
from repmode_cl.utils.atomic_files import replacing, write_json
from repmode_cl.utils.process_pool import run_jobs, workers_here
from repmode_cl.utils.progress import track

__all__ = ["SIMULATOR_VERSION", "simulate"]

#: Changes whenever the same seed would give other images.
SIMULATOR_VERSION = 2


def simulate(
    out: str | Path,
    *,
    fields: int,
    structures: Sequence[str] = TWELVE_STRUCTURES,
    seed: int = 0,
    shape: Sequence[int] = (32, 128, 128),
    workers: int | None = None,
    voxel_size: Sequence[float] = SIMULATED_VOXEL,
) -> Path:
    """Simulate fields of view and write them with a manifest.

    Writes ``field-0000.ome.tif`` and so on (uint16, channels ``transmitted_light`` and the structures),
    ``simulation.json`` and ``manifest.csv``. Existing fields of the same settings are kept.

    Parameters
    ----------
    out
        Folder to write to; made where it is missing.
    fields
        Number of fields.
    structures
        Structures whose fluorescence is recorded.
    seed
        Seed: the same one gives the same image data for any number of workers and any choice of structures.
    shape
        Voxels (z, y, x) of a field.
    workers
        Processes; None takes one for each processor core, 1 computes in this process.
    voxel_size
        Voxel size in um (z, y, x).

    Returns
    -------
    Path
        The manifest: one row for each field and structure, fields being groups.

    Raises
    ------
    UnknownStructureError, ConfigError
        If the request cannot be simulated, or `out` holds a simulation of other settings, or a manifest or
        fields of no simulation.
    """
    if fields < 1:
        raise ConfigError(f"fields: found {fields}; at least 1 is needed")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers: found {workers}; at least 1 is needed")
    names, size, voxel = check_request(structures, shape, voxel_size, seed)
    out = Path(out)
    _check_settings(
        out,
        {
            "simulator": SIMULATOR_VERSION,
            "seed": seed,
            "structures": list(names),
            "shape": list(size),
            "voxel_size": list(voxel),
        },
    )
    paths = [out / f"field-{index:04d}.ome.tif" for index in range(fields)]
    missing = [index for index, path in enumerate(paths) if not path.exists()]
    jobs = [(paths[index], seed, index, names, size, voxel) for index in missing]
    done = run_jobs(_write_field, jobs, workers or workers_here(), name=lambda job: job[0].name)
    for _ in track(done, "simulating cells", total=len(jobs)):
        pass
    rows = [
        Row(
            number=0,
            structure=name,
            signal=path,
            signal_channel=LIGHT_CHANNEL,
            target=path,
            target_channel=name,
            group=path.name.removesuffix(".ome.tif"),
        )
        for path in paths
        for name in names
    ]
    manifest = out / "manifest.csv"
    write_manifest(manifest, rows)
    return manifest


_Job = tuple[Path, int, int, tuple[str, ...], tuple[int, int, int], tuple[float, float, float]]


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings into `out`, or check that they are those already there."""
    path = out / "simulation.json"
    if not path.exists():
        # Otherwise a manifest would be replaced, and images would count as simulated fields.
        own = [*out.glob("manifest.csv"), *sorted(out.glob("field-*.ome.tif"))]
        if own:
            raise ConfigError(f"{out} holds {own[0].name}, which is of no simulation: choose another folder")
        write_json(path, settings)
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"{path} is not the record of a simulation ({error}): choose another folder"
        ) from error
    if found != settings:
        different = sorted(
            key for key in settings if not isinstance(found, dict) or found.get(key) != settings[key]
        )
        raise ConfigError(
            f"{out} holds a simulation of other settings ({', '.join(different) or 'unknown keys'} differ): "
            "choose another folder, or remove this one"
        )


def _write_field(job: _Job) -> None:
    """Simulate and write one field; runs in a worker."""
    path, seed, index, names, shape, voxel = job
    images = simulate_field(seed, index, names, shape, voxel)
    _write_tiff(path, images, voxel)


def _write_tiff(path: Path, images: dict[str, NDArray[np.uint16]], voxel: tuple[float, float, float]) -> None:
    """Write channels as one OME-TIFF (C, Z, Y, X); the same images give the same bytes."""
    stack = np.stack(list(images.values()))
    # OME-XML carries an identifier that tifffile would draw at random.
    name = uuid.UUID(bytes=hashlib.sha256(stack.tobytes()).digest()[:16])
    with replacing(path) as temporary:
        tifffile.imwrite(
            temporary,
            stack,
            ome=True,
            photometric="minisblack",
            metadata={
                "axes": "CZYX",
                "Channel": {"Name": list(images)},
                "UUID": str(name),
                "PhysicalSizeZ": voxel[0],
                "PhysicalSizeZUnit": "µm",
                "PhysicalSizeY": voxel[1],
                "PhysicalSizeYUnit": "µm",
                "PhysicalSizeX": voxel[2],
                "PhysicalSizeXUnit": "µm",
            },
        )
