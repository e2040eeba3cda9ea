"""Decisions of a training loop besides weights: how long, how fast, how precisely, and which state is kept."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn

from repmode_cl.config import TrainingConfig
from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.nn import AdditionSpec, Architecture, RepModeUNet
from repmode_cl.training import BestState, Budget, budget_of, make_schedule, masked_mse
from repmode_cl.training.best_state import trained_state_names
from repmode_cl.training.known_modes import fit_of

# -- budget -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "structures", "images", "steps", "every"),
    [
        ({"steps": 50}, 1, 9, 50, 5),  # ten validations
        ({"steps": 50}, 3, 9, 150, 15),  # a joint base takes as many steps as its structures would
        ({"steps": 50, "base_steps": 70}, 3, 9, 70, 7),
        ({"steps": 50, "base_steps": 70}, 1, 9, 50, 5),  # base_steps are of a first experience with several
        ({"steps": 7, "validate_every": 3}, 1, 9, 7, 3),
        ({"steps": 7, "validate_every": 30}, 1, 9, 7, 7),  # at least once, at the end
        ({"steps": 3}, 1, 9, 3, 1),
        # 1000 epochs of 19 images in batches of 8, validated every 20 epochs (paper, section 4.1).
        ({"epochs": 1000, "validate_every_epochs": 20}, 1, 19, 2375, 48),
        ({"epochs": 2, "batch_size": 4}, 2, 9, 5, 1),
        ({"epochs": 1}, 1, 3, 1, 1),
    ],
)
def test_budget(settings: dict[str, int], structures: int, images: int, steps: int, every: int) -> None:
    assert budget_of(TrainingConfig(**settings), structures, images) == Budget(steps, every)  # type: ignore[arg-type]


def test_validations_are_regular_and_the_last_step_has_one() -> None:
    budget = Budget(steps=11, validate_every=4)
    assert [step for step in range(1, 12) if budget.validates(step)] == [4, 8, 11]


# -- schedule ---------------------------------------------------------------------------------------------------


def rates(kind: str, steps: int, peak: float = 0.5) -> list[float]:
    """Return the learning rate of each step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = make_schedule(optimizer, kind, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_constant() -> None:
    assert rates("constant", 5) == [0.5] * 5


def test_cosine_falls_from_the_peak_to_nothing() -> None:
    found = rates("cosine", 101)
    assert found[0] == 0.5
    assert found[50] == pytest.approx(0.25)
    assert found[100] == pytest.approx(0.0, abs=1e-12)
    assert found == sorted(found, reverse=True)


def test_one_cycle_climbs_for_three_tenths_then_falls() -> None:
    found = rates("one_cycle", 101)
    assert found[0] == pytest.approx(0.5 * 0.04)
    assert found[30] == max(found) == pytest.approx(0.5)
    assert found[65] == pytest.approx(0.5 * (1 + 1e-3) / 2)  # half way down
    assert found[100] == pytest.approx(0.5 * 1e-3)
    assert found[:31] == sorted(found[:31])
    assert found[30:] == sorted(found[30:], reverse=True)


@pytest.mark.parametrize("kind", ["constant", "cosine", "one_cycle"])
def test_one_step_is_a_schedule_too(kind: str) -> None:
    [rate] = rates(kind, 1)
    assert 0 < rate <= 0.5


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="constant, cosine or one_cycle, not 'step'"):
        rates("step", 3)


# -- loss -------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_squared_error() -> None:
    random = np.random.default_rng(0)
    output, target = random.normal(size=(2, 3, 1, 4, 5, 6)).astype(np.float32)
    loss = masked_mse(torch.from_numpy(output), torch.from_numpy(target))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(((output - target).astype(np.float64) ** 2).mean()), rel=1e-6)


def test_voxels_without_weight_do_not_count() -> None:
    random = np.random.default_rng(0)
    output, target = random.normal(size=(2, 3, 1, 4, 5, 6)).astype(np.float32)
    weight = random.random((3, 1, 4, 5, 6)) < 0.3
    expected = float(((output - target).astype(np.float64) ** 2)[weight].mean())
    target[~weight] = 1e6  # whatever stands there
    both = torch.from_numpy(np.concatenate([target, weight.astype(np.float32)], axis=1))
    prediction = torch.from_numpy(output).requires_grad_()
    loss = masked_mse(prediction, both)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    assert prediction.grad is not None
    assert not prediction.grad[torch.from_numpy(~weight)].any()
    assert prediction.grad[torch.from_numpy(weight)].all()


