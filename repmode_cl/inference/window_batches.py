"""Batches of windows through one or several networks: what prediction in memory and from disk have in common."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Network", "predict_batches"]

#: Maps float32 (N, 1, z, y, x) to (N, 1, z, y, x).
Network = Callable[[Tensor], Tensor]


def predict_batches(
    networks: Sequence[Network], batches: Iterable[Tensor], device: str | torch.device = "cpu"
) -> Iterator[list[NDArray[np.float32]]]:
    """Yield what each network makes of each batch, in order.

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
        Where the networks are.

    Yields
    ------
    list[ndarray]
        For each network float32 (N, z, y, x), to be used before the next is asked for.

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
    under_way: deque[tuple[list[Tensor], torch.cuda.Event]] = deque()
    for inputs in batches:
        sent = inputs.pin_memory().to(device, non_blocking=True)
        found = []
        for network in networks:
            output = _apply(network, sent)
            arrived = torch.empty(output.shape, dtype=torch.float32, pin_memory=True)
            found.append(arrived.copy_(output, non_blocking=True))
        event = new_event()
        event.record(torch.cuda.current_stream(device))
        under_way.append((found, event))
        if len(under_way) > 1:
            yield _arrived(under_way.popleft())
    while under_way:
        yield _arrived(under_way.popleft())


def _apply(network: Network, inputs: Tensor) -> Tensor:
    # Not around the loop: a generator would leave its caller without gradients between two batches.
    with torch.no_grad():
        outputs = network(inputs)
    if outputs.shape != inputs.shape:
        raise ValueError(
            f"the network made {tuple(outputs.shape)} of {tuple(inputs.shape)}: one channel of the same size is needed"
        )
    return outputs[:, 0].to(torch.float32)


def _arrived(batch: tuple[list[Tensor], torch.cuda.Event]) -> list[NDArray[np.float32]]:
    found, event = batch
    event.synchronize()
    return [tensor.numpy() for tensor in found]
