"""How unlike the training images an image is: features of blocks, scores, maps, and what predictions say of them."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from serving import client, wait_for
from stored_model import base_network
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.data.preprocessing.normalisation import normalise
from repmode_cl.errors import ModelError, RepmodeError
from repmode_cl.inference.block_features import BlockFeatures
from repmode_cl.inference.flips import with_spread
from repmode_cl.inference.intervals import calibrate
from repmode_cl.inference.options import PredictedFile, PredictionOptions
from repmode_cl.inference.predict_file import predict_file
from repmode_cl.inference.predict_files import predict_files
from repmode_cl.inference.sliding_window import sliding_windows
from repmode_cl.inference.streaming.run import PredictionStopped
from repmode_cl.inference.unlike import (
    ImageScore,
    WindowScores,
    WindowSums,
    measure_features,
    score_volume,
    training_statistics,
)
from repmode_cl.inference.windows import WindowGrid, gaussian_weights, plan_windows
from repmode_cl.model import Model
from repmode_cl.nn import fold_norms, fold_structure
from repmode_cl.nn.plain_unet import PlainUNet
from repmode_cl.store.reliability import Calibration, Reliability

WINDOW = (8, 8, 8)
WINDOWS = {"window": WINDOW, "overlap": 0.5}
SHAPE = (8, 20, 16)


def smooth(seed: int) -> np.ndarray:
    """An image whose neighbouring voxels are alike, as those of all training images here."""
    random = np.random.default_rng(seed)
    image = random.normal(size=SHAPE)
    for axis in range(3):
        image = image + np.roll(image, 1, axis) + np.roll(image, -1, axis)
    return (1000 + 10 * image).astype(np.uint16)


def step() -> np.ndarray:
    """An image of another kind: dark, then bright."""
    return np.where(np.arange(SHAPE[2]) > 12, 1000, np.zeros(SHAPE)).astype(np.uint16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model whose first structure has statistics and a calibration, and whose second has none."""
    network = base_network()
    fused = fold_structure(network, "dna")
    groups = {number: [normalise(smooth(number))] for number in range(6)}
    scores = [np.sort(np.random.default_rng(n).exponential(size=50)) for n in range(20)]
    calibration = calibrate(scores, split="test", flips=("y", "x"))
    return Model.create(
        tmp_path_factory.mktemp("unlike") / "model",
        network,
        voxel_size=None,
        preprocessing={"order": 1},
        inference={"window": WINDOW, "overlap": 0.5, "batch": 3},
        reliability={"dna": Reliability(training_statistics(fused, groups, **WINDOWS), calibration)},
    )


def write(path: Path, image: np.ndarray) -> Path:
    tifffile.imwrite(path, image)
    return path


def channels(path: Path) -> tuple[np.ndarray, str]:
    with tifffile.TiffFile(path) as tiff:
        assert tiff.ome_metadata is not None
        return tiff.asarray(), tiff.ome_metadata


def fact(text: str, key: str) -> str:
    found = re.search(rf'K="{key}">([^<]*)<', text)
    assert found is not None, key
    return found[1]


def test_features_are_those_of_the_blocks_and_change_no_bit() -> None:
    network = fold_norms(PlainUNet(3, 2, 3, seed=1).eval())
    x = torch.randn((3, 1, 8, 8, 12), generator=torch.Generator().manual_seed(0))
    outputs: dict[str, np.ndarray] = {}
    probe = BlockFeatures(network)
    with torch.no_grad():
        expected = network(x)
        for name, block in network.named_blocks():
            block.register_forward_hook(
                lambda _, __, out, name=name: outputs.__setitem__(name, out.double().numpy().copy())
            )
        assert torch.equal(probe(x), expected)
    assert [name for name, _ in probe.blocks] == list(outputs)
    columns = []
    for (_, groups), out in zip(probe.blocks, outputs.values(), strict=True):
        # 3, 6, 12 and 1 channels: above 8, those whose numbers differ by 8 share a group.
        assert groups == min(8, out.shape[1])
        for group in range(groups):
            mean, spread = out.mean(axis=(2, 3, 4)), out.std(axis=(2, 3, 4))
            columns.append(
                np.stack([mean[:, group::groups].mean(1), spread[:, group::groups].mean(1)], axis=1)
            )
    np.testing.assert_allclose(probe.features.numpy(), np.stack(columns, axis=2), rtol=1e-4, atol=1e-5)


