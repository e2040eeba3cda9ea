"""Runs made at different times or places become one to report on, and only where they are of one experiment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import SEED, STRUCTURES, TITLES, Done, changed
from typer.testing import CliRunner

from repmode_cl.benchmark import run_benchmark
from repmode_cl.cli.app import app
from repmode_cl.config import load_config
from repmode_cl.config.load import dump_config
from repmode_cl.errors import ConfigError, RepmodeError
from repmode_cl.results import ResultsTable
from repmode_cl.results.merge_runs import merge_runs
from repmode_cl.results.run_info import read_run_info


def copy_of(
    done: Done,
    folder: Path,
    *,
    seed: int = SEED,
    order: tuple[str, ...] = STRUCTURES[2:],
    better: float = 0.0,
    **values: Any,
) -> Path:
    """Return a copy of a run, as if it had had another seed or order, or come to better figures."""
    shutil.copytree(done.folder, folder, ignore=shutil.ignore_patterns("cache", "checkpoint", "model"))
    for title in TITLES:
        (folder / title / f"seed-{SEED}").rename(folder / title / f"seed-{seed}")
    results = ResultsTable()
    for row in done.results:
        more = better if row.metric == "r2" else 1.0 if row.metric == "train_seconds" else 0.0
        results.append(*row._replace(seed=seed, value=row.value + more))
    results.write(folder / "results.csv")
    info = done.info
    info["seeds"] = [seed]
    info["finished"] = [[title, "", seed] for title in TITLES]
    info["streams"][""][1:] = [[name] for name in order]
    (folder / "run.json").write_text(json.dumps(info))
    config = changed(done.config, seeds=(seed,), **values)
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    return folder


def test_the_environment_of_merged_runs_is_that_of_all(done: Done, tmp_path: Path) -> None:
    other, copied = (copy_of(done, tmp_path / f"seed-{seed}", seed=seed) for seed in (7, 8))
    before = json.loads((done.folder / "environment.json").read_text(encoding="utf-8"))
    packages = {**before["packages"], "torch": "3.0"}
    changed_environment = {**before, "cpu": "another", "packages": packages}
    (other / "environment.json").write_text(json.dumps(changed_environment), encoding="utf-8")
    (copied / "environment.json").unlink()  # results that were stored without it
    out = merge_runs([done.folder, copied, other], tmp_path / "all")
    merged = json.loads((out / "environment.json").read_text(encoding="utf-8"))
    assert merged.pop("cpu") == f"{before.pop('cpu')}; another"
    assert merged["packages"].pop("torch") == f"{before['packages'].pop('torch')}; 3.0"
    assert merged == before


def test_runs_of_other_seeds_become_one(done: Done, tmp_path: Path) -> None:
    other = copy_of(done, tmp_path / "other", seed=7, name="elsewhere", output="somewhere")
    left = other / TITLES[0] / "seed-7" / "predictions" / "dna.writing-ab.npz"  # of a killed process
    left.write_bytes(b"half")
    out = merge_runs([done.folder, other], tmp_path / "both")
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["steps"] == done.config.training.steps
    info = read_run_info(out)
    assert info.seeds == (SEED, 7)
    assert info.finished == {(title, "", seed) for title in TITLES for seed in (SEED, 7)}
    assert info.multi_net == "multi_net_k3"
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["images"] == done.info["images"]
    assert info.bit_identical["experts_frozen"] is True
    results = ResultsTable.read(out / "results.csv")
    assert len(results) == 2 * len(done.results)
    for title in TITLES:
        assert results.seeds(title) == (SEED, 7)
        for seed in (SEED, 7):
            trial = out / title / f"seed-{seed}"
            assert {path.stem for path in (trial / "predictions").iterdir()} == set(STRUCTURES)
            assert (trial / "learning.csv").is_file()
            rows = ResultsTable.read(trial / "results.csv")
            assert {(row.strategy, row.seed) for row in rows} == {(title, seed)}
    config = load_config(out / "config.yaml")
    assert config.seeds == (SEED, 7)
    assert list(tmp_path.rglob("*.writing-*")) == [left]
    # Made again, it is the same; resumed it is not.
    assert merge_runs([done.folder, other], out) == out
    assert len(ResultsTable.read(out / "results.csv")) == len(results)
    with pytest.raises(ConfigError, match="was merged from other runs"):
        run_benchmark(config, resume=True)


def test_the_same_unit_twice_is_taken_once_where_its_figures_agree(done: Done, tmp_path: Path) -> None:
    again = copy_of(done, tmp_path / "again")  # in other seconds
    out = merge_runs([done.folder, again], tmp_path / "both")
    assert ResultsTable.read(out / "results.csv").rows == done.results.rows
    differs = copy_of(done, tmp_path / "differs", better=0.1)
    with pytest.raises(
        RepmodeError, match=r"experts_frozen, seed 3 is in .*again and in .*differs, with other"
    ):
        merge_runs([again, differs], tmp_path / "neither")
    assert not (tmp_path / "neither").exists()


def test_only_streams_that_differ_are_named_after_their_runs(done: Done, tmp_path: Path) -> None:
    other = copy_of(done, tmp_path / "Other way", order=STRUCTURES[:1:-1])
    out = merge_runs([done.folder, other], tmp_path / "both")
    info = read_run_info(out)
    assert list(info.streams) == ["tiny", "other-way"]
    assert info.streams["other-way"][1:] == (("mitochondria",), ("nucleolus",))
    assert (out / "fine_tuning" / "other-way" / f"seed-{SEED}" / "learning.csv").is_file()
    results = ResultsTable.read(out / "results.csv")
    assert {row.stream for row in results} == {"tiny", "other-way"}


def test_folders_of_one_name_stand_for_streams_of_two(done: Done, tmp_path: Path) -> None:
    """And runs of one stream, for one, whatever their folders are called."""
    one = copy_of(done, tmp_path / "one" / "run")
    same = copy_of(done, tmp_path / "same" / "elsewhere", seed=7)
    other = copy_of(done, tmp_path / "two" / "run", order=STRUCTURES[:1:-1])
    info = read_run_info(merge_runs([one, same, other], tmp_path / "both"))
    assert list(info.streams) == ["one-run", "two-run"]
    assert {trial[1:] for trial in info.finished} == {("one-run", SEED), ("one-run", 7), ("two-run", SEED)}


def _steps(done: Done, folder: Path) -> Path:
    training = done.config.training.model_copy(update={"steps": 5})
    return copy_of(done, folder, seed=7, training=training)


def _options(done: Done, folder: Path) -> Path:
    ours, *others = done.config.strategies
    strategies = (ours.model_copy(update={"learning_rate": 0.5}), *others)
    return copy_of(done, folder, seed=7, strategies=strategies)


def _images(done: Done, folder: Path) -> Path:
    other = copy_of(done, folder, seed=7)
    info = json.loads((other / "run.json").read_text(encoding="utf-8"))
    info["images"]["nucleolus"] = "0" * 64
    (other / "run.json").write_text(json.dumps(info))
    return other


def _precision(done: Done, folder: Path) -> Path:
    other = copy_of(done, folder, seed=7)
    environment = json.loads((other / "environment.json").read_text(encoding="utf-8"))
    (other / "environment.json").write_text(json.dumps({**environment, "precision": "bfloat16"}))
    return other


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_images, "cannot be merged: the images of nucleolus, or their split, are not the same in both"),
        (_precision, "cannot be merged: training was in float32 and in bfloat16"),
        (_steps, r"cannot be merged: training\.steps was 4 and is 5 now"),
        (_options, r"cannot be merged: strategies\.experts_frozen\.learning_rate was None and is 0\.5 now"),
    ],
)
def test_runs_of_different_experiments_are_not_merged(
    done: Done, tmp_path: Path, make: Callable[[Done, Path], Path], message: str
) -> None:
    with pytest.raises(RepmodeError, match=message):
        merge_runs([done.folder, make(done, tmp_path / "other")], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_where_manifest_and_prepared_images_lie_makes_no_other_experiment(done: Done, tmp_path: Path) -> None:
    """Their digests, which run.json holds, say whether the images are the same."""
    assert done.config.data.manifest is not None
    moved = done.config.data.model_copy(
        update={"manifest": "/elsewhere/manifest.csv", "cache": "/elsewhere/cache"}
    )
    out = merge_runs([done.folder, copy_of(done, tmp_path / "other", seed=7, data=moved)], tmp_path / "both")
    assert read_run_info(out).seeds == (SEED, 7)
    simulated = done.config.data.model_copy(update={"manifest": None})
    with pytest.raises(RepmodeError, match=r"data\.manifest was 'a manifest' and is None now"):
        merge_runs([done.folder, copy_of(done, tmp_path / "third", seed=8, data=simulated)], tmp_path / "all")


def test_a_damaged_folder_is_not_written_over(done: Done, tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "run.json").write_text('{"merged')
    with pytest.raises(RepmodeError, match=r"run\.json: cannot be read .*name another one"):
        merge_runs([done.folder, copy_of(done, tmp_path / "other", seed=7)], tmp_path / "both")


def test_nothing_is_written_over(done: Done, tmp_path: Path) -> None:
    other = copy_of(done, tmp_path / "other", seed=7)
    with pytest.raises(RepmodeError, match="is one of the runs to merge"):
        merge_runs([done.folder, other], other)
    third = copy_of(done, tmp_path / "third", seed=8)
    with pytest.raises(RepmodeError, match="holds something that was not merged"):
        merge_runs([done.folder, other], third)


def test_the_command_merges_and_reports(done: Done, tmp_path: Path) -> None:
    other = copy_of(done, tmp_path / "other", seed=7)
    found = CliRunner().invoke(
        app, ["report", str(done.folder), str(other), "--out", str(tmp_path / "both")], catch_exceptions=False
    )
    assert found.exit_code == 0, found.output
    assert (tmp_path / "both" / "report.html").is_file()
    assert "experts_frozen" in found.output
