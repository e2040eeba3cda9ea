"""Findings of a look at voxels: saturation, blank planes, pairs that do not belong together, the same image twice."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.data.manifest import Row
from repmode_cl.data.phantom import simulate
from repmode_cl.data.phantom.field import simulate_field
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.readers import Region, npy
from repmode_cl.data.validation import headers
from repmode_cl.data.validation.intensity import measure_intensity, voxel_size_warning
from repmode_cl.data.validation.manifest_check import CheckOptions, Inspection, inspect_manifest
from repmode_cl.data.validation.pair_fit import fit_pair, prepare_target, signal_features
from repmode_cl.data.validation.regions import check_regions
from repmode_cl.data.validation.rows import inspect_rows

SHAPE = (10, 64, 64)


def pair(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a signal and a target that shows what is in it, with noise."""
    random = np.random.default_rng(seed)
    cells = gaussian_filter(random.normal(size=SHAPE), 1.2)
    signal = np.gradient(cells, axis=0) + 0.1 * random.normal(size=SHAPE) * cells.std()
    target = 3 * np.exp(cells / cells.std()) + random.normal(size=SHAPE)
    return signal.astype(np.float32), target.astype(np.float32)


def save(path: Path, volume: NDArray[np.generic]) -> None:
    tifffile.imwrite(path, volume, photometric="minisblack", metadata={"axes": "ZYX"})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for number in range(5):
        signal, target = pair(number)
        save(folder / f"light{number}.tif", signal)
        save(folder / f"target{number}.tif", target)
    return folder


def look(folder: Path, *lines: str, header: str = "structure,signal,target", **options: object) -> Inspection:
    path = folder / "manifest.csv"
    path.write_text("\n".join([f"{header},voxel_size_zyx", *(f"{line},0.3 0.2 0.2" for line in lines), ""]))
    return inspect_manifest(path, CheckOptions(depth=1, patch=(4, 4, 4), **options))  # type: ignore[arg-type]


def said(found: Inspection) -> list[tuple[int, str]]:
    return [(problem.row, problem.kind) for problem in found.problems]


def rows(*targets: str) -> list[str]:
    return [f"dna,light{number}.tif,{target}" for number, target in enumerate(targets)]


def test_pairs_that_belong_together_get_no_warning(images: Path) -> None:
    found = look(images, *rows(*(f"target{number}.tif" for number in range(5))))
    assert said(found) == []
    assert all(fit.related and not fit.shifted for fit in found.findings.fits.values())


def test_files_that_were_mixed_up(images: Path) -> None:
    found = look(images, *rows("target1.tif", "target0.tif", "target2.tif", "target3.tif", "target4.tif"))
    assert said(found) == [(2, "mixed up"), (3, "mixed up")]
    assert "line 3" in found.problems[0].message
    assert found.errors == ()


def test_a_target_that_is_shifted(images: Path) -> None:
    save(images / "shifted.tif", np.roll(pair(1)[1], (0, 5, -7), (0, 1, 2)))
    found = look(images, *rows("target0.tif", "shifted.tif", "target2.tif"))
    assert said(found) == [(3, "shifted")]
    assert "+5, -7 voxels" in found.problems[0].message
    assert found.as_json()["pairs"][1]["shift_zyx"][1:] == [5, -7]


@pytest.mark.slow
def test_cells_that_lie_well_are_not_called_shifted_and_most_visible_ones_that_do_not_are() -> None:
    # Fields and structures among which earlier thresholds called one of 48 shifted.
    told = right = 0
    for index in (0, 1):
        field = simulate_field(0, index, shape=(24, 96, 96))
        light = field.pop("transmitted_light")
        signal, cut = signal_features(light), signal_features(light[2:-2, 8:-8, 8:-8])
        for structure, target in field.items():
            assert not fit_pair(signal, prepare_target(target)).shifted, (index, structure)
            moved = fit_pair(cut, prepare_target(target[1:-3, 3:-13, 12:-4]))
            told += moved.shifted
            right += moved.shifted and max(abs(moved.shift[1] - 5), abs(moved.shift[2] + 4)) <= 2
    assert told >= 6
    assert right == told