def test_the_score_is_the_root_mean_square_of_deviations(model: Model) -> None:
    statistics = model.entries["dna"].reliability.features
    volume = normalise(smooth(50))
    features = measure_features(model.fused("dna"), volume, **WINDOWS).double().numpy()
    windows, image, first = [], [], 0
    for block in statistics.blocks:
        own = features[:, :, first : first + len(block.mean)]
        first += len(block.mean)
        z = np.stack(
            [
                (own[:, 0] - block.mean) / block.mean_spread,
                (own[:, 1] - block.spread) / block.spread_spread,
            ]
        )
        windows.append((z**2).mean(axis=(0, 2)))
        image.append((z.mean(axis=1) ** 2).mean())
    score = score_volume(model.fused("dna"), volume, statistics, **WINDOWS)
    assert score.score == pytest.approx(np.sqrt(np.mean(image)), rel=1e-4)
    assert score.largest == pytest.approx(np.sqrt(np.mean(windows, axis=0)).max(), rel=1e-4)
    assert (statistics.images, statistics.windows) == (6, 6 * 12)
    assert len(str(statistics.to_json())) < 4000


def test_an_image_of_the_kind_is_like_and_another_is_not(model: Model) -> None:
    statistics = model.entries["dna"].reliability.features
    scores = {
        name: score_volume(model.fused("dna"), normalise(image), statistics, **WINDOWS)
        for name, image in {"like": smooth(51), "step": step()}.items()
    }
    assert scores["like"].score < 1.5 * statistics.limit
    assert scores["step"].score > 2 * statistics.limit
    assert scores["step"].unlike is True
    assert "unlike the training images (distance" in scores["step"].text


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_not_like_and_stays_so_on_disk(model: Model, value: float) -> None:
    statistics = model.entries["dna"].reliability.features
    sums = WindowSums()
    groups = sum(len(block.mean) for block in statistics.blocks)
    for sign in (1, -1):
        sums.add(value, np.full((2, groups), sign * value, np.float32))
        sums.add(0.5, np.zeros((2, groups), np.float32))
    read = WindowSums.from_json(json.loads(json.dumps(sums.to_json(), allow_nan=False)))
    np.testing.assert_array_equal(
        [read.largest, *read.deviations.flat], [sums.largest, *sums.deviations.flat]
    )
    score = ImageScore.of(read, statistics, WindowGrid(SHAPE, **WINDOWS))
    assert not np.isfinite([score.score, score.largest]).any()
    assert score.unlike is True
    assert "unlike the training images (distance nan" in score.text


def patchy(random: np.random.Generator) -> np.ndarray:
    """An image like all of its kind, whose windows differ: bright in some places, smooth in others."""
    places = np.kron(random.choice([0.2, 2.0], size=(2, 4, 4)), np.ones((4, 8, 8)))
    image = random.normal(size=(8, 32, 32)) * places
    return ((image - image.mean()) / image.std()).astype(np.float32)


@pytest.mark.parametrize("count", [8, 80])
def test_training_images_are_scored_as_a_new_image_is(count: int) -> None:
    """Half of the new images of their kind are further away than the typical one, however many train."""
    network, random = fold_structure(base_network(), "dna"), np.random.default_rng(0)
    plan = {"window": (4, 8, 8), "overlap": 0.5}
    statistics = training_statistics(network, {n: [patchy(random)] for n in range(count)}, **plan)
    assert statistics is not None
    scores = [score_volume(network, patchy(random), statistics, **plan) for _ in range(24)]
    further = sum(one.score > one.typical for one in scores if one.typical is not None)
    assert 5 <= further <= 20
    assert sum(bool(one.unlike) for one in scores) <= 6


