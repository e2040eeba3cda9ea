"""PIPO-FAN on the plain U-Net: both pyramids and their fusion, computed from their definition."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from reference_unet import block, down, norm, scrambled, up, volume
from torch import Tensor

from repmode_cl.nn import Architecture
from repmode_cl.nn.pipo_fan import PIPOFAN

STRUCTURES = ("dna", "cell_membrane", "nucleolus")
DEPTH = 2


def pooled(x: Tensor) -> Tensor:
    """Return the mean of each 2 x 2 x 2 voxels, by a loop over them."""
    corners = itertools.product((0, 1), repeat=3)
    return sum(x[:, :, z::2, y::2, x_::2] for z, y, x_ in corners) / 8  # type: ignore[return-value]


def enlarged(x: Tensor, factor: int) -> Tensor:
    """Interpolate linearly along one axis after the other, with voxels as boxes."""
    for axis in (2, 3, 4):
        size = x.shape[axis]
        parts = []
        for place in range(factor * size):
            centre = min(max((place + 0.5) / factor - 0.5, 0), size - 1)
            low = int(centre)
            high, share = min(low + 1, size - 1), centre - low
            parts.append((1 - share) * x.select(axis, low) + share * x.select(axis, high))
        x = torch.stack(parts, dim=axis)
    return x


def normed(state: dict[str, Tensor], place: str, x: Tensor) -> Tensor:
    weight = state[f"{place}.weight"]
    x = norm(state, f"{place}.norm", x).clamp(min=0)
    return F.conv3d(x, weight, state.get(f"{place}.bias"), padding=weight.shape[-1] // 2)


def residuals(state: dict[str, Tensor], place: str, count: int, x: Tensor) -> Tensor:
    for number in range(count):
        inside = normed(state, f"{place}.{number}.second", normed(state, f"{place}.{number}.first", x))
        x = inside + normed(state, f"{place}.{number}.bridge", x)
    assert f"{place}.{count}.first.weight" not in state
    return x


def pair(state: dict[str, Tensor], place: str, x: Tensor) -> Tensor:
    return block(state, f"{place}.1", block(state, f"{place}.0", x))


def stem(state: dict[str, Tensor], level: int, x: Tensor) -> Tensor:
    """Return the stem's output for a pooled image: its own weights, the statistics of the level."""
    own = {
        key.removeprefix("encoder.0."): value for key, value in state.items() if key.startswith("encoder.0.")
    }
    for number in (0, 1):
        for name in ("running_mean", "running_var"):
            own[f"{number}.norm.{name}"] = state[f"pooled_stems.{level - 1}.norms.{number}.{name}"]
    return block(own, "1", block(own, "0", x))


