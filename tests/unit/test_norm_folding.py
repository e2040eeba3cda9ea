"""A folded network predicts as the fused one but for rounding, and the fused one is not changed."""

import copy

import numpy as np
import pytest
import torch
from stored_model import make_model

from repmode_cl.cli.show_and_verify import show
from repmode_cl.model import Model
from repmode_cl.nn import (
    AdditionSpec,
    Architecture,
    FoldedUNet,
    PlainUNet,
    RepModeUNet,
    fold_norms,
    fold_structure,
)
from repmode_cl.nn.layerwise_forward import kernel_slices, predict_float64, predict_layerwise
from repmode_cl.store import proof, prove
from repmode_cl.store.proof import FOLDING_TOLERANCE


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
        wanted, folded = fused(x), fold_norms(fused)(x)
    assert folded.dtype == dtype
    assert float((folded - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


def test_folding_does_not_change_the_network_and_shares_nothing_with_it(trained):
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


# -- one layer at a time --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grown(trained):
    """The same with an addition of every kind, one of which sees the others, in training mode."""
    network = copy.deepcopy(trained)
    for name, spec in {
        "desmosome": AdditionSpec(expert="lowrank:2", norm="base"),
        "golgi_apparatus": AdditionSpec(expert="none", resampling="base"),
        "tight_junction": AdditionSpec(expert="conv5", sees="all"),
    }.items():
        network.add_structure(name, spec)
    return network.train()


@pytest.mark.parametrize("structure", ["dna", "nucleolus", "desmosome", "golgi_apparatus", "tight_junction"])
def test_a_layerwise_forward_pass_predicts_the_same_bits(grown, structure):
    before = copy.deepcopy(grown.state_dict())
    x = torch.randn(1, 1, 8, 12, 8, generator=torch.Generator().manual_seed(2))
    fused = grown.fuse(structure)
    folded, again = fold_norms(fused), fold_structure(grown, structure)
    for name, value in folded.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
        # With one input channel only the strides decide how torch convolves.
        assert again.state_dict()[name].stride() == value.stride(), name
    with torch.no_grad():
        assert torch.equal(again(x), folded(x))
        assert torch.equal(predict_layerwise(grown, structure, x, folded=True), folded(x))
        assert torch.equal(predict_layerwise(grown, structure, x, folded=False), fused(x))
        double = copy.deepcopy(grown).double().eval()
        wanted = double(x.double(), structure)
        layerwise = predict_float64(grown, structure, x.double())
    assert float((layerwise - wanted).abs().max()) <= 1e-13 * float(wanted.abs().max())
    after = grown.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_kernel_slices_join_to_the_kernel(grown, monkeypatch):
    monkeypatch.setattr("repmode_cl.nn.layerwise_forward._SCRATCH", 400)
    for structure in grown.structures:
        for name, block in grown.named_mode_blocks():
            parts = [part for _, part in kernel_slices(block, structure)]
            whole = block.kernel(structure, torch.float64)
            assert whole.shape == block.kernel_shape(structure)
            assert torch.allclose(torch.cat(parts), whole, rtol=1e-13, atol=1e-17), (structure, name)
            assert len(parts) > 1 or name == "head"


# -- the folding tolerance --------------------------------------------------------


def test_proofs_record_how_much_folding_changes(stored):
    for name, entry in Model.open(stored).entries.items():
        assert entry.proof.folding_error is not None
        assert 0 < entry.proof.folding_error <= FOLDING_TOLERANCE / 10, name
        assert entry.proof.folded
        assert isinstance(Model.open(stored).fuse(name), FoldedUNet)


def test_norms_stay_unfolded_beyond_the_tolerance(tmp_path, monkeypatch, capsys):
    image = np.random.default_rng(0).standard_normal((8, 12, 10)).astype(np.float32)
    folded = Model.open(make_model(tmp_path / "folded"))
    wanted = folded.predict(image, "dna")
    monkeypatch.setattr(proof, "FOLDING_TOLERANCE", 0.0)
    model = Model.open(make_model(tmp_path / "unfolded"))
    network = model.network()
    for name in model.structures:
        assert isinstance(model.fuse(name), PlainUNet)
        assert model.entries[name].digest == folded.entries[name].digest
        # What is predicted is what the network itself predicts, bit for bit.
        whole = model.fuse(name)(torch.from_numpy(image)[None, None])
        with torch.no_grad():
            assert torch.equal(whole, network(torch.from_numpy(image)[None, None], name))
    report = model.verify()
    assert report.bit_identical
    assert all("with unfolded norms" in result.detail for result in report.results)
    show(model.path)
    assert "nucleolus is predicted with unfolded norms" in capsys.readouterr().out
    difference = np.abs(model.predict(image, "dna") - wanted).max()
    assert 0 < difference <= 1e-4 * np.abs(wanted).max()


def test_a_network_that_predicts_nothing_folds_to_nothing():
    network = RepModeUNet(Architecture(2, 1, ("conv3",)), ["dna"]).eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("norm.base.bias"):
                value.fill_(-100.0)
    assert prove(network, "dna").folding_error == 0.0
