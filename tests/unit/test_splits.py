"""Splits: exact counts, one image in one split, and nothing that moves."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from repmode_cl.data.manifest import Manifest, Region, Row
from repmode_cl.data.splits import assign_splits, split_counts
from repmode_cl.errors import ManifestError


def manifest(
    *rows: tuple[str, str, str | None] | tuple[str, str, str | None, Region], **more: str
) -> Manifest:
    """Rows of (structure, file, split, region); files are their own content."""
    return Manifest(
        Path("m.csv"),
        tuple(
            Row(
                number,
                row[0],
                Path(row[1]),
                0,
                Path(row[1]),
                1,
                row[2],
                region=row[3] if len(row) > 3 else None,
                **more,
            )
            for number, row in enumerate(rows, start=2)
        ),
    )


def split(found: Manifest, record: Path | None = None, seed: int = 0, **options: float) -> dict[int, str]:
    return assign_splits(found, seed=seed, record=record, digest=str, **options)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [(1, (0, 0)), (2, (1, 0)), (3, (1, 0)), (4, (1, 1)), (16, (4, 1)), (24, (6, 2)), (40, (10, 3))],
)
def test_counts(groups: int, expected: tuple[int, int]) -> None:
    assert split_counts(groups, 0.25, 0.1) == expected


@given(st.integers(1, 60), st.floats(0.01, 0.99), st.floats(0, 0.99))
def test_something_always_trains(groups: int, test: float, val: float) -> None:
    tests, vals = split_counts(groups, test, val)
    assert tests >= (groups > 1)
    assert groups - tests - vals >= 1
    if groups >= 4 and val:
        assert vals >= 1


def test_structures_that_share_images_share_the_split() -> None:
    rows = [(name, f"{i}.tif", None) for i in range(16) for name in ("dna", "nucleolus", "actin_filament")]
    found = split(manifest(*rows))
    for i in range(16):
        assert len({found[2 + 3 * i + k] for k in range(3)}) == 1
    held = [found[2 + 3 * i] for i in range(16)]
    assert (held.count("test"), held.count("val"), held.count("train")) == (4, 1, 11)
    assert split(manifest(*rows)) == found
    assert split(manifest(*rows), seed=1) != found


def test_structures_with_their_own_images_each_have_tests() -> None:
    rows = [(name, f"{name}{i}.tif", None) for name in ("dna", "nucleolus") for i in range(8)]
    found = split(manifest(*rows))
    for start in (2, 10):
        held = [found[number] for number in range(start, start + 8)]
        assert (held.count("test"), held.count("val")) == (2, 1)


def test_order_of_rows_and_names_of_files_do_not_matter() -> None:
    rows = [("dna", f"{i}.tif", None) for i in range(9)]
    found = manifest(*rows)
    forward = split(found)
    backward = split(Manifest(found.path, found.rows[::-1]))
    assert forward == backward


def test_an_explicit_split_wins_and_others_of_the_image_follow(tmp_path: Path) -> None:
    rows = [("dna", f"{i}.tif", None) for i in range(8)]
    record = tmp_path / "splits.json"
    before = split(manifest(*rows), record)
    image = next(i for i in range(8) if before[i + 2] == "train")
    rows[image] = ("dna", f"{image}.tif", "test")
    found = assign_splits(
        manifest(*rows, ("nucleolus", f"{image}.tif", None)), seed=0, record=record, digest=str
    )
    assert found[image + 2] == found[10] == "test"
    assert any("placed by the manifest" in note for note in found.notes)


def test_added_images_move_nothing(tmp_path: Path) -> None:
    record = tmp_path / "cache" / "splits.json"
    rows = [("dna", f"{i}.tif", None) for i in range(8)]
    first = split(manifest(*rows), record)
    rows += [("dna", f"new{i}.tif", None) for i in range(12)] + [
        ("actin_filament", f"{i}.tif", None) for i in range(8)
    ]
    second = split(manifest(*rows), record)
    assert {number: second[number] for number in first} == first
    dna = [second[number] for number in range(2, 22)]
    assert (dna.count("test"), dna.count("val")) == split_counts(20, 0.25, 0.1)
    assert [second[number] for number in range(22, 30)] == [first[number] for number in range(2, 10)]
    assert split(manifest(*rows[:8]), record) == first
    # Another seed is another split, and leaves this one be.
    split(manifest(*rows), record, seed=5)
    assert split(manifest(*rows), record) == second
    assert set(json.loads(record.read_text())["seeds"]) == {"0", "5"}


def test_content_and_not_the_name_makes_a_group(tmp_path: Path) -> None:
    for i in range(8):
        (tmp_path / f"{i}.tif").write_bytes(bytes([i % 4]))
    rows = [("dna", str(tmp_path / f"{i}.tif"), None) for i in range(8)]
    found = assign_splits(manifest(*rows), seed=0)
    assert all(found[i + 2] == found[i + 6] for i in range(4))
    assert sorted(found[i + 2] for i in range(4)) == ["test", "train", "train", "val"]


def test_regions_of_one_image() -> None:
    left, right = Region(x=(0, 40)), Region(x=(60, 100))
    together = split(manifest(*[("dna", f"{i}.tif", None, part) for i in range(8) for part in (left, right)]))
    assert all(together[2 + 2 * i] == together[3 + 2 * i] for i in range(8))
    apart = split(manifest(("dna", "a.tif", "train", left), ("dna", "a.tif", "test", right)))
    assert apart == {2: "train", 3: "test"}
    with pytest.raises(ManifestError, match=r"line 4 names no split.*train \(line 2\), test \(line 3\)"):
        split(
            manifest(("dna", "a.tif", "train", left), ("dna", "a.tif", "test", right), ("dna", "a.tif", None))
        )


def test_named_group_stays_together_and_may_not_straddle() -> None:
    rows = [("dna", f"{i}.tif", None) for i in range(6)]
    assert len(set(split(manifest(*rows, group="well 1")).values())) == 1
    with pytest.raises(ManifestError, match="'group well 1' straddles splits"):
        split(manifest(("dna", "a.tif", "train"), ("dna", "b.tif", "test"), group="well 1"))


def test_too_few_images_are_said() -> None:
    found = assign_splits(manifest(("dna", "a.tif", None)), seed=0, digest=str)
    assert found == {2: "train"}
    assert any(note.startswith("dna: no image validates") for note in found.notes)
    assert any(note.startswith("dna: no image tests") for note in found.notes)
    enough = assign_splits(manifest(*[("dna", f"{i}.tif", None) for i in range(4)]), seed=0, digest=str)
    assert enough.notes == ()


def test_more_images_held_out_than_trained_on_is_said() -> None:
    rows = manifest(*[("dna", f"{i}.tif", None) for i in range(6)])
    groups = replace(
        rows, rows=tuple(replace(row, group="A" if row.number < 4 else "B") for row in rows.rows)
    )
    said = set()
    for seed in range(8):
        found = assign_splits(groups, seed=seed, digest=str)
        train = list(found.values()).count("train")
        notes = [note for note in found.notes if "held out, because those of a group stay together" in note]
        assert bool(notes) is (train == 2)
        said.add(train)
    assert said == {2, 4}, "either group may be the one that tests"
    splits = {number: "train" if number < 4 else "test" for number in range(2, 8)}
    named = replace(groups, rows=tuple(replace(row, split=splits[row.number]) for row in groups.rows))
    assert not [note for note in assign_splits(named, seed=0, digest=str).notes if "held out" in note]


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"format": 9, "seeds": {}}', '{"format": 1, "seeds": {"0": {"a": "x"}}}']
)
def test_damaged_record(tmp_path: Path, content: str) -> None:
    record = tmp_path / "splits.json"
    record.write_text(content)
    with pytest.raises(ManifestError, match="record of splits"):
        split(manifest(("dna", "a.tif", None)), record)
    assert record.read_text() == content


def test_missing_signal(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="line 2, signal"):
        assign_splits(manifest(("dna", str(tmp_path / "a.tif"), None)), seed=0)


def test_rows_that_name_one_scene_differently_are_refused(tmp_path: Path) -> None:
    """Counted as two images it could train under one name and test under the other."""
    with tifffile.TiffWriter(tmp_path / "two.ome.tif", ome=True) as writer:
        for name in ("pos0", "pos1"):
            voxels = np.zeros((2, 4, 4), np.uint8)
            writer.write(voxels, photometric="minisblack", metadata={"axes": "ZYX", "Name": name})
    shutil.copy(tmp_path / "two.ome.tif", tmp_path / "copy.ome.tif")

    def rows(
        *scenes: str | None, files: tuple[str, ...] = ("two.ome.tif",) * 9, group: str | None = None
    ) -> Manifest:
        paths = [tmp_path / name for name in files]
        return Manifest(
            tmp_path / "m.csv",
            tuple(
                Row(number, "dna", path, 0, path, 0, scene=scene, group=group)
                for number, (scene, path) in enumerate(zip(scenes, paths, strict=False), start=2)
            ),
        )

    assert set(assign_splits(rows("pos0", "pos1", "pos1"), seed=0)) == {2, 3, 4}
    with pytest.raises(
        ManifestError, match=r"line 4, scene: '1' is the scene of .* that line 3 calls 'pos1'"
    ):
        assign_splits(rows("pos0", "pos1", "1"), seed=0)
    with pytest.raises(
        ManifestError, match=r"line 3, scene: an empty cell is the scene of .* line 2 calls 'pos0'"
    ):
        assign_splits(rows("pos0", None), seed=0)
    # Copies of a file are one image.
    with pytest.raises(ManifestError, match="line 3, scene: 'pos1' is the scene"):
        assign_splits(rows("1", "pos1", files=("two.ome.tif", "copy.ome.tif")), seed=0)
    # A group stays in one split, whatever its scenes are called; what cannot be opened is said where it is read.
    assert set(assign_splits(rows("pos1", "1", group="well"), seed=0)) == {2, 3}
    assert set(assign_splits(rows("pos1", "nothing"), seed=0)) == {2, 3}
