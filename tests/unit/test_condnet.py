"""CondNet on the plain U-Net: its condition as a bias, and how batch norm swallows it."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from reference_unet import norm, reference_features, scrambled, volume
from torch import Tensor

from repmode_cl.errors import StructureError
from repmode_cl.nn import Architecture
from repmode_cl.nn.condnet import CondNet

STRUCTURES = ("dna", "cell_membrane", "nucleolus")


def network_of(kernel: int = 3, slots: int = 6, last_layer: Literal["own", "shared"] = "own") -> CondNet:
    architecture = Architecture(4, 2, ("conv3",))
    return CondNet(architecture, kernel, STRUCTURES, slots=slots, last_layer=last_layer, seed=1)


def one_sample(state: dict[str, Tensor], x: Tensor, name: str) -> Tensor:
    """Return the prediction of one sample, its condition computed as a bias of h times the taps inside the volume."""
    h = float(state[f"conditions.own.{name}.value"])

    def decode(state: dict[str, Tensor], place: str, x: Tensor) -> Tensor:
        weight = state[f"{place}.weight"]
        features, constant = weight[:, :-1], weight[:, -1:]
        taps = F.conv3d(torch.ones_like(x[:, :1]), constant, padding=weight.shape[-1] // 2)
        out = F.conv3d(x, features, padding=weight.shape[-1] // 2) + h * taps
        return norm(state, f"{place}.norm", out).clamp(min=0)

    _, features = reference_features(state, x, 2, decode=decode)
    head = state["head.weight"] if "head.weight" in state else state[f"head.own.{name}.weight"]
    return F.conv3d(features, head, padding=head.shape[-1] // 2)


@pytest.mark.parametrize(("kernel", "last_layer"), [(3, "own"), (5, "own"), (3, "shared")])
def test_the_condition_is_a_bias(kernel: int, last_layer: Literal["own", "shared"]) -> None:
    network = scrambled(network_of(kernel, last_layer=last_layer))
    x, names, state = volume(), ["nucleolus", "dna", "nucleolus"], network.state_dict()
    with torch.no_grad():
        found = network(x, names)
        expected = torch.cat([one_sample(state, x[i : i + 1], name) for i, name in enumerate(names)])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_conditions_are_those_of_a_table_in_the_order_of_arrival() -> None:
    network = network_of()
    network.add_structure("golgi", seed=0)
    network.add_structure("tubulin", seed=0)
    values = {
        name: float(network.state_dict()[f"conditions.own.{name}.value"]) for name in network.structures
    }
    expected = [-5 / 6, -3 / 6, -1 / 6, 1 / 6, 3 / 6]
    assert list(values.values()) == pytest.approx(expected)
    # Of the base they are no parameters; where all else is frozen, they are.
    conditions = {name for name, _ in network.named_parameters() if name.startswith("conditions.")}
    assert conditions == {"conditions.own.golgi.value", "conditions.own.tubulin.value"}
    assert network.train_only(["golgi"]) == {"conditions.own.golgi.value", "head.own.golgi.weight"}
    network.add_structure("desmosomes", seed=0)
    with pytest.raises(StructureError, match="the network has 6 slots, and all are taken"):
        network.add_structure("sialyltransferase", seed=0)


def test_one_last_layer_is_trained_with_the_base_and_frozen_with_it() -> None:
    network = network_of(last_layer="shared")
    assert network.train_only(STRUCTURES) == {name for name, _ in network.named_parameters()}
    network.add_structure("golgi", seed=0)
    assert network.train_only(["golgi"]) == {"conditions.own.golgi.value"}
    # The value is all that tells two structures apart.
    scrambled(network)
    x = volume(1)
    with torch.no_grad():
        assert not torch.equal(network(x, "golgi"), network(x, "dna"))
        network.conditions.own["golgi"].value.copy_(network.conditions.own["dna"].value)
        assert torch.equal(network(x, "golgi"), network(x, "dna"))


def features_of(network: CondNet, x: Tensor, names: list[str]) -> Tensor:
    """Return what the first block of the decoder's last level computes."""
    found: list[Tensor] = []
    handle = network.decoder[0][0].register_forward_hook(lambda *call: found.append(call[2]))
    with torch.no_grad():
        network(x, names)
    handle.remove()
    return found[0]


def shift(network: CondNet, structures: tuple[str, str]) -> Tensor:
    """Return how far another value of the first structure moves that block's output, of one sample of each."""
    x, found = volume(2, (32, 32, 32)), []
    for value in (-0.5, 0.5):
        with torch.no_grad():
            network.conditions.own[structures[0]].value.fill_(value)
        found.append(features_of(network, x, list(structures)))
    return (found[1] - found[0]).abs()


def test_batch_norm_swallows_the_condition_of_a_batch_of_one_structure() -> None:
    """In training mode, but at the borders; not in a mixed batch, and not in evaluation mode."""
    network = scrambled(network_of())
    # Only the block that is looked at reads the condition, with 27 equal taps.
    block = network.decoder[0][0]
    with torch.no_grad():
        for level in network.decoder:
            for other in level:
                other.weight[:, -1:] = 0.1 if other is block else 0.0
    inside = (slice(None), slice(None), *(slice(1, -1),) * 3)
    acts = shift(network.eval(), ("dna", "dna"))[inside].max()
    assert acts > 0.1
    swallowed = shift(network.train(), ("dna", "dna"))
    told_apart = shift(network, ("dna", "nucleolus"))[inside].max()
    # What is left of it comes from the border, whose voxels miss some of the taps.
    assert told_apart > 5 * swallowed[inside].max()
    assert swallowed.max() > 2 * swallowed[inside].max()
    # Without the border's share in the statistics nothing at all is left.
    with torch.no_grad():
        constant = F.conv3d(torch.ones(2, 1, 8, 8, 8, dtype=torch.float64), block.weight[:, -1:], padding=1)[
            inside
        ]
        x = torch.randn(2, 4, 6, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        left = block.norm(x + 0.5 * constant) - block.norm(x - 0.5 * constant)
    assert left.abs().max() < 1e-12


def test_later_structures_leave_the_norms_of_the_decoder_as_they_are() -> None:
    network = network_of().double()
    parameters = {name for name, _ in network.named_parameters()}
    norms = {name for name in parameters if name.startswith("decoder.") and ".norm." in name}
    assert len(norms) == 2 * 4
    assert network.train_only(STRUCTURES) == parameters
    network.add_base_structure("golgi", seed=0)
    trained = network.train_only(["golgi"])
    heads = {f"head.own.{name}.weight" for name in STRUCTURES}
    assert trained == parameters - norms - heads | {"head.own.golgi.weight"}
    network.train()
    assert not network.decoder[0][0].norm.training
    assert network.encoder[0][0].norm.training
    # So the condition acts although all of a batch are of one structure.
    acts = shift(scrambled(network), ("golgi", "golgi")).max()
    assert shift(network.train(), ("golgi", "golgi")).max() > 0.1 * acts > 0


def test_another_last_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"last_layer is .* not 'all'"):
        CondNet(Architecture(2, 1), 3, ("dna",), last_layer="all")  # type: ignore[arg-type]
