"""A user's own strategy: the example of the documentation, and what can be wrong with a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_run import changed, make_manifest, tiny
from tiny_strategies import STREAM, configured, learn, state_of

from repmode_cl import strategies
from repmode_cl.benchmark import run_benchmark
from repmode_cl.config import Config, StrategyConfig, StreamConfig
from repmode_cl.config.extension_schema import PluginConfig
from repmode_cl.config.load import dump_config, load_config, parse_config
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError
from repmode_cl.report.tables import run_tables
from repmode_cl.report.tables.strategies import csv_keys
from repmode_cl.results import read_run_info
from repmode_cl.results.merge_runs import merge_runs
from repmode_cl.results.run_folder import read_run
from repmode_cl.strategies import StructureStrategy
from repmode_cl.strategies.registry import strategy_class, strategy_file_digest
from repmode_cl.utils.atomic_files import sha256_file

DOCS = Path(__file__).parents[2] / "docs" / "strategies.md"
TWO = STREAM[:2]


@pytest.fixture
def example(tmp_path: Path) -> str:
    """Return the name of the documentation's own strategy, its file written out."""
    [code] = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) == 20
    (tmp_path / "part_of_the_way.py").write_text(code, encoding="utf-8")
    return f"{tmp_path / 'part_of_the_way.py'}:PartOfTheWay"


def shared_of(strategy: StructureStrategy) -> set[str]:
    return {n for n, _ in strategy.network.named_parameters() if ".gates." not in n}


def test_the_example_does_what_it_says(samples: list[Sample], example: str) -> None:
    tuned = configured("fine_tuning", samples, TWO)
    base = state_of(learn(tuned, 0))
    moved = state_of(learn(tuned, 1))
    for share in (0.0, 0.25, 1.0):
        strategy = learn(configured(example, samples, TWO, options={"share": share}))
        now, shared = state_of(strategy), shared_of(strategy)
        for name in shared:
            expected = base[name] + share * (moved[name] - base[name])
            assert (now[name] - expected).abs().max() < 1e-6
        assert "nucleolus" in strategy.network.structures
        assert strategy.base_key == "repmode"
    assert configured(example, samples, TWO).base_key == "repmode"


def test_what_is_inherited_does_not_share_a_base(samples: list[Sample], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from repmode_cl.strategies import FineTuning\n\n"
        "class Mine(FineTuning):\n    def criterion(self):\n        return super().criterion() * 2\n"
    )
    assert configured(f"{file}:Mine", samples, TWO).base_key is None


def test_a_moved_project_is_resumed_with_its_files(tmp_path: Path) -> None:
    """Where an order, a strategy and a plugin lie is no setting; what is in them is."""
    project, moved = tmp_path / "project", tmp_path / "moved"
    project.mkdir()
    make_manifest(project)
    (project / "order.txt").write_text("nucleolus\n")
    (project / "mine.py").write_text(
        "from avalanche.training.plugins import SupervisedPlugin\n"
        "from repmode_cl.strategies import FineTuning\n\n"
        "class Mine(FineTuning): ...\n\nclass Plug(SupervisedPlugin): ...\n"
    )

    def configuration(folder: Path) -> Config:
        config = tiny(folder / "manifest.csv", folder / "runs")
        return changed(
            config,
            stream=StreamConfig(base=("dna",), order_file=str(folder / "order.txt")),
            strategies=(StrategyConfig(name=f"{folder / 'mine.py'}:Mine"),),
            plugins=(PluginConfig(name=f"{folder / 'mine.py'}:Plug"),),
        )

    run = run_benchmark(configuration(project))
    before = (run / "results.csv").read_bytes()
    project.rename(moved)
    again = run_benchmark(configuration(moved), resume=True)
    assert (again / "results.csv").read_bytes() == before
    (moved / "mine.py").write_text((moved / "mine.py").read_text() + "\n")
    with pytest.raises(ConfigError, match=r"the file of the strategy .* has changed since"):
        run_benchmark(configuration(moved), resume=True)


