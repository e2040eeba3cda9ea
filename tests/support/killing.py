"""Processes that really die: forked from a server that has everything loaded, killed at a line of the program.

`Crew` starts the server, this file run as a script, with one thread. Each job is a fork of it that performs one
operation on a model. Traced line by line within the store, it can meet something at its n-th line: SIGKILL, or the loss
of the right to write. What came of it is reported through a file, if it lived to write one.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

#: Only lines of these files count: those that put a model on disk, and take it away.
TRACED = (
    "repmode_cl/store/",
    "repmode_cl/model.py",
    "repmode_cl/utils/atomic_files.py",
    "repmode_cl/utils/environment.py",
    "repmode_cl/utils/safetensors_header.py",
    "repmode_cl/utils/safetensors_io.py",
    "repmode_cl/utils/tensor_digests.py",
    "/shutil.py",
)


#: After lines of these the disk is looked at: the others change nothing there.
WRITERS = {
    "atomic_files.py", "commit.py", "safetensors_io.py", "shutil.py", "staging.py", "transaction.py", "versions.py",
}  # fmt: skip


@dataclass
class Outcome:
    """Outcome of a job.

    Attributes
    ----------
    signal
        What killed it; 0 if it ended by itself.
    error
        Class and message of the exception that ended it; empty if there was none.
    clean
        Whether the commands would print that exception as a message, without a traceback.
    result
        What the operation returned.
    lines
        ``[file, line, state]`` of every step, if they were asked for. Steps with the same state saw the same files on
        the disk: whoever dies there leaves the same.
    """

    signal: int = 0
    error: str = ""
    clean: bool = True
    result: Any = None
    lines: list[list[Any]] = field(default_factory=list)


class Crew:
    """A server that forks jobs; use it as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reports: dict[int, Path] = {}
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(30)
        self._server.stdout.close()

    def _ask(self, **request: Any) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request, default=str) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def start(self, operation: str, model: Path, *arguments: Any, **how: Any) -> int:
        """Fork a job; return its process id. See `_Job` for `how`."""
        report = self._folder / f"report-{len(self._reports)}.json"
        pid = self._ask(
            operation=operation, model=str(model), arguments=arguments, report=str(report), how=how
        )
        self._reports[pid] = report
        return pid

    def wait(self, pid: int) -> Outcome:
        """Wait until a job has ended."""
        status, report = self._ask(wait=pid), self._reports[pid]
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if killed:
            return Outcome(killed)
        assert report.exists(), f"a job ended with status {status} and without a report"
        return Outcome(**json.loads(report.read_text()))

    def run(self, operation: str, model: Path, *arguments: Any, **how: Any) -> Outcome:
        """Fork a job and wait until it has ended."""
        return self.wait(self.start(operation, model, *arguments, **how))


def steps_to_die_at(lines: list[list[Any]], count: int, seed: int) -> list[int]:
    """Choose steps (from 1) of a traced operation, in turn by what is on the disk, and by the line of the program.

    The former are few, and each is as likely as another, however short it lasts.
    """
    rng = random.Random(seed)
    on_disk: list[list[int]] = [[step] for step in every_state(lines)]
    by_line: dict[tuple[str, int], list[int]] = {}
    for step, (file, line, _) in enumerate(lines, 1):
        by_line.setdefault((file, line), []).append(step)
    ways = (on_disk, [by_line[where] for where in sorted(by_line)])
    return [rng.choice(rng.choice(ways[number % 2])) for number in range(count)]


def every_state(lines: list[list[Any]]) -> list[int]:
    """Return one step (from 1) for each state of the disk that a traced operation goes through."""
    return list({state: step for step, (_, _, state) in reversed(list(enumerate(lines, 1)))}.values())


# -- within the server and its forks ---------------------------------------------------------------------------------


def _serve() -> None:
    """Answer requests line by line: fork a job and tell its id, or wait for one and tell its status."""
    import torch
    from store_operations import OPERATIONS
    from stored_model import make_model

    import repmode_cl.cli.options  # noqa: F401 - see below

    torch.set_num_threads(1)
    # Whatever is loaded at first use is loaded here, once, and before anyone loses the right to read it.
    with tempfile.TemporaryDirectory() as name:
        OPERATIONS["verify"](make_model(Path(name) / "model"))
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitpid(request["wait"], 0)[1], flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null, 1)
            code = 70
            try:
                _Job(request).run()
                code = 0
            finally:
                os._exit(code)
        print(pid, flush=True)