def one_sample(state: dict[str, Tensor], x: Tensor, name: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the prediction of one sample, the share of each map, and the maps."""
    images = [x, pooled(x), pooled(pooled(x))]
    levels = [pair(state, "encoder.0", x)]
    for level in (1, 2):
        side = residuals(state, f"input_blocks.{level - 1}", level - 1, stem(state, level, images[level]))
        joined = torch.cat([down(state, level - 1, levels[-1]), side], dim=1)
        levels.append(pair(state, "bottleneck" if level == DEPTH else "encoder.1", joined))
    outputs = {DEPTH: levels[-1]}
    for level in (1, 0):
        joined = torch.cat([levels[level], up(state, level, outputs[level + 1])], dim=1)
        outputs[level] = pair(state, f"decoder.{level}", joined)
    maps, scores = [], []
    for level in range(DEPTH + 1):
        features = residuals(state, f"output_blocks.{level}", level, outputs[level])
        place = f"projections.{level}.own.{name}"
        one = enlarged(F.conv3d(features, state[f"{place}.weight"], state[f"{place}.bias"]), 2**level)
        told = normed(state, "fusion.second", normed(state, "fusion.first", one))
        maps.append(one)
        scores.append(told.mean() + told.max())
    exponentials = torch.exp(torch.stack(scores))
    shares = exponentials / exponentials.sum()
    fused: Tensor = sum(share * one for share, one in zip(shares, maps, strict=True))  # type: ignore[assignment]
    return fused, shares, maps


@pytest.mark.parametrize("kernel", [3, 5])
def test_maps_of_pooled_images_are_fused_sample_by_sample(kernel: int) -> None:
    network = scrambled(PIPOFAN(Architecture(2, DEPTH, ("conv3",)), kernel, STRUCTURES, seed=1))
    with torch.no_grad():  # the fusion net has one channel, which must be alive to be seen
        for layer in (network.fusion.first, network.fusion.second):
            layer.norm.weight.fill_(1.0)
            layer.norm.bias.fill_(1.0)
        network.fusion.first.weight.fill_(0.7)
        network.fusion.second.weight.mul_({3: 0.3, 5: 0.02}[kernel])
    x, names, state = volume(), ["nucleolus", "dna", "nucleolus"], network.state_dict()
    with torch.no_grad():
        found = network(x, names)
        expected = [one_sample(state, x[i : i + 1], name) for i, name in enumerate(names)]
    torch.testing.assert_close(found, torch.cat([one for one, _, _ in expected]), rtol=1e-9, atol=1e-9)
    shares = torch.stack([share for _, share, _ in expected])
    assert shares.max() < 0.999  # no map is the only one that counts
    assert (shares[0] - shares[2]).abs().max() > 1e-3  # each sample has its own shares
    assert not any("head" in key for key in state)
    # With the maps that it is made of, from the deepest level to the first.
    with torch.no_grad():
        together = network.predict_maps(x, names)
    assert torch.equal(together[:, :1], network(x, names))
    maps = torch.cat([torch.cat(one[::-1], dim=1) for _, _, one in expected])
    torch.testing.assert_close(together[:, 1:], maps, rtol=1e-9, atol=1e-9)


def test_the_first_convolution_of_a_level_reads_what_comes_down_and_the_pooled_image() -> None:
    network = PIPOFAN(Architecture(2, 3, ("conv3",)), 3, STRUCTURES, seed=1)
    first = [network.encoder[1][0], network.encoder[2][0], network.bottleneck[0]]
    assert [tuple(one.weight.shape[:2]) for one in first] == [(4, 4), (8, 8), (16, 16)]
    assert [len(blocks) for blocks in network.input_blocks] == [0, 1, 2]
    assert [len(blocks) for blocks in network.output_blocks] == [0, 1, 2, 3]


def test_the_stem_sees_each_image_of_the_pyramid_in_a_separate_call() -> None:
    network = PIPOFAN(Architecture(2, DEPTH, ("conv3",)), 3, STRUCTURES, seed=1)
    sizes: list[int] = []
    for norm_ in [network.encoder[0][0].norm, *(one.norms[0] for one in network.pooled_stems)]:
        norm_.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0][0, 0])))
    fused: list[Tensor] = []
    network.fusion.register_forward_hook(lambda module, inputs, output: fused.append(inputs[0]))
    network.train()(volume().float(), "dna")
    assert sizes == [8, 4, 2]
    assert [tuple(one.shape) for one in fused] == [(3, 1, 8, 8, 8)] * 3
    assert int(network.fusion.first.norm.num_batches_tracked) == 3


def test_the_stem_has_one_set_of_parameters_and_statistics_of_each_level() -> None:
    network = PIPOFAN(Architecture(2, DEPTH, ("conv3",)), 3, STRUCTURES, seed=1)
    assert not any(name.startswith("pooled_stems") for name, _ in network.named_parameters())
    assert network.pooled_stems[1].norms[0].weight is network.encoder[0][0].norm.weight
    x = volume().float()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.momentum = 1.0  # statistics of this batch alone
    # Calls of a level are normed by its own statistics in training; with those kept, evaluation computes the same.
    trained = network.train()
    with torch.no_grad():
        convolved = F.conv3d(pooled(x), network.encoder[0][0].weight, padding=1)
        trained(x, "dna")
    own = network.pooled_stems[0].norms[0]
    torch.testing.assert_close(own.running_mean, convolved.mean((0, 2, 3, 4)))
    torch.testing.assert_close(own.running_var, convolved.transpose(0, 1).flatten(1).var(1))
    assert not torch.allclose(own.running_var, network.encoder[0][0].norm.running_var, rtol=0.1)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        twin.encoder[0][0].weight.mul_(2.0)
        assert not torch.equal(twin.eval()(x, "dna"), network.eval()(x, "dna"))
    assert twin.pooled_stems[0].blocks[0] is twin.encoder[0][0]
