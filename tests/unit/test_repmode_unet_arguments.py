"""Arguments of the network: an architecture, or its width and depth; the base's structures by either name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from repmode_cl.nn import Architecture, RepModeUNet


def test_width_and_depth_stand_for_an_architecture() -> None:
    short = RepModeUNet(width=4, depth=1, structures=["dna"], seed=3)
    long = RepModeUNet(Architecture(width=4, depth=1), ["dna"], seed=3)
    assert short.architecture == long.architecture
    assert short.structures == ("dna",)
    for (name, mine), (_, theirs) in zip(short.state_dict().items(), long.state_dict().items(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"architecture": Architecture(4, 1), "width": 4, "structures": ["dna"]},
            "either an architecture or width",
        ),
        ({"width": 4, "depth": 1}, "structures of the base once"),
        ({"width": 4, "depth": 1, "base_structures": ["dna"], "structures": ["dna"]}, "of the base once"),
    ],
)
def test_what_is_given_twice_or_not_at_all_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        RepModeUNet(**arguments)
