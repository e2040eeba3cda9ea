"""Strategies that change nothing old, besides ours: to the bit, whatever comes next; and what each costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import ADDED, changed, make_manifest, tiny
from tiny_strategies import (
    BASE,
    STREAM,
    STRUCTURES,
    TRAINING,
    configured,
    differing,
    learn,
    one_masked_image,
    predictions,
    state_of,
)
from torch import Tensor, nn

from repmode_cl.benchmark import run_benchmark
from repmode_cl.config import StrategyConfig, TrainingConfig
from repmode_cl.data.sample import Sample
from repmode_cl.errors import RepmodeError, StructureError
from repmode_cl.nn import StructureUNet
from repmode_cl.results import ResultsTable
from repmode_cl.strategies import StructureStrategy
from repmode_cl.strategies.plugins.checkpoint import StrategyCheckpoint

#: Label -> strategy and its options.
RIVALS: dict[str, tuple[str, dict[str, Any]]] = {
    "warm_copy": ("warm_copy", {}),
    "warm_copy-multi_head": ("warm_copy", {"of": "multi_head", "head": "last", "kernel": 5}),
    "warm_copy-decoder": ("warm_copy", {"of": "multi_head"}),
    "warm_copy-best": ("warm_copy", {"init_from": "best"}),
    "frozen_trunk": ("frozen_trunk", {}),
    "frozen_trunk-last": ("frozen_trunk", {"head": "last", "kernel": 5}),
    "norm_only": ("norm_only", {}),
    "norm_only-5": ("norm_only", {"kernel": 5}),
    "lora": ("lora", {"rank": 2}),
    "lora-base": ("lora", {"rank": 2, "norm": "base"}),
    "lora-best": ("lora", {"rank": 2, "init_from": "best"}),
    "ssf": ("ssf", {}),
    "adapter": ("adapter", {"bottleneck": 3}),
    "adapter-base": ("adapter", {"norm": "base"}),
    "piggyback": ("piggyback", {"learning_rate": 2e-3}),
    "piggyback-base": ("piggyback", {"norm": "base", "kernel": 5, "learning_rate": 2e-3}),
    "packnet": ("packnet", {"prune": 0.6}),
    "packnet-base": ("packnet", {"norm": "base"}),
    "progressive": ("progressive", {}),
    "dodnet": ("dodnet", {}),
    "tgnet": ("tgnet", {}),
    "condnet": ("condnet", {}),
    "tsns": ("tsns", {"slots": 5}),
    "pipo_fan": ("pipo_fan", {"kernel": 5}),
    "condnet-shared": ("condnet", {"last_layer": "shared"}),
    "tsns-code": ("tsns", {"slots": 5, "condition": "code"}),
    "pipo_fan-deep": ("pipo_fan", {"deep_supervision": True}),
}
#: Rival that is told its structure -> numbers of a structure, for width 4 and depth 1: generated weights; hidden units
#: of residual blocks and attention besides; a value and a last layer; scales, shifts and a last layer; two maps.
CONDITIONED = {
    "dodnet": 153,
    "tgnet": 153 + (1 + 2) + 2,
    "condnet": 1 + 4 * 27,
    "tsns": 2 * (4 + 8 + 4 + 4) + 4 * 27,
    "pipo_fan": 2 * (4 + 1),
    "condnet-shared": 1,
    "tsns-code": 20 * 5 + 4 * 27,
    "pipo_fan-deep": 2 * (4 + 1),
}


def is_variant(rival: str) -> bool:
    """Return whether a label is of a strategy with other options: its tests wait for ``make test-slow``."""
    return "-" in rival


def labels(rivals: Iterable[str]) -> list[Any]:
    return [pytest.param(one, marks=pytest.mark.slow) if is_variant(one) else one for one in rivals]


EACH = pytest.mark.parametrize("rival", labels(RIVALS))
#: One of each kind: a copy, an adapter, masks over weights of two kinds, a column that reads others, a generated layer,
#: scales that are chosen by the structure.
KINDS = ("warm_copy", "lora", "piggyback", "packnet", "progressive", "dodnet", "tsns")
EACH_KIND = pytest.mark.parametrize(
    "rival", [one if one in KINDS else pytest.param(one, marks=pytest.mark.slow) for one in RIVALS]
)
AGAIN = (*STREAM, ("nucleolus",))

#: Rival -> strategy with whose base it begins, and that one's options.
BASE_OF = {
    "warm_copy": ("fine_tuning", {}),
    "warm_copy-multi_head": ("multi_head", {"head": "last", "kernel": 5}),
    "frozen_trunk": ("multi_head", {}),
    "lora": ("multi_head", {"head": "last"}),
    "norm_only-5": ("multi_head", {"head": "last", "kernel": 5}),
    "piggyback": ("multi_head", {"head": "last"}),
    "progressive": ("multi_head", {"head": "last"}),
    "dodnet": ("dodnet", {"mode": "fine_tuning"}),
    "tgnet": ("tgnet", {"mode": "fine_tuning"}),
    "condnet": ("condnet", {"mode": "fine_tuning"}),
    "tsns": ("tsns", {"mode": "fine_tuning", "slots": 5}),
    "pipo_fan": ("pipo_fan", {"mode": "fine_tuning", "kernel": 5}),
    "condnet-shared": ("condnet", {"mode": "fine_tuning", "last_layer": "shared"}),
    "tsns-code": ("tsns", {"mode": "fine_tuning", "slots": 5}),
    "pipo_fan-deep": ("pipo_fan", {"mode": "fine_tuning", "deep_supervision": True}),
}


#: Validated once, at the end: validations take longer than steps.
ONCE = TRAINING.model_copy(update={"validate_every": TRAINING.steps})


def made(
    rival: str,
    samples: list[Sample],
    experiences: Any = STREAM,
    *,
    training: TrainingConfig = ONCE,
    **more: Any,
) -> StructureStrategy:
    name, options = RIVALS[rival]
    return configured(name, samples, experiences, training=training, **options, **more)


def reloaded(strategy: StructureStrategy, fresh: StructureStrategy, folder: Path) -> StructureStrategy:
    """Save `strategy` between two experiences, and return `fresh` as it is resumed from that."""
    checkpoint = StrategyCheckpoint(folder)
    strategy.finish_experience()
    checkpoint.save(strategy)
    checkpoint.resume(fresh)
    assert fresh.progress == strategy.progress
    return fresh


# -- nothing old changes ----------------------------------------------------------------------------------------


def changes_of_old(make: Callable[[], StructureStrategy], folder: Path) -> tuple[StructureStrategy, set[str]]:
    """Learn all, saved and loaded after each structure; return what knows them, and whose predictions changed."""
    strategy, kept, changed_ones = learn(make(), 0), dict[str, Tensor](), set[str]()
    for number in range(1, len(strategy.stream.experiences)):
        known = strategy.network.structures
        now = predictions(strategy, known)
        changed_ones |= {name for name in kept if not torch.equal(kept[name], now[name])}
        kept |= {name: now[name] for name in known if name not in kept}
        strategy = learn(reloaded(strategy, make(), folder / str(number)), number)
    now = predictions(strategy, strategy.network.structures)
    return strategy, changed_ones | {name for name in kept if not torch.equal(kept[name], now[name])}


@pytest.mark.parametrize("rival", RIVALS)
def test_nothing_old_changes_by_a_bit(rival: str, samples: list[Sample], tmp_path: Path) -> None:
    strategy, changed_ones = changes_of_old(lambda: made(rival, samples), tmp_path)
    assert strategy.network.structures == STRUCTURES
    assert changed_ones == set()


@pytest.mark.parametrize(
    "rival",
    ["lora-base", *labels(["frozen_trunk", "frozen_trunk-last", "ssf", "adapter-base", *CONDITIONED])],
)
def test_norms_left_in_training_mode_would_be_found(
    rival: str, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same examination, of networks whose frozen norms go on with their running statistics."""
    monkeypatch.setattr(StructureUNet, "train", nn.Module.train)
    _, changed_ones = changes_of_old(lambda: made(rival, samples), tmp_path)
    assert changed_ones >= set(BASE)


