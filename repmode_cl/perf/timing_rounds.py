"""Alternating measurement: each round times every variant once, so that what slows the machine slows all of them.

A ratio of two variants is taken within a round, where both met the same machine; the median over rounds and its
quartiles then say how sure it is. Timing one variant after the other would measure the drift between them.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

import torch

from repmode_cl.training.timing import synchronise
from repmode_cl.utils.memory import is_out_of_memory
from repmode_cl.utils.progress import Task

__all__ = ["Lazily", "TimingRow", "Timing", "alternate", "out_of_memory", "rows_of"]


@dataclass
class Timing:
    """Timings of one variant.

    Attributes
    ----------
    seconds
        One for each round.
    failure
        Why there are none, or no more; ``None`` where all went well.
    """

    seconds: list[float]
    failure: str | None = None


class Lazily:
    """Work that is prepared when it is first done, so that running out of memory then is the work's own failure.

    Parameters
    ----------
    make
        Prepares and returns what is done from then on.
    """

    def __init__(self, make: Callable[[], Callable[[], object]]) -> None:
        self._make = make
        self._made: Callable[[], object] | None = None

    def __call__(self) -> None:
        """Do the work once."""
        if self._made is None:
            self._made = self._make()
        self._made()


@dataclass(frozen=True)
class TimingRow:
    """One line of a table: a variant's time, and that relative to the reference's.

    Attributes
    ----------
    name, label
        Key of the variant, and its label in the table.
    seconds
        One for each round.
    median
        Of the seconds.
    ratio
        Median over the rounds of the time relative to the reference's in the same round.
    quartiles
        First and third quartile of these.
    ratio_of_medians
        Median time relative to the reference's median time.
    failure
        Why there is no figure.
    """

    name: str
    label: str
    seconds: tuple[float, ...]
    median: float | None = None
    ratio: float | None = None
    quartiles: tuple[float, float] | None = None
    ratio_of_medians: float | None = None
    failure: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return asdict(self)


def alternate(
    work: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    seed: int = 0,
    device: torch.device | None = None,
    seconds: float | None = None,
    bar: Task | None = None,
    warm_up: bool = True,
) -> dict[str, Timing]:
    """Time every variant once in each of `rounds` rounds, after a warm-up round that does not count.

    Parameters
    ----------
    work
        What is timed, by the variant's name.
    rounds
        Timed rounds at most.
    seed
        Of the order, which differs from round to round.
    device
        Waited for before and after each timing where it is a GPU.
    seconds
        No round begins that would end later than this after the start; one is timed in any case.
    bar
        Advanced by one for each variant and round, the warm-up's included.
    warm_up
        Whether there is a warm-up round.

    Returns
    -------
    dict
        A `Timing` for each variant. One that runs out of memory is left out of later rounds and says so.
    """
    timings = {name: Timing([]) for name in work}
    order = list(work)
    chance = random.Random(seed)
    began = time.perf_counter()
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection within one variant's time would be charged to it
    try:
        for number in range(0 if warm_up else 1, rounds + 1):
            started = time.perf_counter()
            chance.shuffle(order)
            for name in order:
                timing = timings[name]
                if timing.failure is None:
                    took = _time(work[name], device)
                    if isinstance(took, str):
                        timing.failure = took
                    elif number:
                        timing.seconds.append(took)
                if bar is not None:
                    bar.advance()
            gc.collect(1)  # what the round left; a full collection of all of torch's objects takes long
            now = time.perf_counter()
            if seconds is not None and number and now - began + (now - started) > seconds:
                break
    finally:
        if collecting:
            gc.enable()
    return timings


def _time(work: Callable[[], object], device: torch.device | None) -> float | str:
    """Return the seconds that `work` takes, or why it could not be done."""
    try:
        synchronise(device)
        began = time.perf_counter()
        work()
        synchronise(device)
        return time.perf_counter() - began
    except (RuntimeError, MemoryError) as error:
        failure = out_of_memory(error)
        if failure is None:
            raise
    if device is not None and device.type == "cuda":
        torch.cuda.empty_cache()
    return failure


def out_of_memory(error: BaseException) -> str | None:
    """Return what to tell of an error that means "out of memory"; ``None`` for any other."""
    return "out of memory" if is_out_of_memory(error) else None


def rows_of(timings: Mapping[str, Timing], labels: Mapping[str, str], reference: str) -> list[TimingRow]:
    """Summarise timings, in their order.

    Parameters
    ----------
    timings
        Of `alternate`.
    labels
        Labels in the table, by name.
    reference
        The variant that counts as 1.00; where it failed there are no ratios.
    """
    base = timings[reference]
    rows = []
    for name, timing in timings.items():
        if timing.failure is not None or not timing.seconds:
            failure = timing.failure or "not measured"
            rows.append(TimingRow(name, labels[name], tuple(timing.seconds), failure=failure))
            continue
        middle = median(timing.seconds)
        if base.failure is not None:
            rows.append(TimingRow(name, labels[name], tuple(timing.seconds), middle))
            continue
        paired = [own / theirs for own, theirs in zip(timing.seconds, base.seconds, strict=True)]
        low, _, high = quantiles(paired, n=4, method="inclusive") if len(paired) > 1 else paired * 3
        rows.append(
            TimingRow(
                name,
                labels[name],
                tuple(timing.seconds),
                middle,
                median(paired),
                (low, high),
                middle / median(base.seconds),
            )
        )
    return rows
