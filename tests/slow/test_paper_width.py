"""Size of an addition on disk at the paper's width, against the networks that Multi-Net would store."""

from __future__ import annotations

from pathlib import Path

import pytest

from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec, Architecture, PlainUNet, RepModeUNet
from repmode_cl.utils.safetensors_io import write_tensors

EXPERTS = ("conv5", "conv3", "conv1", "lowrank:8", "none")


@pytest.mark.slow
def test_bytes_of_additions_at_the_papers_width(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = RepModeUNet(Architecture(), ("dna",)).eval()
    inference = {"window": (32, 128, 128), "overlap": 0.5, "batch": 1}
    model = Model.create(tmp_path / "model", network, voxel_size=None, preprocessing={}, inference=inference)
    plain = {}
    for kernel in (3, 5):
        file = tmp_path / f"plain-{kernel}.safetensors"
        write_tensors(file, PlainUNet(network.width, network.depth, kernel).state_dict(), {})
        plain[kernel] = file.stat().st_size
        file.unlink()
    sizes: dict[tuple[str, str], int] = {}
    for resampling in ("own", "base"):
        for number, expert in enumerate(EXPERTS):
            name = f"{resampling}_{number}"
            network = model.network([])
            network.add_structure(name, AdditionSpec(expert=expert, resampling=resampling))  # type: ignore[arg-type]
            entry = model.add(name, network)
            sizes[expert, resampling] = (model.path / entry.file).stat().st_size
            model.remove(name)
            model.gc()
    with capsys.disabled():
        print(f"\nMulti-Net, kernel 3: {plain[3]:,} bytes; kernel 5: {plain[5]:,} bytes")
        for (expert, resampling), size in sizes.items():
            of = ", ".join(f"{size / plain[kernel]:.2%} of kernel {kernel}" for kernel in plain)
            print(f"{expert}, resampling {resampling}: {size:,} bytes, {of}")
    assert sizes["conv3", "base"] <= 0.22 * plain[5]
    assert sizes["lowrank:8", "base"] <= 0.01 * plain[5]
    assert sizes["conv3", "own"] <= 0.24 * plain[5]
    assert sizes["conv5", "own"] <= 1.01 * plain[5]
