"""TSNs on the plain U-Net: embedding, equalised layers and conditional norm, computed from their definition."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from reference_unet import reference_features, scrambled, volume
from torch import Tensor

from repmode_cl.errors import StructureError
from repmode_cl.nn import Architecture
from repmode_cl.nn.tsns import TSNs

STRUCTURES = ("dna", "cell_membrane", "nucleolus")
SLOTS = 5


def network_of(kernel: int = 3, condition: Literal["scales", "code"] = "scales") -> TSNs:
    architecture = Architecture(4, 2, ("conv3",))
    return TSNs(architecture, kernel, STRUCTURES, slots=SLOTS, condition=condition, seed=1)


def equalised(state: dict[str, Tensor], place: str, x: Tensor) -> Tensor:
    weight = state[f"{place}.weight"]
    return math.sqrt(2 / weight.shape[1]) * (weight @ x) + state[f"{place}.bias"]


def leaky(x: Tensor, slope: float) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def embedded(state: dict[str, Tensor], number: int, code: Tensor | None = None) -> Tensor:
    z = torch.tensor([float(entry // 20 == number) for entry in range(20 * SLOTS)], dtype=torch.float64)
    z = z if code is None else code
    w = z / (z.square().sum() / len(z) + 1e-8).sqrt()
    for layer in range(8):
        w = leaky(equalised(state, f"embedding.layers.{layer}", w), 0.2)
    return w


def one_sample(state: dict[str, Tensor], x: Tensor, name: str, number: int) -> Tensor:
    w = embedded(state, number, state.get(f"own_codes.own.{name}.values"))

    def conditioned(state: dict[str, Tensor], place: str, x: Tensor) -> Tensor:
        weight, channels = state[f"{place}.weight"], []
        x = F.conv3d(x, weight, state.get(f"{place}.bias"), padding=weight.shape[-1] // 2)
        own = state.get(f"{place}.own.{name}.values")
        numbers = equalised(state, f"{place}.affine", w) if own is None else own
        gamma, beta = numbers[: len(weight)], numbers[len(weight) :]
        for number, channel in enumerate(x[0]):
            centred = channel - channel.mean()
            y = centred / (centred.square().mean() + 1e-5).sqrt()
            channels.append(gamma[number] * y + beta[number])
        return leaky(torch.stack(channels)[None], 0.01)

    _, features = reference_features(
        state,
        x,
        2,
        deepest=lambda place, x: conditioned(state, place, x),
        joined=lambda level, skip, up: torch.cat([conditioned(state, f"laterals.{level}", skip), up], 1),
        decode=conditioned,
    )
    head = state[f"head.own.{name}.weight"]
    return F.conv3d(features, head, padding=head.shape[-1] // 2)


@pytest.mark.parametrize(("kernel", "condition"), [(3, "scales"), (5, "scales"), (3, "code")])
def test_each_sample_is_normalised_by_itself_and_conditioned_by_its_code(
    kernel: int, condition: Literal["scales", "code"]
) -> None:
    network = network_of(kernel, condition)
    network.add_structure("golgi", seed=1)
    scrambled(network)
    x, names, state = volume(4), ["nucleolus", "dna", "nucleolus", "golgi"], network.state_dict()
    with torch.no_grad():
        found = network(x, names)
        expected = torch.cat(
            [
                one_sample(state, x[i : i + 1], name, network.structures.index(name))
                for i, name in enumerate(names)
            ]
        )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_equalised_layers_are_stored_with_variance_one_and_begin_as_the_identity_of_norm() -> None:
    network = TSNs(Architecture(8, 1, ("conv3",)), 3, STRUCTURES, slots=12, seed=1)
    state = network.state_dict()
    weights = [key for key in state if "embedding" in key and key.endswith("weight")]
    weights += [key for key in state if key.endswith("affine.weight")]
    assert len(weights) == 8 + 2 + 2
    for key in weights:
        assert state[key].shape[1] == 240
        assert float(state[key].std()) == pytest.approx(1, abs=0.05)
        bias = state[key.replace("weight", "bias")]
        half = len(bias) // 2
        expected = [1.0] * half + [0.0] * half if "affine" in key else [0.0] * len(bias)
        assert bias.tolist() == expected


def test_an_addition_begins_with_the_mean_of_the_bases_scales_and_shifts() -> None:
    network = network_of()
    network.add_structure("golgi", seed=1)
    state = {key: tensor.double() for key, tensor in network.state_dict().items()}
    places = [key.removesuffix(".own.golgi.values") for key in state if key.endswith(".own.golgi.values")]
    assert len(places) == 3 + 4
    for place in places:
        of_base = [equalised(state, f"{place}.affine", embedded(state, number)) for number in range(3)]
        torch.testing.assert_close(state[f"{place}.own.golgi.values"], sum(of_base) / 3, rtol=1e-4, atol=1e-4)
    # At the paper's width these are 3,904 numbers.
    channels = sum(len(state[f"{place}.own.golgi.values"]) for place in places)
    assert channels == 2 * (4 + 8 + 16 + 2 * (4 + 8))
    assert 2 * (32 + 64 + 128 + 256 + 512 + 2 * (32 + 64 + 128 + 256)) == 3_904


@pytest.mark.parametrize("condition", ["scales", "code"])
def test_a_structure_may_be_the_first(condition: Literal["scales", "code"]) -> None:
    network = TSNs(Architecture(width=2, depth=1, experts=("conv3",)), 3, condition=condition)
    network.add_structure("golgi", seed=1)
    for key, values in network.state_dict().items():
        if key.endswith(".own.golgi.values") and condition == "scales":
            half = len(values) // 2
            assert values.tolist() == [1.0] * half + [0.0] * half
    assert network(torch.randn(1, 1, 4, 4, 4), "golgi").isfinite().all()


def test_a_trained_code_is_all_that_an_addition_owns_besides_its_last_layer() -> None:
    network = network_of(condition="code")
    assert list(network.state_dict()) == list(network_of().state_dict())  # the base is the same
    network.add_structure("golgi", seed=1)
    state = network.state_dict()
    own = {key for key in state if ".own.golgi." in key}
    assert own == {"own_codes.own.golgi.values", "head.own.golgi.weight"}
    assert network.train_only(["golgi"]) == own
    # The mean of three codes of 20 ones each.
    expected = [1 / 3] * 60 + [0.0] * 40
    assert state["own_codes.own.golgi.values"].tolist() == pytest.approx(expected)
    torch.testing.assert_close(network.codes(["golgi"]), network.codes(STRUCTURES).mean(0, keepdim=True))
    # Its gradient passes the frozen embedding.
    network(volume(1).float(), "golgi").sum().backward()
    [code] = [p for name, p in network.named_parameters() if name.startswith("own_codes.")]
    assert code.grad is not None
    assert float(code.grad.abs().max()) > 0
    assert all(p.grad is None for name, p in network.named_parameters() if name not in own)


def test_a_structure_that_is_trained_with_all_takes_the_next_code() -> None:
    network = network_of()
    network.add_base_structure("golgi", seed=1)
    assert not any(key.endswith(".own.golgi.values") for key in network.state_dict())
    codes = network.codes(["dna", "golgi"])
    assert codes.shape == (2, 100)
    assert [codes[row].nonzero().flatten().tolist() for row in range(2)] == [
        list(range(20)), list(range(60, 80)),
    ]  # fmt: skip
    network.add_base_structure("tubulin", seed=1)
    with pytest.raises(StructureError, match="the network has 5 slots, and all are taken"):
        network.add_base_structure("desmosomes", seed=1)


def test_another_kind_of_condition_is_refused() -> None:
    with pytest.raises(ValueError, match=r"condition is .* not 'all'"):
        TSNs(Architecture(2, 1), 3, ("dna",), condition="all")  # type: ignore[arg-type]