def test_one_training_image_has_no_limit_and_parts_of_a_field_are_left_out_together() -> None:
    network = fold_structure(base_network(), "dna")
    parts = [normalise(smooth(0)), normalise(smooth(1))]
    together = training_statistics(network, {"field": parts}, **WINDOWS)
    apart = training_statistics(network, {"a": parts[:1], "b": parts[1:]}, **WINDOWS)
    assert (together.typical, together.limit) == (None, None)
    assert together.blocks == apart.blocks
    assert apart.limit is not None
    score = score_volume(network, parts[0], together, **WINDOWS)
    assert score.unlike is None
    assert "the one training image" in score.text


@pytest.mark.parametrize(
    "batch", [1, 2, 5, 7]
)  # the last after a block of windows, which is not computed again
def test_interrupted_it_gives_the_same_file(model: Model, tmp_path: Path, batch: int) -> None:
    image = write(tmp_path / "in.tif", smooth(52))
    how = PredictionOptions(confidence=True, unlike_map=True)
    whole = predict_file(model, "dna", image, tmp_path / "whole.ome.tif", how)
    with pytest.raises(PredictionStopped):
        predict_file(model, "dna", image, tmp_path / "parts.ome.tif", how, stop_after_windows=batch)
    parts = predict_file(model, "dna", image, tmp_path / "parts.ome.tif", how)
    assert parts.unlike == whole.unlike
    (a, _), (b, _) = channels(whole.path), channels(parts.path)
    np.testing.assert_array_equal(a, b)


def test_a_prediction_says_how_unlike_its_image_is(model: Model, tmp_path: Path) -> None:
    image = write(tmp_path / "in.tif", smooth(53))
    statistics = model.entries["dna"].reliability.features
    plain = predict_file(model, "dna", image, tmp_path / "plain.ome.tif")
    expected = score_volume(model.fused("dna"), normalise(smooth(53)), statistics, **WINDOWS)
    assert plain.unlike == expected
    voxels, text = channels(plain.path)
    assert voxels.shape == SHAPE
    assert fact(text, "unlike_training") == expected.text
    assert fact(text, "unlike_training_score") == f"{expected.score:.4g}"
    # The same bits as without: the model of before predicts the same.
    np.testing.assert_array_equal(voxels, model.predict(normalise(smooth(53)), "dna"))

    none = predict_file(model, "cell_membrane", image, tmp_path / "none.ome.tif")
    assert none.unlike is None
    assert fact(channels(none.path)[1], "unlike_training").startswith("unknown: the model has no statistics")


