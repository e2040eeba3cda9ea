"""Twelve structures, added one by one: after each, those before it are what they were, seen by a new process.

``pytest -m slow tests/slow/test_twelve_additions.py -s`` prints the seconds and the bytes of each addition.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stored_model import PARTS, liven

from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec, Architecture, RepModeUNet
from repmode_cl.store import candidate as candidates
from repmode_cl.structures import TWELVE_STRUCTURES

#: Run by a new process: digests of the tensors as they were loaded, of kernels and of the probe's prediction, and of
#: what the model predicts of a volume.
LOOK = """
import hashlib, json, sys
import numpy as np
import torch
from repmode_cl.model import Model
from repmode_cl.utils.tensor_digests import tensor_digest
path, volume, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model, volume = Model.open(path), np.load(volume)
network, report = model.network(), model.verify()
assert report.bit_identical, report
print(json.dumps({
    result.structure: [
        tensor_digest(network.structure_state(result.structure)
                      if result.structure in network.additions else network.base_state()),
        *result.computed,
        hashlib.sha256(model.predict(volume, result.structure).tobytes()).hexdigest(),
    ]
    for result in report.results
}))
"""


@contextmanager
def timed_proofs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Let `Model.add` tell how long it computed proofs."""
    seconds: list[float] = []
    prove = candidates.prove

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        proof = prove(*arguments)
        seconds.append(time.perf_counter() - start)
        return proof

    with monkeypatch.context() as patch:
        patch.setattr(candidates, "prove", timed)
        yield seconds


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("sees", ["own", "all"])
def test_twelve_are_added_and_none_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sees: str
) -> None:
    path, volume = tmp_path / "model", tmp_path / "volume.npy"
    np.save(volume, np.random.default_rng(0).standard_normal((12, 20, 18)).astype(np.float32))
    base = RepModeUNet(Architecture(width=8, depth=3), ("brightfield",), seed=0)
    liven(base)
    parts = {**PARTS, "inference": {"window": (8, 16, 16), "overlap": 0.5, "batch": 2}}
    model = Model.create(path, base.eval(), **parts)
    seen: dict[str, list[str]] = {}
    seconds, sizes, proofs = [], [], 0.0
    for number, name in enumerate(TWELVE_STRUCTURES, 1):
        files = {file: file.read_bytes() for file in path.rglob("*.safetensors")}
        with timed_proofs(monkeypatch) as proving:
            start = time.perf_counter()
            # What a training of it would load.
            network = model.network([] if sees == "own" else None)
            network.add_structure(name, AdditionSpec(sees=sees), seed=number)  # type: ignore[arg-type]
            liven(network, f".own.{name}.")
            entry = model.add(name, network)
            seconds.append(time.perf_counter() - start - sum(proving))
        proofs += sum(proving)
        sizes.append(entry.bytes)
        assert len(entry.needs) == (0 if sees == "own" else number - 1)
        assert all(file.read_bytes() == data for file, data in files.items())
        arguments = [str(path), str(volume), str(torch.get_num_threads())]
        done = subprocess.run(
            [sys.executable, "-c", LOOK, *arguments], check=True, capture_output=True, text=True, timeout=600
        )
        found = json.loads(done.stdout)
        assert tuple(found) == ("brightfield", *TWELVE_STRUCTURES[:number])
        for other, digests in seen.items():
            assert found[other] == digests, f"{other} changed when {name} was added"
        seen = found
        # Livened networks: none is dead, and no two are the same.
        assert len({tuple(digests) for digests in seen.values()}) == number + 1
    print(f"\nsees {sees}: seconds without the proof {' '.join(f'{value:.3f}' for value in seconds)}")
    print(f"sees {sees}: bytes {' '.join(map(str, sizes))}; proofs {proofs / 12:.2f} s each")
    if sees == "own":
        # From the 2nd to the 12th; names differ in length, and the record of a file with them.
        assert max(sizes[1:]) - min(sizes[1:]) < 0.01 * sizes[1]
        assert statistics.median(seconds[8:]) < 1.5 * statistics.median(seconds[1:5]) + 0.1
