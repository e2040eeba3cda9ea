"""The loop in Python under conditions that a configuration would refuse, or that come on the second day."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from repmode_cl.scenarios import StructureStream, dense_regression_benchmark  # isort: skip - it imports Avalanche quietly

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn

from repmode_cl import Model
from repmode_cl.config import TrainingConfig
from repmode_cl.errors import ConfigError, StructureError
from repmode_cl.nn import (
    AdaptationSpec,
    AdaptedUNet,
    Architecture,
    ModeBlock,
    PackedUNet,
    PlainUNet,
    RepModeUNet,
)
from repmode_cl.strategies import (
    AGEM,
    EWC,
    MAS,
    ExpertsFrozen,
    FineTuning,
    LoRA,
    LwF,
    PackNet,
    Replay,
    StructureStrategy,
)
from repmode_cl.strategies.registry import STRATEGIES
from repmode_cl.training.best_state import BestState, trained_state_names

SMALL = Architecture(width=2, depth=1, experts=("conv3", "conv1"))


def volumes(power: float, count: int, seed: int) -> tuple[Tensor, Tensor]:
    light = torch.randn(count, 8, 16, 16, generator=torch.Generator().manual_seed(seed))
    return light, light * power + 0.3 * torch.roll(light, 1, 2)


def stream_of(
    *names: str, base: tuple[str, ...] = ("a",), patches: int = 16, fields: int = 4
) -> StructureStream:
    """Return a stream of structures that the same fields show."""
    images = {
        name: tuple(volumes(power, count, part) for part, count in enumerate((fields, 2, 2)))
        for name, power in zip(names, (1, -1, 2, -2), strict=False)
    }
    return dense_regression_benchmark(images, base=base, patch=(8, 8, 8), patches=patches)


def own_parts(network: RepModeUNet, name: str) -> dict[str, Tensor]:
    return {key: network.state_dict()[key].clone() for key in network.owned_names(name)}


@pytest.mark.parametrize(
    "kind",
    sorted((one for one in STRATEGIES.values() if one.network_class not in (None, RepModeUNet)), key=str),
)
def test_a_network_of_another_method_is_refused(kind: type[StructureStrategy]) -> None:
    """RepMode's grows by the same methods: trained by it, all rivals would be experts frozen under other names."""
    wanted = kind.network_class
    assert wanted is not None
    with pytest.raises(
        ConfigError, match=rf"{kind.__name__} trains a .*\.{wanted.__name__}, and the model is a RepM"
    ):
        kind(model=RepModeUNet(SMALL, ["a"]), device="cpu")


def test_networks_without_structures_or_of_another_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="PlainUNet has no attribute structures"):
        FineTuning(model=PlainUNet(2, 1, 3, seed=0), device="cpu")
    network = AdaptedUNet(SMALL, 3, ["a"], AdaptationSpec("ssf"))
    with pytest.raises(
        ConfigError, match=r"LoRA trains adaptations of the kind lora, .* AdaptationSpec\('lora'\)"
    ):
        LoRA(model=network, device="cpu")


def test_a_text_is_no_list_of_structures() -> None:
    """Its letters would be the base, and the structure that is meant an addition to a base that nobody trains."""
    with pytest.raises(StructureError, match=r"a list of names is needed, such as \['dna'\], not a text"):
        RepModeUNet(SMALL, "dna")


