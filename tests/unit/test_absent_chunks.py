"""Images with missing chunks: whatever prepares them for training says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from repmode_cl.config import DataConfig
from repmode_cl.data.pipeline import prepared_samples
from repmode_cl.scenarios import structure_stream

SHAPE = (8, 16, 16)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Write three fields; their signals are Zarr images in chunks of two planes."""
    rng = np.random.default_rng(0)
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    scale = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [0.5, 0.3, 0.3]}]}
    lines = ["structure,signal,target,split"]
    for number, split in enumerate(("train", "val", "test")):
        root = zarr.open_group(tmp_path / f"light{number}.zarr", mode="w")
        signal, target = rng.integers(1, 3000, (2, *SHAPE)).astype(np.uint16)
        root.create_array("0", data=signal, chunks=(2, *SHAPE[1:]))
        root.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [scale]}]}
        tifffile.imwrite(
            tmp_path / f"dna{number}.tif", target, photometric="minisblack", metadata={"axes": "ZYX"}
        )
        lines.append(f"dna,light{number}.zarr,dna{number}.tif,{split}")
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_missing_chunks_of_the_rows_that_are_prepared_are_noted(
    manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = DataConfig(manifest=str(manifest))
    assert not any("chunks" in note for note in prepared_samples(data, tmp_path / "whole")[1])
    (manifest.parent / "light1.zarr" / "0" / "c" / "3" / "0" / "0").unlink()
    _, notes = prepared_samples(data, tmp_path / "holes")
    [note] = [note for note in notes if "chunks" in note]
    assert note.startswith(f"{manifest.parent / 'light1.zarr'}: 1 of 4 chunks are missing, and read as blank")
    structure_stream(manifest, ["dna"], cache=tmp_path / "stream", patch=(4, 8, 8))
    assert note in [record.getMessage() for record in caplog.records]
