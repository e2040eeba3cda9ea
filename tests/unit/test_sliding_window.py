"""The sliding window, with MONAI's as the oracle, and the files that predictions are written to."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repmode_cl.data.readers import open_image
from repmode_cl.errors import ImageError
from repmode_cl.inference.sliding_window import sliding_window
from repmode_cl.inference.windows import Window, gaussian_weights, plan_windows
from repmode_cl.inference.writers import write_ome_tiff

SIZE = st.tuples(*[st.integers(1, 21)] * 3)


class Uneven(torch.nn.Module):
    """A network whose prediction of a voxel depends on where in the window it lies."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.kernel = torch.randn((1, 1, 3, 3, 3), generator=generator)
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        self.batches.append(len(x))
        ramp = torch.linspace(-1, 1, x.shape[-1])
        return torch.nn.functional.conv3d(x, self.kernel, padding=1) + ramp


@settings(deadline=None, max_examples=60)
@given(shape=SIZE, window=SIZE, overlap=st.sampled_from([0.0, 0.25, 0.5, 0.9]))
def test_windows_cover_every_voxel_with_one_size_inside(shape, window, overlap):
    windows = plan_windows(shape, window, overlap)
    seen = np.zeros(shape, int)
    for part in windows:
        assert part.shape == tuple(min(a, b) for a, b in zip(shape, window, strict=True))
        assert min(part.start) >= 0
        assert all(a <= b for a, b in zip(part.stop, shape, strict=True))
        seen[part.slices] += 1
    assert seen.min() >= 1
    assert len(set(windows)) == len(windows)
    assert windows == sorted(windows, key=lambda part: part.start)


def test_windows_by_hand():
    assert plan_windows((4, 5, 3), (4, 2, 8), 0.5) == [Window((0, y, 0), (4, y + 2, 3)) for y in (0, 1, 2, 3)]
    assert [part.start[0] for part in plan_windows((10, 1, 1), (4, 1, 1), 0.0)] == [0, 4, 6]


@pytest.mark.parametrize(
    ("window", "overlap", "step"),
    [
        (20, 0.9, 2),
        (10, 0.8, 2),
        (40, 0.8, 8),
        (30, 0.9, 3),
        (20, 0.91, 1),
        (9, 0.5, 4),
        (16, 0.5, 8),
        (7, 0.99, 1),
    ],
)
def test_rounding_costs_no_voxel_of_a_step(window, overlap, step):
    [first, second, *_] = plan_windows((99, 1, 1), (window, 1, 1), overlap)
    assert second.start[0] - first.start[0] == step


@pytest.mark.parametrize(
    ("shape", "window", "overlap"),
    [
        ((4, 4), (2, 2), 0.5),
        ((4, 4, 4), (2, 0, 2), 0.5),
        ((4, 4, 4), (2, 2, 2), 1.0),
        ((4, 0, 4), (2, 2, 2), 0.5),
    ],
)
def test_impossible_windows_are_refused(shape, window, overlap):
    with pytest.raises(ValueError):
        plan_windows(shape, window, overlap)


@pytest.mark.parametrize("window", [(8, 16, 16), (7, 9, 5), (1, 4, 4)])
def test_weights_are_monai_s(window):
    from monai.data.utils import compute_importance_map

    theirs = compute_importance_map(window, mode="gaussian", sigma_scale=0.125).numpy()
    ours = gaussian_weights(window)
    assert ours.dtype == np.float32
    assert ours.max() == 1
    assert ours.min() > 0
    np.testing.assert_allclose(ours, theirs / theirs.max(), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((20, 30, 25), (8, 16, 16)),
        ((8, 16, 16), (8, 16, 16)),
        ((9, 17, 31), (8, 7, 16)),
        ((8, 33, 16), (8, 16, 16)),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_prediction_equals_monai_s(shape, window, batch_size):
    from monai.inferers import sliding_window_inference

    volume = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    network = Uneven()
    with torch.no_grad():
        theirs = sliding_window_inference(
            volume[None, None], window, 2, network, overlap=0.5, mode="gaussian", sigma_scale=0.125
        )[0, 0].numpy()
    ours = sliding_window(network, volume, window=window, overlap=0.5, batch_size=batch_size)
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@settings(deadline=None, max_examples=30)
@given(data=st.data(), overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]), batch_size=st.integers(1, 5))
def test_prediction_equals_monai_s_whatever_the_borders(data, overlap, batch_size):
    from monai.inferers import sliding_window_inference

    # MONAI pads a volume that is smaller than a window; here the window shrinks.
    window = data.draw(st.tuples(*[st.integers(2, 8)] * 3))
    shape = tuple(data.draw(st.integers(size, 3 * size + 1)) for size in window)
    volume = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    network = Uneven()
    with torch.no_grad():
        theirs = sliding_window_inference(
            volume[None, None], window, 4, network, overlap=overlap, mode="gaussian", sigma_scale=0.125
        )[0, 0].numpy()
    calls = len(network.batches)
    ours = sliding_window(network, volume, window=window, overlap=overlap, batch_size=batch_size)
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    # As many windows as theirs, so none twice.
    assert sum(network.batches[calls:]) == sum(network.batches[:calls])


