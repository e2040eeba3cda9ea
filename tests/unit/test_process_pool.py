"""Worker processes: what they import, how their results and their ends reach the parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from repmode_cl.errors import RepmodeError
from repmode_cl.utils.process_pool import run_jobs

WORK = """
import os, sys, time

def wait(seconds):
    time.sleep(seconds)
    return seconds

def imported(_):
    return set(sys.modules)

def refuse(job):
    raise LookupError(f"{job} is refused")

def die(job):
    if job == 2:
        os._exit(9)
    time.sleep(0.3)

def mark(path):
    time.sleep(0.5)
    open(path, "w").close()
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "work_of_workers.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "work_of_workers", raising=False)
    import work_of_workers

    return work_of_workers


@pytest.mark.slow
def test_results_come_in_the_order_in_which_jobs_end(work: ModuleType) -> None:
    assert list(run_jobs(work.wait, [3.0, 0.0, 0.0], 2, name=str)) == [0.0, 0.0, 3.0]
    assert list(run_jobs(work.wait, [0.1, 0.0], 1, name=str)) == [0.1, 0.0]
    assert list(run_jobs(work.wait, [], 4, name=str)) == []


def test_workers_do_not_import_the_script(work: ModuleType) -> None:
    assert "pytest" in sys.modules
    for modules in run_jobs(work.imported, [1, 2], 2, name=str):
        assert not {"pytest", "avalanche", "torch", "numpy"} & modules


def test_an_error_stops_the_rest(work: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="1 is refused"):
        list(run_jobs(work.refuse, [1, 1], 2, name=str))
    files = [tmp_path / f"{k}.done" for k in range(40)]
    results = run_jobs(work.mark, files, 2, name=str)
    next(results)
    results.close()  # as Ctrl-C does
    assert sum(file.exists() for file in files) < 12


def test_the_error_of_a_dead_process_names_its_jobs(work: ModuleType) -> None:
    with pytest.raises(
        RepmodeError, match=r"ended by the system.*they worked on job 1, job 2;.*--workers 1:"
    ):
        list(run_jobs(work.die, [1, 2, 3], 2, name=lambda job: f"job {job}"))


SCRIPT = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
from repmode_cl.utils.process_pool import run_jobs
import os, work_of_workers
pathlib.Path(sys.argv[1], "pids").write_text("")
jobs = [f"{sys.argv[1]}/{k}.done" for k in range(200)]
for _ in run_jobs(work_of_workers.mark, jobs, 2, name=str):
    print("done", flush=True)
"""


def at_work(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_workers_end_with_a_parent_that_is_killed(work: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while any(map(at_work, workers)):
        assert time.monotonic() < deadline, "workers are still there"
        time.sleep(0.02)
    before = len(list(tmp_path.glob("*.done")))
    time.sleep(0.8)  # longer than a job
    assert len(list(tmp_path.glob("*.done"))) == before < 200
    assert os.getpid() != process.pid
