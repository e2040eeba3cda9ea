"""Warm start from another structure: what is copied, how near the mode comes, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from stored_model import liven

from repmode_cl.errors import ModelError, UnknownStructureError
from repmode_cl.nn import AdditionSpec, Architecture, RepModeUNet
from repmode_cl.nn.warm_start import warm_start

ARCHITECTURE = Architecture(width=3, depth=1, experts=("conv5", "conv1", "avg3"))


def network_with(**additions: AdditionSpec) -> RepModeUNet:
    """Return a network of two base structures and additions, as if all had been trained."""
    network = RepModeUNet(ARCHITECTURE, ("dna", "cell_membrane"), seed=1)
    liven(network)
    for number, (name, spec) in enumerate(additions.items()):
        network.add_structure(name, spec, seed=number)
        liven(network, f".own.{name}.")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".gate" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network.eval()


def predictions(network: RepModeUNet, *names: str) -> torch.Tensor:
    x = torch.randn(1, 1, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.cat([network(x, name) for name in names])


@pytest.mark.parametrize("expert", ["conv3", "conv5", "lowrank:2", "none"])
def test_everything_is_copied_from_an_addition_of_the_same_kind(expert: str) -> None:
    network = network_with(nucleolus=AdditionSpec(expert=expert))
    network.add_structure("golgi", AdditionSpec(expert=expert), seed=9)
    copied = warm_start(network, "golgi", "nucleolus")
    assert set(copied) - {"expert"} == {"gate rows", "norms", "resampling layers"}
    assert ("expert" in copied) == (expert != "none")
    assert torch.equal(predictions(network, "golgi"), predictions(network, "nucleolus"))


@pytest.mark.parametrize("other", ["dna", "nucleolus", "mitochondria"])
@pytest.mark.parametrize(
    "spec",
    [
        AdditionSpec(),
        AdditionSpec(expert="lowrank:2"),
        AdditionSpec(expert="none", norm="base", resampling="base"),
        AdditionSpec(sees="all"),
    ],
    ids=lambda spec: f"{spec.expert}, sees {spec.sees}",
)
def test_only_tensors_of_the_addition_change(spec: AdditionSpec, other: str) -> None:
    network = network_with(nucleolus=AdditionSpec(), mitochondria=AdditionSpec(expert="conv1", sees="all"))
    network.add_structure("golgi", spec, seed=9)
    own = set(network.owned_names("golgi"))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    warm_start(network, "golgi", other)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert changed <= own


@pytest.mark.parametrize("expert", ["conv5", "conv3", "lowrank:8", "conv1", "avg3", "lowrank:1"])
def test_the_fresh_expert_approximates_the_kernel_of_the_other_structure(expert: str) -> None:
    """Nearer to the other kernels than with a zero expert; with an expert of their size, the same."""
    network = network_with()
    network.add_structure("golgi", AdditionSpec(expert=expert), seed=9)
    distances = {}
    for kind in ("zero", "kernel"):
        warm_start(network, "golgi", "dna", expert=kind, share=0.3)  # type: ignore[arg-type]
        target = network.kernels("dna")
        distances[kind] = {
            block: float((k - target[block]).norm()) for block, k in network.kernels("golgi").items()
        }
    for block, distance in distances["kernel"].items():
        assert distance < distances["zero"][block]
    if expert == "conv5":
        assert max(distances["kernel"].values()) < 1e-6
        assert torch.allclose(predictions(network, "golgi"), predictions(network, "dna"), atol=1e-5)


def test_a_low_rank_expert_starts_as_the_best_approximation_of_its_rank() -> None:
    """No product of two such factors is nearer to the centre of the kernel (Eckart and Young)."""
    network = network_with()
    network.add_structure("golgi", AdditionSpec(expert="lowrank:2"), seed=9)
    warm_start(network, "golgi", "dna", expert="kernel")
    for _, block in network.named_mode_blocks():
        centre = block.kernel("dna")[:, :, 1:4, 1:4, 1:4].flatten(1).detach()
        expert = block.addition("golgi").expert
        assert expert is not None
        taps = expert.taps(*expert.weights()).flatten(1).detach()
        singular = torch.linalg.svdvals(centre.double())
        best = singular[2:].square().sum().sqrt()
        assert float((taps - centre).norm()) == pytest.approx(float(best), rel=1e-4, abs=1e-6)


def test_share_is_the_weight_in_the_softmax() -> None:
    network = network_with()
    network.add_structure("golgi", seed=9)
    warm_start(network, "golgi", "dna", expert="zero", share=0.1)
    ours, theirs = network.gate_weights("golgi"), network.gate_weights("dna")
    for block, weights in theirs.items():
        assert torch.allclose(ours[block]["of golgi"], torch.tensor(0.1))
        for label, weight in weights.items():
            assert torch.allclose(ours[block][label], 0.9 * weight)
    # A zeroed expert adds nothing: the kernels are those of the other structure, a tenth smaller.
    for block, kernel in network.kernels("golgi").items():
        assert torch.allclose(kernel, 0.9 * network.kernels("dna")[block], atol=1e-6)


def test_experts_that_only_the_addition_sees_get_little_weight() -> None:
    network = network_with(nucleolus=AdditionSpec(), mitochondria=AdditionSpec())
    network.add_structure("golgi", AdditionSpec(sees="all"), seed=9)
    warm_start(network, "golgi", "dna")
    for weights in network.gate_weights("golgi").values():
        assert float(weights["of nucleolus"].max()) < 0.03
    # Of an addition whose expert it sees anyway, it needs no copy.
    warm_start(network, "golgi", "nucleolus")
    for block, weights in network.gate_weights("golgi").items():
        theirs = network.gate_weights("nucleolus")[block]
        seen = ("conv5", "conv1", "avg3", "of nucleolus")
        for label in seen[1:]:
            ratio, same = weights[label] / weights["conv5"], theirs[label] / theirs["conv5"]
            assert torch.allclose(ratio, same, rtol=1e-4)


def test_an_earlier_version_of_the_same_name_may_be_the_source() -> None:
    earlier = network_with(golgi=AdditionSpec())
    network = network_with()
    network.add_structure("golgi", seed=77)
    warm_start(network, "golgi", "golgi", source=earlier)
    assert torch.equal(predictions(network, "golgi"), predictions(earlier, "golgi"))


def test_unknown_or_unfit_sources_are_refused() -> None:
    network = network_with(golgi=AdditionSpec())
    with pytest.raises(UnknownStructureError, match=r"unknown structure 'dnaa'.*did you mean 'dna'"):
        warm_start(network, "golgi", "dnaa")
    with pytest.raises(UnknownStructureError, match="the additions of this network"):
        warm_start(network, "dna", "cell_membrane")
    other = RepModeUNet(Architecture(2, 1, ("conv3",)), ("dna",))
    with pytest.raises(ModelError, match="another base"):
        warm_start(network, "golgi", "dna", source=other)
    with pytest.raises(ValueError, match="share must be above 0 and below 1"):
        warm_start(network, "golgi", "dna", share=1.0)
