"""``gates.json``: what a network's gates are, in the network's order."""

from __future__ import annotations

from repmode_cl.benchmark.artifacts import write_gate_weights
from repmode_cl.nn import Architecture, RepModeUNet
from repmode_cl.results.gates import read_gates


def test_blocks_are_read_in_the_order_in_which_an_image_passes_them(tmp_path):
    network = RepModeUNet(Architecture(width=2, depth=3), ["dna", "nucleolus"])
    write_gate_weights(tmp_path / "gates.json", network)

    gates = read_gates(tmp_path / "gates.json")

    expected = [name for name, _ in network.named_blocks()]
    assert expected[:2] == ["encoder.0.0", "encoder.0.1"]
    assert expected[-2:] == ["decoder.0.1", "head"]
    for name in ("dna", "nucleolus"):
        assert list(gates[name]) == expected
        for block, weights in network.gate_weights(name).items():
            assert gates[name][block] == {label: float(share.mean()) for label, share in weights.items()}
