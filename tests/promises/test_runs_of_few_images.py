"""Runs that differ in how many images their streams learn from are never taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import BASE, STRUCTURES, changed, tiny

from repmode_cl.benchmark.resume import check_run
from repmode_cl.benchmark.trials import trials_of
from repmode_cl.config import Config, StreamConfig
from repmode_cl.config.load import dump_config
from repmode_cl.errors import ConfigError, RepmodeError
from repmode_cl.results import Result, ResultsTable
from repmode_cl.results.merge_runs import merge_runs
from repmode_cl.results.run_info import RunInfo, write_run_info
from repmode_cl.results.trial_record import TrialOutcome, write_outcome
from repmode_cl.scenarios import stream_variants
from repmode_cl.utils.atomic_files import write_text


def started(output: Path, images: object, seed: int = 0, **stream: object) -> Config:
    """Return a configuration whose run was started, with one figure for each trial."""
    config = changed(
        tiny(output / "manifest.csv", output),
        name=f"run-{images}-{seed}".translate(str.maketrans("(), ", "....")),
        seeds=(seed,),
        stream=StreamConfig(base=BASE, images=images, **stream),
    )
    streams = stream_variants(config.stream, STRUCTURES)
    folder = output / config.name
    write_text(folder / "config.yaml", dump_config(config))
    trials = trials_of(config, streams)
    for trial in trials:
        write_outcome(folder / trial.folder, TrialOutcome(finished=True))
    info = RunInfo.of_run(
        config,
        {name: variant.experiences for name, variant in streams.items()},
        dict.fromkeys(trials, TrialOutcome(True)),
        images={},
        file_digests={},
        joint_titles=(),
        task_labels={},
    )
    write_run_info(folder, info)
    ResultsTable(Result(t.title, t.seed, 0, "dna", "r2", 0.5, t.stream) for t in trials).write(
        folder / "results.csv"
    )
    return config


def resume(config: Config, images: object) -> None:
    now = changed(config, stream=config.stream.model_copy(update={"images": images}))
    check_run(now, Path(config.output) / config.name, stream_variants(now.stream, STRUCTURES))


def test_a_run_resumes_with_as_many_images_as_it_was_started_with(tmp_path: Path) -> None:
    few = started(tmp_path, 2)
    resume(few, 2)
    for images in (4, None):
        with pytest.raises(ConfigError, match=f"stream.images was 2 and is {images} now"):
            resume(few, images)
    with pytest.raises(ConfigError, match="streams were"):
        resume(few, (2, 4))


def test_numbers_of_images_may_be_added_to_a_list(tmp_path: Path) -> None:
    listed = started(tmp_path, (2, 4))
    resume(listed, (1, 2, 4, None))
    with pytest.raises(ConfigError, match="'images-2' must stay"):
        resume(listed, (4,))


def test_merged_runs_keep_their_numbers_of_images_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repmode_cl.results.merge_runs.build_report", lambda folder: None, raising=False)
    two, four, same = started(tmp_path, 2), started(tmp_path, 4), started(tmp_path, 2, seed=1)

    def merged(*configs: Config) -> set[str]:
        folders = [Path(config.output) / config.name for config in configs]
        found = merge_runs(folders, tmp_path / "-".join(config.name for config in configs))
        return {row.stream for row in ResultsTable.read(found / "results.csv")}

    assert merged(two, same) == {""}
    assert merged(two, four) == {"run-2-0", "run-4-0"}
    two, four = started(tmp_path, 2, 5, order_seeds=(0,)), started(tmp_path, 4, 6, order_seeds=(0,))
    with pytest.raises(RepmodeError, match="the stream 'order-0' is not the same in both"):
        merged(two, four)


def test_any_two_of_many_runs_are_compared(tmp_path: Path) -> None:
    other = started(tmp_path, (1,), 2, order=("mitochondria",))
    runs = [started(tmp_path, (2,), 0), started(tmp_path, (1,), 1, order=("nucleolus",)), other]
    with pytest.raises(RepmodeError, match="the stream 'images-1' is not the same in both"):
        merge_runs([Path(config.output) / config.name for config in runs], tmp_path / "merged")