def test_a_segmentation_is_not_to_be_recorded_with_less_light(images: Path) -> None:
    distance = np.hypot(*np.mgrid[-30:34, -35:29])
    interpolated = np.clip(np.float64(255) * (25 - distance) / 12, 0, 255)
    save(images / "segmentation.tif", np.broadcast_to(interpolated.astype(np.uint8), SHAPE))
    # A recorded image of bright cells on black, of which a few voxels are cut off, is no mask.
    cells = np.clip(np.random.default_rng(0).gamma(2.0, 60.0, SHAPE) * (distance < 20), 0, 350)
    save(images / "cells.tif", cells.astype(np.uint16))
    found = look(images, *rows("segmentation.tif", "cells.tif"))
    [mask, saturated] = [one for one in found.problems if one.kind in ("like a mask", "saturated")]
    assert (mask.row, mask.kind, mask.severity) == (2, "like a mask", "warning")
    assert "as in a mask or a segmentation: a network can learn it as it is" in mask.message
    assert "less light" not in mask.message
    assert (saturated.row, saturated.kind) == (3, "saturated")
    assert saturated.message.endswith("record with less light or gain")


@pytest.mark.parametrize(
    ("voxel_size", "severity"), [(None, "error"), ((0.3, 0.2, 0.2), "error"), ((0.6, 0.4, 0.4), "warning")]
)
def test_an_image_that_is_all_alike_between_its_percentiles(
    images: Path, voxel_size: tuple[float, float, float] | None, severity: str
) -> None:
    sparse = np.full(SHAPE, 7, np.uint16)
    sparse[3, 4:9, 5:20] = 900  # 75 of 40960 voxels
    sparse[:, 0, 0] = 8  # no plane is blank
    save(images / "sparse.tif", sparse)
    lines = ["dna,light0.tif,target0.tif", "dna,light1.tif,sparse.tif"]
    clipped = PreprocessingRecipe(percentiles=(0.5, 99.5))
    found = look(images, *lines, voxel_size=voxel_size, recipe=clipped)
    assert [(p.row, p.column, p.severity, p.kind) for p in found.problems] == [
        (3, "target", severity, "flat")
    ]
    assert "percentile 0.5 and percentile 99.5 of its voxels are both 7" in found.problems[0].message
    for recipe in (PreprocessingRecipe(percentiles=(0.5, 99.9)), PreprocessingRecipe()):
        assert said(look(images, *lines, voxel_size=voxel_size, recipe=recipe)) == []


def test_a_target_of_other_cells(images: Path) -> None:
    save(images / "foreign.tif", pair(77)[1])
    found = look(images, *rows("target0.tif", "target1.tif", "target2.tif", "foreign.tif"))
    assert said(found) == [(5, "unrelated")]


def test_what_nothing_can_be_told_of_is_not_remarked_on(images: Path) -> None:
    for number in range(4):
        save(images / f"noise{number}.tif", pair(100 + number)[1])
    assert said(look(images, *rows(*(f"noise{number}.tif" for number in range(4))))) == []


def test_large_volumes_are_reduced_and_shifts_told_in_voxels_of_the_file() -> None:
    random = np.random.default_rng(0)
    cells = gaussian_filter(random.normal(size=(4, 300, 300)), (1, 8, 8))
    target = np.roll(cells**2, (0, 12, 0), (0, 1, 2))
    fit = fit_pair(signal_features(cells.astype(np.float32)), prepare_target(target.astype(np.float32)))
    assert fit.shifted
    assert fit.shift[1] == pytest.approx(12, abs=3)


def test_saturation_and_blank_planes(images: Path) -> None:
    volume = (100 * gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 1)).clip(-20, 20) + 20
    bright = volume.astype(np.uint8)
    bright[3] = 9
    found = measure_intensity(bright)
    assert found.saturated == pytest.approx(np.mean(bright == 40), abs=1e-9)
    assert found.constant_planes == (3,)
    assert sum(found.counts) == bright.size
    assert not found.at_limit
    assert found.digest == measure_intensity(bright.astype(np.float32)).digest
    assert measure_intensity((bright > 20).astype(np.uint8) * 255).saturated == 0  # a label is not saturated
    save(images / "bright.tif", bright)
    problems = look(images, "dna,light0.tif,bright.tif").problems
    assert {(problem.column, problem.kind) for problem in problems} >= {
        ("target", "saturated"),
        ("target", "constant plane"),
    }