def test_volume_smaller_than_the_window_is_predicted_in_one_piece():
    volume = np.random.default_rng(0).standard_normal((3, 20, 5)).astype(np.float32)
    network = Uneven()
    got = sliding_window(network, volume, window=(8, 32, 32))
    with torch.no_grad():
        whole = network(torch.from_numpy(volume)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(got, whole, atol=1e-6)


def test_arrays_memory_maps_tensors_and_other_types_give_the_same_bits(tmp_path):
    volume = np.random.default_rng(0).integers(0, 255, (9, 12, 10)).astype(np.uint8)
    np.save(tmp_path / "volume.npy", volume)
    want = sliding_window(Uneven(), volume.astype(np.float32), window=(4, 8, 8))
    for other in (volume, torch.from_numpy(volume), np.load(tmp_path / "volume.npy", mmap_mode="r")):
        assert np.array_equal(sliding_window(Uneven(), other, window=(4, 8, 8)), want)


def test_batches_and_progress():
    network = Uneven()
    seen: list[tuple[int, int]] = []
    sliding_window(
        network,
        np.zeros((4, 4, 10)),
        window=(4, 4, 4),
        batch_size=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert network.batches == [3, 1]
    assert seen == [(3, 4), (4, 4)]


def test_impossible_calls_are_refused():
    with pytest.raises(ImageError, match="three axes"):
        sliding_window(Uneven(), np.zeros((1, 4, 4, 4)), window=(4, 4, 4))
    with pytest.raises(ValueError, match="same size"):
        sliding_window(lambda x: x[..., :-1], np.zeros((4, 4, 4)), window=(4, 4, 4))
    with pytest.raises(ValueError, match="batch_size"):
        sliding_window(Uneven(), np.zeros((4, 4, 4)), window=(4, 4, 4), batch_size=0)


def test_ome_tiff_reads_back_with_its_scale(tmp_path):
    volume = np.random.default_rng(0).standard_normal((5, 7, 6)).astype(np.float32)
    path = tmp_path / "new" / "prediction.ome.tif"
    write_ome_tiff(path, volume, (0.5, 0.25, 0.125), "nucleolus", "z-score units, made by a test: R² < 1 & µ")
    with tifffile.TiffFile(path) as tiff:
        assert tiff.series[0].axes == "ZYX"
        assert np.array_equal(tiff.asarray(), volume)
        ome = tiff.ome_metadata
    assert ome is not None
    pixels = tifffile.xml2dict(ome)["OME"]["Image"]["Pixels"]
    assert [pixels[f"PhysicalSize{axis}"] for axis in "ZYX"] == [0.5, 0.25, 0.125]
    assert pixels["PhysicalSizeZUnit"] == "µm"
    assert pixels["Channel"]["Name"] == "nucleolus"
    assert "z-score" in ome
    assert [file.name for file in path.parent.iterdir()] == ["prediction.ome.tif"]
    with open_image(path) as image:
        assert image.voxel_size == pytest.approx((0.5, 0.25, 0.125))
        assert image.channel_names == ("nucleolus",)
        assert np.array_equal(image.read(0), volume)


def test_single_plane_and_other_types_are_written(tmp_path):
    write_ome_tiff(tmp_path / "plane.tiff", np.ones((1, 4, 4), np.uint16))
    assert tifffile.imread(tmp_path / "plane.tiff").dtype == np.float32


def test_wrong_outputs_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(ImageError, match=r"\.ome\.tif"):
        write_ome_tiff(tmp_path / "prediction.png", np.zeros((2, 3, 4)))
    with pytest.raises(ImageError, match="three axes"):
        write_ome_tiff(tmp_path / "prediction.tif", np.zeros((3, 4)))
    assert not list(tmp_path.iterdir())