@pytest.mark.parametrize(
    "rival", labels(name for name in RIVALS if not name.startswith(("piggyback", "packnet", "progressive")))
)
def test_each_trains_and_changes_what_is_its_own(rival: str, samples: list[Sample]) -> None:
    strategy = learn(made(rival, samples), 0)
    for number, name in enumerate(("nucleolus", "mitochondria"), start=1):
        before, fresh = state_of(strategy), dict[str, Tensor]()
        strategy.listeners = [lambda s, fresh=fresh: fresh or fresh.update(state_of(s))]
        learn(strategy, number)
        after = state_of(strategy)
        assert differing(before, after) == set()
        own = after.keys() - before.keys()
        marks = (f".own.{name}.", f"copies.{name}.")
        assert {key for key in own if not any(mark in key for mark in marks)} == set()
        # All that is new did learn after the first step: parameters, and the statistics of its own norms.
        assert differing(fresh, after) == own
        assert strategy.trained == own & {key for key, _ in strategy.network.named_parameters()}
        assert {key for key, p in strategy.network.named_parameters() if p.requires_grad} == strategy.trained


# -- the base ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rival", labels(BASE_OF))
def test_a_shared_base_is_the_same_to_the_bit(rival: str, samples: list[Sample]) -> None:
    name, options = BASE_OF[rival]
    strategy = learn(made(rival, samples), 0)
    other = learn(configured(name, samples, training=ONCE, **options), 0)
    assert strategy.base_key == other.base_key is not None
    assert list(state_of(strategy)) == list(state_of(other))
    assert differing(state_of(other), state_of(strategy)) == set()
    # As a run loads it: in either direction, into a network that was not trained.
    for one, trained in ((made(rival, samples), other), (configured(name, samples, **options), strategy)):
        one.network.load_state_dict(trained.network.state_dict())
        assert all(
            torch.equal(a, b)
            for a, b in zip(predictions(one, BASE).values(), predictions(trained, BASE).values(), strict=True)
        )


