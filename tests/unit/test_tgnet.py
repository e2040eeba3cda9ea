"""TGNet as we read it: its modules, computed voxel by voxel and sample by sample from their definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from reference_unet import reference_features, scrambled, volume
from torch import Tensor

from repmode_cl.nn import Architecture
from repmode_cl.nn.tgnet import TGNet

STRUCTURES = ("dna", "cell_membrane", "nucleolus")


def with_onehot(state: dict[str, Tensor], place: str, weight: Tensor, pooled: Tensor, name: str) -> Tensor:
    """Return the product of a weight, with its one-hot columns, and the pooled features with a one-hot code."""
    columns = torch.stack([state[f"{place}.columns.own.{one}.values"] for one in STRUCTURES], dim=1)
    onehot = torch.tensor([float(name == one) for one in STRUCTURES], dtype=torch.float64)
    return torch.cat([weight, columns], dim=1) @ torch.cat([pooled, onehot])


def one_sample(state: dict[str, Tensor], x: Tensor, name: str) -> Tensor:
    def residual(place: str, features: Tensor) -> Tensor:
        pooled = features[0].flatten(1).mean(1)
        hidden = with_onehot(state, place, state[f"{place}.squeeze"], pooled, name)
        hidden = (hidden + state[f"{place}.squeeze_bias"]).clamp(min=0)
        scale = 1 / (1 + torch.exp(-(state[f"{place}.excite"] @ hidden + state[f"{place}.excite_bias"])))
        return torch.stack([(1 + s) * channel for s, channel in zip(scale, features[0], strict=True)])[None]

    def attended(level: int, skip: Tensor, up: Tensor) -> Tensor:
        place = f"attention.{level}"
        channels = skip.shape[1]
        w_x, w_q = (state[f"{place}.{key}"].flatten(1) for key in ("of_skip", "of_up"))
        voxels = torch.cat([skip, up], 1)[0].flatten(1).T
        column = state[f"{place}.columns.own.{name}.values"]
        hidden = voxels[:, :channels] @ w_x.T + voxels[:, channels:] @ w_q.T + state[f"{place}.bias"] + column
        logit = hidden.clamp(min=0) @ state[f"{place}.attend"].flatten() + state[f"{place}.attend_bias"]
        a = torch.sigmoid(logit).reshape(skip.shape[2:])
        assert a.std() > 1e-4
        return torch.cat([skip * a, up], dim=1)

    deepest, features = reference_features(state, x, 2, encoded=residual, joined=attended)
    stored = state["controller.weight"]  # times the number of features
    pooled_features = deepest[0].flatten(1).mean(1)
    theta = with_onehot(state, "controller", stored / len(pooled_features), pooled_features, name)
    w_1, w_2, w_3, b_1, b_2, b_3 = (theta + state["controller.bias"]).split((64, 64, 8, 8, 8, 1))
    h = F.conv3d(features, state["head.weight"], state["head.bias"])[0].flatten(1)
    h = (w_1.reshape(8, 8) @ h + b_1[:, None]).clamp(min=0)
    h = (w_2.reshape(8, 8) @ h + b_2[:, None]).clamp(min=0)
    return (w_3.reshape(1, 8) @ h + b_3[:, None]).reshape(1, 1, *x.shape[2:])


@pytest.mark.parametrize("kernel", [3, 5])
def test_each_sample_is_modulated_by_itself_and_its_structure(kernel: int) -> None:
    network = scrambled(TGNet(Architecture(4, 2, ("conv3",)), kernel, STRUCTURES, seed=1))
    x, names, state = volume(), ["nucleolus", "dna", "nucleolus"], network.state_dict()
    with torch.no_grad():
        found = network(x, names)
        expected = torch.cat([one_sample(state, x[i : i + 1], name) for i, name in enumerate(names)])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_later_structure_owns_a_column_of_each_linear_layer() -> None:
    network = TGNet(Architecture(4, 2, ("conv3",)), 3, STRUCTURES, seed=1)
    network.add_structure("mitochondria", seed=3)
    state = network.state_dict()
    own = network.train_only(["mitochondria"])
    assert len(own) == 1 + 3 + 2
    assert sum(state[key].numel() for key in own) == 153 + (1 + 2 + 4) + (2 + 4)
    for key in own:
        others = [state[key.replace("mitochondria", name)] for name in STRUCTURES]
        torch.testing.assert_close(state[key], sum(others) / 3)
