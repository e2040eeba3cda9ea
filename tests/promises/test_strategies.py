"""Tensors that each strategy trains, changes and leaves as they are."""

from __future__ import annotations

import pytest
import torch
from tiny_strategies import (
    ARCHITECTURE,
    BASE,
    BUILD,
    PATCH,
    STRUCTURES,
    TRAINING,
    build,
    differing,
    learn,
    multi_net,
    predictions,
    state_of,
    stream_of,
)
from torch import Tensor

from repmode_cl.data.sample import Sample
from repmode_cl.errors import StructureError
from repmode_cl.nn import PlainUNet, RepModeUNet
from repmode_cl.strategies import MultiNet, PlainNetworks, StructureStrategy

EACH = pytest.mark.parametrize("name", BUILD)
SPECS = (
    {},
    {"sees": "all"},
    {"norm": "base"},
    {"resampling": "base"},
    {"expert": "none"},
    {"expert": "lowrank:1"},
    {"expert": "none", "norm": "base", "resampling": "base"},
    {"gate": "outside"},
)


def expected_names(network: RepModeUNet, name: str, spec: dict[str, str]) -> tuple[set[str], set[str]]:
    """Return the parameters that the paper's addition owns, written out, and its norms' buffers."""
    blocks = [block for block, _ in network.named_blocks()]
    sites = [site for site, _ in network.named_resampling()]
    assert blocks == [
        *(f"{part}.{i}" for part in ("encoder.0", "bottleneck", "decoder.0") for i in (0, 1)),
        "head",
    ]
    assert sites == ["down.0", "up.0"]
    names = {f"{block}.own.{name}.gate" for block in blocks}
    expert = spec.get("expert", "conv3")
    if expert != "none":
        parts = ("spatial", "mix") if expert.startswith("lowrank") else ("weight",)
        names |= {f"{block}.own.{name}.expert.{part}" for block in blocks for part in parts}
    if spec.get("resampling", "own") == "own":
        names |= {f"{site}.own.{name}.weight" for site in sites}
    norms: list[str] = []
    if spec.get("norm", "own") == "own":
        norms = [f"{place}.norm.own.{name}" for place in (*blocks, *sites) if place != "head"]
        names |= {f"{norm}.{part}" for norm in norms for part in ("weight", "bias")}
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return names, {f"{norm}.{part}" for norm in norms for part in buffers}


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: "-".join(spec.values()) or "default")
def test_experts_frozen_trains_what_the_addition_owns(samples: list[Sample], spec: dict[str, str]) -> None:
    strategy = learn(build("experts_frozen", samples, **spec), 0)
    for number, name in enumerate(("nucleolus", "mitochondria"), start=1):
        known = strategy.network.structures
        before, old = state_of(strategy), predictions(strategy, known)
        fresh: dict[str, Tensor] = {}
        strategy.listeners = [lambda s, fresh=fresh: fresh or fresh.update(state_of(s))]
        learn(strategy, number)
        parameters, buffers = expected_names(strategy.network, name, spec)
        assert strategy.trained == parameters
        assert {n for n, p in strategy.network.named_parameters() if p.requires_grad} == parameters
        after = state_of(strategy)
        assert after.keys() - before.keys() == parameters | buffers
        assert differing(before, after) == set()  # all that was there, to the bit
        assert differing(fresh, after) == parameters | buffers  # and all that is new did learn
        now = predictions(strategy, known)
        assert all(torch.equal(old[structure], now[structure]) for structure in known)
    needs = ("nucleolus",) if spec.get("sees") == "all" else ()
    assert strategy.network.additions["mitochondria"].needs == needs


def test_a_joint_base_trains_everything(samples: list[Sample]) -> None:
    strategy = build("experts_frozen", samples)
    before = state_of(strategy)
    learn(strategy, 0)
    assert strategy.trained == {name for name, _ in strategy.network.named_parameters()}
    assert differing(before, state_of(strategy)) == before.keys()


def test_fine_tuning_trains_all_but_the_other_rows_and_forgets(samples: list[Sample]) -> None:
    strategy = learn(build("fine_tuning", samples), 0)
    for number, name in enumerate(("nucleolus", "mitochondria"), start=1):
        known = strategy.network.structures
        before, old = state_of(strategy), predictions(strategy, known)
        learn(strategy, number)
        after, now = state_of(strategy), predictions(strategy, known)
        blocks = [block for block, _ in strategy.network.named_blocks()]
        rows = {f"{block}.gates.{structure}" for block in blocks for structure in known}
        assert rows <= before.keys()
        assert after.keys() - before.keys() == {f"{block}.gates.{name}" for block in blocks}
        assert strategy.trained == {n for n, _ in strategy.network.named_parameters()} - rows
        assert differing(before, after) == before.keys() - rows
        assert all((old[structure] - now[structure]).abs().max() > 1e-3 for structure in known)
    assert strategy.network.additions == {}


def test_multi_net_trains_one_network_and_leaves_the_others(samples: list[Sample]) -> None:
    strategy = build("multi_net", samples)
    for number, name in enumerate(STRUCTURES):
        known = strategy.network.structures
        before, old = state_of(strategy), predictions(strategy, known)
        learn(strategy, number)
        after, now = state_of(strategy), predictions(strategy, known)
        new = {f"networks.{name}.{part}" for part in PlainUNet(4, 1, 3).state_dict()}
        assert after.keys() - before.keys() == new
        assert strategy.trained == {n for n in new if n.endswith(("weight", "bias"))}
        assert differing(before, after) == set()
        assert all(torch.equal(old[structure], now[structure]) for structure in known)


def test_networks_of_multi_net_are_independent(samples: list[Sample]) -> None:
    """A network is the same whoever came before it; and no two are alike."""
    after_others = learn(build("multi_net", samples)).network
    alone = learn(multi_net(stream_of(samples, [("mitochondria",)]))).network
    mine = alone.networks["mitochondria"].state_dict()
    assert differing(mine, after_others.networks["mitochondria"].state_dict()) == set()
    weights = [parameter.data_ptr() for parameter in after_others.parameters()]
    assert len(set(weights)) == len(weights)
    assert not torch.equal(
        after_others.networks["dna"].head.weight, after_others.networks["cell_membrane"].head.weight
    )
    with pytest.raises(StructureError, match="one at a time"):
        after_others.train_only(BASE)


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_network_of_multi_net_has_the_kernel_of_the_configuration(
    samples: list[Sample], kernel: int
) -> None:
    strategy = MultiNet(
        model=PlainNetworks(ARCHITECTURE, kernel), stream=stream_of(samples, [("dna",)]), training=TRAINING,
        patch=PATCH,
    )  # fmt: skip
    learn(strategy)
    assert strategy.network.networks["dna"].head.weight.shape == (1, 4, kernel, kernel, kernel)


@EACH
def test_the_optimiser_holds_what_is_trained_and_nothing_else(samples: list[Sample], name: str) -> None:
    strategy = build(name, samples)
    seen = []

    def look(strategy: StructureStrategy) -> None:
        named = dict(strategy.network.named_parameters())
        held = [p for group in strategy.optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in held} == {id(named[n]) for n in strategy.trained}
        assert len(held) == len(strategy.trained)
        assert all(p.grad is None for n, p in named.items() if n not in strategy.trained)
        seen.append((strategy.progress.experience, id(strategy.optimizer)))

    strategy.listeners.append(look)
    learn(strategy)
    experiences = len(strategy.stream.experiences)
    assert len(seen) == 4 * experiences
    assert [experience for experience, _ in seen[::4]] == list(range(experiences))
