"""Plugins and loggers that a configuration names: they are in every trial, and mistakes in them are found first."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
from tiny_run import SEED, changed, make_manifest, tiny

from repmode_cl.benchmark import run_benchmark
from repmode_cl.config import Config, StrategyConfig
from repmode_cl.config.extension_schema import LoggerConfig, PluginConfig
from repmode_cl.config.load import dump_config, load_config, parse_config
from repmode_cl.errors import ConfigError
from repmode_cl.results import ResultsTable
from repmode_cl.strategies.registry import base_key_of, code_digest

CODE = """
from pathlib import Path
from avalanche.logging import BaseLogger
from avalanche.training.plugins import SupervisedPlugin


class PrintGradients(SupervisedPlugin):
    supports_distributed = True

    def __init__(self, path: str, every: int = 1):
        super().__init__()
        self.path, self.every, self.seen = Path(path), every, 0

    def after_backward(self, strategy, **kwargs):
        self.seen += 1
        if self.seen % self.every == 0:
            norm = sum(float(p.grad.square().sum()) for p in strategy.model.parameters() if p.grad is not None) ** 0.5
            with self.path.open("a") as file:
                print(type(strategy).__name__, self.seen, norm, file=file)


class Lines(BaseLogger):
    def __init__(self, path: str):
        super().__init__()
        self.path = Path(path)

    def log_single_metric(self, name, value, x_plot):
        with self.path.open("a") as file:
            print(name, file=file)


