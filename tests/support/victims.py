"""Models that something will happen to while they change, and what they may be afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from killing import Crew, Outcome
from store_operations import OPERATIONS

from repmode_cl.model import Model
from repmode_cl.store import verify_model
from repmode_cl.utils.atomic_files import TEMPORARY_MARK

#: Operation, its arguments, and what is done to the model first.
CASES: dict[str, tuple[tuple[object, ...], list[tuple[object, ...]]]] = {
    "add": (("desmosome",), []),
    "replace": (("tight_junction",), [("remove", "mitochondria")]),
    "remove": (("mitochondria",), []),
    "rollback": ((3,), [("remove", "mitochondria"), ("replace", "tight_junction")]),
    "gc": ((), [("remove", "mitochondria"), ("replace", "tight_junction")]),
    "import_pack": (("PACK",), [("remove", "mitochondria"), ("remove", "nucleolus"), ("gc",)]),
    "accept": (("golgi_apparatus",), []),
    "discard": (("golgi_apparatus",), []),
    "stage": (("desmosome",), []),
}

#: Those that write into the model itself.
CHANGES = [operation for operation in CASES if operation not in ("discard", "stage")]

State = tuple[object, ...]


@dataclass
class Victim:
    """A model to be changed, as it is before and after, and the lines that this takes."""

    operation: str
    arguments: list[object]
    template: Path
    before: State
    after: State
    lines: list[list[object]]
    seconds: float


class Harness:
    """Makes victims, kills processes that change them, and looks at what is left."""

    def __init__(self, folder: Path, stored: Path, crew: Crew) -> None:
        self.folder, self.stored, self.crew = folder, stored, crew
        self.pack = Model.open(stored).export_pack("nucleolus", folder / "nucleolus.safetensors")
        self.table: Counter[tuple[str, str]] = Counter()
        self._victims: dict[str, Victim] = {}
        self._copies = 0

    def copy(self, template: Path) -> Path:
        """Return a copy of a model, to be changed."""
        self._copies += 1
        return Path(shutil.copytree(template, self.folder / f"model-{self._copies}"))

    def victim(self, operation: str) -> Victim:
        """Return the model for an operation; made once, together with its uninterrupted run."""
        if operation not in self._victims:
            arguments, first = CASES[operation]
            given = [str(self.pack) if argument == "PACK" else argument for argument in arguments]
            template = Path(shutil.copytree(self.stored, self.folder / f"template-{operation}"))
            for name, *values in first:
                OPERATIONS[str(name)](template, *values)
            # Pending work that no kill may touch, and that accept and discard are about.
            OPERATIONS["stage"](template, "golgi_apparatus")
            (template / "pending" / f"other{TEMPORARY_MARK}1.json").write_text("mine")
            done = Path(shutil.copytree(template, self.folder / f"done-{operation}"))
            begun = time.monotonic()
            clean(self.crew.run(operation, done, *given))
            seconds = time.monotonic() - begun
            shutil.rmtree(done)
            shutil.copytree(template, done)
            outcome = clean(self.crew.run(operation, done, *given, trace=True))
            self._victims[operation] = Victim(
                operation, given, template, state(template), state(done), outcome.lines, seconds
            )
            assert operation in ("discard", "stage") or state(done) != state(template)
        return self._victims[operation]

    def kill(self, victim: Victim, **how: float) -> None:
        """Let one process die over a copy of the model, and see that nothing is lost."""
        delay, again = how.pop("delay", None), how.pop("again", None)
        model = self.copy(victim.template)
        pid = self.crew.start(victim.operation, model, *victim.arguments, **how)
        if delay is not None:
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
        outcome = self.crew.wait(pid)
        assert outcome.signal in (0, signal.SIGKILL)
        assert not outcome.error, outcome.error
        if again is not None and outcome.signal:
            # The same command once more: it may find its work done already.
            outcome = self.crew.run(victim.operation, model, *victim.arguments, die_at=again)
            if outcome.error:
                assert state(model) == victim.after
                outcome.signal = signal.SIGKILL
        try:
            self.check(victim, model, killed=outcome.signal != 0)
        except BaseException:
            self.table[victim.operation, "lost"] += 1
            raise
        shutil.rmtree(model)

    def check(self, victim: Victim, model: Path, *, killed: bool) -> None:
        """See that the model is the old one or the new one, whole, and that the next command clears up."""
        found = state(model)
        assert found in (victim.before, victim.after), (found, victim.before, victim.after)
        if not killed:
            assert found == victim.after
        # Reading clears away what was left of the files, and nothing else.
        report = verify_model(model)
        assert report.ok, report
        assert report.bit_identical, report
        assert not temporary(model)
        assert (model / "pending" / f"other{TEMPORARY_MARK}1.json").read_text() == "mine"
        new = found == victim.after
        if victim.operation == "discard":
            new = not (model / "pending" / "golgi_apparatus").exists()
        if victim.operation == "stage":
            new = (model / "pending" / "desmosome" / "staged.json").exists()
        self.table[victim.operation, "finished" if not killed else "new" if new else "old"] += 1
        # What was interrupted can be done again.
        if victim.operation == "stage":
            shutil.rmtree(model / "pending" / "desmosome", ignore_errors=True)
        if killed and (not new or victim.operation in ("accept", "discard", "stage")):
            pending = (model / "pending" / "golgi_apparatus").exists()
            if victim.operation not in ("accept", "discard") or pending:
                OPERATIONS[victim.operation](model, *victim.arguments)
            assert state(model) == victim.after
            assert verify_model(model, "files").ok
        if victim.operation not in ("accept", "discard"):
            staged = model / "pending" / "golgi_apparatus"
            kept = victim.template / "pending" / "golgi_apparatus"
            assert {f.name: f.read_bytes() for f in staged.iterdir()} == {
                f.name: f.read_bytes() for f in kept.iterdir()
            }

    def show(self) -> None:
        """Print how many processes were killed, what that left, and what was lost."""
        print(f"\n{'operation':12} killed   old   new  finished  lost")
        killed = lost = 0
        for operation in CASES:
            old, new, done, gone = (
                self.table[operation, what] for what in ("old", "new", "finished", "lost")
            )
            if old + new + done + gone:
                print(f"{operation:12} {old + new + gone:6} {old:5} {new:5} {done:9} {gone:5}")
            killed, lost = killed + old + new + gone, lost + gone
        print(f"{'all':12} {killed:6} {'':21} {lost:5}")


def clean(outcome: Outcome) -> Outcome:
    assert not outcome.error, outcome.error
    assert outcome.signal == 0
    return outcome


def state(path: Path) -> State:
    """Return what a model is: its structures, its earlier versions, and how many changes it saw."""
    model = Model.open(path)
    active = tuple((name, entry.digest) for name, entry in model.entries.items())
    kept = tuple((entry.name, entry.digest) for entry in model.kept)
    return active, kept, tuple((change.action, change.structure) for change in model.history)


def temporary(path: Path) -> list[Path]:
    return [
        file for file in path.rglob(f"*{TEMPORARY_MARK}*") if file.relative_to(path).parts[0] != "pending"
    ]
