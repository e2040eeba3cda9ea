"""``gates.json``: how a trained network weighs its experts for each structure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from repmode_cl.utils.atomic_files import write_json

__all__ = ["GATES", "GateWeights", "read_gates", "write_gates"]

#: Name of the file in a trial's folder.
GATES = "gates.json"

#: Structure -> block -> expert -> gate weight, mean over channels (paper, Fig. 6).
GateWeights = dict[str, dict[str, dict[str, float]]]

#: Parts of a network in the order in which an image passes them.
_PARTS = ("encoder", "bottleneck", "decoder", "head")


def write_gates(path: Path, gates: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> None:
    """Write the gate weights; None (null) stands for a weight that is not finite, as after training diverged."""
    write_json(path, gates)


def read_gates(path: Path) -> GateWeights:
    """Read what `write_gates` wrote, blocks in the order of the network; without those whose weights are not finite.

    The file has names in alphabetical order, in which the decoder would stand before the encoder.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no JSON, or JSON of another form.
    """
    gates = json.loads(path.read_text(encoding="utf-8"))
    try:
        return {
            structure: {
                block: {expert: float(weight) for expert, weight in weights.items()}
                for block, weights in sorted(blocks.items(), key=lambda item: _place(item[0]))
                if None not in weights.values()
            }
            for structure, blocks in gates.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"it holds no gate weights of structures and blocks ({error})") from error


def _place(block: str) -> tuple[int, list[int]]:
    """Return where a block such as ``encoder.1.0`` stands: its part, level and number; levels of the decoder go up."""
    part, *numbers = block.split(".")
    level, *rest = [int(number) for number in numbers] or [0]
    known = _PARTS.index(part) if part in _PARTS else len(_PARTS)
    return known, [-level if part == "decoder" else level, *rest]