@pytest.mark.parametrize(
    ("size", "kind"),
    [
        ((0.29, 0.1, 0.1), ""), ((0.29, 0.29, 0.29), ""), (None, "missing"), ((1.0, 1.0, 1.0), "unlikely"),
        ((290.0, 108.0, 108.0), "unlikely"), ((2.9e-7, 1e-7, 1e-7), "unlikely"), ((5.0, 0.1, 0.1), "unlikely"),
        ((0.1, 0.5, 0.5), "unlikely"), ((0.3, 0.1, 0.3), "unlikely"),
    ],
)  # fmt: skip
def test_voxel_sizes(size: tuple[float, float, float] | None, kind: str) -> None:
    found = voxel_size_warning(size, Path("a.tif"))
    assert (found[0] if found else "") == (f"voxel size {kind}" if kind else "")


@pytest.mark.parametrize(
    ("voxel_size", "recipe", "said"),
    [
        (
            (0.3, 0.41, 0.41),
            PreprocessingRecipe(),
            "along y voxels become 2.05 times as large (0.2 to 0.41 um)",
        ),
        ((0.61, 0.2, 0.2), PreprocessingRecipe(), "along z"),
        ((0.6, 0.4, 0.4), PreprocessingRecipe(), ""),
        ((0.3, 0.9, 0.9), PreprocessingRecipe(anti_alias=True), ""),
        ((0.9, 0.4, 0.4), PreprocessingRecipe(axes="xy"), ""),
        (None, PreprocessingRecipe(), ""),
    ],
)
def test_voxels_that_become_much_larger_without_a_blur(
    images: Path, voxel_size: tuple[float, float, float] | None, recipe: PreprocessingRecipe, said: str
) -> None:
    found = look(images, *rows("target0.tif"), voxel_size=voxel_size, recipe=recipe, read_voxels=False)
    warnings = [problem for problem in found.problems if problem.kind == "detail lost"]
    assert len(warnings) == bool(said)
    assert not said or (said in warnings[0].message and "anti_alias: true" in warnings[0].message)


def test_the_same_image_in_two_files(images: Path) -> None:
    """Saved again, in another type and compressed: no byte of the files is alike."""
    signal = np.round(100 * pair(0)[0]).astype(np.int16)
    save(images / "one.tif", signal)
    tifffile.imwrite(
        images / "two.tif", signal.astype(np.float32), compression="zlib", photometric="minisblack",
        metadata={"axes": "ZYX"},
    )  # fmt: skip
    header = "structure,signal,target,split,group"
    lines = "dna,one.tif,target0.tif,{},{}", "nucleolus,two.tif,target0.tif,{},{}"
    for first, second, kinds in (
        (("train", ""), ("test", ""), [(3, "error")]),
        (("train", ""), ("train", ""), []),
        (("", ""), ("", ""), [(3, "warning")]),
        (("", "a"), ("", "a"), []),
    ):
        found = look(images, lines[0].format(*first), lines[1].format(*second), header=header)
        twins = [p for p in found.problems if p.kind == "duplicate"]
        assert [(problem.row, problem.severity) for problem in twins] == kinds


def test_one_target_for_two_signals(images: Path) -> None:
    found = look(images, "dna,light0.tif,target0.tif", "dna,light1.tif,target0.tif")
    assert (3, "duplicate") in said(found)


