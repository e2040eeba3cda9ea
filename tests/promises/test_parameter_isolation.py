"""Piggyback, PackNet and progressive networks against their publications' rules, computed another way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_run import changed, tiny
from tiny_strategies import BASE, STREAM, TRAINING, configured, learn, state_of
from torch import Tensor, nn

from repmode_cl.benchmark.check_strategies import check_strategies
from repmode_cl.config import StrategyConfig
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError, StructureError
from repmode_cl.nn import Architecture, fold_norms
from repmode_cl.nn.adaptations import AdaptationSpec, AdaptedLayer, BinaryMask, make_adaptation
from repmode_cl.nn.progressive_unet import ProgressiveUNet
from repmode_cl.scenarios import StreamVariant
from repmode_cl.strategies import PackNet, Piggyback, StructureStrategy

# -- Piggyback --------------------------------------------------------------------------------------------------


def mask_of(weight: Tensor) -> BinaryMask:
    layer = AdaptedLayer(weight, nn.BatchNorm3d(len(weight)))
    own = make_adaptation(AdaptationSpec("piggyback", norm="base"), layer, torch.Generator())
    assert isinstance(own, BinaryMask)
    return own


def test_scores_above_a_threshold_keep_weights_and_take_the_gradient_of_the_mask() -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 2, 3, 3, 3, generator=random)
    own = mask_of(weight)
    assert own.scores is not None
    assert own.scores.detach().unique().tolist() == pytest.approx([1e-2])
    assert torch.equal(own.kernel(weight), weight)  # at first, the base's
    with torch.no_grad():
        own.scores.copy_(torch.randn(weight.shape, generator=random) * 0.01)
        own.scores.view(-1)[:3] = torch.tensor(
            [5e-3, 5.0001e-3, -1.0]
        )  # not above the threshold, above, below
    kept = (own.scores.detach() > 5e-3).float()
    assert kept.view(-1)[:3].tolist() == [0, 1, 0]
    x = torch.randn(1, 2, 4, 4, 4, generator=random)
    masked = (weight * kept).requires_grad_()
    expected = F.conv3d(x, masked, padding=1)
    found = F.conv3d(x, own.kernel(weight), padding=1)
    assert torch.equal(found, expected)
    expected.square().sum().backward()
    found.square().sum().backward()
    assert masked.grad is not None
    # d loss / d mask = d loss / d kernel * weight, also where the mask is 0.
    torch.testing.assert_close(own.scores.grad, masked.grad * weight)


def test_a_packed_mask_is_a_bit_for_each_weight() -> None:
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(3, 1, 3, 3, 3, generator=random)  # 81 weights: the last byte is not full
    own = mask_of(weight)
    assert own.scores is not None
    with torch.no_grad():
        own.scores.copy_(torch.randn(weight.shape, generator=random))
    kernel = own.kernel(weight).detach()
    own.pack()
    assert list(own.state_dict()) == ["bits"]
    assert own.bits is not None
    assert (own.bits.dtype, len(own.bits)) == (torch.uint8, 11)
    assert sum(int(byte).bit_count() for byte in own.bits) == int((kernel != 0).sum())
    assert torch.equal(own.kernel(weight), kernel)
    own.unpack()
    assert own.scores is not None
    assert torch.equal(own.kernel(weight), kernel)
    assert sorted(own.scores.detach().unique().tolist()) == pytest.approx([0, 1e-2])


def test_masks_are_learned_and_then_packed(samples: list[Sample]) -> None:
    strategy = learn(configured("piggyback", samples, STREAM[:2], learning_rate=5e-3), 0)
    assert isinstance(strategy, Piggyback)
    seen: list[bool] = []
    strategy.listeners.append(lambda s: seen.extend(mask.packed for mask in s.network.masks("nucleolus")))
    learn(strategy, 1)
    assert seen
    assert not any(seen)
    masks = strategy.network.masks("nucleolus")
    assert all(mask.packed for mask in masks)
    assert len(masks) == 8
    kept = torch.cat([mask.mask().flatten() for mask in masks])
    assert 0.01 < float((kept == 0).float().mean()) < 0.99
    # The trained scores, and nothing else of the layers.
    assert {name.rpartition(".")[2] for name in strategy.trained} == {"scores", "weight", "bias"}


# -- PackNet ----------------------------------------------------------------------------------------------------


def weights_of(strategy: StructureStrategy) -> dict[str, tuple[Tensor, Tensor]]:
    """Return weights and owners of each layer, by name."""
    return {
        name: (layer.packed_weight.detach().clone(), layer.owner.clone())
        for name, layer in strategy.network.packed_layers()
    }


def test_masks_start_from_all_weights(samples: list[Sample]) -> None:
    network = configured("piggyback", samples, STREAM[:2]).network
    with pytest.raises(ConfigError, match="init_from is best: Piggyback starts each mask from all weights"):
        Piggyback(model=network, init_from="best")


def test_the_smallest_free_weights_of_each_layer_are_pruned(samples: list[Sample]) -> None:
    """Watched step by step: what is trained, what is pruned, and what is never touched."""
    training = TRAINING.model_copy(update={"steps": 6, "base_steps": 6, "weight_decay": 0.1})
    strategy = configured("packnet", samples, training=training, prune=0.6)
    assert isinstance(strategy, PackNet)
    prune, unpruned = strategy.network.prune, dict[str, tuple[Tensor, Tensor]]()

    def watch(share: float) -> None:
        unpruned.update(weights_of(strategy))
        prune(share)

    strategy.network.prune = watch
    for number in range(3):
        began = weights_of(strategy)
        steps: list[dict[str, tuple[Tensor, Tensor]]] = []
        strategy.listeners = [lambda s, steps=steps: steps.append(weights_of(s))]
        learn(strategy, number)
        assert len(steps) == 6
        assert strategy.selection.step in (4, 6)  # of the validations, at 2, 4 and 6, one after pruning
        for name, (before, owners) in began.items():
            candidates = owners == 0
            weight, mine = steps[3][name]
            old = unpruned[name][0]
            sizes = old[candidates].abs()
            # By sorting: as many as the share says, and none is larger than any that is kept.
            freed = round(0.6 * len(sizes))
            assert int((mine == 0).sum()) == freed
            pruned = candidates & (mine == 0)
            if bool((mine == number + 1).any()):
                assert float(old[pruned].abs().max()) <= float(old[mine == number + 1].abs().min())
            assert torch.equal(mine == number + 1, candidates & ~pruned)
            for step, (now, owner) in enumerate(part[name] for part in steps):
                assert torch.equal(now[~candidates], before[~candidates])  # of others, to the bit
                assert torch.equal(owner, owners if step < 3 else mine)
                if step >= 3:
                    assert not now[pruned].any()
            assert not torch.equal(
                steps[5][name][0][mine == number + 1], weight[mine == number + 1]
            )  # retrained
            assert torch.equal(steps[2][name][0] != before, candidates)  # all free weights learned before


def test_a_structure_is_predicted_by_its_weights(samples: list[Sample]) -> None:
    """Experiences up to its first, and those in which it came again; free weights and those of others are zero."""
    experiences = (*STREAM, ("nucleolus",))
    strategy = learn(configured("packnet", samples, experiences))
    visible = {"dna": {1}, "cell_membrane": {1}, "nucleolus": {1, 2, 4}, "mitochondria": {1, 2, 3}}
    for name, owners in visible.items():
        plain = {**dict(strategy.network.fuse(name).named_blocks())}
        for place, (weight, owner) in weights_of(strategy).items():
            if place not in plain:
                continue
            used = torch.zeros_like(weight)
            for one in owners:
                used += weight * (owner == one)
            assert torch.equal(plain[place].weight, used)
            assert bool((owner == max(owners)).any())


def test_the_kept_state_is_one_after_pruning(samples: list[Sample]) -> None:
    """Also where an earlier one validated better; and without a validation after it, the last."""
    training = TRAINING.model_copy(update={"validate_every": 1})
    strategy = configured("packnet", samples, STREAM[:2], training=training)
    assert isinstance(strategy, PackNet)
    errors = iter([0.1, 0.2, 0.9, 0.8, 0.7] * 2)
    offer = type(strategy.selection).offer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(strategy.selection),
            "offer",
            lambda self, network, step, mse: offer(self, network, step, next(errors)),
        )
        learn(strategy, 0)
    assert strategy.pruning_step(0) == 3
    assert strategy.selection.step == 4  # 0.8, of steps 3 and 4; those of steps 1 and 2 were lower
    for _, owner in weights_of(strategy).values():
        assert set(owner.unique().tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (
            {"patience": 2},
            r"packnet_k3: training\.patience may end an experience before its network is pruned",
        ),
        ({"time_limit": 60.0}, r"packnet_k3: training\.time_limit may end"),
        ({"steps": 1, "validate_every": 1}, "one step for nucleolus, and at least two are needed"),
    ],
)
def test_packnet_refuses_what_would_leave_it_unpruned(
    tmp_path: Path, training: dict[str, Any], message: str
) -> None:
    config = tiny(tmp_path / "manifest.csv", tmp_path)
    config = changed(
        config,
        strategies=(StrategyConfig(name="packnet"),),
        training=config.training.model_copy(update=training),
    )
    with pytest.raises(ConfigError, match=message):
        check_strategies(config, {"": StreamVariant((BASE, ("nucleolus",)))})


def test_packnet_needs_a_step_before_pruning_and_one_after(samples: list[Sample]) -> None:
    training = TRAINING.model_copy(update={"base_steps": 1, "validate_every": 1})
    with pytest.raises(ConfigError, match="experience 0 has one step, and PackNet needs one before pruning"):
        learn(configured("packnet", samples, STREAM[:2], training=training), 0)


def test_packnet_adopts_no_base(samples: list[Sample]) -> None:
    strategy = configured("packnet", samples, STREAM[:2])
    assert strategy.base_key is None
    before = state_of(strategy)
    with pytest.raises(ConfigError, match="experience 0 cannot be adopted: PackNet prunes its base"):
        strategy.adopt_experience(strategy.stream.train[0])
    assert all(torch.equal(before[name], tensor) for name, tensor in state_of(strategy).items())


# -- progressive networks ---------------------------------------------------------------------------------------


def reference_column(
    state: dict[str, Tensor], x: Tensor, earlier: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Compute a column of depth 1 from its parameters and the inputs of earlier ones; return its blocks' inputs."""
    inputs: dict[str, Tensor] = {}

    def norm(x: Tensor, place: str) -> Tensor:
        mean, variance, gamma, beta = (
            state[f"{place}.norm.{part}"][None, :, None, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / torch.sqrt(variance + 1e-5) * gamma + beta).clamp_min(0)

    def block(x: Tensor, place: str) -> Tensor:
        inputs[place] = x
        weight = state[f"{place}.weight"]
        out = F.conv3d(x, weight, padding=weight.shape[-1] // 2)
        for number, others in enumerate(earlier):
            lateral = state.get(f"{place}.laterals.{number}")
            assert (lateral is None) == (place == "encoder.0.0")
            if lateral is not None:
                out = out + torch.einsum("oc,nczyx->nozyx", lateral[..., 0, 0, 0], others[place])
        return out if place == "head" else norm(out, place)

    skip = block(block(x, "encoder.0.0"), "encoder.0.1")
    low = norm(F.conv3d(skip, state["down.0.layer.weight"], stride=2), "down.0")
    low = block(block(low, "bottleneck.0"), "bottleneck.1")
    up = norm(F.conv_transpose3d(low, state["up.0.layer.weight"], stride=2), "up.0")
    inputs["output"] = block(block(block(torch.cat([skip, up], 1), "decoder.0.0"), "decoder.0.1"), "head")
    return inputs


def part_of(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def test_columns_read_the_inputs_of_all_earlier_ones() -> None:
    network = ProgressiveUNet(Architecture(4, 1, ("conv3",)), 3, ("dna", "cell_membrane"), seed=0)
    for name in ("nucleolus", "mitochondria"):
        network.add_structure(name, seed=0)
    random = torch.Generator().manual_seed(2)
    state = network.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=random))
            elif tensor.is_floating_point():
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=random))
    network.load_state_dict(state)
    network.eval()
    x = torch.randn(2, 1, 4, 8, 8, generator=random)
    base = {name.replace(".own.dna.", "."): t for name, t in state.items() if not name.startswith("columns.")}
    lanes = [reference_column(base, x, [])]
    with torch.no_grad():
        torch.testing.assert_close(network(x, "dna"), lanes[0]["output"], rtol=1e-4, atol=1e-4)
        for number, name in enumerate(("nucleolus", "mitochondria")):
            lanes.append(reference_column(part_of(state, f"columns.{number}."), x, list(lanes)))
            expected = lanes[-1]["output"]
            fused = network.fuse(name)
            for found in (network(x, name), fused(x), fold_norms(fused)(x)):
                assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())
        mixed = network(x, ["nucleolus", "dna"])
        torch.testing.assert_close(mixed[:1], network(x[:1], "nucleolus"))
        torch.testing.assert_close(mixed[1:], network(x[1:], "dna"))
    with pytest.raises(StructureError, match="the base no more"):
        network.train_only(["dna"])
    with pytest.raises(StructureError, match="later columns read its column"):
        network.train_only(["nucleolus"])
    with pytest.raises(StructureError, match="is here already"):
        network.add_structure("nucleolus", seed=0)
    network.train()
    with pytest.raises(StructureError, match="cannot be mixed in a training batch"):
        network(x, ["nucleolus", "dna"])


