"""Strategies that ours is compared with: what each does that fine-tuning does not, on which images, and resumed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_strategies import (
    APART,
    BASE,
    STREAM,
    STRUCTURES,
    TRAINING,
    configured,
    differing,
    learn,
    predictions,
    state_of,
)
from torch import Tensor

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.data.sample import Sample, digest_of
from repmode_cl.strategies import FineTuning, Replay, StructureStrategy
from repmode_cl.strategies.plugins.checkpoint import StrategyCheckpoint
from repmode_cl.strategies.registry import base_key_of
from repmode_cl.strategies.replay_buffer import BufferedPatch, PatchBuffer

TWO = STREAM[:2]
#: Strategy -> options with which it is not fine-tuning, and with which it is.
SOFTENED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "replay": ({"buffer": 4}, {"buffer": 0}),
    "a_gem": ({"buffer": 4}, {"buffer": 0}),
    "der_pp": ({"buffer": 4, "alpha": 2.0}, {"buffer": 0}),
    "ewc": ({"strength": 1e4}, {"strength": 0.0}),
    "synaptic_intelligence": ({"strength": 1e2}, {"strength": 0.0}),
    "mas": ({"strength": 1e2}, {"strength": 0.0}),
    "lwf": ({"strength": 3.0}, {"strength": 0.0}),
}
OTHERS: dict[str, dict[str, Any]] = {
    "cumulative": {}, "frozen_encoder": {}, "multi_head": {"head": "last"}, "joint": {},
}  # fmt: skip
ALL = {name: options for name, (options, _) in SOFTENED.items()} | OTHERS


@pytest.fixture(scope="module")
def tuned(samples: list[Sample]) -> dict[int, dict[str, Tensor]]:
    """Return what fine-tuning comes to after each experience."""
    strategy, states = configured("fine_tuning", samples, TWO), {}
    for number in range(2):
        states[number] = state_of(learn(strategy, number))
    return states


@pytest.mark.parametrize("name", SOFTENED)
def test_it_differs_from_fine_tuning_only_where_it_should(
    samples: list[Sample], tuned: dict[int, dict[str, Tensor]], name: str
) -> None:
    on, off = SOFTENED[name]
    strategy = learn(configured(name, samples, TWO, **on), 0)
    assert differing(tuned[0], state_of(strategy)) == set()  # nothing is there yet to be kept
    learn(strategy, 1)
    shared = {n for n in tuned[1] if ".gates." not in n and n.endswith("weight")}
    assert len(differing(tuned[1], state_of(strategy)) & shared) > len(shared) / 2
    if name != "a_gem":  # which projects one gradient or another of these few
        without = learn(configured(name, samples, TWO, **off))
        assert differing(tuned[1], state_of(without)) == set()


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("replay", "ewc", "lwf") else pytest.param(name, marks=pytest.mark.slow)
        for name in SOFTENED
    ],
)
def test_it_keeps_to_what_was_learned(samples: list[Sample], name: str) -> None:
    """Of sixteen steps on another structure: the base's predictions move less, or with its images stay better."""
    training = TRAINING.model_copy(update={"steps": 16, "base_steps": 8, "validate_every": 16})
    on, off = SOFTENED[name]
    found: dict[str, float] = {}
    for key, options in (("on", on), ("off", off)):
        strategy = learn(configured(name, samples, TWO, training=training, **options), 0)
        before = predictions(strategy, BASE)
        learn(strategy, 1)
        if name == "replay":
            figures = strategy.evaluate([strategy.stream.test[0]])
            found[key] = sum(figures[one]["mse"] for one in BASE)
        else:
            after = predictions(strategy, BASE)
            found[key] = sum(float((after[one] - before[one]).square().mean()) for one in BASE)
    assert found["on"] < found["off"]


