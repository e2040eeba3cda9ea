"""A batch in micro-batches is the batch: the same gradient, masks included, and the same count of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_strategies import PATCH, SHAPE, STREAM, TRAINING, differing, experts_frozen, learn, state_of

from repmode_cl.config import TrainingConfig, parse_config
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError
from repmode_cl.scenarios import PatchSampling, stream_of_samples
from repmode_cl.strategies import StructureStrategy
from repmode_cl.training import count_voxels, masked_mse

BATCH, STEPS = 4, 3


@pytest.fixture(scope="module")
def masked(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Return the images with masks of which some leave nearly nothing: a micro-batch may count for little."""
    folder = tmp_path_factory.mktemp("masks")
    random = np.random.default_rng(0)

    def with_mask(sample: Sample, number: int) -> Sample:
        path = folder / f"{number}.npy"
        np.save(path, random.random(SHAPE) < (0.02, 0.9, 0.4)[number % 3])
        return replace(sample, mask=path)

    return [with_mask(sample, number) for number, sample in enumerate(samples)]


def trained(
    samples: Sequence[Sample], accumulate: int, *, norm: str = "base", **more: Any
) -> StructureStrategy:
    """Learn a base whole, then a structure with frozen norms, the batches in `accumulate` parts."""
    training = TrainingConfig(
        **TRAINING.model_dump() | {"batch_size": BATCH, "steps": STEPS, "base_steps": 1, "validate_every": 2}
    )
    stream = stream_of_samples(
        samples,
        STREAM,
        PatchSampling(PATCH),
        count=lambda names, _: BATCH * (1 if len(names) > 1 else STEPS),
        seed=0,
    )
    plugins = more.pop("plugins", [])
    strategy = experts_frozen(stream, training=training, norm=norm)
    learn(strategy, 0)
    strategy.training_config = training.model_copy(update={"accumulate": accumulate, **more})
    strategy.plugins += plugins
    return learn(strategy, 1)


# -- the gradient -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_come_to_the_batch(masked: list[Sample], accumulate: int, clip: float | None) -> None:
    whole, parts = (trained(masked, number, gradient_clip=clip) for number in (1, accumulate))
    one, other = state_of(whole), state_of(parts)
    own = {name for name in one if ".own.nucleolus." in name}
    assert own
    for name in own:
        scale = one[name].abs().max()
        assert (one[name] - other[name]).abs().max() <= 1e-4 * scale, name
    validated = [
        [row["train_step"] for row in run.progress.curve if row["metric"] == "mse"] for run in (whole, parts)
    ]
    assert validated == [[1, 1, 2, 3]] * 2  # both structures of the base, then the addition


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.booleans())
def test_the_losses_of_parts_sum_to_the_whole(seed: int, sizes: list[int], weighted: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    shape = (sum(sizes), 1, 2, 3, 3)
    output, target, chance = (torch.rand(shape, generator=random, dtype=torch.float64) for _ in range(3))
    if weighted:  # in places nothing counts
        target = torch.cat(
            [target, (chance > torch.rand(len(chance), generator=random)[:, None, None, None, None])], 1
        )
    count = sum(count_voxels(part) for part in target.split(sizes))
    parts = zip(output.split(sizes), target.split(sizes), strict=True)
    total = sum(masked_mse(one, other, count=count) for one, other in parts)
    torch.testing.assert_close(total, masked_mse(output, target), rtol=1e-12, atol=0)


# -- steps ------------------------------------------------------------------------------------------------------


class Counting:
    """A plugin, as Avalanche calls it: counts the hooks, and keeps the losses that it is shown."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.parts: list[float] = []
        self.losses: list[float] = []

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.calls.append("iteration")

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.calls.append("forward")

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        self.parts.append(float(strategy.loss.detach()))

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        self.calls.append("update")

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.losses.append(float(strategy.loss.detach()))


def test_an_iteration_is_an_optimiser_step(masked: list[Sample]) -> None:
    whole, parts = Counting(), Counting()
    trained(masked, 1, plugins=[whole])
    strategy = trained(masked, 2, plugins=[parts], norm="own")
    assert whole.calls == ["iteration", "forward", "update"] * STEPS
    assert parts.calls == ["iteration", "forward", "forward", "update"] * STEPS
    assert parts.losses == pytest.approx([sum(parts.parts[i : i + 2]) for i in range(0, 2 * STEPS, 2)])
    assert whole.losses == whole.parts
    # Batch norm sees micro-batches.
    norm = strategy.network.get_submodule("encoder.0.0.norm.own.nucleolus")
    assert strategy.selection.step <= STEPS
    assert int(norm.num_batches_tracked) == 2 * strategy.selection.step + int(
        strategy.network.get_submodule("encoder.0.0.norm.base").num_batches_tracked
    )


def test_without_accumulation_nothing_is_different(samples: list[Sample]) -> None:
    """The plain path divides by no count from outside: a single batch is its own whole."""
    assert differing(state_of(trained(samples, 1)), state_of(trained(samples, 1))) == set()


# -- mistakes ---------------------------------------------------------------------------------------------------


def test_a_batch_that_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    text = "name: tiny\ntraining:\n  steps: 10\n  batch_size: 8\n"
    assert parse_config(text, overrides=["training.accumulate=4"]).training.accumulate == 4
    with pytest.raises(ConfigError, match=r"batch_size is 8 and accumulate 3: .*multiple of accumulate"):
        parse_config(text, overrides=["training.accumulate=3"])
