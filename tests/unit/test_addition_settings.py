"""Named settings of an addition, small and best: what they stand for in a configuration, and in `add` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tiny_addition import make_base
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.config import Config, StrategyConfig, load_config, parse_config
from repmode_cl.config.addition_settings import (
    ADDITION_SETTINGS,
    DEFAULT_SETTING,
    AdditionSetting,
    expert_of_setting,
    kind_of_setting,
)
from repmode_cl.config.load import dump_config
from repmode_cl.config.search_schema import with_values
from repmode_cl.errors import ConfigError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec, Architecture
from repmode_cl.workflows.options import TrainingOverrides
from repmode_cl.workflows.training_settings import (
    addition_notes,
    addition_rate,
    addition_strategy,
    resolve_addition,
)

SMALL, BEST = ADDITION_SETTINGS["small"], ADDITION_SETTINGS["best"]


def kind_in(setting: AdditionSetting, width: int, depth: int) -> AdditionSpec:
    expert = expert_of_setting(setting, width=width, depth=depth)
    return AdditionSpec(**kind_of_setting(setting) | {"expert": expert})


@pytest.mark.parametrize(
    ("width", "depth", "expert"),
    [
        (8, 1, "8,8"),
        (8, 2, "8,8,3"),
        (8, 3, "8,8,3,1"),
        (32, 4, "8,8,3,1,1"),
        (8, 6, "8,8,3,1,1,1,1"),
        (4, 3, "4,4,2,1"),
        (1, 3, "1,1,1,1"),
    ],
)
def test_ranks_of_a_setting_are_those_of_the_network_s_levels(width: int, depth: int, expert: str) -> None:
    """Deeper levels take the last rank; fewer levels have no use for the last ones; narrow networks have less."""
    assert expert_of_setting("small", width=width, depth=depth) == f"lowrank:{expert}"
    assert expert_of_setting("best", width=width, depth=depth) == "conv3"
    architecture = Architecture(width=width, depth=depth)
    assert resolve_addition(None, None, architecture) == (kind_in("small", width, depth), "small")
    small = {"name": "experts_frozen", "setting": "small"}
    config = load_config("quickstart").model_dump(mode="json", exclude={"strategies", "comparisons"})
    config |= {
        "strategies": [small, {**small, "expert": "lowrank:2"}],
        "network": {"depth": depth, "width": width},
    }
    config["data"]["simulate"]["shape"] = [2**depth, 2**depth, 2**depth]
    config["patch"]["size"] = [2**depth, 2**depth, 2**depth]
    read = Config.model_validate(config)
    assert [one.expert for one in read.strategies] == [f"lowrank:{expert}", "lowrank:2"]
    assert [one.title for one in read.strategies] == ["experts_frozen_small", "experts_frozen_small_lowrank2"]
    recorded = [one.model_dump(include={"name", "setting", "expert"}) for one in read.strategies]
    again = [StrategyConfig.model_validate(one) for one in recorded]
    assert [one.title for one in again] == [one.title for one in read.strategies]


def test_a_setting_fills_in_what_is_not_given_and_is_recorded() -> None:
    row = StrategyConfig.model_validate({"name": "experts_frozen", "setting": "small"})
    assert {key: getattr(row, key) for key in SMALL} == dict(SMALL)
    assert row.title == "experts_frozen_small"
    assert {key: row.model_dump()[key] for key in SMALL} == dict(SMALL)
    recorded = row.model_dump(include={"name", "setting", *SMALL})
    assert StrategyConfig.model_validate(recorded) == row
    other = StrategyConfig(name="experts_frozen", setting="small", expert="lowrank:2", learning_rate=1e-3)
    assert (other.expert, other.learning_rate) == ("lowrank:2", 1e-3)
    assert other.title == "experts_frozen_small_lowrank2"
    learning = StrategyConfig(name="experts_frozen", setting="small", gate_steps=1)
    assert learning.title == "experts_frozen_small_gates1"
    # Without an expert the gates are what learns: they do to the end.
    without = StrategyConfig(name="experts_frozen", setting="small", expert="none")
    assert (without.gate_steps, without.title) == (1, "experts_frozen_small_none")
    assert StrategyConfig.model_validate(without.model_dump(include={"name", "setting", "expert"})) == without
    # What a run recorded before there were settings is written as it was.
    assert "setting" not in StrategyConfig(name="experts_frozen").model_dump()


@pytest.mark.parametrize("setting", ["small", "best"])
@pytest.mark.parametrize("key", ["expert", "resampling", "init_from", "learning_rate", "gate_steps"])
def test_what_is_given_in_place_of_the_settings_own_survives_writing(
    setting: AdditionSetting, key: str
) -> None:
    """Also where it is what holds without a setting: left out, the setting would fill in its own."""
    default = StrategyConfig.model_fields[key].default
    given = {"name": "experts_frozen", "setting": setting, key: default}
    config = load_config("quickstart").model_dump(mode="json", exclude={"strategies", "comparisons"})
    read = Config.model_validate(config | {"strategies": [given]})
    assert getattr(read.strategies[0], key) == default
    again = parse_config(dump_config(read))
    assert again == read
    assert again.strategies[0].title == read.strategies[0].title
    varied = with_values(read.strategies[0], {"decay_to_base": 0.0}, None)
    assert getattr(varied, key) == default


def test_only_settings_that_there_are_and_only_of_additions() -> None:
    with pytest.raises(ValidationError, match="'small' or 'best'"):
        StrategyConfig.model_validate({"name": "experts_frozen", "setting": "tiny"})
    with pytest.raises(ValidationError, match="setting is an option of experts_frozen, not of fine_tuning"):
        StrategyConfig.model_validate({"name": "fine_tuning", "setting": "small"})
    with pytest.raises(ConfigError, match=r"setting 'smal' \(did you mean 'small'\?\)"):
        resolve_addition(None, "smal", Architecture())


def test_a_specification_is_of_no_setting_unless_one_is_named() -> None:
    assert resolve_addition(None, None, Architecture(depth=3)) == (
        kind_in(DEFAULT_SETTING, Architecture().width, 3),
        DEFAULT_SETTING,
    )
    assert resolve_addition(AdditionSpec(), None, Architecture()) == (AdditionSpec(), None)
    assert resolve_addition(AdditionSpec("conv1"), "best", Architecture()) == (AdditionSpec("conv1"), "best")


@pytest.mark.parametrize(
    ("named", "given", "setting", "rate"),
    [
        ({}, None, "small", SMALL["learning_rate"]),
        ({"learning_rate": 0.5}, None, "small", SMALL["learning_rate"]),
        ({"learning_rate": 0.5, "setting": "best"}, None, "small", SMALL["learning_rate"]),
        ({"learning_rate": 0.5, "setting": "small"}, None, "small", 0.5),
        ({"learning_rate": 0.5, "setting": "small"}, 0.1, "small", 0.1),
        ({"learning_rate": 0.5}, None, None, 0.5),
        ({}, None, None, None),
    ],
)
def test_where_the_rate_comes_from(
    named: dict[str, Any], given: float | None, setting: Any, rate: float | None
) -> None:
    overrides = TrainingOverrides(learning_rate=given)
    assert addition_rate({"addition": named}, overrides, setting) == rate


@pytest.mark.parametrize(
    ("named", "given", "setting", "share"),
    [
        ({}, None, "small", SMALL["gate_steps"]),
        ({"setting": "small"}, None, "small", SMALL["gate_steps"]),  # of a version whose settings had none
        ({"gate_steps": 0.4}, None, "small", SMALL["gate_steps"]),
        ({"gate_steps": 0.4, "setting": "best"}, None, "small", SMALL["gate_steps"]),
        ({"gate_steps": 0.4, "setting": "small"}, None, "small", 0.4),
        ({"gate_steps": 1.0, "setting": "small"}, None, "small", 1.0),
        ({"gate_steps": 0.4, "setting": "small"}, 1.0, "small", 1.0),
        ({}, 1.0, "best", 1.0),
        ({"gate_steps": 0.4}, None, None, 0.4),
        ({"gate_steps": 0.4}, 1.0, None, 1.0),
        ({}, None, None, 1.0),
    ],
)
def test_where_the_share_of_steps_comes_from_in_which_gates_learn(
    named: dict[str, Any], given: float | None, setting: Any, share: float
) -> None:
    spec = AdditionSpec() if setting is None else kind_in(setting, 4, 1)
    overrides = TrainingOverrides(gate_steps=given)
    strategy = addition_strategy({"addition": named}, overrides, spec, setting)
    assert strategy.gate_steps == share
    assert strategy.model_dump(mode="json").get("gate_steps", 1.0) == share  # what a model records


@pytest.mark.parametrize(
    ("named", "given", "setting", "said"),
    [
        (
            {"learning_rate": 1e-3},
            None,
            "small",
            "the rate 0.001 in the base's configuration is not used: small has its own, 0.02",
        ),
        (
            {"learning_rate": 1e-3, "setting": "best"},
            None,
            "small",
            "the rate 0.001 for best in the base's configuration is not used",
        ),
        ({"learning_rate": 1e-3, "setting": "small"}, None, "small", None),
        ({"learning_rate": 1e-3}, 0.01, "small", None),
        ({"learning_rate": SMALL["learning_rate"]}, None, "small", None),
        ({}, None, "small", None),
        ({}, None, None, "this is no setting: the kind is conv3, base's norm"),
    ],
)
def test_a_rate_or_kind_beside_the_setting_is_said(
    named: dict[str, Any], given: float | None, setting: Any, said: str | None
) -> None:
    overrides, spec = TrainingOverrides(learning_rate=given), AdditionSpec(norm="base")
    notes = addition_notes({"addition": named}, overrides, spec, setting, "none")
    assert len(notes) == (said is not None)
    assert said is None or said in notes[0]


@pytest.mark.parametrize(
    ("options", "spec", "rate", "setting"),
    [
        ((), kind_in("small", 4, 1), SMALL["learning_rate"], "small"),
        (("--setting", "best"), AdditionSpec(**kind_of_setting("best")), BEST["learning_rate"], "best"),
        (
            ("--setting", "small", "--expert", "lowrank:2"),
            AdditionSpec("lowrank:2", resampling="base"),
            SMALL["learning_rate"],
            "small",
        ),
        (("--expert", "conv1"), AdditionSpec("conv1"), 0.02, None),
        (("--learning-rate", "0.003"), kind_in("small", 4, 1), 0.003, "small"),
    ],
)
def test_what_add_trains(
    manifest: Path, tmp_path: Path, options: tuple[str, ...], spec: AdditionSpec, rate: float, setting: Any
) -> None:
    model = make_base(tmp_path / "model")
    words = ["add", model, "--structure", "nucleolus", "--data", manifest, "--steps", 2, *options]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    entry = Model.open(model).entries["nucleolus"]
    assert entry.spec == spec
    assert entry.provenance["training"]["learning_rate"] == rate
    assert entry.provenance["addition"].get("setting") == setting
    shared = 1 if setting is None else ADDITION_SETTINGS[setting]["gate_steps"]
    assert entry.provenance["addition"].get("gate_steps", 1) == shared