@pytest.mark.slow
def test_what_inherits_from_joint_training_adds_nothing_in_tables(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from repmode_cl.strategies import Joint\n\nclass Mine(Joint): ...\n")
    strategies = tuple(StrategyConfig(name=name) for name in ("multi_net", "joint", f"{file}:Mine"))
    config = changed(tiny(make_manifest(tmp_path), tmp_path / "out"), strategies=strategies)
    folder = run_benchmark(config)
    run, tables = read_run(folder), run_tables(folder)
    _, joint, mine = tables.strategies
    assert mine["learned_r2"] == joint["learned_r2"]
    absent = {key for key, value in joint.items() if value is None}
    assert {"area_r2", "added_steps", "added_seconds", "added_parameters"} <= absent
    assert {key for key in csv_keys() if mine[key] is None} == absent & set(csv_keys())
    assert {title for title, *_ in run.curves} == {"multi_net_k3"}
    assert {row["family"] for row in tables.budgets} == {"multi_net_k3"}
    merged = merge_runs([folder], tmp_path / "merged")
    assert read_run_info(merged).joint_titles == run.info.joint_titles == {"joint", "Mine"}


def test_a_configuration_names_it_in_its_own_folder(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\ntraining: {steps: 4}\nstream: {base: [dna]}\nstrategies:\n"
        "- {name: part_of_the_way.py:PartOfTheWay, options: {share: 0.25}}\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = load_config(file)
    [options] = config.strategies
    assert options.name == example
    assert options.title == "PartOfTheWay"
    assert options.options == {"share": 0.25}
    assert parse_config(dump_config(config)) == config
    over = load_config(file, ["strategies.0.name=part_of_the_way.py:PartOfTheWay"])
    assert over.strategies[0].name == f"{elsewhere / 'part_of_the_way.py'}:PartOfTheWay"


def test_the_file_is_known_by_its_digest(example: str, tmp_path: Path) -> None:
    options, file = StrategyConfig(name=example), tmp_path / "part_of_the_way.py"
    assert strategy_file_digest(options) == sha256_file(file)
    assert strategy_file_digest(StrategyConfig(name="ewc")) is None
    before = strategy_class(options)
    assert strategy_class(options) is before
    file.write_text(file.read_text() + "\n# changed\n")
    assert strategy_class(options) is not before
    file.unlink()
    with pytest.raises(ConfigError, match="there is no file"):
        strategy_file_digest(options)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "has no Mine; its strategies are none"),
        ("Mine = 3", "has Mine, which is no subclass of StructureStrategy"),
        (
            "from repmode_cl.strategies import FineTuning\nclass Yours(FineTuning): ...",
            "its strategies are Yours",
        ),
        (
            "import no_such_module",
            "importing .* failed: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("def (", "importing .* failed: SyntaxError"),
        ("import sys\nsys.exit('usage')", "importing .* failed: SystemExit: usage"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, code: str, message: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code)
    with pytest.raises(ConfigError, match=message) as caught:
        strategy_class(StrategyConfig(name=f"{file}:Mine"))
    assert str(file) in str(caught.value)


def test_options_that_it_does_not_take_are_named(samples: list[Sample], example: str) -> None:
    with pytest.raises(ConfigError, match="unexpected keyword argument"):
        configured(example, samples, TWO, options={"shar": 1})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("AveragedGem", "AGEM"),
        ("ElasticWeights", "EWC"),
        ("LearningWithoutForgetting", "LwF"),
        ("MemoryAwareSynapses", "MAS"),
    ],
)
def test_classes_have_their_earlier_names_too(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"strategies.{old} is deprecated: use {new}"):
        assert getattr(strategies, old) is getattr(strategies, new)
    with pytest.raises(AttributeError, match="NoSuchStrategy"):
        strategies.NoSuchStrategy  # noqa: B018
