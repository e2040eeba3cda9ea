"""Peak memory of a process that verifies a model of the paper's width: ``pytest -m slow -s``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from stored_model import PARTS, liven

from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec, Architecture, RepModeUNet

TINY = Path(__file__).parents[1] / "fixtures" / "model-v2"

#: A separate process; a tiny model first, so that libraries which are loaded when they are used are not counted.
VERIFY = """
import json, sys
from repmode_cl.utils.memory import peak_memory, reset_peak, resident_memory
from repmode_cl.store import verify_model
from repmode_cl.utils import environment
environment.ARITHMETIC += int(sys.argv[3])
verify_model(sys.argv[1])
reset_peak()
before = resident_memory()
report = verify_model(sys.argv[2])
peak = peak_memory()
print(json.dumps([peak - before, [result.status for result in report.results]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("added", [0, 2])
def test_verifying_needs_less_memory_than_twice_the_model(tmp_path: Path, added: int) -> None:
    network = RepModeUNet(Architecture(), ("dna",), seed=0)
    liven(network)
    parts = {**PARTS, "inference": {"window": (32, 128, 128), "overlap": 0.5, "batch": 1}}
    model = Model.create(tmp_path / "model", network.eval(), **parts)
    del network
    for name in ("nucleolus", "mitochondria")[:added]:
        more = model.network([])
        more.add_structure(name, AdditionSpec())
        liven(more, f".own.{name}.")
        model.add(name, more)
        del more
    size = sum(file.stat().st_size for file in (tmp_path / "model").rglob("*.safetensors"))
    for elsewhere, status in ((0, "bit-identical"), (90, "within tolerance")):
        arguments = [TINY, tmp_path / "model", elsewhere]
        done = subprocess.run(
            [sys.executable, "-c", VERIFY, *map(str, arguments)],
            check=True,
            capture_output=True,
            text=True,
            timeout=900,
        )
        peak, statuses = json.loads(done.stdout)
        assert statuses == [status] * (1 + added)
        print(f"{1 + added} structures, {status}: {peak / 1e6:.0f} MB for {size / 1e6:.0f} MB")
        assert size / 2 < peak < 2 * size
