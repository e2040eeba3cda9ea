"""The paper's task-conditioned rivals: sizes at the paper's width, mixed batches, copies, and what is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference_unet import scrambled, volume

from repmode_cl.errors import StructureError, UnknownStructureError
from repmode_cl.nn import Architecture, PlainUNet
from repmode_cl.nn.conditioned_unet import ConditionedUNet
from repmode_cl.nn.condnet import CondNet
from repmode_cl.nn.dodnet import DoDNet
from repmode_cl.nn.experts import uninitialised_weights
from repmode_cl.nn.pipo_fan import PIPOFAN
from repmode_cl.nn.tgnet import TGNet
from repmode_cl.nn.tsns import TSNs
from repmode_cl.nn.unet import checkpoint_activations
from repmode_cl.structures import TWELVE_STRUCTURES

Make = Callable[..., ConditionedUNet]
NETWORKS: dict[str, Make] = {
    "dodnet": DoDNet, "tgnet": TGNet, "condnet": CondNet, "tsns": TSNs, "pipo_fan": PIPOFAN,
}  # fmt: skip
EACH = pytest.mark.parametrize("name", NETWORKS)
BASE = ("dna", "cell_membrane")

#: Network -> kernel -> parameters with twelve structures at the paper's width, and those that a structure owns.
SIZES: dict[str, dict[int, tuple[int, int]]] = {
    "dodnet": {3: (23_356_589, 153), 5: (100_229_357, 153)},
    "tgnet": {3: (23_625_801, 641), 5: (100_498_569, 641)},
    "condnet": {3: (23_312_288, 864), 5: (100_316_768, 4_000)},
    "tsns": {3: (25_038_208, 864), 5: (101_948_608, 4_000)},
    "pipo_fan": {3: (42_042_686, 165), 5: (185_950_688, 165)},
}


def network_of(name: str, kernel: int = 3, *, depth: int = 2) -> ConditionedUNet:
    return NETWORKS[name](Architecture(4, depth, ("conv3",)), kernel, BASE, seed=1)


@pytest.mark.parametrize("kernel", [3, 5])
@EACH
def test_it_has_as_many_parameters_as_counted_from_its_definition(name: str, kernel: int) -> None:
    with torch.device("meta"), uninitialised_weights():
        network = NETWORKS[name](Architecture(), kernel, TWELVE_STRUCTURES)
        plain = PlainUNet(32, 4, kernel)
    assert sum(p.numel() for p in plain.parameters()) == {3: 23_276_864, 5: 100_152_768}[kernel]
    sizes = {key: p.numel() for key, p in network.named_parameters()}
    own = [sum(size for key, size in sizes.items() if f".own.{one}." in key) for one in TWELVE_STRUCTURES]
    assert (sum(sizes.values()), *set(own)) == SIZES[name][kernel]


@pytest.mark.parametrize(("kernel", "expected"), [(3, 23_302_784), (5, 100_272_768)])
def test_condnet_with_one_last_layer_owns_nothing_of_a_structure_of_its_base(
    kernel: int, expected: int
) -> None:
    with torch.device("meta"), uninitialised_weights():
        network = CondNet(Architecture(), kernel, TWELVE_STRUCTURES, last_layer="shared")
    assert sum(p.numel() for p in network.parameters()) == expected
    assert not any(".own." in name for name, _ in network.named_parameters())


@EACH
def test_mixed_equals_separate(name: str) -> None:
    network = network_of(name)
    network.add_structure("nucleolus", seed=1)
    scrambled(network)
    x, names = volume(4), ["nucleolus", "dna", "cell_membrane", "nucleolus"]
    with torch.no_grad():
        mixed = network(x, names)
        for place, one in enumerate(names):
            torch.testing.assert_close(mixed[place : place + 1], network(x[place : place + 1], one))
        assert (network(x, "dna") - network(x, "nucleolus")).abs().max() > 1e-4
        uneven = network(volume(1, (7, 9, 10)), "dna")
    assert uneven.shape == (1, 1, 7, 9, 10)


@EACH
def test_a_copy_predicts_the_same_and_shares_nothing(name: str) -> None:
    network = network_of(name).train()
    copied = network.fuse("dna")
    assert copied.depends_on_window == network.depends_on_window
    assert network.training
    assert not copied.training
    x = volume(2).float()
    with torch.no_grad():
        expected = copy.deepcopy(network).eval()(x, "dna")
        assert torch.equal(copied(x), expected)
        for parameter in network.parameters():
            parameter.add_(1.0)
        assert torch.equal(copied(x), expected)
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    with pytest.raises(UnknownStructureError):
        network.fuse("golgi")


@EACH
def test_checkpointed_activations_give_the_same_bits(name: str) -> None:
    found = []
    for active in (False, True):
        network = network_of(name).train()
        checkpoint_activations(network, active)
        output = network(volume(3).float(), ["dna", "cell_membrane", "dna"])
        output.square().mean().backward()
        gradients = {key: p.grad for key, p in network.named_parameters()}
        found.append((output, gradients, network.state_dict()))
    (output, gradients, state), (again, other_gradients, other_state) = found
    assert torch.equal(output, again)
    assert all(torch.equal(state[key], other_state[key]) for key in state)
    assert gradients.keys() == other_gradients.keys()
    for key, gradient in gradients.items():
        assert gradient is not None, key
        assert torch.equal(gradient, other_gradients[key]), key


@EACH
def test_half_precision_computes_about_the_same(name: str) -> None:
    network = network_of(name)
    network.add_structure("nucleolus", seed=1)
    x, names = volume(3).float(), ["dna", "nucleolus", "cell_membrane"]
    with torch.no_grad():
        expected = network.eval()(x, names)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x, names)
    found.float().square().mean().backward()
    assert (found.float() - expected).abs().max() < 0.1 * expected.abs().max()
    gradients = [p.grad for key, p in network.named_parameters() if p.grad is not None]
    assert len(gradients) > 20
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@EACH
def test_what_is_trained(name: str) -> None:
    network = network_of(name)
    names = {key for key, _ in network.named_parameters()}
    shared = {key for key in names if ".own." not in key}
    assert network.train_only(BASE) == names
    assert network.train_only(["dna"]) == shared | {key for key in names if ".own.dna." in key}
    with pytest.raises(StructureError, match="name at least one"):
        network.train_only([])
    with pytest.raises(StructureError, match="is here already"):
        network.add_structure("dna", seed=0)
    network.add_structure("nucleolus", seed=0)
    own = {key for key, _ in network.named_parameters() if ".own.nucleolus." in key}
    assert network.train_only(["nucleolus"]) == own
    assert {key for key, p in network.named_parameters() if p.requires_grad} == own
    assert not any(isinstance(m, torch.nn.BatchNorm3d) and m.training for m in network.train().modules())
    for names_again in (["dna"], ["dna", "nucleolus"]):
        with pytest.raises(StructureError, match="the base no more, because nucleolus depend on it"):
            network.train_only(names_again)
    with pytest.raises(StructureError, match="nucleolus depend on the frozen network"):
        network.add_base_structure("golgi", seed=0)


@EACH
def test_weights_depend_on_the_seed_and_later_structures_on_their_name(name: str) -> None:
    def states(seed: int) -> dict[str, Any]:
        return NETWORKS[name](Architecture(4, 1, ("conv3",)), 3, BASE, seed=seed).state_dict()

    before = torch.random.get_rng_state()
    one, two, other = states(1), states(1), states(2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[key], two[key]) for key in one)
    moved = {key for key in one if not torch.equal(one[key], other[key])}
    assert {key for key in one if key.endswith("weight") and "norm" not in key} <= moved


@EACH
def test_other_kernels_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="kernel is 3 or 5, not 1"):
        network_of(name, 1)
