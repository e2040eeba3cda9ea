"""Strategies in a configuration: names, options, budgets; and streams in which a structure comes again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny_strategies import BASE, STREAM, TRAINING, configured, differing, learn, predictions, state_of

from repmode_cl.benchmark.check_strategies import check_strategies
from repmode_cl.benchmark.dry_run import estimate_run
from repmode_cl.config import Config, DataConfig, NetworkConfig, PatchConfig, StrategyConfig, TrainingConfig
from repmode_cl.config.load import dump_config, parse_config
from repmode_cl.config.strategy_schema import STRATEGY_NAMES
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError
from repmode_cl.scenarios import StreamVariant
from repmode_cl.strategies.registry import STRATEGIES, build_strategy, strategy_class
from repmode_cl.strategies.timing import windows_of_image

AGAIN = (BASE, ("nucleolus",), ("mitochondria",), ("nucleolus",))


def test_every_name_is_a_strategy() -> None:
    assert tuple(STRATEGIES) == STRATEGY_NAMES
    titles = {StrategyConfig(name=name).title for name in STRATEGY_NAMES}
    with_options = {
        "multi_net": "multi_net_k3",
        "multi_head": "multi_head_decoder_k3",
        "frozen_trunk": "frozen_trunk_decoder_k3",
        "norm_only": "norm_only_k3",
        "lora": "lora_k3_rank4",
        "ssf": "ssf_k3",
        "adapter": "adapter_k3_bottleneck4",
        "piggyback": "piggyback_k3",
        "packnet": "packnet_k3",
        "progressive": "progressive_k3",
        "dodnet": "dodnet_k3",
        "tgnet": "tgnet_k3",
        "condnet": "condnet_k3",
        "tsns": "tsns_k3",
        "pipo_fan": "pipo_fan_k3",
    }
    assert titles == (set(STRATEGY_NAMES) - with_options.keys()) | set(with_options.values())


@pytest.mark.parametrize(
    ("options", "title"),
    [
        ({"name": "multi_head", "head": "last", "kernel": 5}, "multi_head_last_k5"),
        ({"name": "experts_frozen", "expert": "none", "steps": 100}, "experts_frozen_none_100steps"),
        ({"name": "experts_frozen", "expert": "lowrank:4", "sees": "all"}, "experts_frozen_lowrank4_all"),
        (
            {
                "name": "experts_frozen",
                "expert": "lowrank:4,2,0",
                "gate": "outside",
                "scale": True,
                "blocks": "decoder",
            },
            "experts_frozen_lowrank4-2-0_outside_decoder_scale",
        ),
        ({"name": "multi_net", "steps": 50}, "multi_net_k3_50steps"),
        ({"name": "warm_copy"}, "warm_copy"),
        ({"name": "der_pp", "alpha": 0.2, "buffer_bytes_each": 99999}, "der_pp_each99999_alpha0.2"),
        ({"name": "replay", "region": (8, 64, 64)}, "replay_region8x64x64"),
        ({"name": "warm_copy", "of": "multi_head", "head": "last"}, "warm_copy_multi_head_last_k3"),
        ({"name": "lora", "rank": 8, "norm": "base"}, "lora_k3_base_rank8"),
        ({"name": "replay", "buffer": 32}, "replay_buffer32"),
        ({"name": "dodnet", "mode": "joint", "kernel": 5}, "dodnet_k5_joint"),
        ({"name": "tsns", "slots": 30, "mode": "joint"}, "tsns_k3_joint_slots30"),
        ({"name": "condnet", "last_layer": "shared"}, "condnet_k3_shared"),
        ({"name": "tsns", "condition": "code", "kernel": 5}, "tsns_k5_code"),
        ({"name": "pipo_fan", "deep_supervision": True, "mode": "joint"}, "pipo_fan_k3_joint_deep"),
        ({"name": "dodnet", "mode": "fine_tuning", "steps": 9}, "dodnet_k3_fine_tuning_9steps"),
        ({"name": "a_gem", "buffer_bytes": 123456789}, "a_gem_bytes123456789"),
        ({"name": "ewc", "strength": 1000.0}, "ewc_strength1000"),
        ({"name": "lwf", "strength": 0.5, "distilled": 2}, "lwf_strength0.5_distilled2"),
        ({"name": "lwf", "warm_up": 0.25}, "lwf_warmup0.25"),
        (
            {"name": "ewc", "fisher": "gauss_newton", "probes": 4, "decay": 0.9, "strength": 10},
            "ewc_gauss_newton_strength10_probes4_decay0.9",
        ),
        ({"name": "synaptic_intelligence", "damping": 0.1}, "synaptic_intelligence_damping0.1"),
        ({"name": "/some/where/mine.py:Mine"}, "Mine"),
        ({"name": "ewc", "label": "EWC (ours)"}, "EWC (ours)"),
    ],
)
def test_titles_say_what_was_chosen(options: dict[str, Any], title: str) -> None:
    assert StrategyConfig(**options).title == title


def test_what_is_written_names_later_options_only_where_they_are_chosen() -> None:
    """A run of before, which cannot name them, is continued as it is."""
    later = {"gate": "outside", "scale": True, "blocks": "decoder"}
    of_others = {"of", "rank", "bottleneck", "buffer_bytes_each", "region", "alpha", "beta", "prune"}
    of_others |= {"fisher", "probes", "decay", "damping", "warm_up"}
    of_others |= {"mode", "slots", "last_layer", "condition", "deep_supervision"}
    assert not StrategyConfig(name="experts_frozen").model_dump().keys() & (later.keys() | of_others)
    chosen = StrategyConfig(name="experts_frozen", **later)
    assert {key: chosen.model_dump(mode="json")[key] for key in later} == later
    assert StrategyConfig(**chosen.model_dump(exclude_unset=True)) == chosen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "replay", "strength": 1.0}, "strength is an option of ewc"),
        ({"name": "ewc", "gate": "outside"}, "gate is an option of experts_frozen, not of ewc"),
        ({"name": "experts_frozen", "scale": True}, "scale: true needs gate: outside, and an expert"),
        ({"name": "experts_frozen", "expert": "lowrank:4,"}, "'lowrank:4,' is no expert"),
        ({"name": "ewc", "buffer": 3}, "buffer is an option of replay, a_gem, der_pp, not of ewc"),
        ({"name": "ewc", "options": {"a": 1}}, "options is an option of a strategy of your own"),
        ({"name": "mine.py:Mine", "expert": "conv5"}, "expert is an option of experts_frozen"),
        ({"name": "replay", "buffer": 3, "buffer_bytes": 3}, "either buffer or buffer_bytes"),
        ({"name": "replay", "buffer_bytes_each": 3, "buffer_bytes": 3}, "buffer_bytes or buffer_bytes_each"),
        ({"name": "replay", "alpha": 1.0}, "alpha is an option of der_pp"),
        ({"name": "mas", "decay": 0.5}, "decay is an option of ewc, not of mas"),
        ({"name": "ewc", "probes": 4}, "probes needs fisher: gauss_newton"),
        ({"name": "ewc", "fisher": "exact"}, "'empirical' or 'gauss_newton'"),
        ({"name": "ewc", "decay": 1.5}, "less than or equal to 1"),
        ({"name": "synaptic_intelligence", "damping": 0}, "greater than 0"),
        ({"name": "lwf", "warm_up": 1}, "less than 1"),
        ({"name": "joint", "mode": "frozen"}, "mode is an option of dodnet"),
        ({"name": "tsns", "last_layer": "shared"}, "last_layer is an option of condnet, not of tsns"),
        ({"name": "condnet", "condition": "code"}, "condition is an option of tsns, not of condnet"),
        ({"name": "tsns", "condition": "code", "mode": "joint"}, "condition: code is of mode frozen"),
        ({"name": "dodnet", "deep_supervision": True}, "deep_supervision is an option of pipo_fan"),
        ({"name": "dodnet", "slots": 20}, "slots is an option of condnet, tsns, not of dodnet"),
        (
            {"name": "dodnet", "mode": "joint", "base_learning_rate": 0.1},
            "dodnet with mode: joint has no joint base",
        ),
        (
            {"name": "lora", "label": "a", "network": {"gating": "sigmoid"}},
            "network.gating: lora has a plain network, in which there is no such thing",
        ),
        (
            {"name": "warm_copy", "of": "multi_head", "label": "a", "network": {"scope": "encoder"}},
            "network.scope",
        ),
        ({"name": "replai"}, "found 'replai' (did you mean 'replay'?)"),
        ({"name": "mine:Mine"}, "path/to/file.py:ClassName"),
        ({"name": "ewc", "label": "base"}, "every run has"),
        ({"name": "ewc", "label": "Cache"}, "every run has"),
        ({"name": "ewc", "label": "results.CSV"}, "every run has"),
        ({"name": "ewc", "label": "left_out.csv"}, "every run has"),
        ({"name": "ewc", "label": "run.json. "}, "every run has"),
        ({"name": "mine.py:Base"}, "every run has"),
    ],
)
def test_options_belong_to_strategies(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StrategyConfig(**options)
    assert message in str(caught.value)


# -- budgets ----------------------------------------------------------------------------------------------------


def steps_of(options: StrategyConfig, training: TrainingConfig = TRAINING) -> list[int]:
    kind = strategy_class(options)
    return [
        kind.steps_of(training, options, STREAM, names, 10 * len(names))
        for names in kind.regroup(STREAM, options)[0]
    ]


def test_steps_are_only_those_of_additions() -> None:
    training = TRAINING.model_copy(update={"base_steps": 9})
    for name in STRATEGY_NAMES:
        full = steps_of(StrategyConfig(name=name), training)
        fewer = steps_of(StrategyConfig(name=name, steps=3), training)
        if name == "joint":
            assert (full, fewer) == ([9 + 4 + 4], [9 + 3 + 3])
        elif name == "multi_net":
            assert (full, fewer) == ([4, 4, 4, 4], [4, 4, 3, 3])
        else:
            assert (full, fewer) == ([9, 4, 4], [9, 3, 3])


def test_multi_net_may_leave_the_base_out(samples: list[Sample]) -> None:
    options = StrategyConfig(name="multi_net", networks="added")
    assert strategy_class(options).regroup(STREAM, options) == ((("nucleolus",), ("mitochondria",)), (1, 2))
    alone, all_of_them = (configured("multi_net", samples, networks=which) for which in ("added", "all"))
    learn(alone)
    learn(all_of_them)
    assert alone.network.structures == ("nucleolus", "mitochondria")
    # The same network whether or not others were trained before it.
    assert differing(state_of(alone), state_of(all_of_them)) == set()


def test_steps_may_be_given_with_epochs() -> None:
    training = TrainingConfig(batch_size=2, epochs=3)
    assert steps_of(StrategyConfig(name="ewc"), training) == [30, 15, 15]
    assert steps_of(StrategyConfig(name="ewc", steps=7), training) == [30, 7, 7]
    assert steps_of(StrategyConfig(name="joint"), training) == [60]
    with pytest.raises(ConfigError, match="joint: steps needs"):
        steps_of(StrategyConfig(name="joint", steps=7), training)


def test_fewer_steps_are_a_schedule_of_their_own(samples: list[Sample]) -> None:
    rates: list[float] = []
    strategy = learn(configured("experts_frozen", samples, STREAM[:2], steps=3), 0)
    base = learn(configured("experts_frozen", samples, STREAM[:2]), 0)
    assert differing(state_of(base), state_of(strategy)) == set()
    strategy.listeners.append(lambda s: rates.append(s.optimizer.param_groups[0]["lr"]))
    learn(strategy, 1)
    assert len(rates) == strategy.budget.steps == 3
    assert rates[-1] < 2e-3 * TRAINING.learning_rate  # the one cycle ends with the third step


def test_joint_training_has_one_learning_rate(samples: list[Sample]) -> None:
    for given, expected in ((None, TRAINING.learning_rate), (0.5, 0.5)):
        strategy = configured("joint", samples, STREAM[:2], learning_rate=given)
        assert strategy.learning_rate() == expected


# -- a structure comes again ------------------------------------------------------------------------------------


def test_an_addition_that_comes_again_goes_on_learning_by_itself(samples: list[Sample]) -> None:
    strategy = learn(configured("experts_frozen", samples, AGAIN), 0, 1, 2)
    before = state_of(strategy)
    learn(strategy, 3)
    after = state_of(strategy)
    assert after.keys() == before.keys()
    mine = {name for name in before if ".own.nucleolus." in name}
    assert differing(before, after) == mine
    first, second = ({image for _, image in strategy.trained_patches[number]} for number in (1, 3))
    assert first
    assert second
    assert not first & second


def test_an_addition_that_others_see_cannot_come_again(samples: list[Sample]) -> None:
    with pytest.raises(ConfigError, match="nucleolus comes again after mitochondria"):
        configured("experts_frozen", samples, AGAIN, sees="all")
    configured("experts_frozen", samples, (*STREAM[:2], ("nucleolus",)), sees="all")


@pytest.mark.parametrize("name", ["multi_net", pytest.param("lwf", marks=pytest.mark.slow), "replay"])
def test_every_strategy_takes_a_structure_that_comes_again(samples: list[Sample], name: str) -> None:
    strategy = learn(configured(name, samples, AGAIN))
    again = len(strategy.stream.experiences) - 1
    assert strategy.stream.experiences[again] == ("nucleolus",)
    assert "nucleolus" in {structure for structure, _ in strategy.trained_patches[again]}
    if name == "multi_net":
        assert set(strategy.trained_patches) == set(range(5))
        assert strategy.network.structures == (*BASE, "nucleolus", "mitochondria")


# -- before running ---------------------------------------------------------------------------------------------


def test_a_dry_run_knows_what_every_strategy_costs() -> None:
    config = Config(
        name="tiny",
        network=NetworkConfig(width=2, depth=1, experts=("conv3",)),
        patch=PatchConfig(size=(4, 8, 8)),
        training=TRAINING,
        strategies=(
            *(StrategyConfig(name=name) for name in STRATEGY_NAMES),
            StrategyConfig(name="experts_frozen", steps=2),
            StrategyConfig(name="replay", replay_batch=20),
        ),
    )
    plan = estimate_run(config, {"order-1": StreamVariant(AGAIN), "images-2": StreamVariant(STREAM, 2)})
    assert (
        plan.lines[0]
        == "stream order-1: dna + cell_membrane, then nucleolus, then mitochondria, then nucleolus"
    )
    assert plan.lines[1].endswith("then mitochondria (2 image(s) of each after the first)")
    seconds = {line.split(":")[0]: line for line in plan.lines[2:]}
    assert list(seconds) == [one.title for one in config.strategies]
    assert "1 seed(s) x 2 streams x 12 to 16 steps of 2 patches" in seconds["joint"]
    assert "x 8 to 10 steps" in seconds["experts_frozen_2steps"]
    assert plan.seconds > 0


def test_a_dry_run_counts_the_images_that_select(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(select_by: str) -> float:
        config = Config(
            name="tiny",
            training=TRAINING.model_copy(update={"select_by": select_by}),
            strategies=(StrategyConfig(name="fine_tuning"),),
        )
        return estimate_run(config, {"": StreamVariant(STREAM)}).seconds

    # A step takes nothing, an image a second: 16 fields, of which 4 test and 1 validates.
    monkeypatch.setattr("repmode_cl.benchmark.dry_run._time_network", lambda *_: (0.0, 1.0))
    monkeypatch.setattr("repmode_cl.benchmark.dry_run.windows_of_image", lambda _: 1)
    tests, validations = 4 * (2 + 3 + 4), 2
    assert seconds("new") == tests + validations * (2 + 1 + 1)
    assert seconds("known") == tests + validations * (2 + 3 + 4)


def test_a_dry_run_times_the_threads_of_a_trial_and_divides_among_jobs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[int] = []

    def time_network(*_: object) -> tuple[float, float]:
        threads.append(torch.get_num_threads())
        return 1.0, 0.0

    monkeypatch.setattr("repmode_cl.benchmark.dry_run._time_network", time_network)
    monkeypatch.setattr("repmode_cl.benchmark.trials.workers_here", lambda: 6)
    config = Config(
        name="tiny", training=TRAINING, strategies=(StrategyConfig(name="fine_tuning"),), seeds=(0, 1)
    )
    streams = {"": StreamVariant(STREAM)}
    before = torch.get_num_threads()
    alone = estimate_run(config, streams, threads=3)
    both = estimate_run(config, streams, jobs=2)
    assert threads == [3, 3]
    assert torch.get_num_threads() == before
    assert alone.seconds == both.seconds == 2 * 12
    assert str(alone).endswith("about 24 s in all, 3 threads each; nothing was run")
    assert str(both).endswith(
        "about 24 s in all, 12 s with 2 trials at once, 3 threads each; nothing was run"
    )
    # There are two trials: more cannot run at once.
    assert estimate_run(config, streams, jobs=8, threads=1).jobs == 2
    with pytest.raises(ConfigError, match="leave out --scheduler"):
        estimate_run(config, streams, scheduler="tcp://node:8786")


def test_a_dry_run_counts_windows_on_the_grid_of_the_network(tmp_path: Path) -> None:
    def windows(**data: Any) -> float:
        patch = PatchConfig(size=(8, 32, 32))
        return windows_of_image(Config(name="tiny", patch=patch, training=TRAINING, data=DataConfig(**data)))

    coarse = {"voxel_size": (0.58, 0.58, 0.58)}
    field = {"shape": (24, 128, 128)}
    assert windows(simulate=field) == 5 * 7 * 7
    assert windows(simulate=field, preprocessing=coarse) == 2 * 3 * 3
    signal = tmp_path / "a.npy"
    np.save(signal, np.zeros((24, 128, 128), np.uint8))
    manifest = tmp_path / "manifest.csv"
    rows = ["structure,signal,target,voxel_size_zyx,region"]
    rows += ["dna,a.npy,a.npy,0.29 0.29 0.29,", 'dna,a.npy,a.npy,0.29 0.29 0.29,"0:16,0:64,0:64"']
    manifest.write_text("\n".join([*rows, "dna,gone.npy,a.npy,0.29 0.29 0.29,"]))
    assert windows(manifest=str(manifest), preprocessing=coarse) == (2 * 3 * 3 + 1) / 2


def test_a_strategy_of_the_package_that_is_built_wrongly_is_a_defect(samples: list[Sample]) -> None:
    strategy = configured("ewc", samples, STREAM[:2])
    network = NetworkConfig(width=2, depth=1, experts=("conv3",))
    config = Config(name="tiny", network=network, training=TRAINING, strategies=(StrategyConfig(name="ewc"),))
    with pytest.raises(TypeError):
        build_strategy(config, config.strategies[0], strategy.stream, 0, nonsense=1)


def test_a_strategy_may_have_a_network_of_its_own(samples: list[Sample]) -> None:
    network = NetworkConfig(width=4, depth=1, experts=("conv3", "conv1"))
    rows = tuple(
        StrategyConfig(name=name, label=f"{name} {number}", network=own)
        for name in ("experts_frozen", "fine_tuning")
        for number, own in enumerate(
            (None, {"experts": ["conv1", "conv1"]}, {"scope": "encoder", "width": 2})
        )
    )
    joint = StrategyConfig(name="joint", label="input-dependent", network={"gate": "input"})
    config = Config(
        name="tiny", network=network, patch=PatchConfig(size=(4, 8, 8)), training=TRAINING, strategies=rows
    )
    assert parse_config(dump_config(config)) == config
    stream = configured("experts_frozen", samples).stream
    built = [build_strategy(config, row, stream, 0) for row in rows]
    shapes = [one.network.architecture for one in built]
    assert [(one.width, one.experts, one.scope) for one in shapes[:3]] == [
        (4, ("conv3", "conv1"), "both"),
        (4, ("conv1", "conv1"), "both"),
        (2, ("conv3", "conv1"), "encoder"),
    ]
    keys = [one.base_key for one in built]
    # Only strategies of one network share a base.
    assert keys[:3] == keys[3:]
    assert len(set(keys)) == 3
    more = config.model_copy(update={"strategies": (*rows, joint)})
    plan = estimate_run(more, {"": StreamVariant(STREAM)})
    assert len(plan.of_strategies) == 7
    one = config.model_copy(update={"strategies": rows[2:3]})
    check_strategies(one, {"": StreamVariant(STREAM)}, rehearse_all=True)


def test_a_gate_of_the_input_is_trained_jointly_and_evaluated_unfused(samples: list[Sample]) -> None:
    strategy = learn(configured("joint", samples, STREAM, label="input-dependent", network={"gate": "input"}))
    figures = strategy.evaluate(list(strategy.stream.test))
    assert set(figures) == {name for names in STREAM for name in names}
    found = predictions(strategy, ("dna", "nucleolus"))
    assert torch.equal(found["dna"], found["nucleolus"])  # no structure is an input


def test_the_own_network_of_a_strategy_is_checked() -> None:
    def config(**network: Any) -> Config:
        row = StrategyConfig(name="joint", label="own", network=network)
        return Config(
            name="tiny",
            network=NetworkConfig(width=2, depth=1),
            patch=PatchConfig(size=(4, 8, 8)),
            training=TRAINING,
            strategies=(row,),
        )

    with pytest.raises(ValidationError, match=r"own: network: .*reads no structure"):
        config(gate="input", embedding="gauss")
    with pytest.raises(ValidationError, match=r"network: .*conv7.* is no expert"):
        config(experts=["conv7"])
    with pytest.raises(ValidationError, match="needs a label"):
        StrategyConfig(name="joint", network={"scope": "encoder"})
    with pytest.raises(ConfigError, match=r"depth 6 .network.depth. needs at least"):
        check_strategies(config(depth=6), {"": StreamVariant(STREAM)})
    assert "network" not in StrategyConfig(name="joint").model_dump()
    assert set(NetworkConfig().model_dump()) == {"width", "depth", "experts"}
