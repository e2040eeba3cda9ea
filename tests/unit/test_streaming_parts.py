"""Parts of prediction from disk to disk: blocks and their sums, boxes of a resampled volume, memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repmode_cl.data.preprocessing.normalisation import normalise
from repmode_cl.data.preprocessing.resample_box import resample_box, resample_tiles
from repmode_cl.data.preprocessing.resampling import resample_to
from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.inference.output_paths import output_paths
from repmode_cl.inference.raw_volume import RawVolume
from repmode_cl.inference.streaming.blocks import BlockPlan
from repmode_cl.inference.streaming.memory_plan import MemoryNeeds, MemoryPlan, activation_bytes, plan_memory
from repmode_cl.inference.streaming.partial_sums import PartialSums, partial_sums_nbytes
from repmode_cl.inference.volume_source import z_score_of
from repmode_cl.inference.window_batches import predict_batches
from repmode_cl.inference.windows import WindowGrid, gaussian_weights, summed_weights
from repmode_cl.utils.memory import available_memory, format_bytes, parse_memory, resident_memory

SIZE = st.tuples(*[st.integers(1, 12)] * 3)
anything = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@anything
@given(shape=SIZE, window=SIZE, overlap=st.sampled_from([0.0, 0.25, 0.5, 0.9]), data=st.data())
def test_sums_of_blocks_are_those_of_all_windows_in_order(tmp_path, shape, window, overlap, data):
    grid = WindowGrid(shape, window, overlap)
    columns = data.draw(st.integers(1, len(grid.starts[2])))
    rows = data.draw(st.integers(1, 4)) if columns == len(grid.starts[2]) else 1
    plan = BlockPlan(grid, rows, columns)
    rng = np.random.default_rng(0)
    predictions = [rng.standard_normal(grid.size).astype(np.float32) for _ in grid]
    want, found = np.zeros(shape, np.float32), np.full(shape, np.nan, np.float32)
    for part, prediction in zip(grid, predictions, strict=True):
        want[part.slices] += prediction
    numbers = []
    for number in range(len(plan)):
        block = plan[number]
        # Opened again for every block: only the files go from one to the next.
        with PartialSums(tmp_path, "a", plan) as partial_sums:
            sums = partial_sums.load(block)
            for window_number in block.windows:
                assert plan.block_of(window_number) == block
                box = grid[window_number].slices
                inside = tuple(
                    slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, block.box, strict=True)
                )
                sums[inside] += predictions[window_number]
                numbers.append(window_number)
            complete = partial_sums.store(block, sums)
        assert np.isnan(found[block.final]).all(), "no voxel is completed twice"
        found[block.final] = complete
    assert numbers == list(range(len(grid)))
    assert np.array_equal(found, want)
    for file in tmp_path.iterdir():
        file.unlink()


def test_partial_sums_state_their_bytes_on_disk(tmp_path):
    plan = BlockPlan(WindowGrid((20, 30, 40), (8, 8, 8), 0.5), 1, 3)
    with PartialSums(tmp_path, "a", plan):
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) == partial_sums_nbytes(plan)


def test_blocks_that_cannot_be_are_refused():
    grid = WindowGrid((8, 20, 20), (8, 8, 8))
    for rows, columns in ((0, None), (1, 0), (2, 1)):
        with pytest.raises(ValueError, match="a block is"):
            BlockPlan(grid, rows, columns)
    with pytest.raises(IndexError):
        BlockPlan(grid)[99]


@anything
@given(shape=SIZE, window=SIZE, overlap=st.sampled_from([0.0, 0.5, 0.9]), data=st.data())
def test_summed_weights_of_a_box_are_those_of_the_whole(shape, window, overlap, data):
    grid = WindowGrid(shape, window, overlap)
    weights = gaussian_weights(grid.size)
    whole = np.zeros(shape, np.float32)
    for part in grid:
        whole[part.slices] += weights
    box = data.draw(box_of(shape))
    assert np.array_equal(summed_weights(grid, weights, box), whole[box])


@st.composite
def box_of(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[slice, ...]:
    starts = [draw(st.integers(0, size - 1)) for size in shape]
    return tuple(slice(a, draw(st.integers(a + 1, size))) for a, size in zip(starts, shape, strict=True))


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    factor=st.tuples(*[st.sampled_from([0.3, 0.5, 0.77, 1.0, 1.1, 2.0, 3.3])] * 3),
    order=st.integers(0, 3),
    data=st.data(),
)
def test_a_box_is_resampled_as_the_whole_volume_is(shape, factor, order, data):
    wanted = tuple(max(1, int(size * f)) for size, f in zip(shape, factor, strict=True))
    volume = np.random.default_rng(0).normal(100, 50, shape).astype(np.float32)
    whole = resample_to(volume, wanted, order)
    box = data.draw(box_of(wanted))
    got = resample_box(lambda part: volume[part], shape, wanted, box, order)
    assert got.dtype == np.float32
    if order == 0:
        assert np.array_equal(got, whole[box])
    assert np.abs(got - whole[box]).max() <= 1e-6 * np.abs(whole).max()


@settings(deadline=None)
@given(shape=SIZE, wanted=SIZE, order=st.integers(0, 3), memory=st.integers(1, 10**6))
def test_tiles_cover_a_volume_once(shape, wanted, order, memory):
    seen = np.zeros(wanted, int)
    for box in resample_tiles(shape, wanted, order, memory):
        seen[box] += 1
    assert (seen == 1).all()


def test_tiles_of_a_large_volume_are_few_and_fit():
    tiles = list(resample_tiles((256, 2048, 2048), (300, 1800, 1800), 1, 256 << 20))
    assert len(tiles) < 1000
    assert max((z.stop - z.start) * (y.stop - y.start) * (x.stop - x.start) for z, y, x in tiles) < 4 << 20


@anything
@given(shape=SIZE, data=st.data())
def test_raw_volumes_are_arrays(tmp_path, shape, data):
    want = np.zeros(shape, np.int32)
    with RawVolume(tmp_path / "raw", shape, np.int32, offset=7) as volume:
        everything = tuple(slice(0, size) for size in shape)
        volume.write(everything, want)
        for value in range(1, 4):
            box = data.draw(box_of(shape))
            want[box] = value
            volume.write(box, want[box])
            box = data.draw(box_of(shape))
            assert np.array_equal(volume.read(box), want[box])
        volume.sync()
    with RawVolume(tmp_path / "raw", shape, np.int32, offset=7, new=False) as volume:
        assert np.array_equal(volume.read(everything), want)
        assert np.array_equal(z_score_or_none(volume), z_score_or_none(want))


def z_score_or_none(volume: RawVolume | np.ndarray) -> np.ndarray | None:
    try:
        if isinstance(volume, np.ndarray):
            return normalise(volume)
        return z_score_of(volume)(volume.read(tuple(slice(0, size) for size in volume.shape)))
    except ImageError:
        return None


def test_raw_volumes_that_are_cut_off_are_refused(tmp_path):
    path = tmp_path / "raw"
    path.write_bytes(b"\0" * 99)
    with pytest.raises(RepmodeError, match="99 bytes of 100"):
        RawVolume(path, (1, 5, 5), new=False)
    with pytest.raises(RepmodeError, match="missing"):
        RawVolume(tmp_path / "none", (1, 5, 5), new=False)
    with RawVolume(path, (1, 5, 5)) as volume:
        path.write_bytes(b"")
        with pytest.raises(RepmodeError, match="in the middle"):
            volume.read((slice(0, 1), slice(0, 5), slice(0, 5)))


def test_sums_of_large_planes_are_computed_in_strips(monkeypatch):
    from repmode_cl.data.preprocessing import normalisation as module

    volume = np.random.default_rng(0).normal(size=(3, 50, 7))
    whole = normalise(volume)
    monkeypatch.setattr(module, "_STRIP", 60)
    assert len(list(module.strips(volume.shape))) == 3 * 7
    np.testing.assert_allclose(normalise(volume), whole, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("text", "count"),
    [("2GB", 2 * 10**9), ("500MB", 5 * 10**8), ("1.5GiB", 3 * 2**29), (" 64 mib ", 2**26), (12345, 12345)],
)
def test_amounts_of_memory(text, count):
    assert parse_memory(text) == count


@pytest.mark.parametrize("text", ["", "2", "GB", "-2GB", "2 GBs", "0MB", "1e3MB", "9999999TB", 0, -5])
def test_texts_that_are_no_amount_of_memory(text):
    with pytest.raises(RepmodeError, match="such as 2GB"):
        parse_memory(text)


def test_amounts_are_written_for_people():
    assert [format_bytes(n) for n in (12, 4_000, 1_500_000, 250e6, 2e9)] == [
        "12 B", "4 kB", "1.5 MB", "250 MB", "2.0 GB",
    ]  # fmt: skip
    assert 0 < resident_memory() < available_memory() + resident_memory()


def test_memory_lowers_blocks_first_then_the_batch_then_refuses():
    grid = WindowGrid((64, 2048, 8192), (32, 128, 128))
    needs = MemoryNeeds(width=8, depth=3, structures=2, itemsize=2, on_cpu=True, resident=600_000_000)
    plans = {}
    for megabytes in range(20000, 500, -20):
        if needs.total(BlockPlan(grid, 1, 1), 1) > megabytes * 10**6:
            with pytest.raises(RepmodeError, match="is too little"):
                plan_memory(megabytes * 10**6, grid, 4, needs)
            continue
        plan = plan_memory(megabytes * 10**6, grid, 4, needs)
        assert needs.total(plan.blocks(grid), plan.batch) <= megabytes * 10**6
        plans[plan] = megabytes
    assert next(iter(plans)) == MemoryPlan(4, 1, len(grid.starts[2]))
    assert list(plans)[-1] == MemoryPlan(1, 1, 1)
    assert [plan.batch for plan in plans] == sorted((plan.batch for plan in plans), reverse=True)
    narrow = WindowGrid((64, 2048, 128), (32, 128, 128))
    assert plan_memory(20 * 10**9, narrow, 4, needs).rows == 8
    assert activation_bytes(8, 4, (32, 128, 128), 4) > 4 * activation_bytes(8, 4, (32, 128, 128), 1) // 2
    assert activation_bytes(8, 4, (17, 17, 17), 1) == activation_bytes(8, 4, (32, 32, 32), 1)


def test_names_of_outputs(tmp_path):
    source = tmp_path / "in.tif"
    (tmp_path / "folder.npy").mkdir()

    def names(out: str, *structures: str, several: bool = True) -> list[str]:
        paths = output_paths(tmp_path / out, structures, source, several=several)
        return [path.relative_to(tmp_path).as_posix() for path in paths]

    assert names("a.ome.tif", "dna", several=False) == ["a.ome.tif"]
    assert names("a-{structure}.npy", "dna", several=False) == ["a-dna.npy"]
    assert names("a", "dna", "golgi") == ["a/dna.ome.tif", "a/golgi.ome.tif"]
    assert names("folder.npy", "dna") == ["folder.npy/dna.ome.tif"]
    assert names("{structure}/b.tiff", "dna", "golgi") == ["dna/b.tiff", "golgi/b.tiff"]
    with pytest.raises(RepmodeError, match="need a file each"):
        names("a.tif", "dna", "golgi")
    with pytest.raises(ImageError, match="is a folder"):
        names("folder.npy", "dna", several=False)
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "notes.txt").touch()
    with pytest.raises(ImageError, match="holds something else"):
        names("mine.zarr", "dna", several=False)
    (tmp_path / "file.zarr").touch()
    with pytest.raises(ImageError, match="is a file"):
        names("file.zarr", "dna", several=False)
    (tmp_path / "empty.zarr").mkdir()
    assert names("empty.zarr", "dna", several=False) == ["empty.zarr"]
    with pytest.raises(ImageError, match=r"\.ome\.tif"):
        names("{structure}.png", "dna", "golgi")


def test_networks_share_batches_and_must_keep_the_size():
    seen: list[tuple[str, int]] = []

    def network(name: str, factor: float):
        def compute(x: torch.Tensor) -> torch.Tensor:
            assert not torch.is_grad_enabled()
            seen.append((name, id(x)))
            return x * factor

        return compute

    batches = [torch.ones((2, 1, 2, 2, 2)), torch.full((1, 1, 2, 2, 2), 3.0)]
    found = list(predict_batches([network("a", 2), network("b", 5)], batches))
    assert torch.is_grad_enabled()
    assert [[float(part.mean()) for part in parts] for parts in found] == [[2, 5], [6, 15]]
    assert [part.shape for part in found[0]] == [(2, 2, 2, 2)] * 2
    assert seen[0][1] == seen[1][1]
    with pytest.raises(ValueError, match="same size"):
        list(predict_batches([lambda x: x[..., :1]], batches))


@pytest.mark.parametrize("path", [Path("a"), "a"])
def test_one_structure_given_as_a_path_or_text(path):
    with pytest.raises(ImageError, match=r"\.npy"):
        output_paths(path, ["dna"], Path("in.tif"), several=False)
