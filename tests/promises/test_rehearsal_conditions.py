"""Rehearsal with masks, accumulation, one image, and a structure that comes again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_strategies import (
    BASE,
    STREAM,
    STRUCTURES,
    TRAINING,
    configured,
    differing,
    learn,
    one_masked_image,
    state_of,
)

from repmode_cl.data.sample import Sample

#: Label -> strategy and its options: patches and regions, counted and in bytes.
REHEARSALS: dict[str, tuple[str, dict[str, Any]]] = {
    "replay": ("replay", {"buffer": 8}),
    "replay-regions": ("replay", {"buffer": 6, "region": (5, 10, 10)}),
    "replay-bytes": ("replay", {"buffer_bytes_each": 20_000, "region": (5, 10, 10)}),
    "der_pp": ("der_pp", {"buffer": 8}),
    "a_gem": ("a_gem", {"buffer": 8}),
    "cumulative": ("cumulative", {}),
}
EACH = pytest.mark.parametrize("rehearsal", REHEARSALS)
ONCE = TRAINING.model_copy(update={"validate_every": TRAINING.steps})


@EACH
def test_accumulation_masks_and_one_image_are_learned_from(
    rehearsal: str, samples: list[Sample], tmp_path: Path
) -> None:
    name, options = REHEARSALS[rehearsal]
    training = ONCE.model_copy(update={"batch_size": 4, "accumulate": 2})
    losses: list[float] = []
    strategy = configured(name, one_masked_image(samples, tmp_path), training=training, **options)
    strategy.listeners.append(lambda s: losses.append(float(s.last_loss)))
    learn(strategy)
    assert len(losses) == 12
    # What is rehearsed is masked too: a voxel that should not count would add 1e8.
    assert max(losses) < 100
    figures = strategy.evaluate(strategy.stream.known_after(2))
    assert tuple(figures) == STRUCTURES
    assert max(figure["mse"] for figure in figures.values()) < 100


@EACH
def test_a_structure_that_comes_again_is_learned_further(rehearsal: str, samples: list[Sample]) -> None:
    name, options = REHEARSALS[rehearsal]
    strategy = configured(name, samples, (*STREAM, ("nucleolus",)), training=ONCE, **options)
    learn(strategy, 0, 1, 2)
    before = state_of(strategy)
    learn(strategy, 3)
    after = state_of(strategy)
    assert list(before) == list(after)  # nothing is added for it a second time
    assert differing(before, after)
    assert strategy.network.structures == STRUCTURES
    assert set(strategy.evaluate(strategy.stream.known_after(3))) >= {*BASE, "nucleolus"}
