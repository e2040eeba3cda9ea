"""The experts of a MoDE block (paper, section 3.3), as kernels and gradients: all that GatRep needs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

__all__ = [
    "AvgExpert",
    "ConvExpert",
    "Expert",
    "LowRankExpert",
    "expert_shapes",
    "kaiming",
    "make_expert",
    "standard_normal",
    "uniform",
    "uninitialised_weights",
]

_EXPERT = re.compile(r"conv(?P<conv>[135])|avg(?P<mean>[35])|lowrank:(?P<rank>[1-9][0-9]*)")

_uninitialised_weights = ContextVar("uninitialised_weights", default=False)


def kaiming(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> nn.Parameter:
    """Return a parameter drawn Kaiming-uniform with a = sqrt(5), torch's default for convolutions.

    The generator is explicit, so that building a network does not touch torch's global generator. Kernels lie in
    memory channels-last, as their gradients do: with input channels next to each other, the centre of a kernel
    is a few long runs and not many of three numbers, and fusing is four times as fast.
    """
    return uniform(shape, 1 / math.sqrt(fan_in), generator)


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> nn.Parameter:
    """Return a parameter drawn uniformly within ``bound`` of zero; kernels lie channels-last (see `kaiming`)."""
    if _uninitialised_weights.get():
        values = torch.empty(shape)
    else:
        values = torch.rand(shape, generator=generator).mul_(2).sub_(1).mul_(bound)
    if len(shape) == 5:
        values = values.contiguous(memory_format=torch.channels_last_3d)
    return nn.Parameter(values)


def standard_normal(shape: tuple[int, ...], generator: torch.Generator) -> nn.Parameter:
    """Return a parameter drawn from N(0, 1)."""
    if _uninitialised_weights.get():
        return nn.Parameter(torch.empty(shape))
    return nn.Parameter(torch.randn(shape, generator=generator))


@contextmanager
def uninitialised_weights() -> Iterator[None]:
    """Build networks without drawing their weights, for callers that set every one of them at once."""
    token = _uninitialised_weights.set(True)
    try:
        yield
    finally:
        _uninitialised_weights.reset(token)


class Expert(nn.Module):
    """One branch of a MoDE block, without bias and with zero "same" padding.

    Attributes
    ----------
    kernel_size
        Edge K of the branch's receptive field, in voxels.

    Notes
    -----
    `taps` and `weight_gradients` are plain arithmetic on the tensors they are given: autograd does not see them.
    """

    kernel_size: int

    def weights(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters, in the order in which the other methods take them.

        Each kind names its own: looking through all modules for parameters takes longer than fusing small kernels.
        """
        return tuple(self.parameters())

    def channel_weights(self, channels: slice) -> tuple[Tensor, ...]:
        """Return the weights of only some output channels, in the order in which `taps` takes them."""
        return tuple(weight.detach()[channels] for weight in self.weights())

    def taps(self, *weights: Tensor) -> Tensor:
        """Return the branch as one kernel, (C_out, C_in, K, K, K), or (C_out, C_in, 1, 1, 1): the same in all taps."""
        raise TypeError(f"{type(self).__name__} defines no kernel")

    def weight_gradients(self, grad: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """Return the gradient of each weight, from that of the taps (summed over them where they are one number)."""
        raise TypeError(f"{type(self).__name__} defines no gradient")

    def zero_weights(self) -> tuple[str, ...]:
        """Return the names of the weights that are zero where the kernel is, in such a way that training changes it."""
        return tuple(name for name, _ in self.named_parameters())

    def set_to_zero(self) -> None:
        """Make the kernel zero, in such a way that training can change it."""
        with torch.no_grad():
            for name in self.zero_weights():
                self.get_parameter(name).zero_()


class ConvExpert(Expert):
    """A K x K x K convolution."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.weight = kaiming((c_out, c_in, *[kernel_size] * 3), c_in * kernel_size**3, generator)

    def weights(self) -> tuple[nn.Parameter, ...]:
        """Return the kernel; see the class."""
        return (self.weight,)

    def taps(self, *weights: Tensor) -> Tensor:
        """Return the weight itself, (C_out, C_in, K, K, K)."""
        return weights[0]

    def weight_gradients(self, grad: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """Return the gradient of the taps, which is that of the weight."""
        return (grad,)


class AvgExpert(Expert):
    """The mean over K x K x K voxels, zero padding counted, then a 1 x 1 x 1 convolution (paper, eq. 3 to 5)."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.weight = kaiming((c_out, c_in, 1, 1, 1), c_in, generator)

    def weights(self) -> tuple[nn.Parameter, ...]:
        """Return the 1 x 1 x 1 kernel; see the class."""
        return (self.weight,)

    def taps(self, *weights: Tensor) -> Tensor:
        """Return the serially merged kernel: the weight spread over K^3 taps, (C_out, C_in, 1, 1, 1)."""
        return weights[0] / self.kernel_size**3

    def weight_gradients(self, grad: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """Return the sum over the taps, divided by their number."""
        return (grad / self.kernel_size**3,)


class LowRankExpert(Expert):
    """A 3 x 3 x 3 convolution to `rank` channels, then a 1 x 1 x 1 convolution, serially merged (paper, eq. 5)."""

    def __init__(self, c_in: int, c_out: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.kernel_size = 3
        self.spatial = kaiming((rank, c_in, 3, 3, 3), c_in * 27, generator)
        self.mix = kaiming((c_out, rank), rank, generator)

    def weights(self) -> tuple[nn.Parameter, ...]:
        """Return both factors; see the class."""
        return self.spatial, self.mix

    def zero_weights(self) -> tuple[str, ...]:
        """Return the mixing matrix; were both factors zero, neither would ever take a gradient."""
        return ("mix",)

    def channel_weights(self, channels: slice) -> tuple[Tensor, ...]:
        """Return the convolution, which all output channels share, and these channels' rows of the mixing matrix."""
        return self.spatial.detach(), self.mix.detach()[channels]

    def taps(self, *weights: Tensor) -> Tensor:
        """Return the merged kernel, (C_out, C_in, 3, 3, 3)."""
        spatial, mix = weights
        # Computed channels-last: (C_out, R) times (R, 27 * C_in).
        merged = mix @ spatial.permute(0, 2, 3, 4, 1).flatten(1)
        shape = (len(mix), 3, 3, 3, spatial.shape[1])
        return merged.reshape(shape).permute(0, 4, 1, 2, 3)

    def weight_gradients(self, grad: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of both factors of the matrix product."""
        spatial, mix = weights
        grad = grad.permute(0, 2, 3, 4, 1).flatten(1)
        rows = spatial.permute(0, 2, 3, 4, 1)
        return (mix.T @ grad).reshape(rows.shape).permute(0, 4, 1, 2, 3), grad @ rows.flatten(1).T


def expert_shapes(spec: str, c_in: int, c_out: int) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each weight of the expert that `make_expert` builds; parameters and errors of that."""
    match = _match_expert(spec)
    if match["rank"]:
        rank = int(match["rank"])
        return {"spatial": (rank, c_in, 3, 3, 3), "mix": (c_out, rank)}
    return {"weight": (c_out, c_in, *[int(match["conv"] or 1)] * 3)}


def _match_expert(spec: str) -> re.Match[str]:
    match = _EXPERT.fullmatch(spec) if isinstance(spec, str) else None
    if match is None:
        raise ValueError(
            f"{spec!r} is no expert: choose conv1, conv3, conv5, avg3, avg5 or lowrank:R with a rank R"
        )
    return match


def make_expert(spec: str, c_in: int, c_out: int, generator: torch.Generator) -> Expert:
    """Build the expert that `spec` names.

    Parameters
    ----------
    spec
        ``conv1``, ``conv3``, ``conv5``, ``avg3``, ``avg5``, or ``lowrank:R`` with a rank R.
    c_in, c_out
        Channels in and out.
    generator
        Source of the initial weights.

    Raises
    ------
    ValueError
        If `spec` names no expert.
    """
    match = _match_expert(spec)
    if match["conv"]:
        return ConvExpert(c_in, c_out, int(match["conv"]), generator)
    if match["mean"]:
        return AvgExpert(c_in, c_out, int(match["mean"]), generator)
    return LowRankExpert(c_in, c_out, int(match["rank"]), generator)
