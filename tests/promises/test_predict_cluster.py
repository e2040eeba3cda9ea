"""Prediction by workers of a cluster: the same bits as in one process, also when a worker is killed."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plate_files import make_plate
from stored_model import make_predictor
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.errors import ModelError, RepmodeError
from repmode_cl.inference.cluster_worker import (
    ModelOnWorkers,
    memory_of_worker,
    predict_image_on_worker,
    predict_windows_on_worker,
    stop_on_worker,
)
from repmode_cl.inference.image_task import ImageTask
from repmode_cl.inference.options import PredictionOptions
from repmode_cl.inference.predict_file import predict_file
from repmode_cl.inference.streaming.run import PredictionStopped
from repmode_cl.inference.window_batches import WindowOutputs, WindowsSource
from repmode_cl.model import Model
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.utils.dask_cluster import DaskJobs

VOXEL = (0.5, 0.3, 0.3)
NAMES = ("dna", "golgi")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_predictor(tmp_path_factory.mktemp("models") / "model", VOXEL, (6, 8, 8))


def on_workers(model: ModelSnapshot, group: str = "call", precision: str = "float32") -> ModelOnWorkers:
    digests = tuple((name, model.entries[name].digest) for name in NAMES)
    return ModelOnWorkers(str(model.path), digests, torch.get_num_threads(), group, precision)


class _HereInstead:
    """The windows of a cluster's workers, computed in this process."""

    def __init__(self) -> None:
        self.batches: list[range] = []

    def memory(self) -> int:
        return memory_of_worker(4 << 30, 1)

    def windows(
        self,
        model: ModelSnapshot,
        structures: Sequence[str],
        device: torch.device,
        source: WindowsSource,
        batches: Iterator[range],
        *,
        precision: str,
        confidence: bool,
    ) -> Iterator[WindowOutputs]:
        there = on_workers(model, precision=precision)
        while pair := list(islice(batches, 2)):
            self.batches += pair
            yield from predict_windows_on_worker(
                there, tuple(structures), str(device), source, pair, confidence
            )


@pytest.mark.parametrize(("voxel", "precision"), [(VOXEL, "bfloat16"), ((0.7, 0.3, 0.35), "float32")])
@pytest.mark.parametrize("suffix", ["npy", "ome.tif"])
def test_windows_of_workers_are_those_of_one_process(model, voxel, precision, suffix, tmp_path):
    image = tmp_path / f"in.{suffix}"
    values = np.random.default_rng(0).integers(0, 3000, (9, 14, 21)).astype(np.uint16)
    if suffix == "npy":
        np.save(image, values)
    else:
        import tifffile

        tifffile.imwrite(
            image, values, photometric="minisblack", compression="zlib", metadata={"axes": "ZYX"}
        )
    here, there = tmp_path / "here", tmp_path / "there"
    options = PredictionOptions(device="cpu", voxel_size=voxel, precision=precision)
    predict_file(model, list(NAMES), image, here, options)
    cluster = _HereInstead()
    with pytest.raises(PredictionStopped):
        predict_file(model, list(NAMES), image, there, options, cluster=cluster, stop_after_windows=12)
    assert sum(map(len, cluster.batches)) >= 12
    predict_file(model, list(NAMES), image, there, options, cluster=cluster)
    for name in NAMES:
        assert (there / f"{name}.ome.tif").read_bytes() == (here / f"{name}.ome.tif").read_bytes()


