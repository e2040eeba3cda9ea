"""Structures that come again: strategies learn them further, and ours and Multi-Net nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_strategies import (
    BUILD,
    PATCH,
    STRUCTURES,
    build,
    differing,
    learn,
    make_samples,
    predictions,
    state_of,
)

from repmode_cl.data.sample import Sample
from repmode_cl.model import Model
from repmode_cl.nn import RepModeUNet
from repmode_cl.scenarios import PatchSampling, StructureStream, stream_of_samples
from repmode_cl.strategies import StructureStrategy

ARRIVALS = (("dna", "cell_membrane"), ("nucleolus",), ("mitochondria",), ("nucleolus",))
OTHERS = tuple(name for name in STRUCTURES if name != "nucleolus")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return make_samples(tmp_path_factory.mktemp("repeats"))


def again(name: str, samples: list[Sample]) -> StructureStrategy:
    """Return a strategy that is to learn nucleolus, mitochondria, and nucleolus again."""
    apart = tuple((name,) for group in ARRIVALS for name in group)
    stream: StructureStream = stream_of_samples(
        samples,
        apart if name == "multi_net" else ARRIVALS,
        PatchSampling(PATCH),
        count=lambda _, __: 8,
        seed=0,
        arrivals=ARRIVALS,
    )
    return BUILD[name](stream)


@pytest.mark.parametrize("name", BUILD)
def test_a_structure_is_learned_further_from_where_it_stands(name: str, samples: list[Sample]) -> None:
    strategy = again(name, samples)
    count = len(strategy.stream.experiences)
    learn(strategy, *range(count - 1))
    first = strategy.stream.experiences.index(("nucleolus",))
    before, old = state_of(strategy), predictions(strategy, STRUCTURES)
    learn(strategy, count - 1)
    changed, new = differing(before, state_of(strategy)), predictions(strategy, STRUCTURES)
    # Nothing grows: it is the network, or the part of one, that was there.
    assert set(state_of(strategy)) == set(before)
    assert strategy.network.structures == STRUCTURES
    assert not torch.equal(old["nucleolus"], new["nucleolus"])
    same = {structure for structure in OTHERS if torch.equal(old[structure], new[structure])}
    if name == "fine_tuning":
        assert same == set()
    else:
        assert same == set(OTHERS)
        assert {key for key in changed if "nucleolus" not in key} == set()
    # On its own images, each time others.
    images = [{image for _, image in strategy.trained_patches[number]} for number in (first, count - 1)]
    assert images == [{sample.image_id for sample in strategy.stream.images[n]} for n in (first, count - 1)]
    assert not images[0] & images[1]
    assert sum(map(len, images)) == 3


def test_a_figure_of_what_came_again_is_of_each_image_once(samples: list[Sample]) -> None:
    strategy = learn(again("experts_frozen", samples))
    figures = strategy.evaluate(strategy.stream.known_after(3))
    assert set(figures) == set(STRUCTURES)
    alone = strategy.evaluate([strategy.stream.test[1]])
    assert figures["nucleolus"] == alone["nucleolus"]


def test_the_stored_model_keeps_both_versions(samples: list[Sample], tmp_path: Path) -> None:
    strategy = learn(again("experts_frozen", samples), 0, 1, 2)
    network = strategy.network
    assert isinstance(network, RepModeUNet)
    empty = {"preprocessing": {}, "inference": {"window": list(PATCH), "overlap": 0.5, "batch": 1}}
    base = learn(build("experts_frozen", samples), 0).network
    model = Model.create(tmp_path / "model", base, voxel_size=None, provenance={}, metrics={}, **empty)
    for name in ("nucleolus", "mitochondria"):
        model.add(name, network)
    learn(strategy, 3)
    model.add("nucleolus", network, replace=True)
    model = Model.open(tmp_path / "model")
    assert [(change.action, change.structure) for change in model.history[1:]] == [
        ("add", "nucleolus"), ("add", "mitochondria"), ("replace", "nucleolus"),
    ]  # fmt: skip
    assert model.verify().ok
    assert model.history[-1].earlier == model.history[1].digest != model.history[-1].digest
