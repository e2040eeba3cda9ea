"""Processes that train together, started as a launcher such as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

#: What a launcher tells each process.
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def start(world: int, *command: str) -> list[subprocess.CompletedProcess[str]]:
    """Run a command as so many processes that know of each other, and wait for all."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []
    for rank in range(world):
        values = map(str, (rank, rank, world, "127.0.0.1", port))
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if world > 1:
            environment |= dict(zip(LAUNCHED, values, strict=True))
        running.append(
            subprocess.Popen(
                [sys.executable, *command],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    done = []
    for process in running:
        out, err = process.communicate(timeout=240)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done