@pytest.mark.slow
def test_the_command_prints_json_and_a_page(images: Path) -> None:
    look(images, *rows("target1.tif", "target0.tif", "target2.tif", "target3.tif", "target4.tif"))
    page = images / "look.html"
    run = CliRunner().invoke(
        app, ["data", "check", str(images / "manifest.csv"), "--depth", "1", "--patch", "4,4,4", "--json",
              "--page", str(page)],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    told = json.loads(run.stdout)
    assert told["ok"] is True
    assert [problem["kind"] for problem in told["problems"]] == ["mixed up", "mixed up"]
    assert len(told["images"]) == 10
    assert sum(told["images"][0]["histogram"]["counts"]) == np.prod(SHAPE)
    assert told["pairs"][0]["other"]["line"] == 3
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") == 15  # signal, target and overlay
    assert "fits the signal of line 3" in text
    assert "http" not in text.replace("http-equiv", "")
    strict = CliRunner().invoke(
        app, ["data", "check", str(images / "manifest.csv"), "--strict", "--depth", "1"]
    )
    assert strict.exit_code == 2


def test_what_is_prepared_otherwise_is_checked_so(images: Path) -> None:
    save(images / "flat.tif", np.full(SHAPE, 7, np.uint8))
    lines = [
        "dna,light0.tif,target0.tif,train,",
        "dna,flat.tif,target1.tif,test,",
        "dna,light2.tif,flat.tif,{},",
    ]
    header = "structure,signal,target,split,region"

    def constant(split: str, recipe: PreprocessingRecipe) -> list[tuple[int, str, str]]:
        found = look(images, *(line.format(split) for line in lines), header=header, recipe=recipe)
        return [(one.row, one.severity, one.message.split("everywhere)")[1]) for one in found.problems]

    assert constant("train", PreprocessingRecipe()) == [(3, "error", ""), (4, "error", "")]
    zeros = PreprocessingRecipe(empty="zeros")
    taken = "; it is prepared as zeros (empty: zeros)"
    assert constant("train", zeros) == [(3, "warning", taken), (4, "warning", taken)]
    assert "set its split to train" in constant("", zeros)[1][2]
    [_, (_, severity, message)] = constant("val", zeros)
    assert severity == "error"
    assert "R2 is undefined" in message


def test_axes_that_are_not_resampled_keep_their_planes(images: Path) -> None:
    # 10 planes of 0.3 um become 3 of 1 um; a network of depth 3 takes no fewer than 4.
    whole = "dna,light0.tif,target0.tif"
    options: dict[str, Any] = {"voxel_size": (1.0, 0.2, 0.2), "read_voxels": False}
    path = images / "manifest.csv"
    path.write_text(f"structure,signal,target,voxel_size_zyx\n{whole},0.3 0.2 0.2\n")
    assert (
        "after resampling 3 x 64 x 64"
        in inspect_manifest(path, CheckOptions(depth=3, **options)).errors[0].message
    )
    assert not inspect_manifest(
        path, CheckOptions(depth=3, recipe=PreprocessingRecipe(axes="xy"), **options)
    ).errors
    header = "structure,signal,target,split,region"
    parts = [f'{whole},train,"0:4,:,:"', f'{whole},test,"7:10,:,:"']  # half a patch: 2 planes, or 7 of 1 um
    assert "keep 7, 2, 2 voxels" in str(look(images, *parts, header=header, **options).errors)
    assert not look(images, *parts, header=header, recipe=PreprocessingRecipe(axes="xy"), **options).errors
    path.write_text(f"structure,signal,target,voxel_size_zyx\n{whole},300 200 200\n")
    [error] = inspect_manifest(path, CheckOptions(depth=1, read_voxels=False)).errors
    assert (error.column, "is it in another unit?" in error.message) == ("voxel_size_zyx", True)


def test_the_command_checks_for_a_configuration(images: Path, tmp_path: Path) -> None:
    save(images / "flat.tif", np.full(SHAPE, 7, np.uint8))
    look(images, "dna,flat.tif,target0.tif,train", header="structure,signal,target,split")
    config = tmp_path / "my.yaml"
    config.write_text(
        "name: my\ntraining: {steps: 1}\nnetwork: {depth: 1}\npatch: {size: [4, 4, 4]}\n"
        "data: {preprocessing: {empty: zeros}}\n"
    )
    command = ["data", "check", str(images / "manifest.csv")]
    assert CliRunner().invoke(app, [*command, "--depth", "1"]).exit_code == 2
    run = CliRunner().invoke(app, [*command, "--config", str(config)])
    assert run.exit_code == 0, run.output
    assert "prepared as zeros" in run.output
    assert CliRunner().invoke(app, [*command, "--config", str(config), "--depth", "6"]).exit_code == 2


def test_regions_are_checked_for_the_patch_of_the_next_command(images: Path, tmp_path: Path) -> None:
    """By default for `repmode-cl config quickstart`, which the README trains with; --model takes a model's."""
    for name, volume in zip(("light", "target"), pair(0), strict=True):
        save(images / f"wide-{name}.tif", np.tile(volume, (2, 1, 2)))
    part = 'dna,wide-light.tif,wide-target.tif,{},":,:,{}",0.3 0.3 0.3'
    manifest = images / "regions.csv"
    lines = [
        "structure,signal,target,split,region,voxel_size_zyx",
        part.format("train", "0:48"),
        part.format("test", "82:128"),
    ]
    manifest.write_text("\n".join(lines))
    model = Path(__file__).parents[1] / "fixtures" / "model-v2"

    def check(*options: str | Path) -> tuple[int, str]:
        run = CliRunner().invoke(app, ["data", "check", str(manifest), "--headers-only", *map(str, options)])
        return run.exit_code, run.output

    code, text = check()
    assert code == 0, text
    assert "checked for patches of 8 x 32 x 32 (z, y, x) and depth 3" in text
    assert "`repmode-cl config quickstart`" in text
    code, text = check("--config", "paper")
    assert code == 2
    assert "error: " in text
    assert "only 34 voxels from line 2" in text
    assert "patches of 32 x 128 x 128 (z, y, x) and depth 4" in text
    code, text = check("--model", model)
    assert code == 0, text
    assert (
        f"patches of 8 x 8 x 8 (z, y, x) and depth 1, at voxels of 0.29 x 0.29 x 0.29 um: what the model {model}"
        in text
    )
    code, text = check("--model", model, "--patch", "8,72,72")
    assert code == 2
    assert "with --patch" in text
    assert "give one of them" in check("--model", model, "--config", "paper")[1]
    told = json.loads(check("--json")[1])
    assert told["checked_for"]["patch"] == [8, 32, 32]


def test_errors_come_first_and_warnings_of_one_kind_share_a_line(images: Path) -> None:
    manifest = images / "twelve.csv"
    lines = [f"dna,light{number}.tif,target{number}.tif" for number in range(5)]
    manifest.write_text("\n".join(["structure,signal,target", *lines, "nucleolus,light0.tif,gone.tif"]))
    command = ["data", "check", str(manifest), "--headers-only", "--depth", "1"]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 2
    printed = run.stderr.splitlines()
    assert printed[0].startswith(f"error: {manifest}, line 7, target: ")
    warnings = [line for line in printed if line.startswith("warning: ")]
    assert printed.index(warnings[0]) > 0
    [missing] = warnings
    assert missing.startswith(
        f"warning: {manifest}, lines 2-6: voxel size missing (5 warnings); the first is line 2, signal: "
    )
    assert "1 error and 5 warnings in 6 rows" in run.stderr
    listed = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert len([one for one in listed["problems"] if one["kind"] == "voxel size missing"]) == 5


@pytest.mark.parametrize("shards", [None, (10, 32, 32)])
def test_chunks_that_are_not_there(images: Path, shards: tuple[int, int, int] | None) -> None:
    """Eight parts of two channels; of the second, which no row names, none is there."""
    name = f"half{shards is None}.zarr"
    root = zarr.open_group(images / name, mode="w")
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    scale = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 0.3, 0.2, 0.2]}]}
    root.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [scale]}]}
    inner = (1, 10, 32, 16) if shards else (1, 10, 32, 32)
    root.create_array("0", shape=(2, *SHAPE), dtype="f4", chunks=inner, shards=shards and (1, *shards))
    array = root["0"]
    assert isinstance(array, zarr.Array)
    array[0] = pair(0)[0]
    header, line = "structure,signal,signal_channel,target,region", "dna,{},0,target0.tif,{}"
    assert "chunks absent" not in [
        kind for _, kind in said(look(images, line.format(name, ""), header=header))
    ]
    (images / name / "0" / "c" / "0" / "0" / "1" / "0").unlink()
    [warning] = [
        one
        for one in look(images, line.format(name, ""), header=header).warnings
        if one.kind == "chunks absent"
    ]
    assert (warning.column, f"{name}, channel C0: 1 of 4 chunks are missing" in warning.message) == (
        "signal",
        True,
    )
    upper = line.format(name, '":,0:32,:"')
    assert "chunks absent" not in [kind for _, kind in said(look(images, upper, header=header))]


