"""Predictions of flipped windows: their mean, and their spread, which says where a network contradicts itself.

Training flips its patches on these axes, so a flipped window is as good an input as the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from repmode_cl.inference.window_batches import Network

__all__ = ["FlipSpread", "RememberingNetwork", "flip_axes", "flip_mean_and_spread", "with_spread"]


def flip_axes(flips: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the axes of (N, 1, Z, Y, X) that each prediction is flipped on, none first: 2^n of n names.

    Parameters
    ----------
    flips
        Names of z, y, x.
    """
    axes = [2 + "zyx".index(name) for name in flips]
    return [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]


def flip_mean_and_spread(
    network: Network, x: Tensor, flips: Sequence[str], first: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of a network's predictions of a batch and of its flips, flipped back.

    Parameters
    ----------
    network
        In evaluation mode.
    x
        (N, 1, Z, Y, X).
    flips
        Names of the axes (of z, y, x); with none, the spread is 0.
    first
        The network's prediction of `x`, where it is at hand.

    Returns
    -------
    mean, spread
        float32 (N, 1, Z, Y, X). Sums are taken in the order of `flip_axes`.
    """
    predictions = [(network(x) if first is None else first).to(torch.float32)]
    predictions += [network(x.flip(axes)).to(torch.float32).flip(axes) for axes in flip_axes(flips)[1:]]
    mean = torch.zeros_like(predictions[0])
    for prediction in predictions:
        mean += prediction
    mean /= len(predictions)
    squares = torch.zeros_like(mean)
    for prediction in predictions:
        squares += (prediction - mean).square_()
    return mean, (squares / len(predictions)).sqrt_()


class RememberingNetwork:
    """A network that remembers its last output, for who needs it again with the same batch."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the network's output."""
        if self._last is None or self._last[0] is not x:
            self._last = None  # freed before the next is computed
            self._last = (x, self._network(x))
        return self._last[1]


class FlipSpread:
    """The spread of a network's predictions of flipped windows, as a network.

    Parameters
    ----------
    network
        The network.
    unflipped
        What was just called with the same batch, and remembers its output.
    flips
        Names of the axes (of z, y, x).
    """

    def __init__(self, network: Network, unflipped: RememberingNetwork, flips: Sequence[str]) -> None:
        self._network, self._unflipped, self._flips = network, unflipped, tuple(flips)

    def __call__(self, x: Tensor) -> Tensor:
        """(N, 1, Z, Y, X) -> (N, 1, Z, Y, X)."""
        return flip_mean_and_spread(self._network, x, self._flips, self._unflipped(x))[1]


def with_spread(
    network: Network, flips: Sequence[str], unflipped: Network | None = None
) -> tuple[Network, Network]:
    """Return two networks, to be called in this order with each batch: of the prediction, and of its spread.

    Parameters
    ----------
    network
        The network.
    flips
        Names of the axes (of z, y, x).
    unflipped
        What is called in its place for the prediction itself, such as one that also scores the window.
    """
    remembering = RememberingNetwork(network if unflipped is None else unflipped)
    return remembering, FlipSpread(network, remembering, flips)