def test_a_frozen_encoder_stays_but_for_the_new_rows(samples: list[Sample]) -> None:
    strategy = learn(configured("frozen_encoder", samples, TWO), 0)
    before = state_of(strategy)
    assert strategy.trained == {name for name, _ in strategy.network.named_parameters()}
    learn(strategy, 1)
    encoder = {name for name in before if name.startswith(("encoder.", "down."))}
    rows = {name for name in before if ".gates." in name}
    assert differing(before, state_of(strategy)) == before.keys() - encoder - rows
    fresh = {name for name in strategy.trained if ".gates.nucleolus" in name}
    assert len(fresh) == 7  # in every block, those of the encoder too
    assert strategy.trained == {n for n, _ in strategy.network.named_parameters() if n not in encoder | rows}


# -- what it was trained on -------------------------------------------------------------------------------------


def images_of(strategy: StructureStrategy, *numbers: int) -> set[tuple[str, str]]:
    return {(s.structure, s.image_id) for number in numbers for s in strategy.stream.images[number]}


@pytest.mark.parametrize("name", ["ewc", "lwf", "frozen_encoder", "multi_head"])
def test_without_memory_it_sees_only_the_images_of_its_experience(samples: list[Sample], name: str) -> None:
    strategy = learn(configured(name, samples, **ALL[name]))
    for number in range(3):
        assert set(strategy.trained_patches[number]) == images_of(strategy, number)
        assert strategy.trained_patches[number].total() == 4 * 2  # steps and patches


def test_replay_sees_the_patches_of_its_buffer(samples: list[Sample]) -> None:
    strategy = configured("replay", samples, buffer=5, replay_batch=3)
    batches: list[Tensor] = []
    strategy.listeners.append(lambda s: batches.append(s.mb_x.clone()))
    assert isinstance(learn(strategy, 0), Replay)
    assert [len(batch) for batch in batches] == [2] * 4
    kept = {(one.structure, one.image_id) for one in strategy.buffer.patches}
    assert Counter(one.structure for one in strategy.buffer.patches) == {"dna": 3, "cell_membrane": 2}
    assert len(kept) == 5
    assert kept <= images_of(strategy, 0)
    patches = [one.signal for one in strategy.buffer.patches]
    learn(strategy, 1)
    assert [len(batch) for batch in batches[4:]] == [5] * 4
    replayed = [patch for batch in batches[4:] for patch in batch[2:]]
    assert all(any(torch.equal(patch, one) for one in patches) for patch in replayed)
    times = [sum(torch.equal(patch, one) for patch in replayed) for one in patches]
    assert sorted(times) == [2, 2, 2, 3, 3]  # each as often
    assert set(strategy.trained_patches[1]) == kept | images_of(strategy, 1)
    assert strategy.trained_patches[1].total() == 4 * (2 + 3)
    # The new experience takes its part, and all the earlier ones give way alike.
    assert Counter(one.experience for one in strategy.buffer.patches) == {0: 3, 1: 2}
    learn(strategy, 2)
    assert Counter(one.experience for one in strategy.buffer.patches) == {0: 2, 1: 2, 2: 1}
    assert set(strategy.trained_patches[2]) <= images_of(strategy, 0, 1, 2)
    assert strategy.costs() == {"buffer_bytes": 5 * 2 * 4 * 4 * 8 * 8, "buffer_images": 5}


def test_a_buffer_shows_structures_and_images_evenly(samples: list[Sample]) -> None:
    """Three images of one structure and one of another: half of the patches for each."""
    images = [s for s in samples if s.structure == "dna" and s.split == "train"]
    images += [s for s in samples if s.structure == "nucleolus" and s.split == "train"][:1]
    patches = PatchDataset(images, patch=(4, 8, 8), seed=0, length=40)
    for seed in range(3):
        buffer = PatchBuffer(9, seed=seed)
        buffer.add(0, patches)
        assert sorted(Counter(one.structure for one in buffer.patches).values()) == [4, 5]
        shown = Counter(one.image_id for one in buffer.patches if one.structure == "dna")
        assert len(shown) == 3
        assert max(shown.values()) == 2
        assert len({one.item for one in buffer.patches}) == 9
        buffer.add(1, patches)  # the rest is even still
        assert Counter(one.experience for one in buffer.patches) == {0: 5, 1: 4}
        for number in (0, 1):
            assert {2, 3} >= set(
                Counter(one.structure for one in buffer.patches if one.experience == number).values()
            )


