"""Previews: what is shown of which image, before the files; and structures that are still pending."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import store_operations
import tifffile
import torch
from click.testing import Result
from numpy.typing import NDArray
from PIL import Image
from stored_model import liven, make_predictor
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.data.preprocessing.normalisation import normalise
from repmode_cl.errors import ModelError, RepmodeError
from repmode_cl.inference import preview as preview_module
from repmode_cl.inference.options import PredictionOptions
from repmode_cl.inference.predict_file import predict_file
from repmode_cl.inference.preview import PreviewVolumes, preview_box
from repmode_cl.inference.sliding_window import sliding_window
from repmode_cl.inference.streaming import previews
from repmode_cl.inference.streaming.run import PredictionStopped
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec
from repmode_cl.store import make_candidate, stage
from repmode_cl.store.staging import list_staged, open_with_staged
from repmode_cl.workflows.preview_page import FLAT, PreviewWriter, preview_paths

VOXEL = (0.5, 0.25, 0.25)
SHAPE = (6, 20, 24)
IMAGES = re.compile(r'<img src="data:image/jpeg;base64,([^"]+)" alt="([^"]+)"')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preview")
    make_predictor(folder / "model", VOXEL, (4, 8, 8))
    for number in range(2):
        write(folder / f"field{number}.tif", np.random.default_rng(number).integers(0, 900, SHAPE))
    return folder


def write(path: Path, values: NDArray[np.int64]) -> None:
    z, y, x = VOXEL
    tifffile.imwrite(
        path, values.astype(np.uint16), imagej=True, resolution=(1 / x, 1 / y),
        metadata={"axes": "ZYX", "spacing": z, "unit": "um"},
    )  # fmt: skip


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(folder)
    return lambda *words: CliRunner().invoke(app, ["predict", "model", *map(str, words)])


def small_part(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int, int]) -> None:
    monkeypatch.setattr(preview_module, "PREVIEW_SIZE", size)
    monkeypatch.setattr(previews, "PREVIEW_SIZE", size)
    monkeypatch.setattr(previews, "preview_box", lambda shape, most=1: preview_box(shape, 1))


def test_a_small_image_is_shown_whole_and_as_it_is_written(folder: Path, tmp_path: Path) -> None:
    seen: list[PreviewVolumes] = []
    out = tmp_path / "dna.tif"

    def look(volumes: PreviewVolumes) -> None:
        assert not out.exists()  # the preview comes first
        seen.append(volumes)

    predict_file(folder / "model", "dna", folder / "field0.tif", out, preview=look)
    [volumes] = seen
    assert volumes.is_whole
    assert volumes.grid == SHAPE
    assert volumes.voxel_size == pytest.approx(VOXEL)
    np.testing.assert_array_equal(volumes.predictions["dna"], tifffile.imread(out))
    np.testing.assert_array_equal(volumes.light, normalise(tifffile.imread(folder / "field0.tif")))


def test_of_a_large_image_the_middle_is_predicted_before_the_rest(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_part(monkeypatch, (4, 8, 12))
    events: list[object] = []
    options = PredictionOptions(preview=events.append, progress=lambda count, total: events.append(count))
    predict_file(folder / "model", ["dna", "golgi"], folder / "field0.tif", tmp_path / "out", options)
    volumes = events[0]
    assert isinstance(volumes, PreviewVolumes)
    assert events[1] == 0
    assert [(part.start, part.stop) for part in volumes.box] == [(1, 5), (6, 14), (6, 18)]
    np.testing.assert_array_equal(
        volumes.light, normalise(tifffile.imread(folder / "field0.tif"))[volumes.box]
    )
    network = Model.open(folder / "model").fused("golgi")
    expected = sliding_window(network, volumes.light, window=(4, 8, 8), overlap=0.5, batch_size=3)
    np.testing.assert_array_equal(volumes.predictions["golgi"], expected)


def test_an_interrupted_prediction_shows_its_results_and_a_finished_one_its_file(
    folder: Path, tmp_path: Path
) -> None:
    seen: list[PreviewVolumes] = []
    call = (folder / "model", "dna", folder / "field0.tif", tmp_path / "dna.tif")
    with pytest.raises(PredictionStopped):
        predict_file(*call, preview=seen.append, stop_after_windows=3)
    predict_file(*call, preview=seen.append, rescale=None)
    assert len(seen) == 1
    predict_file(*call, preview=seen.append, keep=True)
    assert [one.existed for one in seen] == [False, True]
    np.testing.assert_array_equal(seen[0].predictions["dna"], seen[1].predictions["dna"])


def test_rescaled_files_that_exist_are_shown_in_z_scores(folder: Path, tmp_path: Path) -> None:
    seen: list[PreviewVolumes] = []
    call = (folder / "model", "dna", folder / "field0.tif", tmp_path / "dna.tif")
    for _ in range(2):
        predict_file(*call, preview=seen.append, rescale="-9:9:uint16", stack=True, keep=True)
    assert seen[1].existed
    np.testing.assert_allclose(seen[1].predictions["dna"], seen[0].predictions["dna"], atol=2e-4)


def test_the_page_holds_each_image_and_structure(folder: Path, run: Callable[..., Result]) -> None:
    result = run(
        "--all",
        "field0.tif",
        "field1.tif",
        "--out",
        "page",
        "--preview",
        "page/look.html",
        "--csv",
        "page/t.csv",
    )
    assert result.exit_code == 0, result.output
    assert result.output.count("page/look.html: preview") == 1
    assert (folder / "page" / "field1_golgi.ome.tif").exists()
    text = (folder / "page" / "look.html").read_text()
    assert re.findall("<h2>(field.*)</h2>", text) == ["field0.tif", "field1.tif"]
    titles = [title for _, title in IMAGES.findall(text)]
    for panel in ("transmitted light", "prediction", "overlay"):
        for name in ("dna", "golgi"):
            for view in ("xy", "xz", "projection"):
                assert titles.count(f"{panel} of {name}, {view}") == 2
    assert "http" not in re.sub(r"data:image/jpeg;base64,[^\"]+|http-equiv", "", text)
    # 24 columns of 0.25 um are 6 um, of which a bar of 1 um is a sixth.
    assert '<i style="width:16.67%"></i><span>1 µm</span>' in text
    assert "the whole image, 6 x 20 x 24 voxels" in text
    assert text.count("Verdict from held-out images: unknown: ") == 4


def test_the_pictures_are_those_of_the_volumes(tmp_path: Path, folder: Path) -> None:
    prediction = np.zeros((8, 16, 32), np.float32)
    prediction[5, 4:12, 10:20] = 4.0
    light = np.random.default_rng(0).normal(size=prediction.shape).astype(np.float32)
    writer = PreviewWriter(Model.open(folder / "model"), {"a.tif": tmp_path / "a.html"})
    whole = (slice(0, 8), slice(0, 16), slice(0, 32))
    flat = np.full_like(prediction, 0.3)
    flat[4, 8, 8] = 0.3 + FLAT
    writer(PreviewVolumes("a.tif", light, {"dna": prediction, "golgi": flat}, None, whole, (8, 16, 32)))
    text = (tmp_path / "a.html").read_text()
    pictures = {title: decode(data) for data, title in IMAGES.findall(text)}
    assert "xy: plane 5" in text
    shown = pictures["prediction of dna, xy"]
    assert shown[8, 15] > 240
    assert shown[1, 1] < 15
    assert pictures["prediction of dna, xz"].shape == (8, 32)
    assert abs(int(pictures["prediction of dna, projection"][8, 15]) - int(shown[8, 15])) < 10
    # What is nearly constant is grey and said to be: it is not stretched into a structure.
    assert pictures["prediction of golgi, projection"].max() < 180
    assert text.count("Next to nothing is predicted here") == 1
    assert "<span>5 voxels</span>" in text
    assert "no voxel size is known" in text


def decode(data: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_a_full_page_says_what_it_leaves_out(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repmode_cl.workflows.preview_page.BUDGET", 1_000)
    volume = np.random.default_rng(0).normal(size=(4, 16, 16)).astype(np.float32)
    whole = (slice(0, 4), slice(0, 16), slice(0, 16))
    writer = PreviewWriter(Model.open(folder / "model"), {"a.tif": tmp_path / "a.html"})
    writer(PreviewVolumes("a.tif", volume, {"dna": volume}, VOXEL, whole, (4, 16, 16)))
    text = (tmp_path / "a.html").read_text()
    assert not IMAGES.search(text)
    assert "put {input} into the name" in text


def test_a_picture_shows_light_prediction_and_overlay(tmp_path: Path, folder: Path) -> None:
    prediction = np.zeros((8, 32, 32), np.float32)
    prediction[2:6, 8:24, 8:24] = 4.0
    light = np.random.default_rng(0).normal(size=prediction.shape).astype(np.float32)
    writer = PreviewWriter(Model.open(folder / "model"), {"a.tif": tmp_path / "a.png"})
    whole = (slice(0, 8), slice(0, 32), slice(0, 32))
    for _ in range(2):  # its own picture is replaced
        writer(PreviewVolumes("a.tif", light, {"dna": prediction}, VOXEL, whole, (8, 32, 32)))
        assert preview_paths(tmp_path / "a.png", ["a.tif"]) == [tmp_path / "a.png"]
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture).astype(int)
    # Three columns of 256 pixels with margins; the light is grey, the overlay has the colour of DNA.
    assert pixels.shape[1] == 3 * 256 + 4 * 12
    columns = [pixels[160:220, 12 + k * 268 + 100 : 12 + k * 268 + 160] for k in range(3)]
    assert np.ptp(columns[0], axis=2).max() == 0
    assert columns[1].min() > 230
    blue, green, red = (columns[2][..., k].mean() for k in (2, 1, 0))
    assert blue > green > red + 20


def test_each_image_needs_a_picture(folder: Path, run: Callable[..., Result]) -> None:
    words = ("--structure", "dna", "field0.tif", "field1.tif", "--out", "pictures")
    refused = run(*words, "--preview", "look.png")
    assert refused.exit_code == 2
    assert "put {input} into the name" in refused.output
    assert not (folder / "pictures").exists()
    inputs = [Path("x/a.ome.tif"), Path("b.tif")]
    assert preview_paths("look/{input}.png", inputs) == [Path("look/a.png"), Path("look/b.png")]
    assert preview_paths("look.html", inputs) == [Path("look.html"), Path("look.html")]


def test_names_at_which_no_preview_is_written(tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("<title>thesis</title>")
    Image.new("L", (4, 4)).save(tmp_path / "mine.png")
    for name, message in {
        "a.pdf": "a page .*html. or a picture",
        "mine.html": "is no preview, and is not replaced",
        "mine.png": "is no preview, and is not replaced",
    }.items():
        with pytest.raises(RepmodeError, match=message):
            preview_paths(tmp_path / name, [Path("a.tif")])
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(RepmodeError, match="is a folder"):
        preview_paths(tmp_path / "folder.html", [Path("a.tif")])


def test_one_of_several_time_points_is_named(folder: Path, run: Callable[..., Result]) -> None:
    values = np.random.default_rng(4).integers(0, 900, (3, *SHAPE)).astype(np.uint16)
    tifffile.imwrite(folder / "movie.tif", values, imagej=True, metadata={"axes": "TZYX"})
    words = (
        "--structure",
        "dna",
        "--voxel-size",
        "0.5,0.25,0.25",
        "movie.tif",
        "movie_dna.tif",
        "--preview",
        "t.html",
    )
    assert "3 time points" in run(*words).output
    assert not (folder / "t.html").exists()
    assert run(*words, "--t", 2).exit_code == 0
    assert "time point 2" in (folder / "t.html").read_text()


# -- pending structures ---------------------------------------------------------------------------------------


@pytest.fixture
def pending(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    store_operations.stage(model_path, "golgi_apparatus")
    (model_path / "pending" / "desmosome").mkdir()
    folder = model_path.parent
    tifffile.imwrite(
        folder / "in.tif", np.random.default_rng(0).integers(0, 9, (8, 9, 8)).astype(np.uint8), imagej=True,
        resolution=(1 / 0.29, 1 / 0.29), metadata={"axes": "ZYX", "spacing": 0.29, "unit": "um"},
    )  # fmt: skip
    monkeypatch.chdir(folder)
    return model_path


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_pending_structure_is_predicted_and_said_to_be_pending(pending: Path) -> None:
    unknown = invoke("predict", pending, "--structure", "golgi_apparatus", "in.tif", "out.tif")
    assert unknown.exit_code == 2
    text = " ".join(unknown.output.split())
    assert "unknown structure 'golgi_apparatus'" in text
    assert "'golgi_apparatus' is pending and not part of the model" in text
    assert "--pending golgi_apparatus" in text
    before = {file: file.read_bytes() for file in pending.rglob("*") if file.is_file()}
    result = invoke(
        "predict", pending, "--pending", "golgi_apparatus", "in.tif", "out.tif", "--preview", "look.html"
    )
    assert result.exit_code == 0, result.output
    assert {file: file.read_bytes() for file in pending.rglob("*") if file.is_file()} == before
    assert "pending: not part of the model" in Path("look.html").read_text()
    with tifffile.TiffFile("out.tif") as tiff:
        assert "pending: it was not part of the model" in tiff.ome_metadata
    invoke("accept", pending, "golgi_apparatus")
    assert invoke("predict", pending, "--structure", "golgi_apparatus", "in.tif", "taken.tif").exit_code == 0
    np.testing.assert_array_equal(tifffile.imread("out.tif"), tifffile.imread("taken.tif"))


def test_what_is_not_staged_cannot_be_predicted(pending: Path) -> None:
    model = Model.open(pending)
    with pytest.raises(
        ModelError, match=r"'desmosome' is pending in .* but not staged: its training is not finished"
    ):
        open_with_staged(model, ["desmosome"])
    with pytest.raises(ModelError, match="no pending 'golgi'"):
        open_with_staged(model, ["golgi"])
    [staged] = list_staged(model)
    (staged.folder / staged.file).write_bytes(b"x" * 100)
    with pytest.raises(ModelError):
        open_with_staged(model, ["golgi_apparatus"])
    both = invoke("predict", pending, "--pending", "dna", "--structure", "dna", "in.tif", "out")
    assert "named by --structure" in both.output


def test_a_version_that_is_to_replace_another_stands_in_its_place(model_path: Path) -> None:
    model = Model.open(model_path)
    model.remove("mitochondria")  # which needs it
    network = model.network([])
    network.add_structure("tight_junction", AdditionSpec(expert="conv1"), seed=5)
    liven(network, ".own.tight_junction.")
    model.pending("tight_junction").mkdir(parents=True)
    candidate = make_candidate(
        model,
        "tight_junction",
        network,
        model.pending("tight_junction"),
        metrics={"r2": 0.25, "pearson": 0.5},
    )
    stage(model, candidate, why="to see", replace=True)
    staged = open_with_staged(model, ["tight_junction"])
    assert staged.structures == model.structures
    assert staged.staged == {"tight_junction"}
    assert not model.staged
    probe = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    new = Model.open(model_path)
    with torch.no_grad():
        inputs = torch.from_numpy(probe)[None, None]
        pending = staged.fused("tight_junction")(inputs)
        assert not torch.equal(model.fused("tight_junction")(inputs), pending)
        new.accept("tight_junction")
        assert torch.equal(new.fused("tight_junction")(inputs), pending)
    assert "nothing is pending" in invoke("pending", model_path).output


def test_pending_shows_the_figures_beside_those_of_the_version_to_be_replaced(pending: Path) -> None:
    model = Model.open(pending)
    network = model.network([])
    network.add_structure("tight_junction", AdditionSpec(expert="conv1"), seed=5)
    model.pending("tight_junction").mkdir(parents=True)
    candidate = make_candidate(
        model,
        "tight_junction",
        network,
        model.pending("tight_junction"),
        metrics={"r2": 0.25, "pearson": 0.5},
    )
    stage(model, candidate, why="to see", replace=True)
    text = invoke("pending", pending).output
    size, now = candidate.entry.bytes, model.entries["tight_junction"].bytes
    assert (
        f"  R2 0.250 (now in the model 0.500), Pearson 0.500 (now in the model none), {size:,} bytes "
        f"(now in the model {now:,})\n"
    ) in text
    assert "measured on images that are not known to be the same" in text
    golgi = next(one for one in list_staged(model) if one.name == "golgi_apparatus")
    assert golgi.entry is not None
    assert f"  R2 0.400, {golgi.entry.bytes:,} bytes\n" in text


# -- ImageJ ---------------------------------------------------------------------------------------------------


def test_an_imagej_hyperstack_is_what_imagej_reads(folder: Path, run: Callable[..., Result]) -> None:
    result = run("--all", "--stack", "--imagej", "field0.tif", "stack.tif", "--rescale", "-9:9:uint16")
    assert result.exit_code == 0, result.output
    plain = run("--all", "--stack", "field0.tif", "plain.ome.tif", "--rescale", "-9:9:uint16")
    assert plain.exit_code == 0, plain.output
    with tifffile.TiffFile(folder / "stack.tif") as tiff:
        assert tiff.is_imagej
        assert not tiff.is_bigtiff
        assert tiff.ome_metadata is None
        [series] = tiff.series
        assert (series.axes, series.shape) == ("ZCYX", (6, 3, 20, 24))
        assert series.dataoffset is not None  # contiguous, as ImageJ has it
        page, metadata = tiff.pages[0], tiff.imagej_metadata
        assert not page.is_tiled
        assert page.tags["Compression"].value == 1
        x, y = (page.tags[name].value for name in ("XResolution", "YResolution"))
        assert (x[0] / x[1], y[0] / y[1]) == pytest.approx((4.0, 4.0))
        values = series.asarray()
    assert metadata is not None
    assert (metadata["images"], metadata["channels"], metadata["slices"]) == (18, 3, 6)
    assert (metadata["spacing"], metadata["unit"], metadata["mode"]) == (0.5, "um", "composite")
    assert metadata["Labels"][:3] == ["transmitted light", "dna", "golgi"]
    assert metadata["LUTs"][1][:, -1].tolist() == [64, 128, 255]
    assert len(metadata["Ranges"]) == 6
    assert "model_digest: " in metadata["Info"]
    np.testing.assert_array_equal(values.transpose(1, 0, 2, 3), tifffile.imread(folder / "plain.ome.tif"))


def test_an_imagej_hyperstack_is_known_as_a_prediction(folder: Path, run: Callable[..., Result]) -> None:
    words = ("--structure", "dna", "--imagej", "field0.tif", "--out", "fiji")
    assert run(*words).exit_code == 0
    with tifffile.TiffFile(folder / "fiji" / "field0_dna.tif") as tiff:
        assert tiff.imagej_metadata is not None
        assert tiff.series[0].dtype == np.float32
        assert "mode" not in tiff.imagej_metadata or tiff.imagej_metadata["mode"] == "grayscale"
    assert "already there" in run(*words).output


def test_what_no_imagej_hyperstack_can_be_is_refused(
    folder: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, message in {
        "a.ome.tif": "is no OME-TIFF",
        "a.ome.zarr": "is a TIFF",
        "a.npy": "is a TIFF",
    }.items():
        result = run("--structure", "dna", "--imagej", "field0.tif", name)
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
    monkeypatch.setattr("repmode_cl.inference.writers.imagej.IMAGEJ_BYTES", 4 * 6 * 20 * 24 - 1)
    result = run("--structure", "dna", "--imagej", "field0.tif", "big.tif")
    assert result.exit_code == 2
    assert "ImageJ's own TIFF holds at most" in " ".join(result.output.split())
    assert not list(folder.glob("big*"))
