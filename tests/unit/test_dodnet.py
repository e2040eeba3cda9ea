"""DoDNet on the plain U-Net: its generated head, computed sample by sample from the definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from reference_unet import reference_features, scrambled, volume
from torch import Tensor

from repmode_cl.nn import Architecture
from repmode_cl.nn.dodnet import DoDNet

STRUCTURES = ("dna", "cell_membrane", "nucleolus")


def network_of(kernel: int = 3) -> DoDNet:
    return DoDNet(Architecture(width=4, depth=2, experts=("conv3",)), kernel, STRUCTURES, seed=1)


def one_sample(state: dict[str, Tensor], x: Tensor, name: str) -> Tensor:
    """Return the prediction of one sample (1, 1, Z, Y, X) with the weights that the controller generates of it."""
    deepest, features = reference_features(state, x, 2)
    pooled = torch.stack([channel.mean() for channel in deepest[0]])
    onehot = torch.tensor([float(name == one) for one in STRUCTURES], dtype=torch.float64)
    columns = [state[f"controller.columns.own.{one}.values"] for one in STRUCTURES]
    stored = state["controller.weight"]  # times the number of features
    matrix = torch.cat([stored / stored.shape[1], torch.stack(columns, dim=1)], dim=1)
    numbers = (matrix @ torch.cat([pooled, onehot]) + state["controller.bias"]).tolist()
    assert len(numbers) == 153

    def take(*shape: int) -> Tensor:
        count = torch.Size(shape).numel()
        values = torch.tensor(numbers[:count], dtype=torch.float64).reshape(shape)
        del numbers[:count]
        return values

    weights = [take(8, 8, 1, 1, 1), take(8, 8, 1, 1, 1), take(1, 8, 1, 1, 1)]
    biases = [take(8), take(8), take(1)]
    assert not numbers
    h = F.conv3d(features, state["head.weight"], state["head.bias"])
    h = F.conv3d(h, weights[0], biases[0]).clamp(min=0)
    h = F.conv3d(h, weights[1], biases[1]).clamp(min=0)
    return F.conv3d(h, weights[2], biases[2])


@pytest.mark.parametrize("kernel", [3, 5])
def test_each_sample_gets_the_head_that_is_generated_of_it(kernel: int) -> None:
    network, x = scrambled(network_of(kernel)), volume()
    names = ["nucleolus", "dna", "nucleolus"]
    state = network.state_dict()
    with torch.no_grad():
        found = network(x, names)
        expected = torch.cat([one_sample(state, x[i : i + 1], name) for i, name in enumerate(names)])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert (found[0] - one_sample(state, x[:1], "dna")[0]).abs().max() > 1e-3  # the code has a say


def test_generated_weights_depend_on_the_patch() -> None:
    network, x = scrambled(network_of()), volume(1)
    with torch.no_grad():
        whole, half = network(x, "dna"), network(x[:, :, :4], "dna")
        thetas = [one_sample(network.state_dict(), part, "dna") for part in (x, x[:, :, :4])]
    torch.testing.assert_close(whole, thetas[0])
    torch.testing.assert_close(half, thetas[1])
    # Farther from the cut than any convolution reaches, at the volume's other end: only pooling can tell them apart.
    long = volume(1, (64, 4, 4))
    with torch.no_grad():
        parts = network(long, "dna")[:, :, 0], network(long[:, :, :48], "dna")[:, :, 0]
        features = [
            reference_features(network.state_dict(), part, 2)[1][:, :, 0] for part in (long, long[:, :, :48])
        ]
    torch.testing.assert_close(*features, rtol=1e-10, atol=1e-10)
    assert (parts[0] - parts[1]).abs().max() > 1e-4


def test_a_later_column_begins_as_the_mean_of_the_bases() -> None:
    network = network_of()
    network.add_structure("mitochondria", seed=3)
    columns = {
        name: network.state_dict()[f"controller.columns.own.{name}.values"] for name in network.structures
    }
    torch.testing.assert_close(columns["mitochondria"], sum(columns[name] for name in STRUCTURES) / 3)
    assert network.train_only(["mitochondria"]) == {"controller.columns.own.mitochondria.values"}