def test_a_column_that_others_read_is_copied_when_its_structure_comes_again(samples: list[Sample]) -> None:
    experiences = (*STREAM, ("mitochondria",), ("nucleolus",), ("nucleolus",))
    strategy = learn(configured("progressive", samples, experiences), 0, 1, 2)
    names = strategy.network.column_names
    assert names == ["nucleolus", "mitochondria"]
    learn(strategy, 3)
    assert names == ["nucleolus", "mitochondria"]  # the last column is read by none
    before = state_of(strategy)
    copied: list[dict[str, Tensor]] = []
    strategy.listeners = [lambda s: copied.append(state_of(s))]
    learn(strategy, 4)
    assert strategy.network.column_names == ["nucleolus", "mitochondria", "nucleolus"]
    assert all(torch.equal(tensor, state_of(strategy)[name]) for name, tensor in before.items())
    first, last = (part_of(copied[0], f"columns.{place}.") for place in (0, 2))
    assert first.keys() == last.keys()
    # After one step still near the column that it was copied from.
    for name in first:
        if name.endswith("weight"):
            assert float((first[name] - last[name]).abs().max()) < 0.1
    learn(strategy, 5)
    assert strategy.network.column_names == ["nucleolus", "mitochondria", "nucleolus"]
    assert strategy.trained == {
        f"columns.2.{name}" for name, _ in strategy.network.columns[2].named_parameters()
    }
