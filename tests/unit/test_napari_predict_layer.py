"""Prediction of a volume in memory: equal to that from disk to disk, with the same refusals; it can be cancelled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from repmode_cl import Model
from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.inference.predict_file import predict_file
from repmode_cl.napari import predict_layer
from repmode_cl.napari.predict_layer import PredictedVolume, VolumeRequest, predict_volume

NAMES = ("dna", "mitochondria")
SHAPE = (9, 14, 12)
VOXELS = (0.29, 0.29, 0.29)


def volume(shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint16]:
    return np.random.default_rng(0).integers(100, 2000, shape, np.uint16)


def request_of(path: Path, **settings: Any) -> VolumeRequest:
    return VolumeRequest(
        Model.open(path), **{"structures": NAMES, "voxel_size": VOXELS, "name": "cells", **settings}
    )


def predicted(request: VolumeRequest, image: NDArray[Any], **settings: Any) -> list[PredictedVolume]:
    return list(predict_volume(request, lambda: image, image.shape, **settings))


@pytest.mark.parametrize(
    ("voxels", "tolerance"), [(VOXELS, 0.0), ((0.4, 0.2, 0.33), 1e-5)], ids=["same grid", "resampled"]
)
def test_it_equals_predicted_files(stored: Path, tmp_path: Path, voxels: Any, tolerance: float) -> None:
    image = volume()
    np.save(tmp_path / "in.npy", image)
    written = predict_file(
        stored, NAMES, tmp_path / "in.npy", f"{tmp_path}/{{structure}}.npy", voxel_size=voxels
    )
    predictions = predicted(request_of(stored, voxel_size=voxels), image)
    assert [one.structure for one in predictions] == list(NAMES)
    for one, file in zip(predictions, written, strict=True):
        assert one.values.dtype == np.float32
        expected = np.load(file.path)
        assert np.abs(one.values - expected).max() <= tolerance * np.abs(expected).max()
        assert one.digest == Model.open(stored).entries[one.structure].digest
        assert one.extent == (one.values.min(), one.values.max())
        assert one.extent[0] < one.limits[0] < one.limits[1] < one.extent[1]


def test_images_are_prepared_as_the_model_says(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same recipe, whatever it says: what the model's own does is tested above."""
    recipe = {
        "normalisation": "z-score between percentiles", "percentiles": [5, 95], "order": 3, "anti_alias": True,
        "axes": "xy", "empty": "zeros",
    }  # fmt: skip
    monkeypatch.setattr(Model, "preprocessing", property(lambda model: recipe))
    seen = []
    window = predict_layer.sliding_window

    def watch(network: Any, prepared: Any, **settings: Any) -> Any:
        seen.append(prepared)
        return window(network, prepared, **settings)

    monkeypatch.setattr(predict_layer, "sliding_window", watch)
    image = volume()
    [prediction] = predicted(request_of(stored, structures=("dna",), voxel_size=(0.4, 0.15, 0.29)), image)
    assert prediction.values.shape == SHAPE
    # Only y changes; blurred, cubic, clipped.
    from repmode_cl.data.preprocessing.normalisation import normalise
    from repmode_cl.data.preprocessing.resampling import resample

    blurred = resample(image, (0.29, 0.15, 0.29), VOXELS, 3, anti_alias=True)
    np.testing.assert_array_equal(seen[0], normalise(blurred, percentiles=(5, 95)))
    assert seen[0].shape == (9, 7, 12)
    [flat] = predicted(request_of(stored, structures=("dna",)), np.zeros(SHAPE, np.uint8))
    assert not seen[1].any()
    assert np.isfinite(flat.values).all()


def test_progress_counts_windows_of_all_structures(stored: Path) -> None:
    reported: list[tuple[int, int]] = []
    predicted(request_of(stored), volume(), progress=lambda done, total: reported.append((done, total)))
    totals = {total for _, total in reported}
    assert len(totals) == 1
    assert reported[0][0] == 0
    assert reported[-1][0] == reported[-1][1]
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)
    assert len(set(reported)) > 4


def test_an_exception_of_progress_ends_it(stored: Path) -> None:
    class Enough(Exception):  # noqa: N818
        pass

    def stop(done: int, total: int) -> None:
        if done > total // 2:  # in the midst of the second structure
            raise Enough

    image = volume()
    predictions = predict_volume(request_of(stored), lambda: image, image.shape, progress=stop)
    assert next(predictions).structure == "dna"
    with pytest.raises(Enough):
        next(predictions)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"structures": ()}, "no structure is chosen"),
        ({"structures": ("dna", "golgi_apparatus")}, "has no 'golgi_apparatus' any more"),
        ({"voxel_size": None}, "cells: no voxel size is stated.*state the right one, or continue by force"),
        ({"voxel_size": (3.0, 0.3, 0.3)}, "cells: voxels of 3 x 0.3 x 0.3 um.*coarser on z"),
        ({"voxel_size": (100.0, 0.3, 0.3), "force": True}, "another unit"),
        ({"device": "tpu"}, "'tpu' is unknown"),
    ],
)
def test_requests_are_refused_before_anything_is_read(stored: Path, settings: Any, message: str) -> None:
    def read() -> Any:
        raise AssertionError("the image is read")

    with pytest.raises(RepmodeError, match=message):
        list(predict_volume(request_of(stored, **settings), read, SHAPE))


def test_a_voxel_size_that_does_not_fit_is_reported_when_forced(stored: Path) -> None:
    assert request_of(stored).check() == ()
    [note] = request_of(stored, voxel_size=(3.0, 0.3, 0.3), force=True).check()
    assert "coarser on z" in note
    assert len(predicted(request_of(stored, voxel_size=None, force=True), volume())) == 2


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.ones(SHAPE, np.complex64), "cells: an image of real numbers is needed, not of complex64"),
        (np.ones(SHAPE, bool), "real numbers is needed, not of bool"),
        (np.full(SHAPE, 7, np.uint8), "cells: every voxel is 7"),
        (np.full(SHAPE, np.nan, np.float32), "cells: a voxel is NaN"),
    ],
)
def test_images_that_cannot_be_predicted(stored: Path, image: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        predicted(request_of(stored), image)


def test_too_little_memory_is_reported_first(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_layer, "available_memory", lambda: 100 << 20)
    with pytest.raises(
        RepmodeError, match=r"about .* of memory are needed and .* are free.*repmode-cl predict"
    ):
        predicted(request_of(stored), np.broadcast_to(np.uint16(1), (400, 400, 400)))
    assert len(predicted(request_of(stored), volume())) == 2


def test_a_device_without_memory_is_reported(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(predict_layer, "sliding_window", full)
    with pytest.raises(RepmodeError, match="device cpu has too little memory for 2 windows; choose cpu"):
        predicted(request_of(stored, device="cpu"), volume())