def test_no_voxel_that_counts_is_no_loss() -> None:
    target = torch.stack([torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)], dim=1)
    assert float(masked_mse(torch.zeros(1, 1, 2, 2, 2), target)) == 0.0


def test_the_loss_of_half_precision_is_float32() -> None:
    target = torch.full((1, 1, 2, 2, 2), 300.0)
    loss = masked_mse(torch.zeros(1, 1, 2, 2, 2, dtype=torch.float16), target)
    assert loss.dtype == torch.float32
    assert float(loss) == 90000.0  # would be infinite in float16


# -- selection --------------------------------------------------------------------------------------------------


def network_at(value: float) -> nn.Linear:
    network = nn.Linear(1, 1)
    with torch.no_grad():
        network.weight.fill_(value)
        network.bias.fill_(value)
    return network


def test_the_best_state_is_kept_and_given_back() -> None:
    network, selection = network_at(0), BestState(["weight"])
    offers = [(10, 3.0), (20, 1.0), (30, 2.0), (40, 1.0)]
    kept = []
    for step, mse in offers:
        with torch.no_grad():
            network.weight.fill_(step)
            network.bias.fill_(step)
        kept.append(selection.offer(network, step, mse))
    assert kept == [True, True, False, False]  # of equals the first
    assert (selection.step, selection.best) == (20, 1.0)
    selection.restore(network)
    assert network.weight.item() == 20
    assert network.bias.item() == 40  # it was not asked to hold this one


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_diverged_is_never_the_best(bad: float) -> None:
    network, selection = network_at(1), BestState(["weight"])
    assert not selection.offer(network, 1, bad)
    selection.restore(network_at(5))  # nothing was kept: nothing is restored
    assert selection.tensors == {}
    assert selection.offer(network, 2, 4.0)
    assert not selection.offer(network_at(9), 3, bad)
    assert selection.tensors["weight"].item() == 1


def test_without_validation_the_last_state_stays() -> None:
    network = network_at(7)
    BestState(["weight", "bias"]).restore(network)
    assert network.weight.item() == network.bias.item() == 7


def test_a_selection_comes_back_from_what_a_checkpoint_holds() -> None:
    first = BestState(["weight"])
    first.offer(network_at(3), 5, 0.5)
    second, network = BestState(["weight"]), network_at(0)
    second.load(first.tensors, first.step, first.best)
    assert not second.offer(network_at(1), 6, 0.6)
    second.restore(network)
    assert network.weight.item() == 3


class _Constant:
    """Patches whose targets are one number within their masks, and another beyond."""

    def __init__(self, value: float, beyond: float | None = None) -> None:
        self.value, self.beyond = value, beyond

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        target = torch.full((1, 8, 16, 16), self.value)
        if self.beyond is not None:
            target = torch.cat([target, torch.ones_like(target)])
            target[:, :4] = torch.tensor([self.beyond, 0]).view(2, 1, 1, 1)
        return torch.zeros(1, 8, 16, 16), target


@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, 1.7])
@pytest.mark.parametrize("beyond", [None, 5.0])
def test_the_fit_to_constant_targets_has_no_r2(value: float, beyond: float | None) -> None:
    found = fit_of(nn.Identity(), cast(PatchDataset, _Constant(value, beyond)), torch.device("cpu"))
    assert found == {"mse": pytest.approx(value**2)}


def test_what_training_may_change_is_parameters_and_their_norms_statistics() -> None:
    network = RepModeUNet(Architecture(width=2, depth=1, experts=("conv1",)), ("dna", "cell_membrane"))
    assert not any(name.endswith("gates.dna") for name in names_when_training(network, "cell_membrane"))
    everything = set(network.state_dict())
    assert names_when_training(network, "dna", "cell_membrane") == everything
    network.add_structure("nucleolus", AdditionSpec("none", resampling="base"))
    own = set(network.state_dict()) - everything
    assert any(name.endswith("running_var") for name in own)
    assert names_when_training(network, "nucleolus") == own
    network.add_structure("mitochondria", AdditionSpec("none", norm="base", resampling="base"))
    # Norms that are shared are frozen: neither weights nor statistics may move.
    gates = {f"{block}.own.mitochondria.gate" for block, _ in network.named_blocks()}
    assert names_when_training(network, "mitochondria") == gates


def names_when_training(network: RepModeUNet, *structures: str) -> set[str]:
    network.train_only(structures)
    names = trained_state_names(network)
    assert len(set(names)) == len(names)
    return set(names)
