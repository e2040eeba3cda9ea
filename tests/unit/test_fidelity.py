"""Switches that make this package compute as the authors' code: each against an independent computation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tifffile
import torch
from pydantic import ValidationError
from scipy import ndimage
from tiny_strategies import BASE, STREAM, TRAINING, configured, learn, state_of
from torch import nn

from repmode_cl.config import Config, NetworkConfig, StrategyConfig, TrainingConfig, load_config
from repmode_cl.config.schema import PreprocessingConfig
from repmode_cl.data.manifest import Manifest, Row
from repmode_cl.data.preprocessing.prepare import prepare
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.preprocessing.resample_box import resample_box
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError, ModelError
from repmode_cl.inference.predict_file import predict_file
from repmode_cl.inference.sliding_window import sliding_window
from repmode_cl.inference.windows import gaussian_weights
from repmode_cl.model import Model
from repmode_cl.nn import Architecture, RepModeUNet
from repmode_cl.nn.mode_block import ModeBlock, fuse_under_autocast
from repmode_cl.strategies.registry import strategy_class, strategy_section
from repmode_cl.training.size_check import check_last_batch

SMALL = Architecture(width=2, depth=1, experts=("conv3", "conv1"))
AUTHORS = {"voxel_size": (0.5, 0.29, 0.29), "axes": "xy", "order": 3, "normalise": "before_resampling"}


def training(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**(TRAINING.model_dump() | changes))


# -- 1: a bias that the gates' rows share -----------------------------------------------------------------------


def test_rows_with_a_shared_bias_are_trained_as_a_linear_layer_of_a_one_hot() -> None:
    names = tuple(f"s{i}" for i in range(4))
    network = RepModeUNet(SMALL, names, shared_gate_bias=True)
    block = cast(ModeBlock, network.bottleneck[1])
    assert block.task_gate is not None
    experts, c_out = len(block.experts), block.c_out
    linear = nn.Linear(len(names), experts * c_out)
    with torch.no_grad():
        linear.weight.copy_(block.task_gate.weight)
        linear.bias.copy_(block.task_gate.bias)
    first = block.base_rows()
    wanted = torch.randn(len(names), experts, c_out)
    ours = torch.optim.Adam(block.task_gate.parameters(), lr=0.05)
    theirs = torch.optim.Adam(linear.parameters(), lr=0.05)
    for step in range(6):
        present = [place for place in range(len(names)) if place != step % 4]  # one is absent from each batch
        for optimizer, rows in (
            (ours, [block.visible(names[place])[1] for place in present]),
            (theirs, [linear(torch.eye(4)[place]).view(experts, c_out) for place in present]),
        ):
            optimizer.zero_grad(set_to_none=True)
            sum(
                ((torch.softmax(row, 0) - wanted[p]) ** 2).sum() for row, p in zip(rows, present, strict=True)
            ).backward()
            optimizer.step()
    expected = {name: linear(torch.eye(4)[place]).view(experts, c_out) for place, name in enumerate(names)}
    # What is stored are rows: weight and bias.
    stored = network.base_state()
    for name, row in expected.items():
        assert torch.allclose(stored[f"bottleneck.1.gates.{name}"], row, atol=1e-5)
        assert not torch.allclose(first[name], row, atol=1e-2)
    assert not [key for key in stored if "task_gate" in key]


def test_first_logits_are_those_of_a_linear_layer_of_twelve() -> None:
    names = [f"s{i}" for i in range(12)]
    network = RepModeUNet(
        Architecture(width=32, depth=1, experts=("conv1", "avg3", "conv1")), names, shared_gate_bias=True
    )
    block = cast(ModeBlock, network.bottleneck[1])
    rows = torch.stack([block.visible(name)[1].detach().flatten() for name in names])
    assert float(rows.std()) == pytest.approx(0.2357, rel=0.05)
    assert float(torch.corrcoef(rows)[0, 1:].mean()) == pytest.approx(0.5, abs=0.1)
    free = RepModeUNet(SMALL, names)
    assert not free.shares_gate_bias


def test_the_bias_ends_with_the_base_and_a_stored_model_has_none(tmp_path: Path) -> None:
    network = RepModeUNet(SMALL, BASE, shared_gate_bias=True).eval()
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        before = {name: network(x, name) for name in BASE}
    model = Model.create(
        tmp_path / "model",
        network,
        voxel_size=None,
        preprocessing=PreprocessingRecipe().to_json(),
        inference={"window": [8, 8, 8], "overlap": 0.5, "batch": 1},
    )
    assert model.verify().ok
    loaded = model.network()
    network.add_structure("nucleolus")
    assert not network.shares_gate_bias
    assert not [name for name in network.state_dict() if "task_gate" in name]
    assert set(network.base_state()) == set(loaded.state_dict())
    with torch.no_grad():
        for name in BASE:
            assert torch.equal(network(x, name), before[name])
            assert torch.equal(loaded(x, name), before[name])


@pytest.mark.parametrize("name", ["experts_frozen", "ewc", "warm_copy"])
def test_strategies_learn_a_base_with_a_shared_bias_and_go_on_without(
    samples: list[Sample], name: str
) -> None:
    strategy = configured(name, samples, STREAM[:2], training=training(gate="shared_bias"))
    assert strategy.network.shares_gate_bias
    learn(strategy, 0)
    gate = strategy.network.head.task_gate
    row = (gate.weight[:, BASE.index("dna")] + gate.bias).detach().view(-1, 1)
    learn(strategy, 1)
    # A copy's base keeps its bias, which is frozen with it.
    assert strategy.network.shares_gate_bias == (name == "warm_copy")
    if name == "experts_frozen":
        assert torch.equal(strategy.network.head.gates["dna"], row)
    assert [key for key in state_of(strategy) if "nucleolus" in key]


def test_a_shared_bias_goes_with_linear_gates_of_a_one_hot() -> None:
    with pytest.raises(ValueError, match="linear layer of a one-hot"):
        RepModeUNet(Architecture(2, 1, gate="two_layer"), BASE, shared_gate_bias=True)
    with pytest.raises(ValidationError, match=r"training\.gate: shared_bias"):
        Config(name="x", training=training(gate="shared_bias"), network=NetworkConfig(embedding="gauss"))


# -- 2: the z-score before a corner-aligned zoom ----------------------------------------------------------------


def authors_preparation(volume: np.ndarray, factor: float = 0.108 / 0.29) -> np.ndarray:
    """The z-score and scipy's zoom of it, as the authors' transforms have them."""
    volume = volume.astype(np.float64)
    volume = (volume - volume.mean()) / volume.std()
    return cast(np.ndarray, ndimage.zoom(volume, (1, factor, factor), order=3, mode="nearest"))


@pytest.fixture
def image(tmp_path: Path) -> tuple[np.ndarray, Path]:
    values = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(6, 70, 90)), 1.5)
    volume = ((values - values.min()) * 20000).astype(np.uint16)
    sizes = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", (0.5, 0.108, 0.108), strict=True)}
    units = {f"PhysicalSize{axis}Unit": "µm" for axis in "ZYX"}
    path = tmp_path / "field.ome.tif"
    tifffile.imwrite(path, volume, ome=True, metadata={"axes": "ZYX", **sizes, **units})
    return volume, path


def test_images_are_z_scored_then_zoomed_with_their_corners_kept(
    image: tuple[np.ndarray, Path], tmp_path: Path
) -> None:
    volume, path = image
    manifest = Manifest(tmp_path / "manifest.csv", (Row(2, "dna", path, None, path, None, mask=path),))
    prepared = {}
    for normalise in ("z_score", "before_resampling"):
        settings = PreprocessingConfig(**(AUTHORS | {"normalise": normalise, "storage": "float32"}))
        [sample] = prepare(manifest, {2: "train"}, settings, tmp_path / "cache")
        prepared[normalise] = np.load(sample.signal)
        assert np.load(sample.mask).shape == prepared[normalise].shape
    expected = authors_preparation(volume)
    assert prepared["before_resampling"].shape == expected.shape
    assert np.abs(prepared["before_resampling"] - expected).max() < 1e-4
    # Not the same as ours, whose resampled image has deviation 1 and other places.
    assert prepared["z_score"].std() == pytest.approx(1, abs=1e-3)
    assert abs(prepared["before_resampling"].std() - 1) > 0.005
    assert np.abs(prepared["z_score"] - expected).max() > 0.05


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_a_box_is_resampled_as_the_whole(order: int) -> None:
    volume = np.random.default_rng(1).normal(size=(5, 40, 31)).astype(np.float32)
    for wanted in ((5, 15, 12), (9, 60, 31), (1, 2, 40)):
        factors = [new / old for new, old in zip(wanted, volume.shape, strict=True)]
        whole = ndimage.zoom(volume.astype(np.float64), factors, order=order, mode="nearest")
        box = (slice(0, wanted[0]), slice(wanted[1] // 3, wanted[1]), slice(1, wanted[2] - 1))
        part = resample_box(lambda b: volume[b], volume.shape, wanted, box, order, corners=True)
        assert np.abs(part - whole[box]).max() < 1e-4 or (order == 0 and (part != whole[box]).mean() < 0.02)


def test_prediction_repeats_what_training_prepared(image: tuple[np.ndarray, Path], tmp_path: Path) -> None:
    volume, path = image
    recipe = PreprocessingRecipe.of(PreprocessingConfig(**AUTHORS))
    model = Model.create(
        tmp_path / "model",
        RepModeUNet(SMALL, BASE).eval(),
        voxel_size=(0.5, 0.29, 0.29),
        preprocessing=recipe.to_json(),
        inference={"window": [6, 16, 16], "overlap": 0.5, "batch": 2, "weights": "authors"},
    )
    assert Model.open(tmp_path / "model").inference["weights"] == "authors"
    predict_file(model, "dna", path, tmp_path / "out.npy")
    signal = authors_preparation(volume).astype(np.float32)
    predicted = model.predict(signal, "dna")
    factors = [old / new for old, new in zip(volume.shape, predicted.shape, strict=True)]
    expected = ndimage.zoom(predicted.astype(np.float64), factors, order=1, mode="nearest")
    found = np.load(tmp_path / "out.npy")
    assert found.shape == volume.shape
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    assert recipe.to_settings()["normalise"] == "before_resampling"
    assert PreprocessingRecipe.from_json(recipe.to_json()) == recipe
    for wrong in ({"anti_alias": True}, {"normalisation": "z-score per image"}):
        with pytest.raises(ModelError, match="not known to this repmode-cl"):
            PreprocessingRecipe.from_json(recipe.to_json() | wrong)


# -- 3: window weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [(32, 128, 128), (8, 16, 24), (7, 16, 16)])
def test_window_weights_are_a_filtered_point_at_half_the_size(window: tuple[int, int, int]) -> None:
    point = np.zeros(window)
    point[tuple(size // 2 for size in window)] = 1
    theirs = ndimage.gaussian_filter(point, [size / 8 for size in window], mode="constant")
    theirs /= theirs.max()
    found = gaussian_weights(window, kind="authors")
    assert np.allclose(found, theirs, rtol=1e-5, atol=1e-12)
    if window == (32, 128, 128):
        assert float(found.min()) == pytest.approx(3.8e-11, rel=0.02)
        assert float((gaussian_weights(window) < 1.01e-3).mean()) == pytest.approx(0.58, abs=0.02)
    ones = sliding_window(lambda x: x, np.ones((9, 20, 30), np.float32), window=window, weights="authors")
    assert np.allclose(ones, 1, rtol=1e-5)


# -- 4 and 5: selection over all images, and a short last batch ---------------------------------------------------


@pytest.mark.parametrize(("selection", "expected"), [("structures", (1.5 + 5) / 2), ("images", 8 / 3)])
def test_the_best_state_is_that_of_the_lowest_mean_of(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch, selection: str, expected: float
) -> None:
    strategy = configured("joint", samples, (BASE,), training=training(selection=selection))
    images = {"dna": [1.0, 2.0], "cell_membrane": [5.0]}

    def evaluate(streams: Any) -> dict[str, dict[str, float]]:
        strategy._figures = {name: [{"mse": mse} for mse in errors] for name, errors in images.items()}
        return {name: {"mse": sum(errors) / len(errors)} for name, errors in images.items()}

    monkeypatch.setattr(strategy, "evaluate", evaluate)
    assert strategy._validation_figures(0)[1] == pytest.approx(expected)
    learn(strategy, 0)
    assert strategy.selection.best == pytest.approx(expected)


@pytest.mark.parametrize("last_batch", ["short", "continuous"])
def test_epochs_end_with_a_short_batch(samples: list[Sample], last_batch: str) -> None:
    settings = training(
        steps=None, base_steps=None, epochs=3, batch_size=4, validate_every=None, validate_every_epochs=1,
        last_batch=last_batch,
    )  # fmt: skip
    strategy = configured("experts_frozen", samples, STREAM[:2], training=settings)
    sizes: list[int] = []
    strategy.listeners.append(lambda one: sizes.append(len(one.mb_x)))
    learn(strategy)
    short = last_batch == "short"
    # Six images of the base, then three of the next: 2 steps an epoch and 1, or 18 and 9 patches in all.
    assert sizes == ([4, 2] * 3 + [3] * 3 if short else [4] * 5 + [4] * 3)
    assert strategy.trained_patches[0] == (
        Counter(dict.fromkeys(strategy.trained_patches[0], 3)) if short else strategy.trained_patches[0]
    )
    validated = {row["train_step"] for row in strategy.progress.curve if row["experience"] == 0}
    assert validated == ({2, 4, 6} if short else {2, 4, 5})


def test_a_last_batch_that_cannot_be_computed_is_refused() -> None:
    epochs = training(
        last_batch="short", steps=None, base_steps=None, validate_every=None, epochs=1, batch_size=4
    )
    with pytest.raises(
        ConfigError, match=r"5 patches in batches of 4 .* a batch of 1, .*needs two values; set tr"
    ):
        check_last_batch(epochs, (4, 4, 4), 2, 5)
    # More patches, voxels or levels: there are two values.
    for patch, depth, patches in (((4, 4, 4), 2, 6), ((4, 4, 8), 2, 5), ((4, 4, 4), 1, 5), ((4, 4, 4), 2, 8)):
        check_last_batch(epochs, patch, depth, patches)
    with pytest.raises(ConfigError, match=r"a batch of 1, fewer than the 2 processes"):
        check_last_batch(epochs, (4, 8, 8), 1, 5, world=2)
    check_last_batch(epochs, (4, 4, 4), 2, 6, world=2)
    halves = epochs.model_copy(update={"accumulate": 2})
    with pytest.raises(ConfigError, match="7 patches in batches of 2"):
        check_last_batch(halves, (4, 4, 4), 2, 7)


def test_a_short_last_batch_is_one_of_epochs() -> None:
    with pytest.raises(ValidationError, match="goes with epochs"):
        training(last_batch="short")
    with pytest.raises(ValidationError, match="exclude each other"):
        training(
            last_batch="short",
            steps=None,
            base_steps=None,
            validate_every=None,
            epochs=1,
            structures_per_batch=1,
        )
    epochs = training(last_batch="short", steps=None, base_steps=None, validate_every=None, epochs=1)
    with pytest.raises(ValidationError, match="has its own steps"):
        Config(name="x", training=epochs, strategies=(StrategyConfig(name="experts_frozen", steps=3),))
    section = StrategyConfig(name="experts_frozen")
    kind = strategy_class(section)

    class Longer(kind):  # type: ignore[misc, valid-type]
        @classmethod
        def steps_of(cls, *args: Any) -> int:
            return 17

    with pytest.raises(ConfigError, match="17 steps where its epochs have 1"):
        Longer.check(Config(name="x", training=epochs), strategy_section(section), STREAM)


# -- 6: logits in half precision --------------------------------------------------------------------------------


def test_logits_are_what_autocast_makes_of_a_linear_layer_and_the_rest_is_in_float32() -> None:
    network = RepModeUNet(SMALL, BASE, shared_gate_bias=True)
    block = cast(ModeBlock, network.bottleneck[1])
    gate = block.task_gate
    assert gate is not None
    with torch.autocast("cpu", torch.float16):
        logits = nn.functional.linear(torch.eye(len(BASE)), gate.weight, gate.bias)
        product = torch.einsum("oidhw,o->oidhw", block.experts["conv3"].weight, torch.ones(block.c_out))
    assert (logits.dtype, product.dtype) == (torch.float16, torch.float32)
    kernels = block.kernels(BASE, logits_dtype=torch.float16)
    exact = block.kernels(BASE)
    for place, name in enumerate(BASE):
        shares = torch.softmax(logits[place].float().view(len(block.experts), -1), 0)
        conv, point = (expert.weights()[0].detach() for expert in block.experts.values())
        expected = conv * shares[0].view(-1, 1, 1, 1, 1)
        expected[:, :, 1:2, 1:2, 1:2] += point * shares[1].view(-1, 1, 1, 1, 1)
        assert kernels[name].dtype == torch.float32
        assert torch.allclose(kernels[name], expected, atol=1e-7)
        assert 1e-7 < float((kernels[name] - exact[name]).detach().abs().max()) < 1e-3


@pytest.mark.parametrize("fusing", ["autocast", "float32"])
def test_logits_are_rounded_only_under_autocast(fusing: str) -> None:
    network = RepModeUNet(SMALL, BASE).eval()
    fuse_under_autocast(network, fusing == "autocast")
    x = torch.randn(2, 1, 8, 8, 8)
    plain = RepModeUNet(SMALL, BASE).eval()
    with torch.no_grad():
        assert torch.equal(network(x, list(BASE)), plain(x, list(BASE)))
        for row in (row for _, block in plain.named_mode_blocks() for row in block.gates.values()):
            row.copy_(row.half())
        with torch.autocast("cpu", torch.float16):
            same = torch.equal(network(x, list(BASE)), plain(x, list(BASE)))
    assert same == (fusing == "autocast")
    with torch.autocast("cpu", torch.float16):
        network(x, list(BASE)).float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())


def test_the_setting_reaches_the_network(samples: list[Sample]) -> None:
    for fusing in ("autocast", "float32"):
        strategy = learn(
            configured("joint", samples, (BASE,), training=training(fusing=fusing, precision="bfloat16"))
        )
        assert strategy.network.head.fuses_under_autocast == (fusing == "autocast")


# -- 9: volumes in float32, and all of them together --------------------------------------------------------------


def test_volumes_are_stored_in_float32(image: tuple[np.ndarray, Path], tmp_path: Path) -> None:
    _, path = image
    manifest = Manifest(tmp_path / "manifest.csv", (Row(2, "dna", path, None, path, None),))
    paths = {}
    for storage, dtype in (("auto", np.float16), ("float32", np.float32)):
        settings = PreprocessingConfig(voxel_size=None, storage=storage)
        [sample] = prepare(manifest, {2: "train"}, settings, tmp_path / "cache")
        assert np.load(sample.signal).dtype == dtype
        paths[storage] = sample.signal
    assert paths["auto"] != paths["float32"]


@pytest.mark.parametrize("name", ["paper", "paper_table1"])
def test_the_configurations_of_the_paper_set_all_switches(name: str) -> None:
    paper, ours = load_config(name), Config(name="x", training=TrainingConfig(steps=1))
    assert (paper.data.preprocessing.normalise, paper.data.preprocessing.storage) == (
        "before_resampling",
        "float32",
    )
    assert paper.inference.weights == "authors"
    assert (paper.training.gate, paper.training.selection) == ("shared_bias", "images")
    assert (paper.training.last_batch, paper.training.fusing) == ("short", "autocast")
    assert paper.training.precision == "float16"
    # What is written of a configuration with our defaults names none of them, as before.
    written = ours.model_dump()
    assert not {"gate", "selection", "last_batch", "fusing"} & set(written["training"])
    assert "storage" not in written["data"]["preprocessing"]
    assert "weights" not in written["inference"]
