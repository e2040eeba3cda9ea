"""A folded network is the fused one but for rounding, and the fused one is left alone."""

import copy

import pytest
import torch

from repmode_cl.nn import Architecture, PlainUNet, RepModeUNet, fold_norms


@pytest.fixture(scope="module")
def trained():
    """A small network whose norms have statistics and weights that are not those of a fresh one."""
    generator = torch.Generator().manual_seed(0)
    network = RepModeUNet(Architecture(4, 2), ["dna", "actin_filament"], seed=1)
    network.add_structure("nucleolus")
    for name, value in network.state_dict().items():
        if "norm" in name and value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return network.eval()


@pytest.mark.parametrize("structure", ["dna", "nucleolus"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
def test_folded_predicts_as_fused(trained, structure, dtype, tolerance):
    fused = trained.fuse(structure).to(dtype)
    x = torch.randn(2, 1, 9, 12, 10, dtype=dtype, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted, found = fused(x), fold_norms(fused)(x)
    assert found.dtype == dtype
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


def test_folding_leaves_the_network_alone_and_shares_nothing_with_it(trained):
    fused = trained.fuse("dna")
    before = copy.deepcopy(fused.state_dict())
    folded = fold_norms(fused)
    for buffer in folded.buffers():
        buffer.zero_()
    assert all(torch.equal(value, before[name]) for name, value in fused.state_dict().items())
    assert not list(folded.parameters())
    assert not folded.training


def test_a_network_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="evaluation mode"):
        fold_norms(PlainUNet(4, 1, 3))


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_plain_networks_fold_too(kernel):
    network = PlainUNet(4, 1, kernel).eval()
    x = torch.randn(1, 1, 6, 6, 6)
    with torch.no_grad():
        assert torch.allclose(fold_norms(network)(x), network(x), rtol=1e-4, atol=1e-5)
