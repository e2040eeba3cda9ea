"""Voxel sizes that a model was not trained for are refused; --force goes on with a warning."""

from __future__ import annotations

import json

import pytest

from repmode_cl.data.voxel_size_check import (
    TrainedVoxels,
    check_voxel_size,
    trained_voxels,
    voxel_size_record,
)
from repmode_cl.errors import ImageError

GRID = (0.29, 0.29, 0.29)
CONFOCAL = (0.29, 0.108, 0.108)
SPINNING = (0.25, 0.13, 0.13)


def trained(*sizes, grid=GRID):
    return trained_voxels({"seed": 0, **json.loads(json.dumps(voxel_size_record(sizes)))}, grid)


def test_what_training_saw_is_kept_and_read():
    assert trained(CONFOCAL, None, SPINNING) == TrainedVoxels(
        (0.25, 0.108, 0.108), (0.29, 0.13, 0.13), 1, True, GRID
    )
    assert trained(None, None) == TrainedVoxels(None, None, 2, True, GRID)
    assert trained_voxels({}, GRID) == trained() == TrainedVoxels(grid=GRID)


@pytest.mark.parametrize(
    "record",
    [
        None,
        7,
        [],
        {},
        {"unknown": -1},
        {"unknown": True},
        {"unknown": 0, "smallest": [1, 1, 1]},
        {"unknown": 0, "smallest": [1, 1], "largest": [1, 1]},
        {"unknown": 0, "smallest": [0, 1, 1], "largest": ["a", 1, float("nan")]},
    ],
)
def test_a_record_that_makes_no_sense_counts_as_none(record):
    assert trained_voxels({"voxel_sizes": record}, GRID) == TrainedVoxels(grid=GRID)


@pytest.mark.parametrize(
    ("found", "known"),
    [
        (CONFOCAL, trained(CONFOCAL)),
        ((0.29 * 1.5, 0.108 / 1.5, 0.108), trained(CONFOCAL)),
        ((0.2, 0.19, 0.08), trained(CONFOCAL, SPINNING)),
        (GRID, TrainedVoxels(grid=GRID)),
        (GRID, TrainedVoxels()),
        (None, TrainedVoxels()),
        (GRID, trained(None, grid=None)),
        (None, trained(None, None)),
    ],
)
def test_nothing_is_said_where_all_is_well(found, known):
    assert check_voxel_size(found, known, "a.tif") is None


@pytest.mark.parametrize(
    ("found", "known", "said"),
    [
        (None, trained(CONFOCAL), "no voxel size is stated, .* 0.29 x 0.108 x 0.108 um"),
        (None, TrainedVoxels(grid=GRID), "no voxel size is stated, .* 0.29 x 0.29 x 0.29 um"),
        (None, trained(CONFOCAL, grid=None), "no voxel size is stated"),
        ((0.29, 0.29, 0.29), trained(CONFOCAL), r"0.29 x 0.29 x 0.29 um .*1.5 times coarser on y, x than"),
        ((0.29, 0.108, 0.05), trained(CONFOCAL), "finer on x than"),
        ((1.0, 0.05, 0.108), trained(CONFOCAL), "coarser on z and finer on y than"),
        (
            (0.29, 0.2, 0.108),
            trained(CONFOCAL, SPINNING),
            r"than those of 0.25-0.29 x 0.108-0.13 x 0.108-0.13 um",
        ),
        ((0.5, 0.29, 0.29), TrainedVoxels(grid=GRID), r"coarser on z than those of .* \(its grid\)"),
        ((0.29, 0.29, 0.29), trained(CONFOCAL, grid=None), "coarser on y, x"),
    ],
)
def test_what_does_not_fit_is_refused_unless_forced(found, known, said):
    with pytest.raises(ImageError, match=said) as caught:
        check_voxel_size(found, known, "plate/a.tif")
    message = str(caught.value)
    assert message.startswith("plate/a.tif: ")
    assert "--force" in message
    assert "--voxel-size z,y,x" in message
    note = check_voxel_size(found, known, "plate/a.tif", force=True)
    assert note is not None
    assert note.startswith("plate/a.tif: ")
    assert "used anyway, because of force" in note


@pytest.mark.parametrize(
    ("found", "known", "said"),
    [
        (None, trained(CONFOCAL, None), "its own grid is used"),
        (CONFOCAL, trained(None), "stated no voxel size"),
        (CONFOCAL, TrainedVoxels(grid=GRID), "finer on y, x"),
    ],
)
def test_what_cannot_be_told_is_a_note(found, known, said):
    note = check_voxel_size(found, known, "a.tif")
    assert note is not None
    assert said in note


@pytest.mark.parametrize("found", [(1, 2), (0, 1, 1), (float("nan"), 1, 1), (float("inf"), 1, 1), "abc"])
def test_a_voxel_size_is_three_positive_numbers(found):
    with pytest.raises(ImageError, match="three positive numbers"):
        check_voxel_size(found, trained(CONFOCAL), "a.tif", force=True)