@pytest.mark.parametrize("rival", labels(["warm_copy", "warm_copy-multi_head", "warm_copy-decoder"]))
def test_a_copy_is_the_first_addition_of_fine_tuning(rival: str, samples: list[Sample]) -> None:
    """Each copy, also a later one: what fine-tuning and Multi-Head come to where it is their first, to the bit."""
    options = {k: v for k, v in RIVALS[rival][1].items() if k != "of"}
    name = "multi_head" if options or rival == "warm_copy-decoder" else "fine_tuning"
    training = TRAINING.model_copy(update={"gradient_clip": 1.0, "steps": 6})
    copied = learn(made(rival, samples, training=training))
    for structure in ADDED:
        experiences = (BASE, (structure,))
        tuned = learn(configured(name, samples, experiences, training=training, **options))
        mine, theirs = copied.network.copies[structure].state_dict(), state_of(tuned)
        rows = {
            key for key in theirs if any(f".{part}.{one}" in key for part in ("gates", "own") for one in BASE)
        }
        assert rows
        assert mine.keys() == theirs.keys() - rows
        assert differing(mine, theirs) == set()
        [expected], [found] = (predictions(one, [structure]).values() for one in (tuned, copied))
        assert torch.equal(expected, found)


def test_copies_and_base_stay_apart(samples: list[Sample]) -> None:
    strategy = learn(made("warm_copy", samples))
    network = strategy.network
    pointers = [parameter.data_ptr() for parameter in network.parameters()]
    assert len(set(pointers)) == len(pointers)
    with pytest.raises(StructureError, match="one at a time, and the base no more"):
        network.train_only(["dna"])
    with pytest.raises(StructureError, match="one at a time"):
        network.train_only(["nucleolus", "mitochondria"])
    with pytest.raises(StructureError, match="is here already"):
        network.add_copy("nucleolus", seed=0)
    x = torch.randn(3, 1, 4, 8, 8)
    names = ["nucleolus", "dna", "mitochondria"]
    with torch.no_grad():
        joint = network.eval()(x, names)
        for place, name in enumerate(names):
            torch.testing.assert_close(joint[place : place + 1], network(x[place : place + 1], name))
    network.train()
    with pytest.raises(StructureError, match="cannot be mixed in a training batch"):
        network(x, names)
    assert set(network.gate_weights("nucleolus")) == set(network.gate_weights("dna"))


# -- conditions -------------------------------------------------------------------------------------------------


@EACH_KIND
def test_a_structure_that_comes_again_is_learned_further(rival: str, samples: list[Sample]) -> None:
    strategy = learn(made(rival, samples, AGAIN), 0, 1, 2)
    before, old = state_of(strategy), predictions(strategy, STRUCTURES)
    learn(strategy, 3)
    new = predictions(strategy, STRUCTURES)
    if rival != "progressive":  # in which another column is made of the first, that later ones read
        assert state_of(strategy).keys() == before.keys()
    assert {name for name in STRUCTURES if not torch.equal(old[name], new[name])} == {"nucleolus"}
    if not rival.startswith("packnet"):  # whose structures share tensors, and not their numbers
        assert {key for key in differing(before, state_of(strategy)) if "nucleolus" not in key} == set()


