"""What a search may be: its keys, ranges, seeds and images, and the studies that take what it chooses."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from repmode_cl.benchmark import DryRun, run_benchmark
from repmode_cl.benchmark.search import run_search
from repmode_cl.benchmark.search.plan import plan_search
from repmode_cl.benchmark.search.study_files import matching_strategies, write_studies
from repmode_cl.cli.app import app
from repmode_cl.config import SearchConfig, StrategyConfig, load_config, parse_config
from repmode_cl.config.load import dump_config
from repmode_cl.config.search_schema import SearchRange
from repmode_cl.errors import ConfigError, RepmodeError
from repmode_cl.results.search_table import SearchRow

STUDY = """name: study
training: {steps: 2, learning_rate: 0.01}
network: {width: 4, depth: 1}
patch: {size: [4, 8, 8]}
stream: {base: [dna, cell_membrane], order: [nucleolus]}
strategies: [{name: ewc}, {name: replay}]
"""
KEYS = "ewc: {strength: [1, 10]}"


def refusal(search: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        plan_search(parse_config(f"{STUDY}search: {search}\n", "my.yaml", overrides))
    return str(caught.value)


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        # keys
        ("{kys: {}}", "line 7: search.kys: unknown key (did you mean 'search.keys'?)"),
        (f"{{keys: {{{KEYS}}}}}", "search.keys: nothing is searched for replay"),
        (f"{{keys: {{{KEYS}, repla: {{buffer: [1, 2]}}}}}}", "no strategy is called 'repla' (did you mean 'replay'?)"),
        ("{keys: {ewc: {}, replay: {buffer: [1, 2]}}}", "line 7: search.keys: ewc: names nothing to search"),
        (f"{{keys: {{{KEYS}, replay: {{strength: [1, 2]}}}}}}", "strength is an option of ewc, synaptic_intelligence"),
        (f"{{keys: {{{KEYS}, replay: {{bufer: [1, 2]}}}}}}", "unknown key 'bufer' (did you mean 'buffer'?)"),
        (f"{{keys: {{{KEYS}, replay: {{steps: [1, 2]}}}}}}", "steps cannot be searched: strategies are compared"),
        (f"{{keys: {{{KEYS}, replay: {{options.a: [1, 2]}}}}}}", "options is an option of a strategy of your own"),
        # ranges
        ("{keys: {ewc: {strength: []}}}", "ewc: strength: the list is empty"),
        ("{keys: {ewc: {strength: [1, 1]}}}", "ewc: strength: a value is named twice"),
        ("{keys: {ewc: {strength: [1, [2]]}}}", "ewc: strength: found [2] in the list"),
        ("{keys: {ewc: {strength: 3}}}", "ewc: strength: found 3: a list of values is needed"),
        ("{keys: {ewc: {strength: {low: 2, high: 2, points: 2}}}}", "low is 2 and high 2: there is nothing between"),
        ("{keys: {ewc: {strength: {low: 0, high: 2, log: true}}}}", "low is 0: it must be more than 0"),
        ("{keys: {ewc: {strength: {low: 0}}}}", "ewc: strength: high is missing"),
        ("{keys: {ewc: {strength: {low: 0, high: 1, lg: true}}}}", "unknown key 'lg': there are low, high, log"),
        ("{keys: {ewc: {strength: {low: 1, high: 2}}}}", "an interval in a grid needs points"),
        ("{keys: {replay: {buffer: {low: 1, high: 2, points: 3}}}}", "3 points of whole numbers are more than"),
        (f"{{keys: {{{KEYS}, replay: {{buffer: [1, 2.5]}}}}}}", "replay with buffer 2.5: buffer: found 2.5"),
        ("{keys: {ewc: {strength: [-1, 1]}, replay: {buffer: [1, 2]}}}", "ewc with strength -1: strength: found -1"),
        # equal effort
        (f"{{keys: {{{KEYS}, replay: {{buffer: [1, 2, 3]}}}}}}", "replay has 3 combinations and ewc has 2: every"),
        (f"{{trials: 3, keys: {{{KEYS}, replay: {{buffer: [1, 2]}}}}}}", "ewc has 2 combinations and search.trials is"),
        (
            f"{{sampler: tpe, trials: 3, keys: {{{KEYS}, replay: {{buffer: [1, 2, 3]}}}}}}",
            "ewc has 2 combinations and search.trials is 3: some would be tried twice",
        ),
        ("{trials: 1}", "search.trials: found 1: at least 2 is needed"),
        ("{keys: {ewc: {strength: [1]}, replay: {buffer: [2]}}}", "one combination, and nothing to choose from"),
        # samplers
        ("{sampler: tpe}", "sampler tpe needs trials"),
        ("{batch: 4}", "batch is of the sampler tpe, and sampler is grid"),
        ("{sampler: tpe, trials: 4, keys: {ewc: {strength: {low: 1, high: 2, points: 2}}}}", "points is of the"),
        ("{rule: best}", "search.rule: found \"best\": choose 'end', 'after_learning' or 'end_by_group'"),
        # seeds
        ("{seeds: [3, 0]}", "search.seeds: 0 also in `seeds`: what is chosen with a seed must be measured with others"),
        ("{seeds: []}", "at least one is needed, and none twice"),
        ("{study: tuning, seeds: [7]}", "search.seeds: with search.study all of this configuration is the search's"),
        ("{study: twelve_structures}", "seeds: 0 also in the seeds of the study twelve_structures"),
        # studies
        ("{study: no-such.yaml}", "is neither a file nor a shipped configuration"),
    ],
)  # fmt: skip
def test_a_search_that_cannot_be(search: str, expected: str) -> None:
    assert expected in refusal(search)


def test_every_strategy_has_a_range_of_its_own_where_none_is_named() -> None:
    plan = plan_search(parse_config(f"{STUDY}search: {{}}\n"))
    assert plan.seeds == (1,)
    assert plan.trials == 4
    assert plan.combinations("ewc") == [{"strength": value} for value in (100.0, 1000.0, 10000.0, 100000.0)]
    assert plan.combinations("replay") == [{"learning_rate": value} for value in (0.005, 0.01, 0.02, 0.04)]
    titles = [
        one.title for one in plan.run({title: plan.combinations(title) for title in plan.ranges}).strategies
    ]
    assert titles == [f"{name}-00{number}" for name in ("ewc", "replay") for number in range(4)]
    more = plan_search(parse_config(f"{STUDY}search: {{trials: 7}}\n"))
    assert [len(more.combinations(title)) for title in more.ranges] == [7, 7]
    proposed = plan_search(parse_config(f"{STUDY}search: {{sampler: tpe, trials: 7}}\n"))
    assert proposed.trials == 7
    [strength] = proposed.ranges["ewc"].values()
    assert (strength.low, strength.high, strength.log, strength.grid) == (100.0, 100000.0, True, ())
    # Of the other Fisher information, whose importances have another unit.
    other = plan_search(
        parse_config(
            f"{STUDY}search: {{}}\n", overrides=["strategies=[{name: ewc, fisher: gauss_newton, label: ewc}]"]
        )
    )
    assert other.combinations("ewc") == [{"strength": value} for value in (0.1, 1.0, 10.0, 100.0)]


@pytest.mark.parametrize(
    ("range_", "value", "edge"),
    [
        (SearchRange(values=(1, 10, 100)), 1, True),
        (SearchRange(values=(1, 10, 100)), 10, False),
        (SearchRange(values=(100, 10, 1)), 100, True),
        (SearchRange(values=(10,)), 10, False),
        (SearchRange(values=("conv3", "conv5")), "conv3", False),
        (SearchRange(values=(True, False)), True, False),
        (SearchRange(values=(3, 5), choice=True), 3, False),
        (SearchRange(low=0, high=1), 0.04, True),
        (SearchRange(low=0, high=1), 0.06, False),
        (SearchRange(low=1, high=10000, log=True), 1.4, True),
        (SearchRange(low=1, high=10000, log=True), 2.0, False),
        (SearchRange(low=1, high=10000, log=True), 9000, True),
    ],
)
def test_the_edge_of_a_range(range_: SearchRange, value: Any, edge: bool) -> None:
    assert range_.at_edge(value) is edge


def test_the_grid_of_an_interval() -> None:
    assert SearchRange(low=5e-3, high=4e-2, log=True, points=4).grid == (0.005, 0.01, 0.02, 0.04)
    assert SearchRange(low=0.0, high=1.0, points=3).grid == (0.0, 0.5, 1.0)
    whole = SearchRange(low=2, high=32, log=True, whole=True, points=3).grid
    assert whole == (2, 8, 32)
    assert all(type(value) is int for value in whole)


def test_an_interval_of_a_key_of_whole_numbers_holds_whole_numbers() -> None:
    """Whichever keys strategies get."""
    for key, field in StrategyConfig.model_fields.items():
        kinds = str(field.annotation)
        if key != "steps" and "int" in kinds and "tuple" not in kinds and "Literal" not in kinds:
            search = SearchConfig(keys={"one": {key: {"low": 1, "high": 9, "points": 2}}})
            assert all(type(value) is int for value in search.ranges("one")[key].grid), key


# -- the shipped searches, and studies elsewhere ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "trials", "studies"),
    [("tuning", 5, ["twelve_structures", "table3", "few_shot"]), ("tuning_all", 4, ["all_strategies"])],
)
def test_the_shipped_searches_see_nothing_of_their_studies(
    name: str, trials: int, studies: list[str]
) -> None:
    plan = plan_search(load_config(name))
    assert plan.trials == trials
    assert list(plan.studies) == [f"study-{study}.yaml" for study in studies]
    for study in plan.studies.values():
        assert plan.data.manifest is None
        assert study.data.manifest is None
        assert plan.data.simulate.seed != study.data.simulate.seed
        assert not set(plan.seeds) & set(study.seeds)
    matches = matching_strategies(plan)
    if name == "tuning":
        # All that is trained after a base takes its rate from here, also with fewer steps.
        assert matches["study-twelve_structures.yaml"] == {
            "experts_frozen": "experts_frozen",
            "experts_frozen_50steps": "experts_frozen",
            "fine_tuning": "fine_tuning",
            "multi_net_k3": "multi_net_k3",
            "multi_net_k5": "multi_net_k5",
            "multi_head_decoder_k3": "multi_head_decoder_k3",
            "experts_frozen_conv5": "experts_frozen_conv5",
        }
        assert all(
            len(matches[f"study-{study.name}.yaml"]) == len(study.strategies)
            for study in plan.studies.values()
        )
    else:
        assert set(matches["study-all_strategies.yaml"].values()) == set(plan.ranges)


def test_a_study_elsewhere_takes_the_values_and_keeps_the_rest(tmp_path: Path) -> None:
    plan = plan_search(load_config("tuning_all", [f"output={tmp_path}"]))
    rows = [
        SearchRow(title, 2, f"{title}-002", plan.combinations(title)[2], 0.5, chosen=True)
        for title in plan.ranges
    ]
    [path] = write_studies(plan, rows)
    before, after = load_config("all_strategies"), load_config(path)
    assert after.model_copy(update={"strategies": before.strategies}) == before
    matches = matching_strategies(plan)[path.name]
    for old, new in zip(before.strategies, after.strategies, strict=True):
        changed = {key for key in type(old).model_fields if getattr(old, key) != getattr(new, key)}
        [(key, value)] = plan.combinations(matches[old.title])[2].items()
        assert getattr(new, key) == value
        assert changed <= {key}
    assert set(matches) == {one.title for one in before.strategies}  # nothing is left as it was guessed
    text = path.read_text(encoding="utf-8")
    assert "# joint: learning_rate" in text
    assert "# ewc_strength100000: strength 100000: 0.5000 (trial ewc-002)" in text
    assert "# Measured on other simulated images (data.simulate.seed 7), with other seeds." in text
    assert plan_search(load_config("tuning_all")).search.rule == "end_by_group"


def test_what_a_study_plans_is_planned_of_the_strategies_with_their_new_titles(tmp_path: Path) -> None:
    search = f"search: {{keys: {{{KEYS}, replay: {{buffer: [2, 4]}}}}}}\n"
    text = f"{STUDY}comparisons: [{{first: ewc, second: replay}}]\n{search}"
    plan = plan_search(parse_config(text, "my.yaml", [f"output={tmp_path}"]))
    trials = {title: plan.combinations(title) for title in plan.ranges}
    assert plan.run(trials).comparisons == ()  # the trials are not what was planned of
    rows = [SearchRow(title, 1, f"{title}-001", trials[title][1], 0.5, chosen=True) for title in plan.ranges]
    [path] = write_studies(plan, rows)
    [claim] = load_config(path).comparisons
    assert (claim.first, claim.second) == tuple(one.title for one in load_config(path).strategies)
    assert claim.first == "ewc_strength10"


def test_a_study_keeps_the_values_of_strategies_with_other_options_than_those_searched(
    tmp_path: Path,
) -> None:
    plan = plan_search(load_config("tuning", [f"output={tmp_path}", "search.study=all_strategies"]))
    assert {"experts_frozen", "multi_net_k3"} <= set(matching_strategies(plan)["study-all_strategies.yaml"])
    rows = [
        SearchRow(title, 2, f"{title}-002", plan.combinations(title)[2], 0.5, chosen=True)
        for title in plan.ranges
    ]
    [path] = write_studies(plan, rows)
    before, after = (
        {one.title: one for one in load_config(of).strategies} for of in ("all_strategies", path)
    )
    # What sees earlier additions, or has another expert, has other options than what is searched.
    for other in ("experts_frozen_all", "experts_frozen_lowrank4", "ewc_strength10000"):
        assert after[other] == before[other]
        assert f"# {other}: not searched" in path.read_text(encoding="utf-8")


def test_images_that_may_be_those_of_a_study_are_refused(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(STUDY, encoding="utf-8")
    search = f"{STUDY.replace('name: study', 'name: mine')}seeds: [9]\nsearch: {{study: {study}}}\n"
    # The same images, split alike: what the study tests on is left out, and its cache records the split.
    plan = plan_search(parse_config(search))
    assert plan.data.without_test
    assert plan.data.cache == str(Path("runs", "study", "cache"))
    with pytest.raises(ConfigError, match=r"has other settings of images .* but perhaps the same images"):
        plan_search(parse_config(search, overrides=["data.test_fraction=0.5"]))
    other = plan_search(parse_config(search, overrides=["data.simulate.seed=1"]))
    assert not other.data.without_test
    with pytest.raises(ConfigError, match="no strategy of study has the options of one that is searched"):
        matching_strategies(plan_search(parse_config(search, overrides=["strategies=[{name: joint}]"])))
    with pytest.raises(ConfigError, match=r"both ewc and two would choose values for ewc of study"):
        matching_strategies(
            plan_search(parse_config(search, overrides=["strategies=[{name: ewc}, {name: ewc, label: two}]"]))
        )


# -- the command --------------------------------------------------------------------------------------------------


def test_a_dry_run_says_how_many_trials_there_would_be(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(STUDY + f"output: {tmp_path}\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["bench", str(file), "--search", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "ewc: 4 trials x 1 seed(s) over strength 100.0, 1000.0, 10000.0, 100000.0: about" in result.output
    assert (
        f"8 runs in {tmp_path / 'study-search'}; chosen is the best mean R2 of all structures in"
        in result.output
    )
    # Neither the seed nor the images are those of the configuration.
    images = "training and validation images of the study, split again"
    assert f"\ntrials with seed 1, on images: {images}\n" in result.output
    assert "nothing was run" in result.output
    assert list(tmp_path.iterdir()) == [file]


def test_the_group_search_makes_it_a_search_and_an_option_turns_it_off(tmp_path: Path) -> None:
    config = parse_config(f"{STUDY}output: {tmp_path}\nsearch: {{trials: 2}}\n")
    estimate = run_search(config, dry_run=True)
    assert isinstance(estimate, DryRun)
    assert "ewc: 2 trials" in str(estimate)
    assert estimate.seconds == pytest.approx(sum(estimate.of_strategies.values()))
    with pytest.raises(ConfigError, match="the configuration has the group 'search': run_search runs it"):
        run_benchmark(config)
    file = tmp_path / "my.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert parse_config(dump_config(config)) == config
    assert "2 trials" in CliRunner().invoke(app, ["bench", str(file), "--dry-run"]).output
    assert "trials" not in CliRunner().invoke(app, ["bench", str(file), "--no-search", "--dry-run"]).output


def test_without_optuna_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    actual = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "optuna":
            raise ModuleNotFoundError("No module named 'optuna'", name="optuna")
        return actual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    config = parse_config(f"{STUDY}output: {tmp_path}\nsearch: {{}}\n")
    with pytest.raises(RepmodeError, match=r"a search needs optuna: pip install -e '\.\[search\]'"):
        run_search(config)
    assert not list(tmp_path.iterdir())
