"""Many units at once: which comes when, killed ones again, failed ones alone; processes that end with their giver."""

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

from repmode_cl.benchmark.executors.child_process import ABANDONED, end_all, run_in_child
from repmode_cl.benchmark.executors.local import LocalProcesses, how_ended
from repmode_cl.benchmark.executors.scheduling import ScheduledTrial, TrialEnded, run_jobs
from repmode_cl.benchmark.trials import BaseTrial
from repmode_cl.results.trial_record import Trial, TrialOutcome, read_outcome, write_outcome
from repmode_cl.strategies.plugins import peak_memory as memory_module
from repmode_cl.strategies.plugins.peak_memory import PeakMemory

SUPPORT = Path(__file__).parents[1] / "support"
A, B, C = (Trial(title, "s", 0) for title in "abc")
BASE = BaseTrial("repmode", "", 0, "a")

needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows has no signal that kills")


class Fake:
    """An executor whose units end, in the order in which they began, as a plan says: done, failed or killed."""

    def __init__(self, slots: int, plan: dict[Trial | BaseTrial, str]) -> None:
        self.slots, self.plan = slots, {item: deque(ends.split()) for item, ends in plan.items()}
        self.begun: list[Trial | BaseTrial] = []
        self.running: deque[Trial | BaseTrial] = deque()
        self.outcomes: dict[Trial | BaseTrial, TrialOutcome] = {}
        self.most = 0

    def start(self, item: Trial | BaseTrial) -> None:
        self.begun.append(item)
        self.running.append(item)
        self.most = max(self.most, len(self.running))

    def next_ended(self) -> TrialEnded:
        item = self.running.popleft()
        end = self.plan[item].popleft() if self.plan.get(item) else "done"
        if end in ("done", "failed"):
            self.outcomes[item] = TrialOutcome(
                finished=end == "done", message="" if end == "done" else "it broke"
            )
        return TrialEnded(item, "its process was killed (signal 9)", again=end != "lost")

    def run(self, *jobs: ScheduledTrial, **options: int) -> dict[Trial | BaseTrial, TrialOutcome]:
        def fail(item: Trial | BaseTrial, why: str) -> None:
            self.outcomes[item] = TrialOutcome(finished=False, message=why)

        seen: list[Trial | BaseTrial] = []
        run_jobs(jobs, self, outcome=self.outcomes.get, fail=fail, ended=seen.append, **options)
        assert sorted(map(str, seen)) == sorted(str(job.item) for job in jobs)
        return self.outcomes


def test_a_base_comes_first_and_others_do_not_wait_for_it() -> None:
    fake = Fake(2, {})
    fake.run(ScheduledTrial(BASE), ScheduledTrial(A, BASE), ScheduledTrial(B), ScheduledTrial(C, BASE))
    assert fake.begun == [BASE, B, A, C]
    assert fake.most == 2


def test_a_killed_unit_is_begun_again_three_times_and_no_more() -> None:
    fake = Fake(1, {A: "killed killed killed done", B: "killed killed killed killed"})
    outcomes = fake.run(ScheduledTrial(A), ScheduledTrial(B), ScheduledTrial(C))
    assert fake.begun == [A, A, A, A, B, B, B, B, C]
    assert outcomes[A].finished
    assert outcomes[C].finished
    assert outcomes[B].message == "tried 4 times: its process was killed (signal 9)"
    gone = Fake(1, {A: "lost"})
    assert not gone.run(ScheduledTrial(A))[A].finished
    assert gone.begun == [A]  # who knows that it was tried elsewhere is believed


def test_a_failed_unit_ends_no_other_but_those_that_begin_with_it() -> None:
    fake = Fake(2, {A: "failed", BASE: "failed"})
    outcomes = fake.run(ScheduledTrial(A), ScheduledTrial(BASE), ScheduledTrial(B, BASE), ScheduledTrial(C))
    assert fake.begun == [A, BASE, C]
    assert outcomes[A].message == "it broke"
    assert outcomes[C].finished
    assert "the base that it begins with failed (base repmode seed 0)" in outcomes[B].message


# -- processes of their own -----------------------------------------------------------------------------------------


@pytest.fixture
def victims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))