def test_an_addition_to_a_base_that_nobody_trained_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Its figures look plausible all the same."""
    with caplog.at_level(logging.WARNING, "repmode_cl"):
        strategy = ExpertsFrozen(model=RepModeUNet(SMALL, ["nuclei"]), train_mb_size=8, device="cpu")
        strategy.train(stream_of("a", "b").train_stream)
    assert caplog.text.count("added to a base (nuclei) that was neither trained nor adopted here") == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING, "repmode_cl"):
        strategy = ExpertsFrozen(model=RepModeUNet(SMALL, ["a"]), train_mb_size=8, device="cpu")
        strategy.train(stream_of("a", "b").train_stream)
    assert "added to a base" not in caplog.text


def test_a_model_grows_by_the_same_script_every_day(tmp_path: Path) -> None:
    """The base is adopted also where the model has additions already, and nothing old changes."""
    first = stream_of("a")
    strategy = ExpertsFrozen(model=RepModeUNet(SMALL, ["a"]), train_mb_size=8, device="cpu")
    strategy.train(first.train_stream[0])
    stored = Model.create(
        tmp_path / "model",
        strategy.network,
        voxel_size=None,
        preprocessing={"normalise": "image"},
        inference={"window": [8, 8, 8], "overlap": 0.5, "batch": 1},
    )
    for name in ("b", "c"):
        stream = stream_of("a", name)
        stored = Model.open(tmp_path / "model")
        before = {key: tensor.clone() for key, tensor in stored.network().state_dict().items()}
        strategy = ExpertsFrozen(model=stored.network(), train_mb_size=8, device="cpu")
        strategy.adopt_experience(stream.train_stream[0])
        strategy.train(stream.train_stream[1:])
        after = strategy.network.state_dict()
        assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
        stored.add(name, strategy.network)
        assert stored.verify().ok
    assert stored.structures == ("a", "b", "c")


def test_what_was_learned_is_trained_further_and_not_begun_again() -> None:
    stream = stream_of("a", "b")
    strategy = ExpertsFrozen(model=RepModeUNet(SMALL, ["a"]), init_from="best", train_mb_size=8, device="cpu")
    strategy.train(stream.train_stream)
    assert strategy.started_from == {"b": "a"}
    strategy.started_from.clear()
    learned = own_parts(strategy.network, "b")
    seen: list[dict[str, Tensor]] = []
    begin = strategy.before_experience

    def watched(number: int) -> None:
        begin(number)
        seen.append(own_parts(strategy.network, "b"))

    strategy.before_experience = watched  # type: ignore[method-assign]
    strategy.train(stream.train_stream[1])
    adopted = ExpertsFrozen(model=strategy.network, init_from="best", train_mb_size=8, device="cpu")
    adopted.adopt_experience(stream.train_stream[1])
    assert strategy.started_from == adopted.started_from == {}
    assert all(torch.equal(seen[0][key], tensor) for key, tensor in learned.items())


def _stop_at(step: int) -> Any:
    class Stop(SupervisedPlugin[Any]):
        def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            if strategy.progress.step >= step:
                strategy.stop_training()

    return Stop()


def test_packnet_is_pruned_also_where_training_is_ended_early(caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise the base's weights would stay free, and the next structure would train them."""

    def network() -> PackedUNet:
        made = PackedUNet(SMALL, 3, ["a"], own_norms=True, seed=0)
        made.begin(["a"], 0)
        return made

    stream = stream_of("a", "b", patches=64)
    with caplog.at_level(logging.WARNING):
        strategy = PackNet(model=network(), train_mb_size=8, device="cpu", plugins=[_stop_at(3)])
        strategy.train(stream.train_stream[0])
    assert "ended at step 3, before pruning at step 5: it is pruned now" in caplog.text
    x = torch.randn(1, 1, 8, 8, 8)
    before = strategy.network.eval()(x, ["a"])
    strategy.train(stream.train_stream[1])
    assert torch.equal(strategy.network.eval()(x, ["a"]), before)
    for key in ("patience", "time_limit"):
        with pytest.raises(
            ConfigError, match=f"PackNet: training.{key} may end an experience before its network is"
        ):
            PackNet(model=network(), device="cpu", training=TrainingConfig(**{"steps": 4, key: 1}))


def test_a_buffer_covers_the_images_of_each_structure() -> None:
    """Stains of one field have one image of light: rounds are of the images of each of them."""
    stream = stream_of("a", "b", "c", base=("a", "b", "c"), patches=240, fields=12)
    strategy = Replay(model=RepModeUNet(SMALL, ["a", "b", "c"]), buffer=36, train_mb_size=8, device="cpu")
    strategy.train(stream.train_stream[0])
    pairs = [(one.structure, one.image_id) for one in strategy.buffer.patches]
    assert len(pairs) == 36
    assert len(set(pairs)) == 36


@pytest.mark.parametrize("kind", [Replay, AGEM])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region": (8, 8, 4)}, r"region is \[8, 8, 4\], smaller than patch.size \[8, 8, 8\]"),
        (
            {"buffer_bytes": 4095},
            r"buffer_bytes is 4095, less than the 4096 of one patch .* give at least 4096",
        ),
        ({"buffer_bytes_each": 2047}, "buffer_bytes_each is 2047, less than the 2048 of one patch"),
        (
            {"buffer_bytes": 4096, "region": (8, 8, 9)},
            "buffer_bytes is 4096, less than the 4608 of one region",
        ),
    ],
)
def test_a_buffer_that_would_keep_nothing_is_refused_in_python(
    kind: type[StructureStrategy], options: dict[str, Any], message: str
) -> None:
    """As a configuration refuses it: without earlier patches it would be fine-tuning."""
    stream = stream_of("a", "b", base=("a", "b"))

    def train(**options: Any) -> None:
        network = RepModeUNet(SMALL, ["a", "b"])
        kind(model=network, train_mb_size=8, device="cpu", **options).train(stream.train_stream[0])

    for given in ({}, {"stream": stream}):
        with pytest.raises(ConfigError, match=f"{kind.__name__}: {message}"):
            train(**options, **given)
        train(buffer_bytes=4096, **given)


def test_a_teacher_from_a_checkpoint_fuses_as_the_network_does() -> None:
    """Its logits in another precision would teach otherwise than before the interruption."""
    stream = stream_of("a", "b", patches=16)
    training = TrainingConfig(batch_size=8, steps=2, base_steps=2, fusing="autocast", precision="bfloat16")

    def made() -> LwF:
        return LwF(model=RepModeUNet(SMALL, ["a"]), training=training, device="cpu", stream=stream)

    first, resumed = made(), made()
    first.train(stream.train_stream[0])
    resumed.load_extra_state(*first.extra_state())
    for strategy in (first, resumed):
        assert strategy._teacher is not None
        blocks = [part for part in strategy._teacher.modules() if isinstance(part, ModeBlock)]
        assert blocks
        assert all(block.fuses_under_autocast for block in blocks)


