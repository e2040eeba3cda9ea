"""Errors of the system about volumes in files: they name the file, so that a command can say where room is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource")

SCRIPT = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from repmode_cl.inference.raw_volume import RawVolume

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, when = Path(sys.argv[1]), sys.argv[2]
limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
whole = (slice(0, 8), slice(0, 32), slice(0, 32))
try:
    if when == "made":
        limit()
    volume = RawVolume(path, (8, 32, 32))
    limit()
    volume.write(whole, np.ones((8, 32, 32)))
    volume.close()
except OSError as error:
    print(error.filename == str(path), error.strerror)
"""


@pytest.mark.parametrize("when", ["made", "written"])
def test_a_file_that_cannot_grow_is_named(tmp_path: Path, when: str) -> None:
    arguments = [sys.executable, "-c", SCRIPT, str(tmp_path / "dna.raw"), when]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert ended.stdout == "True File too large\n"
