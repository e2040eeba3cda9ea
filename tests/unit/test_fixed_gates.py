"""Gates that are fixed after a share of the steps: the same kernels and gradients, computed with less."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from stored_model import liven
from tiny_strategies import configured, differing, learn, make_samples, state_of

from repmode_cl.config import StrategyConfig, parse_config
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError
from repmode_cl.nn import AdditionSpec, Architecture, RepModeUNet, mode_block
from repmode_cl.strategies import ExpertsFrozen, StructureStrategy

KERNEL_5, KERNEL_3 = ("conv5", "conv3", "conv1", "avg3", "avg5"), ("conv3", "conv1", "avg3")
SPECS = {
    "softmax": AdditionSpec(),
    "outside": AdditionSpec(gate="outside"),
    "scale": AdditionSpec(gate="outside", scale=True),
    "larger": AdditionSpec("conv5", gate="outside"),
    "conv1": AdditionSpec("conv1"),
    "avg3": AdditionSpec("avg3", gate="outside"),
    "lowrank": AdditionSpec("lowrank:2", resampling="base", norm="base"),
    "ranks": AdditionSpec("lowrank:2,0,1", gate="outside", sees="all"),
    "none": AdditionSpec("none"),
}
TWO = (("dna", "cell_membrane"), ("nucleolus",))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return make_samples(tmp_path_factory.mktemp("samples"))


def grown(spec: AdditionSpec, experts: tuple[str, ...]) -> RepModeUNet:
    """Return a network in training, with an earlier addition and one of `spec`, as if they had been trained."""
    network = RepModeUNet(Architecture(width=3, depth=2, experts=experts), ("dna", "golgi"), seed=0)
    liven(network)
    generator = torch.Generator().manual_seed(3)
    for name, how in (("tubulin", AdditionSpec()), ("nucleolus", spec)):
        network.add_structure(name, how, seed=1)
        liven(network, f".own.{name}.")
        with torch.no_grad():
            for key, parameter in network.named_parameters():
                if f".own.{name}." in key and ".norm." not in key:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    network.train_only(["nucleolus"])
    return network.double().train()


def gradients(network: RepModeUNet) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    network.zero_grad()
    # At the bottleneck one voxel is left of two axes: taps are cut off there.
    x = torch.randn(2, 1, 4, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prediction = network(x, "nucleolus")
    (prediction - x).square().mean().backward()
    return prediction.detach(), {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize(
    ("kind", "experts"),
    [
        *(pytest.param(kind, KERNEL_3, id=f"{kind}-k3") for kind in SPECS),
        pytest.param("softmax", KERNEL_5, id="softmax-k5"),
        pytest.param("outside", KERNEL_5, id="outside-k5"),
        *(
            pytest.param(kind, KERNEL_5, id=f"{kind}-k5", marks=pytest.mark.slow)
            for kind in SPECS
            if kind not in ("softmax", "outside")
        ),
    ],
)
def test_fixed_gates_compute_the_same_with_no_gradient_of_what_is_frozen(
    kind: str, experts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = grown(SPECS[kind], experts)
    prediction, expected = gradients(network)
    learning = copy.deepcopy(network).eval()
    fixed = network.fix_gates("nucleolus")
    assert fixed == {name for name in network.owned_names("nucleolus") if name.endswith((".gate", ".scale"))}
    with_gradient: list[bool] = []
    convolve = mode_block.convolve

    def spied(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        with_gradient.append(kernel.requires_grad)
        return convolve(x, kernel)

    with monkeypatch.context() as patch:
        patch.setattr(mode_block, "convolve", spied)
        patch.delattr(mode_block, "fuse_rows")  # what is frozen was fused once
        again, found = gradients(network)
    torch.testing.assert_close(again, prediction)
    for name, grad in found.items():
        if name in fixed or expected[name] is None:
            assert grad is None, name
        else:
            torch.testing.assert_close(grad, expected[name], msg=name)
    # No weight gradient is computed of a kernel that holds nothing to learn.
    fresh = [block.addition("nucleolus").expert is not None for _, block in network.named_mode_blocks()]
    assert with_gradient == fresh
    # In evaluation, and once training is set up again, nothing of it is left.
    network.eval()
    with torch.no_grad():
        x = torch.randn(1, 1, 4, 4, 8, dtype=torch.float64)
        learning.load_state_dict(network.state_dict())
        assert torch.equal(network(x, "nucleolus"), learning(x, "nucleolus"))
    network.train_only(["nucleolus"])
    network.train()
    assert {name for name, grad in gradients(network)[1].items() if grad is not None} == {
        name for name, grad in expected.items() if grad is not None
    }


def made(samples: list[Sample], **options: Any) -> StructureStrategy:
    return configured("experts_frozen", samples, TWO, **options)


@pytest.mark.parametrize(("share", "learning"), [(0.0, 0), (0.5, 2), (0.6, 2), (1.0, 4)])
@pytest.mark.parametrize("gate", ["softmax", "outside"])
def test_gates_learn_for_their_share_of_the_steps(
    samples: list[Sample], gate: str, share: float, learning: int
) -> None:
    strategy = made(samples, gate=gate, gate_steps=share, decay_to_base=0.1 if gate == "outside" else 0.0)
    learn(strategy, 0)
    base = state_of(strategy)
    states = []

    def look(strategy: Any) -> None:
        states.append(state_of(strategy))
        network, optimizer = strategy.network, strategy.optimizer
        gates = {name for name in network.owned_names("nucleolus") if name.endswith(".gate")}
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        moments = {names[id(parameter)] for parameter in optimizer.state}
        trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
        assert moments == trained
        assert {name for name, p in network.named_parameters() if p.grad is not None} == trained
        assert trained == strategy.trained - (gates if len(states) > learning else set())

    strategy.listeners.append(look)
    learn(strategy, 1)
    assert len(states) == 4
    moved = [
        any(name.endswith(".gate") for name in differing(one, other))
        for one, other in itertools.pairwise(states)
    ]
    assert moved == [step < learning for step in range(1, 4)]
    # The experts go on, and nothing of the base ever moves.
    assert any(".expert." in name for name in differing(states[-2], states[-1]))
    assert not differing(base, {name: states[-1][name] for name in base})


def test_a_structure_that_returns_learns_its_gates_again(samples: list[Sample]) -> None:
    strategy = configured(
        "experts_frozen", samples, (*TWO, ("mitochondria",), ("nucleolus",)), gate_steps=0.5
    )
    learn(strategy, 0, 1, 2)
    before = state_of(strategy)
    learn(strategy, 3)
    changed = differing(before, state_of(strategy))
    assert any(name.endswith(".own.nucleolus.gate") for name in changed)
    assert all(".own.nucleolus." in name for name in changed)


def test_by_default_gates_learn_in_all_steps(samples: list[Sample]) -> None:
    assert not differing(state_of(learn(made(samples))), state_of(learn(made(samples, gate_steps=1.0))))


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("{name: experts_frozen, gate_steps: 1.1}", "found 1.1: at most 1.0 is allowed"),
        ("{name: experts_frozen, gate_steps: -1}", "found -1: at least 0.0 is needed"),
        ("{name: lora, gate_steps: 0.5}", "gate_steps is an option of experts_frozen, not of lora"),
    ],
)
def test_a_wrong_share_is_refused(section: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"name: a\ntraining: {{steps: 2}}\nstrategies: [{section}]\n", "my.yaml")
    assert expected in str(caught.value)


def test_a_wrong_argument_is_refused_and_the_title_names_the_share() -> None:
    with pytest.raises(ConfigError, match="gate_steps: found nan"):
        ExpertsFrozen(
            model=RepModeUNet(width=2, depth=1, structures=["dna"]), device="cpu", gate_steps=float("nan")
        )
    assert StrategyConfig(name="experts_frozen", gate_steps=0.3).title == "experts_frozen_gates0.3"
    assert "gate_steps" not in StrategyConfig(name="experts_frozen").model_dump()
