"""Many trials at once: their order, retries of killed ones, failures; processes that end with their parent."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from repmode_cl.benchmark.executors.child_process import ABANDONED, kill_group, run_in_child
from repmode_cl.benchmark.executors.local import LocalProcesses, exit_text
from repmode_cl.benchmark.executors.scheduling import ScheduledTrial, TrialEnded, run_trials
from repmode_cl.benchmark.trials import BaseTrial
from repmode_cl.results.trial_record import Trial, TrialOutcome, read_outcome, write_outcome
from repmode_cl.strategies.plugins import peak_memory as memory_module
from repmode_cl.strategies.plugins.peak_memory import PeakMemory

SUPPORT = Path(__file__).parents[1] / "support"
A, B, C = (Trial(title, "s", 0) for title in "abc")
BASE = BaseTrial("repmode", "", 0, "a")

needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows has no signal that kills")


class Fake:
    """An executor whose trials end, in the order in which they started, as a plan tells: done, failed or killed."""

    def __init__(self, slots: int, plan: dict[Trial | BaseTrial, str]) -> None:
        self.slots, self.plan = slots, {trial: deque(ends.split()) for trial, ends in plan.items()}
        self.started: list[Trial | BaseTrial] = []
        self.running: deque[Trial | BaseTrial] = deque()
        self.outcomes: dict[Trial | BaseTrial, TrialOutcome] = {}
        self.most = 0

    def start(self, trial: Trial | BaseTrial) -> None:
        self.started.append(trial)
        self.running.append(trial)
        self.most = max(self.most, len(self.running))

    def next_ended(self) -> TrialEnded:
        trial = self.running.popleft()
        end = self.plan[trial].popleft() if self.plan.get(trial) else "done"
        if end in ("done", "failed"):
            self.outcomes[trial] = TrialOutcome(
                finished=end == "done", message="" if end == "done" else "it broke"
            )
        return TrialEnded(trial, "its process was killed (signal 9)", retry=end != "lost")

    def run(self, *jobs: ScheduledTrial, **options: int) -> dict[Trial | BaseTrial, TrialOutcome]:
        def fail(trial: Trial | BaseTrial, message: str) -> None:
            self.outcomes[trial] = TrialOutcome(finished=False, message=message)

        ended: list[Trial | BaseTrial] = []
        run_trials(jobs, self, outcome=self.outcomes.get, fail=fail, ended=ended.append, **options)
        assert sorted(map(str, ended)) == sorted(str(job.trial) for job in jobs)
        return self.outcomes


def test_a_base_comes_first_and_others_do_not_wait_for_it() -> None:
    fake = Fake(2, {})
    fake.run(ScheduledTrial(BASE), ScheduledTrial(A, BASE), ScheduledTrial(B), ScheduledTrial(C, BASE))
    assert fake.started == [BASE, B, A, C]
    assert fake.most == 2


def test_a_killed_trial_is_started_again_three_times_and_no_more() -> None:
    fake = Fake(1, {A: "killed killed killed done", B: "killed killed killed killed"})
    outcomes = fake.run(ScheduledTrial(A), ScheduledTrial(B), ScheduledTrial(C))
    assert fake.started == [A, A, A, A, B, B, B, B, C]
    assert outcomes[A].finished
    assert outcomes[C].finished
    assert outcomes[B].message == "tried 4 times: its process was killed (signal 9)"
    gone = Fake(1, {A: "lost"})
    assert not gone.run(ScheduledTrial(A))[A].finished
    assert gone.started == [A]  # the executor has tried it elsewhere already


def test_a_failed_trial_stops_only_those_that_start_from_it() -> None:
    fake = Fake(2, {A: "failed", BASE: "failed"})
    outcomes = fake.run(ScheduledTrial(A), ScheduledTrial(BASE), ScheduledTrial(B, BASE), ScheduledTrial(C))
    assert fake.started == [A, BASE, C]
    assert outcomes[A].message == "it broke"
    assert outcomes[C].finished
    assert "the base that it starts from failed (base repmode seed 0)" in outcomes[B].message


# -- child processes -----------------------------------------------------------------------------------------------


@pytest.fixture
def victims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))


def wait_for(what: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.mark.usefixtures("victims")
def test_a_child_process_reports_how_it_ended_and_logs_its_output(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"

    def run(**order: object) -> int:
        return run_in_child("child_process_victim", order, log, group="test", threads=3, folder=str(tmp_path))

    assert run(do="exit", status=7) == 7
    assert "ended by itself, with exit status 7" in exit_text(7)
    assert "killed" not in exit_text(7)
    assert run(do="exit", status=0) == 0
    text = log.read_text()
    assert text.count("a word") == text.count("---- 2") == 2  # earlier output is kept
    assert f"3 {tmp_path}" in text
    if os.name != "nt":
        assert "killed (signal 9)" in exit_text(run(do="kill"))
    kill_group("over")
    assert run_in_child("child_process_victim", {}, log, group="over", threads=1, folder=".") == ABANDONED


@needs_signals
@pytest.mark.usefixtures("victims")
def test_a_process_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    import subprocess

    file = tmp_path / "pid.txt"
    order = f'{{"do": "give", "file": {str(file)!r}}}\n'.replace("'", '"')
    parent = subprocess.Popen([sys.executable, "-P", "-m", "child_process_victim"], stdin=subprocess.PIPE)
    assert parent.stdin is not None
    parent.stdin.write(order.encode())
    parent.stdin.flush()
    wait_for(lambda: file.exists() and bool(file.read_text()))
    inner = psutil.Process(int(file.read_text()))
    parent.kill()
    parent.wait()
    parent.stdin.close()
    wait_for(lambda: not inner.is_running() or inner.status() == psutil.STATUS_ZOMBIE)


@needs_signals
@pytest.mark.usefixtures("victims")
def test_local_processes_that_are_killed_are_started_again(tmp_path: Path) -> None:
    """Real processes: the seed gives the try at which a trial is not killed any more."""
    trials = [Trial("one", "x", 1), Trial("two", "x", 3), Trial("never", "x", 9)]

    def fail(trial: Trial | BaseTrial, message: str) -> None:
        write_outcome(tmp_path / trial.folder, TrialOutcome(finished=False, message=message))

    with LocalProcesses(tmp_path, jobs=2, threads=1, module="child_process_victim") as processes:
        run_trials(
            [ScheduledTrial(trial) for trial in trials],
            processes,
            outcome=lambda trial: read_outcome(tmp_path / trial.folder),
            fail=fail,
        )
    outcomes = [read_outcome(tmp_path / trial.folder) for trial in trials]
    assert [outcome and outcome.finished for outcome in outcomes] == [True, True, False]
    tries = [(tmp_path / trial.folder / "tries.txt").read_text() for trial in trials]
    assert tries == ["1", "3", "4"]


@pytest.mark.usefixtures("victims")
def test_processes_at_work_end_with_their_executor(tmp_path: Path) -> None:
    from threading import Thread

    file, log = tmp_path / "pid.txt", tmp_path / "log.txt"
    ended: list[int] = []
    order = {"do": "wait", "file": str(file)}

    def run() -> None:
        ended.append(run_in_child("child_process_victim", order, log, group="leave", threads=1, folder="."))

    thread = Thread(target=run)
    thread.start()
    wait_for(lambda: file.exists() and bool(file.read_text()))
    kill_group("leave")
    thread.join(120)
    assert ended
    assert ended[0] != 0


def test_peak_memory_sees_memory_that_is_freed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "_trained_here", False)
    memory = PeakMemory(torch.device("cpu"))
    size = 64 << 20
    with memory:
        with memory.paused(), memory.paused():
            aside = torch.ones(2 * size, dtype=torch.uint8)
            time.sleep(0.1)
            del aside
        assert (memory.update() or 0) < size // 2
        taken = torch.ones(size, dtype=torch.uint8)
        time.sleep(0.2)
        del taken
    assert memory.peak is not None
    assert size // 2 < memory.peak < 2 * size
    assert memory.update() == memory.peak  # outside it looks no more
    later = PeakMemory(torch.device("cpu"))  # what the first left to the allocator it would take unseen
    with later:
        assert later.update() is None
