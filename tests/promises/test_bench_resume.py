"""A benchmark that is interrupted goes on as if it had not been, and only as the benchmark that it was."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import ADDED, BASE, MEASURED, SEED, STRUCTURES, TITLES, Done, changed, tiny

from repmode_cl.benchmark import perform_trial as perform_module
from repmode_cl.benchmark import run_benchmark
from repmode_cl.benchmark import trial_run as run_module
from repmode_cl.config import Config, StrategyConfig, StreamConfig
from repmode_cl.config.load import dump_config
from repmode_cl.errors import ConfigError
from repmode_cl.model import Model
from repmode_cl.results.trial_record import TrialOutcome, write_outcome
from repmode_cl.strategies import StructureStrategy
from repmode_cl.strategies.plugins.checkpoint import StrategyCheckpoint


class Interruption(BaseException):
    """Exception that ends a run in the middle."""


#: Where the run is cut off, again and again: strategy, experience, step, and what was just done there.
CUTS = (
    ("experts_frozen", 0, 1, "step"),  # before there is any checkpoint
    ("experts_frozen", 0, 5, "step"),  # some steps after one
    ("experts_frozen", 0, 6, "checkpoint"),  # at the last step's
    ("experts_frozen", 1, 3, "step"),
    ("experts_frozen", 2, 0, "stored"),  # the model holds it, the checkpoint does not say so
    ("experts_frozen", 2, 2, "checkpoint"),
    ("experts_frozen", 3, 0, "checkpoint"),  # all is learned, nothing is finished
    ("fine_tuning", 1, 3, "step"),
    ("fine_tuning", 2, 0, "checkpoint"),
    ("fine_tuning", 3, 0, "finished"),  # results are written, that it is finished is not
    ("multi_net", 0, 3, "step"),
    ("multi_net", 3, 3, "step"),
)


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int, str]]:
    """Interrupt at the first of the list that this returns, wherever that is, and take it off the list."""
    waiting = list(CUTS)
    names: dict[Path, str] = {}

    def reached(name: str, experience: int, step: int, what: str) -> None:
        if waiting and waiting[0] == (name, experience, step, what):
            waiting.pop(0)
            raise Interruption

    build: Callable[..., StructureStrategy] = run_module.build_strategy

    def building(config: Config, options: StrategyConfig, *args: Any, **kwargs: Any) -> StructureStrategy:
        strategy = build(config, options, *args, **kwargs)
        strategy.listeners.append(
            lambda s: reached(options.name, s.progress.experience, s.progress.step, "step")
        )
        names[Path(options.title)] = options.name
        return strategy

    save = StrategyCheckpoint.save

    def saving(self: StrategyCheckpoint, strategy: StructureStrategy) -> None:
        name, progress = names[Path(self.folder.parts[-3])], strategy.progress
        if not progress.step:
            reached(name, progress.experience, 0, "stored")
        save(self, strategy)
        reached(name, progress.experience, progress.step, "checkpoint")

    finish = perform_module.write_outcome

    def finishing(folder: Path, *args: Any) -> None:
        reached(names[Path(folder.parts[-2])], 3, 0, "finished")
        finish(folder, *args)

    monkeypatch.setattr(run_module, "build_strategy", building)
    monkeypatch.setattr(StrategyCheckpoint, "save", saving)
    monkeypatch.setattr(perform_module, "write_outcome", finishing)
    return waiting


def test_an_interrupted_run_ends_as_if_it_had_not_been(
    done: Done, cuts: list[tuple[str, int, int, str]], tmp_path: Path
) -> None:
    config = tiny(done.manifest, tmp_path)
    for left in range(len(CUTS) - 1, -1, -1):
        with pytest.raises(Interruption):
            run_benchmark(config, resume=left < len(CUTS) - 1)
        assert len(cuts) == left
    folder = run_benchmark(config, resume=True)
    assert isinstance(folder, Path)
    again = Done(folder, config, done.manifest, Counter())

    def figures(run: Done) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in run.results if row.metric not in MEASURED]

    assert figures(again) == figures(done)  # in the same order, every float the same
    assert again.info == done.info
    for title in TITLES:
        mine, other = (run.folder / title / f"seed-{SEED}" for run in (again, done))
        assert (mine / "learning.csv").read_bytes() == (other / "learning.csv").read_bytes()
        for name in STRUCTURES:
            one, two = (np.load(path / "predictions" / f"{name}.npz") for path in (mine, other))
            assert all(np.array_equal(one[key], two[key]) for key in ("signal", "target", "prediction"))
    models = [Model.open(run.folder / "experts_frozen" / f"seed-{SEED}" / "model") for run in (again, done)]
    digests = [{name: entry.digest for name, entry in model.entries.items()} for model in models]
    assert digests[0] == digests[1]
    assert models[0].verify().bit_identical


def test_a_finished_run_is_not_changed(done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(done.folder, tmp_path / "tiny"))
    config = changed(done.config, output=str(tmp_path))
    monkeypatch.setattr(perform_module, "TrialRun", None)
    assert run_benchmark(config, resume=True) == folder
    assert (folder / "results.csv").read_bytes() == (done.folder / "results.csv").read_bytes()


@pytest.mark.slow
def test_all_of_a_run_is_trained_in_the_precision_that_it_began_with(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strategies that begin after the interruption too, on a machine whose rule says otherwise."""
    config = tiny(manifest, tmp_path)
    training = config.training.model_copy(update={"precision": "auto"})
    names = ("experts_frozen", "fine_tuning")
    strategies = tuple(StrategyConfig(name=name) for name in names)  # type: ignore[arg-type]
    config = changed(config, training=training, strategies=strategies, stream=StreamConfig(base=BASE))
    run = run_module.TrialRun.run
    trained: list[tuple[str, str]] = []

    def running(self: run_module.TrialRun) -> Any:
        if self.title == "fine_tuning" and not trained[1:]:
            trained.append(("interruption", ""))
            raise Interruption
        trained.append((self.title, self.strategy.precision.format))
        return run(self)

    monkeypatch.setattr(run_module.TrialRun, "run", running)
    for tiles in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles)
        if tiles:
            with pytest.raises(Interruption):
                run_benchmark(config)
        else:
            folder = run_benchmark(config, resume=True)
            assert isinstance(folder, Path)
    assert trained == [("experts_frozen", "bfloat16"), ("interruption", ""), ("fine_tuning", "bfloat16")]
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    assert environment["precision"] == "bfloat16"
    model = Model.open(folder / "experts_frozen" / f"seed-{SEED}" / "model")
    assert model.entries["dna"].provenance["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"training": {"steps": 5}}, "training.steps was 4 and is 5 now"),
        ({"seeds": (9,)}, r"seeds were \[3\] and are \[9\] now; more may be added, but 3 must stay"),
        (
            {"stream": {"order": ADDED[:1]}},
            r"stream\.order was \['nucleolus', 'mitochondria'\] and is \['nucleolus'\]",
        ),
        (
            {"strategies": (StrategyConfig(name="experts_frozen", expert="conv5"),)},
            r"strategies were .*; more may be added, but 'experts_frozen', 'fine_tuning', 'multi_net_k3' must stay",
        ),
        (
            {"strategies": (StrategyConfig(name="experts_frozen", label="multi_net_k3", expert="conv5"),)},
            r"strategies\.multi_net_k3\.expert was 'conv3' and is 'conv5'",
        ),
        ({"stream": {"base": (), "order": STRUCTURES}}, r"stream\.base was .*'dna'.* and is \[\] now"),
    ],
)
def test_another_configuration_is_not_resumed(done: Done, values: dict[str, Any], key: str) -> None:
    parts = {
        name: getattr(done.config, name).model_copy(update=value) if isinstance(value, dict) else value
        for name, value in values.items()
    }
    before = (done.folder / "results.csv").read_bytes()
    with pytest.raises(ConfigError, match=key):
        run_benchmark(changed(done.config, **parts), resume=True)
    assert (done.folder / "results.csv").read_bytes() == before


def test_an_empty_list_is_not_the_same_as_none(manifest: Path, tmp_path: Path) -> None:
    """Such a change has no key below it, and must be named all the same."""
    config = changed(tiny(manifest, tmp_path), stream=StreamConfig(base=STRUCTURES))
    write_outcome(tmp_path / "tiny" / "experts_frozen" / f"seed-{SEED}", TrialOutcome(finished=True))
    info = {"version": 2, "streams": {"": [STRUCTURES]}, "strategies": {}, "seeds": [SEED]}
    (tmp_path / "tiny" / "run.json").write_text(json.dumps(info), encoding="utf-8")
    (tmp_path / "tiny" / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    now = changed(config, stream=StreamConfig(base=STRUCTURES, order=()))
    with pytest.raises(ConfigError, match=r"stream\.order was None and is \[\] now"):
        run_benchmark(now, resume=True)


def test_an_existing_run_is_not_run_over(done: Done) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.folder.rglob("*")}
    with pytest.raises(ConfigError, match=r"holds a run already: continue it with --resume"):
        run_benchmark(done.config)
    assert {path: path.stat().st_mtime_ns for path in done.folder.rglob("*")} == before