def no_class(): ...
"""
#: Figures that no two runs have alike.
MEASURED = ("train_seconds", "cpu_seconds", "peak_memory_bytes")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "mine.py").write_text(CODE)
    strategies = (StrategyConfig(name="fine_tuning"), StrategyConfig(name="avalanche:Naive"))
    return changed(tiny(make_manifest(tmp_path), tmp_path / "out"), strategies=strategies)


def plugin(tmp_path: Path, name: str = "PrintGradients", **options: Any) -> PluginConfig:
    return PluginConfig(name=f"{tmp_path / 'mine.py'}:{name}", options=options)


def figures(folder: Path) -> list[Any]:
    return [row for row in ResultsTable.read(folder / "results.csv") if row.metric not in MEASURED]


def test_a_plugin_and_loggers_are_in_every_trial_and_change_nothing(config: Config, tmp_path: Path) -> None:
    plain = run_benchmark(changed(config, name="plain"))
    seen, named = tmp_path / "gradients.txt", tmp_path / "names.txt"
    with_both = changed(
        config,
        plugins=(plugin(tmp_path, path=str(seen), every=2),),
        loggers=(
            LoggerConfig(name="csv"),
            LoggerConfig(name="tensorboard"),
            LoggerConfig(name=f"{tmp_path / 'mine.py'}:Lines", options={"path": str(named)}),
        ),
    )
    folder = run_benchmark(with_both)
    assert figures(folder) == figures(plain)
    lines = seen.read_text().splitlines()
    # Steps before anything is written: the rehearsal of a strategy from elsewhere ends after the first of each.
    rehearsed = {"fine_tuning": 4, "avalanche_Naive": 2}
    steps = {
        title: sum(
            int(row.value) for row in figures(folder) if (row.strategy, row.metric) == (title, "steps")
        )
        for title in ("fine_tuning", "avalanche_Naive")
    }
    assert steps["fine_tuning"] == 6 + 4 + 4
    for name, title in (("FineTuning", "fine_tuning"), ("Naive", "avalanche_Naive")):
        assert sum(line.startswith(name) for line in lines) == steps[title] // 2 + rehearsed[title] // 2
    assert all(float(line.split()[-1]) > 0 for line in lines)
    for title in ("fine_tuning", "avalanche_Naive"):
        loggers = folder / title / f"seed-{SEED}" / "loggers"
        training = (loggers / "csv" / "training_results.csv").read_text().splitlines()
        assert len(training) == 1 + 3
        evaluations = (loggers / "csv" / "eval_results.csv").read_text().splitlines()
        assert len(evaluations) == 1 + (1 + 2 + 3)
        assert list((loggers / "tensorboard").glob("events.*"))
    names = set(named.read_text().splitlines())
    assert any(name.startswith("Loss_MB/train_phase") for name in names)
    assert any(name.startswith("R2_Exp/eval_phase/test_stream") for name in names)
    assert any(name.startswith("Loss_Exp/eval_phase/test_stream") for name in names)


def test_names_alone_are_short_and_files_lie_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ntraining: {steps: 4}\nplugins: [mine.py:PrintGradients, 'avalanche:EWCPlugin']\n"
        "loggers: [csv, {name: mine.py:Lines, options: {path: x}}]\n"
    )
    config = load_config(tmp_path / "mine.yaml")
    assert [one.name for one in config.plugins] == [
        f"{tmp_path / 'mine.py'}:PrintGradients",
        "avalanche:EWCPlugin",
    ]
    assert [one.name for one in config.loggers] == ["csv", f"{tmp_path / 'mine.py'}:Lines"]
    assert config.loggers[1].options == {"path": "x"}
    assert parse_config(dump_config(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loggers: [tensorbord]", r"found \"?'tensorbord'\"? \(did you mean 'tensorboard'\?\)"),
        ("plugins: [PrintGradients]", "name a class of yours as path/to/file.py:ClassName"),
        ("plugins: [{nam: x}]", "unknown key .did you mean 'plugins.0.name'"),
    ],
)
def test_names_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(f"name: mine\ntraining: {{steps: 4}}\n{text}\n")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "PrintGradiens",
            {},
            r"has no PrintGradiens \(did you mean 'PrintGradients'\?\): a plugin of Avalanche",
        ),
        ("Lines", {}, "has Lines, which is not: a plugin of Avalanche is needed"),
        ("PrintGradients", {"evry": 2}, r"unexpected keyword argument: evry \(did you mean 'every'\?\)"),
        ("PrintGradients", {}, "missing 1 required positional argument: 'path'"),
    ],
)
def test_plugins_that_cannot_be_made_are_found_before_anything_is_written(
    config: Config, tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_benchmark(changed(config, plugins=(plugin(tmp_path, name, **options),)))
    assert not (tmp_path / "out").exists()


def test_a_plugin_of_avalanche_by_a_wrong_name(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"has no EWCPlugn \(did you mean 'EWCPlugin'\?\)"):
        run_benchmark(changed(config, plugins=(PluginConfig(name="avalanche:EWCPlugn"),)), dry_run=True)


def test_wandb_that_is_not_installed_is_named(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "wandb":
            raise ImportError("No module named 'wandb'")
        return importing(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ConfigError, match=r"loggers: wandb: the package wandb cannot be imported .* pip install wandb"
    ):
        run_benchmark(changed(config, loggers=(LoggerConfig(name="wandb"),)), dry_run=True)


@pytest.mark.slow
def test_wandb_writes_an_offline_run(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # wandb keeps settings and caches there
    one = changed(config, strategies=config.strategies[:1], loggers=(LoggerConfig(name="wandb"),))
    folder = run_benchmark(one)
    wandb.teardown()  # ends the process that writes for it, which other tests would count among theirs
    files = sorted(folder.rglob("loggers/wandb/wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 1
    written = files[0].read_bytes()
    for name in (b"R2_Exp/eval_phase/test_stream", b"Loss_MB/train_phase/train_stream", b"iteration"):
        assert name in written


def test_with_plugins_no_base_is_shared_and_their_code_belongs_to_the_run(
    config: Config, tmp_path: Path
) -> None:
    options = config.strategies[0]
    assert base_key_of(config, options) == "repmode"
    assert code_digest(config, options) is None
    with_plugin = changed(config, plugins=(plugin(tmp_path, path="x"),))
    assert base_key_of(with_plugin, options) is None
    before = code_digest(with_plugin, options)
    (tmp_path / "mine.py").write_text(CODE + "\n# changed\n")
    assert code_digest(with_plugin, options) not in (None, before)


@pytest.mark.slow
def test_a_trial_with_a_plugin_starts_again_and_says_so(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = changed(
        config, strategies=config.strategies[:1], plugins=(plugin(tmp_path, path=str(tmp_path / "x")),)
    )
    calls: list[int] = []

    def dies(self: Any) -> None:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("repmode_cl.benchmark.check_strategies.rehearse", lambda *args: None)
        patch.setattr("repmode_cl.strategies.base.StructureStrategy.adjust_gradients", dies)
        with pytest.raises(KeyboardInterrupt):
            run_benchmark(config)
    capfd.readouterr()
    folder = run_benchmark(config, resume=True)
    name = f"{tmp_path / 'mine.py'}:PrintGradients"
    expected = f"fine_tuning seed {SEED}: starts again: the state of the plugin {name} is in no checkpoint"
    assert expected in capfd.readouterr().err
    assert figures(folder) == figures(run_benchmark(changed(config, name="whole")))
