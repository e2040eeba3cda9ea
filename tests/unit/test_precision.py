"""On which device and in which number format is trained: resolved once, by a rule, and kept."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_strategies import TRAINING, build, differing, experts_frozen, learn, state_of
from torch import Tensor, nn

from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError
from repmode_cl.nn import Architecture, RepModeUNet
from repmode_cl.scenarios import PatchSampling, stream_of_samples
from repmode_cl.strategies import StructureStrategy
from repmode_cl.strategies import evaluation as evaluating_module
from repmode_cl.strategies.plugins.checkpoint import StrategyCheckpoint
from repmode_cl.training import Precision, inherit_precision, recall_precision, resolve_precision
from repmode_cl.utils.devices import resolve_device

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def bfloat16_on_gpu(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    """Let torch say so, as it does: what it emulates counts as supported unless that is excluded."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GeForce Old")


def bfloat16_on_cpu(monkeypatch: pytest.MonkeyPatch, *, tiles: bool, vectors: bool = False) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vectors)


# -- the rule ---------------------------------------------------------------------------------------------------


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"'cuda' is not there: torch sees 0 GPU.*give auto or cpu"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="cuda:2"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("setting", ["gpu", "cuda:x", "", "meta"])
def test_what_is_no_device_is_refused_with_what_is_allowed(setting: str) -> None:
    with pytest.raises(ConfigError, match="give auto, cpu, cuda or cuda:N"):
        resolve_device(setting)


