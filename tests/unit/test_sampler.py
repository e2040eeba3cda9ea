"""Orders of training: who shares a batch with whom, and that every image still gets its turn."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.data.patches.sampler import GroupedOrder, ShuffledOrder, make_order
from repmode_cl.data.sample import Sample

NAMES = ("actin_filament", "cell_membrane", "dna", "nucleolus", "tight_junction")


def sample(structure: str, image: int) -> Sample:
    path = Path("none.npy")
    return Sample(
        structure=structure,
        split="train",
        row=image,
        image_id=f"{image:016x}",
        signal=path,
        target=path,
        mask=None,
        shape=(4, 8, 8),
        group=str(image),
    )


def collection(sizes: list[int]) -> list[Sample]:
    return [sample(name, image) for name, size in zip(NAMES, sizes, strict=False) for image in range(size)]


sizes = st.lists(st.integers(1, 13), min_size=1, max_size=len(NAMES))
batches = st.integers(1, 12)
limits = st.integers(1, 6)
seeds = st.integers(0, 3)


@settings(deadline=None, max_examples=150)
@given(sizes, batches, limits, seeds)
def test_no_batch_shows_more_structures_than_allowed(
    sizes: list[int], batch: int, limit: int, seed: int
) -> None:
    samples = collection(sizes)
    order = make_order(samples, seed, batch, limit)
    for number in range(40):
        shown = [samples[order.at(number * batch + k)[0]].structure for k in range(batch)]
        assert len(set(shown)) <= limit


@settings(deadline=None, max_examples=100)
@given(sizes, batches, limits, seeds)
def test_every_image_has_its_turn(sizes: list[int], batch: int, limit: int, seed: int) -> None:
    samples = collection(sizes)
    order = make_order(samples, seed, batch, limit)
    largest = len(samples) * batch * 2
    items = [order.at(index) for index in range(largest)]
    # No crop comes twice, and no image has its (k+1)th before every other of its structure had its kth.
    assert len(set(items)) == len(items)
    shown: Counter[int] = Counter()
    per_structure: Counter[str] = Counter()
    run = batch // max(n for n in range(1, min(limit, batch) + 1) if batch % n == 0)
    cycle = len(samples) * (run // math.gcd(run, *sizes))
    for index, (place, number) in enumerate(items):
        if index % cycle == 0 or not isinstance(order, GroupedOrder):
            # After whole cycles (of one epoch, where all sizes are multiples of a run) all are equal.
            assert index % len(samples) or set(shown.values()) <= {index // len(samples)}
        assert number == shown[place]
        shown[place] += 1
        name = samples[place].structure
        per_structure[name] += 1
        mine = [shown[k] for k, one in enumerate(samples) if one.structure == name]
        assert max(mine) - min(mine) <= 1
        if isinstance(order, GroupedOrder):
            for other, size in zip(NAMES, sizes, strict=False):
                part = size / len(samples)
                allowed = run * (1 + len(sizes) * part) + 1e-9
                assert abs(per_structure[other] - (index + 1) * part) <= allowed


@settings(deadline=None, max_examples=50)
@given(sizes, batches, limits, seeds, st.randoms(use_true_random=False))
def test_an_order_holds_no_state_and_does_not_see_the_order_of_samples(
    sizes: list[int], batch: int, limit: int, seed: int, random: object
) -> None:
    samples = collection(sizes)
    order = make_order(samples, seed, batch, limit)
    items = [order.at(index) for index in range(60)]
    mixed = list(range(60))
    random.shuffle(mixed)  # type: ignore[attr-defined]
    again = pickle.loads(pickle.dumps(order))
    assert all(again.at(index) == items[index] for index in mixed)
    turned = samples[::-1]
    other = make_order(turned, seed, batch, limit)
    for index, (place, number) in enumerate(items):
        assert (turned[other.at(index)[0]], other.at(index)[1]) == (samples[place], number)


@pytest.mark.parametrize(("batch", "limit"), [(None, None), (8, None), (8, 5), (8, 9), (2, 2)])
def test_without_a_limit_that_binds_the_order_is_the_free_one(batch: int | None, limit: int | None) -> None:
    samples = collection([3, 4, 5, 2, 6])
    order = make_order(samples, 0, batch, limit)
    assert isinstance(order, ShuffledOrder)
    free = make_order(samples, 0, None, None)
    assert [order.at(k) for k in range(100)] == [free.at(k) for k in range(100)]
    assert [k for _, k in map(order.at, range(100))] == [k // 20 for k in range(100)]


def test_a_single_structure_has_the_order_it_has_in_runs() -> None:
    """So that what an experience of one structure is trained on does not depend on the limit."""
    samples = collection([7])
    grouped, free = GroupedOrder(samples, 0, 4, 1), ShuffledOrder(samples, 0)
    assert [grouped.at(k) for k in range(70)] == [free.at(k) for k in range(70)]


def test_batches_of_different_structures_are_mixed() -> None:
    samples = collection([16, 16, 16, 16, 16])
    order = make_order(samples, 0, 8, 1)
    names = [samples[order.at(8 * number)[0]].structure for number in range(200)]
    changes = sum(a != b for a, b in pairwise(names))
    assert changes > 120
    # In each epoch (10 batches, because sizes are multiples of a batch) every structure has its two.
    for epoch in range(20):
        assert set(Counter(names[10 * epoch : 10 * epoch + 10]).values()) == {2}
    assert len({tuple(names[10 * epoch : 10 * epoch + 10]) for epoch in range(20)}) > 10
    other = make_order(samples, 1, 8, 1)
    assert names != [samples[other.at(8 * number)[0]].structure for number in range(200)]


def test_this_order_on_every_machine_and_version() -> None:
    """Written down: a change of these numbers breaks the comparison with runs made before it."""
    samples = collection([2, 3, 4])
    order = make_order(samples, 0, 4, 2)
    shown = [
        (samples[place].structure, samples[place].row, number) for place, number in map(order.at, range(8))
    ]
    assert shown == [
        ("actin_filament", 1, 0),
        ("actin_filament", 0, 0),
        ("cell_membrane", 1, 0),
        ("cell_membrane", 0, 0),
        ("dna", 3, 0),
        ("dna", 1, 0),
        ("cell_membrane", 2, 0),
        ("cell_membrane", 0, 1),
    ]


def test_a_dataset_is_arranged_so() -> None:
    samples = collection([5, 6, 7])
    data = PatchDataset(samples, patch=(4, 8, 8), seed=3, length=96, batch=8, structures_per_batch=2)
    order = make_order(samples, 3, 8, 2)
    assert [data.sample_of(k) for k in range(96)] == [samples[order.at(k)[0]] for k in range(96)]
    assert all(len({data.structure_of(8 * n + k) for k in range(8)}) <= 2 for n in range(12))


@pytest.mark.parametrize(("batch", "limit"), [(None, 1), (0, 1), (4, 0)])
def test_limits_that_cannot_be_are_refused(batch: int | None, limit: int) -> None:
    with pytest.raises(ValueError, match="structures_per_batch"):
        make_order(collection([2, 2]), 0, batch, limit)