class _Job:
    """One operation, and what shall happen to it.

    Parameters
    ----------
    request
        ``operation`` (a name of `OPERATIONS`), ``model``, ``arguments``, ``report``, and ``how``:
        ``trace`` (report the lines), ``die_at`` or ``lose_at`` (a step), ``lose`` (paths that then become
        read-only), ``after`` (wait until this file exists), ``user`` (become this user, if root), ``largest``
        (bytes that a file may have), ``disk`` (work on a copy in a separate file system at ``folder``, with
        ``free`` bytes left, and leave it in ``keep``).
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.request, self.how = request, request["how"]
        self.lines: list[tuple[str, int, int]] = []
        self.seen: list[tuple[object, ...]] = []
        self.step = 0

    def run(self) -> None:
        from repmode_cl.cli.options import _USERS_ERRNO
        from repmode_cl.errors import RepmodeError

        outcome = Outcome()
        report = Path(self.request["report"])
        report.touch()
        report.chmod(0o666)
        try:
            outcome.result = self._perform()
        except Exception as error:
            outcome.error = f"{type(error).__name__}: {error}"
            outcome.clean = isinstance(error, RepmodeError) or (
                isinstance(error, OSError) and error.errno in _USERS_ERRNO and error.filename is not None
            )
        finally:
            sys.settrace(None)
            if "largest" in self.how:
                import resource

                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        outcome.lines = [list(line) for line in self.lines]
        report.write_text(json.dumps(vars(outcome)))

    def _perform(self) -> Any:
        from store_operations import OPERATIONS

        operation, model = OPERATIONS[self.request["operation"]], Path(self.request["model"])
        if (user := self.how.get("user")) is not None and os.getuid() == 0:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        if (largest := self.how.get("largest")) is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
        if (after := self.how.get("after")) is not None:
            while not Path(after).exists():
                time.sleep(0.001)
        if any(key in self.how for key in ("trace", "die_at", "lose_at")):
            sys.settrace(self._trace)
        if (disk := self.how.get("disk")) is None:
            return operation(model, *self.request["arguments"])
        folder = Path(disk["folder"])
        _mount(folder)
        copy = Path(shutil.copytree(model, folder / "model"))
        with (folder / "ballast").open("wb") as ballast:
            ballast.write(bytes(shutil.disk_usage(folder).free - disk["free"]))
        try:
            return operation(copy, *self.request["arguments"])
        finally:
            shutil.copytree(copy, disk["keep"])

    def _trace(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        name = frame.f_code.co_filename.replace(os.sep, "/")
        return self._line if any(part in name for part in TRACED) else None

    def _state(self, file: str) -> int:
        """Number what is on the disk now, at a line of `file`: all names, sizes and times of the model."""
        if file not in WRITERS and self.lines:
            return self.lines[-1][2]
        found: list[object] = []
        for folder, _, names in os.walk(self.request["model"]):
            found.append(folder)
            for name in names:
                status = Path(folder, name).stat()
                found.append((name, status.st_size, status.st_mtime_ns, status.st_ino))
        if tuple(found) not in self.seen:
            self.seen.append(tuple(found))
        return self.seen.index(tuple(found))

    def _line(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        if event == "line":
            self.step += 1
            if self.how.get("trace"):
                name = Path(frame.f_code.co_filename).name
                self.lines.append((name, frame.f_lineno, self._state(name)))
            if self.step == self.how.get("die_at"):
                os.kill(os.getpid(), signal.SIGKILL)
            if self.step == self.how.get("lose_at"):
                for path in filter(Path.exists, map(Path, self.how["lose"])):
                    path.chmod(0o555 if path.is_dir() else 0o444)
        return self._line


class NoDisk(Exception):  # noqa: N818 - it is no error of what is tested
    """This process may not mount a file system."""


def _mount(folder: Path) -> None:
    """Put a file system of 1 MiB in memory at `folder`, for this process only."""
    libc, root = ctypes.CDLL(None, use_errno=True), os.getuid() == 0
    namespace, users, private, recursive = 0x20000, 0x10000000, 1 << 18, 1 << 14
    uid, gid = os.getuid(), os.getgid()
    if not hasattr(libc, "unshare") or libc.unshare(namespace if root else namespace | users):
        raise NoDisk
    if not root:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    target = os.fsencode(folder)
    if libc.mount(b"none", b"/", None, private | recursive, None) or libc.mount(
        b"tmpfs", target, b"tmpfs", 0, b"size=1m"
    ):
        raise NoDisk


if __name__ == "__main__":
    _serve()