def test_headers_are_read_once_and_no_voxels(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    real = headers.open_image
    monkeypatch.setattr(
        headers, "open_image", lambda path, **choice: opened.append(path) or real(path, **choice)
    )
    monkeypatch.setattr(npy.NpyReader, "_load", None)  # reading would fail
    np.save(images / "a.npy", pair(0)[0])
    lines = [f"{name},a.npy,a.npy" for name in ("dna", "nucleolus", "golgi")]
    found = look(images, *lines, read_voxels=False)
    assert opened == [images / "a.npy"]
    assert {problem.message for problem in found.errors} == {
        "is the same channel of the same file as the signal"
    }


@pytest.mark.slow
def test_thousands_of_regions_of_one_file_are_compared_in_a_sweep(images: Path) -> None:
    count = 20_000
    np.save(images / "long.npy", np.zeros((1, 1, 4 * count), np.uint8))
    path = images / "long.npy"
    regions = [Region((0, None), (0, None), (4 * n, 4 * n + 4)) for n in range(count)]
    regions[700] = Region((0, None), (0, None), (2798, 2804))
    found = inspect_rows(
        [
            Row(n, "dna", path, 0, path, 0, "test" if n % 2 else "train", region=region)
            for n, region in enumerate(regions)
        ],
        depth=1,
        voxel_size=None,
        recipe=PreprocessingRecipe(),
    )
    problems = check_regions(found, (0, 0, 0), (2, 2, 2), None, PreprocessingRecipe(), {path: "long"})
    assert [(problem.row, problem.column) for problem in problems] == [(700, "region")]
    same = [Row(n, "dna", path, 0, path, 0) for n in range(2, 5_000)]
    found = inspect_rows(same, depth=1, voxel_size=None, recipe=PreprocessingRecipe())
    many = check_regions(found, None, (2, 2, 2), None, PreprocessingRecipe(), {path: "long"})
    assert len(many) == 4_997
    assert many[-1].message == "is the same as line 2: remove one"


def test_a_scene_called_by_name_and_by_number(images: Path) -> None:
    path = images / "scenes.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for number in range(2):
            volume = np.stack(pair(number))
            file.write(volume, photometric="minisblack", metadata={"axes": "CZYX", "Name": f"field{number}"})
    header = "structure,signal,signal_channel,target,target_channel,scene"
    line = "{},scenes.ome.tif,0,scenes.ome.tif,1,{}"
    found = look(images, line.format("dna", 1), line.format("nucleolus", "field1"), header=header)
    assert [(problem.row, problem.column) for problem in found.errors] == [(3, "scene")]
    found = look(images, line.format("dna", ""), header=header)
    assert "2 scenes: 0 'field0', 1 'field1'" in found.errors[0].message


@pytest.mark.slow
def test_a_manifest_of_a_hundred_thousand_rows(images: Path) -> None:
    """Two thousand files, each in fifty rows; the last row is wrong. A minute is what such a check may take."""
    source = (images / "light0.tif").read_bytes()
    folder = images / "many"
    folder.mkdir()
    for number in range(2_000):
        (folder / f"{number}.tif").write_bytes(source)
    lines = [f"s{row // 1_000},{row % 1_000}.tif,{1_000 + row % 1_000}.tif" for row in range(100_000)]
    path = folder / "manifest.csv"
    path.write_text("\n".join(["structure,signal,target", *lines[:-1], "dna,0.tif,none.tif"]))
    began = time.perf_counter()
    found = inspect_manifest(path, CheckOptions(depth=1, patch=(4, 4, 4), read_voxels=False))
    assert time.perf_counter() - began < 60
    assert [(problem.row, problem.column) for problem in found.errors] == [(100_001, "target")]


@pytest.mark.parametrize("structure", ["dna", "nucleolus", "mitochondria"])
def test_signal_and_target_that_were_swapped(tmp_path: Path, structure: str) -> None:
    path = simulate(tmp_path, fields=2, structures=[structure], seed=3, shape=(12, 64, 64))
    assert not [problem for problem in inspect_manifest(path).problems if problem.kind == "swapped"]
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    columns = header.replace("signal", "?").replace("target", "signal").replace("?", "target")
    path.write_text("\n".join([columns, *lines]) + "\n", encoding="utf-8")
    kinds = {"mixed up", "shifted", "unrelated", "swapped"}
    found = [problem for problem in inspect_manifest(path).problems if problem.kind in kinds]
    assert [(problem.row, problem.kind) for problem in found] == [(2, "swapped"), (3, "swapped")]
    assert "signal and target may be swapped" in found[0].message
