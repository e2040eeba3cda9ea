"""Additions outside the softmax, with a scale, with ranks by level, and with experts in a part of the blocks."""

from __future__ import annotations

import copy

import pytest
import torch
from stored_model import liven

from repmode_cl.errors import ConfigError
from repmode_cl.nn import AdditionSpec, Architecture, RepModeUNet
from repmode_cl.nn.layerwise_forward import predict_float64, predict_layerwise
from repmode_cl.nn.norm_folding import fold_structure
from repmode_cl.nn.warm_start import warm_start
from repmode_cl.perf.reference_variants import per_sample, unfused

KERNEL_5, KERNEL_3 = ("conv5", "conv3", "conv1", "avg3", "avg5"), ("conv3", "conv1", "avg3")
KINDS = {
    "outside": AdditionSpec(gate="outside"),
    "outside-scale": AdditionSpec(gate="outside", scale=True),
    "outside-conv5": AdditionSpec("conv5", gate="outside"),
    "outside-avg3": AdditionSpec("avg3", gate="outside"),
    "outside-lowrank-base": AdditionSpec("lowrank:2", resampling="base", gate="outside", scale=True),
    "outside-none": AdditionSpec("none", gate="outside"),
    "outside-all": AdditionSpec(sees="all", gate="outside", scale=True),
    "ranks": AdditionSpec("lowrank:2,1,0"),
    "ranks-outside-all": AdditionSpec("lowrank:2,0,1", sees="all", gate="outside"),
    "decoder": AdditionSpec(blocks="decoder"),
    "encoder-outside": AdditionSpec("lowrank:1", gate="outside", blocks="encoder"),
}
EACH = pytest.mark.parametrize("kind", KINDS)


def base(
    experts: tuple[str, ...] = KERNEL_3, names: tuple[str, ...] = ("dna", "cell_membrane")
) -> RepModeUNet:
    network = RepModeUNet(Architecture(width=3, depth=2, experts=experts), names, seed=0)
    liven(network)
    return network.eval()


def grown(spec: AdditionSpec, experts: tuple[str, ...] = KERNEL_3) -> RepModeUNet:
    """Return a network with two additions of this kind, as if they had been trained."""
    network = base(experts)
    generator = torch.Generator().manual_seed(3)
    for seed, name in enumerate(("nucleolus", "golgi")):
        network.add_structure(name, spec, seed=seed)
        liven(network, f".own.{name}.")
        with torch.no_grad():
            for key, parameter in network.named_parameters():
                if f".own.{name}." in key and ".norm." not in key:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def volumes(count: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, 1, 8, 12, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max() / second.abs().max())


@pytest.mark.parametrize(
    ("kind", "experts"),
    [
        *(pytest.param(kind, KERNEL_3, id=f"{kind}-k3") for kind in KINDS),
        pytest.param("outside-scale", KERNEL_5, id="outside-scale-k5"),
        pytest.param("ranks-outside-all", KERNEL_5, id="ranks-outside-all-k5"),
        *(
            pytest.param(kind, KERNEL_5, id=f"{kind}-k5", marks=pytest.mark.slow)
            for kind in KINDS
            if kind not in ("outside-scale", "ranks-outside-all")
        ),
    ],
)
def test_fused_is_the_sum_of_the_branches_in_float64_and_so_are_all_gradients(
    kind: str, experts: tuple[str, ...]
) -> None:
    network = grown(KINDS[kind], experts).double()
    x = volumes(dtype=torch.float64)
    gradients = []
    for twin in (network, unfused(network), per_sample(network)):
        network.zero_grad()
        prediction = twin(x, "golgi")
        prediction.square().sum().backward()
        owned = sorted(set(network.owned_names("golgi")) & set(dict(network.named_parameters())))
        kept = [network.get_parameter(name).grad for name in owned]
        assert all(grad is not None for grad in kept)
        gradients.append(
            (prediction.detach(), torch.cat([grad.flatten() for grad in kept if grad is not None]))
        )
    for prediction, gradient in gradients[1:]:
        assert difference(gradients[0][0], prediction) < 1e-10
        assert difference(gradients[0][1], gradient) < 1e-9


@EACH
def test_every_way_to_predict_agrees(kind: str) -> None:
    network, x = grown(KINDS[kind]), volumes(2)
    with torch.no_grad():
        expected = network(x, "golgi")
        assert torch.equal(network.fuse("golgi")(x), expected)
        assert torch.equal(predict_layerwise(network, "golgi", x, folded=False), expected)
        folded = fold_structure(network, "golgi")(x)
        assert torch.equal(predict_layerwise(network, "golgi", x, folded=True), folded)
        assert difference(folded, expected) < 1e-5
        mixed = network(torch.cat([x, x, x]), ["golgi", "dna", "nucleolus", "golgi", "dna", "nucleolus"])
        assert difference(mixed[[0]], network(x[:1], "golgi")) < 1e-5
        assert difference(mixed[[1]], network(x[1:], "dna")) < 1e-5
        double = predict_float64(network, "golgi", volumes(dtype=torch.float64))
        twin = copy.deepcopy(network).double()
        assert difference(double, twin(volumes(dtype=torch.float64), "golgi")) < 1e-10


