"""The variants that ours is compared with compute what ours computes; what ours keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from repmode_cl.nn import AdditionSpec, Architecture, ModeBlock, RepModeUNet
from repmode_cl.nn.per_structure_layers import StructureGroups
from repmode_cl.nn.plain_unet import PlainBlock
from repmode_cl.perf.reference_variants import per_sample, unfused
from repmode_cl.training.activation_bytes import saved_bytes
from repmode_cl.training.loss import masked_mse

BASE = ("dna", "golgi_apparatus", "nucleolus")
WAYS = {"unfused": unfused, "per_sample": per_sample}


def results(network: torch.nn.Module, x: Tensor, names: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output and every gradient by parameter."""
    network.zero_grad(set_to_none=True)
    output = network(x, names)
    target = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(x.shape)
    masked_mse(output, target).backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return output.detach(), {name.replace(".block.", "."): gradient for name, gradient in gradients.items()}


def assert_same(network: RepModeUNet, way: Callable[[RepModeUNet], RepModeUNet], names: list[str]) -> None:
    x = torch.randn((len(names), 1, 4, 6, 8), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    # Made before either is computed: the running statistics that they share must not decide anything here.
    other = way(network)
    ours, our_gradients = results(network, x, names)
    theirs, their_gradients = results(other, x, names)
    torch.testing.assert_close(theirs, ours, rtol=1e-10, atol=1e-10)
    assert set(our_gradients) == set(their_gradients)
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(their_gradients[name], gradient, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("way", WAYS)
@given(names=st.lists(st.sampled_from(BASE), min_size=2, max_size=4), training=st.booleans())
@settings(max_examples=6, deadline=None)
def test_other_ways_give_our_outputs_and_gradients(way: str, names: list[str], training: bool) -> None:
    network = RepModeUNet(Architecture(2, 1), BASE, seed=1).double().train(training)
    assert_same(network, WAYS[way], names)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("expert", ["conv3", "lowrank:2"])
def test_other_ways_give_ours_for_an_addition(way: str, expert: str) -> None:
    network = RepModeUNet(Architecture(2, 1), BASE[:1], seed=1)
    network.add_structure("added", AdditionSpec(expert=expert), seed=2)
    network.train_only(["added"])
    assert_same(network.double(), WAYS[way], ["added", "added"])


def test_a_mixture_of_structures_that_see_other_experts_is_refused() -> None:
    network = RepModeUNet(Architecture(2, 1), BASE[:1], seed=1)
    network.add_structure("added", seed=2)
    with pytest.raises(ValueError, match="do not see the same experts"):
        unfused(network.eval())(torch.zeros(2, 1, 4, 4, 4), ["dna", "added"])


def test_other_ways_share_the_parameters() -> None:
    network = RepModeUNet(Architecture(2, 1), BASE, seed=1)
    mine = {id(p) for p in network.parameters()}
    assert {id(p) for p in unfused(network).parameters()} == mine
    assert {id(p) for p in per_sample(network).parameters()} == mine


# -- what is kept for the backward pass --------------------------------------------------------------------


def block(structures: tuple[str, ...]) -> ModeBlock:
    experts = ("conv5", "conv3", "conv1", "avg3", "avg5")
    return ModeBlock(8, 16, experts, structures, activation=False, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_block_keeps_its_input_and_fused_kernels_and_no_intermediate(count: int) -> None:
    ours = block(BASE[:count])
    x = torch.randn(6, 8, 4, 6, 6).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    groups = StructureGroups(BASE[:count], (6 // count,) * count)
    kept = saved_bytes(lambda: ours(x, groups), [x, *ours.parameters()])
    kernel = 16 * 8 * 125 * 4
    gates = count * 5 * 16 * 4
    parts = x.numel() * 4 if count > 1 else 0  # samples of each structure, should they be copied
    assert kept >= count * kernel, "a fused kernel is what the convolution itself keeps"
    assert kept <= count * kernel + gates + parts


def test_the_plain_block_keeps_only_its_input() -> None:
    plain = PlainBlock(8, 16, 5, activation=False, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 8, 4, 6, 6).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    assert saved_bytes(lambda: plain(x), [x, *plain.parameters()]) == 0
    assert saved_bytes(lambda: plain(x)) == x.numel() * 4 + plain.weight.numel() * 4


def test_saved_bytes_counts_shared_storage_once() -> None:
    x = torch.randn(10, requires_grad=True)
    assert saved_bytes(lambda: (x * x).sum()) == 40
    assert saved_bytes(lambda: (x[2:] * x[:8]).sum()) == 40
    assert saved_bytes(lambda: (x.exp() * x.exp()).sum(), [x]) == 80
