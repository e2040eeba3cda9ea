"""Regions of one image that lie too near in different splits are refused wherever something would be trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from tiny_addition import added, dry_run, make_base
from tiny_run import BASE, changed, tiny

from repmode_cl.benchmark import run_benchmark
from repmode_cl.config import StreamConfig
from repmode_cl.data.manifest import Row, write_manifest
from repmode_cl.data.readers import Region
from repmode_cl.errors import ManifestError
from repmode_cl.scenarios import structure_stream
from repmode_cl.workflows.compare_structure import compare_structure
from repmode_cl.workflows.train_base import train_base

#: Columns of the field that train; those that test begin some voxels after them. Half a patch is 4.
TRAIN = "0:4,0:16,0:16"
NEAR, FAR = "0:4,0:16,18:34", "0:4,0:16,20:36"
#: Where a stream says what a command would refuse or note.
LOGGER = "repmode_cl.scenarios.stream"


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of one wide field with its targets."""
    folder = tmp_path_factory.mktemp("field")
    rng = np.random.default_rng(0)
    for name in ("light", "nucleolus", *BASE):
        volume = rng.integers(0, 4096, (4, 16, 40)).astype(np.uint16)
        tifffile.imwrite(folder / f"{name}.tif", volume, photometric="minisblack", metadata={"axes": "ZYX"})
    return folder


def manifest_of(field: Path, name: str, **columns: str) -> Path:
    """Write a manifest of regions of the field: by split (train, test), or by group, without a split."""
    rows = []
    for structure in ("nucleolus", *BASE):
        for key, region in columns.items():
            split, group = (key, None) if key in ("train", "test") else (None, key)
            target = field / f"{structure}.tif"
            row = Row(
                0, structure, field / "light.tif", None, target, None, split, group, Region.parse(region)
            )
            rows.append(row)
    write_manifest(field / name, rows)
    return field / name


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


def test_adding_comparing_training_and_a_benchmark_refuse_them(
    field: Path, base: Path, tmp_path: Path
) -> None:
    near = manifest_of(field, "near.csv", train=TRAIN, test=NEAR)
    [problem] = dry_run(base, near).problems
    assert "the region (test) is only 2 voxels from line 2 (train); keep 2, 4, 4 voxels" in str(problem)
    config = changed(tiny(near, tmp_path / "runs"), stream=StreamConfig(base=BASE))
    runs: dict[str, Callable[[], object]] = {
        "add": lambda: added(base, near),
        "compare": lambda: compare_structure(base, "nucleolus", near, out=tmp_path / "compare"),
        "train": lambda: train_base(config, tmp_path / "model"),
        "bench": lambda: run_benchmark(config),
    }
    for run in runs.values():
        with pytest.raises(ManifestError, match=r"the region \(test\) is only 2 voxels from line \d"):
            run()
    assert not (tmp_path / "model").exists()


def test_regions_that_are_far_enough_apart_are_trained_on(field: Path, base: Path) -> None:
    far = manifest_of(field, "far.csv", train=TRAIN, test=FAR)
    assert dry_run(base, far, steps=2).ok
    assert added(base, far, steps=2, stage=True).held_out == "test"


def test_groups_whose_splits_are_decided_are_checked_too(field: Path, base: Path) -> None:
    strips = {f"strip{n}": f"0:4,0:16,{10 * n}:{10 * n + 8}" for n in range(4)}
    manifest = manifest_of(field, "groups.csv", **strips)
    [problem, *_] = dry_run(base, manifest).problems
    assert "the region (" in str(problem)
    with pytest.raises(ManifestError, match=r"is only 2 voxels from line \d"):
        added(base, manifest)


def test_a_stream_of_a_script_warns(field: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, region in (("near", NEAR), ("far", FAR)):
        caplog.clear()
        manifest = manifest_of(field, f"stream_{name}.csv", train=TRAIN, test=region)
        structure_stream(manifest, base=BASE, cache=tmp_path / name, patch=(4, 8, 8))
        warned = [record.getMessage() for record in caplog.records if record.name == LOGGER]
        near = [text for text in warned if "the region (test) is only 2 voxels from line 2" in text]
        assert len(near) == (name == "near")
