"""Activation checkpointing changes memory, and not one bit of anything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_strategies import BUILD, TRAINING, build, differing, learn, state_of
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from repmode_cl.data.sample import Sample
from repmode_cl.nn import AdditionSpec, Architecture, PlainUNet, RepModeUNet
from repmode_cl.nn import unet as unet_module
from repmode_cl.nn.unet import checkpoint_activations
from repmode_cl.strategies import StructureStrategy

ARCHITECTURE = Architecture(width=4, depth=2, experts=("conv3", "conv1", "avg3"))
MIXED = ("dna", "cell_membrane", "dna", "dna")


def repmode(*added: str) -> RepModeUNet:
    network = RepModeUNet(ARCHITECTURE, ("dna", "cell_membrane"), seed=0)
    for name in added:
        network.add_structure(name, AdditionSpec(), seed=1)
        network.train_only([name])
    return network


#: What is trained -> network and its arguments after the images.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "mixed batch": (repmode, (MIXED,)),
    "addition": (lambda: repmode("nucleolus"), ("nucleolus",)),
    "plain": (lambda: PlainUNet(4, 2, 3, seed=0), ()),
}


def images(size: tuple[int, ...] = (8, 16, 16)) -> Tensor:
    return torch.randn((len(MIXED), 1, *size), generator=torch.Generator().manual_seed(0))


def gradients(network: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [(8, 16, 16), (7, 13, 16)])
def test_gradients_and_statistics_are_the_same_to_the_bit(case: str, size: tuple[int, ...]) -> None:
    make, arguments = CASES[case]
    stored, recomputed = make().train(), make().train()
    checkpoint_activations(recomputed, True)
    for _ in range(2):
        outputs = [network(images(size), *arguments) for network in (stored, recomputed)]
        assert torch.equal(*outputs)
        for output in outputs:
            output.square().mean().backward()
    one, other = gradients(stored), gradients(recomputed)
    assert any(gradient is not None for gradient in one.values())
    for name, gradient in one.items():
        theirs = other[name]
        assert (gradient is None) == (theirs is None)
        assert gradient is None or theirs is None or torch.equal(gradient, theirs), name
    before, after = stored.state_dict(), recomputed.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == set()
    counts = [int(tensor) for name, tensor in after.items() if name.endswith("num_batches_tracked")]
    assert max(counts) == 2  # a recomputation is no second batch


# Of torch 2.11, which has no cycles to tell of here.
@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")
def test_much_less_is_stored_for_the_backward_pass() -> None:
    def stored_bytes(network: nn.Module) -> int:
        network(images(), MIXED)  # allocates what is made once
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            output = network(images(), MIXED)
        size = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
        assert output.requires_grad
        return size

    network = repmode().train()
    everything = stored_bytes(network)
    checkpoint_activations(network, True)
    assert 0 < stored_bytes(network) < everything / 3


def test_nothing_is_recomputed_without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Tensor:
        raise AssertionError

    network = repmode()
    checkpoint_activations(network, True)
    monkeypatch.setattr(unet_module, "checkpointed", refuse)
    network.eval()
    network(images(), MIXED)
    network.train()
    with torch.no_grad():
        network(images(), MIXED)
    with pytest.raises(AssertionError):
        network(images(), MIXED)


@pytest.mark.parametrize("name", BUILD)
def test_strategies_learn_the_same(samples: list[Sample], name: str) -> None:
    def run(active: bool) -> StructureStrategy:
        training = TRAINING.model_copy(update={"activation_checkpointing": active})
        return learn(build(name, samples, training=training), 0, 1)

    stored, recomputed = run(False), run(True)
    assert differing(state_of(stored), state_of(recomputed)) == set()
    assert stored.progress.curve == recomputed.progress.curve