def test_windows_of_another_size_leave_it_unknown(model: Model, tmp_path: Path) -> None:
    """Zeros at the borders of windows shift the features, so that the limit is of nothing comparable."""
    image = write(tmp_path / "in.tif", smooth(53))
    z, y, x = (min(size, most) for size, most in zip(WINDOWS["window"], SHAPE, strict=True))
    how = PredictionOptions(window=(z, y // 2, x))
    other = predict_file(model, "dna", image, tmp_path / "other.ome.tif", how)
    assert other.unlike is not None
    assert (other.unlike.unlike, other.unlike.limit) == (None, None)
    size = " x ".join(map(str, model.entries["dna"].reliability.features.window))
    assert (
        other.unlike_text == f"like the training images or not: unknown, as their windows were {size} voxels"
    )
    assert fact(channels(other.path)[1], "unlike_training") == other.unlike_text
    # A larger window that the image limits is the same one.
    larger = PredictionOptions(window=(2 * SHAPE[0], y, x))
    assert predict_file(model, "dna", image, tmp_path / "larger.ome.tif", larger).unlike.limit is not None


def test_map_and_confidence_are_further_channels(model: Model, tmp_path: Path) -> None:
    image = write(tmp_path / "in.tif", smooth(54))
    made = predict_file(model, "dna", image, tmp_path / "out.ome.tif", confidence=True, unlike_map=True)
    voxels, text = channels(made.path)
    prediction, confidence, unlike = voxels
    volume, reliability = normalise(smooth(54)), model.entries["dna"].reliability
    calibration = reliability.calibration
    np.testing.assert_array_equal(prediction, model.predict(volume, "dna"))
    [_, spread] = sliding_windows(
        with_spread(model.fused("dna"), ("y", "x")), volume, window=WINDOW, batch_size=3
    )
    factor = np.float32(calibration.factor(0.9))
    np.testing.assert_array_equal(confidence, factor * (spread + np.float32(0.1)))
    # The map is the windows' scores, blended as predictions are.
    scores = WindowScores(model.fused("dna"), reliability.features)
    total, weight = np.zeros(SHAPE), np.zeros(SHAPE)
    for window in plan_windows(SHAPE, WINDOW):
        with torch.no_grad():
            scores(torch.from_numpy(volume[window.slices][None, None]))
        total[window.slices] += gaussian_weights(WINDOW) * scores.take()[0][0]
        weight[window.slices] += gaussian_weights(WINDOW)
    np.testing.assert_allclose(unlike, total / weight, rtol=1e-4)
    assert re.findall(r'<Channel[^>]* Name="([^"]*)"', text) == [
        "dna",
        "dna confidence",
        "dna unlike training",
    ]
    assert fact(text, "calibration_images") == "20"
    assert fact(text, "test_time_flips") == "y x"
    assert fact(text, "interval_coverage") == "0.9"
    assert "90% of the voxels" in made.confidence
    assert "each window predicted 4 times" in made.confidence
    both = predict_file(model, ["dna"], image, tmp_path / "stack.ome.tif", stack=True, confidence=True)
    assert channels(both[0].path)[0].shape == (3, *SHAPE)


def test_a_preview_shows_the_confidence_and_leaves_the_scores_as_they_are(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from repmode_cl.inference.preview import PreviewVolumes
    from repmode_cl.inference.streaming import previews
    from repmode_cl.workflows.preview_page import PreviewWriter

    image, seen = write(tmp_path / "in.tif", smooth(57)), list[PreviewVolumes]()
    how = PredictionOptions(confidence=True, preview=seen.append, keep=True)
    plain = predict_file(model, "dna", image, tmp_path / "plain.ome.tif", confidence=True)
    for _ in range(2):  # of the results, then of the file that is there
        made = predict_file(model, "dna", image, tmp_path / "out.ome.tif", how)
        np.testing.assert_array_equal(seen[-1].confidence["dna"], channels(made.path)[0][1])
    part = tuple(slice(0, size) for size in WINDOW)
    monkeypatch.setattr("repmode_cl.inference.streaming.run.part_to_predict", lambda grid: part)
    monkeypatch.setattr(previews, "part_to_predict", lambda grid: part)
    early = predict_file(model, "dna", image, tmp_path / "early.ome.tif", how)
    assert seen[-1].light.shape == WINDOW
    assert early.unlike == plain.unlike
    np.testing.assert_array_equal(channels(early.path)[0], channels(plain.path)[0])
    network = with_spread(model.fused("dna"), ("y", "x"))
    [_, spread] = sliding_windows(network, seen[-1].light, window=WINDOW, batch_size=3)
    factor = np.float32(model.entries["dna"].reliability.calibration.factor(0.9))
    np.testing.assert_allclose(seen[-1].confidence["dna"], factor * (spread + np.float32(0.1)), rtol=1e-5)
    page = PreviewWriter(model, {"in.tif": tmp_path / "look.html"})(seen[-1])
    text = page.read_text()
    assert "confidence of dna, projection" in text
    assert "90% of the voxels" in text


def test_napari_gets_the_confidence_that_files_have(model: Model, tmp_path: Path) -> None:
    from repmode_cl.napari.predict_layer import VolumeRequest, predict_volume

    volume = smooth(58)
    request = VolumeRequest(model, ("dna",), None, "cells", confidence=True)
    assert "90% of the voxels" in request.check()[-1]
    prediction, confidence = predict_volume(request, lambda: volume, volume.shape)
    image = write(tmp_path / "in.tif", volume)
    made = predict_file(model, "dna", image, tmp_path / "out.ome.tif", confidence=True)
    voxels, _ = channels(made.path)
    np.testing.assert_array_equal(prediction.values, voxels[0])
    np.testing.assert_array_equal(confidence.values, voxels[1])
    assert (prediction.confidence, confidence.confidence) == ("", made.confidence)
    with pytest.raises(ModelError, match="no calibration of 'cell_membrane'"):
        VolumeRequest(model, ("cell_membrane",), None, "cells", confidence=True).check()


def test_a_table_holds_it_and_copies_it_from_an_earlier_call(model: Model, tmp_path: Path) -> None:
    images = [write(tmp_path / "like.tif", smooth(55)), write(tmp_path / "step.tif", step())]
    table = tmp_path / "table.csv"
    # A table of before, which has no such columns, is replaced.
    table.write_text("input,structure,output,status,seconds,mse,mae,r2,pearson,message\n")
    outputs = [tmp_path / f"{number}.ome.tif" for number in range(2)]

    def run() -> list[dict[str, str]]:
        predict_files(model, "dna", images, outputs, PredictionOptions(keep=True), table=table)
        return list(csv.DictReader(table.read_text().splitlines()))

    first = run()
    assert [row["unlike"] for row in first][1] == "yes"
    assert float(first[1]["unlike_score"]) > float(first[1]["unlike_limit"]) > 0
    again = run()
    assert [row["status"] for row in again] == ["already there"] * 2
    columns = ("unlike", "unlike_score", "unlike_limit")
    assert [[row[c] for c in columns] for row in again] == [[row[c] for c in columns] for row in first]


def test_the_command_says_it(model: Model, tmp_path: Path) -> None:
    image = write(tmp_path / "in.tif", step())

    def run(*arguments: object) -> tuple[int, str, str]:
        done = CliRunner().invoke(app, ["predict", str(model.path), *map(str, arguments)])
        return done.exit_code, done.stdout, done.stderr + str(done.exception or "")

    code, out, err = run("--structure", "dna", image, tmp_path / "a.ome.tif", "--confidence")
    assert code == 0, err
    assert "unlike the training images (distance" in out
    assert "further from the training images than any of them" in err
    assert "confidence of dna: 90% of the voxels" in err
    code, out, err = run("--structure", "cell_membrane", image, tmp_path / "b.ome.tif")
    assert "like training images or not: unknown" in out
    code, out, err = run("--structure", "cell_membrane", image, tmp_path / "c.ome.tif", "--confidence")
    assert code != 0
    assert "has no calibration of 'cell_membrane'" in err


@pytest.mark.parametrize(
    ("structure", "out", "options", "message"),
    [
        (
            "cell_membrane",
            "o.ome.tif",
            {"confidence": True},
            r"no calibration of 'cell_membrane'.*19 or more",
        ),
        (
            "cell_membrane",
            "o.ome.tif",
            {"unlike_map": True},
            r"no statistics of the training images of 'cell",
        ),
        ("dna", "o.npy", {"confidence": True}, r"--confidence need a format that names its channels"),
        ("dna", "o.ome.tif", {"confidence": True, "rescale": "-2:8"}, "--confidence write float32"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_is_computed(
    model: Model, tmp_path: Path, structure: str, out: str, options: dict[str, object], message: str
) -> None:
    image = write(tmp_path / "in.tif", smooth(56))
    with pytest.raises(RepmodeError, match=message):
        predict_file(model, structure, image, tmp_path / out, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["in.tif"]


def predicted_with(calibration: Calibration, folder: Path) -> PredictedFile:
    """Predict an image with intervals, by a model that has this calibration and no statistics of features."""
    model = Model.create(
        folder / "model",
        base_network(),
        voxel_size=None,
        preprocessing={"order": 1},
        inference={"window": WINDOW, "overlap": 0.5, "batch": 3},
        reliability={"dna": Reliability(None, calibration)},
    )
    image = write(folder / "in.tif", smooth(57))
    return predict_file(model, "dna", image, folder / "out.ome.tif", confidence=True)


def test_few_calibration_images_claim_no_coverage(tmp_path: Path) -> None:
    made = predicted_with(Calibration(3, "val", ("z",), 0.1, ((0.9, 2.0),)), tmp_path)
    assert "no coverage is claimed: calibrated on 3 held-out images" in made.confidence
    assert "90%" in made.confidence
    text = channels(made.path)[1]
    assert fact(text, "interval_coverage") == "not claimed"
    assert made.unlike is None


def test_images_of_few_groups_claim_no_coverage(tmp_path: Path) -> None:
    made = predicted_with(Calibration(24, "test", (), 0.1, ((0.9, 2.0),), groups=2), tmp_path)
    assert "no coverage is claimed: calibrated on 24 held-out images of 2 groups" in made.confidence
    assert "19 groups are needed" in made.confidence
    text = channels(made.path)[1]
    assert fact(text, "interval_coverage") == "not claimed"
    assert (fact(text, "calibration_images"), fact(text, "calibration_groups")) == ("24", "2")


def test_statistics_of_another_network_are_refused(model: Model) -> None:
    statistics = model.entries["dna"].reliability.features
    other = type(statistics)(*(getattr(statistics, name) for name in statistics.__dataclass_fields__))
    object.__setattr__(other, "blocks", statistics.blocks[:-1])
    with pytest.raises(ModelError, match="are of another network"):
        WindowScores(model.fused("dna"), other)


def test_the_web_page_offers_what_the_model_has_records_of(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("repmode_cl.serve.images._DISK_RESERVE", 0)
    image = write(tmp_path / "in.tif", smooth(60))
    expected = tmp_path / "expected.ome.tif"
    predict_file(model, ["dna"], image, expected, stack=True, confidence=True, unlike_map=True, device="cpu")
    with client(model.path, tmp_path / "store") as site:
        described = site.get("/api/models").json()["models"][0]["structures"]
        assert [(one["has_confidence"], one["has_unlike_map"]) for one in described] == [
            (True, True),
            (False, False),
        ]
        sent = site.post("/api/images?name=in.tif", content=image.read_bytes()).json()
        wanted = {
            "image": sent["id"],
            "model": "model",
            "channel": 0,
            "confidence": True,
            "unlike_map": True,
            "force": True,
        }
        job = wait_for(site, site.post("/api/jobs", json={**wanted, "structures": ["dna"]}).json())
        assert (job["state"], job["further"]) == ("finished", ["dna confidence", "dna unlike training"])
        for channel, status in ((2, 200), (3, 200), (4, 400)):
            assert site.get(f"/api/jobs/{job['id']}/plane?channel={channel}&z=0").status_code == status
        got = tmp_path / "got.ome.tif"
        got.write_bytes(site.get(f"/api/jobs/{job['id']}/result").content)
        np.testing.assert_array_equal(tifffile.imread(got), tifffile.imread(expected))
        refused = site.post("/api/jobs", json={**wanted, "structures": ["cell_membrane"]})
        assert (refused.status_code, "no calibration of cell_membrane" in refused.json()["error"]) == (
            400,
            True,
        )
