"""The plain U-Net layer by layer, from its tensors by name and torch's functions: a reference for networks on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = Mapping[str, Tensor]


def scrambled(network: nn.Module, seed: int = 5) -> nn.Module:
    """Return the network in float64 and evaluation mode, all of whose numbers are moved at random."""
    random = torch.Generator().manual_seed(seed)
    network.double()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=random))
            elif tensor.is_floating_point():
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=random))
    return network.eval()


def volume(count: int = 3, size: tuple[int, int, int] = (8, 8, 8), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, *size, generator=generator, dtype=torch.float64)


def norm(state: State, place: str, x: Tensor) -> Tensor:
    """Normalise by running statistics, as one formula."""
    mean, variance, weight, bias = (
        state[f"{place}.{key}"][None, :, None, None, None]
        for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def block(state: State, place: str, x: Tensor) -> Tensor:
    """Convolve, normalise, and cut off what is negative."""
    weight = state[f"{place}.weight"]
    return norm(state, f"{place}.norm", F.conv3d(x, weight, padding=weight.shape[-1] // 2)).clamp(min=0)


def down(state: State, level: int, x: Tensor) -> Tensor:
    place = f"down.{level}"
    return norm(state, f"{place}.norm", F.conv3d(x, state[f"{place}.layer.weight"], stride=2)).clamp(min=0)


def up(state: State, level: int, x: Tensor) -> Tensor:
    place = f"up.{level}"
    x = F.conv_transpose3d(x, state[f"{place}.layer.weight"], stride=2)
    return norm(state, f"{place}.norm", x).clamp(min=0)


def concatenated(level: int, skip: Tensor, below: Tensor) -> Tensor:
    return torch.cat([skip, below], 1)


def unchanged(place: str, x: Tensor) -> Tensor:
    return x


def reference_features(
    state: State,
    x: Tensor,
    depth: int,
    *,
    encoded: Callable[[str, Tensor], Tensor] = unchanged,
    deepest: Callable[[str, Tensor], Tensor] = unchanged,
    joined: Callable[[int, Tensor, Tensor], Tensor] = concatenated,
    decode: Callable[[State, str, Tensor], Tensor] = block,
) -> tuple[Tensor, Tensor]:
    """Return the bottleneck's output and the decoder's; functions say what differs from the plain network.

    `encoded` is applied to the output of each level of the encoder and of the bottleneck, `deepest` to what of the
    latter the decoder gets, `joined` to a skip and what comes from below, `decode` in place of the decoder's blocks.
    """
    skips = []
    for level in range(depth):
        for number in (0, 1):
            x = block(state, f"encoder.{level}.{number}", x)
        x = encoded(f"encoder.{level}.2", x)
        skips.append(x)
        x = down(state, level, x)
    for number in (0, 1):
        x = block(state, f"bottleneck.{number}", x)
    x = bottom = deepest("bottleneck.2", encoded("bottleneck.2", x))
    for level in reversed(range(depth)):
        x = joined(level, skips[level], up(state, level, x))
        for number in (0, 1):
            x = decode(state, f"decoder.{level}.{number}", x)
    return bottom, x
