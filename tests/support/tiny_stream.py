"""Fields of view of a few voxels whose one signal all structures share: what the tests of streams read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from repmode_cl.data.manifest import Row, write_manifest
from repmode_cl.scenarios import StructureStream, structure_stream

STRUCTURES = ("dna", "cell_membrane", "nucleolus", "mitochondria")
SPLITS = ("train", "train", "val", "test")
SHAPE, PATCH = (4, 12, 12), (4, 8, 8)


@dataclass
class Images:
    """Fields of view whose signal all structures share, and a manifest of them."""

    folder: Path
    manifest: Path

    def stream(
        self, order: Sequence[str] | int | Path | None = None, manifest: Path | None = None, **options: object
    ) -> StructureStream:
        options = {"cache": self.folder / "cache", "patch": PATCH, **options}
        return structure_stream(manifest or self.manifest, order, **options)  # type: ignore[arg-type]

    def subset(self, name: str, rows: Sequence[Row]) -> Path:
        path = self.folder / f"{name}.csv"
        write_manifest(path, rows)
        return path

    def rows(
        self, structures: Sequence[str] = STRUCTURES, splits: Sequence[str | None] = SPLITS
    ) -> list[Row]:
        return [
            Row(
                0,
                name,
                self.folder / f"signal{field}.tif",
                None,
                self.folder / f"{name}{field}.tif",
                None,
                split,
            )
            for name in structures
            for field, split in enumerate(splits)
        ]


def make_images(folder: Path, splits: Sequence[str] = SPLITS) -> Images:
    """Write a field of view for each of `splits`, and a manifest that names them."""
    random = np.random.default_rng(0)
    for field in range(len(splits)):
        for name in ("signal", *STRUCTURES):
            tifffile.imwrite(
                folder / f"{name}{field}.tif",
                random.integers(0, 999, SHAPE).astype(np.uint16),
                photometric="minisblack",
                metadata={"axes": "ZYX"},
            )
    made = Images(folder, folder / "manifest.csv")
    write_manifest(made.manifest, made.rows(splits=splits))
    return made
