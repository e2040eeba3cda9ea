"""Several processes that train one network together, as ``torchrun`` starts them (data parallelism).

Each process computes a share of every batch; the sum of the shares is what one process would compute of the whole
batch. There is no wrapper around the network: gradients are summed in buckets after the backward pass, in
`sum_gradients`. torch's DistributedDataParallel would overlap that with the backward pass, but it *averages*, which
is wrong where masks make shares count differently, it gives a gate row that no process had in its batch
the gradient 0, with which Adam would move it by momentum and weight decay, and it hides the network behind another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, TypeVar, cast

import torch
import torch.distributed
from torch import Tensor, nn

from repmode_cl.errors import ConfigError, RepmodeError
from repmode_cl.utils.devices import resolve_device

__all__ = ["Ranks", "process_group", "refuse_distributed", "launched_ranks", "sum_gradients"]

T = TypeVar("T")

dist: Any = torch.distributed  # its type stubs lack much of what it exports

#: Time that processes wait for the first, which prepares images and validates. One that died is noticed at once.
_PATIENCE = timedelta(days=14)
#: Gradients are reduced this many bytes at a time: few messages, little memory.
_BUCKET = 32 << 20
#: Numbers of the process groups that this process has joined.
_group_numbers = count()


@dataclass(frozen=True)
class Ranks:
    """The processes that train together; by default only this one.

    Attributes
    ----------
    rank, world
        Number of this process from 0, and how many there are.
    control
        Group for small messages between CPUs, patient enough to wait for hours of work of the first process.
    """

    rank: int = 0
    world: int = 1
    control: Any = None

    @property
    def first(self) -> bool:
        """True in the process that prepares, validates, logs and writes."""
        return self.rank == 0

    def check_shares(self, batch_size: int, accumulate: int) -> None:
        """Check that each process gets as many patches of each micro-batch as the others.

        Raises
        ------
        ConfigError
            If `batch_size` is no multiple of processes times micro-batches.
        """
        if batch_size % (self.world * accumulate):
            raise ConfigError(
                f"training.batch_size is {batch_size}, in training.accumulate={accumulate} micro-batches that "
                f"{self.world} processes share: make it a multiple of {self.world * accumulate}, or start as many "
                "processes as divide it"
            )

    def from_first(self, work: Callable[[], T]) -> T:
        """Do `work` only in the first process, and return its result in all; the others wait.

        Raises
        ------
        RepmodeError
            In the others, if it failed there: they end too.
        """
        if self.world == 1:
            return work()
        message: list[Any] = [None, None]
        if self.first:
            try:
                message[1] = work()
            except BaseException as error:
                message[0] = f"{type(error).__name__}: {error}"
                dist.broadcast_object_list(message, src=0, group=self.control)
                raise
        dist.broadcast_object_list(message, src=0, group=self.control)
        if message[0] is not None:
            raise RepmodeError(f"process {self.rank} ends, because process 0 ended with {message[0]}")
        return cast(T, message[1])

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sum over all processes of each value, in float64."""
        if self.world == 1:
            return [float(value) for value in values]
        sums = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(sums, group=self.control)
        return cast(list[float], sums.tolist())

    def gathered(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, of one shape and type, stacked in the order of their ranks."""
        if self.world == 1:
            return tensor[None]
        tensors = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(tensors, tensor)
        return torch.stack(tensors)


def launched_ranks() -> tuple[int, int, int] | None:
    """Return rank, world and rank on this machine if a launcher started several processes, else None."""
    values = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if not all(value.isdecimal() for value in values) or "MASTER_ADDR" not in os.environ:
        return None
    rank, world, local = (int(value) for value in values)
    return (rank, world, local) if world > 1 else None


def refuse_distributed(what: str) -> None:
    """Refuse what is not distributed, if a launcher started several processes.

    Raises
    ------
    ConfigError
        If there are several: each would do all of it, and overwrite the files of the others.
    """
    if (launched := launched_ranks()) is not None:
        raise ConfigError(
            f"{launched[1]} processes were started together, but {what} is the work of one: start it without "
            "torchrun (the training of a base, `repmode-cl train`, can be distributed)"
        )


@contextmanager
def process_group(device: str) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the processes that ``torchrun`` started, and leave them at the end; without it, use only this process.

    Parameters
    ----------
    device
        ``training.device``: with several processes ``auto`` and ``cuda`` give each its own GPU.

    Yields
    ------
    Ranks
        The processes of the group.
    torch.device
        Device of this process.

    Raises
    ------
    ConfigError
        If there are fewer GPUs than processes of this machine, or one GPU is named for all.
    """
    launched = launched_ranks()
    if launched is None:
        yield Ranks(), resolve_device(device)
        return
    rank, world, local = launched
    own_device = _device_of_rank(device, local)
    if own_device.type == "cuda":
        torch.cuda.set_device(own_device)
    # Addresses of an earlier group, which the launcher's store still holds, must not be used again.
    store = dist.PrefixStore(f"repmode-cl/{next(_group_numbers)}", _launchers_store())
    backend = "nccl" if own_device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    try:
        yield Ranks(rank, world, dist.new_group(backend="gloo", timeout=_PATIENCE)), own_device
    finally:
        dist.destroy_process_group()


@cache
def _launchers_store() -> Any:
    """Return the store by which the processes find each other, joined once in a process's life."""
    store, _, _ = next(iter(dist.rendezvous("env://")))
    return store


def _device_of_rank(setting: str, local: int) -> torch.device:
    device = resolve_device(setting)
    if device.type == "cpu":
        return device
    if ":" in setting:
        raise ConfigError(
            f"training.device is {setting}, one GPU for all processes: set auto or cuda, and each uses its own"
        )
    if local >= torch.cuda.device_count():
        raise ConfigError(
            f"torchrun started at least {local + 1} processes here, but torch sees {torch.cuda.device_count()} "
            "GPU(s): start as many processes as there are GPUs, or set training.device=cpu"
        )
    return torch.device("cuda", local)


def sum_gradients(parameters: Iterable[nn.Parameter], loss: Tensor, ranks: Ranks) -> Tensor:
    """Sum each parameter's gradients over all processes, and return the sum of `loss`.

    Parameters
    ----------
    parameters
        The same ones in the same order in each process. A parameter that got no gradient in any of them, such as
        the gate row of a structure that is not in the joint batch, has none afterwards either.
    loss
        Scalar; a part of the joint batch's in each process.
    ranks
        The processes.

    Notes
    -----
    The sums are the same to the bit in all processes, so that their weights stay equal.
    """
    if ranks.world == 1:
        return loss
    listed = list(parameters)
    present = ranks.total([parameter.grad is not None for parameter in listed])
    with torch.no_grad():
        for bucket in _buckets([p for p, here in zip(listed, present, strict=True) if here]):
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            dist.all_reduce(flat)
            pieces = torch.split(flat, [grad.numel() for grad in grads])
            for parameter, grad, piece in zip(bucket, grads, pieces, strict=True):
                parameter.grad = grad.copy_(piece.view_as(grad))
        total = loss.detach().clone()
        dist.all_reduce(total)
    return total


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield consecutive parameters of one type, about `_BUCKET` bytes at a time."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and (size >= _BUCKET or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel() * parameter.element_size()
    if bucket:
        yield bucket
