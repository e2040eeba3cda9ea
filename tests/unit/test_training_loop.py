"""The course of a strategy's training: seeds, schedule, selection, precision, and what is a mistake."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from tiny_strategies import (
    ARCHITECTURE,
    BASE,
    BUILD,
    PATCH,
    SHAPE,
    STREAM,
    STRUCTURES,
    TRAINING,
    build,
    differing,
    experts_frozen,
    learn,
    predictions,
    state_of,
    stream_of,
)
from torch import Tensor

from repmode_cl.data.sample import Sample
from repmode_cl.errors import UnknownStructureError
from repmode_cl.nn import RepModeUNet
from repmode_cl.scenarios import PatchSampling, stream_of_samples
from repmode_cl.strategies import ExpertsFrozen, StructureStrategy

EACH = pytest.mark.parametrize("name", BUILD)


# -- seeds ------------------------------------------------------------------------------------------------------


@EACH
def test_a_seed_decides_everything(samples: list[Sample], name: str) -> None:
    torch.manual_seed(1)
    first = learn(build(name, samples, seed=3))
    torch.manual_seed(2)  # whatever state the global generator is in
    again = learn(build(name, samples, seed=3))
    other = learn(build(name, samples, seed=4), 0)
    assert differing(state_of(first), state_of(again)) == set()
    assert first.progress.curve == again.progress.curve
    assert first.evaluate(first.stream.test) == again.evaluate(again.stream.test)
    assert first.progress.curve[: len(other.progress.curve)] != other.progress.curve
    changed = differing(state_of(other), state_of(first))
    assert changed >= {n for n in state_of(other) if n.endswith("weight")}


# -- schedule and selection -------------------------------------------------------------------------------------


@EACH
def test_the_best_validated_state_is_what_an_experience_ends_with(samples: list[Sample], name: str) -> None:
    training = TRAINING.model_copy(update={"validate_every": 1})
    strategy = build(name, samples, training=training)
    states: dict[int, dict[str, Tensor]] = {}

    def wreck(strategy: StructureStrategy) -> None:
        if strategy.progress.step == 4:
            with torch.no_grad():
                for parameter in strategy.optimized_param_id.values():
                    parameter.mul_(-30)

    strategy.listeners.append(wreck)
    strategy.on_validation.append(lambda s: states.update({s.progress.step: state_of(s)}))
    for number in range(len(strategy.stream.experiences)):
        states.clear()
        curve = len(strategy.progress.curve)
        learn(strategy, number)
        mse: dict[int, list[float]] = {}
        for row in strategy.progress.curve[curve:]:
            assert row["experience"] == number
            if row["metric"] == "mse":
                mse.setdefault(row["train_step"], []).append(row["value"])
        assert list(mse) == list(states) == [1, 2, 3, 4]
        mean = {step: sum(values) / len(values) for step, values in mse.items()}
        best = min(mean, key=lambda step: mean[step])
        assert best < 4
        assert (strategy.selection.step, strategy.selection.best) == (best, mean[best])
        assert differing(states[best], state_of(strategy)) == set()
        assert differing(states[4], state_of(strategy))


def test_without_a_validation_image_the_last_state_stays(samples: list[Sample]) -> None:
    strategy = build("experts_frozen", [s for s in samples if s.split != "val"])
    last: list[dict[str, Tensor]] = []
    strategy.listeners.append(lambda s: last.append(state_of(s)))
    learn(strategy)
    assert strategy.progress.curve == []
    assert differing(last[-1], state_of(strategy)) == set()
    assert set(predictions(strategy, STRUCTURES)) == set(STRUCTURES)


def test_each_experience_has_its_own_schedule_and_additions_their_rate(samples: list[Sample]) -> None:
    stream = stream_of(samples)
    rates: dict[int, list[float]] = {}
    strategy = ExpertsFrozen(
        model=RepModeUNet(ARCHITECTURE, BASE), stream=stream, training=TRAINING, patch=PATCH,
        addition_learning_rate=0.1,
    )  # fmt: skip

    def note(strategy: StructureStrategy) -> None:
        rates.setdefault(strategy.progress.experience, []).append(strategy.optimizer.param_groups[0]["lr"])

    strategy.listeners.append(note)
    learn(strategy)
    assert max(rates[0]) <= 0.02
    assert rates[1] == rates[2]  # begun afresh
    assert rates[1] == pytest.approx([5 * rate for rate in rates[0]])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns_too(samples: list[Sample], precision: str) -> None:
    training = TRAINING.model_copy(update={"precision": precision, "gradient_clip": 1.0})
    stream = stream_of_samples(samples, STREAM, PatchSampling((6, 8, 8)), count=lambda _, __: 8, seed=0)
    runs = [learn(experts_frozen(stream, training=training), 0, 1) for _ in range(2)]
    states = [state_of(run) for run in runs]
    assert differing(*states) == set()
    assert all(tensor.isfinite().all() for tensor in states[0].values())
    assert {tensor.dtype for name, tensor in states[0].items() if name.endswith("weight")} == {torch.float32}
    full = state_of(learn(experts_frozen(stream), 0))
    assert differing(full, states[0])


def test_a_strategy_learns(samples: list[Sample]) -> None:
    """Not a benchmark: sixty small steps must fit a blur, or the loop is wrong somewhere."""
    training = TRAINING.model_copy(update={"steps": 60, "validate_every": 30, "weight_decay": 0.0})
    stream = stream_of_samples(samples, [("dna",)], PatchSampling(PATCH), count=lambda _, __: 120, seed=0)
    for name in BUILD:
        figures = learn(BUILD[name](stream, training=training)).evaluate(stream.test)
        assert figures["dna"]["r2"] > 0.5, (name, figures)


# -- mistakes ---------------------------------------------------------------------------------------------------


@EACH
def test_what_was_not_learned_is_not_predicted(samples: list[Sample], name: str) -> None:
    strategy = learn(build(name, samples), 0)
    volume = torch.zeros(SHAPE)
    for unknown in ("nucleolus", "golgi_apparatus"):
        with pytest.raises(UnknownStructureError, match=unknown):
            strategy.predict(volume, unknown)
        with pytest.raises(UnknownStructureError, match=unknown):
            strategy.network(volume[None, None], [unknown])
    with pytest.raises(UnknownStructureError, match="nucleolus"):
        strategy.evaluate([e for e in strategy.stream.test if strategy.stream.names_of(e) == ("nucleolus",)])
    assert "nucleolus" not in strategy.network.structures  # evaluating grows nothing


def test_the_network_ends_where_it_can_be_used(samples: list[Sample]) -> None:
    """A network that was evaluated in the middle of training goes on training, its frozen norms do not."""
    strategy = build("experts_frozen", samples)
    modes = []

    def look(strategy: StructureStrategy) -> None:
        network = cast(RepModeUNet, strategy.network)
        norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm3d)]
        modes.append({(m.training, m.weight.requires_grad) for m in norms})

    strategy.on_validation.append(look)
    strategy.listeners.append(look)
    learn(strategy)
    assert modes[: len(modes) // 3] == [{(True, True)}] * 6
    assert all(found == {(True, True), (False, False)} for found in modes[6:])