def test_a_worker_refuses_another_model_and_ends_when_it_is_asked_to(model, tmp_path):
    np.save(tmp_path / "in.npy", np.random.default_rng(0).normal(size=(7, 12, 12)).astype(np.float32))
    task = ImageTask(tmp_path / "in.npy", tmp_path / "in.npy", str(tmp_path / "{structure}.npy"))
    options = PredictionOptions(device="cpu", voxel_size=VOXEL)
    files = predict_image_on_worker(on_workers(model), NAMES, task, options, 4 << 30, 1)
    assert [file.path for file in files] == [tmp_path / f"{name}.npy" for name in NAMES]
    other = ModelOnWorkers(str(model.path), (("dna", "0" * 64),), 1, "call")
    with pytest.raises(ModelError, match="dna is another one on this worker"):
        predict_image_on_worker(other, "dna", task, options, None, 4)
    stop_on_worker("ended")
    with pytest.raises(PredictionStopped):
        predict_image_on_worker(on_workers(model, "ended"), NAMES, task, options, 4 << 30, 1)
    threads = torch.get_num_threads()
    one = ModelOnWorkers(str(model.path), on_workers(model).digests, threads + 1, "call")
    predict_image_on_worker(one, NAMES, task, options, None, 4)
    assert torch.get_num_threads() == threads, "of the worker, which may do other work"


def test_a_scheduler_is_needed(model, tmp_path, monkeypatch):
    import sys

    from repmode_cl.inference.cluster import PredictionCluster

    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RepmodeError, match="--scheduler needs Dask"):
        PredictionCluster("tcp://127.0.0.1:1")
    result = CliRunner().invoke(
        app, ["predict", str(model.path), "a.npy", "b.npy", "--structure", "dna", "--threads", "2"]
    )
    assert result.exit_code == 2
    assert "--threads is for the workers of --scheduler" in result.stderr


# -- a real cluster ---------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def command(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["predict", *map(str, arguments), "--device", "cpu"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return result.stdout


class _Killer(threading.Thread):
    """Kills the process of a worker as soon as something is true."""

    def __init__(self, cluster: Any, when: Callable[[], bool]) -> None:
        super().__init__(daemon=True)
        self.killed = 0
        self._cluster, self._when = cluster, when
        self.start()

    def run(self) -> None:
        for _ in range(6000):
            if self._when():
                pids = [nanny.pid for nanny in self._cluster.workers.values() if nanny.pid]
                os.kill(pids[0], signal.SIGKILL)
                self.killed = pids[0]
                return
            time.sleep(0.01)


def rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no signal that kills")
def test_a_plate_and_a_volume_on_four_workers_of_which_one_is_killed(model, tmp_path):
    import dask
    from distributed import LocalCluster

    plate = make_plate(tmp_path / "plate.ome.zarr", (3, 2, 9, 40, 40))
    arguments = ("--all", "--channel", "0", "--scene", "all", "--t", "all")
    here, there = tmp_path / "here", tmp_path / "there"
    command(model.path, plate, *arguments, "--out", here)
    volume = tmp_path / "volume.npy"
    np.save(volume, np.random.default_rng(0).integers(0, 3000, (20, 120, 120)).astype(np.uint16))
    # Of one name: it is written into the file.
    one, other = here / "volume.ome.tif", there / "volume.ome.tif"
    of_volume = ("--structure", "dna", "--voxel-size", "0.5,0.3,0.3")
    settings = {"distributed.worker.daemon": True, "temporary-directory": str(tmp_path / "dask")}
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=4, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
    ):
        threads = ("--scheduler", cluster.scheduler_address, "--threads", torch.get_num_threads())
        table = tmp_path / "table.csv"
        killer = _Killer(cluster, lambda: len(rows(table)) >= 6)
        command(model.path, plate, *arguments, "--out", there, "--csv", table, *threads)
        assert killer.killed
        assert len(rows(table)) == 36 * 2
        assert {row["status"] for row in rows(table)} <= {"predicted", "already there"}
        assert content(there) == content(here)

        command(model.path, volume, one, *of_volume)
        journal = other.with_name("volume.ome.tif.unfinished") / "journal.json"
        killer = _Killer(cluster, lambda: journal.exists() and '"blocks": 3' in journal.read_text())
        command(model.path, volume, other, *of_volume, *threads)
        assert killer.killed
        with DaskJobs(cluster.scheduler_address) as jobs:
            marks = [tmp_path / f"mark-{number}" for number in range(200)]
            _Killer(cluster, marks[1].exists)
            copies = jobs.run(partial(shutil.copy, volume), marks, name=str)
            assert sorted(map(str, copies)) == sorted(map(str, marks))
    assert other.read_bytes() == one.read_bytes()
