"""Adaptations of a frozen plain U-Net: their equations computed another way, and what is merged of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmode_cl.errors import StructureError
from repmode_cl.nn import Architecture, MultiHeadUNet, fold_norms
from repmode_cl.nn.adaptations import AdaptationSpec, AdaptedLayer, LowRankAdaptation, make_adaptation
from repmode_cl.nn.adapted_unet import AdaptedUNet

ARCHITECTURE = Architecture(width=4, depth=2, experts=("conv3",))
SPECS = {
    "norm_only": AdaptationSpec("norm_only"),
    "lora": AdaptationSpec("lora", rank=2),
    "lora-base": AdaptationSpec("lora", norm="base", rank=3),
    "ssf": AdaptationSpec("ssf"),
    "adapter": AdaptationSpec("adapter", bottleneck=3),
    "adapter-base": AdaptationSpec("adapter", norm="base", bottleneck=2),
}
EACH = pytest.mark.parametrize("kind", SPECS)


def network_of(kind: str, kernel: int = 3, *, scrambled: bool = True) -> AdaptedUNet:
    """Return a network with two base structures and one addition, all of whose numbers are drawn at random."""
    network = AdaptedUNet(ARCHITECTURE, kernel, ("dna", "cell_membrane"), SPECS[kind], seed=1)
    network.add_structure("nucleolus", seed=1)
    if scrambled:
        random = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                if name.endswith("running_var"):
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=random))
                elif tensor.is_floating_point():
                    tensor.add_(0.2 * torch.randn(tensor.shape, generator=random))
    return network.eval()


def volume(seed: int = 0) -> Tensor:
    return torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(seed))


# -- equations --------------------------------------------------------------------------------------------------


def tensor_of(numbers: dict[str, Any]) -> Tensor:
    return torch.tensor(numbers["values"]).reshape(numbers["shape"])


@pytest.mark.parametrize("name", ["block3", "block5", "down"])
def test_lora_is_that_of_peft(name: str) -> None:
    """Update, output, and the draw of A, against what peft computed (tests/fixtures/make_lora_reference.py)."""
    path = Path(__file__).parents[1] / "fixtures" / "lora-peft.json"
    reference = json.loads(path.read_text(encoding="utf-8"))
    made = reference["layers"][name]
    weight, x = tensor_of(made["weight"]), tensor_of(made["x"])
    layer = AdaptedLayer(weight, nn.BatchNorm3d(len(weight)))
    bounds = []
    for seed in range(20):
        own = LowRankAdaptation(layer, reference["rank"], None, torch.Generator().manual_seed(seed))
        bounds.append(float(own.lora_a.detach().abs().max()))
        assert not own.update().any()  # B is zero
    assert own.lora_a.shape == tuple(made["a"]["shape"])
    assert own.lora_b.shape == tuple(made["b"]["shape"][:2])
    # The largest of many uniform draws is just below the bound of Kaiming's with a = sqrt(5).
    bound = 1 / math.sqrt(weight[0].numel())
    for largest, share in ((made["a_bound"], 0.9), (max(bounds), 0.99)):
        assert share * bound < largest <= bound
    with torch.no_grad():
        own.lora_a.copy_(tensor_of(made["a"]))
        own.lora_b.copy_(tensor_of(made["b"]).flatten(1))
        torch.testing.assert_close(own.update(), tensor_of(made["delta"]), rtol=1e-5, atol=1e-6)
        stride, padding = (2, 0) if name == "down" else (1, weight.shape[-1] // 2)
        output = F.conv3d(x, own.kernel(weight), stride=stride, padding=padding)
    torch.testing.assert_close(output, tensor_of(made["output"]), rtol=1e-5, atol=1e-5)


def test_lora_of_an_up_layer_is_two_convolutions() -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 3, 2, 2, 2, generator=random)
    own = LowRankAdaptation(AdaptedLayer(weight, nn.BatchNorm3d(3), transposed=True), 2, None, random)
    with torch.no_grad():
        own.lora_b.normal_(generator=random)
        x = torch.randn(1, 6, 3, 3, 3, generator=random)
        merged = F.conv_transpose3d(x, own.kernel(weight), stride=2)
        low = F.conv_transpose3d(x, own.lora_a, stride=2)
        expected = F.conv_transpose3d(x, weight, stride=2) + F.conv3d(low, own.lora_b[..., None, None, None])
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)


def reference_unet(network: AdaptedUNet, x: Tensor, name: str) -> Tensor:
    """Compute an addition layer by layer, from its parameters by name and torch's functions alone."""
    state, kind, norm = network.state_dict(), network.spec.kind, network.spec.norm

    def channels(values: Tensor) -> Tensor:
        return values[None, :, None, None, None]

    def layer(x: Tensor, place: str, convolution: str, transposed: bool = False, stride: int = 1) -> Tensor:
        weight = state[f"{place}.{convolution}"]
        own = f"{place}.own.{name}"
        padding = weight.shape[-1] // 2 if stride == 1 else 0

        def convolved(kernel: Tensor) -> Tensor:
            return (
                F.conv_transpose3d(x, kernel, stride=stride)
                if transposed
                else F.conv3d(x, kernel, stride=stride, padding=padding)
            )

        out = convolved(weight)
        if kind == "lora":
            out = out + F.conv3d(
                convolved(state[f"{own}.lora_a"]), state[f"{own}.lora_b"][..., None, None, None]
            )
        if kind == "ssf":
            out = channels(state[f"{own}.scale"]) * out + channels(state[f"{own}.shift"])
        place_of_norm = own if norm == "own" and kind != "ssf" else place
        mean, variance, gamma, beta = (
            channels(state[f"{place_of_norm}.norm.{part}"])
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        out = (out - mean) / torch.sqrt(variance + 1e-5) * gamma + beta
        if kind == "ssf":
            out = channels(state[f"{own}.norm_scale"]) * out + channels(state[f"{own}.norm_shift"])
        out = out.clamp_min(0)
        if kind == "adapter" and stride == 1:
            down, up = state[f"{own}.after.down"], state[f"{own}.after.up"]
            hidden = torch.einsum("mc,nczyx->nmzyx", down[..., 0, 0, 0], out)
            hidden = (hidden + channels(state[f"{own}.after.down_bias"])).clamp_min(0)
            out = out + torch.einsum("cm,nmzyx->nczyx", up[..., 0, 0, 0], hidden)
            out = out + channels(state[f"{own}.after.up_bias"])
        return out

    def pair(x: Tensor, place: str) -> Tensor:
        return layer(layer(x, f"{place}.0", "weight"), f"{place}.1", "weight")

    skips = []
    for level in range(network.depth):
        x = pair(x, f"encoder.{level}")
        skips.append(x)
        x = layer(x, f"down.{level}", "layer.weight", stride=2)
    x = pair(x, "bottleneck")
    for level in reversed(range(network.depth)):
        up = layer(x, f"up.{level}", "layer.weight", transposed=True, stride=2)
        x = pair(torch.cat([skips[level], up], 1), f"decoder.{level}")
    head = state[f"head.own.{name}.weight"]
    return F.conv3d(x, head, padding=head.shape[-1] // 2)


@pytest.mark.parametrize("kernel", [3, 5])
@EACH
def test_an_addition_computes_the_equations_and_so_does_what_is_fused(kind: str, kernel: int) -> None:
    network = network_of(kind, kernel).double()
    x = volume().double()
    with torch.no_grad():
        expected = reference_unet(network, x, "nucleolus")
        torch.testing.assert_close(network(x, "nucleolus"), expected, rtol=1e-9, atol=1e-9)
    # A fused network is made in float32, so that its parameters are rounded.
    float32 = network.float()
    with torch.no_grad():
        plain = float32.fuse("nucleolus")
        found, folded = plain(x.float()), fold_norms(plain)(x.float())
    for result in (found, folded):
        assert float((result - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert not plain.training
    assert not [p for p in plain.parameters() if p.requires_grad]


# -- the base and what is fresh ---------------------------------------------------------------------------------


@EACH
def test_the_base_is_multi_heads_to_the_bit(kind: str) -> None:
    base = MultiHeadUNet(ARCHITECTURE, 3, ("dna", "cell_membrane"), head="last", seed=1)
    network = AdaptedUNet(ARCHITECTURE, 3, ("dna", "cell_membrane"), SPECS[kind], seed=1)
    states = base.state_dict(), network.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    names = ["dna", "cell_membrane"]
    losses = []
    for one in (base, network):
        one.train_only(names)
        one.train()
        loss = one(volume(), names).square().mean()
        loss.backward()
        losses.append(loss.detach())
        assert sum(p.grad is not None for p in one.parameters()) == len(list(base.parameters()))
    assert torch.equal(*losses)
    for one, other in zip(base.parameters(), network.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
    network.add_structure("nucleolus", seed=1)
    base.add("nucleolus", seed=1)
    assert torch.equal(network.head.own["nucleolus"].weight, base.head.own["nucleolus"].weight)
    for name in names:
        assert torch.equal(base.fuse(name)(volume()), network.fuse(name)(volume()))


@pytest.mark.parametrize("kind", ["norm_only", "lora", "lora-base", "adapter", "adapter-base"])
def test_an_addition_begins_as_the_base(kind: str) -> None:
    """All but its last layer: with that of a structure of the base, it predicts as that one does."""
    network = network_of(kind, scrambled=False)
    network.head.own["nucleolus"].load_state_dict(network.head.own["dna"].state_dict())
    with torch.no_grad():
        torch.testing.assert_close(network(volume(), "nucleolus"), network(volume(), "dna"))
        torch.testing.assert_close(network.fuse("nucleolus")(volume()), network.fuse("dna")(volume()))


def test_scales_and_shifts_begin_near_one_and_zero() -> None:
    """As the publication draws them: normal, with a deviation of 0.02."""
    layer = AdaptedLayer(torch.zeros(4000, 1, 1, 1, 1), nn.BatchNorm3d(4000))
    own = make_adaptation(AdaptationSpec("ssf"), layer, torch.Generator().manual_seed(0))
    for name, mean in (("scale", 1.0), ("shift", 0.0), ("norm_scale", 1.0), ("norm_shift", 0.0)):
        drawn = own.get_parameter(name).detach()
        assert float(drawn.mean()) == pytest.approx(mean, abs=2e-3)
        assert float(drawn.std()) == pytest.approx(0.02, rel=0.05)


@EACH
def test_samples_of_several_structures_are_predicted_together(kind: str) -> None:
    network = network_of(kind)
    names = ["nucleolus", "dna"]
    with torch.no_grad():
        joint = network(volume(), names)
        for place, name in enumerate(names):
            torch.testing.assert_close(
                joint[place : place + 1], network(volume()[place : place + 1], name), rtol=1e-4, atol=1e-5
            )
    network.train_only(["nucleolus"])
    network.train()
    with pytest.raises(StructureError, match="cannot be mixed in a training batch"):
        network(volume(), names)


def test_the_base_and_mixtures_cannot_be_trained_after_an_addition() -> None:
    network = network_of("lora")
    for names in (["dna"], ["dna", "nucleolus"], []):
        with pytest.raises(StructureError, match="cannot be trained"):
            network.train_only(names)
    with pytest.raises(StructureError, match="has a head already"):
        network.add_structure("nucleolus", seed=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "prefix"}, "kind is norm_only"),
        ({"kind": "lora", "norm": "none"}, "norm is own or base"),
        ({"kind": "norm_only", "norm": "base"}, "nothing but the last layer"),
        ({"kind": "lora", "rank": 0}, "rank is at least 1"),
    ],
)
def test_what_is_no_adaptation_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptationSpec(**values)