class KilledError(Exception):
    """Stands for the end of a process."""


@EACH_KIND
def test_resumed_in_the_middle_it_ends_with_the_same_bits(
    rival: str, samples: list[Sample], tmp_path: Path
) -> None:
    """In an addition, and where a structure comes again."""
    whole = made(rival, samples, AGAIN, training=TRAINING)
    for number in range(4):
        if number in (2, 3):  # what is interrupted starts from here
            whole.finish_experience()
            StrategyCheckpoint(tmp_path / str(number)).save(whole)
        learn(whole, number)
    for number in (2, 3):
        checkpoint, cut = (
            StrategyCheckpoint(tmp_path / str(number)),
            made(rival, samples, AGAIN, training=TRAINING),
        )
        checkpoint.resume(cut)
        cut.on_validation.append(checkpoint.save)

        def kill(strategy: StructureStrategy) -> None:
            if strategy.progress.step == 3:  # a checkpoint was made after step 2
                raise KilledError

        cut.listeners.append(kill)
        with pytest.raises(KilledError):
            learn(cut, number)
        again = made(rival, samples, AGAIN, training=TRAINING)
        checkpoint.resume(again)
        assert (again.progress.experience, again.progress.step) == (number, 2)
        learn(again, *range(number, 4))
        assert list(state_of(again)) == list(state_of(whole))
        assert differing(state_of(whole), state_of(again)) == set()
        assert again.progress.curve == whole.progress.curve


@EACH_KIND
def test_accumulation_masks_and_one_image_are_learned_from(
    rival: str, samples: list[Sample], tmp_path: Path
) -> None:
    masked = one_masked_image(samples, tmp_path)
    training = ONCE.model_copy(update={"batch_size": 4, "accumulate": 2})
    losses: list[float] = []
    strategy = made(rival, masked, training=training)
    strategy.listeners.append(lambda s: losses.append(float(s.last_loss)))
    learn(strategy)
    assert len(losses) == 12
    assert max(losses) < 100
    figures = strategy.evaluate(strategy.stream.known_after(2))
    assert tuple(figures) == STRUCTURES
    assert max(figure["mse"] for figure in figures.values()) < 100


@pytest.mark.slow
@pytest.mark.parametrize("rival", [name for name in RIVALS if "-" not in name])
def test_a_base_that_others_depend_on_is_not_trained_again(rival: str, samples: list[Sample]) -> None:
    strategy = learn(made(rival, samples, STREAM[:2]))
    before = predictions(strategy, STRUCTURES[:3])
    with pytest.raises(
        RepmodeError, match=r"base no more|base cannot be trained any more|cannot be trained again"
    ):
        learn(strategy, 0)
    after = predictions(strategy, STRUCTURES[:3])
    assert all(torch.equal(before[name], after[name]) for name in before)


# -- costs ------------------------------------------------------------------------------------------------------


#: (C_in, C_out) of the blocks of encoder, bottleneck and decoder; of the down and the up layer.
BLOCKS = [(1, 4), (4, 4), (4, 8), (8, 8), (8, 4), (4, 4)]
RESAMPLING = [(4, 4), (8, 4)]


