"""What a network's tensors weigh."""

from __future__ import annotations

from torch import nn

from repmode_cl.utils.memory import parameter_bytes


def test_shared_tensors_count_once_and_counters_not() -> None:
    """A layer under two names, as the first level of PIPO-FAN's pyramid has, next to a norm that nothing shares."""
    first, own = nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4)
    network = nn.ModuleDict({"one": first, "again": first, "own": own})
    names = list(network.state_dict())
    assert len(names) == 2 + 2 + 5
    scalars = 4 * 27 + 4 + 4 * 4  # kernel, bias; weight, bias and running statistics of the norm
    assert parameter_bytes(network, names) == (scalars, 4 * scalars)
    assert parameter_bytes(network, ["again.weight"]) == (4 * 27, 4 * 4 * 27)
    tied = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    tied["b"].weight = tied["a"].weight
    assert parameter_bytes(tied, list(tied.state_dict()))[0] == 16
