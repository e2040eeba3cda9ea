"""A benchmark of several trials: several streams, shared bases, trials that fail, and later additions."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tifffile
from filelock import FileLock
from tiny_run import BASE, MEASURED, SEED, Done, changed, make_manifest
from tiny_trials import FINE, MULTI, OURS, small
from typer.testing import CliRunner

from repmode_cl import benchmark
from repmode_cl.benchmark import TrialsFailedError, run_benchmark
from repmode_cl.benchmark import run as benchmark_module
from repmode_cl.benchmark import trial_run as run_module
from repmode_cl.benchmark.executors.scheduling import ScheduledTrial
from repmode_cl.benchmark.trials import BaseTrial
from repmode_cl.cli.app import app
from repmode_cl.config import Config, StrategyConfig, StreamConfig
from repmode_cl.errors import ConfigError, RepmodeError
from repmode_cl.model import Model
from repmode_cl.results import ResultsTable
from repmode_cl.results.run_info import read_run_info, write_run_info
from repmode_cl.results.trial_record import Trial
from repmode_cl.strategies import StructureStrategy


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, tuple[str, ...], int]]:
    """Count what is trained: strategy, structures, seed."""
    found: Counter[tuple[str, tuple[str, ...], int]] = Counter()
    train = StructureStrategy.train

    def spy(self: StructureStrategy, experience: Any, **kwargs: Any) -> Any:
        found[type(self).__name__, self.stream.names_of(experience), self.seed] += 1
        return train(self, experience, **kwargs)

    monkeypatch.setattr(StructureStrategy, "train", spy)
    return found


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_module, "build_report", lambda folder: None)


def figures(folder: Path) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in ResultsTable.read(folder / "results.csv") if row.metric not in MEASURED]


def info_of(folder: Path) -> dict[str, Any]:
    info: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return info


# -- streams --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("no_page")
def test_streams_and_seeds_are_added_to_a_run(
    manifest: Path, tmp_path: Path, trained: Counter[tuple[str, tuple[str, ...], int]]
) -> None:
    stream = {"base": ("dna",), "order": ("nucleolus", "mitochondria")}
    first = small(manifest, tmp_path / "a", FINE, **stream, order_seeds=(0,))
    folder = run_benchmark(first)
    assert isinstance(folder, Path)
    assert sum(trained.values()) == 3
    before = figures(folder)
    kept = (folder / "fine_tuning" / "order-0" / f"seed-{SEED}" / "results.csv").stat().st_mtime_ns
    trained.clear()

    more = small(manifest, tmp_path / "a", FINE, **stream, order_seeds=(0, 1))
    more = changed(more, seeds=(SEED, 5))
    assert run_benchmark(more, resume=True) == folder
    # The base of a stream and seed is shared with the other stream of that seed; what was finished was not touched.
    assert trained["FineTuning", ("dna",), SEED] == 0
    assert trained["FineTuning", ("dna",), 5] == 1
    assert trained["FineTuning", ("nucleolus",), SEED] == 1
    assert trained["FineTuning", ("nucleolus",), 5] == 2
    assert (folder / "fine_tuning" / "order-0" / f"seed-{SEED}" / "results.csv").stat().st_mtime_ns == kept
    info = info_of(folder)
    assert list(info["streams"]) == ["order-0", "order-1"]
    assert info["finished"] == [
        ["fine_tuning", stream, seed] for seed in (SEED, 5) for stream in ("order-0", "order-1")
    ]
    after = figures(folder)
    assert set(before) < set(after)
    assert {(row[0], row[6], row[1]) for row in after} == {
        (t, s, seed) for t, s, seed in map(tuple, info["finished"])
    }

    # Made at once, it is the same run: neither the order of trials nor a shared base changes its figures.
    at_once = run_benchmark(changed(more, output=str(tmp_path / "b")))
    assert isinstance(at_once, Path)
    assert figures(at_once) == after

    fewer = changed(more, stream=StreamConfig(**stream, order_seeds=(1,)))
    with pytest.raises(
        ConfigError, match=r"streams were .* \['order-1'\] now; more may be added, but 'order-0' must"
    ):
        run_benchmark(fewer, resume=True)


@pytest.mark.usefixtures("no_page")
@pytest.mark.slow
def test_a_structure_that_comes_again_gets_a_new_version(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(manifest, tmp_path, OURS, base=("dna",), order=("nucleolus", "mitochondria", "nucleolus"))
    write = run_module.write_curve

    class PowerCut(BaseException):
        pass

    def cut(path: Path, curve: Any) -> None:
        """Cut the power when the new version is stored and the checkpoint does not say so."""
        write(path, curve)
        if any(row["experience"] == 3 for row in curve):
            raise PowerCut

    monkeypatch.setattr(run_module, "write_curve", cut)
    with pytest.raises(PowerCut):
        run_benchmark(config)
    monkeypatch.setattr(run_module, "write_curve", write)
    folder = run_benchmark(config, resume=True)
    assert isinstance(folder, Path)
    model = Model.open(folder / "experts_frozen" / f"seed-{SEED}" / "model")
    actions = [(change.action, change.structure) for change in model.history]
    assert actions == [
        ("create", None),
        ("add", "nucleolus"),
        ("add", "mitochondria"),
        ("replace", "nucleolus"),
    ]
    assert info_of(folder)["strategies"]["experts_frozen"]["bit_identical"] is True
    results = ResultsTable.read(folder / "results.csv")
    r2 = {row.step: row.value for row in results.select(structure="nucleolus", metric="r2")}
    assert r2[1] == r2[2] != r2[3]  # of that seed's learning only
    images = {row.step: row.value for row in results.select(structure="nucleolus", metric="images")}
    assert images[1] + images[3] == 3  # in disjoint parts


# -- what fails -----------------------------------------------------------------------------------------------------


def test_a_failed_trial_is_recorded_and_the_others_go_on(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_module, "build_report", lambda folder: None)
    config = small(manifest, tmp_path, FINE, MULTI)
    run = run_module.TrialRun.run

    def broken(self: run_module.TrialRun) -> Any:
        if self.title == "fine_tuning":
            raise OSError("the disk went away")
        return run(self)

    monkeypatch.setattr(run_module.TrialRun, "run", broken)
    with pytest.raises(TrialsFailedError, match=r"fine_tuning seed 3: OSError: the disk went away") as caught:
        run_benchmark(config)
    folder = tmp_path / "tiny"
    log = folder / "fine_tuning" / f"seed-{SEED}" / "log.txt"
    assert f"log: {log}" in str(caught.value)
    assert "--resume tries them again" in str(caught.value)
    assert "Traceback" in log.read_text()
    info = info_of(folder)
    assert info["finished"] == [["multi_net_k3", "", SEED]]
    assert info["failed"] == [["fine_tuning", "", SEED, "OSError: the disk went away"]]
    assert ResultsTable.read(folder / "results.csv").strategies == ("multi_net_k3",)

    monkeypatch.setattr(run_module.TrialRun, "run", run)
    # Tried again, together with a strategy that was added, before those that there were.
    plain = StrategyConfig(name="multi_net", kernel=5)
    assert run_benchmark(changed(config, strategies=(plain, FINE, MULTI)), resume=True) == folder
    info = info_of(folder)
    assert info["failed"] == []
    assert [title for title, _, _ in info["finished"]] == ["multi_net_k5", "fine_tuning", "multi_net_k3"]
    assert list(ResultsTable.read(folder / "results.csv").strategies) == list(info["strategies"])


@pytest.mark.usefixtures("no_page")
def test_a_strategy_that_exits_stops_no_other(manifest: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import sys\nfrom repmode_cl.strategies import FineTuning\n\nclass Mine(FineTuning):\n"
        "    def before_experience(self, number):\n        sys.exit(7)\n"
    )
    config = small(manifest, tmp_path, StrategyConfig(name=f"{file}:Mine", label="mine"), MULTI)
    with pytest.raises(TrialsFailedError, match="mine seed 3: SystemExit: 7"):
        run_benchmark(config)
    assert info_of(tmp_path / "tiny")["finished"] == [["multi_net_k3", "", SEED]]
    with pytest.raises(ConfigError, match=r"mine\.py:Mine with options .*: SystemExit: 7"):
        run_benchmark(changed(config, name="dry"), dry_run=True)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("run.json", "restore it, or remove .* to start the run again"),
        ("environment.json", "restore it, or choose another name"),
        (f"multi_net_k3/seed-{SEED}/unit.json", "remove it, and --resume runs the trial again"),
        (f"multi_net_k3/seed-{SEED}/results.csv", "remove .*unit.json, and --resume runs the trial again"),
    ],
)
def test_a_file_that_is_cut_off_is_named(done: Done, tmp_path: Path, name: str, remedy: str) -> None:
    shutil.copytree(done.folder, tmp_path / "tiny")
    path = tmp_path / "tiny" / name
    config = changed(done.config, output=str(tmp_path))
    # The last byte of the figures would be missed by no parser.
    for content in (path.read_bytes()[:-2], b"", b"[]"):
        path.write_bytes(content)
        with pytest.raises(RepmodeError, match=f"{name}: .*: {remedy}"):
            run_benchmark(config, resume=True)


def test_run_json_is_read_and_written_by_one_class(done: Done, tmp_path: Path) -> None:
    write_run_info(tmp_path, read_run_info(done.folder))
    assert (tmp_path / "run.json").read_bytes() == (done.folder / "run.json").read_bytes()


def test_a_trial_runs_again_where_its_figures_were_lost(done: Done, tmp_path: Path) -> None:
    shutil.copytree(done.folder, tmp_path / "tiny")
    trial = tmp_path / "tiny" / "multi_net_k3" / f"seed-{SEED}"
    (trial / "results.csv").write_bytes((trial / "results.csv").read_bytes()[:-2])
    (trial / "unit.json").unlink()
    assert figures(run_benchmark(changed(done.config, output=str(tmp_path)), resume=True)) == figures(
        done.folder
    )


def test_the_error_of_failed_trials_has_its_earlier_name_too() -> None:
    with pytest.warns(DeprecationWarning, match="UnitsFailedError is deprecated: use TrialsFailedError"):
        assert benchmark.UnitsFailedError is TrialsFailedError


def test_the_command_ends_with_1_and_says_which_failed(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "it.yaml"
    file.write_bytes((done.folder / "config.yaml").read_bytes())
    asked: dict[str, Any] = {}

    def failing(config: Config, **options: Any) -> Path:
        asked.update(options)
        raise TrialsFailedError(done.folder, {Trial("fine_tuning", "", SEED): "it broke"})

    monkeypatch.setattr("repmode_cl.benchmark.run_benchmark", failing)
    found = CliRunner().invoke(app, ["bench", str(file), "--jobs", "3", "--threads", "2", "--resume"])
    assert found.exit_code == 1
    assert "fine_tuning seed 3: it broke" in found.output
    assert "multi_net_k3" in found.output  # the table of what is finished
    assert asked["jobs"] == 3
    assert asked["threads"] == 2
    assert asked["scheduler"] is None


# -- what comes when ------------------------------------------------------------------------------------------------


def test_bases_that_several_trials_share_are_trained_first(manifest: Path, tmp_path: Path) -> None:
    config = small(manifest, tmp_path, OURS, MULTI, FINE, base=BASE, order=("nucleolus",))
    run = benchmark_module._Run(
        config, tmp_path, benchmark_module.stream_variants(config.stream, (*BASE, "nucleolus")), []
    )
    ours, multi, fine = (
        Trial(title, "", SEED) for title in ("experts_frozen", "multi_net_k3", "fine_tuning")
    )
    base = BaseTrial("repmode", "", SEED, "experts_frozen")
    assert run._jobs() == [
        ScheduledTrial(base),
        ScheduledTrial(ours, base),
        ScheduledTrial(multi),
        ScheduledTrial(fine, base),
    ]
    assert base.folder == Path("base", "repmode", f"seed-{SEED}")
    alone = changed(config, strategies=(OURS, MULTI))
    run = benchmark_module._Run(alone, tmp_path, run.streams, [])
    assert run._jobs() == [ScheduledTrial(ours), ScheduledTrial(multi)]


# -- what a run refuses ---------------------------------------------------------------------------------------------


def test_two_processes_do_not_work_at_one_run(done: Done) -> None:
    with FileLock(done.folder / ".lock"), pytest.raises(ConfigError, match="another process is at work at"):
        run_benchmark(done.config, resume=True)


def test_a_run_keeps_its_threads(done: Done) -> None:
    with pytest.raises(
        ConfigError, match=r"was started with \d+ thread\(s\) for each run, and --threads 63 would"
    ):
        run_benchmark(done.config, resume=True, threads=63)


def test_a_run_of_another_version_or_a_merged_one_is_not_resumed(done: Done, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    config = changed(done.config, output=str(tmp_path))
    for content, message in (
        ({"experiences": [["dna"]]}, "started by another version"),
        (
            {"version": 2, "streams": {"": [["dna"]]}, "merged": ["x", "y"]},
            r"merged from other runs: resume those instead \(x, y\)",
        ),
    ):
        (folder / "run.json").write_text(json.dumps({"strategies": {}, "seeds": [], **content}))
        with pytest.raises(ConfigError, match=message):
            run_benchmark(config, resume=True)


@pytest.mark.usefixtures("no_page")
def test_other_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    config = small(make_manifest(folder), tmp_path, MULTI, order=("dna",))
    run_benchmark(config)
    target = folder / "dna0.tif"
    before = target.read_bytes()
    tifffile.imwrite(
        target, tifffile.imread(target)[::-1].copy(), photometric="minisblack", metadata={"axes": "ZYX"}
    )
    with pytest.raises(ConfigError, match="other images: those of dna, or how they are split, have changed"):
        run_benchmark(changed(config, seeds=(SEED, 9)), resume=True)
    target.write_bytes(before)
    lines = (folder / "manifest.csv").read_text().splitlines(keepends=True)
    lines.remove(next(line for line in lines if "dna" in line))
    (folder / "manifest.csv").write_text("".join(lines))
    with pytest.raises(ConfigError, match="other images: those of dna, or how they are split, have changed"):
        run_benchmark(config, resume=True)


def test_a_scheduler_needs_dask_and_an_address(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from repmode_cl.benchmark.executors.dask import DaskCluster
    from repmode_cl.errors import RepmodeError

    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RepmodeError, match=r"pip install -e '\.\[cluster\]'"):
        DaskCluster("tcp://127.0.0.1:1", tmp_path)
    monkeypatch.setattr("repmode_cl.utils.extras._ROOT", tmp_path)  # no clone
    with pytest.raises(RepmodeError, match=r"pip install 'repmode-cl\[cluster\]'"):
        DaskCluster("tcp://127.0.0.1:1", tmp_path)
