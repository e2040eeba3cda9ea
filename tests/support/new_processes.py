"""New processes at the cost of a fork: of a server that has loaded the library of models, and has seen no model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import TracebackType

__all__ = ["NewProcesses"]

#: Reads one line for each process: a script and its arguments, as JSON. Answers with the exit status.
SERVER = """
import json, os, sys, traceback
import numpy, torch, repmode_cl.model
for line in sys.stdin:
    script, arguments = json.loads(line)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.dup2(2, 1)  # the answers have standard output for themselves
            sys.argv = ["-c", *arguments]
            exec(compile(script, "script", "exec"), {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class NewProcesses:
    """Run scripts, each in a separate process; use it as a context manager.

    Importing torch takes seconds, a fork of a process that has done so takes none. Where there are no forks, each
    script is run by a new interpreter.
    """

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None
        if hasattr(os, "fork"):
            # One thread, so that nothing is lost by forking.
            self._server = subprocess.Popen(
                [sys.executable, "-c", SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                text=True,
            )

    def __enter__(self) -> NewProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            assert self._server.stdin is not None
            assert self._server.stdout is not None
            self._server.stdin.close()
            self._server.wait(60)
            self._server.stdout.close()

    def run(self, script: str, *arguments: str) -> None:
        """Run a script to its end; raise CalledProcessError where it fails."""
        if self._server is None:
            subprocess.run([sys.executable, "-c", script, *arguments], check=True, timeout=300)
            return
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([script, arguments]) + "\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        if status:
            raise subprocess.CalledProcessError(status, ["python", "-c", "script", *arguments])
