"""The studies of the paper's Table 1: equal budgets, equal searches, and images that the searches do not share."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from repmode_cl.benchmark.search.plan import plan_search
from repmode_cl.benchmark.search.study_files import matching_strategies
from repmode_cl.config import Config, load_config
from repmode_cl.data.pipeline import available_structures
from repmode_cl.scenarios import stream_variants
from repmode_cl.strategies.registry import strategy_class, strategy_section
from repmode_cl.structures import TWELVE_STRUCTURES


def steps_of_all(config: Config) -> dict[str, int]:
    """Return the steps of each strategy of a study, over all of its experiences."""
    [variant] = stream_variants(config.stream, available_structures(config)).values()
    steps = {}
    for options in config.strategies:
        kind, section = strategy_class(options), strategy_section(options)
        groups, _ = kind.regroup(variant.experiences, section)
        steps[options.title] = sum(
            kind.steps_of(config.training, section, variant.experiences, names, 0) for names in groups
        )
    return steps


@pytest.mark.parametrize(("name", "steps"), [("table1", 600), ("table1_incremental", 600 + 8 * 150)])
def test_every_system_of_a_study_sees_as_many_patches(name: str, steps: int) -> None:
    config = load_config(name)
    assert set(steps_of_all(config).values()) == {steps}
    assert {*config.stream.base, *(config.stream.order or ())} == set(TWELVE_STRUCTURES)


def test_rivals_of_table1_have_both_kernels_and_are_trained_jointly() -> None:
    strategies = load_config("table1").strategies
    rivals = [one for one in strategies if one.name != "joint"]
    of_kernel = [
        [(one.name, one.head if one.name == "multi_head" else "") for one in rivals if one.kernel == k]
        for k in (3, 5)
    ]
    assert of_kernel[0] == of_kernel[1]
    assert len(of_kernel[0]) == 8
    assert {one.mode for one in rivals if one.name not in ("multi_net", "multi_head")} == {"joint"}


def test_rivals_of_the_incremental_study_keep_what_is_old() -> None:
    strategies = load_config("table1_incremental").strategies
    assert {one.mode for one in strategies} == {"frozen"}
    assert [one.setting for one in strategies if one.name == "experts_frozen"] == ["small", "best"]
    assert "multi_head" not in {one.name for one in strategies}  # it fine-tunes what is shared


@pytest.mark.parametrize("name", ["table1", "table1_incremental"])
def test_each_system_gets_the_same_search_on_other_cells(name: str) -> None:
    study, tuning = load_config(name), load_config(f"tuning_{name}")
    assert tuning.search is not None
    assert tuning.search.studies == (name,)
    assert len(tuning.search.keys) == len(study.strategies)
    # The same values for all, but that those of Multi-Net's short trainings of `table1` are twice as high.
    values = {title: next(iter(ranges.values())) for title, ranges in tuning.search.keys.items()}
    factor = {title: 2 if name == "table1" and title.startswith("multi_net") else 1 for title in values}
    first = next(iter(values.values()))
    assert all(one == [factor[title] * value for value in first] for title, one in values.items())
    # The key that sets the rate of its whole training: Multi-Head's joint training is that of a base.
    for title, ranges in tuning.search.keys.items():
        key = "base_learning_rate" if title.startswith("multi_head") else "learning_rate"
        assert list(ranges) == [key], title
    assert [one.title for one in tuning.strategies] == [one.title for one in study.strategies]
    assert tuning.data.simulate.seed != study.data.simulate.seed
    assert not set(tuning.seeds) & set(study.seeds)
    for section in ("network", "patch", "training"):
        assert getattr(tuning, section) == getattr(study, section)


@pytest.mark.parametrize(
    ("name", "edges", "steadier"),
    [
        # PIPO-FAN with kernel 5 learns nothing in one seed of the study at its best rate, and takes half of it.
        ("table1", {"condnet_k5_joint"}, {"pipo_fan_k5_joint": 2}),
        ("table1_incremental", {"condnet_k3", "tgnet_k3"}, {}),
    ],
)
def test_every_systems_rate_is_the_best_of_its_trials_and_lies_between_two_others(
    name: str, edges: set[str], steadier: dict[str, int]
) -> None:
    trials: dict[str, dict[float, float]] = {}
    file = Path(__file__).parents[2] / "docs" / "results" / f"tuning_{name}" / "trials.csv"
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            if row["made"] != "before a correction":
                trials.setdefault(row["strategy"], {})[float(row["learning_rate"])] = float(row["mean"])
    for one in load_config(name).strategies:
        found = trials[one.title]
        rate = one.base_learning_rate if one.name == "multi_head" else one.learning_rate
        assert rate is not None
        best = max(found, key=lambda value: found[value])
        if one.title in steadier:
            assert best == pytest.approx(rate * steadier[one.title])
            continue
        # What the page says of those at an edge: there is nothing to gain beyond it.
        assert found[best] - found[rate] <= (0.0025 if one.title in edges else 0)
        assert (best in (min(found), max(found))) == (one.title in edges), one.title


@pytest.mark.parametrize("name", ["table1", "table1_incremental"])
def test_every_system_of_a_study_takes_what_the_search_chooses_for_it(name: str) -> None:
    found = matching_strategies(plan_search(load_config(f"tuning_{name}")))
    titles = [one.title for one in load_config(name).strategies]
    assert found == {f"study-{name}.yaml": {title: title for title in titles}}
