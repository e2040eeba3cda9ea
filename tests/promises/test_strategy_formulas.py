"""Penalties, projections and distillation, each against its formula computed another way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tiny_strategies import BASE, PATCH, STREAM, TRAINING, configured, differing, learn, state_of
from torch import Tensor

from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError
from repmode_cl.strategies import AGEM, EWC, MAS, DERPlusPlus, LwF, StructureStrategy, SynapticIntelligence
from repmode_cl.training import masked_mse

TWO = STREAM[:2]
ONE_STEP = TRAINING.model_copy(
    update={"steps": 1, "base_steps": 2, "schedule": "constant", "weight_decay": 0.0, "validate_every": None}
)


@pytest.mark.parametrize("foreground", [0.0, 1.0])
@pytest.mark.parametrize(("name", "kind"), [("ewc", EWC), ("mas", MAS)])
def test_importances_are_those_of_the_publication(
    samples: list[Sample], name: str, kind: type, foreground: float
) -> None:
    strategy = learn(configured(name, samples, TWO, training=ONE_STEP, foreground=foreground), 0)
    assert isinstance(strategy, kind)
    network = strategy.network.eval()
    images = [s for s in samples if s.structure in BASE and s.split == "train"]
    patches = PatchDataset(images, patch=PATCH, seed=0, length=6, foreground=foreground)
    assert {patches.sample_of(item) for item in range(6)} == set(
        images
    )  # more than four patches were trained on
    weight = network.get_parameter("encoder.0.1.experts.conv3.weight")
    expected = torch.zeros_like(weight)
    for item in range(6):
        x, y = patches[item]
        output = network(x[None], [patches.structure_of(item)])
        quantity = (output - y[None]).square().mean() if name == "ewc" else output.square().mean()
        [gradient] = torch.autograd.grad(quantity, [weight])
        expected += (gradient.square() if name == "ewc" else gradient.abs()) / 6
    importance = cast(Any, strategy).importance["encoder.0.1.experts.conv3.weight"]
    torch.testing.assert_close(importance, expected.detach(), rtol=1e-5, atol=1e-9)
    assert not [n for n in cast(Any, strategy).importance if ".gates." in n]


@pytest.mark.parametrize("name", ["ewc", "mas"])
def test_importances_are_of_each_image_however_batches_are_made_up(samples: list[Sample], name: str) -> None:
    """Batches of one structure, and fewer steps than images: what mattered to both structures counts still."""
    images = [s for s in samples if s.structure in BASE and s.split == "train"]
    shown: list[str] = []
    for structures in (None, 1):
        training = ONE_STEP.model_copy(
            update={"structures_per_batch": structures, "steps": 1, "base_steps": 1}
        )
        strategy = configured(name, samples, TWO, training=training)
        assert isinstance(strategy, (EWC, MAS))
        forward = strategy.model.forward

        def spy(x: Tensor, names: list[str], forward: Any = forward) -> Tensor:
            shown.extend(names)
            return cast(Tensor, forward(x, names))

        strategy.experience, strategy.is_training = strategy.stream.train[0], True
        strategy.model_adaptation()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(strategy.model, "forward", spy)
            strategy.importance_of(0)
        assert sorted(shown) == sorted(image.structure for image in images)
        shown.clear()


def test_importances_move_nothing(samples: list[Sample]) -> None:
    """Norms too stay as they are: the patches are predicted in evaluation mode."""
    strategy = configured("ewc", samples, TWO, training=ONE_STEP)
    strategy.train(strategy.stream.train[0], eval_streams=[])
    before, training = state_of(strategy), strategy.model.training
    strategy.after_experience(0)
    assert differing(before, state_of(strategy)) == set()
    assert strategy.model.training == training


def test_the_penalty_pulls_as_its_derivative_says(samples: list[Sample]) -> None:
    strategy = learn(configured("ewc", samples, TWO, training=ONE_STEP, strength=3.0), 0)
    assert isinstance(strategy, EWC)
    strategy.experience = strategy.stream.train[1]
    parameters = strategy.shared()
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.1)
            parameter.grad = torch.ones_like(parameter)
    penalty = sum(
        1.5 * (strategy.importance[name] * (p - strategy.anchor[name]).square()).sum()
        for name, p in parameters.items()
    )
    expected = torch.autograd.grad(cast(Tensor, penalty), list(parameters.values()))
    strategy.adjust_gradients()
    for parameter, pull in zip(parameters.values(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, 1 + pull)


def test_importances_of_experiences_are_summed(samples: list[Sample]) -> None:
    strategy = learn(configured("mas", samples, TWO, training=ONE_STEP), 0)
    assert isinstance(strategy, MAS)
    first = {name: tensor.clone() for name, tensor in strategy.importance.items()}
    learn(strategy, 1)
    second = strategy.importance_of(1)
    for name, total in strategy.importance.items():
        torch.testing.assert_close(total, first[name] + second[name])
        torch.testing.assert_close(strategy.anchor[name], strategy.network.get_parameter(name).detach())


def test_synaptic_intelligence_follows_the_path(samples: list[Sample]) -> None:
    """Of two steps without a penalty, whose gradients and updates are watched from outside."""
    strategy = configured(
        "synaptic_intelligence", [s for s in samples if s.split != "val"], TWO, training=ONE_STEP
    )
    assert isinstance(strategy, SynapticIntelligence)
    name = "bottleneck.0.experts.conv3.weight"
    weight = strategy.network.get_parameter(name)
    start, path, before = weight.detach().clone(), torch.zeros_like(weight), [weight.detach().clone()]

    def look(strategy: StructureStrategy) -> None:
        nonlocal path
        path = path - weight.grad * (weight.detach() - before[-1])
        before.append(weight.detach().clone())

    strategy.listeners.append(look)
    learn(strategy, 0)
    assert len(before) == 3
    expected = path.clamp_min(0) / ((weight.detach() - start).square() + strategy.damping)
    torch.testing.assert_close(strategy.importance[name], expected.detach())
    assert strategy.importance[name].max() > 0


@pytest.mark.parametrize("selected", [2, 4])
def test_the_path_is_without_the_penalty_and_ends_at_the_kept_state(
    samples: list[Sample], selected: int
) -> None:
    """Of a second experience with a strong penalty, which keeps the state after step 2 of 4, or the last."""
    training = ONE_STEP.model_copy(update={"steps": 4, "validate_every": 1})
    strategy = learn(configured("synaptic_intelligence", samples, TWO, training=training, strength=50.0), 0)
    assert isinstance(strategy, SynapticIntelligence)
    name = "bottleneck.0.experts.conv3.weight"
    weight = strategy.network.get_parameter(name)
    importance, anchor = strategy.importance[name].clone(), strategy.anchor[name].clone()
    start, before = weight.detach().clone(), weight.detach().clone()
    path, pulls = torch.zeros_like(weight), []
    judge = strategy._validation_figures

    def judged(*given: Any) -> Any:
        figures, _, known = judge(*given)
        return figures, abs(strategy.progress.step - selected) + 1.0, known

    strategy._validation_figures = judged  # type: ignore[method-assign]

    def look(strategy: StructureStrategy) -> None:
        nonlocal path, before
        assert weight.grad is not None
        pull = 50.0 * importance * (before - anchor)
        pulls.append(float(pull.abs().max()))
        if strategy.progress.step <= selected:
            path = path - (weight.grad - pull) * (weight.detach() - before)
        before = weight.detach().clone()

    strategy.listeners.append(look)
    learn(strategy, 1)
    assert len(pulls) == 4
    assert pulls[1] > 1e-4  # of the first step it is 0: the weights are where they were anchored
    assert strategy.selection.step == selected
    divisor = (weight.detach() - start).square() + strategy.damping
    torch.testing.assert_close(
        strategy.importance[name] - importance, (path.clamp_min(0) / divisor).detach(), rtol=1e-3, atol=1e-7
    )


def test_a_path_to_a_state_that_a_plugin_selects_is_refused(samples: list[Sample]) -> None:
    from avalanche.training.plugins import EarlyStoppingPlugin

    plugin = EarlyStoppingPlugin(patience=1, val_stream_name="val")
    strategy = configured("synaptic_intelligence", samples, TWO, training=ONE_STEP)
    with pytest.raises(ConfigError, match="train synaptic intelligence without it"):
        SynapticIntelligence(
            model=strategy.network, stream=strategy.stream, training=ONE_STEP, plugins=[plugin]
        )


def test_a_gem_projects_what_would_harm(samples: list[Sample]) -> None:
    strategy = learn(configured("a_gem", samples, TWO, training=ONE_STEP, buffer=4), 0)
    assert isinstance(strategy, AGEM)
    strategy.experience = strategy.stream.train[1]
    strategy.check_model_and_optimizer()
    parameters = [p for p in strategy.optimized_param_id.values() if p.requires_grad]
    drawn = strategy.drawn_patches(0, 1)
    kept = [(one.experience, one.item) for one in strategy.buffer.patches]
    assert len(drawn) == strategy.replay_batch == 2
    assert all((one.experience, one.item) in kept for one in drawn)
    strategy.model.train()
    output = strategy.model(torch.stack([one.signal for one in drawn]), [one.structure for one in drawn])
    loss = (output - torch.stack([one.target[:1] for one in drawn])).square().mean()
    reference = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert sum(r is not None for r in reference) > 10
    for sign in (1.0, -1.0):
        for parameter, r in zip(parameters, reference, strict=True):
            parameter.grad = None if r is None else sign * r + torch.randn(r.shape) * r.abs() * 0.1
        given = [None if p.grad is None else p.grad.clone() for p in parameters]
        strategy.adjust_gradients()
        taken = [p.grad for p in parameters]
        product = float(sum((g * r).sum() for g, r in zip(taken, reference, strict=True) if g is not None))
        if sign > 0:
            assert product > 0
            assert all(g is t or torch.equal(g, t) for g, t in zip(given, taken, strict=True))
        else:
            size = float(sum(r.square().sum() for r in reference if r is not None))
            assert abs(product) < 1e-3 * size


@pytest.mark.parametrize("accumulate", [1, 2])
def test_der_pp_adds_the_errors_to_earlier_predictions_and_to_targets(
    samples: list[Sample], tmp_path: Path, accumulate: int
) -> None:
    """Of every step: three means over the voxels that count, which masks make unequal, with their weights."""
    random, masked = np.random.default_rng(0), []
    for number, sample in enumerate(samples):
        path = tmp_path / f"{number}.npy"
        np.save(path, (random.random(sample.shape) > 0.1 * (1 + number % 7)).astype(np.float32))
        masked.append(replace(sample, mask=path) if number % 3 else sample)
    training = ONE_STEP.model_copy(update={"steps": 3, "batch_size": 4, "accumulate": accumulate})
    options = {"alpha": 0.3, "beta": 0.7, "buffer": 5, "replay_batch": 3}
    strategy = learn(configured("der_pp", masked, TWO, training=training, **options), 0)
    assert isinstance(strategy, DERPlusPlus)
    plain = {name: strategy.network.fuse(name) for name in BASE}
    kept = strategy.buffer.patches
    for one in kept:
        assert one.prediction is not None
        with torch.no_grad():
            expected = plain[one.structure](one.signal[None])[0]
        torch.testing.assert_close(one.prediction, expected, rtol=1e-4, atol=1e-5)
    size = 3 if any(one.target.shape[0] == 1 for one in kept) else 4
    assert strategy.costs()["buffer_bytes"] >= 5 * size * 4 * 4 * 8 * 8
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    predict = strategy.forward

    def watch() -> Tensor:
        output = predict()
        if strategy.is_training:
            parts.append((strategy.mb_x, strategy.mb_y, output.detach()))
        return output

    strategy.forward = watch  # type: ignore[method-assign]
    losses: list[float] = []

    def look(strategy: StructureStrategy) -> None:
        terms: dict[str, list[tuple[float, float]]] = {"new": [], "dark": [], "replay": []}
        for x, y, output in parts:
            count = 4 // accumulate
            for place in range(len(x)):
                squared = (output[place] - y[place, :1]).square()
                weight = y[place, 1:] if y.shape[1] == 2 else torch.ones_like(squared)
                kind = "new"
                if place >= count:
                    [stored] = [one for one in kept if torch.equal(one.signal, x[place])]
                    assert stored.prediction is not None
                    is_dark = torch.equal(y[place, :1], stored.prediction)
                    assert is_dark or torch.equal(y[place, :1], stored.target[:1])
                    kind = "dark" if is_dark else "replay"
                terms[kind].append((float((squared * weight).sum()), float(weight.sum())))
        assert [len(terms[kind]) for kind in ("new", "dark", "replay")] == [4, 3, 3]
        means = [sum(a for a, _ in terms[kind]) / sum(b for _, b in terms[kind]) for kind in terms]
        losses.append(float(strategy.loss.detach()))
        assert losses[-1] == pytest.approx(means[0] + 0.3 * means[1] + 0.7 * means[2], rel=1e-4)
        parts.clear()

    strategy.listeners.append(look)
    learn(strategy, 1)
    assert len(losses) == 3


def test_distillation_adds_the_error_to_the_old_predictions(samples: list[Sample]) -> None:
    strategy = learn(configured("lwf", samples, TWO, training=ONE_STEP, strength=2.0), 0)
    assert isinstance(strategy, LwF)
    old = {name: strategy.network.fuse(name) for name in BASE}
    losses: list[float] = []
    expected: list[float] = []
    seen: list[tuple[Tensor, list[str], Tensor]] = []
    predict = strategy.model.forward

    def watch(x: Tensor, names: list[str]) -> Tensor:
        output = predict(x, names)
        if strategy.is_training:
            seen.append((x, names, output.detach()))
        return cast(Tensor, output)

    strategy.model.forward = watch  # type: ignore[method-assign, assignment]

    def look(strategy: StructureStrategy) -> None:
        [(x, names, output)] = seen
        seen.clear()
        assert sorted(set(names)) == sorted((*BASE, "nucleolus"))
        errors = {name: [] for name in BASE}
        with torch.no_grad():
            for place, name in enumerate(names):
                assert torch.equal(x[place], strategy.mb_x[place % len(strategy.mb_x)])
                if name in old:
                    errors[name].append((output[place] - old[name](x[place : place + 1])[0]).square().mean())
            kept = [torch.stack(found).mean() for found in errors.values()]
            new = masked_mse(output[: len(strategy.mb_y)], strategy.mb_y)
        expected.append(float(new + 2.0 * sum(kept) / 2))
        losses.append(float(strategy.loss.detach()))

    strategy.listeners.append(look)
    learn(strategy, 1)
    assert losses == pytest.approx(expected, rel=1e-5)


def test_distilled_structures_are_chosen_again_in_each_step(samples: list[Sample]) -> None:
    training = TRAINING.model_copy(update={"steps": 8})
    chosen: list[list[str]] = []
    for _ in range(2):
        strategy = learn(configured("lwf", samples, STREAM, training=training, distilled=1), 0, 1)
        found: list[str] = []
        strategy.listeners.append(lambda s, found=found: found.extend(cast(LwF, s)._students))
        learn(strategy, 2)
        chosen.append(found)
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 8
    assert len(set(chosen[0])) > 1
    assert set(chosen[0]) <= {*BASE, "nucleolus"}


def test_micro_batches_are_one_batch_to_every_strategy(samples: list[Sample]) -> None:
    """The loss of a step is the joint batch's, with what is replayed or distilled; norms see parts, so nearly."""
    whole = TRAINING.model_copy(update={"batch_size": 4, "steps": 1, "base_steps": 1})
    for name, options in {"replay": {"buffer": 4, "replay_batch": 3}, "lwf": {}, "cumulative": {}}.items():
        losses, shown = [], []
        for accumulate in (1, 2):
            training = whole.model_copy(update={"accumulate": accumulate})
            strategy = learn(configured(name, samples, TWO, training=training, **cast(Any, options)), 0)
            learn(strategy, 1)
            losses.append(float(strategy.last_loss or 0))
            shown.append(strategy.trained_patches[1])
        assert losses[0] == pytest.approx(losses[1], rel=0.3)
        assert shown[0] == shown[1]
