"""Batches of windows through one or several networks, for prediction in memory and from disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Network", "WindowOutputs", "WindowsSource", "predict_batches"]

#: Maps float32 (N, 1, z, y, x) to (N, 1, z, y, x).
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class WindowOutputs:
    """What networks make of a batch of windows.

    Attributes
    ----------
    outputs
        Of each network: float32 (N, z, y, x).
    scores
        For structures whose training features are known: how unlike them each window is, as distances float32 (N,)
        and the deviations of G features, float32 (N, 2, G).
    """

    outputs: list[NDArray[np.float32]]
    scores: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=dict)


@dataclass(frozen=True)
class WindowsSource:
    """Where a worker reads the windows of a large volume.

    Attributes
    ----------
    path
        The image, or the raw volume that was prepared of it.
    shape
        Voxels (Z, Y, X) of the raw volume; None of an image.
    dtype
        Type of the raw volume; of an image ``float32``, or None for the file's own.
    channel, scene, t
        Of an image.
    z_score
        Mean and deviation.
    window, overlap
        Of the windows.
    grid
        Voxels (Z, Y, X) of the volume.
    """

    path: Path | str
    shape: tuple[int, int, int] | None
    dtype: str | None
    channel: int
    scene: int | str | None
    t: int | None
    z_score: tuple[float, float]
    window: tuple[int, int, int]
    overlap: float
    grid: tuple[int, int, int]


def predict_batches(
    networks: Sequence[Network], batches: Iterable[Tensor], device: str | torch.device = "cpu"
) -> Iterator[list[NDArray[np.float32]]]:
    """Yield each network's outputs of each batch, in order.

    On a GPU the next batch is cut, sent and computed while the caller works on the one before; a batch is sent
    once for all networks.

    Parameters
    ----------
    networks
        Called without gradients; put them in evaluation mode before. An input of one channel is channels-last
        already, as the networks like it.
    batches
        float32 (N, 1, z, y, x) on the CPU.
    device
        Device of the networks.

    Yields
    ------
    list[ndarray]
        For each network float32 (N, z, y, x), to be used before the next batch is requested.

    Raises
    ------
    ValueError
        If a network's output has another shape than its input.
    """
    device = torch.device(device)
    if device.type != "cuda":
        for inputs in batches:
            yield [_apply(network, inputs.to(device)).cpu().numpy() for network in networks]
        return
    new_event: Callable[[], torch.cuda.Event] = torch.cuda.Event
    pending: deque[tuple[list[Tensor], torch.cuda.Event]] = deque()
    for inputs in batches:
        sent = inputs.pin_memory().to(device, non_blocking=True)
        outputs = []
        for network in networks:
            output = _apply(network, sent)
            on_cpu = torch.empty(output.shape, dtype=torch.float32, pin_memory=True)
            outputs.append(on_cpu.copy_(output, non_blocking=True))
        event = new_event()
        event.record(torch.cuda.current_stream(device))
        pending.append((outputs, event))
        if len(pending) > 1:
            yield _when_copied(pending.popleft())
    while pending:
        yield _when_copied(pending.popleft())


def _apply(network: Network, inputs: Tensor) -> Tensor:
    # Not around the loop: a generator would leave its caller without gradients between two batches.
    with torch.no_grad():
        outputs = network(inputs)
    if outputs.shape != inputs.shape:
        raise ValueError(
            f"the network returned the shape {tuple(outputs.shape)} for {tuple(inputs.shape)}: one channel of the same "
            "size is needed"
        )
    return outputs[:, 0].to(torch.float32)


def _when_copied(batch: tuple[list[Tensor], torch.cuda.Event]) -> list[NDArray[np.float32]]:
    outputs, event = batch
    event.synchronize()
    return [tensor.numpy() for tensor in outputs]
