"""Order of the images of a training sequence: pure functions of a seed, endless and without state.

One crop per image and epoch (paper, section 4.1) leaves open which images share a batch. A batch of many structures
costs as many fused kernels, so a sequence can be arranged to show few structures at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from repmode_cl.data.sample import Sample, digest_of

__all__ = ["GroupedOrder", "SampleOrder", "ShuffledOrder", "make_order"]


class SampleOrder(Protocol):
    """Order of an endless sequence: the sample of each item, and the number of times it was shown before."""

    def at(self, index: int) -> tuple[int, int]:
        """Return the place of the sample that item `index` shows, and how often it was shown before."""


def make_order(
    samples: Sequence[Sample], seed: int, batch: int | None, structures_per_batch: int | None
) -> SampleOrder:
    """Return the order of a training sequence.

    Parameters
    ----------
    samples
        Samples that are shown.
    seed
        Decides the order.
    batch, structures_per_batch
        Most structures in each batch of `batch` items, counted from item 0. None sets no limit; nor does a limit that
        no batch can exceed.

    Raises
    ------
    ValueError
        If a number is below 1, or there is a limit without the size of a batch.
    """
    if structures_per_batch is None:
        return ShuffledOrder(samples, seed)
    if batch is None or batch < 1 or structures_per_batch < 1:
        raise ValueError(
            "structures_per_batch needs the number of items that a batch has, both at least 1; "
            f"got {structures_per_batch} of {batch}"
        )
    if structures_per_batch >= min(batch, len({sample.structure for sample in samples})):
        return ShuffledOrder(samples, seed)
    return GroupedOrder(samples, seed, batch, structures_per_batch)


class ShuffledOrder:
    """Epoch after epoch, each with every sample once, all structures mixed."""

    def __init__(self, samples: Sequence[Sample], seed: int) -> None:
        self._passes = _Passes(samples, range(len(samples)), seed)

    def at(self, index: int) -> tuple[int, int]:
        """See `SampleOrder`."""
        return self._passes.at(index)


class GroupedOrder:
    """Runs of one structure, those of different structures shuffled among each other.

    A batch holds as many runs as it may show structures, or the largest smaller number that divides it. Each
    structure has its own endless sequence, in passes over its samples, and its runs take the next items of it; a batch
    of a structure with few samples may reach into its next pass, and show a sample in two crops.

    Notes
    -----
    With S structures of n_1 ... n_S samples, n in all, and runs of r items:

    - each pass over a structure shows each of its samples exactly once;
    - after every ``L * n`` items, where ``L = r / gcd(r, n_1, ..., n_S)``, each sample was shown exactly L times:
      where all n_s are multiples of r, every epoch of n items shows every sample once;
    - after any number m of items a structure was shown ``m * n_s / n`` times, plus or minus ``r * (1 + S * n_s / n)``,
      because its runs are spread evenly over those ``L * n`` items, each within its own stretch.

    The crop that is cut is decided by the pass, so that it is the same wherever the sample is shown for the k-th time.
    """

    def __init__(self, samples: Sequence[Sample], seed: int, batch: int, structures: int) -> None:
        self._seed = seed
        # Sorted, so that the order of samples has no influence.
        self._names = sorted({sample.structure for sample in samples})
        members = [[k for k, one in enumerate(samples) if one.structure == name] for name in self._names]
        self._passes = [_Passes(samples, places, seed) for places in members]
        parts = max(n for n in range(1, min(structures, batch) + 1) if batch % n == 0)
        self._run = batch // parts
        sizes = [len(places) for places in members]
        epochs = self._run // math.gcd(self._run, *sizes)
        self._runs = [epochs * size // self._run for size in sizes]
        """Runs of each structure in one cycle, after which every sample was shown equally often."""
        self._cycle: tuple[int, list[tuple[int, int]]] | None = (
            None  # the last one requested: a cache, not state
        )

    def at(self, index: int) -> tuple[int, int]:
        """See `SampleOrder`."""
        cycle, rest = divmod(index, sum(self._runs) * self._run)
        number, within = divmod(rest, self._run)
        cached = self._cycle
        if cached is None or cached[0] != cycle:
            cached = self._cycle = (cycle, self._schedule(cycle))
        structure, run = cached[1][number]
        return self._passes[structure].at((cycle * self._runs[structure] + run) * self._run + within)

    def _schedule(self, cycle: int) -> list[tuple[int, int]]:
        """Return structure and number of each run of a cycle."""

        def when(entry: tuple[int, int]) -> tuple[float, int]:
            structure, run = entry
            chance = digest_of("run", self._seed, cycle, self._names[structure], run)
            # The run lies somewhere in its own stretch of the cycle. Whole numbers, divided once: the same everywhere.
            part = (run << 64) + int.from_bytes(chance[:8], "big")
            return part / (self._runs[structure] << 64), structure

        return sorted(((s, run) for s, count in enumerate(self._runs) for run in range(count)), key=when)


class _Passes:
    """Pass after pass over some samples, each in a seeded order."""

    def __init__(self, samples: Sequence[Sample], places: Sequence[int], seed: int) -> None:
        self._samples, self._places, self._seed = samples, places, seed
        self._last: tuple[int, list[int]] | None = None  # the last pass requested: a cache, not state

    def at(self, index: int) -> tuple[int, int]:
        number, place = divmod(index, len(self._places))
        cached = self._last
        if cached is None or cached[0] != number:
            cached = self._last = (number, self._order_of(number))
        return cached[1][place], number

    def _order_of(self, number: int) -> list[int]:
        def chance(place: int) -> tuple[bytes, int]:
            sample = self._samples[place]
            # The row tells apart two samples of one structure with the same signal, as a manifest might hold.
            return digest_of("order", self._seed, number, sample.structure, sample.image_id), sample.row

        return sorted(self._places, key=chance)