@pytest.mark.parametrize(("tiles", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_auto_precision_of_a_cpu_is_bfloat16_where_it_has_tiles(
    monkeypatch: pytest.MonkeyPatch, tiles: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    assert resolve_precision("auto", torch.device("cpu")) == Precision(expected, "cpu")  # type: ignore[arg-type]


@pytest.mark.parametrize(("supported", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_auto_precision_of_a_gpu(monkeypatch: pytest.MonkeyPatch, supported: bool, expected: str) -> None:
    bfloat16_on_gpu(monkeypatch, supported)
    assert resolve_precision("auto", torch.device("cuda")) == Precision(expected, "cuda")  # type: ignore[arg-type]


def test_a_precision_that_is_named_is_taken() -> None:
    for name in ("float32", "bfloat16", "float16"):
        assert resolve_precision(name, torch.device("cpu")).format == name


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_network_computes_in_its_precision_and_keeps_its_weights(name: str, dtype: torch.dtype) -> None:
    layer = nn.Linear(3, 2)
    precision = resolve_precision(name, torch.device("cpu"))
    with precision.autocast():
        output = layer(torch.ones(1, 3))
    assert output.dtype == dtype
    assert layer.weight.dtype == torch.float32
    assert precision.scaler() is None


@pytest.mark.parametrize("expert", ["conv3", "conv5"])
def test_bfloat16_gradients_in_shallow_volumes(expert: str) -> None:
    """A patch of 32 planes is 2 planes deep in the bottleneck of the paper's network."""
    network = RepModeUNet(Architecture(width=4, depth=1, experts=(expert, "conv1")), ("dna",), seed=0)
    x = torch.randn((2, 1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    found: dict[str, set[bytes]] = {}
    for _ in range(20):
        rubbish = [torch.full((size,), math.nan) for size in range(1, 20000, 100)]
        del rubbish  # what is read before it is written reads this
        network.zero_grad()
        with Precision("bfloat16", "cpu").autocast():
            output = network(x, "dna")
        output.float().square().mean().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() < 1e3, name
            found.setdefault(name, set()).add(parameter.grad.numpy().tobytes())
    assert {name for name, gradients in found.items() if len(gradients) > 1} == set()


def test_float16_is_scaled() -> None:
    assert isinstance(Precision("float16", "cpu").scaler(), torch.amp.GradScaler)


# -- what is kept -----------------------------------------------------------------------------------------------


def test_a_format_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bfloat16_on_gpu(monkeypatch, False)
    with pytest.raises(
        ConfigError, match=r"training\.precision is bfloat16, which the GPU GeForce Old does not"
    ):
        resolve_precision("bfloat16", GPU)
    with pytest.raises(
        ConfigError, match="the run r was started in bfloat16, which the GPU GeForce Old does not"
    ):
        recall_precision("bfloat16", GPU, "the run r")
    bfloat16_on_gpu(monkeypatch, True)
    assert recall_precision("bfloat16", GPU, "the run r") == Precision("bfloat16", "cuda")


def test_what_was_begun_goes_on_in_its_format(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bfloat16_on_cpu(monkeypatch, tiles=False, vectors=True)
    with caplog.at_level(logging.WARNING):
        assert recall_precision("bfloat16", CPU, "the run r") == Precision("bfloat16", "cpu")
        assert recall_precision("float32", CPU, "the run r") == Precision("float32", "cpu")
    assert caplog.messages == []
    bfloat16_on_cpu(monkeypatch, tiles=False)
    with caplog.at_level(logging.WARNING):
        assert recall_precision("bfloat16", CPU, "the run r") == Precision("bfloat16", "cpu")
    [message] = caplog.messages
    assert "the run r was started in bfloat16" in message
    assert "slow" in message


def test_an_addition_takes_the_bases_format_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    bfloat16_on_cpu(monkeypatch, tiles=False, vectors=True)  # the rule by itself would say float32
    assert inherit_precision("auto", CPU, "bfloat16").format == "bfloat16"
    assert inherit_precision("float16", CPU, "bfloat16").format == "float16"  # what is named is taken
    assert inherit_precision("auto", CPU, None).format == "float32"  # a model that does not say
    bfloat16_on_cpu(monkeypatch, tiles=False)
    assert inherit_precision("auto", CPU, "bfloat16").format == "float32"
    bfloat16_on_cpu(monkeypatch, tiles=True)
    assert inherit_precision("auto", CPU, "float32").format == "float32"


# -- in training ------------------------------------------------------------------------------------------------


def deep_patches(samples: list[Sample], precision: Precision, **training: object) -> StructureStrategy:
    stream = stream_of_samples(samples, [("dna",)], PatchSampling((6, 8, 8)), count=lambda _, __: 12, seed=0)
    settings = TRAINING.model_copy(update={"steps": 6, "accumulate": 2, "gradient_clip": 1.0, **training})
    strategy = experts_frozen(stream, training=settings)
    strategy.precision = precision
    return strategy


@pytest.mark.parametrize("format", ["float32", "bfloat16", "float16"])
def test_an_interrupted_training_goes_on_to_the_bit(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """In the format it began with, with the scale that its gradients had, whatever would be chosen today."""

    def scaler(self: Precision) -> torch.amp.GradScaler | None:  # whose scale grows while we watch
        scales = self.format == "float16"
        return torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2) if scales else None

    monkeypatch.setattr(Precision, "scaler", scaler)
    began = Precision(format, "cpu")  # type: ignore[arg-type]
    whole = learn(deep_patches(samples, began))

    class Interruption(Exception):  # noqa: N818 - it stands for a power cut
        pass

    def interrupt(strategy: StructureStrategy) -> None:
        if strategy.progress.step == 5:
            raise Interruption

    checkpoint = StrategyCheckpoint(tmp_path)
    first = deep_patches(samples, began, checkpoint_every=3)
    first.listeners += [checkpoint.after_step, interrupt]
    first.on_validation.append(checkpoint.save)
    with pytest.raises(Interruption):
        learn(first)
    today = "float32" if format == "bfloat16" else "bfloat16"
    second = deep_patches(samples, Precision(today, "cpu"))  # type: ignore[arg-type]
    StrategyCheckpoint(tmp_path).resume(second)
    assert second.precision == began
    assert second.progress.step == 4
    learn(second)
    assert differing(state_of(whole), state_of(second)) == set()
    assert whole.progress.curve == second.progress.curve
    states = [strategy.optimizer.state_dict()["state"] for strategy in (whole, second)]
    for one, other in zip(*(state.values() for state in states), strict=True):
        assert one.keys() == other.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(one[key], other[key]) for key in one)
        assert float(one["step"]) == 6
    if format == "float16":
        assert whole.scaler is not None
        assert second.scaler is not None
        assert whole.scaler.state_dict() == second.scaler.state_dict()
        assert whole.scaler.get_scale() == 4.0 * 2**3


def test_a_resumed_training_is_refused_on_a_device_without_its_format(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = deep_patches(samples, Precision("bfloat16", "cpu"))
    strategy.on_validation.append(StrategyCheckpoint(tmp_path).save)
    learn(strategy)
    elsewhere = deep_patches(samples, Precision("float16", "cuda"))
    elsewhere.device = GPU
    bfloat16_on_gpu(monkeypatch, False)
    with pytest.raises(
        ConfigError, match="started in bfloat16, which the GPU GeForce Old does not compute in"
    ):
        StrategyCheckpoint(tmp_path).resume(elsewhere)


@pytest.mark.parametrize("format", ["bfloat16", "float16"])
def test_loss_and_metrics_are_float32(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    strategy = build("experts_frozen", samples)
    strategy.precision = Precision(format, "cpu")  # type: ignore[arg-type]
    types: dict[str, set[torch.dtype]] = {"output": set(), "loss": set()}

    def look(strategy: StructureStrategy) -> None:
        types["output"].add(strategy.mb_output.dtype)
        types["loss"].add(strategy.loss.dtype)

    slide = evaluating_module.sliding_window

    def watched(network: nn.Module, volume: Tensor, **options: object) -> object:
        assert not torch.is_autocast_enabled("cpu")
        tensors = [*network.parameters(), *network.buffers()]
        assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float32}
        found = slide(network, volume, **options)  # type: ignore[arg-type]
        assert found.dtype == np.float32
        return found

    monkeypatch.setattr(evaluating_module, "sliding_window", watched)
    strategy.listeners.append(look)
    learn(strategy, 0)
    assert types == {"output": {getattr(torch, format)}, "loss": {torch.float32}}
    assert strategy.progress.curve
