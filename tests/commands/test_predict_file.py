"""Prediction from disk to disk: the same values as in memory, for several structures, formats and grids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.data.preprocessing.normalisation import normalise
from repmode_cl.data.preprocessing.resampling import resample, resample_to
from repmode_cl.data.readers import open_image
from repmode_cl.errors import ImageError, RepmodeError, UnknownStructureError
from repmode_cl.inference.options import PredictionOptions
from repmode_cl.inference.predict_file import predict_file
from repmode_cl.inference.rescale import Rescale
from repmode_cl.inference.sliding_window import sliding_window
from repmode_cl.inference.streaming.memory_plan import MemoryNeeds, MemoryPlan
from repmode_cl.inference.streaming.run import PredictionStopped
from repmode_cl.model import Model
from repmode_cl.nn import Architecture, RepModeUNet
from repmode_cl.utils.memory import peak_memory

VOXEL = (0.5, 0.3, 0.3)
WINDOW = (6, 10, 8)
BATCH = 3


def make_model(path: Path, order: int) -> Model:
    network = RepModeUNet(
        Architecture(width=2, depth=1, experts=("conv3", "conv1")), ("dna", "golgi"), seed=0
    )
    return Model.create(
        path,
        network,
        voxel_size=VOXEL,
        preprocessing={"order": order},
        inference={"window": list(WINDOW), "overlap": 0.5, "batch": BATCH},
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Model]:
    folder = tmp_path_factory.mktemp("models")
    return {order: make_model(folder / str(order), order) for order in (0, 1, 3)}


def predict_in_memory(
    model: Model, volume: NDArray[Any], structure: str, voxel: Sequence[float] | None, overlap: float = 0.5
) -> NDArray[np.float32]:
    """The prediction in one piece, by the functions that training uses."""
    whole = volume if voxel is None else resample(volume, voxel, VOXEL, model.preprocessing["order"])
    result = sliding_window(
        model.fused(structure), normalise(whole), window=WINDOW, overlap=overlap, batch_size=BATCH
    )
    return result if result.shape == volume.shape else resample_to(result, volume.shape, 1)


def write(folder: Path, volume: NDArray[Any], kind: str) -> Path:
    path = folder / ("in.npy" if kind == "npy" else "in.tif")
    if kind == "npy":
        np.save(path, volume)
    else:
        compression = "zlib" if kind == "zlib" else None
        tifffile.imwrite(
            path, volume, photometric="minisblack", metadata={"axes": "ZYX"}, compression=compression
        )
    return path


def read(path: Path, shape: Sequence[int]) -> NDArray[Any]:
    values: NDArray[Any] = np.load(path) if path.suffix == ".npy" else tifffile.imread(path)
    return values.reshape(shape)


def photo(shape: Sequence[int], dtype: type = np.uint16) -> NDArray[Any]:
    # Floats with more digits than float32 holds.
    part = 0.1 if np.dtype(dtype).kind == "f" else 0
    return (np.random.default_rng(0).integers(0, 3000, tuple(shape)) + part).astype(dtype)


# Sizes below a window's, its multiples and others; the network needs two voxels.
SIZE = st.tuples(st.integers(2, 13), st.integers(2, 22), st.integers(2, 30))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=SIZE,
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
    kind=st.sampled_from(["tif", "zlib", "npy"]),
    suffix=st.sampled_from([".npy", ".ome.tif"]),
    voxel=st.sampled_from([None, VOXEL]),
    dtype=st.sampled_from([np.uint8, np.uint16, np.int32, np.float32, np.float64]),
    cut=st.tuples(st.integers(1, 4), st.integers(1, 9)),
)
def test_without_resampling_the_bits_are_those_of_one_piece(
    models, tmp_path, monkeypatch, shape, overlap, kind, suffix, voxel, dtype, cut
):
    def plan(memory: int, grid: Any, batch: int, needs: object) -> MemoryPlan:
        # Blocks as little memory would make them: parts of a row, or several rows.
        columns = min(cut[1], len(grid.starts[2]))
        return MemoryPlan(batch, cut[0] if columns == len(grid.starts[2]) else 1, columns)

    monkeypatch.setattr("repmode_cl.inference.predict_file.plan_memory", plan)
    volume = photo(shape, dtype)
    path = write(tmp_path, volume, kind)
    out = tmp_path / f"out{suffix}"
    done = predict_file(
        models[1], "golgi", path, out, overlap=overlap, voxel_size=voxel, force=voxel is None, device="cpu"
    )
    assert (done.path, done.shape, done.grid) == (out, shape, shape)
    want = predict_in_memory(models[1], volume, "golgi", voxel, overlap)
    assert np.array_equal(read(out, shape), want)
    remaining = {file.name for file in tmp_path.iterdir()}
    assert remaining <= {"in.tif", "in.npy", "out.npy", "out.ome.tif"}


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(4, 14), st.integers(4, 26), st.integers(4, 40)),
    voxel=st.tuples(st.sampled_from([0.3, 0.5, 0.9]), *[st.sampled_from([0.2, 0.3, 0.45])] * 2),
    order=st.sampled_from([0, 1, 3]),
    kind=st.sampled_from(["tif", "zlib", "npy"]),
    tile=st.sampled_from([1, 200_000, 1 << 28]),
)
def test_with_resampling_the_values_are_those_of_one_piece(
    models, tmp_path, monkeypatch, shape, voxel, order, kind, tile
):
    monkeypatch.setattr("repmode_cl.inference.predict_file.tile_bytes", lambda memory, resident: tile)
    volume = photo(shape)
    want = predict_in_memory(models[order], volume, "dna", voxel)
    out = tmp_path / "out.npy"
    path = write(tmp_path, volume, kind)
    predict_file(models[order], "dna", path, out, voxel_size=voxel, force=True, device="cpu")
    assert np.abs(np.load(out) - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("voxel", [VOXEL, (0.7, 0.3, 0.2)])
def test_several_structures_share_one_pass_and_equal_single_ones(models, tmp_path, monkeypatch, voxel):
    volume = photo((9, 21, 30))
    path = write(tmp_path, volume, "tif")
    for name in ("dna", "golgi"):
        predict_file(models[1], name, path, tmp_path / f"{name}.ome.tif", voxel_size=voxel, device="cpu")
    reads = []
    from repmode_cl.inference.streaming import run as streaming_run

    monkeypatch.setattr(
        streaming_run,
        "read_z_scored",
        lambda *args, real=streaming_run.read_z_scored: (reads.append(1), real(*args))[1],
    )
    folder = tmp_path / "both"
    done = predict_file(models[1], ["golgi", "dna"], path, folder, voxel_size=voxel, device="cpu")
    together = len(reads)
    predict_file(models[1], ["golgi"], path, tmp_path / "{structure}.npy", voxel_size=voxel, device="cpu")
    assert len(reads) == 2 * together
    assert [one.structure for one in done] == ["golgi", "dna"]
    assert sorted(file.name for file in folder.iterdir()) == ["dna.ome.tif", "golgi.ome.tif"]
    for name in ("dna", "golgi"):
        assert (folder / f"{name}.ome.tif").read_bytes() == (tmp_path / f"{name}.ome.tif").read_bytes()
        with open_image(folder / f"{name}.ome.tif") as image:
            assert image.channel_names == (name,)
            assert image.voxel_size == pytest.approx(voxel)
    assert np.array_equal(np.load(tmp_path / "golgi.npy"), tifffile.imread(folder / "golgi.ome.tif"))


def test_options_and_keywords_are_one_set_of_settings(models, tmp_path):
    path = write(tmp_path, photo((8, 20, 20)), "npy")
    first, second = tmp_path / "first.ome.tif", tmp_path / "second.ome.tif"
    options = PredictionOptions(overlap=0.25, voxel_size=VOXEL, rescale=Rescale(-1, 1, "uint8"), device="cpu")
    predict_file(models[1], "dna", path, first, options)
    keywords = {"overlap": 0.25, "voxel_size": list(VOXEL), "rescale": "-1:1:uint8", "device": "cpu"}
    predict_file(models[1], "dna", path, second, **keywords)
    assert np.array_equal(tifffile.imread(first), tifffile.imread(second))
    assert tifffile.imread(first).dtype == np.uint8
    # A keyword replaces the field of the options.
    done = predict_file(models[1], "dna", path, tmp_path / "third.npy", options, rescale=None)
    assert (np.load(done.path).dtype, done.values) == (np.float32, "z-score units")
    assert PredictionOptions(memory="2GB", window=[4, 8, 8]) == PredictionOptions(
        memory=2 * 10**9, window=(4, 8, 8)
    )
    with pytest.raises(TypeError, match="overlaps"):
        predict_file(models[1], "dna", path, tmp_path / "out.npy", overlaps=0.25)


@pytest.mark.parametrize("tiles", [True, False])
def test_the_precision_is_resolved_once_and_recorded(models, tmp_path, monkeypatch, tiles):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    path = write(tmp_path, photo((8, 20, 20)), "npy")

    def predicted(name: str, **keywords: Any) -> tuple[bytes, str]:
        file = predict_file(
            models[1], "dna", path, tmp_path / name, voxel_size=VOXEL, device="cpu", **keywords
        )
        with tifffile.TiffFile(file.path) as tiff:
            [page] = re.findall(r'K="precision">(\w+)<', tiff.ome_metadata)
        return file.path.read_bytes(), page

    plain, chosen = predicted("o.ome.tif"), predicted("o.ome.tif", precision="auto")
    rounded = predicted("o.ome.tif", precision="bfloat16")
    assert (plain[1], rounded[1]) == ("float32", "bfloat16")
    assert chosen == (rounded if tiles else plain)
    assert rounded == predicted("o.ome.tif", precision="bfloat16"), "the same bytes again"
    first, second = (
        np.load(predict_file(models[1], "dna", path, tmp_path / f"{precision}.npy", voxel_size=VOXEL,
                             device="cpu", precision=precision).path)
        for precision in ("float32", "bfloat16")
    )  # fmt: skip
    assert 0 < np.square(second - first).mean() < 1e-3 * first.var()
    # An interrupted prediction is not continued in another format.
    options = PredictionOptions(voxel_size=VOXEL, device="cpu", precision="bfloat16", stop_after_windows=6)
    with pytest.raises(PredictionStopped):
        predict_file(models[1], "dna", path, tmp_path / "r.npy", options)
    options = replace(options, precision="float32", stop_after_windows=None)
    with pytest.raises(RepmodeError, match='precision was "bfloat16", is null'):
        predict_file(models[1], "dna", path, tmp_path / "r.npy", options)
    predict_file(models[1], "dna", path, tmp_path / "r.npy", options, precision="bfloat16")
    assert np.array_equal(np.load(tmp_path / "r.npy"), second)
    # The model's own network stays as it is.
    assert predicted("o.ome.tif") == plain


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlap": 1.0}, "overlap 1.0: a number from 0 to below 1"),
        ({"window": (4, 8)}, "three positive whole numbers"),
        ({"window": (4.9, 8, 8)}, r"window \(4.9, 8, 8\): three positive whole numbers"),
        ({"window": (float("nan"), 8, 8)}, "three positive whole numbers"),
        ({"window": (0.5, 8, 8)}, "three positive whole numbers"),
        ({"precision": "float16"}, "precision 'float16' is unknown: give one of float32, bfloat16, auto"),
        ({"voxel_size": (0.3, 0, 0.3)}, "three positive numbers in um"),
        ({"rescale": "8:2"}, "the lower first"),
        ({"memory": "plenty"}, "such as 2GB"),
    ],
)
def test_options_out_of_range_are_refused_when_made(settings, message):
    with pytest.raises(RepmodeError, match=message):
        PredictionOptions(**settings)


def command(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_command_predicts_all_or_those_named(models, tmp_path):
    volume = photo((8, 20, 20))
    path, model = write(tmp_path, volume, "npy"), models[1].path
    code, out, err = command(
        model, path, tmp_path / "all", "--all", "--memory", "40GB", "--device", "cpu", "--force"
    )
    assert code == 0
    assert "no voxel size is stated" in err
    assert out.count("8 x 20 x 20 voxels") == 2
    pattern = tmp_path / "some" / "{structure}-1.npy"
    code, out, _ = command(
        model, path, pattern, "--structure", "golgi", "--structure", "dna", "--device", "cpu", "--force"
    )
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()] == [
        str(tmp_path / "some" / f"{name}-1.npy") for name in ("golgi", "dna")
    ]
    for name in ("dna", "golgi"):
        values = np.load(tmp_path / "some" / f"{name}-1.npy")
        assert np.array_equal(values, tifffile.imread(tmp_path / "all" / f"{name}.ome.tif"))
        assert np.array_equal(values, predict_in_memory(models[1], volume, name, None))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out.npy"], "--structure NAME"),
        (["out.npy", "--all", "--structure", "dna"], "--structure NAME"),
        (["out.npy", "--all"], "{structure}.ome.tif"),
        (["out.npy", "--structure", "dna", "--memory", "plenty"], "such as 2GB"),
        (["out.npy", "--structure", "dna", "--memory", "20MB", "--force"], "is too little"),
        (["out.npy", "--structure", "dna", "--structure", "dna"], "named twice"),
        (["out.npy", "--structure", "dnaa"], "did you mean 'dna'"),
        (["out.png", "--structure", "dna"], "or .npy"),
        (["out.npy", "--structure", "dna"], "--voxel-size z,y,x"),
        (["out.npy", "--structure", "dna", "--stack"], "names its channels"),
        (["{structure}.tif", "--structure", "dna", "--stack"], "leave out {structure}"),
        (["out.npy", "--structure", "dna", "--rescale", "8:2"], "the lower first"),
        (["out.npy", "--structure", "dna", "--rescale", "1:2:int8"], "none of uint8"),
        (["out.npy", "--structure", "dna", "--rescale", "1"], "LOW:HIGH:TYPE"),
        (["out.npy", "--structure", "dna", "--target", "golgi=0", "--force"], "no channel 'golgi=0'"),
        (["out", "--all", "--target", "0"], "STRUCTURE=CHANNEL"),
        (["a.npy", "b.npy", "--structure", "dna"], "--out DIR"),
        (["--structure", "dna"], "IN and OUT"),
        (["--structure", "dna", "--out", "out.tif"], "{input}_out.tif"),
        (["none-*.tif", "--structure", "dna", "--out", "out"], "no file fits"),
        (
            ["sub/in.npy", "--structure", "dna", "--out", "out"],
            "both be written to out/in_{structure}.ome.tif",
        ),
        (["--all", "--out", "{input}.npy"], "put {structure}"),
        (["out", "--structure", "dna"], "or .npy"),
        (["in.npy", "--structure", "dna"], "is the input"),
        (["out.npy", "--structure", "dna", "--time", "1"], "no time point 1"),
        (["out.npy", "--structure", "dna", "--window", "1,16,16", "--force"], "window 1 x 16 x 16"),
        (["out.npy", "--structure", "dna", "--voxel-size", "200,200,200"], "voxels of 200 x 200 x 200 um"),
        (["out.npy", "--structure", "dna", "--voxel-size", "200,200,200", "--force"], "another unit"),
    ],
)
def test_mistakes_are_explained_and_leave_nothing(models, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, photo((8, 20, 20)), "npy")
    code, out, err = command(models[1].path, "in.npy", *arguments)
    assert code == 2
    # A usage error stands in a box, whose lines are wrapped.
    assert message in out + err or message in " ".join(re.sub("[│╭╮╰╯─]", " ", out + err).split())
    assert [file.name for file in tmp_path.iterdir()] == ["in.npy"]


def test_bad_volumes_are_refused_and_leave_nothing(models, tmp_path):
    cases = {
        "constant": (np.full((8, 20, 20), 7, np.uint16), "constant"),
        "nan": (np.where(np.arange(3200).reshape(8, 20, 20) == 77, np.nan, 1.0), "NaN"),
        "small": (photo((8, 20, 1)), "too small: 8 x 20 x 1 voxels"),
    }
    for name, (volume, message) in cases.items():
        path = tmp_path / f"{name}.npy"
        np.save(path, volume)
        with pytest.raises(ImageError, match=message) as error:
            predict_file(models[1], "dna", path, tmp_path / "out.npy", device="cpu", voxel_size=VOXEL)
        assert str(path) in str(error.value)
    with pytest.raises(UnknownStructureError):
        predict_file(models[1], ["dna", "dnaa"], path, tmp_path / "out", device="cpu")
    with pytest.raises(RepmodeError, match="no structure"):
        predict_file(models[1], [], path, tmp_path / "out", device="cpu")
    assert {file.suffix for file in tmp_path.iterdir()} == {".npy"}
    assert not (tmp_path / "out.npy").exists()


def test_little_memory_lowers_the_batch_with_a_note(models, tmp_path, monkeypatch):
    monkeypatch.setattr(MemoryNeeds, "total", lambda self, blocks, batch: batch * 100)
    path = write(tmp_path, photo((8, 20, 20)), "npy")
    done = predict_file(
        models[1], "dna", path, tmp_path / "out.npy", device="cpu", memory=250, voxel_size=VOXEL
    )
    assert "holds 2 windows at once instead of the model's 3" in done.notes[0]
    want = predict_in_memory(models[1], np.load(path), "dna", VOXEL)
    assert np.abs(np.load(done.path) - want).max() <= 1e-5 * np.abs(want).max()


def test_a_disk_that_is_too_small_is_refused(models, tmp_path, monkeypatch):
    import shutil

    path = write(tmp_path, photo((8, 20, 20)), "npy")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(RepmodeError, match="1 B are free"):
        predict_file(models[1], "dna", path, tmp_path / "out.npy", device="cpu", voxel_size=VOXEL)
    assert [file.name for file in tmp_path.iterdir()] == ["in.npy"]


def test_stages_and_windows_are_reported(models, tmp_path):
    path = write(tmp_path, photo((8, 20, 20)), "zlib")
    stages: list[str] = []
    seen: list[tuple[int, int]] = []
    predict_file(
        models[1],
        "dna",
        path,
        tmp_path / "out.npy",
        device="cpu",
        voxel_size=(0.5, 0.3, 0.4),
        status=stages.append,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert stages == ["Resampling", "Reading", "Predicting", "Writing"]
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_the_memory_of_this_process_is_known():
    assert 10_000_000 < peak_memory() < 1 << 40
