"""Adam in the form that torch is fastest in, which is no other Adam."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from repmode_cl.training import capture, make_adam, reinstate


def parameters(dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random).to(device, dtype)) for shape in ((3, 4), (5,))]


def steps(optimizer: torch.optim.Adam, first: int, last: int) -> list[Tensor]:
    """Make steps whose gradients depend on nothing but their number."""
    held = optimizer.param_groups[0]["params"]
    for number in range(first, last):
        for parameter in held:
            parameter.grad = torch.sin(torch.arange(parameter.numel()) + number).view_as(parameter)
        optimizer.step()
    return [parameter.detach().clone() for parameter in held]


def test_it_is_fused_and_the_same_adam() -> None:
    fused = make_adam(parameters(), learning_rate=0.1, weight_decay=0.01)
    assert fused.param_groups[0]["fused"] is True
    plain = torch.optim.Adam(parameters(), lr=0.1, weight_decay=0.01, foreach=False)
    for one, other in zip(steps(fused, 0, 20), steps(plain, 0, 20), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "device"), [(torch.complex64, "cpu"), (torch.float32, "meta")], ids=["type", "device"]
)
def test_what_cannot_be_fused_is_updated_together(dtype: torch.dtype, device: str) -> None:
    held = [*parameters(), *parameters(dtype, device)]
    optimizer = make_adam(held, learning_rate=0.1)
    assert optimizer.param_groups[0]["fused"] is False
    assert optimizer.param_groups[0]["foreach"] is True


def test_its_state_comes_back_to_the_bit() -> None:
    whole = steps(make_adam(parameters(), learning_rate=0.1), 0, 9)
    first = make_adam(parameters(), learning_rate=0.1)
    middle = steps(first, 0, 4)
    tensors, state = capture(optimizer=first)
    held = [nn.Parameter(value) for value in middle]
    second = make_adam(held, learning_rate=0.1)
    reinstate(tensors, state, optimizer=second)
    counts = [entry["step"] for entry in second.state_dict()["state"].values()]
    assert [(count.dtype, count.item()) for count in counts] == [(torch.float32, 4.0)] * 2
    assert all(map(torch.equal, whole, steps(second, 4, 9)))