@EACH
def test_exactly_what_it_owns_is_trained(kind: str) -> None:
    spec, network = KINDS[kind], grown(KINDS[kind])
    expected = set()
    levels = {"encoder.0": 0, "encoder.1": 1, "bottleneck": 2, "decoder.1": 1, "decoder.0": 0, "head": 0}
    for part, level in levels.items():
        for block in [part] if part == "head" else [f"{part}.0", f"{part}.1"]:
            own = f"{block}.own.golgi"
            expected.add(f"{own}.gate")
            if block != "head":
                expected |= {f"{block}.norm.own.golgi.{key}" for key in ("weight", "bias")}
            first_half = part.startswith(("encoder", "bottleneck"))
            if spec.blocks == ("decoder" if first_half else "encoder") or spec.expert == "none":
                continue
            if "," in spec.expert and spec.expert.removeprefix("lowrank:").split(",")[level] == "0":
                continue
            weights = ("spatial", "mix") if "lowrank" in spec.expert else ("weight",)
            expected |= {f"{own}.expert.{weight}" for weight in weights}
            if spec.scale:
                expected.add(f"{own}.scale")
    for layer in ("down.0", "down.1", "up.0", "up.1"):
        expected |= {f"{layer}.norm.own.golgi.{key}" for key in ("weight", "bias")}
        if spec.resampling == "own":
            expected.add(f"{layer}.own.golgi.weight")
    assert network.train_only(["golgi"]) == expected
    assert {name for name, p in network.named_parameters() if p.requires_grad} == expected


@pytest.mark.parametrize("kind", [kind for kind, spec in KINDS.items() if spec.sees == "own"])
def test_outside_an_addition_begins_as_a_mode_of_the_base(kind: str) -> None:
    """Of the only one bit for bit; of several from the mean of their gates, or from that of a named one."""
    spec, x = KINDS[kind], volumes()
    if spec.gate == "softmax":
        spec = AdditionSpec(**{**vars(spec), "gate": "outside"})
    single = base(names=("dna",))
    single.add_structure("golgi", spec)
    several = base()
    several.add_structure("golgi", spec)
    with torch.no_grad():
        same = (lambda a, b: difference(a, b) < 1e-5) if spec.expert == "conv5" else torch.equal
        assert same(single(x, "golgi"), single(x, "dna"))
        means = several.encoder[0][0].own["golgi"].gate
        gates = several.encoder[0][0].gates
        assert torch.allclose(means, (gates["dna"] + gates["cell_membrane"]) / 2)
        for other in ("cell_membrane", "dna"):
            assert warm_start(several, "golgi", other) == ("gate rows",)
            # A larger kernel than the base's is convolved in another order.
            assert same(several(x, "golgi"), several(x, other))
    # It can leave that mode: what begins as zero takes a gradient.
    several(x, "golgi").square().sum().backward()
    for _, block in several.named_mode_blocks():
        expert = block.addition("golgi").expert
        if expert is not None:
            assert any(bool(weight.grad.any()) for weight in expert.weights())


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize(
    "other", [AdditionSpec(), AdditionSpec("lowrank:2"), AdditionSpec("conv1", gate="outside")]
)
def test_outside_an_addition_begins_as_another_addition(other: AdditionSpec, scale: bool) -> None:
    """To rounding if its expert has the size of the kernels; bit for bit if it is of the same kind."""
    network, x = grown(other), volumes()
    network.add_structure("actin", AdditionSpec(gate="outside", scale=scale))
    copied = warm_start(network, "actin", "golgi")
    assert copied == ("gate rows", "centre of its kernels", "norms", "resampling layers")
    network.add_structure("tubulin", AdditionSpec(gate="outside", scale=scale))
    assert "expert" in warm_start(network, "tubulin", "actin")
    with torch.no_grad():
        assert difference(network(x, "actin"), network(x, "golgi")) < 1e-4
        assert torch.equal(network(x, "tubulin"), network(x, "actin"))


def test_inside_the_softmax_an_addition_begins_near_one_outside() -> None:
    network = grown(KINDS["outside-scale"])
    network.add_structure("actin", AdditionSpec())
    assert "centre of its kernels" in warm_start(network, "actin", "golgi")


def test_experts_of_earlier_additions_get_a_small_first_share() -> None:
    network = grown(AdditionSpec())
    network.add_structure("actin", AdditionSpec(sees="all", gate="outside"))
    for weights in network.gate_weights("actin").values():
        assert torch.allclose(weights["of nucleolus"], torch.tensor(0.02 / 1.02), atol=1e-3)
        assert torch.equal(weights["of actin"], torch.ones_like(weights["of actin"]))
        inside = sum(weight for label, weight in weights.items() if label != "of actin")
        assert torch.allclose(inside, torch.ones_like(inside))


def test_what_is_as_in_the_first_versions_is_written_as_then() -> None:
    assert AdditionSpec().to_json() == {
        "expert": "conv3",
        "sees": "own",
        "norm": "own",
        "resampling": "own",
        "needs": [],
    }
    assert not AdditionSpec("lowrank:4", sees="all").extended
    for spec in KINDS.values():
        assert spec.extended
        assert AdditionSpec.from_json(spec.to_json()) == spec
    assert KINDS["outside"].to_json().keys() - AdditionSpec().to_json().keys() == {"gate"}


def test_impossible_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match="has gate softmax and expert conv3: choose gate outside"):
        AdditionSpec(scale=True)
    with pytest.raises(ConfigError, match="has gate outside and expert none"):
        AdditionSpec("none", gate="outside", scale=True)
    with pytest.raises(ValueError, match="gate is softmax or outside, not 'inside'"):
        AdditionSpec(gate="inside")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale is true or false, not 1"):
        AdditionSpec(gate="outside", scale=1)  # type: ignore[arg-type]
    network = base()
    with pytest.raises(ValueError, match=r"'lowrank:2,1' has 2 ranks, and this network has 3 levels"):
        network.add_structure("golgi", AdditionSpec("lowrank:2,1"))
    assert network.structures == ("dna", "cell_membrane")
    assert not any("golgi" in name for name in network.state_dict())
