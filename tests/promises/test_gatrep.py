"""GatRep equals the paper's mixture, computed branch by branch with torch's own layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from repmode_cl.nn import fuse_kernels, fuse_rows, make_expert
from repmode_cl.perf.reference_variants import merged_kernel

PRECISION = {torch.float64: 1e-10, torch.float32: 1e-5}
SPECS = ("conv1", "conv3", "conv5", "avg3", "avg5", "lowrank:2")


def branch(expert, spec, shape):
    """One expert as torch's own layers, holding the expert's own parameters."""

    def conv(weight):
        c_out, c_in, size = weight.shape[0], weight.shape[1], weight.shape[2]
        layer = nn.Conv3d(c_in, c_out, size, padding=size // 2, bias=False, dtype=weight.dtype)
        del layer.weight
        layer.weight = weight  # the same tensor: gradients max_taps the expert
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
    gating=st.sampled_from(["softmax", "sigmoid"]),
    seed=st.integers(0, 2**31),
)
def test_fused_equals_sum_of_branches(dtype, specs, c_in, c_out, size, spread, gating, seed):
    generator = torch.Generator().manual_seed(seed)
    experts = [make_expert(spec, c_in, c_out, generator).to(dtype) for spec in specs]
    gate = (torch.randn(len(specs), c_out, generator=generator, dtype=dtype) * spread).requires_grad_()
    x = torch.randn(2, c_in, *size, generator=generator, dtype=dtype, requires_grad=True)
    weights = torch.randn(2, c_out, *size, generator=generator, dtype=dtype)
    wanted = [x, gate, *(p for expert in experts for p in expert.parameters())]

    kernel = fuse_kernels(experts, gate, gating=gating)
    fused = nn.functional.conv3d(x, kernel, padding=kernel.shape[-1] // 2)
    fused_grads = torch.autograd.grad((fused * weights).sum(), wanted)

    shares = torch.softmax(gate, 0) if gating == "softmax" else torch.sigmoid(gate)
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
    with pytest.raises(ValueError, match="1 entries for 0 experts within the softmax"):
        fuse_kernels(experts, torch.zeros(1, 1), outside=torch.ones(1))


@settings(max_examples=30, deadline=None)
@given(
    specs=st.lists(st.sampled_from(SPECS), min_size=2, max_size=6),
    max_taps=st.tuples(*[st.sampled_from([1, 3, 5, 7])] * 3),
    seed=st.integers(0, 2**31),
)
def test_an_expert_outside_the_softmax_is_added_with_its_own_weight(specs, max_taps, seed):
    experts, [gate] = experts_and_rows(specs, 1, seed=seed)
    gate = gate[:-1].detach().requires_grad_()
    outside = torch.randn(4, dtype=gate.dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    weights = torch.randn(4, 3, 5, 5, 5, dtype=gate.dtype, generator=torch.Generator().manual_seed(seed))
    wanted = [gate, outside, *parameters(experts)]
    pairs = []
    for mixed in (
        fuse_rows(experts, [gate], max_taps=max_taps, outside=outside)[0],
        sum_of_kernels(experts, torch.cat([torch.softmax(gate, 0), outside[None]]), max_taps),
    ):
        edges = [(5 - n) // 2 for n in mixed.shape[2:]]
        z, y, x = (slice(edge, 5 - edge) for edge in edges)
        pairs.append([mixed, *torch.autograd.grad((mixed * weights[:, :, z, y, x]).sum(), wanted)])
    for fused, expected in zip(*pairs, strict=True):
        assert torch.allclose(fused, expected, rtol=1e-10, atol=1e-12)


def sum_of_kernels(experts, shares, max_taps):
    """The weighted sum of padded kernels, with at most so many taps, by operations that autograd traces."""
    size = max(expert.kernel_size for expert in experts)
    total = 0
    for expert, share in zip(experts, shares, strict=True):
        edge = expert.kernel_size
        taps = merged_kernel(expert)
        padded = nn.functional.pad(taps, [(size - edge) // 2] * 6)
        total = total + padded * share[:, None, None, None, None]
    z, y, x = (slice(max(0, (size - most) // 2), size - max(0, (size - most) // 2)) for most in max_taps)
    return total[:, :, z, y, x]


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


def experts_and_rows(specs, rows, *, c_in=3, c_out=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    experts = [make_expert(spec, c_in, c_out, generator).to(dtype) for spec in specs]
    gates = [torch.randn(len(specs), c_out, generator=generator, dtype=dtype) for _ in range(rows)]
    return experts, [gate.requires_grad_() for gate in gates]


def parameters(experts):
    return [parameter for expert in experts for parameter in expert.parameters()]


@settings(max_examples=30, deadline=None)
@given(
    specs=st.lists(st.sampled_from(SPECS), min_size=1, max_size=6),
    max_taps=st.tuples(*[st.sampled_from([1, 3, 5, 7])] * 3),
    seed=st.integers(0, 2**31),
)
def test_taps_beyond_max_taps_are_left_out_and_take_no_gradient(specs, max_taps, seed):
    experts, [gate] = experts_and_rows(specs, 1, seed=seed)
    whole = fuse_kernels(experts, gate)
    [part] = fuse_rows(experts, [gate], max_taps=max_taps)
    cut = [max(0, (whole.shape[-1] - most) // 2) for most in max_taps]
    z, y, x = (slice(c, whole.shape[-1] - c) for c in cut)
    # Experts that are cut to one size are summed in another order.
    assert torch.allclose(part, whole[:, :, z, y, x], rtol=1e-12, atol=1e-14)
    weights = torch.randn(part.shape, dtype=part.dtype, generator=torch.Generator().manual_seed(seed))
    wanted = [gate, *parameters(experts)]
    grads = torch.autograd.grad((part * weights).sum(), wanted)
    expected = torch.autograd.grad((whole[:, :, z, y, x] * weights).sum(), wanted)
    for grad, other in zip(grads, expected, strict=True):
        assert torch.allclose(grad, other, rtol=1e-10, atol=1e-12)


def test_several_rows_fuse_as_each_by_itself_and_their_gradients_add_up():
    experts, rows = experts_and_rows(SPECS, 3)
    together = fuse_rows(experts, rows)
    single = [fuse_kernels(experts, row) for row in rows]
    assert all(torch.equal(a, b) for a, b in zip(together, single, strict=True))
    wanted = [*rows, *parameters(experts)]
    weights = [torch.randn_like(kernel) for kernel in together]
    grads = torch.autograd.grad(sum((k * w).sum() for k, w in zip(together, weights, strict=True)), wanted)
    expected = torch.autograd.grad(sum((k * w).sum() for k, w in zip(single, weights, strict=True)), wanted)
    for grad, other in zip(grads, expected, strict=True):
        assert torch.allclose(grad, other, rtol=1e-10, atol=1e-12)


def test_a_row_that_the_loss_does_not_reach_takes_no_gradient():
    experts, rows = experts_and_rows(("conv3", "avg5"), 2)
    first, _ = fuse_rows(experts, rows)
    first.square().sum().backward()
    assert rows[0].grad is not None
    assert rows[1].grad is None


@pytest.mark.parametrize(
    "scratch",
    [
        pytest.param(1, id="small scratch", marks=pytest.mark.slow),
        pytest.param(1 << 22, id="default scratch"),
    ],
)
def test_gradients_pass_finite_differences(monkeypatch, scratch):
    monkeypatch.setattr("repmode_cl.nn.gatrep._SCRATCH", scratch)
    experts, rows = experts_and_rows(SPECS, 2, c_in=2, c_out=2)

    def fused(*tensors):
        return torch.cat([kernel.flatten() for kernel in fuse_rows(experts, tensors[:2])])

    # The experts' own parameters are perturbed in place by gradcheck: they are inputs, though not arguments.
    assert torch.autograd.gradcheck(fused, (*rows, *parameters(experts)))


def test_a_second_derivative_is_refused():
    experts, [gate] = experts_and_rows(("conv3", "conv1"), 1)
    [grad] = torch.autograd.grad(fuse_kernels(experts, gate).square().sum(), gate, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_frozen_experts_take_no_gradient_and_learning_ones_the_same():
    experts, [gate] = experts_and_rows(("conv5", "conv3", "avg3", "conv3"), 1)
    loss = fuse_kernels(experts, gate).square().sum()
    expected = torch.autograd.grad(loss, [gate, experts[3].weight])
    for expert in experts[:3]:
        expert.requires_grad_(False)
    fuse_kernels(experts, gate).square().sum().backward()
    assert all(expert.weight.grad is None for expert in experts[:3])
    assert torch.equal(gate.grad, expected[0])
    assert torch.equal(experts[3].weight.grad, expected[1])


def test_backward_under_autocast_is_computed_in_full_precision():
    experts, [gate] = experts_and_rows(SPECS, 1, dtype=torch.float32)
    wanted = [gate, *parameters(experts)]
    expected = torch.autograd.grad(fuse_kernels(experts, gate).square().sum(), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(fuse_kernels(experts, gate).square().sum(), wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_only_weights_and_rows_are_stored_for_the_backward_pass():
    experts, rows = experts_and_rows(SPECS, 2)
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: stored.append(t) or t, lambda t: t):
        fuse_rows(experts, rows)
    expected = {tensor.data_ptr() for tensor in (*rows, *parameters(experts))}
    assert stored
    assert {tensor.data_ptr() for tensor in stored} == expected


@pytest.mark.slow
def test_compiled_code_may_fuse():
    """Not to the same bits: the compiler gets a sum in another order, and decides itself what it stores."""
    experts, rows = experts_and_rows(SPECS, 2)
    weights = [parameter for expert in experts for parameter in expert.parameters()]
    torch._dynamo.reset()
    for max_taps in (None, (1, 3, 5)):

        def fused(*rows: torch.Tensor, max_taps: tuple[int, ...] | None = max_taps) -> torch.Tensor:
            return torch.stack(fuse_rows(experts, rows, max_taps=max_taps)) * 2

        kernels = torch.compile(fused, backend="eager")(*rows), fused(*rows)
        torch.testing.assert_close(*kernels)
        assert kernels[0][0].is_contiguous(memory_format=torch.channels_last_3d)
        grads = [torch.autograd.grad(kernel.square().sum(), [*rows, *weights]) for kernel in kernels]
        for one, other in zip(*grads, strict=True):
            assert other.abs().max() > 0
            torch.testing.assert_close(one, other)