def wait_for(what: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.mark.usefixtures("victims")
def test_a_process_of_its_own_says_how_it_ended_and_what_it_said(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"

    def give(**order: object) -> int:
        return run_in_child("child_process_victim", order, log, group="test", threads=3, folder=str(tmp_path))

    assert give(do="exit", status=7) == 7
    assert "ended by itself, with exit status 7" in how_ended(7)
    assert "killed" not in how_ended(7)
    assert give(do="exit", status=0) == 0
    text = log.read_text()
    assert text.count("a word") == text.count("---- 2") == 2  # what was said before is kept
    assert f"3 {tmp_path}" in text
    if os.name != "nt":
        assert "killed (signal 9)" in how_ended(give(do="kill"))
    end_all("over")
    assert run_in_child("child_process_victim", {}, log, group="over", threads=1, folder=".") == ABANDONED


@needs_signals
@pytest.mark.usefixtures("victims")
def test_a_process_ends_when_its_giver_is_killed(tmp_path: Path) -> None:
    import subprocess

    file = tmp_path / "pid.txt"
    order = f'{{"do": "give", "file": {str(file)!r}}}\n'.replace("'", '"')
    giver = subprocess.Popen([sys.executable, "-P", "-m", "child_process_victim"], stdin=subprocess.PIPE)
    assert giver.stdin is not None
    giver.stdin.write(order.encode())
    giver.stdin.flush()
    wait_for(lambda: file.exists() and bool(file.read_text()))
    inner = psutil.Process(int(file.read_text()))
    giver.kill()
    giver.wait()
    giver.stdin.close()
    wait_for(lambda: not inner.is_running() or inner.status() == psutil.STATUS_ZOMBIE)


@needs_signals
@pytest.mark.usefixtures("victims")
def test_local_processes_that_are_killed_are_begun_again(tmp_path: Path) -> None:
    """Real ones: the seed says at which try a unit is not killed any more."""
    units = [Trial("one", "x", 1), Trial("two", "x", 3), Trial("never", "x", 9)]

    def fail(item: Trial | BaseTrial, why: str) -> None:
        write_outcome(tmp_path / item.folder, TrialOutcome(finished=False, message=why))

    with LocalProcesses(tmp_path, jobs=2, threads=1, module="child_process_victim") as processes:
        run_jobs(
            [ScheduledTrial(unit) for unit in units],
            processes,
            outcome=lambda item: read_outcome(tmp_path / item.folder),
            fail=fail,
        )
    outcomes = [read_outcome(tmp_path / unit.folder) for unit in units]
    assert [outcome and outcome.finished for outcome in outcomes] == [True, True, False]
    tries = [(tmp_path / unit.folder / "tries.txt").read_text() for unit in units]
    assert tries == ["1", "3", "4"]


@pytest.mark.usefixtures("victims")
def test_processes_at_work_end_with_their_executor(tmp_path: Path) -> None:
    from threading import Thread

    file, log = tmp_path / "pid.txt", tmp_path / "log.txt"
    ended: list[int] = []
    order = {"do": "wait", "file": str(file)}

    def give() -> None:
        ended.append(run_in_child("child_process_victim", order, log, group="leave", threads=1, folder="."))

    thread = Thread(target=give)
    thread.start()
    wait_for(lambda: file.exists() and bool(file.read_text()))
    end_all("leave")
    thread.join(30)
    assert ended
    assert ended[0] != 0


def test_peak_memory_sees_what_is_taken_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "_trained_here", False)
    memory = PeakMemory(torch.device("cpu"))
    size = 64 << 20
    with memory:
        with memory.paused(), memory.paused():
            aside = torch.ones(2 * size, dtype=torch.uint8)
            time.sleep(0.1)
            del aside
        assert (memory.look() or 0) < size // 2
        taken = torch.ones(size, dtype=torch.uint8)
        time.sleep(0.2)
        del taken
    assert memory.highest is not None
    assert size // 2 < memory.highest < 2 * size
    assert memory.look() == memory.highest  # outside it looks no more
    later = PeakMemory(torch.device("cpu"))  # what the first left to the allocator it would take unseen
    with later:
        assert later.look() is None
