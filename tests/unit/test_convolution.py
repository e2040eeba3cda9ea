"""The convolution of all blocks equals torch's own, whatever it skips for speed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repmode_cl.nn.convolution import convolve


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(*[st.integers(1, 6)] * 3),
    kernel=st.sampled_from([1, 3, 5]),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_leaving_out_taps_that_only_meet_padding_changes_nothing(size, kernel, bias, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    x, weight, offset = normal(2, 3, *size), normal(4, 3, *[kernel] * 3), normal(4) if bias else None
    inputs = [tensor for tensor in (x, weight, offset) if tensor is not None]
    result = convolve(x, weight, offset)
    expected = torch.nn.functional.conv3d(x, weight, offset, padding=kernel // 2)
    assert torch.allclose(result, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn(result.shape, generator=generator, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((result * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 4, 4), (2, 8, 8), (3, 3, 3), (4, 8, 8)], ids=str)
def test_half_precision_gradients_of_shallow_volumes_are_repeatable_and_right(size):
    """oneDNN's own gradients for volumes shallower than the kernel differ from run to run."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, *size, generator=generator)
    weight = (torch.randn(8, 8, 5, 5, 5, generator=generator) / 30).requires_grad_()

    def gradient():
        with torch.autocast("cpu", torch.bfloat16):
            out = convolve(x, weight)
        return torch.autograd.grad(out.float().square().sum(), weight)[0]

    first = gradient()
    for _ in range(3):
        torch.full((1 << 20,), float("nan"))  # dirties memory that is handed out again
        assert torch.equal(gradient(), first)
    [exact] = torch.autograd.grad(convolve(x, weight).square().sum(), weight)
    assert float((first - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("size", [(8, 16, 16), (8, 8, 8), (1, 4, 4)])
def test_one_sample_in_training_comes_to_the_same_as_among_others(size: tuple[int, int, int]) -> None:
    """A single sample, as mixed batches have them, is computed with a second one where that takes less time."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(3, 4, 3, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.conv3d(x, kernel, padding=1)
    gradients = torch.autograd.grad(expected.square().sum(), (x, kernel))
    found = convolve(x, kernel)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(found.square().sum(), (x, kernel)), gradients, strict=True):
        torch.testing.assert_close(one, other)
    among = convolve(torch.cat([x, x.flip(2)]), kernel)
    torch.testing.assert_close(among[:1], found)