def test_a_buffer_may_be_limited_in_bytes(samples: list[Sample]) -> None:
    patch = 2 * 4 * 4 * 8 * 8
    strategy = learn(configured("replay", samples, TWO, buffer_bytes=3 * patch + 1))
    assert isinstance(strategy, Replay)
    assert len(strategy.buffer.patches) == 3
    assert strategy.costs()["buffer_bytes"] == 3 * patch


def test_a_buffer_may_be_limited_in_bytes_for_each_structure(samples: list[Sample]) -> None:
    patch = 2 * 4 * 4 * 8 * 8
    strategy = configured("replay", samples, buffer_bytes_each=2 * patch)
    for number, count in enumerate((4, 6, 8)):
        learn(strategy, number)
        assert strategy.costs()["buffer_bytes"] == count * patch


def test_fresh_patches_are_cut_from_regions_that_are_kept(samples: list[Sample], tmp_path: Path) -> None:
    """Each patch is a part of a region, flipped or not, and hardly any is cut twice; whole regions count as kept."""
    options = {"buffer": 3, "region": (6, 10, 99), "replay_batch": 4}
    strategy = learn(configured("replay", samples, TWO, **options), 0)
    assert isinstance(strategy, Replay)
    regions = strategy.buffer.patches
    assert {tuple(one.signal.shape) for one in regions} == {(1, 6, 10, 12)}  # at most the image
    assert strategy.costs() == {"buffer_bytes": 3 * 2 * 4 * 6 * 10 * 12, "buffer_images": 3}
    pairs: list[tuple[Tensor, Tensor]] = []
    strategy.listeners.append(lambda s: pairs.extend(zip(s.mb_x[2:], s.mb_y[2:], strict=True)))
    learn(strategy, 1)
    assert len(pairs) == 4 * 4
    places = set()
    for x, y in pairs:
        found = [
            (number, tuple(axes), z, row, column)
            for number, one in enumerate(regions)
            for axes in ([], [1], [2], [3], [1, 2], [1, 3], [2, 3], [1, 2, 3])
            for z in range(3)
            for row in range(3)
            for column in range(5)
            if torch.equal(
                x, (part := one.signal[:, z : z + 4, row : row + 8, column : column + 8]).flip(axes)
            )
            and part.shape == x.shape
            and torch.equal(y, one.target[:, z : z + 4, row : row + 8, column : column + 8].flip(axes))
        ]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 12
    assert {place[0] for place in places} == {0, 1, 2}
    assert len({axes for _, axes, *_ in places}) > 3

    whole = configured("replay", samples, TWO, buffer=100, region=(6, 12, 12))
    learn(whole, 0)
    assert whole.costs() == {"buffer_bytes": 6 * 2 * 4 * 6 * 12 * 12, "buffer_images": 6}  # each image once
    resumed, checkpoint = configured("replay", samples, TWO, **options), StrategyCheckpoint(tmp_path)
    cut = learn(configured("replay", samples, TWO, **options), 0)
    cut.finish_experience()
    checkpoint.save(cut)
    checkpoint.resume(resumed)
    assert differing(state_of(learn(resumed, 1)), state_of(strategy)) == set()


@pytest.mark.parametrize("masked", [False, True])
def test_patches_of_regions_are_centred_on_bright_voxels_where_new_ones_are(masked: bool) -> None:
    """Of a region with two bright voxels, one of which a mask leaves out, and of one without any."""
    target = torch.zeros(1 + masked, 9, 9, 9)
    target[0, 4, 4, 4] = target[0, 0, 8, 3] = 5.0
    if masked:
        target[1] = 1.0
        target[1, 0, 8, 3] = 0.0
    region = BufferedPatch(0, 0, "dna", "one", torch.arange(729.0).reshape(1, 9, 9, 9), target)
    inside: dict[float, set[float]] = {}
    for share in (0.0, 0.5, 1.0):
        cut = [region.crop((3, 3, 3), digest_of("crop", number), (), share) for number in range(100)]
        inside[share] = {float(one.signal[0, 1, 1, 1]) for one in cut}
    centre, corner = 4 * 81 + 4 * 9 + 4, 1 * 81 + 7 * 9 + 3  # the second one's window is moved inside
    assert inside[1.0] == {centre} if masked else {centre, corner}
    assert len(inside[0.0]) > len(inside[0.5]) > 20
    dark = replace(region, target=torch.zeros_like(target))
    assert (
        len({float(dark.crop((3, 3, 3), digest_of(n), (), 1.0).signal[0, 1, 1, 1]) for n in range(50)}) > 20
    )


