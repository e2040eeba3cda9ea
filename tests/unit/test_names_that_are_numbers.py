"""Channels and scenes that are named by numbers: what a user types is a name first, then a number from 0."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile

from repmode_cl.config.schema import PreprocessingConfig
from repmode_cl.data.importers.channels import import_channels
from repmode_cl.data.importers.common import write_imported
from repmode_cl.data.manifest import Manifest, Row, read_manifest, write_manifest
from repmode_cl.data.preprocessing.prepare import prepare
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.readers import open_image
from repmode_cl.data.readers.region import find_channel, number_of
from repmode_cl.data.validation.rows import InspectedRow, inspect_rows
from repmode_cl.errors import ImageError

SHAPE = (4, 8, 8)


def values(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3000, (count, *SHAPE)).astype(np.uint16)


def write_channels(path: Path, names: Sequence[str]) -> Path:
    metadata = {"axes": "CZYX", "Channel": {"Name": list(names)}}
    tifffile.imwrite(path, values(len(names)), photometric="minisblack", metadata=metadata)
    return path


def write_scenes(path: Path, names: Sequence[str], channels: int = 2) -> Path:
    """Write a file whose scene number n holds ``values(...) + 100 * n``."""
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for number, name in enumerate(names):
            metadata = {"axes": "CZYX", "Name": name, "Channel": {"Name": ["light", "dna"][:channels]}}
            tiff.write(values(channels) + 100 * number, photometric="minisblack", metadata=metadata)
    return path


def inspected(row: Row) -> InspectedRow:
    [one] = inspect_rows([row], depth=1, voxel_size=None, recipe=PreprocessingRecipe())
    return one


@pytest.mark.parametrize(
    ("names", "text", "number"),
    [
        (("1", "2", "3"), "1", 0),
        (("1", "2", "3"), "3", 2),
        (("1", "2", "3"), "0", 0),
        (("101", "102"), "1", 1),
        (("01", "02"), "01", 0),
        (("1", "1"), "1", 1),
        (("1", "x", "1"), "1", None),
        (("1", "x", "1"), "2", 2),
        (("a", "b"), "2", None),
        (("a", "b"), "-1", None),
    ],
)
def test_a_text_is_a_name_first(names: tuple[str, ...], text: str, number: int | None) -> None:
    assert number_of(text, names) == number


def test_a_number_stays_a_number() -> None:
    assert [find_channel(number, ("1", "2", "3"), "a") for number in (0, 1, 2, 3)] == [0, 1, 2, 2]
    with pytest.raises(ImageError, match=r"several channels are named '1'.*give the number instead"):
        find_channel("1", ("1", "x", "1"), "a")


def test_scenes(tmp_path: Path) -> None:
    far = write_scenes(tmp_path / "far.ome.tif", ("101", "102"))
    for scene, number in (("101", 0), (101, 0), ("102", 1), ("0", 0), (1, 1)):
        with open_image(far, scene=scene) as image:
            assert image.scene_index(scene) == number
            assert image.read(0)[0, 0, 0] == values(1)[0, 0, 0, 0] + 100 * number
    with pytest.raises(ImageError, match="there is no scene 103"):
        open_image(far, scene="103")
    near = write_scenes(tmp_path / "near.ome.tif", ("1", "2"))
    for scene, number in (("1", 0), ("2", 1), (0, 0), (1, 1)):
        with open_image(near, scene=scene) as image:
            assert image.read(0)[0, 0, 0] == values(1)[0, 0, 0, 0] + 100 * number
    alike = write_scenes(tmp_path / "alike.ome.tif", ("1", "x", "1"))
    with pytest.raises(ImageError, match="several scenes are named '1'; give the number instead"):
        open_image(alike, scene="1")


def test_the_cells_of_a_manifest_are_names_first(tmp_path: Path) -> None:
    path = write_channels(tmp_path / "c.ome.tif", ("1", "2", "3"))
    table = tmp_path / "m.csv"
    table.write_text(
        f"structure,signal,signal_channel,target,target_channel\ndna,{path.name},1,{path.name},2\n"
    )
    found = read_manifest(table)
    images = inspected(found.rows[0]).images
    assert (images["signal"].channel, images["target"].channel) == (0, 1)
    [sample] = prepare(
        found,
        {2: "train"},
        PreprocessingConfig(voxel_size=None, storage="float32"),
        tmp_path / "cache",
    )
    light = values(3)[0].astype(np.float64)
    np.testing.assert_allclose(np.load(sample.signal), (light - light.mean()) / light.std(), atol=1e-5)


@pytest.mark.parametrize(
    ("names", "cell", "number"),
    [
        (("101", "102"), "101", 0),
        (("101", "102"), "1", 1),
        (("1", "2"), "1", 0),
        (("1", "2"), "2", 1),
        (("01", "02"), "01", 0),
    ],
)
def test_the_scenes_of_a_manifest_are_names_first(
    tmp_path: Path, names: tuple[str, ...], cell: str, number: int
) -> None:
    path = write_scenes(tmp_path / "s.ome.tif", names)
    table = tmp_path / "m.csv"
    table.write_text(
        "structure,signal,signal_channel,target,target_channel,scene\n"
        f"dna,{path.name},light,{path.name},dna,{cell}\n"
    )
    found = read_manifest(table)
    one = inspected(found.rows[0])
    assert one.problems == []
    assert one.images["signal"].header.scene == number
    [sample] = prepare(
        found, {2: "train"}, PreprocessingConfig(voxel_size=None, storage="float32"), tmp_path / "cache"
    )
    assert f"/s{number}" in sample.source if number else "/s" not in sample.source


def test_rows_keep_the_text_that_trainings_are_recognised_by(tmp_path: Path) -> None:
    row = Row(2, "dna", tmp_path / "a.tif", 0, tmp_path / "a.tif", 1, scene=3)
    write_manifest(tmp_path / "m.csv", [row])
    assert read_manifest(tmp_path / "m.csv") == Manifest(tmp_path / "m.csv", (row,))


def test_imported_cells_are_read_back_as_the_channels_that_were_meant(tmp_path: Path) -> None:
    path = write_channels(tmp_path / "c.ome.tif", ("1", "2", "3"))
    for signal, target, numbers in (("1", "2", (0, 1)), ("0", "3", (0, 2)), (0, "2", (0, 1))):
        found = import_channels([path], signal=signal, targets={"dna": target})
        write_imported(tmp_path / "m.csv", found, overwrite=True)
        images = inspected(read_manifest(tmp_path / "m.csv").rows[0]).images
        assert (images["signal"].channel, images["target"].channel) == numbers
    wavelengths = write_channels(tmp_path / "w.ome.tif", ("405", "561"))
    found = import_channels([wavelengths], signal="561", targets={"dna": "405"})
    assert [(row.signal_channel, row.target_channel) for row in found.rows] == [("561", "405")]
    unclear = write_channels(tmp_path / "u.ome.tif", ("1", "x", "x"))
    [skipped] = import_channels([unclear], signal=1, targets={"dna": "0"}).skipped
    assert "channel 1 'x' cannot be named in a manifest" in skipped.reason


def test_imported_scenes_are_read_back_as_the_scenes_that_were_meant(tmp_path: Path) -> None:
    path = write_scenes(tmp_path / "s.ome.tif", ("1", "2"))
    found = import_channels([path], signal="light", targets={"dna": "dna"}, scenes="all")
    write_imported(tmp_path / "m.csv", found)
    rows = read_manifest(tmp_path / "m.csv").rows
    assert [inspected(row).images["signal"].header.scene for row in rows] == [0, 1]


def test_two_targets_that_mean_one_channel_are_refused(tmp_path: Path) -> None:
    path = write_channels(tmp_path / "c.ome.tif", ("light", "hoechst", "gfp"))
    found = import_channels([path], signal="light", targets={"dna": "hoechst", "nucleolus": "1"})
    assert found.rows == []
    [skipped] = found.skipped
    assert "the targets dna=hoechst and nucleolus=1 are one channel (1 'hoechst')" in skipped.reason


@pytest.mark.parametrize(
    ("choice", "rows"), [("all", 1), ("0", 1), ("0,1", 1), ("1", 0), ("foo", 0), ("", 0), ("0,x", 0)]
)
@pytest.mark.parametrize("option", ["scenes", "times"])
def test_a_choice_is_read_where_a_file_holds_one(tmp_path: Path, option: str, choice: str, rows: int) -> None:
    path = write_channels(tmp_path / "c.ome.tif", ("light", "dna"))
    given = {"scenes": choice} if option == "scenes" else {"times": choice}
    found = import_channels([path], signal="light", targets={"dna": "dna"}, **given)
    assert len(found.rows) == rows
    if not rows:
        [skipped] = found.skipped
        what = "scene" if option == "scenes" else "time point"
        assert f"--{'scene' if option == 'scenes' else 't'} {choice!r}: give all, or 0" in skipped.reason
        assert f"the file holds 1 {what}" in skipped.reason
