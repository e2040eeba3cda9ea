"""Real processes, and a real Dask cluster, of which one is killed in the middle: figures are those of one process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tiny_run import MEASURED, changed, tiny

from repmode_cl.benchmark import run as benchmark_module
from repmode_cl.benchmark import run_benchmark
from repmode_cl.config import Config, StrategyConfig, StreamConfig
from repmode_cl.results import ResultsTable

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="Windows has no signal that kills"),
]


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_module, "build_report", lambda folder: None)


@pytest.fixture(scope="module")
def long(manifest: Path) -> Config:
    """Return a benchmark whose trials take long enough to be killed in the middle."""
    config = tiny(manifest, Path())
    training = config.training.model_copy(update={"steps": 60, "base_steps": 60, "validate_every": 5})
    names = ("experts_frozen", "fine_tuning", "multi_net")
    strategies = tuple(StrategyConfig(name=name) for name in names)
    stream = StreamConfig(base=("dna", "cell_membrane"), order=("nucleolus",))
    return changed(config, training=training, strategies=strategies, stream=stream)


@pytest.fixture(scope="module")
def alone(long: Config, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """Return the figures of the run in one process, with one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark_module, "build_report", lambda folder: None)
        folder = run_benchmark(changed(long, output=str(tmp_path_factory.mktemp("alone"))), threads=1)
    assert isinstance(folder, Path)
    return figures(folder)


def figures(folder: Path) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in ResultsTable.read(folder / "results.csv") if row.metric not in MEASURED]


def half_done(run: Path) -> Path | None:
    """Return a trial that has a checkpoint in the middle of an experience, and runs."""
    for pointer in sorted(run.glob("*/seed-*/checkpoint/latest.json")):
        trial = pointer.parents[1]
        if not (trial / "unit.json").exists():
            return trial
    return None


@contextmanager
def killing(run: Path, victim: Callable[[], int | None]) -> Iterator[list[Path]]:
    """Kill, once, the process that `victim` names, when a trial is half done; yield the list of such trials."""
    killed: list[Path] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02) and not killed:
            trial, pid = half_done(run), victim()
            if trial is not None and pid is not None:
                os.kill(pid, signal.SIGKILL)
                killed.append(trial)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def at_work(parent: int) -> int | None:
    """Return a process of `parent` that runs a trial."""
    for child in psutil.Process(parent).children(recursive=True):
        try:
            if "repmode_cl.benchmark.executors.worker_main" in child.cmdline():
                return child.pid
        except psutil.Error:  # it has just ended
            continue
    return None


def starts(trial: Path) -> int:
    return (trial / "log.txt").read_text().count("---- ")


def test_a_killed_process_of_several_is_started_again(
    long: Config, alone: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    config = changed(long, output=str(tmp_path))

    def of_half_done() -> int | None:
        return at_work(os.getpid())

    with killing(tmp_path / "tiny", of_half_done) as killed:
        folder = run_benchmark(config, jobs=2, threads=1)
    assert isinstance(folder, Path)
    assert killed
    assert (
        sum(starts(log.parent) for log in folder.rglob("log.txt")) == 5
    )  # a base, three trials, and one again
    assert figures(folder) == alone
    assert not list(folder.rglob("*.writing-*"))


def test_a_killed_parent_leaves_nothing_at_work_and_the_run_resumes(
    long: Config, alone: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    import subprocess
    import sys

    from repmode_cl.config.load import dump_config

    config = changed(long, output=str(tmp_path))
    file = tmp_path / "it.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    parent = subprocess.Popen(
        [sys.executable, "-m", "repmode_cl", "bench", str(file), "--jobs", "2", "--threads", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 120
    while half_done(tmp_path / "tiny") is None:
        assert time.monotonic() < end
        assert parent.poll() is None
        time.sleep(0.02)
    children = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    folder = run_benchmark(config, resume=True)  # with the threads that it started with
    assert isinstance(folder, Path)
    assert figures(folder) == alone
    assert torch.get_num_threads() >= 1


def test_a_killed_worker_of_a_cluster_loses_nothing(
    long: Config, alone: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    import dask
    from distributed import LocalCluster

    config = changed(long, output=str(tmp_path))
    settings = {"distributed.worker.daemon": True, "temporary-directory": str(tmp_path / "dask")}
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
    ):

        def worker() -> int | None:
            pids = [nanny.pid for nanny in cluster.workers.values()]
            return next((pid for pid in pids if pid and at_work(pid) is not None), None)

        with killing(tmp_path / "tiny", worker) as killed:
            folder = run_benchmark(config, scheduler=cluster.scheduler_address, threads=1)
    assert isinstance(folder, Path)
    assert killed
    assert sum(starts(log.parent) for log in folder.rglob("log.txt")) >= 5
    assert figures(folder) == alone