def test_replay_centres_patches_of_regions_as_new_ones_are(samples: list[Sample]) -> None:
    options = {"buffer": 3, "region": (6, 12, 12), "replay_batch": 4}
    strategy = learn(configured("replay", samples, TWO, foreground=1.0, **options), 0)
    assert isinstance(strategy, Replay)
    shares: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        crop = BufferedPatch.crop

        def spy(self: BufferedPatch, *given: Any) -> BufferedPatch:
            shares.append(given[3])
            return crop(self, *given)

        patch.setattr(BufferedPatch, "crop", spy)
        learn(strategy, 1)
    assert shares == [1.0] * 4 * TRAINING.steps


def test_cumulative_sees_all_images_so_far_and_joint_all(samples: list[Sample]) -> None:
    strategy = learn(configured("cumulative", samples))
    for number in range(3):
        assert set(strategy.trained_patches[number]) <= images_of(strategy, *range(number + 1))
        assert images_of(strategy, number) <= set(strategy.trained_patches[number])
        assert strategy.trained_patches[number].total() == 8 * (2 if number else 1)
    assert set(strategy.trained_patches[1]) == images_of(strategy, 0, 1)  # six earlier ones, in eight patches
    joint = learn(configured("joint", samples))
    assert joint.stream.experiences == (STRUCTURES,)
    assert set(joint.trained_patches[0]) == {(s.structure, s.image_id) for s in samples if s.split == "train"}
    assert joint.trained_patches[0].total() == 12 * 2  # the steps of all three
    assert set(predictions(joint, STRUCTURES)) == set(STRUCTURES)


def test_cumulative_cuts_earlier_images_elsewhere_than_when_they_were_new(samples: list[Sample]) -> None:
    """Of 600 crops and flips of an image, those that the seed chooses in each experience are others."""
    strategy = configured("cumulative", samples)
    shown: list[set[bytes]] = [set(), set(), set()]
    strategy.listeners.append(
        lambda s: shown[s.progress.experience].update(patch.cpu().numpy().tobytes() for patch in s.mb_x)
    )
    learn(strategy)
    assert [len(found) for found in shown] == [8, 16, 16]
    assert not shown[0] & shown[1]
    assert not (shown[0] | shown[1]) & shown[2]


def new_patches(strategy: StructureStrategy) -> list[Tensor]:
    """Learn all; return the patches of the new images in each step."""
    found: list[Tensor] = []
    strategy.listeners.append(lambda s: found.append(s.mb_x[:2].clone()))
    learn(strategy)
    return found


@pytest.fixture(scope="module")
def tuned_patches(samples: list[Sample]) -> list[Tensor]:
    """Return the patches that fine-tuning learns from."""
    return new_patches(configured("fine_tuning", samples, TWO))


@pytest.mark.parametrize("name", ["replay", "a_gem", "ewc", "lwf", "cumulative", "multi_head"])
def test_the_new_patches_are_those_of_every_strategy(
    samples: list[Sample], tuned_patches: list[Tensor], name: str
) -> None:
    assert all(map(torch.equal, tuned_patches, new_patches(configured(name, samples, TWO, **ALL[name]))))


# -- resumed ---------------------------------------------------------------------------------------------------


class KilledError(Exception):
    """Stands for the end of a process."""


def run(
    strategy: StructureStrategy, folder: Path, kill_at: tuple[int, int] | None = None
) -> StructureStrategy:
    """Learn all, from the last checkpoint on; end with an error after step ``kill_at[1]`` of an experience."""
    checkpoint = StrategyCheckpoint(folder)
    checkpoint.resume(strategy)
    strategy.on_validation.append(checkpoint.save)

    def kill(strategy: StructureStrategy) -> None:
        if kill_at == (strategy.progress.experience, strategy.progress.step):
            raise KilledError

    strategy.listeners.append(kill)
    for number in range(strategy.progress.experience, len(strategy.stream.experiences)):
        learn(strategy, number)
        checkpoint.save(strategy)
    return strategy


