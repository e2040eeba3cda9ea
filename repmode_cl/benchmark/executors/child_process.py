"""Running a module in a process of its own, which gets an order on its standard input and ends with who gave it.

For work that may be killed, and whose threads, random numbers and memory are to be its own. Such a process can be
started from anywhere, also from one that may have no children of multiprocessing's kind, such as a worker of Dask.
"""

from __future__ import annotations

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

__all__ = ["ABANDONED", "end_all", "read_order", "run_in_child"]

#: Exit status of a process whose giver is gone.
ABANDONED = 75

_running: dict[str, set[subprocess.Popen[bytes]]] = {}
_ended: set[str] = set()
_lock = threading.Lock()


def run_in_child(module: str, order: Any, log: str | Path, *, group: str, threads: int, folder: str) -> int:
    """Run ``python -m module`` with an order, and wait for its end.

    Parameters
    ----------
    module
        Takes its order with `read_order`.
    order
        JSON.
    log
        File that its standard output and error are added to.
    group
        By which `end_all` finds it.
    threads
        Of numerical libraries, as far as they go by the environment.
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
            if group in _ended:
                return ABANDONED
            process = subprocess.Popen(
                # -P: a file of the working directory is not to be taken for a library.
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
        with suppress(OSError):  # it died before it read: its status says so
            process.stdin.write(line)
            process.stdin.flush()  # and left open: its end is the sign that this process is gone
        return process.wait()
    finally:
        with suppress(OSError):
            process.stdin.close()
        with _lock:
            _running[group].discard(process)


def end_all(group: str) -> None:
    """End all processes of `group` that this process started, and start no more of them."""
    with _lock:
        _ended.add(group)
        for process in _running.get(group, ()):
            process.kill()


def read_order() -> Any:
    """Return the order that this process was started with; from now on, end when its giver does.

    Ctrl-C is not heard any more: it is the giver who ends this process then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Not through sys.stdin, whose lock a waiting thread would hold when the interpreter ends.
    text = bytearray()
    while not text.endswith(b"\n"):
        piece = os.read(0, 1 << 16)
        if not piece:
            os._exit(ABANDONED)
        text += piece
    threading.Thread(target=_end_with_giver, daemon=True).start()
    return json.loads(text)


def _end_with_giver() -> None:
    while os.read(0, 1 << 10):
        pass
    os._exit(ABANDONED)
