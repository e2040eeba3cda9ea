"""A run is bound by what was learned: what failed before that may be corrected, and what is refused writes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tifffile
import torch
from tiny_run import SEED, changed, make_manifest
from tiny_trials import FINE, MULTI, small

from repmode_cl.benchmark import TrialsFailedError, run_benchmark
from repmode_cl.benchmark import run as benchmark_module
from repmode_cl.benchmark import trial_run as run_module
from repmode_cl.config import StrategyConfig, parse_config
from repmode_cl.errors import ConfigError, RepmodeError
from repmode_cl.results import ResultsTable
from repmode_cl.results.merge_runs import merge_runs
from repmode_cl.strategies import FineTuning
from repmode_cl.strategies.plugins import peak_memory as memory_module


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_module, "build_report", lambda folder: None)


def own(file: Path, body: str, **options: Any) -> StrategyConfig:
    """Write a strategy of a user's own."""
    file.write_text(
        "from repmode_cl.strategies import FineTuning\n\n\nclass Mine(FineTuning):\n"
        "    def __init__(self, *, share=1, **kwargs):\n        super().__init__(**kwargs)\n\n"
        f"    def before_experience(self, number):\n        {body}\n"
    )
    return StrategyConfig(name=f"{file}:Mine", options=options)


def test_a_failed_strategy_of_a_users_own_is_repaired(manifest: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    config = small(manifest, tmp_path, MULTI, own(file, "raise OSError('a slip')"), order=("dna",))
    with pytest.raises(TrialsFailedError, match="Mine seed 3: OSError: a slip"):
        run_benchmark(config)
    folder = tmp_path / "tiny"
    log = folder / "Mine" / f"seed-{SEED}" / "log.txt"
    assert log.is_file()
    repaired = changed(config, strategies=(MULTI, own(file, "pass", share=2)))
    assert run_benchmark(repaired, resume=True) == folder
    assert not log.exists()  # it began from the start
    assert ResultsTable.read(folder / "results.csv").strategies == ("multi_net_k3", "Mine")
    # What has learned is bound to its file, its options and its place.
    own(file, "return")
    with pytest.raises(
        ConfigError, match=rf"has changed since; .* remove {folder / 'Mine'} to start that strategy again"
    ):
        run_benchmark(repaired, resume=True)
    with pytest.raises(ConfigError, match="'Mine' must stay"):
        run_benchmark(changed(config, strategies=(MULTI,)), resume=True)


def test_a_setting_that_stood_for_something_else_is_not_mixed(manifest: Path, tmp_path: Path) -> None:
    """A run of an earlier version names a setting; what that stands for today is another training."""
    row = StrategyConfig(name="experts_frozen", setting="small")
    config = small(manifest, tmp_path, row)
    folder = run_benchmark(config)
    # What the setting stands for is in what is written.
    assert "gate_steps: 0.1" in (folder / "config.yaml").read_text()
    assert run_benchmark(config, resume=True) == folder
    # As an earlier version wrote it.
    text = (folder / "config.yaml").read_text().replace("  gate_steps: 0.1\n", "")
    (folder / "config.yaml").write_text(text)
    info = json.loads((folder / "run.json").read_text())
    del info["strategies"]["experts_frozen_small"]["options"]["gate_steps"]
    (folder / "run.json").write_text(json.dumps(info))
    said = (
        "experts_frozen_small: gate_steps was 1.0 and is 0.1 now: what the setting small stands for has changed since; "
        "give `gate_steps: 1.0` and `label: experts_frozen_small`"
    )
    with pytest.raises(ConfigError, match=said):
        run_benchmark(config, resume=True)
    # Nor is it merged with a run of today; alone it is, and what is written says what it was.
    today = run_benchmark(changed(config, output=str(tmp_path / "today"), seeds=(SEED + 1,)))
    with pytest.raises(RepmodeError, match=r"cannot be merged: strategies"):
        merge_runs([folder, today], tmp_path / "merged")
    merged = merge_runs([folder], tmp_path / "merged")
    [strategy] = parse_config((merged / "config.yaml").read_text()).strategies
    assert (strategy.title, strategy.gate_steps) == (row.title, 1.0)
    given = StrategyConfig(name="experts_frozen", setting="small", gate_steps=1.0, label=row.title)
    assert run_benchmark(changed(config, strategies=(given,)), resume=True) == folder


def test_a_project_that_was_moved_is_resumed(manifest: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(manifest.parent, images, ignore=shutil.ignore_patterns("cache*", "tiny*"))
    first = images / manifest.name
    config = small(first, tmp_path, MULTI, order=("dna",))
    folder = run_benchmark(config)
    moved = images.rename(tmp_path / "moved") / manifest.name
    again = changed(small(moved, tmp_path, MULTI, FINE, order=("dna",)), stream=config.stream)
    assert run_benchmark(again, resume=True) == folder
    assert ResultsTable.read(folder / "results.csv").strategies == ("multi_net_k3", "fine_tuning")
    # A rehearsal says what of it is there.
    estimate = run_benchmark(again, resume=True, dry_run=True)
    assert "2 of 2 runs are finished, and would not be run again" in str(estimate)
    # Other images at the new place are noticed.
    picture = next(moved.parent.glob("dna*.tif"))
    tifffile.imwrite(
        picture, tifffile.imread(picture) + 1, photometric="minisblack", metadata={"axes": "ZYX"}
    )
    with pytest.raises(ConfigError, match="images"):
        run_benchmark(again, resume=True)


def test_a_run_that_learned_nothing_binds_to_nothing(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(manifest, tmp_path, FINE, MULTI, order=("dna",))

    def broken(self: run_module.TrialRun) -> Any:
        raise OSError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(run_module.TrialRun, "run", broken)
        with pytest.raises(TrialsFailedError):
            run_benchmark(config, threads=2)
    folder = tmp_path / "tiny"
    smaller = changed(
        config, training=config.training.model_copy(update={"base_steps": 1}), strategies=(FINE,)
    )
    assert run_benchmark(smaller, resume=True, threads=1) == folder
    info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert info["finished"] == [["fine_tuning", "", SEED]]
    assert info["steps"] == 2
    assert not (folder / "multi_net_k3" / f"seed-{SEED}").exists()
    assert json.loads((folder / "environment.json").read_text(encoding="utf-8"))["threads"] == 1


def test_what_is_refused_writes_nothing(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    config = small(make_manifest(images), tmp_path, MULTI, order=("dna",))
    folder = tmp_path / "tiny"

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.glob("*.*") if path.name != ".lock"}

    manifest = (images / "manifest.csv").read_text()
    away = (images / "dna0.tif").rename(tmp_path / "dna0.tif")
    with pytest.raises(RepmodeError, match="dna0"):
        run_benchmark(config)
    assert not state()
    away.rename(images / "dna0.tif")
    run_benchmark(config)
    written = state()
    lines = manifest.splitlines(keepends=True)
    lines.remove(next(line for line in lines if "dna" in line))
    (images / "manifest.csv").write_text("".join(lines))
    more = changed(config, seeds=(SEED, 9))
    with pytest.raises(ConfigError, match="other images"):
        run_benchmark(more, resume=True)
    (images / "manifest.csv").write_text(manifest)
    with pytest.raises(ConfigError, match="--threads 63"):
        run_benchmark(more, resume=True, threads=63)
    assert state() == written


def test_memory_is_that_of_training_and_of_the_first_unit_of_a_process(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_module, "_trained_here", False)
    watched: dict[str, list[bool]] = {"evaluate": [], "step": []}
    memories: list[memory_module.PeakMemory] = []

    class Seen(memory_module.PeakMemory):
        def __init__(self, device: torch.device) -> None:
            super().__init__(device)
            memories.append(self)

    monkeypatch.setattr(run_module, "PeakMemory", Seen)
    for name, method in (("evaluate", "evaluate"), ("step", "optimizer_step")):
        original = getattr(FineTuning, method)

        def spy(self: Any, *args: Any, name: str = name, original: Any = original) -> Any:
            watched[name].append(memories[-1]._active)
            return original(self, *args)

        monkeypatch.setattr(FineTuning, method, spy)
    left = tmp_path / "tiny" / "fine_tuning" / f"seed-{SEED}" / "predictions" / "dna.writing-ab.npz"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    folder = run_benchmark(small(manifest, tmp_path, FINE, MULTI))
    assert isinstance(folder, Path)
    assert watched["step"] == [True] * 4
    assert watched["evaluate"] == [False] * len(watched["evaluate"])
    assert len(watched["evaluate"]) == 6  # at each step, and after each of the two experiences
    rows = ResultsTable.read(folder / "results.csv").select(metric="peak_memory_bytes")
    assert [(row.strategy, row.step) for row in rows] == [("fine_tuning", 0), ("fine_tuning", 1)]
    assert not left.exists()  # of a process that was killed here