#: Those that keep something of each kind: patches, outputs, importances, a path, a teacher. Of the others each keeps
#: what one of them does, or nothing.
KEEPING = ("replay", "der_pp", "ewc", "synaptic_intelligence", "lwf")


@pytest.mark.parametrize(
    "name", [name if name in KEEPING else pytest.param(name, marks=pytest.mark.slow) for name in ALL]
)
def test_interrupted_within_an_experience_it_ends_with_the_same_bits(
    samples: list[Sample], tmp_path: Path, name: str
) -> None:
    def fresh() -> StructureStrategy:
        return configured(name, samples, STREAM if name == "replay" else TWO, **ALL[name])

    whole = run(fresh(), tmp_path / "whole")
    last = len(whole.stream.experiences) - 1
    with pytest.raises(KilledError):
        run(fresh(), tmp_path / "cut", kill_at=(last, 3))  # a checkpoint was made after step 2
    again = fresh()
    steps: list[int] = []
    again.listeners.append(lambda s: steps.append(s.progress.step))
    run(again, tmp_path / "cut")
    assert steps == list(range(3, whole.budget.steps + 1))
    assert differing(state_of(whole), state_of(again)) == set()
    assert again.trained_patches == whole.trained_patches
    assert again.progress.curve == whole.progress.curve
    kept, values = whole.extra_state()
    kept_again, values_again = again.extra_state()
    assert values == values_again
    assert kept.keys() == kept_again.keys()
    assert differing(kept, kept_again) == set()
    assert again.costs() == whole.costs()


def test_what_is_kept_besides_the_network_is_counted(samples: list[Sample]) -> None:
    for name in ("ewc", "synaptic_intelligence", "mas", "lwf"):
        strategy = configured(name, samples, TWO)
        assert strategy.costs() == {"kept_bytes": 0}
        learn(strategy, 0)
        network = strategy.network
        if name == "lwf":
            expected = sum(t.numel() * t.element_size() for t in network.state_dict().values())
        else:  # an importance and an anchor of each
            expected = sum(2 * 4 * p.numel() for n, p in network.named_parameters() if ".gates." not in n)
        assert strategy.costs() == {"kept_bytes": expected}


def test_a_base_is_shared_only_by_equal_rates() -> None:
    def key(rate: float | None, usual: float = 1e-3) -> str | None:
        options = StrategyConfig(name="ewc", base_learning_rate=rate)
        training = TRAINING.model_copy(update={"learning_rate": usual})
        return base_key_of(Config(name="tiny", training=training, strategies=(options,)), options)

    assert key(None) == key(1e-3) == "repmode"
    close = [key(rate) for rate in (1e-3 + 1e-9, 1e-3 - 1e-9, 1.2345678e-3, 1.2345679e-3)]
    assert len({*close, "repmode"}) == 5
    assert key(2e-3) == key(2e-3, usual=1e-2) == "repmode_rate0.002"


def test_every_strategy_begins_with_the_base_that_it_says_it_shares(samples: list[Sample]) -> None:
    begun: dict[str | None, list[StructureStrategy]] = {}
    for name, options in ALL.items():
        strategy = configured(name, samples, TWO, **options)
        begun.setdefault(strategy.base_key, []).append(strategy)
    assert {type(one).__name__ for one in begun[None]} == {"Joint", "SynapticIntelligence"}
    assert begun.keys() == {None, "repmode", "multi_head_last_k3"}
    first = state_of(configured("fine_tuning", samples, TWO))
    for strategy in begun["repmode"]:
        assert isinstance(strategy, FineTuning)
        assert differing(first, state_of(strategy)) == set()
    assert configured("multi_net", samples, APART).base_key is None
    assert configured("experts_frozen", samples, TWO).base_key == "repmode"
