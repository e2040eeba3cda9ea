"""GatRep equals the paper's mixture, computed branch by branch with torch's own layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from repmode_cl.nn import fuse_kernels, make_expert

PRECISION = {torch.float64: 1e-10, torch.float32: 1e-5}
SPECS = ("conv1", "conv3", "conv5", "avg3", "avg5", "lowrank:2")


def branch(expert, spec, shape):
    """One expert as torch's own layers, holding the expert's own parameters."""

    def conv(weight):
        c_out, c_in, size = weight.shape[0], weight.shape[1], weight.shape[2]
        layer = nn.Conv3d(c_in, c_out, size, padding=size // 2, bias=False, dtype=weight.dtype)
        del layer.weight
        layer.weight = weight  # the same tensor: gradients reach the expert
        return layer

    if spec.startswith("conv"):
        return conv(expert.weight)
    if spec.startswith("avg"):
        size = int(spec[-1])
        if min(shape) >= size:
            pool = nn.AvgPool3d(size, stride=1, padding=size // 2)
        else:  # torch refuses to pool what is smaller than the window before padding
            pool = nn.Sequential(nn.ConstantPad3d(size // 2, 0.0), nn.AvgPool3d(size, stride=1))
        return nn.Sequential(pool, conv(expert.weight))
    return nn.Sequential(conv(expert.spatial), _Mix(expert.mix))


class _Mix(nn.Module):
    """A 1 x 1 x 1 convolution whose weight is stored as a matrix."""

    def __init__(self, mix):
        super().__init__()
        self.mix = mix

    def forward(self, x):
        return nn.functional.conv3d(x, self.mix[..., None, None, None])


def relative(a, b):
    a, b = a.detach(), b.detach()
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@settings(max_examples=40, deadline=None)
@given(
    specs=st.lists(st.sampled_from(SPECS), min_size=1, max_size=6),
    c_in=st.integers(1, 4),
    c_out=st.integers(1, 4),
    size=st.tuples(*[st.integers(1, 7)] * 3),
    spread=st.floats(0.0, 4.0),
    seed=st.integers(0, 2**31),
)
def test_fused_equals_sum_of_branches(dtype, specs, c_in, c_out, size, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    experts = [make_expert(spec, c_in, c_out, generator).to(dtype) for spec in specs]
    gate = (torch.randn(len(specs), c_out, generator=generator, dtype=dtype) * spread).requires_grad_()
    x = torch.randn(2, c_in, *size, generator=generator, dtype=dtype, requires_grad=True)
    weights = torch.randn(2, c_out, *size, generator=generator, dtype=dtype)
    wanted = [x, gate, *(p for expert in experts for p in expert.parameters())]

    kernel = fuse_kernels(experts, gate)
    fused = nn.functional.conv3d(x, kernel, padding=kernel.shape[-1] // 2)
    fused_grads = torch.autograd.grad((fused * weights).sum(), wanted)

    shares = torch.softmax(gate, 0)
    mixture = sum(
        shares[t][:, None, None, None] * branch(expert, spec, size)(x)
        for t, (expert, spec) in enumerate(zip(experts, specs, strict=True))
    )
    grads = torch.autograd.grad((mixture * weights).sum(), wanted)

    assert relative(fused, mixture) <= PRECISION[dtype]
    # All gradients as one vector: a gate's own gradient can be a rounding error beside nothing (softmax of one).
    joined = [torch.cat([g.flatten() for g in gs]) for gs in (fused_grads, grads)]
    assert relative(*joined) <= PRECISION[dtype]


def test_kernel_size_is_the_largest_visible_experts():
    generator = torch.Generator().manual_seed(0)
    for specs, size in ((("conv1",), 1), (("conv1", "avg3"), 3), (("avg5", "conv1"), 5)):
        experts = [make_expert(spec, 2, 3, generator) for spec in specs]
        assert fuse_kernels(experts, torch.zeros(len(specs), 3)).shape == (3, 2, size, size, size)


def test_gate_row_of_the_wrong_length_is_refused():
    experts = [make_expert("conv3", 1, 1, torch.Generator())]
    with pytest.raises(ValueError, match="2 entries for 1 experts"):
        fuse_kernels(experts, torch.zeros(2, 1))


@pytest.mark.parametrize("spec", ["conv2", "conv", "avg1", "lowrank", "lowrank:0", "lowrank:-1", ""])
def test_unknown_experts_are_refused_by_name(spec):
    with pytest.raises(ValueError, match="is no expert: choose conv1"):
        make_expert(spec, 1, 1, torch.Generator())


def test_fusing_is_exact_under_autocast():
    generator = torch.Generator().manual_seed(1)
    experts = [make_expert(spec, 3, 3, generator) for spec in SPECS]
    gate = torch.randn(len(SPECS), 3, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        under = fuse_kernels(experts, gate)
    assert torch.equal(under, fuse_kernels(experts, gate))