@pytest.mark.parametrize(
    ("kind", "option", "message"),
    [
        (Replay, {"buffer": -3}, r"Replay: buffer: found -3: input should be greater than or equal to 0"),
        (Replay, {"replay_batch": 0}, r"Replay: replay_batch: found 0: .* or equal to 1"),
        (Replay, {"region": (8, 8)}, r"Replay: region: found \(8, 8\): field required"),
        (EWC, {"strength": math.nan}, r"EWC: strength: found nan"),
        (LwF, {"distilled": 0}, r"LwF: distilled: found 0"),
    ],
)
def test_values_that_a_configuration_refuses_are_refused_in_python(
    kind: type[StructureStrategy], option: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(model=RepModeUNet(SMALL, ["a"]), device="cpu", **option)


def test_an_optimizer_that_warms_up_from_zero_is_taken_and_one_with_a_closure_is_refused() -> None:
    network = RepModeUNet(SMALL, ["a"])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 5))
    assert optimizer.param_groups[0]["lr"] == 0
    strategy = ExpertsFrozen(model=network, optimizer=optimizer, train_mb_size=8, device="cpu")
    strategy.train(stream_of("a").train_stream[0])
    with pytest.raises(ConfigError, match="LBFGS computes the loss several times in a step"):
        ExpertsFrozen(model=network, optimizer=torch.optim.LBFGS(network.parameters()), device="cpu")


def test_the_best_state_holds_statistics_of_every_norm() -> None:
    network = nn.Sequential(
        nn.BatchNorm3d(2, affine=False),
        nn.InstanceNorm3d(2, affine=True, track_running_stats=True),
        nn.BatchNorm3d(2),
    )
    network[2].requires_grad_(False)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert set(trained_state_names(network)) == {
        *(f"{number}.{name}" for number in (0, 1) for name in statistics),
        "1.weight",
        "1.bias",
    }


class _Scaled(nn.Module):
    """A layer of one's own, whose scale no optimiser changes."""

    def __init__(self, *, weight: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1)) if weight else None
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("cache", torch.ones(1), persistent=False)


def test_the_best_state_holds_the_buffers_of_networks_of_ones_own() -> None:
    network = nn.Sequential(
        _Scaled(weight=True),
        nn.Sequential(nn.Conv3d(1, 1, 1), _Scaled(weight=False)),
        nn.Sequential(nn.Conv3d(1, 1, 1), nn.Sequential(_Scaled(weight=False)), _Scaled(weight=True)),
    )
    network[2].requires_grad_(False)
    names = trained_state_names(network)
    assert [name for name in names if name.endswith(("scale", "cache"))] == ["0.scale", "1.1.scale"]
    selection = BestState(names)
    selection.offer(network, 1, 0.5)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.fill_(9)
    selection.restore(network)
    assert network[0].scale.item() == network[1][1].scale.item() == network[0].weight.item() == 1
    assert network[2][1][0].scale.item() == network[2][2].scale.item() == 9


def test_importances_of_mas_are_of_the_voxels_that_count() -> None:
    output = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    target = torch.cat([torch.randn_like(output), torch.zeros_like(output)], dim=1)
    target[:, 1, :, :, :2] = 1
    strategy = MAS(model=RepModeUNet(SMALL, ["a"]), device="cpu")
    expected = output[..., :2].square().mean()
    torch.testing.assert_close(strategy._quantity(output, target), expected)
    torch.testing.assert_close(strategy._quantity(output, target[:, :1]), output.square().mean())


def test_the_reference_gradient_of_a_gem_is_that_of_the_whole_batch_in_whatever_parts() -> None:
    """Patches with few voxels that count weigh less, in a part as in the whole batch."""

    def gradient(parts: int) -> list[Tensor]:
        torch.manual_seed(0)
        strategy = AGEM(
            model=RepModeUNet(SMALL, ["a"], seed=0),
            training=TrainingConfig(batch_size=8, accumulate=parts, steps=2, base_steps=2),
            device="cpu",
            stream=stream_of("a"),
        )
        x = torch.randn(8, 1, 8, 8, 8)
        y = torch.cat([torch.randn_like(x), torch.ones_like(x)], dim=1)
        for number in range(8):
            y[number, 1, :, :, : number % 7] = 0
        labels = torch.zeros(8, dtype=torch.long)
        size = 8 // parts

        def part_of(part: int, count: int) -> list[Tensor]:
            return [tensor[part * size : (part + 1) * size] for tensor in (x, y, labels)]

        strategy.rehearsal_batch = part_of  # type: ignore[method-assign]
        strategy.network.eval()
        found = strategy._reference_gradient(list(strategy.network.parameters()))
        return [one for one in found if one is not None]

    for whole, parts in zip(gradient(1), gradient(4), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
