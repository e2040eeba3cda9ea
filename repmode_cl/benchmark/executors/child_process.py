"""A module run in a child process, which reads an order from its standard input and ends with its parent.

It serves work that may be killed, and that needs its own threads, random numbers and memory. Any process can start such
a child, also one that may have no children of multiprocessing's kind, such as a worker of Dask.
"""

from __future__ import annotations

import _thread
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["run_in_child", "kill_group", "stop_group", "running_in_group", "read_order", "ABANDONED"]

#: Exit status of a process whose parent is gone.
ABANDONED = 75
#: What a parent writes to a child that has its order: save, and end.
_STOP = b"stop\n"

_running: dict[str, set[subprocess.Popen[bytes]]] = {}
_ended_groups: set[str] = set()
_lock = threading.Lock()


def run_in_child(module: str, order: Any, log: str | Path, *, group: str, threads: int, folder: str) -> int:
    """Run ``python -m module`` with an order, and wait for its end.

    Parameters
    ----------
    module
        Reads its order with `read_order`.
    order
        JSON.
    log
        File that its standard output and error are appended to.
    group
        Name by which `kill_group` finds it.
    threads
        Threads of numerical libraries that follow the environment's variables.
    folder
        Its working directory; where there is no such folder, that of this process.

    Returns
    -------
    int
        Its exit status; negative where a signal ended it.
    """
    line = json.dumps(order).encode("ascii") + b"\n"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with Path(log).open("ab") as handle:
        handle.write(time.strftime("---- %Y-%m-%d %H:%M:%S\n").encode("ascii"))
        handle.flush()
        with _lock:
            if group in _ended_groups:
                return ABANDONED
            process = subprocess.Popen(
                # -P: a file of the working directory must not be imported in place of a library.
                [sys.executable, "-P", "-m", module],
                stdin=subprocess.PIPE,
                stdout=handle,
                stderr=handle,
                cwd=folder if Path(folder).is_dir() else None,
                env=environment,
            )
            _running.setdefault(group, set()).add(process)
    assert process.stdin is not None
    try:
        with suppress(OSError):  # it died before it read: its exit status shows it
            process.stdin.write(line)
            process.stdin.flush()  # and left open: its end tells the child that this process is gone
        return process.wait()
    finally:
        with suppress(OSError):
            process.stdin.close()
        with _lock:
            _running[group].discard(process)


def kill_group(group: str) -> None:
    """Kill all processes of `group` that this process started, and start no more of them."""
    with _lock:
        _ended_groups.add(group)
        for process in _running.get(group, ()):
            process.kill()


def stop_group(group: str) -> None:
    """Ask all processes of `group` that this process started to save their work and end; start no more of them."""
    with _lock:
        _ended_groups.add(group)
        for process in _running.get(group, ()):
            assert process.stdin is not None
            with suppress(OSError, ValueError):  # it has ended already
                process.stdin.write(_STOP)
                process.stdin.flush()


def running_in_group(group: str) -> int:
    """Return how many processes of `group` this process waits for."""
    with _lock:
        return len(_running.get(group, ()))


def read_order() -> Any:
    """Return the order that this process was started with; from now on, end when its parent does.

    When the parent asks to stop, this process handles that as a SIGTERM. Ctrl-C, which reaches both, is left to the
    parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Not through sys.stdin, whose lock a waiting thread would hold when the interpreter ends.
    text = bytearray()
    while not text.endswith(b"\n"):
        piece = os.read(0, 1 << 16)
        if not piece:
            os._exit(ABANDONED)
        text += piece
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return json.loads(text)


def _end_with_parent() -> None:
    while os.read(0, 1 << 10):
        _thread.interrupt_main(signal.SIGTERM)  # only _STOP comes
    os._exit(ABANDONED)
