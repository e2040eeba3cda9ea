"""Options that make baselines as strong as their publications, and the images that select a state."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from tiny_strategies import BASE, PATCH, STREAM, TRAINING, configured, differing, learn, state_of

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError
from repmode_cl.nn import Architecture, RepModeUNet
from repmode_cl.strategies import EWC, FineTuning, LwF, StructureStrategy, SynapticIntelligence
from repmode_cl.strategies.plugins.checkpoint import StrategyCheckpoint
from repmode_cl.strategies.registry import strategy_class

TWO = STREAM[:2]
SMALL = Architecture(width=2, depth=1, experts=("conv3",))
ONE_STEP = TRAINING.model_copy(
    update={"steps": 1, "base_steps": 2, "schedule": "constant", "weight_decay": 0.0, "validate_every": None}
)


class KilledError(Exception):
    """Stands for the end of a process."""


def ended_twice(fresh: Any, folder: Path, kill_at: tuple[int, int]) -> tuple[Any, Any]:
    """Return a strategy that learned all at once, and one that was interrupted after a step of an experience."""

    def run(name: str, dies: bool = False) -> StructureStrategy:
        strategy: StructureStrategy = fresh()
        checkpoint = StrategyCheckpoint(folder / name)
        checkpoint.resume(strategy)
        strategy.on_validation.append(checkpoint.save)

        def kill(strategy: StructureStrategy) -> None:
            if dies and kill_at == (strategy.progress.experience, strategy.progress.step):
                raise KilledError

        strategy.listeners.append(kill)
        for number in range(strategy.progress.experience, len(strategy.stream.experiences)):
            learn(strategy, number)
            checkpoint.save(strategy)
        return strategy

    whole = run("whole")
    with pytest.raises(KilledError):
        run("cut", dies=True)
    return whole, run("cut")


# -- elastic weight consolidation -------------------------------------------------------------------------------


def test_gauss_newton_importances_are_those_of_the_jacobian(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all rows of a Hadamard matrix in place of random signs they have no error: 2 / n of the diagonal of J'J."""
    mask = tmp_path / "mask.npy"
    [sample] = [s for s in samples if s.image_id == f"{BASE[0]}-0"]
    np.save(mask, (np.random.default_rng(0).random(sample.shape) > 0.4).astype(np.float32))
    size = int(np.prod(PATCH))
    options: dict[str, Any] = {"fisher": "gauss_newton", "probes": size}
    training = ONE_STEP.model_copy(update={"steps": 2})
    masked = [replace(sample, mask=mask)]
    strategy = configured("ewc", masked, ((BASE[0],),), training=training, **options)
    assert isinstance(strategy, EWC)
    assert strategy.strength == 1.0
    drawn = iter(hadamard(size))

    def sign_bits(low: int, high: int, shape: Any, generator: torch.Generator) -> torch.Tensor:
        assert (low, high) == (0, 2)
        return torch.from_numpy((next(drawn).reshape(shape) + 1) // 2)

    with monkeypatch.context() as patch:
        patch.setattr("repmode_cl.strategies.ewc.torch.randint", sign_bits)
        learn(strategy, 0)
    assert next(drawn, None) is None
    x, y = PatchDataset(masked, patch=PATCH, seed=0, length=1)[0]
    network = strategy.network.eval()
    names = ("encoder.0.1.experts.conv3.weight", "decoder.0.1.norm.base.weight", "head.experts.conv1.weight")
    weights = [network.get_parameter(name) for name in names]
    expected = [torch.zeros_like(weight) for weight in weights]
    counts = y[1].flatten() > 0
    assert 0 < int(counts.sum()) < size
    for voxel in network(x[None], [BASE[0]])[0, 0].flatten()[counts]:
        for total, gradient in zip(
            expected, torch.autograd.grad(voxel, weights, retain_graph=True), strict=True
        ):
            total += 2 / int(counts.sum()) * gradient.square()
    for name, total in zip(names, expected, strict=True):
        found = strategy.importance[name]
        torch.testing.assert_close(found, total, rtol=1e-3, atol=1e-4 * float(total.max()))
        assert total.max() > 1e-8
    assert not [name for name in strategy.importance if ".gates." in name]


def test_gauss_newton_importances_need_no_targets_and_depend_on_the_seed(samples: list[Sample]) -> None:
    def importances(seed: int, targets: bool = True) -> torch.Tensor:
        strategy = configured("ewc", samples, TWO, training=ONE_STEP, seed=seed, fisher="gauss_newton")
        assert isinstance(strategy, EWC)
        strategy.experience, strategy.is_training = strategy.stream.train[0], True
        strategy.model_adaptation()
        if not targets:
            images = tuple(replace(image, target=image.signal) for image in strategy.stream.images[0])
            strategy._stream = replace(strategy.stream, images=(images, *strategy.stream.images[1:]))
        return strategy.importance_of(0)["head.experts.conv3.weight"]

    first = importances(0)
    assert torch.equal(first, importances(0))
    assert torch.equal(first, importances(0, targets=False))
    assert not torch.equal(first, importances(1))


def test_importances_of_before_decay(samples: list[Sample]) -> None:
    options: dict[str, Any] = {"fisher": "gauss_newton", "decay": 0.25}
    strategy = learn(configured("ewc", samples, TWO, training=ONE_STEP, **options), 0)
    assert isinstance(strategy, EWC)
    first = {name: tensor.clone() for name, tensor in strategy.importance.items()}
    learn(strategy, 1)
    second = strategy.importance_of(1)
    for name, total in strategy.importance.items():
        torch.testing.assert_close(total, 0.25 * first[name] + second[name])


def test_ewc_refuses_what_does_not_fit(samples: list[Sample]) -> None:
    stream = configured("ewc", samples, TWO).stream

    def make(**options: Any) -> None:
        EWC(model=RepModeUNet(SMALL, BASE), stream=stream, **options)

    for options, message in (
        ({"fisher": "exact"}, "give empirical or gauss_newton"),
        ({"probes": 2}, "with fisher='gauss_newton'"),
        ({"decay": 1.5}, "give a number from 0 to 1"),
        ({"fisher": "gauss_newton", "criterion": torch.nn.L1Loss()}, "another criterion is given"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(**cast(Any, options))
    make(fisher="gauss_newton", criterion=torch.nn.MSELoss())


# -- synaptic intelligence --------------------------------------------------------------------------------------


def test_damping_divides_as_the_publication_says(samples: list[Sample]) -> None:
    """Of one training with two dampings, the products of importance and divisor are the same: the path."""
    paths = []
    for damping in (None, 0.1):
        strategy = configured("synaptic_intelligence", samples, TWO, training=ONE_STEP, damping=damping)
        assert isinstance(strategy, SynapticIntelligence)
        assert strategy.damping == (damping or 1e-3)
        before = {name: p.detach().clone() for name, p in strategy.shared().items()}
        learn(strategy, 0)
        name = "bottleneck.0.experts.conv3.weight"
        moved = strategy.shared()[name].detach() - before[name]
        paths.append(strategy.importance[name] * (moved.square() + strategy.damping))
    torch.testing.assert_close(*paths)
    assert paths[0].max() > 0
    network = RepModeUNet(SMALL, BASE)
    with pytest.raises(ConfigError, match="must be more than 0"):
        SynapticIntelligence(model=network, damping=0.0)


# -- learning without forgetting --------------------------------------------------------------------------------


def test_warming_up_trains_only_what_is_new(samples: list[Sample]) -> None:
    training = TRAINING.model_copy(update={"steps": 6, "validate_every": 1})
    strategy = learn(configured("lwf", samples, TWO, training=training, warm_up=0.5), 0)
    assert isinstance(strategy, LwF)
    assert strategy.warm_up_steps(0) == 0  # the base
    states, distilled = [state_of(strategy)], []

    def look(strategy: StructureStrategy) -> None:
        states.append(state_of(strategy))
        distilled.append(len(cast(LwF, strategy)._students))

    strategy.listeners.append(look)
    learn(strategy, 1)
    assert distilled == [0, 0, 0, 2, 2, 2]
    rows = {name for name in states[1] if name.endswith(".gates.nucleolus")}
    assert len(rows) == 7
    for step in (2, 3):  # all that is frozen, the statistics of norms too
        assert differing(states[step - 1], states[step]) <= rows
        assert differing(states[step - 1], states[step])
    assert differing(states[0], states[3]) == set()
    later = differing(states[3], states[4])
    assert {"encoder.0.0.experts.conv3.weight", "encoder.0.0.norm.base.running_mean"} <= later
    assert {name for name in later if name.endswith(".gates.dna")}
    assert strategy.trained == {name for name, _ in strategy.network.named_parameters()}


def test_warming_up_ends_before_the_last_step_and_needs_a_new_structure(samples: list[Sample]) -> None:
    strategy = learn(configured("lwf", samples, (*TWO, ("nucleolus",)), warm_up=0.99), 0, 1)
    assert isinstance(strategy, LwF)
    assert strategy.warm_up_steps(1) == TRAINING.steps - 1 == 3
    assert strategy.warm_up_steps(2) == 0
    learn(strategy, 2)
    cost = LwF.cost_of_step(StrategyConfig(name="lwf", warm_up=0.25), TRAINING, 4)
    assert cost == pytest.approx(1 + 0.75 * 4 * 4 / 3)
    with pytest.raises(ConfigError, match="give a share of the steps"):
        LwF(model=strategy.network, warm_up=1.0)


@pytest.mark.parametrize("kill_at", [(1, 3), pytest.param((1, 5), marks=pytest.mark.slow)])
def test_an_interrupted_warm_up_ends_with_the_same_bits(
    samples: list[Sample], tmp_path: Path, kill_at: tuple[int, int]
) -> None:
    training = TRAINING.model_copy(update={"steps": 8})  # validated every two steps, warm for four

    def fresh() -> StructureStrategy:
        return configured("lwf", samples, TWO, training=training, warm_up=0.5)

    whole, again = ended_twice(fresh, tmp_path, kill_at)
    assert differing(state_of(whole), state_of(again)) == set()
    assert again.progress.curve == whole.progress.curve


# -- what selects a state ---------------------------------------------------------------------------------------

OFTEN = TRAINING.model_copy(update={"steps": 6, "base_steps": 6, "validate_every": 1, "schedule": "constant"})
KNOWN = OFTEN.model_copy(update={"select_by": "known"})


def selected(name: str, samples: list[Sample], **options: Any) -> list[tuple[int, int, int]]:
    """Return of each experience after the base the step that was kept, and the best ones by the new and by all."""
    strategy, found = configured(name, samples, training=KNOWN, **options), []
    errors: dict[int, dict[str, list[float]]] = {}

    def look(strategy: StructureStrategy) -> None:
        number = int(strategy.experience.current_experience)
        shadow = copy.copy(strategy)  # evaluating leaves what the strategy itself has
        known = dict.fromkeys(n for names in strategy.stream.experiences[: number + 1] for n in names)
        for structure in known:
            place = next(k for k, names in enumerate(strategy.stream.experiences) if structure in names)
            figures = shadow.evaluate([strategy.stream.val[place]])
            errors.setdefault(number, {}).setdefault(structure, []).append(figures[structure]["mse"])

    strategy.on_validation.append(look)
    for number, names in enumerate(strategy.stream.experiences):
        learn(strategy, number)
        table = errors[number]
        assert {len(column) for column in table.values()} == {6}
        of_new = np.mean([table[structure] for structure in names], axis=0)
        of_known = np.mean(list(table.values()), axis=0)
        if number:
            found.append((strategy.selection.step, 1 + int(of_new.argmin()), 1 + int(of_known.argmin())))
        kept = {n: strategy.evaluate([v])[n]["mse"] for n, v in _places(strategy, number)}
        assert np.mean(list(kept.values())) == pytest.approx(of_known.min(), rel=1e-5)
        assert {row["structure"] for row in strategy.progress.curve if row["experience"] == number} == set(
            names
        )
    return found


def _places(strategy: StructureStrategy, number: int) -> list[tuple[str, Any]]:
    experiences = strategy.stream.experiences[: number + 1]
    names = dict.fromkeys(name for group in experiences for name in group)
    return [
        (name, strategy.stream.val[next(k for k, group in enumerate(experiences) if name in group)])
        for name in names
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("fine_tuning", marks=pytest.mark.slow),
        pytest.param("replay", marks=pytest.mark.slow),
        "synaptic_intelligence",
    ],
)
def test_all_known_structures_select_the_state(samples: list[Sample], tmp_path: Path, name: str) -> None:
    opposed = []
    for sample in samples:  # what is learned later is the negative of what was
        if sample.structure not in BASE:
            path = tmp_path / sample.target.name
            np.save(path, -np.load(sample.target))
            sample = replace(sample, target=path)
        opposed.append(sample)
    steps = selected(name, opposed)
    assert [kept for kept, _, _ in steps] == [known for _, _, known in steps]
    if name == "synaptic_intelligence":  # here it matters
        assert any(new != known for _, new, known in steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["experts_frozen", "multi_net", pytest.param("lora", marks=pytest.mark.slow)]
)
def test_where_nothing_old_changes_both_select_the_same(samples: list[Sample], name: str) -> None:
    states = []
    for training in (OFTEN, KNOWN):
        states.append(state_of(learn(configured(name, samples, TWO, training=training))))
    assert differing(*states) == set()


def test_a_structure_without_images_to_validate_on_is_not_selected_by_others(samples: list[Sample]) -> None:
    without = [s for s in samples if s.structure != "nucleolus" or s.split != "val"]
    strategy = learn(configured("fine_tuning", without, TWO, training=KNOWN))
    assert strategy.selection.tensors == {}
    # And one that came before is left out.
    strategy = learn(configured("fine_tuning", without, training=KNOWN))
    assert strategy.selection.step > 0


@pytest.mark.slow
def test_an_interrupted_selection_by_all_ends_with_the_same_bits(
    samples: list[Sample], tmp_path: Path
) -> None:
    def fresh() -> StructureStrategy:
        return configured("fine_tuning", samples, TWO, training=KNOWN)

    whole, again = ended_twice(fresh, tmp_path, (1, 3))
    assert differing(state_of(whole), state_of(again)) == set()
    assert (again.selection.step, again.selection.best) == (whole.selection.step, whole.selection.best)
    assert again.progress.curve == whole.progress.curve


def test_what_cannot_select_by_all_refuses_it(samples: list[Sample]) -> None:
    from avalanche.training.plugins import EarlyStoppingPlugin

    section = StrategyConfig(name="avalanche:Naive")
    config = Config(name="tiny", training=KNOWN, strategies=(section,))
    with pytest.raises(ConfigError, match="select_by is known, and a strategy of Avalanche"):
        strategy_class(section).check(config, section, TWO)
    stream = configured("fine_tuning", samples, TWO).stream
    network = RepModeUNet(SMALL, BASE)
    plugin = EarlyStoppingPlugin(patience=1, val_stream_name="val")
    with pytest.raises(ConfigError, match="select_by is known, and EarlyStoppingPlugin selects"):
        FineTuning(model=network, stream=stream, training=KNOWN, plugins=[plugin])
