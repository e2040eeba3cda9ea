"""How additions are trained: a rate for each group of parameters, and decay towards the base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_strategies import TRAINING, configured, differing, learn, make_samples, state_of

from repmode_cl.cli.text import training_texts
from repmode_cl.config import StrategyConfig, parse_config
from repmode_cl.config.search_schema import with_values
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError, StructureError
from repmode_cl.nn import AdditionSpec, RepModeUNet
from repmode_cl.strategies import ExpertsFrozen, StructureStrategy

RATES = {"expert": 0.02, "gate": 0.04, "norm": 0.01}
TWO = (("dna", "cell_membrane"), ("nucleolus",))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return make_samples(tmp_path_factory.mktemp("samples"))


def made(samples: list[Sample], **options: Any) -> StructureStrategy:
    return configured("experts_frozen", samples, TWO, **options)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("{name: experts_frozen, learning_rate: {gates: 0.1}}", "unknown group 'gates' (did you mean 'gate'?)"),
        ("{name: experts_frozen, learning_rate: {}}", "no group is named"),
        ("{name: experts_frozen, learning_rate: {gate: 0}}", "found 0: more than 0.0 is needed"),
        ("{name: experts_frozen, learning_rate: {norm: 0.1}, norm: base}", "norm: this addition trains no norm"),
        ("{name: experts_frozen, learning_rate: {expert: 0.1}, expert: none}", "this addition trains no expert"),
        ("{name: ewc, learning_rate: {gate: 0.1}}", "an option of experts_frozen, not of ewc"),
        ("{name: experts_frozen, decay_to_base: 0.1}", "decay_to_base: 0.1 needs gate: outside"),
        ("{name: experts_frozen, gate: outside, decay_to_base: -1}", "found -1: at least 0.0 is needed"),
        ("{name: replay, decay_to_base: 0.1}", "decay_to_base is an option of experts_frozen, not of replay"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_with_what_is_allowed(section: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"name: a\ntraining: {{steps: 2}}\nstrategies: [{section}]\n", "my.yaml")
    assert expected in str(caught.value)


def test_a_search_varies_the_rate_of_a_group() -> None:
    one = StrategyConfig(name="experts_frozen", learning_rate=0.01, resampling="base")
    varied = with_values(one, {"learning_rate.gate": 0.04})
    assert varied.learning_rate == {"expert": 0.01, "gate": 0.04, "norm": 0.01}
    assert with_values(varied, {"learning_rate.gate": 0.08}).learning_rate == {
        **RATES,
        "expert": 0.01,
        "gate": 0.08,
    }
    with pytest.raises(ValueError, match="unknown group 'gates'"):
        with_values(one, {"learning_rate.gates": 0.04})
    text = (
        "name: a\ntraining: {steps: 2}\nseeds: [0]\nstrategies: [{name: experts_frozen, learning_rate: {gate: 0.1}}]\n"
        "search: {keys: {experts_frozen: {learning_rate.gate: [0.02, 0.04], learning_rate.norm: [0.01, 0.02]}}}\n"
    )
    search = parse_config(text, "my.yaml").search
    assert search is not None
    assert set(search.ranges("experts_frozen")) == {"learning_rate.gate", "learning_rate.norm"}
    with pytest.raises(ConfigError, match="unknown group 'gates'"):
        parse_config(text.replace("learning_rate.gate:", "learning_rate.gates:"), "my.yaml")


def test_the_schedule_scales_the_rate_of_each_group(samples: list[Sample]) -> None:
    strategy = made(samples, learning_rate=RATES, gate="outside", scale=True)
    seen: list[dict[str, float]] = []
    names: list[dict[str, set[str]]] = []

    def look(strategy: Any) -> None:
        own = {id(parameter): name for name, parameter in strategy.network.named_parameters()}
        groups = strategy.optimizer.param_groups
        seen.append({group.get("name", ""): group["lr"] for group in groups})
        names.append({group.get("name", ""): {own[id(one)] for one in group["params"]} for group in groups})

    strategy.listeners.append(look)
    learn(strategy, 0)
    assert [set(step) for step in seen] == [{""}] * 4  # a base has one rate
    base = [step[""] for step in seen]
    del seen[:], names[:]
    learn(strategy, 1)
    # Of the groups that are not named, the rate is the training's.
    assert set(seen[0]) == {"rest", *RATES}
    for step, rate in zip(seen, base, strict=True):
        for group, peak in {"rest": 0.02, **RATES}.items():
            assert step[group] == pytest.approx(peak / 0.02 * rate)
    members, owned = names[0], strategy.network.owned_names("nucleolus")
    parameters = {name for name, _ in strategy.network.named_parameters() if name in owned}
    assert set().union(*members.values()) == parameters
    assert sum(map(len, members.values())) == len(parameters)
    assert members["rest"] == {f"{part}.0.own.nucleolus.weight" for part in ("down", "up")}
    assert members["expert"] == {name for name in parameters if ".expert." in name}
    assert members["gate"] == {name for name in parameters if name.endswith((".gate", ".scale"))}
    assert members["norm"] == {name for name in parameters if ".norm." in name}


def test_equal_rates_are_one_rate_to_the_bit(samples: list[Sample]) -> None:
    groups = ("expert", "gate", "norm", "resampling")
    one, other = (
        state_of(learn(made(samples, learning_rate=rate))) for rate in (0.03, dict.fromkeys(groups, 0.03))
    )
    assert not differing(one, other)
    third = state_of(learn(made(samples, learning_rate={**dict.fromkeys(groups, 0.03), "gate": 0.06})))
    assert differing(one, third)
    assert all(".own.nucleolus." in name for name in differing(one, third))


def test_a_mode_of_the_base_has_the_base_values() -> None:
    network = RepModeUNet(width=3, depth=1, structures=["dna", "golgi"])
    network.add_structure("nucleolus", AdditionSpec("lowrank:2", gate="outside"), seed=0)
    network.add_structure("tubulin", AdditionSpec(gate="outside", scale=True, sees="all"), seed=0)
    network.add_structure(
        "actin", AdditionSpec("none", norm="base", resampling="base", gate="outside"), seed=0
    )
    for name in ("nucleolus", "tubulin", "actin"):
        values, parameters = network.base_values(name), dict(network.named_parameters())
        owned = {one for one in network.owned_names(name) if one in parameters}
        # A fresh addition outside the softmax begins at them.
        assert {one for one, value in values.items() if torch.equal(value, parameters[one])} == set(values)
        assert owned - set(values) == {one for one in owned if one.endswith("expert.spatial")}


@pytest.mark.parametrize("expert", ["conv3", "lowrank:2", "avg3", "none"])
def test_decay_goes_to_the_base(samples: list[Sample], expert: str) -> None:
    """Without gradients, the distance to the base shrinks by 1 - rate * decay in each step."""
    training = TRAINING.model_copy(update={"schedule": "constant", "validate_every": 4})
    strategy = made(
        samples, training=training, gate="outside", expert=expert, decay_to_base=2.0,
        learning_rate={"gate": 0.05}, scale=expert != "none",
    )  # fmt: skip
    learn(strategy, 0)
    strategy._criterion = lambda output, target: (output * 0).sum()
    before: dict[str, torch.Tensor] = {}

    def disturb(number: int) -> None:
        for name in strategy.optimized_param_id:
            with torch.no_grad():
                parameter = strategy.network.get_parameter(name)
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
            before[name] = parameter.detach().clone()

    strategy.before_experience = disturb  # type: ignore[method-assign]
    learn(strategy, 1)
    network = strategy.network
    gates = [torch.stack(list(block.gates.values())).mean(0) for _, block in network.named_mode_blocks()]
    assert before
    for name, start in before.items():
        kept = (1 - 0.05 * 2) ** 4 if name.endswith((".gate", ".scale")) else (1 - 0.02 * 2) ** 4
        if name.endswith(".gate"):
            base = gates[
                [block for block, _ in network.named_mode_blocks()].index(name.partition(".own.")[0])
            ]
        elif ".expert." in name:
            base = start if name.endswith("spatial") else torch.zeros_like(start)
        elif name.endswith(".scale"):
            base = torch.ones_like(start)
        else:
            base = network.get_parameter(name.replace(".own.nucleolus.", ".base."))
        torch.testing.assert_close(network.get_parameter(name).detach(), base + kept * (start - base))


def test_decay_changes_nothing_else_and_is_in_place_of_weight_decay(samples: list[Sample]) -> None:
    """A whole step away at once, each step begins as a mode of the base; its base is not touched."""
    plain = made(samples, gate="outside")
    decayed = made(samples, gate="outside", decay_to_base=0.5)
    one, other = (state_of(learn(strategy)) for strategy in (plain, decayed))
    assert {name for name in differing(one, other) if ".own.nucleolus." not in name} == set()
    assert plain.optimizer.param_groups[0]["weight_decay"] == 0.01
    learn(made(samples, decay_to_base=0.0))  # off, it asks for nothing
    assert decayed.optimizer.param_groups[0]["weight_decay"] == 0.0
    distance = []
    for state, strategy in ((one, plain), (other, decayed)):
        values = strategy.network.base_values("nucleolus").items()
        distance.append(sum(float((state[name] - value).square().sum()) for name, value in values))
    assert distance[1] < distance[0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"group_rates": {"gates": 0.1}}, "group_rates: unknown group 'gates'"),
        ({"group_rates": {"gate": 0.0}}, "group_rates: gate: found 0.0"),
        ({"group_rates": {"norm": 0.1}, "spec": AdditionSpec(norm="base")}, "an addition .* trains none"),
        ({"decay_to_base": 0.1}, "needs an expert outside the softmax"),
        ({"decay_to_base": float("nan"), "spec": AdditionSpec(gate="outside")}, "decay_to_base: found nan"),
    ],
)
def test_a_wrong_argument_is_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        ExpertsFrozen(model=RepModeUNet(width=2, depth=1, structures=["dna"]), device="cpu", **options)


def test_rates_and_an_optimizer_contradict_each_other() -> None:
    network = RepModeUNet(width=2, depth=1, structures=["dna"])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="group_rates and an optimizer are given"):
        ExpertsFrozen(model=network, optimizer=optimizer, group_rates={"gate": 0.1}, device="cpu")


def test_a_decay_has_no_base_within_the_softmax() -> None:
    network = RepModeUNet(width=2, depth=1, structures=["dna"])
    network.add_structure("golgi")
    with pytest.raises(StructureError, match="within the softmax"):
        network.base_values("golgi")


def test_the_rates_of_a_stranger_are_shown_as_numbers_only() -> None:
    provenance: dict[str, Any] = {"steps": 300, "seed": 0, "addition": {"learning_rate": RATES}}
    assert training_texts(provenance, 1, added=True) == [
        "300 steps", "rates expert 0.02, gate 0.04, norm 0.01", "seed 0",
    ]  # fmt: skip
    provenance["addition"]["learning_rate"] = {"expert": "\x1b[31m", "\x1b[31m": 1.0}
    assert training_texts(provenance, 1, added=True) == ["300 steps", "seed 0"]


def test_each_experience_says_its_rates(samples: list[Sample]) -> None:
    strategy = learn(made(samples, learning_rate=RATES))
    assert strategy.group_rates_of(0) == {}
    assert strategy.group_rates_of(1) == RATES