def expected_costs(rival: str, arrival: int) -> tuple[int, int]:
    """Return parameters and bytes that the structure of experience `arrival` adds, for width 4 and depth 1."""
    name, options = RIVALS[rival]
    if name == "progressive":
        column = expected_numbers("warm_copy-decoder")
        laterals = arrival * (sum(a * b for a, b in BLOCKS[1:]) + 4)  # of the base and of each column before
        return column + laterals, 4 * (column + laterals)
    if name not in ("piggyback", "packnet"):
        numbers = expected_numbers(rival)
        return numbers, 4 * numbers
    layers = [options.get("kernel", 3) ** 3 * a * b for a, b in BLOCKS] + [8 * a * b for a, b in RESAMPLING]
    bits = sum(-(-count // 8) for count in layers)
    own = 4 * options.get("kernel", 3) ** 3
    if options.get("norm", "own") == "own":
        own += 4 * sum(c_out for _, c_out in [*BLOCKS, *RESAMPLING])
    if name == "piggyback":
        return sum(layers) + own, bits + 4 * own
    share, taken = options.get("prune", 0.75), 0
    for count in layers:
        for _ in range(arrival):  # what those before leave free
            count = round(share * count)
        taken += count - round(share * count)
    return taken + own, bits + 4 * own


def expected_numbers(rival: str) -> int:
    """Return the numbers that a structure adds, counted from the publications for width 4 and depth 1."""
    name, options = RIVALS[rival]
    kernel = options.get("kernel", 3)
    taps = kernel**3
    blocks, (down, up) = BLOCKS, RESAMPLING
    outputs = [c_out for _, c_out in [*blocks, down, up]]
    norms = 4 * sum(outputs)  # weight, bias, and both running statistics
    head = 4 * taps
    own_norms = norms if options.get("norm", "own") == "own" else 0
    whole = taps * sum(a * b for a, b in blocks) + 8 * (4 * 4 + 8 * 4) + norms + head
    if rival in CONDITIONED:
        return CONDITIONED[rival]
    if name == "lora":
        rank = options["rank"]
        low = sum(rank * (a * taps + b) for a, b in blocks) + sum(rank * (a * 8 + b) for a, b in (down, up))
        return low + own_norms + head
    if name == "ssf":
        return 4 * sum(outputs) + head
    if name == "adapter":
        channels = options.get("bottleneck", 4)
        return sum(2 * c * channels + channels + c for _, c in blocks) + own_norms + head
    if name == "norm_only":
        return norms + head
    if name == "frozen_trunk":
        if options.get("head") == "last":
            return head
        return taps * (8 * 4 + 4 * 4) + 8 * 8 * 4 + 4 * 3 * 4 + head
    if options.get("of") == "multi_head":
        return whole
    # RepMode's: 27 + 1 + 1 numbers for the taps of conv3, conv1 and avg3, and a gate for each expert and channel.
    channels = sum(b for _, b in blocks) + 1
    return 29 * (sum(a * b for a, b in blocks) + 4) + 3 * channels + 8 * (4 * 4 + 8 * 4) + norms


#: (title, structure, metric) -> value.
Costs = dict[tuple[str, str, str], float]


@pytest.fixture(scope="module")
def costs_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Costs]:
    """Return a function that gives the cost rows of a benchmark of all rivals that are variants, or that are not."""

    @cache
    def run(variants: bool) -> Costs:
        folder = tmp_path_factory.mktemp("costs")
        chosen = [RIVALS[rival] for rival in RIVALS if is_variant(rival) == variants]
        strategies = tuple(StrategyConfig(name=name, **options) for name, options in chosen)
        config = tiny(make_manifest(folder), folder / "out")
        config = changed(
            config,
            training=config.training.model_copy(update={"steps": 2, "base_steps": 2}),
            strategies=(StrategyConfig(name="fine_tuning"), *strategies),
        )
        rows = ResultsTable.read(run_benchmark(config) / "results.csv")
        return {
            (row.strategy, row.structure, row.metric): row.value for row in rows if row.structure in ADDED
        }

    return run


@pytest.mark.slow
@EACH
def test_what_a_structure_adds_is_counted(rival: str, costs_of: Callable[[bool], Costs]) -> None:
    costs = costs_of(is_variant(rival))
    name, options = RIVALS[rival]
    title = StrategyConfig(name=name, **options).title
    for arrival, structure in enumerate(ADDED, start=1):
        found = costs[title, structure, "added_parameters"], costs[title, structure, "added_bytes"]
        assert found == expected_costs(rival, arrival)
        assert costs[title, structure, "train_seconds"] > 0
        assert np.isfinite(costs[title, structure, "r2"])


def test_options_are_refused_where_they_say_nothing() -> None:
    for options, message in (
        ({"name": "warm_copy", "kernel": 5}, "kernel is an option of warm_copy with of: multi_head"),
        ({"name": "warm_copy", "head": "last"}, "head is an option of warm_copy with of: multi_head"),
        (
            {"name": "ssf", "norm": "base"},
            "norm is an option of experts_frozen, lora, adapter, piggyback, packnet",
        ),
        ({"name": "adapter", "rank": 2}, "rank is an option of lora"),
        ({"name": "lora", "rank": 0}, "greater than or equal to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            StrategyConfig(**options)


def test_processes_that_train_together_are_refused_by_name(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setenv("MASTER_PORT", "1")
    config = changed(tiny(manifest, tmp_path), strategies=(StrategyConfig(name="lora"),))
    with pytest.raises(RepmodeError, match="a benchmark"):
        run_benchmark(config)
