"""Nothing in the networks stands in the way of `torch.compile`: where the graph breaks it breaks, and it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from repmode_cl.nn import AdditionSpec, Architecture, PlainUNet, RepModeUNet
from repmode_cl.nn.unet import checkpoint_activations

MIXED = ("dna", "cell_membrane", "dna")


OUTSIDE = AdditionSpec(gate="outside", scale=True)


def repmode(*added: str, spec: AdditionSpec | None = None) -> RepModeUNet:
    network = RepModeUNet(Architecture(width=2, depth=1, experts=("conv3", "avg3")), ("dna", "cell_membrane"))
    for name in added:
        network.add_structure(name, spec, seed=1)
        network.train_only([name])
    return network


def checkpointed() -> PlainUNet:
    network = PlainUNet(2, 1, 3)
    checkpoint_activations(network, True)
    return network


@pytest.mark.parametrize(
    ("make", "arguments", "backend"),
    [
        pytest.param(repmode, (MIXED,), "aot_eager", marks=pytest.mark.slow),
        pytest.param(lambda: repmode("nucleolus"), ("nucleolus",), "eager", marks=pytest.mark.slow),
        pytest.param(
            lambda: repmode("nucleolus", spec=OUTSIDE), ("nucleolus",), "eager", marks=pytest.mark.slow
        ),
        pytest.param(checkpointed, (), "eager", marks=pytest.mark.slow),
    ],
    ids=["mixed batch", "addition", "outside the softmax", "activation checkpointing"],
)
# After a break in the graph the compiler looks at what is no leaf; it silences torch, but not warnings as errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_networks_train(
    make: Callable[[], nn.Module], arguments: tuple[Any, ...], backend: str
) -> None:
    plain, compiled = make().train(), make().train()
    torch._dynamo.reset()
    x = torch.randn((3, 1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    outputs = plain(x, *arguments), torch.compile(compiled, backend=backend)(x, *arguments)
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    for output in outputs:
        output.square().mean().backward()
    for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None) == (not one.requires_grad), name
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
